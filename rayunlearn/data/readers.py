"""Readers of JSON, JSON Lines, CSV and Parquet files, row by row."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow
import pyarrow.parquet

from rayunlearn.data.rows import SourceRow, excerpt_of
from rayunlearn.errors import UserError, require
from rayunlearn.storage.parquet_guard import refuse_decompression_bomb, unreadable_errors

BOM = b"\xef\xbb\xbf"

# read at a time: books are long
PARQUET_ROWS = 256

# the csv module stops at 131,072, less than a chapter
CSV_FIELD_CHARACTERS = 2**30


def read_file(file: Path) -> Iterator[SourceRow]:
    """The rows of one file, in order; unreadable ones with their reason. Raises UserError when the
    file cannot be read at all.
    """
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"a data file must end in one of {', '.join(READERS)}, got {file.name!r}")
    try:
        yield from reader(file)
    except unreadable_errors() as problem:
        raise UserError(f"{file} could not be read as {file.suffix[1:]}: {problem}") from problem


def read_json(file: Path) -> Iterator[SourceRow]:
    """JSON lines, or one JSON array of objects (told by the first character)."""
    yield from read_json_array(file) if is_array(file) else read_json_lines(file)


def is_array(file: Path) -> bool:
    """Whether a JSON file begins with `[`."""
    with file.open("rb") as stream:
        return stream.read(4096).removeprefix(BOM).lstrip()[:1] == b"["


def read_json_lines(file: Path) -> Iterator[SourceRow]:
    """One object per line; blank lines are skipped, and a row number counts lines from 0."""
    with file.open("rb") as stream:
        yield from json_rows(file, enumerate(stream))


def json_rows(file: Path, lines: Iterable[tuple[int, bytes]]) -> Iterator[SourceRow]:
    """The rows of numbered lines of a file of JSON lines."""
    for number, line in lines:
        content = line.removeprefix(BOM).strip() if number == 0 else line.strip()
        if content:
            values, reason = parse_json(content)
            values, reason = object_or_reason(values, reason)
            yield SourceRow(
                source=file.name,
                row=number,
                values=values,
                reason=reason,
                excerpt=excerpt_of(content) if reason else "",
            )


def read_json_array(file: Path) -> Iterator[SourceRow]:
    """Each item of one array; an array that does not parse is one unusable row."""
    content = file.read_bytes().removeprefix(BOM).strip()
    items, problem = parse_json(content)
    if problem or not isinstance(items, list):
        yield SourceRow(
            source=file.name, row=0, values={}, reason=problem, excerpt=excerpt_of(content)
        )
        return
    for number, item in enumerate(items):
        values, reason = object_or_reason(item, "")
        yield SourceRow(
            source=file.name,
            row=number,
            values=values,
            reason=reason,
            excerpt=excerpt_of(item) if reason else "",
        )


def parse_json(content: bytes) -> tuple[object, str]:
    """(value, "") or (None, why it is not JSON)."""
    try:
        return json.loads(content.decode()), ""
    except UnicodeDecodeError:
        return None, "not valid UTF-8 text"
    except json.JSONDecodeError as problem:
        return None, f"not JSON: {problem.msg}"
    # nested thousands deep; an integer of thousands of digits
    except (RecursionError, ValueError):
        return None, "not JSON: nested too deep or a number too long"


def object_or_reason(value: object, reason: str) -> tuple[dict[str, object], str]:
    """(the object, "") or ({}, why the row has none)."""
    if reason or isinstance(value, dict):
        return (value, "") if isinstance(value, dict) else ({}, reason)
    return {}, f"a row must be an object, this is {type(value).__name__}"


def read_csv(file: Path) -> Iterator[SourceRow]:
    """Comma-separated with a header; a row with another number of cells than the header is
    unusable.

    Row 0 is the one under the header. Invalid bytes become surrogates, which `text_problem` finds.
    """
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        records = csv_records(stream)
        header = csv_header(file, next(records, ([], ""))[0])
        yield from csv_row_values(file, records, header, 0)


def csv_rows(file: Path, start: int, stop: int, row: int) -> Iterator[SourceRow]:
    """The rows of a CSV file between two bytes at which records begin; the header is read from its
    beginning.
    """
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        header = csv_header(file, next(csv_records(stream), ([], ""))[0])
    with file.open("rb") as binary:
        binary.seek(start)
        lines = (
            line.decode("utf-8-sig" if start == 0 else "utf-8", errors="surrogateescape")
            for line in lines_until(binary, stop)
        )
        records = csv_records(lines)
        if start == 0:
            next(records)
        yield from csv_row_values(file, records, header, row)


def lines_until(stream: BinaryIO, stop: int) -> Iterator[bytes]:
    """The lines of a file from where it stands to the byte `stop`."""
    position = stream.tell()
    while position < stop and (line := stream.readline()):
        position += len(line)
        yield line


def csv_header(file: Path, header: list[str]) -> list[str]:
    """The header. Raises UserError for one that names a column twice."""
    require(
        len(set(header)) == len(header),
        f"the columns of {file.name} must have different names",
        header,
    )
    return header


def csv_row_values(
    file: Path, records: Iterable[tuple[list[str], str]], header: list[str], first: int
) -> Iterator[SourceRow]:
    """Records under their header as rows, numbered from `first`."""
    for number, (cells, problem) in enumerate(records, first):
        reason = problem or (
            ""
            if len(cells) == len(header)
            else f"{len(cells)} cells under a header of {len(header)}"
        )
        values = {} if reason else dict(zip(header, cells, strict=True))
        yield SourceRow(
            source=file.name,
            row=number,
            values=values,
            reason=reason,
            excerpt=excerpt_of(cells) if reason else "",
        )


def csv_records(stream: Iterable[str]) -> Iterator[tuple[list[str], str]]:
    """(cells, "") or ([], why not) per record; blank lines are skipped. A quote that never closes
    takes the rest with it.

    The csv module's limit on a field is global: it is raised while a record is read and put back.
    """
    reader = csv.reader(stream, strict=True)
    while True:
        limit = csv.field_size_limit(CSV_FIELD_CHARACTERS)
        try:
            record = (next(reader), "")
        except csv.Error as problem:
            record = ([], f"not CSV: {problem}")
        except StopIteration:
            return
        finally:
            csv.field_size_limit(limit)
        if any(record):
            yield record


def read_parquet(file: Path) -> Iterator[SourceRow]:
    """The rows of a Parquet file, some hundreds at a time."""
    yield from parquet_rows(file, 0, None, None)


def parquet_rows(
    file: Path, start: int, stop: int | None, columns: list[str] | None
) -> Iterator[SourceRow]:
    """Rows [start, stop) of a Parquet file (None: to its end), of the `columns` alone where they
    are given. Raises UserError for a bomb.
    """
    refuse_decompression_bomb(file)
    with pyarrow.parquet.ParquetFile(file) as table:
        stop = table.metadata.num_rows if stop is None else stop
        groups, number = groups_between(table.metadata, start, stop)
        for batch in table.iter_batches(
            PARQUET_ROWS, row_groups=groups, columns=columns, use_threads=False
        ):
            rows = batch.slice(max(0, start - number), max(0, stop - max(start, number)))
            for position, (values, reason) in enumerate(batch_values(rows), max(start, number)):
                yield SourceRow(source=file.name, row=position, values=values, reason=reason)
            number += batch.num_rows


def groups_between(
    metadata: pyarrow.parquet.FileMetaData, start: int, stop: int
) -> tuple[list[int], int]:
    """The row groups that hold rows of [start, stop), and the number of their first row."""
    groups: list[int] = []
    row = first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row < stop and row + rows > start:
            first = first if groups else row
            groups.append(group)
        row += rows
    return groups, first


def batch_values(batch: pyarrow.RecordBatch) -> Iterator[tuple[dict[str, object], str]]:
    """(values by column, "") or ({}, reason) per row;
    row by row only where some text is not UTF-8.
    """
    names = batch.schema.names
    try:
        columns = [column.to_pylist() for column in batch.columns]
    except UnicodeDecodeError:
        yield from (parquet_row(batch, position) for position in range(batch.num_rows))
        return
    yield from (
        (dict(zip(names, values, strict=True)), "") for values in zip(*columns, strict=True)
    )


def parquet_row(batch: pyarrow.RecordBatch, position: int) -> tuple[dict[str, object], str]:
    """(values by column, "") or ({}, reason): a Parquet string may hold bytes
    that are not UTF-8.
    """
    try:
        return {
            name: batch.column(index)[position].as_py()
            for index, name in enumerate(batch.schema.names)
        }, ""
    except UnicodeDecodeError:
        return {}, "not valid UTF-8 text"


READERS: dict[str, Callable[[Path], Iterator[SourceRow]]] = {
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
