"""A corpus in pieces, for passes that never hold it whole: each piece is read, worked on and
written by itself.

A source is a synthetic dataset's name, a data file, a `.txt` file, or a folder of files of one
kind. Small files are one piece; larger ones are cut where a record ends: Parquet at rows, JSON
lines and text at lines or blank lines, CSV at records. A JSON array, a packed file and one that is
not UTF-8 cannot be cut and are always one piece.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import pyarrow.parquet

from rayunlearn.config import SYNTHETIC_DATASETS, Data
from rayunlearn.data.data_streams import is_plain
from rayunlearn.data.documents import Document, Rejected, doc_id_of
from rayunlearn.data.readers import (
    BOM,
    ENDINGS,
    PARQUET_ROWS,
    csv_records,
    csv_rows,
    data_ending,
    delimiter_of,
    groups_between,
    is_cut_at_lines,
    json_rows,
    parquet_rows,
    read_file,
)
from rayunlearn.data.rows import (
    Columns,
    SourceRow,
    choose_columns,
    excerpt_of,
    parse_columns,
    text_problem,
    to_documents,
)
from rayunlearn.data.synthetic import generate_dataset
from rayunlearn.errors import UserError, require, unknown_name
from rayunlearn.storage.parquet_guard import refuse_decompression_bomb, unreadable_errors

PARTITION_BYTES = 4 * 2**20

# what a model reads takes it minutes for what counting takes seconds; a piece is what progress is
# told by
MODEL_PARTITION_BYTES = 2**18

# what a document of a .txt file is
CHUNK_UNITS = ("line", "paragraph", "file")

# a corpus's columns are chosen from its first readable rows
ROWS_TO_CHOOSE = 1000
SIDES = ("forget", "retain")


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Part of a source. `kind` is a synthetic dataset's side, a file's ending, or the unit of a
    text; `whole` files have no range.

    Otherwise [start, stop) are rows of a Parquet file and bytes of any other; `row` numbers the
    first row.
    """

    source: str
    kind: str
    is_whole_file: bool = True
    start: int = 0
    stop: int = 0
    row: int = 0


def partitions_of(
    source: str, *, side: str = "forget", unit: str = "", piece_bytes: int = PARTITION_BYTES
) -> tuple[Partition, ...]:
    """The pieces of a source, in order. `unit` '': a document is a line of a single .txt file, or a
    file of a folder of them.

    Raises UserError for a source that is neither dataset, file nor folder, and for a folder without
    files or with several kinds.
    """
    if unit and unit not in CHUNK_UNITS:
        raise unknown_name("--text-unit", unit, CHUNK_UNITS)
    if source in SYNTHETIC_DATASETS:
        return (Partition(source=source, kind=side),)
    path = Path(source).expanduser()
    if path.is_dir():
        return tuple(
            chain.from_iterable(
                _partitions_of_file(file, unit or "file", piece_bytes) for file in _files(path)
            )
        )
    require(
        path.is_file(),
        f"a corpus must be a data file, a folder of them or one of {', '.join(SYNTHETIC_DATASETS)}",
        source,
    )
    return tuple(_partitions_of_file(path, unit or "line", piece_bytes))


def source_bytes(pieces: tuple[Partition, ...]) -> int:
    """Size of the files on disk; 0 for a synthetic dataset."""
    return sum(os.path.getsize(name) for name in {p.source for p in pieces if p.kind not in SIDES})


def source_key(pieces: tuple[Partition, ...]) -> list[list[object]]:
    """What identifies the files for a resumed pass: path, size and time of change; contents would
    have to be read again.
    """
    files = sorted({p.source for p in pieces if p.kind not in SIDES})
    stats = [(name, os.stat(name)) for name in files]
    return [[p.source, p.kind, p.start, p.stop] for p in pieces] + [
        [name, s.st_size, s.st_mtime_ns] for name, s in stats
    ]


def columns_of(pieces: tuple[Partition, ...], columns: str) -> dict[str, str]:
    """Our name -> the corpus's column (`files.choose_columns`), from the first rows that can be
    read; {} for a dataset and where none can.
    """
    if pieces[0].kind in SIDES:
        return {}
    readable = (row for piece in pieces for row in rows_of(piece) if not row.reason)
    return choose_columns(
        tuple(islice(readable, ROWS_TO_CHOOSE)), parse_columns(columns), Path(pieces[0].source).stem
    )


def documents_of(
    piece: Partition, columns: Columns
) -> tuple[tuple[Document, ...], tuple[int, ...], tuple[Rejected, ...]]:
    """The documents of a piece, the row each stood in, and what was rejected. Copies inside the
    piece are rejected.
    """
    if piece.kind in SIDES:
        corpus = generate_dataset(Data(name=piece.source))
        documents = corpus.forget if piece.kind == "forget" else corpus.retain
        return documents, tuple(range(len(documents))), ()
    loaded = to_documents(rows_of(piece, columns), columns)
    return (
        loaded.documents,
        tuple(loaded.places[d.doc_id][1] for d in loaded.documents),
        loaded.rejected,
    )


def plain_texts(
    piece: Partition, columns: Columns
) -> tuple[list[str], list[int], list[str], list[Rejected]] | None:
    """doc_ids, rows, answers and what was rejected of a Parquet piece whose only column of ours is
    text; None for any other piece.

    The same as `documents_of` gives, without a `Document` for each (tested).
    """
    column = _plain_column(piece, columns)
    if column is None:
        return None
    places: dict[str, tuple[int, str]] = {}
    rejected = []
    for row, text in enumerate(column, piece.start):
        reason = text_problem(columns["answer"], text, needed=True)
        doc_id = "" if reason else doc_id_of(text)
        if not reason and doc_id not in places:
            places[doc_id] = row, text
            continue
        reason = reason or f"the same document as row {places[doc_id][0]}"
        rejected.append(
            Rejected(
                source=Path(piece.source).name,
                row=row,
                reason=reason,
                excerpt=excerpt_of({columns["answer"]: text}),
            )
        )
    return (
        list(places),
        [row for row, _ in places.values()],
        [text for _, text in places.values()],
        rejected,
    )


def texts_at(piece: Partition, columns: Columns, rows: Sequence[int]) -> list[str] | None:
    """The answers in the given rows of such a piece, in order; None for any other piece."""
    column = _plain_column(piece, columns)
    return None if column is None else [column[int(row) - piece.start] for row in rows]


def _plain_column(piece: Partition, columns: Columns) -> list[str] | None:
    if piece.kind != ".parquet" or set(columns) != {"answer"}:
        return None
    name = columns["answer"]
    with _read_as(Path(piece.source)), pyarrow.parquet.ParquetFile(piece.source) as table:
        if table.schema_arrow.field(name).type not in (pyarrow.string(), pyarrow.large_string()):
            return None
        groups, first = groups_between(table.metadata, piece.start, piece.stop)
        texts: list[str] = []
        for batch in table.iter_batches(
            PARQUET_ROWS, row_groups=groups, columns=[name], use_threads=False
        ):
            rows = batch.slice(
                max(0, piece.start - first), max(0, piece.stop - max(piece.start, first))
            )
            first += batch.num_rows
            try:
                texts += rows.column(0).to_pylist()
            # the slower way says which row it is
            except UnicodeDecodeError:
                return None
    return texts


def rows_of(piece: Partition, columns: Columns | None = None) -> Iterator[SourceRow]:
    """The rows of a piece, in order; of Parquet only the columns that `columns` names, where it is
    given.
    """
    file = Path(piece.source)
    if piece.kind in CHUNK_UNITS:
        yield from _text_rows(file, piece)
    elif piece.kind == ".parquet":
        with _read_as(file):
            yield from parquet_rows(
                file, piece.start, piece.stop, sorted(set(columns.values())) if columns else None
            )
    elif piece.is_whole_file:
        yield from read_file(file)
    elif piece.kind == ".csv":
        yield from csv_rows(file, piece.start, piece.stop, piece.row)
    else:
        yield from json_rows(file, _lines(file, piece))


@contextmanager
def _read_as(file: Path) -> Iterator[None]:
    try:
        yield
    except unreadable_errors() as problem:
        raise UserError(f"{file} could not be read as {file.suffix[1:]}: {problem}") from problem


def _files(folder: Path) -> list[Path]:
    files = sorted(
        f
        for f in folder.iterdir()
        if f.is_file() and (data_ending(f) or f.suffix.lower() == ".txt")
    )
    kinds = sorted({data_ending(f) or ".txt" for f in files})
    require(
        len(kinds) == 1,
        f"a corpus folder must hold files of one kind, .txt or {', '.join(ENDINGS)}",
        kinds,
    )
    return files


def _partitions_of_file(file: Path, unit: str, piece_bytes: int) -> Iterator[Partition]:
    """The pieces of one file."""
    ending = ".txt" if file.suffix.lower() == ".txt" else data_ending(file)
    kind = unit if ending == ".txt" else ending
    if not ending:
        raise UserError(
            f"a data file must end in .txt or one of {', '.join(ENDINGS)}, got {file.name!r}"
        )
    size = file.stat().st_size
    if kind == ".parquet":
        yield from _joined(file, kind, _parquet_ends(file, piece_bytes), piece_bytes)
    elif size <= piece_bytes or kind == "file" or not _can_be_cut(file, ending):
        yield Partition(source=str(file), kind=kind)
    else:
        ends = (
            _csv_ends(file) if kind == ".csv" else _line_ends(file, after_blank=kind == "paragraph")
        )
        yield from _joined(file, kind, ends, piece_bytes)


def _can_be_cut(file: Path, ending: str) -> bool:
    """Whether a file can be read in pieces of its bytes: packed files, other encodings than UTF-8,
    `.tsv` and JSON that is no lines cannot.
    """
    if ending in (".json", ".jsonl"):
        return is_cut_at_lines(file)
    return ending == ".txt" or (ending == ".csv" and is_plain(file))


def _joined(
    file: Path, kind: str, ends: Iterator[tuple[int, int, int]], piece_bytes: int
) -> Iterator[Partition]:
    """Pieces of at least `piece_bytes` (but the last), of places a file may be cut at: (position,
    rows before it, bytes before it).
    """
    start = row = filled = stop = rows = size = 0
    for stop, rows, size in ends:
        if size - filled >= piece_bytes:
            yield Partition(
                source=str(file), kind=kind, is_whole_file=False, start=start, stop=stop, row=row
            )
            start, row, filled = stop, rows, size
    if stop > start or start == 0:
        yield Partition(
            source=str(file), kind=kind, is_whole_file=False, start=start, stop=stop, row=row
        )


def _parquet_ends(file: Path, piece_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Ends of row groups; a group larger than a piece is cut inside too,
    by rows of its mean size.
    """
    refuse_decompression_bomb(file)
    with _read_as(file):
        meta = pyarrow.parquet.read_metadata(file)
    row = size = 0
    for group in map(meta.row_group, range(meta.num_row_groups)):
        step = max(1, group.num_rows * piece_bytes // max(1, group.total_byte_size))
        for inside in (*range(step, group.num_rows, step), group.num_rows):
            yield (
                row + inside,
                row + inside,
                size + group.total_byte_size * inside // max(1, group.num_rows),
            )
        row, size = row + group.num_rows, size + group.total_byte_size


def _line_ends(file: Path, *, after_blank: bool) -> Iterator[tuple[int, int, int]]:
    position = 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            position += len(line)
            if not after_blank or not line.strip():
                yield position, number, position
    if after_blank:
        yield position, number, position


def _csv_ends(file: Path) -> Iterator[tuple[int, int, int]]:
    """Ends of records. The module reads a line when it needs one, so a record ends where the last
    line that it took does.
    """
    position = 0

    def lines() -> Iterator[str]:
        nonlocal position
        with file.open("rb") as stream:
            for line in stream:
                position += len(line)
                yield line.decode(errors="surrogateescape")

    for number, _ in enumerate(csv_records(lines(), delimiter_of(file))):
        # the header is no row
        yield position, number, position


def _lines(file: Path, piece: Partition) -> Iterator[tuple[int, bytes]]:
    """(number, line) of a piece of a file of lines."""
    with file.open("rb") as stream:
        stream.seek(piece.start)
        position = piece.start
        for number, line in enumerate(stream, piece.row):
            position += len(line)
            yield number, line.removeprefix(BOM) if number == 0 else line
            if not piece.is_whole_file and position >= piece.stop:
                return


def _text_rows(file: Path, piece: Partition) -> Iterator[SourceRow]:
    """Lines or paragraphs that are not blank, or the whole file; the row is the number of its first
    line.
    """
    part: list[bytes] = []
    first = 0
    for number, line in _lines(file, piece):
        first = first if part else number
        part += [line] if line.strip() or piece.kind == "file" else []
        if part and (piece.kind == "line" or (piece.kind == "paragraph" and not line.strip())):
            yield _text_row(file, first, b"".join(part))
            part = []
    if part:
        yield _text_row(file, first, b"".join(part))


def _text_row(file: Path, number: int, content: bytes) -> SourceRow:
    try:
        return SourceRow(source=file.name, row=number, values={"text": content.decode().strip()})
    except UnicodeDecodeError:
        return SourceRow(
            source=file.name,
            row=number,
            values={},
            reason="not valid UTF-8 text",
            excerpt=excerpt_of(content),
        )
