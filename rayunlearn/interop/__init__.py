"""Models from and to elsewhere: evaluate, audit, export and lm-evaluation-harness; may import
analysis, data, methods, metrics, models, selectors, storage, train and trial.
"""
