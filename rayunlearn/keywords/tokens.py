"""The words of many texts at once, as arrays: what `words.words_of` says of each text, without a
step per word.

Texts are laid end to end, characters looked up in one table of classes, and borders found by
comparing neighbours. Spellings are then distinguished once each, not once per occurrence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from sys import maxunicode
from typing import Any, TypeAlias

import regex

from rayunlearn.keywords.words import JOINER, LETTER, SPACELESS, key_of
from rayunlearn.lazy import np, pyarrow, scipy

# texts are taken together up to this many characters, of which the arrays take some 50 bytes each
BLOCK_CHARACTERS = 4_000_000
OTHER, IS_LETTER, IS_SPACELESS, IS_JOINER, IS_SLASH, IS_SPACE = range(6)
IntArray: TypeAlias = "np.ndarray[Any, Any]"


@dataclass(frozen=True)
class Tokens:
    """The n words of a block of texts, in order; arrays are (n,) unless said otherwise.

    codes: the code points of all texts, with a line's end between them; begins (texts,): where each
    begins there. document: which text a word is of; start, end: its places in `codes`; opens: as
    `words.Word.opens`; key: its place in `keys`, the different words.
    """

    codes: IntArray
    begins: IntArray
    document: IntArray
    start: IntArray
    end: IntArray
    opens: IntArray
    key: IntArray
    keys: tuple[str, ...]

    @cached_property
    def first_word(self) -> IntArray:
        """(texts + 1,): where each text's words begin among all words."""
        return np.searchsorted(self.document, np.arange(len(self.begins) + 1))

    @cached_property
    def _by_key(self) -> tuple[IntArray, IntArray]:
        """Words ordered by key and then by text, and which of them are the first of their key in
        their text.
        """
        places = np.arange(len(self.key), dtype=np.int32)
        rows = scipy.sparse.csr_array(
            (places, self.key, self.first_word), shape=(len(self.begins), max(1, len(self.keys)))
        )
        # a counting sort: five times as fast as sorting
        order = rows.tocsc().data
        key, document = self.key[order], self.document[order]
        new = np.ones(len(order), bool)
        new[1:] = (key[1:] != key[:-1]) | (document[1:] != document[:-1])
        return order, new

    @cached_property
    def pair(self) -> IntArray:
        """A number for the word's text and key together, from 0."""
        order, new = self._by_key
        pair = np.empty(len(order), np.int64)
        pair[order] = np.cumsum(new) - 1
        return pair

    @cached_property
    def frequency(self) -> IntArray:
        """How often the word stands in its text."""
        return np.bincount(self.pair)[self.pair] if len(self.key) else np.zeros(0, np.int64)

    def counts(self) -> IntArray:
        """(keys,): occurrences of each different word."""
        return np.bincount(self.key, minlength=len(self.keys))

    def document_counts(self) -> IntArray:
        """(keys,): texts with each different word."""
        order, new = self._by_key
        return np.bincount(self.key[order[new]], minlength=len(self.keys))


def blocks_of(texts: Iterable[str], characters: int = BLOCK_CHARACTERS) -> Iterator[list[str]]:
    """The texts in order, in lists of at most so many characters (or one text); together they are
    all texts.
    """
    block: list[str] = []
    size = 0
    for text in texts:
        if block and size + len(text) > characters:
            yield block
            block, size = [], 0
        block.append(text)
        size += len(text)
    if block:
        yield block


def tokens_of(texts: Sequence[str]) -> Tokens:
    """The words of every text, the same as `words_of(text)` gives them one text at a time."""
    text = "\n".join(texts)
    begins = np.concatenate(([0], np.cumsum([len(t) + 1 for t in texts])))[: len(texts)].astype(
        np.int64
    )
    codes = _codes(text)
    classes = _class_table(codes.dtype.itemsize)[codes]
    inside = _inside(classes)
    start, end = _borders(inside, classes == IS_SPACELESS)
    document = np.searchsorted(begins, start, side="right") - 1
    key, keys = _keys(codes[inside], end - start)
    opens = _opens(classes, inside, start)
    # the first word of each text
    opens |= np.diff(document, prepend=-1) > 0
    return Tokens(codes, begins, document, start, end, opens, key, keys)


def _codes(text: str) -> IntArray:
    """Code points; one byte each where that holds them."""
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@lru_cache(maxsize=2)
def _class_table(width: int) -> IntArray:
    """Class of every code point that `width` bytes hold here (1: ASCII), from the expressions that
    `words` is made of.
    """
    characters = "".join(map(chr, range(128 if width == 1 else maxunicode + 1)))
    table = np.zeros(len(characters), np.uint8)
    for pattern, kind in (
        (r"\s", IS_SPACE),
        ("/", IS_SLASH),
        (JOINER, IS_JOINER),
        (rf"[{SPACELESS}]", IS_SPACELESS),
        (LETTER, IS_LETTER),
    ):
        for match in regex.finditer(rf"(?:{pattern})+", characters, regex.V1):
            table[match.start() : match.end()] = kind
    return table


def _inside(classes: IntArray) -> IntArray:
    """Which characters belong to words: letters, spaceless ones, and single joiners between two
    letters.
    """
    letter = classes == IS_LETTER
    inside = letter | (classes == IS_SPACELESS)
    inside[1:-1] |= (classes[1:-1] == IS_JOINER) & letter[:-2] & letter[2:]
    return inside


def _borders(inside: IntArray, alone: IntArray) -> tuple[IntArray, IntArray]:
    """First character of every word, and the one after its last; those `alone` are words by
    themselves.
    """
    edge = np.diff(inside, prepend=False, append=False)
    if not alone.any():
        edges = np.flatnonzero(edge)
        return edges[::2], edges[1::2]
    is_border = np.zeros(len(inside) + 1, bool)
    is_border[:-1] |= alone
    is_border[1:] |= alone
    padded = np.concatenate(([False], inside, [False]))
    return np.flatnonzero((edge | is_border) & padded[1:]), np.flatnonzero(
        (edge | is_border) & padded[:-1]
    )


def _opens(classes: IntArray, inside: IntArray, start: IntArray) -> IntArray:
    """Whether more stands before a word than white space with at most one slash."""
    hard = np.flatnonzero(~inside & (classes != IS_SPACE))
    weight = np.where(classes[hard] == IS_SLASH, 1, 2)
    # the word that comes after; len(start) behind the last
    gap = np.searchsorted(start, hard)
    return np.bincount(gap, weight, minlength=len(start) + 1)[: len(start)] > 1


def _keys(codes: IntArray, lengths: IntArray) -> tuple[IntArray, tuple[str, ...]]:
    """(n,) places in the different keys, and those, of n words whose characters lie end to end in
    `codes`.
    """
    # of ASCII alone: lower case is all that makes a key (`words.key_of`)
    if codes.dtype == np.uint8:
        spelt = strings_of(
            np.frombuffer(codes.tobytes().lower(), np.uint8), lengths
        ).dictionary_encode()
        return spelt.indices.to_numpy(), tuple(spelt.dictionary.to_pylist())
    spelt = strings_of(codes, lengths).dictionary_encode()
    places: dict[str, int] = {}
    same = np.array(
        [places.setdefault(key_of(word), len(places)) for word in spelt.dictionary.to_pylist()],
        np.int32,
    )
    indices = spelt.indices.to_numpy()
    return (same[indices] if len(indices) else np.zeros(0, np.int32)), tuple(places)


def strings_of(codes: IntArray, lengths: IntArray) -> pyarrow.LargeStringArray:
    """(n,) strings of `lengths` characters that lie end to end in `codes`."""
    content, sizes = codes.tobytes(), lengths
    if codes.dtype != np.uint8:
        content = content.decode("utf-32-le").encode()
        # these take more than one byte in UTF-8
        wide = np.flatnonzero(codes > 0x7F)
        more = 1 + (codes[wide] > 0x7FF).astype(np.int64) + (codes[wide] > 0xFFFF)
        sizes = lengths + np.bincount(
            np.searchsorted(np.cumsum(lengths), wide, side="right"), more, minlength=len(lengths)
        ).astype(np.int64)
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    return pyarrow.LargeStringArray.from_buffers(
        len(lengths), pyarrow.py_buffer(offsets), pyarrow.py_buffer(content)
    )
