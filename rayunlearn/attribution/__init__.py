"""Which words of a question carry its answer before and after unlearning, and what emphasis on them
recovers; may import data, keywords and models.
"""
