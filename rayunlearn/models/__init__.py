"""Models, built from scratch or loaded, and what is computed from one forward pass; may import data
and storage.
"""
