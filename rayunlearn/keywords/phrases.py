"""A document as extractors see it: its words, and the phrases in it that could be keywords."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from rayunlearn.keywords.statistics import Statistics
from rayunlearn.keywords.stopwords import ENGLISH
from rayunlearn.keywords.words import Word, phrase_text, words_of

# with fewer, the share of documents a word is in says little
FEWEST_DOCUMENTS = 50
COMMON_SHARE = 0.7


@dataclass(frozen=True)
class Keyword:
    """A keyword of one document: its text as first written, its score (higher first) and the
    characters of every occurrence.
    """

    text: str
    score: float
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Phrase:
    """A candidate: the keys of its words and the word positions [first, last + 1) of every
    occurrence.
    """

    keys: tuple[str, ...]
    places: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class DocumentWords:
    """One document: text, words, and candidates in the order of their first occurrence."""

    text: str
    words: tuple[Word, ...]
    phrases: tuple[Phrase, ...]

    def keyword(self, phrase: Phrase, score: float) -> Keyword:
        """The phrase as a keyword."""
        first, last = phrase.places[0]
        spans = tuple((self.words[a].start, self.words[b - 1].end) for a, b in phrase.places)
        return Keyword(phrase_text(self.text, self.words[first:last]), score, spans)


def document_words(text: str, common: Collection[str] = (), longest: int = 5) -> DocumentWords:
    """Read one document. Candidates are the runs of words between punctuation and stop words, at
    most `longest` words.

    `common`: words of this corpus that are too common to be keywords, beside the English stop
    words. A document whose every word is a stop word has its single words as candidates, so a
    document with a word has a keyword.
    """
    words = tuple(words_of(text))
    places = list(_runs(words, ENGLISH.union(common), longest)) or [
        (index, index + 1) for index in range(len(words))
    ]
    return DocumentWords(text, words, group_phrases(words, places))


def group_phrases(words: Sequence[Word], places: Iterable[tuple[int, int]]) -> tuple[Phrase, ...]:
    """Word ranges as phrases, each phrase once."""
    grouped: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for first, last in places:
        grouped.setdefault(tuple(w.key for w in words[first:last]), []).append((first, last))
    return tuple(Phrase(keys, tuple(spots)) for keys, spots in grouped.items())


def common_words(statistics: Statistics) -> frozenset[str]:
    """Words in more than 70% of the documents of a corpus of 50 or more: stop words of a language
    without a list.
    """
    if statistics.n_documents < FEWEST_DOCUMENTS:
        return frozenset()
    return frozenset(
        w
        for w, n in statistics.document_counts.items()
        if n > COMMON_SHARE * statistics.n_documents
    )


def _runs(words: Sequence[Word], stop: Collection[str], longest: int) -> Iterator[tuple[int, int]]:
    first = 0
    for index in range(len(words) + 1):
        ends = index == len(words) or words[index].opens or breaks(words[index].key, stop)
        if ends:
            run = _without_adverbs(words, first, index)
            if 0 < run[1] - run[0] <= longest:
                yield run
            first = index + 1 if index < len(words) and breaks(words[index].key, stop) else index


def breaks(key: str, stop: Collection[str]) -> bool:
    """Whether a phrase ends before the word and begins after it."""
    return key in stop or key.isdigit()


def _without_adverbs(words: Sequence[Word], first: int, last: int) -> tuple[int, int]:
    while first < last and is_adverb(words[first].key):
        first += 1
    while first < last and is_adverb(words[last - 1].key):
        last -= 1
    return first, last


def is_adverb(key: str) -> bool:
    """Whether the word may not stand at either end of a phrase."""
    return key.endswith("ly") and len(key) > 4 and key.isascii()
