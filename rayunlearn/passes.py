"""Passes over a corpus that need not fit into memory: pieces in, one file per piece out, resumed by
piece. No Ray in here.

A pass has a worker, made once per process, that does one piece at a time: it reads the piece,
writes its file by one rename, and then its note (a small JSON). A piece with a note is done and is
not done again. An engine decides where workers run: `in_turn` here, `in_processes` on this
machine's cores, `cluster.corpus.on_ray` on Ray Data. All engines do the same pieces with the same
workers, so they write the same rows. Before any other pass the `survey` counts words and finds
copies.
"""

import io
import json
import shutil
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet

from rayunlearn.data.documents import Document, Rejected
from rayunlearn.data.pieces import (
    PIECE_BYTES,
    Piece,
    columns_of,
    documents_of,
    pieces_of,
    plain_texts,
    source_bytes,
    source_key,
    texts_at,
)
from rayunlearn.errors import require
from rayunlearn.keywords.statistics import Statistics
from rayunlearn.keywords.tokens import blocks_of, tokens_of
from rayunlearn.keywords.words import starts_of
from rayunlearn.results.store import VERSION_KEY, frame_of, write_bytes, write_frame, write_table
from rayunlearn.schema import VERSION

# raised when a pass writes something else for the same input
FORMAT = 1
# `auto` streams corpora above this through Ray Data
LARGE_BYTES = 256 * 2**20
# ids that are compared for copies together: 2 MiB of them
DOCUMENTS_AT_ONCE = 2**18


@dataclass(frozen=True, kw_only=True)
class Source:
    """A corpus as workers read it. `chunk_words` 0: documents as they are, else cut after so many
    words.
    """

    pieces: tuple[Piece, ...]
    columns: Mapping[str, str]
    chunk_words: int = 0

    @property
    def key(self) -> list[object]:
        """What identifies the corpus for resuming."""
        return [source_key(self.pieces), sorted(self.columns.items()), self.chunk_words]


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a worker says of a piece it has done. `counts`: rows or keywords it wrote, by name."""

    piece: int
    n_documents: int
    n_aside: int = 0
    seconds: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a pass is. `fresh`: documents and seconds of this call alone, from which the time
    left is taken.
    """

    name: str
    done: int
    pieces: int
    n_documents: int
    fresh_documents: int
    fresh_pieces: int
    seconds: float

    @property
    def seconds_left(self) -> float:
        """Pieces are of about equal size; NaN before the first of this call is done."""
        return (
            self.seconds / self.fresh_pieces * (self.pieces - self.done)
            if self.fresh_pieces
            else float("nan")
        )


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A surveyed corpus: its documents without copies, their digest (`config.digest` of the
    doc_ids), and the folder it is in.
    """

    source: Source
    folder: Path
    n_documents: int
    n_words: int
    digest: str

    def statistics(self) -> Statistics:
        """Word counts of the whole corpus; memory goes with its vocabulary."""
        table = pl.read_parquet(self.folder / "words.parquet")
        words = table["word"].to_list()
        counts, documents = (
            Counter(dict(zip(words, table[name].to_list(), strict=True)))
            for name in ("count", "documents")
        )
        return Statistics(self.n_documents, self.n_words, counts, documents)


Do = Callable[[int], Note]
# made where the work is: must be picklable
Worker = Callable[[], Do]
Tell = Callable[[Note], None]
Engine = Callable[[Worker, Sequence[int], Tell], None]
Report = Callable[[Standing], None]


def source_of(
    name: str,
    *,
    side: str = "forget",
    columns: str = "",
    chunk_words: int = 0,
    unit: str = "",
    piece_bytes: int = PIECE_BYTES,
) -> Source:
    """A source by its name (`data.pieces`). Raises UserError for one that is not there or has no
    usable columns.
    """
    require(chunk_words >= 0, "--chunk-words must be >= 0", chunk_words)
    pieces = pieces_of(name, side=side, unit=unit, piece_bytes=piece_bytes)
    return Source(pieces=pieces, columns=columns_of(pieces, columns), chunk_words=chunk_words)


def is_large(*sources: Source) -> bool:
    """Whether `auto` sends these to Ray Data."""
    return sum(source_bytes(s.pieces) for s in sources) > LARGE_BYTES


# ---- engines of one machine


def in_turn(worker: Worker, pieces: Sequence[int], tell: Tell) -> None:
    """One piece after another, in this process."""
    do = worker()
    for at in pieces:
        tell(do(at))


@contextmanager
def in_processes(n: int) -> Iterator[Engine]:
    """`n` processes of this machine, this one among them; the others start with the first pass that
    has pieces for them and stay for the next.

    With one, or for one piece, this process alone. While another process starts this one works
    already.
    """
    pools: list[ProcessPoolExecutor] = []

    def engine(worker: Worker, pieces: Sequence[int], tell: Tell) -> None:
        if min(n, len(pieces)) <= 1:
            in_turn(worker, pieces, tell)
            return
        if not pools:
            pools.append(ProcessPoolExecutor(n - 1, get_context("spawn")))
        _together(pools[0], n - 1, worker, pieces, tell)

    try:
        yield engine
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def _together(
    pool: ProcessPoolExecutor, n_others: int, worker: Worker, pieces: Sequence[int], tell: Tell
) -> None:
    """The pieces by this process and the pool's, whoever is free takes the next one; each of the
    others has one more waiting.
    """
    left, out = deque(pieces), set[Future[Note]]()
    key = uuid.uuid4().hex
    do = worker()
    try:
        while left or out:
            while left and len(out) < 2 * n_others:
                out.add(pool.submit(_of_pass, key, worker, left.popleft()))
            if left:
                tell(do(left.popleft()))
            done, out = wait(out, timeout=0 if left else None, return_when=FIRST_COMPLETED)
            for future in done:
                tell(future.result())
    except BaseException:
        for future in out:
            future.cancel()
        raise


# in a process of `in_processes`: the worker of the pass that it is in
_MINE: dict[str, Do] = {}


def _of_pass(key: str, worker: Worker, at: int) -> Note:
    if key not in _MINE:
        _MINE.clear()
        _MINE[key] = worker()
    return _MINE[key](at)


# ---- a pass


def run_pass(
    name: str, folder: Path, worker: Worker, pieces: Iterable[int], engine: Engine, report: Report
) -> list[Note]:
    """Do the pieces that have no note in `folder` yet; returns the notes of all, in order."""
    wanted = list(pieces)
    notes = {at: note for at in wanted if (note := read_note(folder, at)) is not None}
    begun, kept = time.monotonic(), len(notes)
    seen = sum(n.n_documents for n in notes.values())

    def standing() -> Standing:
        total = sum(n.n_documents for n in notes.values())
        return Standing(
            name=name,
            done=len(notes),
            pieces=len(wanted),
            n_documents=total,
            fresh_documents=total - seen,
            fresh_pieces=len(notes) - kept,
            seconds=time.monotonic() - begun,
        )

    def tell(note: Note) -> None:
        notes[note.piece] = note
        report(standing())

    left = [at for at in wanted if at not in notes]
    if left:
        folder.mkdir(parents=True, exist_ok=True)
        report(standing())
        engine(partial(_noting, worker, folder), left, tell)
    return [notes[at] for at in wanted]


def read_note(folder: Path, at: int) -> Note | None:
    """The note of a piece, None where it is not done."""
    file = folder / f"{at:06}.json"
    return Note(**json.loads(file.read_text())) if file.exists() else None


def _noting(worker: Worker, folder: Path) -> Do:
    """The worker's doing, with a note written after each piece."""
    do = worker()

    def noted(at: int) -> Note:
        begun = time.monotonic()
        note = replace(do(at), seconds=time.monotonic() - begun)
        write_bytes(folder / f"{at:06}.json", json.dumps(asdict(note)).encode())
        return note

    return noted


# ---- reading


def read(source: Source, at: int) -> tuple[list[Document], list[int], list[Rejected]]:
    """The documents of piece `at` (chunks, where the source is chunked), the row of each, and what
    was set aside.
    """
    documents, rows, aside = documents_of(source.pieces[at], source.columns)
    if not source.chunk_words:
        return list(documents), list(rows), list(aside)
    chunked: dict[str, tuple[Document, int]] = {}
    for document, row in zip(documents, rows, strict=True):
        for part in chunks_of(document, source.chunk_words):
            # a chunk that comes twice is one chunk
            chunked.setdefault(part.doc_id, (part, row))
    return [d for d, _ in chunked.values()], [row for _, row in chunked.values()], list(aside)


def read_texts(source: Source, at: int) -> tuple[list[str], list[int], list[str], list[Rejected]]:
    """doc_ids, rows and answers of piece `at`, and what was set aside: what `read` gives, faster
    where there is nothing but text.
    """
    if (
        not source.chunk_words
        and (plain := plain_texts(source.pieces[at], source.columns)) is not None
    ):
        return plain
    documents, rows, aside = read(source, at)
    return [d.doc_id for d in documents], rows, [d.answer for d in documents], aside


def chunks_of(document: Document, n_words: int) -> Iterator[Document]:
    """The document cut before every `n_words`-th word, white space between chunks left out; a
    document without a word is one chunk.
    """
    cuts = starts_of(document.answer, n_words)[1:]
    for start, end in pairwise((0, *cuts, len(document.answer))):
        yield replace(
            document, answer=document.answer[start:end].strip(), paraphrase="", wrong=(), facts=()
        )


def kept(survey: Survey, at: int) -> list[Document]:
    """The documents of piece `at` that are no copies of earlier ones."""
    documents, _, _ = read(survey.source, at)
    copies = set(_copies(survey.folder, at)[:, 0].tolist())
    return [d for place, d in enumerate(documents) if place not in copies]


def kept_texts(survey: Survey, at: int) -> tuple[list[str], list[str]]:
    """doc_ids and answers of `kept`; ids are those of the survey where the source is Parquet with
    nothing but text.
    """
    # Python's numbers: one by one out of a mapped array takes longer than a text
    ids, rows = _ids(survey.folder, at).tolist()
    texts = (
        None
        if survey.source.chunk_words
        else texts_at(survey.source.pieces[at], survey.source.columns, rows)
    )
    if texts is None:
        documents = kept(survey, at)
        return [d.doc_id for d in documents], [d.answer for d in documents]
    copies = set(_copies(survey.folder, at)[:, 0].tolist())
    places = [place for place in range(len(texts)) if place not in copies]
    return [f"{ids[place]:016x}" for place in places], [texts[place] for place in places]


def first_ids(survey: Survey, n: int) -> list[str]:
    """The ids of the first `n` documents of the first piece."""
    return [f"{i:016x}" for i in _ids(survey.folder, 0)[0, :n].tolist()]


# ---- the survey


def surveyed(name: str, source: Source, folder: Path, engine: Engine, report: Report) -> Survey:
    """Count the words of a corpus and find the documents that occur again. Raises UserError for a
    corpus without a usable document.
    """
    n = len(source.pieces)
    count, correct = folder / "count", folder / "correct"
    notes = run_pass(
        f"{name}: counting", count, partial(_counter, source, folder), range(n), engine, report
    )
    if not (folder / "survey.json").exists():
        n_aside = sum(note.n_aside for note in notes)
        rule = f"a corpus must have a usable document; {n_aside} rows set aside in"
        require(sum(note.n_documents for note in notes) > 0, rule, source.pieces[0].source)
        with_copies = _find_copies(folder, n)
        run_pass(
            f"{name}: copies",
            correct,
            partial(_corrector, source, folder),
            with_copies,
            engine,
            report,
        )
        n_words = _merge_words(folder)
        n_documents, digest = _digest_ids(folder, n)
        write_bytes(
            folder / "survey.json",
            json.dumps({"n_documents": n_documents, "n_words": n_words, "digest": digest}).encode(),
        )
    return Survey(source=source, folder=folder, **json.loads((folder / "survey.json").read_text()))


def _counter(source: Source, folder: Path) -> Do:
    def do(at: int) -> Note:
        ids, rows, texts, aside = read_texts(source, at)
        _save(folder / f"ids/{at:06}.npy", np.array([[int(i, 16) for i in ids], rows], np.uint64))
        write_frame(folder / f"words/{at:06}.parquet", _counted(texts, 1))
        if aside:
            write_table(folder / f"aside/{at:06}.parquet", "quarantine", [asdict(r) for r in aside])
        return Note(piece=at, n_documents=len(ids), n_aside=len(aside))

    return do


def _corrector(source: Source, folder: Path) -> Do:
    """Takes the words of a piece's copies out of the counts, and sets the copies aside."""

    def do(at: int) -> Note:
        documents, rows, _ = read(source, at)
        copies = [
            (documents[place], rows[place], row) for place, row in _copies(folder, at).tolist()
        ]
        write_frame(
            folder / f"words/{at:06}.copies.parquet", _counted([d.answer for d, _, _ in copies], -1)
        )
        name = Path(source.pieces[at].source).name
        aside = [
            Rejected(
                source=name,
                row=row,
                reason=f"the same document as an earlier one (row {first})",
                excerpt=d.answer[:200],
            )
            for d, row, first in copies
        ]
        write_table(
            folder / f"aside/{at:06}.copies.parquet", "quarantine", [asdict(r) for r in aside]
        )
        return Note(piece=at, n_documents=len(copies), n_aside=len(copies))

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


def _find_copies(folder: Path, n: int) -> list[int]:
    """Write for every piece its documents that an earlier piece has, with that one's row; returns
    the pieces that have some.

    Ids are compared some at a time, those with the same remainder together, so memory does not grow
    with the corpus.
    """
    total = sum(_ids(folder, at).shape[1] for at in range(n))
    parts = 1 + total // DOCUMENTS_AT_ONCE
    found: dict[int, list[tuple[int, int]]] = {}
    for part in range(parts):
        for at, place, row in _copies_in(folder, n, part, parts):
            found.setdefault(at, []).append((place, row))
    for at, copies in found.items():
        _save(folder / f"copies/{at:06}.npy", np.array(sorted(copies), np.int64))
    return sorted(found)


def _copies_in(folder: Path, n: int, part: int, parts: int) -> Iterator[tuple[int, int, int]]:
    """(piece, place, row of the first) of ids = part modulo parts that came before."""
    ids, rows, places, pieces = [], [], [], []
    for at in range(n):
        mine = _ids(folder, at)
        place = np.flatnonzero(mine[0] % np.uint64(parts) == part)
        ids.append(mine[0][place])
        rows.append(mine[1][place])
        places.append(place)
        pieces.append(np.full(len(place), at))
    every, row, place, piece = map(np.concatenate, (ids, rows, places, pieces))
    _, first, inverse = np.unique(every, return_index=True, return_inverse=True)
    for again in np.flatnonzero(first[inverse] != np.arange(len(every))):
        yield int(piece[again]), int(place[again]), int(row[first[inverse[again]]])


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
    """Documents without copies, and `config.digest` of the list of their ids, without holding it."""
    total, begun, n_documents = sha256(), False, 0
    total.update(b"[")
    for at in range(n):
        ids = np.delete(_ids(folder, at)[0], _copies(folder, at)[:, 0])
        n_documents += len(ids)
        if len(ids):
            total.update(
                (b"," if begun else b"") + ",".join(f'"{i:016x}"' for i in ids.tolist()).encode()
            )
            begun = True
    total.update(b"]")
    return n_documents, total.hexdigest()[:16]


def _ids(folder: Path, at: int) -> np.ndarray[Any, Any]:
    """(2, documents) uint64 of a piece: doc_id and row; mapped, not read."""
    mapped: np.ndarray[Any, Any] = np.load(folder / f"ids/{at:06}.npy", mmap_mode="r")
    return mapped


def _copies(folder: Path, at: int) -> np.ndarray[Any, Any]:
    """(copies, 2) of a piece: place and the row of the first."""
    file = folder / f"copies/{at:06}.npy"
    found: np.ndarray[Any, Any] = np.load(file) if file.exists() else np.zeros((0, 2), np.int64)
    return found


def _save(file: Path, array: np.ndarray[Any, Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(file, buffer.getvalue())


# ---- putting it in its place


def check_output(output: Path) -> None:
    """Raise UserError unless the output is a `.parquet` file or a folder that is not there yet."""
    require(
        output.suffix in (".parquet", ""),
        "--output must end in .parquet, or be a folder for one file per partition",
        str(output),
    )
    require(
        output.suffix == ".parquet" or not output.exists(),
        "--output must be a folder that is not there yet",
        str(output),
    )


def publish(parts: Path, output: Path, table: str) -> None:
    """Make the parts appear as `output`: a folder by one rename, a file by one rename after they
    were joined, a part at a time.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix != ".parquet":
        parts.rename(output)
        return
    joined(sorted(parts.glob("*.parquet")), output, table)


def joined(files: Sequence[Path], output: Path, table: str) -> None:
    """Parquet files as one, a row group for each, by one rename."""
    schema = frame_of(table, []).to_arrow().schema.with_metadata({VERSION_KEY: str(VERSION)})
    temporary = output.with_name(f".{output.name}.tmp")
    try:
        with pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for file in files:
                writer.write_table(pl.read_parquet(file).to_arrow().cast(schema))
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def publish_aside(folders: Iterable[Path], output: Path) -> int:
    """Write what the passes set aside to `<output without ending>.quarantine.parquet`; returns its
    rows and writes none for none.
    """
    files = [file for folder in folders for file in sorted(folder.glob("aside/*.parquet"))]
    rows = sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)
    place = output.with_suffix(".quarantine.parquet")
    if rows:
        joined(files, place, "quarantine")
    else:
        place.unlink(missing_ok=True)
    return rows


def forget_work(folder: Path) -> None:
    """Remove a folder of work whose result has been published, and its parent if nothing else is in
    it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def work_folder(output: Path, key: str) -> Path:
    """Where a pass keeps what it has: beside its output, by digest of input and settings, so that a
    changed one starts anew.
    """
    return output.with_name(f"{output.stem}.work") / key
