"""Documents: generated test beds, files of one's own, and how they become tokens."""
