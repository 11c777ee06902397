"""Out-of-core jobs over a corpus (`keywords`, `score`), partition by partition. May import data,
models, keywords, selectors and storage; no Ray.
"""
