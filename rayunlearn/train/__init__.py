"""The one optimisation loop and what acts on it: adapters, wrappers, checkpoints, early stopping.
May import models and data.
"""
