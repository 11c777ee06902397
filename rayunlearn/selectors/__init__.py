"""Selectors: which documents of the forget set make the coreset."""
