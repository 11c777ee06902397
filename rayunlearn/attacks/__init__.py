"""Attacks, ways to recover what unlearning removed, each with its control; may import data,
keywords, methods, metrics, models and train.
"""
