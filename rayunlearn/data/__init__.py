"""Documents: synthetic datasets, your own files, and how they become tokens."""
