"""First pass over a corpus: counts, duplicates and corpus statistics."""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.corpus.engine import Engine, PartitionResult, ProcessPartition
from rayunlearn.corpus.job import OnProgress, run_corpus_job
from rayunlearn.corpus.notes import read_note, write_note
from rayunlearn.corpus.partitions import texts_at
from rayunlearn.corpus.source import CorpusSource, read_documents, read_texts
from rayunlearn.data.documents import Document, Rejected
from rayunlearn.errors import require
from rayunlearn.keywords.statistics import Statistics
from rayunlearn.keywords.tokens import blocks_of, tokens_of
from rayunlearn.storage.parquet import write_bytes, write_frame, write_table

# ids that are compared for copies together: 2 MiB of them
DOCUMENTS_PER_COUNT = 2**18


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A surveyed corpus: its documents without copies, their digest (`config.digest` of the
    doc_ids), the pieces that hold copies of earlier documents, and the folder it is in.
    """

    source: CorpusSource
    folder: Path
    n_documents: int
    n_words: int
    digest: str
    with_copies: tuple[int, ...]

    def statistics(self) -> Statistics:
        """Word counts of the whole corpus; memory goes with its vocabulary."""
        table = pl.read_parquet(self.folder / "words.parquet")
        words = table["word"].to_list()
        counts, documents = (
            Counter(dict(zip(words, table[name].to_list(), strict=True)))
            for name in ("count", "documents")
        )
        return Statistics(self.n_documents, self.n_words, counts, documents)


def surviving_documents(survey: Survey, partition: int) -> list[Document]:
    """The documents of piece `at` that are no copies of earlier ones."""
    documents, _, _ = read_documents(survey.source, partition)
    copies = set(_copies(survey.folder, partition)[:, 0].tolist())
    return [d for row_index, d in enumerate(documents) if row_index not in copies]


def surviving_texts(survey: Survey, partition: int) -> tuple[list[str], list[str]]:
    """doc_ids and answers of `kept`; ids are those of the survey where the source is Parquet with
    nothing but text.
    """
    # Python's numbers: one by one out of a mapped array takes longer than a text
    ids, rows = _ids(survey.folder, partition).tolist()
    texts = (
        None
        if survey.source.chunk_words
        else texts_at(survey.source.pieces[partition], survey.source.columns, rows)
    )
    if texts is None:
        documents = surviving_documents(survey, partition)
        return [d.doc_id for d in documents], [d.answer for d in documents]
    copies = set(_copies(survey.folder, partition)[:, 0].tolist())
    places = [row_index for row_index in range(len(texts)) if row_index not in copies]
    return [f"{ids[row_index]:016x}" for row_index in places], [
        texts[row_index] for row_index in places
    ]


def first_occurrences(survey: Survey, n: int) -> list[str]:
    """The ids of the first `n` documents of the first piece."""
    return [f"{i:016x}" for i in _ids(survey.folder, 0)[0, :n].tolist()]


def survey_corpus(
    name: str, source: CorpusSource, folder: Path, engine: Engine, report: OnProgress
) -> Survey:
    """Count the words of a corpus and find the documents that occur again. Raises UserError for a
    corpus without a usable document.
    """
    n = len(source.pieces)
    notes = run_corpus_job(
        f"{name}: counting",
        folder / "count",
        partial(_counter, source, folder),
        range(n),
        engine,
        report,
    )
    n_rejected = sum(note.n_rejected for note in notes)
    rule = f"a corpus must have a usable document; {n_rejected} rows rejected in"
    require(sum(note.n_documents for note in notes) > 0, rule, source.pieces[0].source)
    with_copies = _noted(folder / "copies.json", partial(_find_copies, folder, n))["pieces"]
    run_corpus_job(
        f"{name}: copies",
        folder / "correct",
        partial(_corrector, source, folder),
        with_copies,
        engine,
        report,
    )
    content = _noted(folder / "survey.json", partial(_whole_corpus, folder, n))
    return Survey(source=source, folder=folder, with_copies=tuple(with_copies), **content)


def _noted(note: Path, make: Callable[[], tuple[dict[str, Any], list[str]]]) -> dict[str, Any]:
    """What `make` found, computed again where it or its files, the second of what `make`
    returns, are not what was written.
    """
    numbers = read_note(note, note.parent)
    if numbers is None:
        numbers, files = make()
        write_note(note, numbers, files, note.parent)
    return numbers


def _whole_corpus(folder: Path, n: int) -> tuple[dict[str, Any], list[str]]:
    """Numbers of the corpus as a whole, and the table of its words."""
    n_words = _merge_words(folder)
    n_documents, digest = _digest_ids(folder, n)
    return {"n_documents": n_documents, "n_words": n_words, "digest": digest}, ["words.parquet"]


def _counter(source: CorpusSource, folder: Path) -> ProcessPartition:
    def do(partition: int) -> PartitionResult:
        ids, rows, texts, rejected = read_texts(source, partition)
        _save(
            folder / f"ids/{partition:06}.npy",
            np.array([[int(i, 16) for i in ids], rows], np.uint64),
        )
        write_frame(folder / f"words/{partition:06}.parquet", _counted(texts, 1))
        files = [f"ids/{partition:06}.npy", f"words/{partition:06}.parquet"]
        if rejected:
            files.append(f"aside/{partition:06}.parquet")
            write_table(folder / files[-1], "quarantine", [asdict(r) for r in rejected])
        return PartitionResult(
            piece=partition, n_documents=len(ids), files=files, n_rejected=len(rejected)
        )

    return do


def _corrector(source: CorpusSource, folder: Path) -> ProcessPartition:
    """Takes the words of a piece's copies out of the counts, and sets the copies aside."""

    def do(partition: int) -> PartitionResult:
        documents, rows, _ = read_documents(source, partition)
        copies = [
            (documents[row_index], rows[row_index], row)
            for row_index, row in _copies(folder, partition).tolist()
        ]
        words, aside = (f"{name}/{partition:06}.copies.parquet" for name in ("words", "aside"))
        write_frame(folder / words, _counted([d.answer for d, _, _ in copies], -1))
        name = Path(source.pieces[partition].source).name
        rejected = [
            Rejected(
                source=name,
                row=row,
                reason=f"the same document as an earlier one (row {first})",
                excerpt=d.answer[:200],
            )
            for d, row, first in copies
        ]
        write_table(folder / aside, "quarantine", [asdict(r) for r in rejected])
        return PartitionResult(
            piece=partition,
            n_documents=len(copies),
            files=[words, aside],
            n_rejected=len(copies),
        )

    return do


def _counted(texts: Sequence[str], sign: int) -> pl.DataFrame:
    """word, count, documents: the counts of `statistics.statistics_of`, times sign; a word may have
    several rows.
    """
    frames = [pl.DataFrame(schema={"word": pl.String, "count": pl.Int64, "documents": pl.Int64})]
    for tokens in map(tokens_of, blocks_of(texts)):
        frames.append(
            pl.DataFrame(
                {
                    "word": tokens.keys,
                    "count": sign * tokens.counts(),
                    "documents": sign * tokens.document_counts(),
                }
            )
        )
    return pl.concat(frames)


def _find_copies(folder: Path, n: int) -> tuple[dict[str, Any], list[str]]:
    """Write for every piece its documents that an earlier piece has, with that one's row; returns
    the pieces that have some, and the files.

    Ids are compared some at a time, those with the same remainder together, so memory does not grow
    with the corpus.
    """
    total = sum(_ids(folder, partition).shape[1] for partition in range(n))
    parts = 1 + total // DOCUMENTS_PER_COUNT
    copies_of: dict[int, list[tuple[int, int]]] = {}
    for part in range(parts):
        for partition, row_index, row in _copies_in(folder, n, part, parts):
            copies_of.setdefault(partition, []).append((row_index, row))
    for partition, copies in copies_of.items():
        _save(folder / f"copies/{partition:06}.npy", np.array(sorted(copies), np.int64))
    pieces = sorted(copies_of)
    return {"pieces": pieces}, [f"copies/{partition:06}.npy" for partition in pieces]


def _copies_in(folder: Path, n: int, part: int, parts: int) -> Iterator[tuple[int, int, int]]:
    """(piece, place, row of the first) of ids = part modulo parts that came before."""
    ids, rows, places, pieces = [], [], [], []
    for partition in range(n):
        ids_of_partition = _ids(folder, partition)
        row_index = np.flatnonzero(ids_of_partition[0] % np.uint64(parts) == part)
        ids.append(ids_of_partition[0][row_index])
        rows.append(ids_of_partition[1][row_index])
        places.append(row_index)
        pieces.append(np.full(len(row_index), partition))
    all_ids, row, row_index, piece = map(np.concatenate, (ids, rows, places, pieces))
    _, first, inverse = np.unique(all_ids, return_index=True, return_inverse=True)
    for copy in np.flatnonzero(first[inverse] != np.arange(len(all_ids))):
        yield int(piece[copy]), int(row_index[copy]), int(row[first[inverse[copy]]])


def _merge_words(folder: Path) -> int:
    """Write the counts of all pieces together, the commonest word first; returns the number of
    words.
    """
    parts = pl.scan_parquet(folder / "words" / "*.parquet", glob=True)
    summed = (
        parts.group_by("word")
        .agg(pl.col("count").sum(), pl.col("documents").sum())
        .filter(pl.col("count") > 0)
    )
    table = summed.sort("count", "word", descending=[True, False]).collect(engine="streaming")
    write_frame(folder / "words.parquet", table)
    return int(table["count"].sum())


def _digest_ids(folder: Path, n: int) -> tuple[int, str]:
    """Documents without copies, and `config.digest` of the list of their ids,
    without holding it.
    """
    total, has_begun, n_documents = sha256(), False, 0
    total.update(b"[")
    for partition in range(n):
        ids = np.delete(_ids(folder, partition)[0], _copies(folder, partition)[:, 0])
        n_documents += len(ids)
        if len(ids):
            total.update(
                (b"," if has_begun else b"")
                + ",".join(f'"{i:016x}"' for i in ids.tolist()).encode()
            )
            has_begun = True
    total.update(b"]")
    return n_documents, total.hexdigest()[:16]


def _ids(folder: Path, partition: int) -> np.ndarray[Any, Any]:
    """(2, documents) uint64 of a piece: doc_id and row; mapped, not read."""
    mapped: np.ndarray[Any, Any] = np.load(folder / f"ids/{partition:06}.npy", mmap_mode="r")
    return mapped


def _copies(folder: Path, partition: int) -> np.ndarray[Any, Any]:
    """(copies, 2) of a piece: place and the row of the first."""
    file = folder / f"copies/{partition:06}.npy"
    copies: np.ndarray[Any, Any] = np.load(file) if file.exists() else np.zeros((0, 2), np.int64)
    return copies


def _save(file: Path, array: np.ndarray[Any, Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(file, buffer.getvalue())
