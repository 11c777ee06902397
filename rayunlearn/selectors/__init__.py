"""Selectors: which documents of the forget set make the coreset, and the scores they are chosen by;
may import data, keywords, methods and models.
"""
