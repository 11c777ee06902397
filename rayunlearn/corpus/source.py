"""A corpus as partitions that a worker can read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from rayunlearn.corpus.partitions import (
    PARTITION_BYTES,
    Partition,
    columns_of,
    documents_of,
    partitions_of,
    plain_texts,
    source_bytes,
    source_key,
)
from rayunlearn.data.documents import Document, Rejected
from rayunlearn.errors import require
from rayunlearn.keywords.words import starts_of

# `auto` streams corpora above this through Ray Data
LARGE_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class CorpusSource:
    """A corpus as workers read it. `chunk_words` 0: documents as they are, else cut after so many
    words.
    """

    pieces: tuple[Partition, ...]
    columns: Mapping[str, str]
    chunk_words: int = 0

    @property
    def key(self) -> list[object]:
        """What identifies the corpus for resuming."""
        return [source_key(self.pieces), sorted(self.columns.items()), self.chunk_words]


def corpus_source(
    name: str,
    *,
    side: str = "forget",
    columns: str = "",
    chunk_words: int = 0,
    unit: str = "",
    piece_bytes: int = PARTITION_BYTES,
) -> CorpusSource:
    """A source by its name (`corpus.partitions`). Raises UserError for one that is not there or has
    no usable columns.
    """
    require(chunk_words >= 0, "--chunk-words must be >= 0", chunk_words)
    pieces = partitions_of(name, side=side, unit=unit, piece_bytes=piece_bytes)
    return CorpusSource(pieces=pieces, columns=columns_of(pieces, columns), chunk_words=chunk_words)


def exceeds_local_limit(*sources: CorpusSource) -> bool:
    """Whether `auto` sends these to Ray Data."""
    return sum(source_bytes(s.pieces) for s in sources) > LARGE_BYTES


def read_documents(
    source: CorpusSource, partition: int
) -> tuple[list[Document], list[int], list[Rejected]]:
    """The documents of piece `at` (chunks, where the source is chunked), the row of each, and what
    was rejected.
    """
    documents, rows, rejected = documents_of(source.pieces[partition], source.columns)
    if not source.chunk_words:
        return list(documents), list(rows), list(rejected)
    chunked: dict[str, tuple[Document, int]] = {}
    for document, row in zip(documents, rows, strict=True):
        for part in chunks_of(document, source.chunk_words):
            # a chunk that comes twice is one chunk
            chunked.setdefault(part.doc_id, (part, row))
    return [d for d, _ in chunked.values()], [row for _, row in chunked.values()], list(rejected)


def read_texts(
    source: CorpusSource, partition: int
) -> tuple[list[str], list[int], list[str], list[Rejected]]:
    """doc_ids, rows and answers of piece `at`, and what was rejected: what `read` gives, faster
    where there is nothing but text.
    """
    if (
        not source.chunk_words
        and (plain := plain_texts(source.pieces[partition], source.columns)) is not None
    ):
        return plain
    documents, rows, rejected = read_documents(source, partition)
    return [d.doc_id for d in documents], rows, [d.answer for d in documents], rejected


def chunks_of(document: Document, n_words: int) -> Iterator[Document]:
    """The document cut before every `n_words`-th word, white space between chunks left out; a
    document without a word is one chunk.
    """
    cuts = starts_of(document.answer, n_words)[1:]
    for start, end in pairwise((0, *cuts, len(document.answer))):
        yield replace(
            document, answer=document.answer[start:end].strip(), paraphrase="", wrong=(), facts=()
        )
