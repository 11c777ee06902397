"""`tfidf` and `log_odds` of many documents at once, over arrays: what `extractors` says of each
page, to the last bit (tested).

Every step of `phrases` and `extractors` is done for all words of a block together; no Python runs
per word or per document.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute

from rayunlearn.keywords.phrases import breaks, common_words, is_adverb
from rayunlearn.keywords.statistics import (
    Statistics,
    inverse_document_frequency,
    term_weight,
    z_of_words,
)
from rayunlearn.keywords.stopwords import ENGLISH
from rayunlearn.keywords.tokens import IntArray, Tokens, strings_of, tokens_of

BLANK, SLASH = ord(" "), ord("/")


@dataclass(frozen=True)
class KeywordArrays:
    """Keywords of a block, one row per occurrence: documents in order, each one's keywords best
    first.

    document (m,): which text; keyword (m,): as first written there; score (m,); start, end (m,):
    characters in the text; new (m,): whether the row is the first of its keyword.
    """

    document: IntArray
    keyword: pyarrow.LargeStringArray
    score: IntArray
    start: IntArray
    end: IntArray
    new: IntArray


class WordFeatures:
    """What extractors ask of a word, worked out when the word first comes and never again; all
    words that came are held.

    `of_words` gives (n, k) numbers for n words.
    """

    def __init__(self, of_words: Callable[[Sequence[str]], IntArray]) -> None:
        self._of_words = of_words
        self._place: dict[str, int] = {}
        self._values = of_words([])

    def of(self, keys: Sequence[str]) -> IntArray:
        """(k, n) numbers of n different words."""
        new = [key for key in keys if key not in self._place]
        if new:
            self._place.update(
                zip(new, range(len(self._place), len(self._place) + len(new)), strict=True)
            )
            self._values = np.concatenate((self._values, self._of_words(new)))
        values: IntArray = self._values[
            np.fromiter(map(self._place.__getitem__, keys), np.int64, len(keys))
        ].T
        return values


VECTORIZED = ("tfidf", "log_odds")
Extract = Callable[[Sequence[str]], KeywordArrays]


def has_vectorized(
    name: str,
    statistics: Statistics,
    retain: Statistics | None,
    arguments: Mapping[str, Any],
    top: int = 0,
) -> Extract:
    """One of `VECTORIZED` with its keyword-only `arguments`: many texts to their keywords, of each
    text the `top` best (0: all).
    """
    if name == "tfidf":
        facts = tfidf_features(statistics, common_words(statistics))
        return lambda texts: tfidf_rows(texts, facts, top=top, earliness=arguments["earliness"])
    assert name == "log_odds" and retain is not None
    facts = log_odds_features(statistics, retain, arguments["prior_words"])
    return lambda texts: log_odds_rows(texts, facts, top=top, least_z=arguments["least_z"])


def tfidf_features(statistics: Statistics, common: Collection[str]) -> WordFeatures:
    """Of a word: whether it ends a phrase (the `common` words of the corpus do too), whether it is
    an adverb, and its rarity.
    """
    stop = ENGLISH.union(common)

    def of_words(keys: Sequence[str]) -> IntArray:
        counts = np.fromiter((statistics.document_counts[key] for key in keys), np.int64, len(keys))
        border = np.fromiter((breaks(key, stop) for key in keys), bool, len(keys))
        adverb = np.fromiter(map(is_adverb, keys), bool, len(keys))
        return np.stack(
            (border, adverb, inverse_document_frequency(counts, statistics.n_documents)), axis=1
        )

    return WordFeatures(of_words)


def log_odds_features(
    statistics: Statistics, retain_statistics: Statistics, prior_words: float
) -> WordFeatures:
    """Of a word: its z against the retain corpus."""
    return WordFeatures(
        lambda keys: z_of_words(keys, statistics, retain_statistics, prior_words)[:, None]
    )


def tfidf_rows(
    texts: Sequence[str], facts: WordFeatures, *, earliness: float, top: int = 0
) -> KeywordArrays:
    """`table.tfidf` of every text, with the `tfidf_features` of the corpus."""
    tokens = tokens_of(texts)
    border, adverb, rarity = facts.of(tokens.keys)
    first, last = _candidates(tokens, border.astype(bool), adverb.astype(bool))
    model = _models(tokens, first, last)
    by_frequency = term_weight(np.arange(1, int(tokens.frequency.max(initial=1)) + 1))
    sums = np.zeros(len(first))
    for step in range(int((last - first).max(initial=0))):
        long = np.flatnonzero(last - first > step)
        index = first[long] + step
        sums[long] += by_frequency[tokens.frequency[index] - 1] * rarity[tokens.key[index]]
    word_index = first - tokens.first_word[tokens.document[first]]
    scores = sums * (1 + earliness / (1 + word_index / 20))
    return _keyword_arrays(tokens, first, last, model, scores[model], top)


def log_odds_rows(
    texts: Sequence[str], facts: WordFeatures, *, least_z: float, top: int = 0
) -> KeywordArrays:
    """`table.log_odds` of every text, with the `log_odds_features` of the corpus."""
    tokens = tokens_of(texts)
    z = facts.of(tokens.keys)[0][tokens.key]
    above = z > least_z
    goes_on = above & ~tokens.opens
    goes_on[1:] &= above[:-1]
    first = np.flatnonzero(above & ~goes_on)
    last = (
        first + np.diff(np.flatnonzero(np.append(~goes_on[above], True))) if len(first) else first
    )
    model = _models(tokens, first, last)
    sums = np.zeros(len(first))
    for step in range(int((last - first).max(initial=0))):
        long = np.flatnonzero(last - first > step)
        sums[long] += z[first[long] + step]
    return _keyword_arrays(tokens, first, last, model, (sums / np.sqrt(last - first))[model], top)


def _candidates(
    tokens: Tokens, border_keys: IntArray, adverb_keys: IntArray, longest: int = 5
) -> tuple[IntArray, IntArray]:
    """Words [first, last) of every candidate phrase, in order, as `phrases.document_words` chooses
    them.
    """
    border, adverb = border_keys[tokens.key], adverb_keys[tokens.key]
    begins = ~border & tokens.opens
    begins[1:] |= ~border[1:] & border[:-1]
    run = np.cumsum(begins)
    # a phrase begins and ends with one of these
    ends = np.flatnonzero(~border & ~adverb)
    new = np.diff(run[ends], prepend=0) > 0
    first, last = ends[new], ends[np.append(new[1:], True)[: len(ends)]] + 1
    short = last - first <= longest
    first, last = first[short], last[short]
    # documents whose words are all candidates, for want of a phrase
    is_candidate = np.ones(len(tokens.begins), bool)
    is_candidate[tokens.document[first]] = False
    single = np.flatnonzero(is_candidate[tokens.document])
    if not len(single):
        return first, last
    order = np.argsort(np.concatenate((first, single)), kind="stable")
    return np.concatenate((first, single))[order], np.concatenate((last, single + 1))[order]


def _models(tokens: Tokens, first: IntArray, last: IntArray) -> IntArray:
    """(m,): for every range of words the first range of the same document with the same keys."""
    # of the words so far
    name = tokens.pair[first]
    names = len(tokens.key)
    for step in range(1, int((last - first).max(initial=0))):
        long = np.flatnonzero(last - first > step)
        both = name[long] * np.int64(len(tokens.keys)) + tokens.key[first[long] + step]
        different, name[long] = np.unique(both, return_inverse=True)
        name[long] += names
        names += len(different)
    model = np.empty(names, np.int64)
    # the last to be written is the first in order
    model[name[::-1]] = np.arange(len(first))[::-1]
    return model[name]


def _keyword_arrays(
    tokens: Tokens, first: IntArray, last: IntArray, model: IntArray, score: IntArray, top: int
) -> KeywordArrays:
    """Ranges as rows: by document, score (highest first), first occurrence and place; of each
    document the `top` best keywords (0: all).
    """
    order = np.lexsort((model, -score, tokens.document[first]))
    new = model[order] == order
    if top:
        number, document = np.cumsum(new), tokens.document[first[order]]
        best = number - number[np.searchsorted(document, document)] < top
        order, new = order[best], new[best]
    document = tokens.document[first[order]]
    keyword = _texts(tokens, first[order[new]], last[order[new]]).take(
        pyarrow.array(np.cumsum(new) - 1)
    )
    begin = tokens.begins[document]
    return KeywordArrays(
        document,
        keyword,
        score[order],
        tokens.start[first[order]] - begin,
        tokens.end[last[order] - 1] - begin,
        new,
    )


def _texts(tokens: Tokens, first: IntArray, last: IntArray) -> pyarrow.LargeStringArray:
    """(m,) what stands at ranges of words, with runs of white space made one blank
    (`words.phrase_text`).
    """
    start, end = tokens.start[first], tokens.end[last - 1]
    lengths = end - start
    places = np.arange(int(lengths.sum())) + np.repeat(
        start - np.cumsum(lengths) + lengths, lengths
    )
    texts = strings_of(tokens.codes[places], lengths)
    ragged = _ragged(tokens, first, last)
    if not ragged.any():
        return texts
    mended = [" ".join(text.split()) for text in texts.filter(pyarrow.array(ragged)).to_pylist()]
    return pyarrow.compute.replace_with_mask(
        texts, pyarrow.array(ragged), pyarrow.array(mended, pyarrow.large_string())
    )


def _ragged(tokens: Tokens, first: IntArray, last: IntArray) -> IntArray:
    """Which ranges have more than one blank or one slash between two of their words."""
    gap = tokens.start[1:] - tokens.end[:-1]
    separators = tokens.codes[np.minimum(tokens.end[:-1], len(tokens.codes) - 1)]
    odd = np.concatenate(
        (
            [0, 0],
            np.cumsum((gap > 1) | ((gap == 1) & (separators != BLANK) & (separators != SLASH))),
        )
    )
    return odd[last] > odd[first + 1]
