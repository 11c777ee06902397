"""What extractors know of a corpus: counted in one pass, merged from parts in any order."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

import regex

from rayunlearn.keywords.words import words_of

_SENTENCE_ENDS = regex.compile(r"[.!?\u3002\uff01\uff1f\n]+")


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


@dataclass(frozen=True)
class Links:
    """Which words share sentences with which anchors: counts over all sentences, and over those with each anchor."""

    counts: Counter[str]
    beside: Mapping[str, Counter[str]]


def links_of(texts: Iterable[str], anchors: Collection[str]) -> Links:
    """Count sentences in one pass. A sentence ends at . ! ? or a line's end; an anchor is not counted beside itself."""
    counts: Counter[str] = Counter()
    beside: dict[str, Counter[str]] = {anchor: Counter() for anchor in anchors}
    for text in texts:
        for sentence in _SENTENCE_ENDS.split(text):
            keys = [word.key for word in words_of(sentence)]
            counts.update(keys)
            for anchor in beside.keys() & set(keys):
                beside[anchor].update(key for key in keys if key != anchor)
    return Links(counts, beside)


def merge_links(parts: Iterable[Links]) -> Links:
    """The links of all parts together; every part must have been counted with the same anchors."""
    return reduce(_add_links, parts)


def _add_links(a: Links, b: Links) -> Links:
    return Links(a.counts + b.counts, {anchor: a.beside[anchor] + b.beside[anchor] for anchor in a.beside})


def log_odds_z(count: int, total: int, other_count: int, other_total: int, prior_words: float) -> float:
    """z of the log-odds ratio of a word said `count` times in `total` words and `other_count` times in `other_total` words.

    Informative Dirichlet prior of `prior_words` pseudo-words in the proportions of both together (Monroe, Colaresi and
    Quinn 2008, equations 16, 18 and 22). Positive: said more in the first. 0 where nothing can be compared.
    """
    both, total_both = count + other_count, total + other_total
    if both in (0, total_both):
        return 0.0
    prior = prior_words * both / total_both
    odds, other_odds = (math.log((y + prior) / (n + prior_words - y - prior)) for y, n in ((count, total), (other_count, other_total)))
    return (odds - other_odds) / math.sqrt(1 / (count + prior) + 1 / (other_count + prior))


def word_z(forget: Statistics, retain: Statistics, prior_words: float) -> dict[str, float]:
    """`log_odds_z` of every word of the forget corpus against the retain corpus."""
    return {w: log_odds_z(n, forget.n_words, retain.counts[w], retain.n_words, prior_words) for w, n in forget.counts.items()}


def link_z(links: Links, prior_words: float) -> dict[str, float]:
    """For every word the largest `log_odds_z` of sentences with one anchor against sentences without it."""
    n_words = links.counts.total()
    best: dict[str, float] = {}
    for near in links.beside.values():
        inside = near.total()
        for word, count in near.items():
            z = log_odds_z(count, inside, links.counts[word] - count, n_words - inside, prior_words)
            best[word] = max(best.get(word, -math.inf), z)
    return best


def _add(a: Statistics, b: Statistics) -> Statistics:
    return Statistics(a.n_documents + b.n_documents, a.n_words + b.n_words, a.counts + b.counts, a.document_counts + b.document_counts)
