"""Keywords of a document: extractors over words and corpus statistics, and what is made of the
words they find.
"""
