"""Text to words with character spans: one rule for prose, code and scripts that write no spaces.

`WORD` is written in the syntax that both Python's `regex` and Rust's (polars) read alike, so a
streaming engine that counts words with `str.extract_all(WORD)` counts the same words (tested).
`tokens.tokens_of` does it for many texts at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from unicodedata import normalize

import regex

# A run of letters, marks, digits and underscores, joined by single hyphens or apostrophes
# ("low-cost", "don't",
# "snake_case"); of scripts without spaces every character is a word, and phrases put them together
# again.
SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--[{SPACELESS}]]"
JOINER = r"['’\-]"
WORD = rf"[{SPACELESS}]|{LETTER}+(?:{JOINER}{LETTER}+)*"
_WORD = regex.compile(WORD, regex.V1)
# what may stand between two words of one phrase
_PHRASE_GOES_ON = regex.compile(r"\s*[\s/]?\s*")


@dataclass(frozen=True, slots=True)
class Word:
    """One word: its key (NFC, lower case), the characters [start, end) it stands at, and whether
    the phrase before it ends.
    """

    key: str
    start: int
    end: int
    opens: bool


def words_of(text: str) -> list[Word]:
    """The words of a text in order; none of an empty text or of one without letters and digits."""
    words: list[Word] = []
    last = 0
    for match in _WORD.finditer(text):
        start, end = match.span()
        opens = not words or _PHRASE_GOES_ON.fullmatch(text, last, start) is None
        words.append(Word(key_of(match.group()), start, end, opens))
        last = end
    return words


def starts_of(text: str, n_words: int) -> list[int]:
    """Where the first of `words_of(text)` begins, and each `every`-th after it; words that nobody
    asks for are not made.
    """
    return [match.start() for match in islice(_WORD.finditer(text), None, None, n_words)]


def key_of(word: str) -> str:
    """What makes two spellings one word: NFC and lower case."""
    return word.lower() if word.isascii() else normalize("NFC", word).lower()


def phrase_text(text: str, words: Sequence[Word]) -> str:
    """The characters from the first word's start to the last one's end, with runs of white space
    made one blank.
    """
    return " ".join(text[words[0].start : words[-1].end].split())
