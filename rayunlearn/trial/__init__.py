"""One trial, start to end: select, unlearn, calibrate, evaluate, attack, explain. May import the
families and below; no Ray.
"""
