"""What extractors know of a corpus: counted in one pass, merged from parts in any order."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

from rayunlearn.keywords.words import words_of


@dataclass(frozen=True)
class Statistics:
    """Word counts of a corpus: `counts` of occurrences, `document_counts` of documents with the word."""

    n_documents: int
    n_words: int
    counts: Counter[str]
    document_counts: Counter[str]


EMPTY = Statistics(0, 0, Counter(), Counter())


def statistics_of(texts: Iterable[str]) -> Statistics:
    """Count a corpus in one pass; texts are not kept."""
    n_documents, counts, document_counts = 0, Counter[str](), Counter[str]()
    for text in texts:
        keys = [word.key for word in words_of(text)]
        counts.update(keys)
        document_counts.update(set(keys))
        n_documents += 1
    return Statistics(n_documents, counts.total(), counts, document_counts)


def merge(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all parts together, equal to those of one pass over them. Of no part: EMPTY."""
    return reduce(_add, parts, EMPTY)


def _add(a: Statistics, b: Statistics) -> Statistics:
    return Statistics(a.n_documents + b.n_documents, a.n_words + b.n_words, a.counts + b.counts, a.document_counts + b.document_counts)
