"""What runs next: a pure function of what has finished, with Optuna, cost and memory. May import
the family tables and storage; no Ray.
"""
