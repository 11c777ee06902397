"""The one optimisation loop and what acts on it: adapters, wrappers, checkpoints and early
stopping; may import data, models and storage.
"""
