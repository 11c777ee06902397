"""What runs next: a pure function of what has finished, with Optuna, cost and GPU memory, without
Ray; may import analysis, attacks, attribution, data, keywords, methods, metrics, models, plugins,
selectors, storage, train and trial.
"""
