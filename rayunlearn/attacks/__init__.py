"""Attacks: ways to recover what unlearning was to take away. Metrics do not know that a model was
attacked.
"""
