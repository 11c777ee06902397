"""What extractors know of a corpus: counted in one pass, merged from parts in any order."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import TypeAlias

import regex

from rayunlearn.keywords.tokens import IntArray, blocks_of, tokens_of
from rayunlearn.keywords.words import words_of
from rayunlearn.lazy import np

Floats: TypeAlias = "int | IntArray"

Frame = tuple[str | None, ...]
LONGEST_SENTENCE = 20
_SENTENCE_ENDS = regex.compile(r"[.!?\u3002\uff01\uff1f\n]+")


@dataclass(frozen=True)
class Statistics:
    """Word counts of a corpus: `counts` of occurrences, `document_counts` of documents with the
    word.
    """

    n_documents: int
    n_words: int
    counts: Counter[str]
    document_counts: Counter[str]


EMPTY_STATISTICS = Statistics(0, 0, Counter(), Counter())


def statistics_of(texts: Iterable[str]) -> Statistics:
    """Count a corpus in one pass; texts are not kept."""
    n_documents, counts, document_counts = 0, Counter[str](), Counter[str]()
    for block in blocks_of(texts):
        tokens = tokens_of(block)
        counts.update(dict(zip(tokens.keys, tokens.counts().tolist(), strict=True)))
        document_counts.update(
            dict(zip(tokens.keys, tokens.document_counts().tolist(), strict=True))
        )
        n_documents += len(block)
    return Statistics(n_documents, counts.total(), counts, document_counts)


def merge(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all parts together, equal to those of one pass over them. Of no part:
    EMPTY.
    """
    return reduce(_add, parts, EMPTY_STATISTICS)


@dataclass(frozen=True)
class Cooccurrences:
    """Which words share sentences with which anchors: counts over all sentences, and over those
    with each anchor.
    """

    counts: Counter[str]
    neighbours: Mapping[str, Counter[str]]


def cooccurrences_of(texts: Iterable[str], anchors: Collection[str]) -> Cooccurrences:
    """Count sentences in one pass. A sentence ends at . ! ? or a line's end; an anchor is not
    counted beside itself.
    """
    counts: Counter[str] = Counter()
    neighbours: dict[str, Counter[str]] = {anchor: Counter() for anchor in anchors}
    for text in texts:
        for sentence in _SENTENCE_ENDS.split(text):
            keys = [word.key for word in words_of(sentence)]
            counts.update(keys)
            for anchor in neighbours.keys() & set(keys):
                neighbours[anchor].update(key for key in keys if key != anchor)
    return Cooccurrences(counts, neighbours)


def term_weight(frequency: Floats) -> IntArray:
    """1 + ln tf of words that stand `frequency` times in a document."""
    return 1 + np.log(frequency)


def inverse_document_frequency(document_count: Floats, n_documents: int) -> IntArray:
    """ln((N + 1) / df) of words that are in `document_count` of `n_documents` documents; one that
    is in none counts as in one.
    """
    return np.log((n_documents + 1) / np.maximum(1, document_count))


def sentences_of(text: str) -> list[tuple[str, ...]]:
    """The words of every sentence; end to end they are `words_of(text)`, because what ends a
    sentence is in no word.
    """
    return [
        tuple(word.key for word in words_of(sentence)) for sentence in _SENTENCE_ENDS.split(text)
    ]


def frames_of(texts: Iterable[str], changing: int) -> Counter[Frame]:
    """How many different sentences each frame stands for: a sentence with 1 to `changing` of its
    words left open (None).

    Sentences of more than 20 words are left out: their frames are many and do not come again.
    """
    different = dict.fromkeys(sentence for text in texts for sentence in sentences_of(text))
    return Counter(frame for sentence in different for _, frame in framings(sentence, changing))


def framings(sentence: tuple[str, ...], changing: int) -> Iterator[tuple[tuple[int, ...], Frame]]:
    """(positions left open, frame), fewest open first. More words stay than are left open, or
    anything would be a frame.
    """
    if len(sentence) <= LONGEST_SENTENCE:
        for n_open in range(1, min(changing, (len(sentence) - 1) // 2) + 1):
            for places in combinations(range(len(sentence)), n_open):
                yield (
                    places,
                    tuple(None if index in places else key for index, key in enumerate(sentence)),
                )


def log_odds_z(
    count: Floats, total: int, other_count: Floats, other_total: int, prior_words: float
) -> IntArray:
    """z of the log-odds ratio of words said `count` times in `total` words and `other_count` times
    in `other_total` words.

    Informative Dirichlet prior of `prior_words` pseudo-words in the proportions of both together
    (Monroe, Colaresi and Quinn 2008, equations 16, 18 and 22). Positive: said more in the first. 0
    where nothing can be compared.
    """
    count, other_count = np.asarray(count), np.asarray(other_count)
    both, total_both = count + other_count, total + other_total
    valid = (both > 0) & (both < total_both)
    prior = prior_words * np.where(valid, both, 1) / max(1, total_both)
    # where not known
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.log((count + prior) / (total + prior_words - count - prior))
        other_odds = np.log(
            (other_count + prior) / (other_total + prior_words - other_count - prior)
        )
        z = (odds - other_odds) / np.sqrt(1 / (count + prior) + 1 / (other_count + prior))
    scores: IntArray = np.where(valid, z, 0.0)
    return scores


def z_of_words(
    keys: Sequence[str], forget: Statistics, retain: Statistics, prior_words: float
) -> IntArray:
    """(n,) `log_odds_z` of words in the forget corpus against the retain corpus."""
    forget_counts, retain_counts = (
        np.fromiter((side.counts[k] for k in keys), np.int64, len(keys))
        for side in (forget, retain)
    )
    return log_odds_z(forget_counts, forget.n_words, retain_counts, retain.n_words, prior_words)


def word_z(forget: Statistics, retain: Statistics, prior_words: float) -> dict[str, float]:
    """`log_odds_z` of every word of the forget corpus against the retain corpus."""
    words = list(forget.counts)
    return dict(zip(words, z_of_words(words, forget, retain, prior_words).tolist(), strict=True))


def link_z(links: Cooccurrences, prior_words: float) -> dict[str, float]:
    """For every word the largest `log_odds_z` of sentences with one anchor against sentences
    without it.
    """
    n_words = links.counts.total()
    best: dict[str, float] = {}
    for neighbourhood in links.neighbours.values():
        inside, words = neighbourhood.total(), list(neighbourhood)
        neighbours, everywhere = (
            np.fromiter((counted[w] for w in words), np.int64, len(words))
            for counted in (neighbourhood, links.counts)
        )
        for word, z in zip(
            words,
            log_odds_z(
                neighbours, inside, everywhere - neighbours, n_words - inside, prior_words
            ).tolist(),
            strict=True,
        ):
            best[word] = max(best.get(word, -math.inf), z)
    return best


def _add(a: Statistics, b: Statistics) -> Statistics:
    return Statistics(
        a.n_documents + b.n_documents,
        a.n_words + b.n_words,
        a.counts + b.counts,
        a.document_counts + b.document_counts,
    )
