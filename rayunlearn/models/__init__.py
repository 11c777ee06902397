"""Models: made from nothing or loaded, and what is computed from one forward pass."""
