"""Out-of-core jobs over a corpus (`keywords`, `score`), partition by partition, without Ray; may
import data, keywords, models, selectors, storage and train.
"""
