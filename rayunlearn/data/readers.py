"""Readers of JSON, JSON Lines, CSV, TSV and Parquet files, row by row."""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pyarrow
import pyarrow.parquet

from rayunlearn.data.data_streams import (
    GZIP_ENDING,
    is_plain,
    lines_of,
    open_text,
    open_utf8,
    reading_errors,
)
from rayunlearn.data.rows import COMMON_NAMES, USUAL_NAMES, SourceRow, excerpt_of
from rayunlearn.errors import UserError, require
from rayunlearn.storage.parquet_guard import refuse_decompression_bomb

BOM = b"\xef\xbb\xbf"

# read at a time: books are long
PARQUET_ROWS = 256

# white space between JSON values
JSON_BLANKS = re.compile(r"[ \t\r\n]*")

# lists of objects under these names are the turns of one conversation, no rows
CONVERSATIONS = ("messages", "conversations", "conversation", "history")

# a header is looked at so far for what separates its cells
MAX_HEADER_CHARACTERS = 2**16

# whether a column of this name is to be read
Wanted = Callable[[str], bool]

# the csv module stops at 131,072, less than a chapter
CSV_FIELD_CHARACTERS = 2**30


def data_ending(file: Path) -> str:
    """The ending that says what a data file is, `.gz` left out; '' where it is none of ours."""
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    if suffixes[-1:] == [GZIP_ENDING]:
        inner = suffixes[0] if len(suffixes) == 2 else ""
        return inner if inner in READERS and inner != ".parquet" else ""
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else ""


def data_stem(file: Path) -> str:
    """A data file's name without its ending: `forget` of `forget.jsonl.gz`."""
    return Path(file.stem).stem if file.suffix.lower() == GZIP_ENDING else file.stem


def read_file(file: Path, selects: Wanted | None = None) -> Iterator[SourceRow]:
    """The rows of one file, in order; unreadable ones with their reason. Values of columns that are
    not selected are not kept (None: all are). Raises UserError when the file cannot be read at all.
    """
    ending = data_ending(file)
    if not ending:
        raise UserError(f"a data file must end in one of {', '.join(ENDINGS)}, got {file.name!r}")
    try:
        if ending == ".parquet" and selects is not None:
            yield from wanted_parquet_rows(file, selects)
        else:
            yield from (kept_columns(row, selects) for row in READERS[ending](file))
    except reading_errors() as problem:
        raise UserError(f"{file} could not be read as {ending[1:]}: {problem}") from problem


def kept_columns(row: SourceRow, selects: Wanted | None) -> SourceRow:
    """The row with the values of the selected columns alone; the names of the others stay."""
    ignored = tuple(name for name in row.values if selects is not None and not selects(name))
    if not ignored:
        return row
    values = {name: value for name, value in row.values.items() if name not in ignored}
    return replace(row, values=values, ignored=(*row.ignored, *ignored))


def read_json(file: Path) -> Iterator[SourceRow]:
    """JSON lines, one JSON array of objects, or one object that holds the rows: how the file begins
    says which.
    """
    with open_utf8(file) as stream:
        by_line = has_object_lines(stream)
    yield from read_json_lines(file) if by_line else read_json_whole(file)


def has_object_lines(stream: BinaryIO) -> bool:
    """Whether the first line with something in it is a whole object and another such line follows:
    one object alone may hold all rows.
    """
    filled = (content for line in stream if (content := line.removeprefix(BOM).strip()))
    first, second = next(filled, b""), next(filled, b"")
    return bool(second) and first[:1] == b"{" and isinstance(parse_json(first)[0], dict)


def is_cut_at_lines(file: Path) -> bool:
    """Whether each line of a JSON file is a row by itself, in bytes that can be cut."""
    with file.open("rb") as stream:
        return is_plain(file) and has_object_lines(stream)


def read_json_lines(file: Path) -> Iterator[SourceRow]:
    """One object per line; blank lines are skipped, and a row number counts lines from 0."""
    yield from json_rows(file, enumerate(lines_of(file)))


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


def read_json_whole(file: Path) -> Iterator[SourceRow]:
    """The rows of a file that is one JSON value, or several objects that take more than a line
    each; else its lines. An array that does not parse is one unusable row.
    """
    with open_utf8(file) as stream:
        content = stream.read().strip()
    value, problem = parse_json(content)
    items: Sequence[object] | None = None
    if not problem:
        items = value if isinstance(value, list) else rows_of_object(file, value)
    elif content[:1] == b"{":
        items = objects_in_turn(content)
    elif content[:1] == b"[" and data_ending(file) == ".json":
        yield SourceRow(
            source=file.name, row=0, values={}, reason=problem, excerpt=excerpt_of(content)
        )
        return
    yield from read_json_lines(file) if items is None else json_items(file, items)


def json_items(file: Path, items: Sequence[object]) -> Iterator[SourceRow]:
    """The rows of items that were parsed together, numbered from 0."""
    for number, item in enumerate(items):
        values, reason = object_or_reason(item, "")
        yield SourceRow(
            source=file.name,
            row=number,
            values=values,
            reason=reason,
            excerpt=excerpt_of(item) if reason else "",
        )


def objects_in_turn(content: bytes) -> list[object] | None:
    """Objects that follow each other, whatever lines they take; None where the file is not that."""
    decoder = json.JSONDecoder()
    items: list[object] = []
    position = 0
    try:
        text = content.decode()
        while position < len(text):
            item, position = decoder.raw_decode(text, position)
            items.append(item)
            blank = JSON_BLANKS.match(text, position)
            position = blank.end() if blank else position
    except (RecursionError, ValueError):
        return None
    return items


def rows_of_object(file: Path, value: object) -> Sequence[object]:
    """The rows of one JSON value: itself, the one list of objects in it, or its columns. Raises
    UserError for an object of several lists, saying what it is.
    """
    if not isinstance(value, dict) or not value or is_row(value):
        return [value]
    tables = {name: part for name, part in value.items() if is_rows(part)}
    if len(tables) > 1:
        raise UserError(
            f"{file.name} must hold the rows of one split, got an object with the lists"
            f" {', '.join(tables)}: give each a file of its own"
        )
    if tables:
        return next(iter(tables.values()))
    names, cells = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(cells, list):
        return [
            dict(zip(names, row, strict=True))
            if isinstance(row, list) and len(row) == len(names)
            else row
            for row in cells
        ]
    if all(isinstance(part, list) for part in value.values()):
        return rows_of_columns(file, value)
    if all(isinstance(part, dict) for part in value.values()):
        return rows_of_nested(file, value)
    return [value]


def is_row(value: dict[str, object]) -> bool:
    """Whether an object is a row by itself: an answer is in it, or a conversation."""
    return any(
        (name.lower() in COMMON_NAMES["answer"] and isinstance(part, str)) or name in CONVERSATIONS
        for name, part in value.items()
    )


def is_rows(value: object) -> bool:
    """Whether a value is a list of objects, with at least one."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def rows_of_columns(file: Path, columns: dict[str, list[object]]) -> list[object]:
    """Rows of an object that holds a list for each column."""
    lengths = {name: len(values) for name, values in columns.items()}
    require(
        len(set(lengths.values())) == 1,
        f"the columns in {file.name} must have the same number of rows",
        lengths,
    )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def rows_of_nested(file: Path, outer: dict[str, dict[str, object]]) -> Sequence[object]:
    """Rows of an object of objects: `{column: {row: value}}` or `{row: {column: value}}`,
    distinguished by where the usual names of columns stand.
    """
    inner = {name for part in outer.values() for name in part}
    if any(name.lower() in USUAL_NAMES for name in inner):
        return list(outer.values())
    if not any(name.lower() in USUAL_NAMES for name in outer):
        return [outer]
    rows = list(dict.fromkeys(name for part in outer.values() for name in part))
    return [{column: part.get(row) for column, part in outer.items()} for row in rows]


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
    """Comma- or tab-separated with a header; a row with another number of cells than the header is
    unusable.

    Row 0 is the one under the header. Invalid bytes become surrogates, which `text_problem` finds.
    """
    delimiter = delimiter_of(file)
    with open_text(file) as stream:
        records = csv_records(stream, delimiter)
        header = csv_header(file, next(records, ([], ""))[0])
        yield from csv_row_values(file, records, header, 0)


def delimiter_of(file: Path) -> str:
    """What stands between the cells: a tab in a `.tsv`, else a comma. Spreadsheets also write tabs
    or semicolons into a `.csv`: taken where the header has no comma.
    """
    if data_ending(file) == ".tsv":
        return "\t"
    with open_text(file) as stream:
        header = stream.readline(MAX_HEADER_CHARACTERS)
    return next((mark for mark in (",", "\t", ";") if mark in header), ",")


def csv_rows(file: Path, start: int, stop: int, row: int) -> Iterator[SourceRow]:
    """The rows of a CSV file between two bytes at which records begin; the header is read from its
    beginning.
    """
    delimiter = delimiter_of(file)
    with open_text(file) as stream:
        header = csv_header(file, next(csv_records(stream, delimiter), ([], ""))[0])
    with file.open("rb") as binary:
        binary.seek(start)
        lines = (
            line.decode("utf-8-sig" if start == 0 else "utf-8", errors="surrogateescape")
            for line in lines_until(binary, stop)
        )
        records = csv_records(lines, delimiter)
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
    """The header. Raises UserError for one that names a column of ours twice."""
    twice = [name for name in repeated(header) if name.lower() in USUAL_NAMES]
    require(not twice, f"the columns of {file.name} must have different names", header)
    return header


def repeated(names: Sequence[str]) -> tuple[str, ...]:
    """The names that stand more than once."""
    return tuple(name for name, count in Counter(names).items() if count > 1)


def csv_row_values(
    file: Path, records: Iterable[tuple[list[str], str]], header: list[str], first: int
) -> Iterator[SourceRow]:
    """Records under their header as rows, numbered from `first`; columns of one name are not
    kept.
    """
    ignored = repeated(header)
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
            values={n: v for n, v in values.items() if n not in ignored} if ignored else values,
            reason=reason,
            excerpt=excerpt_of(cells) if reason else "",
            ignored=ignored,
        )


def csv_records(stream: Iterable[str], delimiter: str = ",") -> Iterator[tuple[list[str], str]]:
    """(cells, "") or ([], why not) per record; blank lines are skipped. A quote that never closes
    takes the rest with it.

    The csv module's limit on a field is global: it is raised while a record is read and put back.
    """
    reader = csv.reader(stream, strict=True, delimiter=delimiter)
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


def parquet_columns(file: Path) -> list[str]:
    """The names of a Parquet file's columns."""
    refuse_decompression_bomb(file)
    return [str(name) for name in pyarrow.parquet.read_schema(file).names]


def wanted_parquet_rows(file: Path, selects: Wanted) -> Iterator[SourceRow]:
    """The rows of a Parquet file; columns that are not wanted are not even read."""
    names = parquet_columns(file)
    columns = [name for name in names if selects(name)]
    ignored = tuple(name for name in names if not selects(name))
    yield from parquet_rows(file, 0, None, columns, ignored=ignored)


def parquet_rows(
    file: Path,
    start: int,
    stop: int | None,
    columns: list[str] | None,
    *,
    ignored: tuple[str, ...] = (),
) -> Iterator[SourceRow]:
    """Rows [start, stop) of a Parquet file (None: to its end), of the `columns` alone where they
    are given; `ignored` are the others, where they are to be told. Raises UserError for a bomb.
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
                yield SourceRow(
                    source=file.name, row=position, values=values, reason=reason, ignored=ignored
                )
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
    ".jsonl": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}

# what a data file may be called
ENDINGS = (*READERS, *(f"{ending}{GZIP_ENDING}" for ending in READERS if ending != ".parquet"))
