"""Parquet files: atomic writes with a schema, lazy scans that unite files of several trials."""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from rayunlearn.errors import UserError, one_line, require, unknown_name
from rayunlearn.lazy import polars as pl
from rayunlearn.lazy import pyarrow
from rayunlearn.schema import TABLES, VERSION, column_names
from rayunlearn.storage.parquet_guard import footer_of, refuse_claims, unreadable_errors
from rayunlearn.storage.retry import retry
from rayunlearn.storage.sync import upload_file

VERSION_KEY = "rayunlearn.schema_version"
# a column's kind in the schema, or the type of a setting's value -> name of its type in polars
KINDS: dict[str | type, str] = {
    "utf8": "String",
    "i64": "Int64",
    "f64": "Float64",
    "bool": "Boolean",
    str: "String",
    int: "Int64",
    float: "Float64",
    bool: "Boolean",
}

# columns without which rows mean nothing
KEYS = frozenset({"trial_id", "status", "stage", "split", "metric", "doc_id", "value"})

Row = Mapping[str, Any]
T = TypeVar("T")


def write_table(path: Path, table: str, rows: Sequence[Row]) -> None:
    """Write `rows` as `table` to `path` in one rename, cast to the schema. Raises UserError as
    `write_trial` does.
    """
    write_frame(path, frame_of(table, rows))


def write_frame(path: Path, frame: pl.DataFrame) -> None:
    """Write one Parquet file, with the schema version in its metadata, in one rename."""
    write_bytes(path, parquet_bytes(frame))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part of it."""
    retry_transient(f"write {path}", partial(_write_file, path, content))
    upload_file(path)


def frame_of(table: str, rows: Sequence[Row]) -> pl.DataFrame:
    """Rows as a frame with exactly the columns of `table`; a missing value is null, an unknown
    column a UserError.
    """
    if table not in TABLES:
        raise unknown_name("table", table, TABLES)
    schema_columns = column_names(table)
    for name in sorted({key for row in rows for key in row} - set(schema_columns)):
        raise unknown_name(f"column of table {table!r}", name, schema_columns)
    columns = {
        c.name: [_cast(f"{table}.{c.name}", c.kind, row.get(c.name)) for row in rows]
        for c in TABLES[table]
    }
    return pl.DataFrame(columns, schema=_schema(table))


def _arrow_types(kind: str) -> tuple[Any, ...]:
    """The types in Arrow of a column's kind, as any writer may write them."""
    names = {
        "utf8": ("string", "large_string", "string_view"),
        "i64": ("int64",),
        "f64": ("float64",),
        "bool": ("bool_",),
    }
    return tuple(getattr(pyarrow, name)() for name in names[kind])


def data_type(kind: str | type) -> Any:
    """The type in polars of a kind of KINDS."""
    return getattr(pl, KINDS[kind])


def _cast(name: str, kind: str, value: Any) -> Any:
    """`value` as the column's kind, where that loses nothing: numpy numbers yes, "3" for 3 no."""
    if value is None:
        return None
    try:
        if kind == "f64" and not isinstance(value, (str, bool)):
            return float(value)
        if kind == "i64" and not isinstance(value, (str, bool)) and int(value) == value:
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    fits = (kind == "utf8" and isinstance(value, str)) or (
        kind == "bool" and isinstance(value, bool)
    )
    require(fits, f"{name} must be {kind}", value)
    return value


def _schema(table: str) -> dict[str, Any]:
    return {column.name: data_type(column.kind) for column in TABLES[table]}


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """The file in memory first: the disk then sees one plain write, whose errors carry their
    number.
    """
    buffer = BytesIO()
    frame.write_parquet(buffer, metadata={VERSION_KEY: str(VERSION)})
    return buffer.getvalue()


def write_file_bytes(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_file(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_file_bytes(temporary, content)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_scan(path: Path, frame: pl.LazyFrame, announce: Callable[[Path], None]) -> None:
    """Write a table that may be larger than memory, in one rename; `announce` is given the whole
    file before.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _errno_of_polars():
            frame.sink_parquet(temporary, metadata={VERSION_KEY: str(VERSION)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        announce(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


# errors of a place that will not take a file, however long one waits
PERMANENT = (
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


@contextmanager
def _errno_of_polars() -> Iterator[None]:
    """What the system said, as the OSError that it is: polars puts it into the text of errors of
    its own.
    """
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error)) from error


def retry_transient(action: str, act: Callable[[], T]) -> T:
    """`retry` while the file system fails; then, and at once where it is full or may not be
    written to, a UserError.

    `action` completes "could not ...".
    """
    try:
        return retry(
            act, is_transient=lambda error: isinstance(error, OSError) and not _lasts(error)
        )
    except OSError as error:
        why = _lasts(error) or f"storage keeps failing ({error})"
        raise UserError(
            f"{why}: could not {action}; nothing half-written is left, finished trials are"
            " untouched"
        ) from error


def _lasts(error: OSError) -> str:
    """Why waiting will not help, in words; '' where it may."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    permanent = error.errno in PERMANENT
    return f"the place cannot be written to ({error.strerror})" if permanent else ""


def scan_file(path: Path, table: str) -> pl.LazyFrame:
    if not path.exists():
        return pl.LazyFrame(schema=_schema(table))
    table_columns(path)
    return scan_fixed_schema([path], table)


def scan_fixed_schema(files: Sequence[Path], table: str) -> pl.LazyFrame:
    """One scan over many small files that all have the table's own columns (an older file may lack
    the newest).
    """
    if not files:
        return pl.LazyFrame(schema=_schema(table))
    return pl.scan_parquet(
        list(files),
        schema=_schema(table),
        missing_columns="insert",
        extra_columns="ignore",
        glob=False,
    )


def scan_union(files: Sequence[Path]) -> pl.LazyFrame:
    """One scan per distinct set of columns: polars refuses an extra column, and one that is int
    here and float there.
    """
    alike: dict[tuple[tuple[str, Any], ...], list[Path]] = {}
    for file in files:
        alike.setdefault(tuple(table_columns(file).items()), []).append(file)
    return unite_frames(
        [pl.scan_parquet(paths, schema=dict(schema), glob=False) for schema, paths in alike.items()]
    )


def unite_frames(frames: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
    """Rows of all frames under all their columns, the documented ones first; the schema of no file
    is preferred.
    """
    types: dict[str, Any] = dict(_schema("trials"))
    schemas = [frame.collect_schema() for frame in frames]
    for schema in schemas:
        for name, kind in schema.items():
            types[name] = _common(types.get(name, kind), kind)
    same = [
        frame.with_columns(_filled(schema, types)).select(list(types))
        for frame, schema in zip(frames, schemas, strict=True)
    ]
    return pl.concat([pl.LazyFrame(schema=types), *same])


def _filled(schema: pl.Schema, types: Mapping[str, Any]) -> list[pl.Expr]:
    return [
        (pl.col(name) if name in schema else pl.lit(None)).cast(kind).alias(name)
        for name, kind in types.items()
    ]


def _common(first: Any, second: Any) -> Any:
    """The type that holds both: a number for two numbers, otherwise text."""
    if first == second:
        return first
    return pl.Float64 if {first, second} <= {pl.Int64, pl.Float64} else pl.String


def table_columns(path: Path) -> pl.Schema:
    """Columns of a file. Raises UserError for another schema version and for a damaged file."""
    metadata: dict[str, str] = read_table_file(path, pl.read_parquet_metadata)
    _require_version(path, metadata.get(VERSION_KEY, "0"))
    return pl.Schema(read_table_file(path, pl.read_parquet_schema))


def check_table_file(path: Path) -> None:
    """Raise UserError for a Parquet bomb, for another schema version, and where a column of the
    table that the file is named after is of another type than the schema's, or one of `KEYS` is
    missing. (An older file may lack the newest columns.)
    """
    footer = footer_of(path)
    refuse_claims(path, footer)
    notes = footer.metadata or {}
    _require_version(path, notes.get(VERSION_KEY.encode(), b"0").decode("utf-8", "replace"))
    try:
        schema = footer.schema.to_arrow_schema()
    except unreadable_errors() as error:
        raise UserError(f"{path} could not be read as parquet: {one_line(str(error))}") from error
    for column in TABLES.get(path.stem, ()):
        if column.name not in schema.names and column.name not in KEYS:
            continue
        arrow_type = schema.field(column.name).type if column.name in schema.names else None
        rule = f"column {column.name} of {path} must be there, of type {column.kind}"
        require(arrow_type in _arrow_types(column.kind), rule, str(arrow_type))


def _require_version(path: Path, text: str) -> None:
    """Raise UserError where a footer names another schema version, or none that is a number."""
    rule = f"the schema version of {path} must be a number"
    require(text.isascii() and text.isdecimal() and len(text) < 10, rule, text)
    version = int(text)
    if version != VERSION:
        newer = f"up to {VERSION}: update rayunlearn"
        older = (
            f"{VERSION}, in which trials have other ids: run the experiment again under a new"
            " --version or --output, or read this run with the rayunlearn that wrote it"
        )
        raise UserError(
            f"{path} was written under schema version {version}, this rayunlearn reads"
            f" {newer if version > VERSION else older}; nothing was changed"
        )


def read_table_file(path: Path, reader: Callable[[Path], T]) -> T:
    """What `reader` finds in the file; a UserError for anything that it raises, panics of its Rust
    code too.
    """
    try:
        return reader(path)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({one_line(str(error))})") from error


def reader_failure(error: BaseException) -> str:
    """What a reader of tables met while rows were computed, in one line; '' for any other error.

    Rows are read late (a query runs when it is asked for its rows), so a file that changed since
    it was checked, or a column of a type that nobody expects, is met far from where it was opened.
    """
    modules = ("polars.", "pyarrow.", "pyo3_runtime")
    is_readers = any(kind.__module__.startswith(modules) for kind in type(error).__mro__)
    name = type(error).__name__
    return f"a table could not be read ({name}: {one_line(str(error))})" if is_readers else ""
