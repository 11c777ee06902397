"""Keywords of a document: extractors over words and corpus statistics, and text ablations by what
they find; may import data and models.
"""
