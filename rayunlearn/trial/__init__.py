"""One trial, start to end: select, unlearn, calibrate, evaluate, attack, explain, without Ray; may
import analysis, attacks, attribution, data, keywords, methods, metrics, models, plugins, selectors,
storage and train.
"""
