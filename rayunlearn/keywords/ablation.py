"""The text of a forget document as `select.text` wants it: what do keywords alone do, beside the
rest and compared with random words?
"""

import random
from collections.abc import Collection, Sequence

from rayunlearn.keywords.phrases import Keyword
from rayunlearn.keywords.words import Word


def keyword_positions(
    words: Sequence[Word], keywords: Sequence[Keyword], fraction: float
) -> list[int]:
    """Positions of the words that keywords cover, best keyword first, as long as they are at most
    `fraction` of the words.

    A keyword that does not fit is passed over; the best one is always taken. Sorted.
    """
    covered: set[int] = set()
    for keyword in keywords:
        positions = {
            index
            for index, word in enumerate(words)
            if any(start <= word.start and word.end <= end for start, end in keyword.spans)
        }
        if not covered or len(covered | positions) <= fraction * len(words):
            covered |= positions
    return sorted(covered)


def variant_positions(
    arm: str, n_words: int, keywords: Collection[int], rng: random.Random
) -> list[int]:
    """Positions of the words that an arm leaves, in the order it leaves them.

    keywords_only: the keywords in their order; shuffled_keywords: in random order; random_words: as
    many words drawn from the whole document, in their order; non_keywords: all others; original:
    all.
    """
    arms = {
        "original": lambda: list(range(n_words)),
        "keywords_only": lambda: sorted(keywords),
        "non_keywords": lambda: [index for index in range(n_words) if index not in keywords],
        "random_words": lambda: sorted(rng.sample(range(n_words), len(keywords))),
        "shuffled_keywords": lambda: rng.sample(sorted(keywords), len(keywords)),
    }
    return arms[arm]()


def text_variant(text: str, words: Sequence[Word], positions: Sequence[int]) -> str:
    """The words at `positions` joined by blanks, punctuation left out.

    A blank stands before the first word too, unless the text begins with it: tokenizers give a word
    after a blank another token, and that is the one it had.
    """
    lead = " " if positions and words[positions[0]].start > 0 else ""
    return lead + " ".join(text[words[index].start : words[index].end] for index in positions)
