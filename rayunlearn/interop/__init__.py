"""Models from elsewhere and to elsewhere: evaluate, audit, export, lm-evaluation-harness. May
import trial and below.
"""
