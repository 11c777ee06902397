"""Metrics: one value per document, several from one forward pass; may import data and models."""
