"""Documents: synthetic datasets, benchmarks, your own files, and how they become tokens; may import
storage.
"""
