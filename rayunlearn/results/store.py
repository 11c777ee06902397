"""Write and read a run folder. A trial's folder appears in one rename, so its existence means that
the trial ended.

`trials/<trial_id>/<table>.parquet` is what a worker wrote; `tables/<table>.parquet` is the same,
compacted. Where a trial has a folder, the folder is right and its compacted rows are ignored: so
compaction may die at any point. What is written below the mirror of a URL is under the URL when the
call returns (`results/mirror.py`).
"""

import errno
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from rayunlearn.config import Value
from rayunlearn.errors import UserError, require, unknown_name
from rayunlearn.results.footer import refuse_a_bomb
from rayunlearn.results.mirror import (
    UNSENT,
    brought,
    drop_below,
    drop_folders,
    origin,
    send,
    send_trial,
    unsent,
)
from rayunlearn.schema import FINISHED, PER_TRIAL, TABLES, VERSION, column_names

VERSION_KEY = "rayunlearn.schema_version"
KINDS: dict[str, Any] = {"utf8": pl.String, "i64": pl.Int64, "f64": pl.Float64, "bool": pl.Boolean}
TYPES: dict[type, Any] = {str: pl.String, int: pl.Int64, float: pl.Float64, bool: pl.Boolean}
# written by the driver, one file each
WHOLE_RUN = ("plan", "attacks", "corpora", "quarantine", "scores")

# how long storage may fail (a file server that restarts) before that is an error: a trial costs
# more
PATIENCE_SECONDS = 60.0
RETRY_SECONDS = 0.5

Row = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, opened: one lazy frame per table (columns as in docs/results.md) and what the
    experiment said of itself.

    `trials` also has one column per setting (`select.ratio`, `npo.beta`, ...), null where a trial
    has no such setting.
    """

    path: Path
    trials: pl.LazyFrame
    steps: pl.LazyFrame
    evals: pl.LazyFrame
    examples: pl.LazyFrame
    coresets: pl.LazyFrame
    attributions: pl.LazyFrame
    curves: pl.LazyFrame
    plan: pl.LazyFrame
    attacks: pl.LazyFrame
    corpora: pl.LazyFrame
    quarantine: pl.LazyFrame
    scores: pl.LazyFrame
    experiment: dict[str, Any]


# ---- writing


def write_trial(
    run: Path, trial_id: str, tables: Mapping[str, Sequence[Row]], config: Mapping[str, Value]
) -> Path:
    """Write everything one trial produced and make it appear at once as `<run>/trials/<trial_id>`;
    returns that path.

    `tables` holds rows by table name; `trial_id` may be left out of a row, and a table that is left
    out is written empty. `trials` needs exactly one row; `config` (dotted name -> value) is
    appended to it as columns. An earlier folder of the same trial is moved away first, so that for
    a moment nothing is there, which reads as "not finished". Raises UserError for an unknown table
    or column, a value of the wrong type, and a full disk (nothing is left behind).
    """
    require(
        bool(re.fullmatch(r"[\w-]+", trial_id)),
        "a trial id must be letters, digits, _ and -, as it names a folder",
        trial_id,
    )
    frames = _trial_frames(trial_id, tables, config)
    contents = {f"{name}.parquet": _parquet(frame) for name, frame in frames.items()}
    target = run / "trials" / trial_id
    patiently(f"write trial {trial_id} of {run}", partial(_write_folder, contents, target, run))
    send_trial(target)
    return target


def send_unsent(run: Path) -> None:
    """Put under the run's URL the trials that ended here and did not get there; failed ones run
    again instead.
    """
    for folder in unsent(run):
        if status_of(run, folder.name) in FINISHED:
            send_trial(folder)


def write_table(path: Path, table: str, rows: Sequence[Row]) -> None:
    """Write `rows` as `table` to `path` in one rename, cast to the schema. Raises UserError as
    `write_trial` does.
    """
    write_frame(path, frame_of(table, rows))


def write_frame(path: Path, frame: pl.DataFrame) -> None:
    """Write one Parquet file, with the schema version in its metadata, in one rename."""
    write_bytes(path, _parquet(frame))


def write_experiment(run: Path, experiment: Mapping[str, Any]) -> None:
    """Write `experiment.json` (name, question, axes, search, budget, objective, version, planned,
    metrics).
    """
    write_bytes(
        run / "experiment.json", json.dumps(experiment, indent=1, ensure_ascii=False).encode()
    )


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part of it."""
    patiently(f"write {path}", partial(_write_file, path, content))
    send(path)


def forget_trials(run: Path) -> None:
    """Remove every trial of the run, here and under its URL."""
    for name in ("trials", "tables", "checkpoints"):
        drop_below(run / name)
        shutil.rmtree(run / name, ignore_errors=True)


def clean(run: Path) -> None:
    """Remove what a killed writer left half-written. Only for the one driver of a run, while no
    worker of it writes.
    """
    shutil.rmtree(run / ".tmp", ignore_errors=True)
    # half-way to or from a URL
    for leftover in (run / "trials").glob(".*-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for folder in (run, run / "tables", run / "checkpoints"):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)


def compact(run: Path) -> None:
    """`compact_once`, again where storage failed for a while."""
    patiently(f"compact {run}", partial(compact_once, run))


def compact_once(run: Path) -> None:
    """Move the rows of all trial folders into `tables/`, one file per table. Only while no worker
    is writing.

    First every table is rewritten, piece by piece (rows of a trial that has a folder come from the
    folder), then the folders are removed, each in one rename. Killed anywhere, a reader still finds
    every trial once, and the next call goes on.
    """
    folders = _trial_folders(run)
    if not folders:
        return
    for table in PER_TRIAL:
        _write_scan(run / "tables" / f"{table}.parquet", _scan_per_trial(run, table, folders))
        send(run / "tables" / f"{table}.parquet")
    drop_folders(folders)
    for folder in folders:
        _drop_folder(folder, run)


def frame_of(table: str, rows: Sequence[Row]) -> pl.DataFrame:
    """Rows as a frame with exactly the columns of `table`; a missing value is null, an unknown
    column a UserError.
    """
    if table not in TABLES:
        raise unknown_name("table", table, TABLES)
    known = column_names(table)
    for name in sorted({key for row in rows for key in row} - set(known)):
        raise unknown_name(f"column of table {table!r}", name, known)
    columns = {
        c.name: [_cast(f"{table}.{c.name}", c.kind, row.get(c.name)) for row in rows]
        for c in TABLES[table]
    }
    return pl.DataFrame(columns, schema=_schema(table))


# ---- reading


def finished(run: Path) -> dict[str, str]:
    """trial_id -> status of every trial that ended, failed ones too; empty where there is no run
    yet.
    """
    rows = (
        _scan_per_trial(run, "trials", _trial_folders(run)).select("trial_id", "status").collect()
    )
    return dict(rows.iter_rows())


def status_of(run: Path, trial_id: str) -> str:
    """How a trial ended whose folder is there, '' where none is (not ended, or compacted)."""
    path = run / "trials" / trial_id / "trials.parquet"
    return str(_read(path, pl.read_parquet)["status"].item()) if path.exists() else ""


def open_run(run: Path | str, *, own: bool = False) -> Run:
    """Open a run, a folder or a URL, for reading: lazy frames, nothing is loaded yet. Readable
    while it is written to.

    `own`: this process wrote it, or its workers did. Of any other run the footer of every file is
    looked at first (`footer`). Raises UserError where there is no run, where a file was written
    under a newer schema than this one, and for a Parquet bomb.
    """
    path = brought(run) if isinstance(run, str) else run
    written = [path / "trials", path / "tables", path / "plan.parquet", path / "experiment.json"]
    require(
        any(p.exists() for p in written),
        "a run is a folder with trials/, tables/, plan.parquet or experiment.json",
        str(path),
    )
    folders = _trial_folders(path)
    for file in (
        ()
        if own
        else (
            *path.glob("*.parquet"),
            *path.glob("tables/*.parquet"),
            *(f for folder in folders for f in folder.glob("*.parquet")),
        )
    ):
        refuse_a_bomb(file)
    frames = {table: _scan_per_trial(path, table, folders) for table in PER_TRIAL}
    frames |= {table: _scan_file(path / f"{table}.parquet", table) for table in WHOLE_RUN}
    return Run(path=path, experiment=read_experiment(path), **frames)


def read_experiment(run: Path) -> dict[str, Any]:
    """What `write_experiment` wrote; empty where there is nothing."""
    path = run / "experiment.json"
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"{path} is not readable JSON: {problem}") from problem
    require(isinstance(content, dict), f"{path} must hold a JSON object", type(content).__name__)
    return dict(content)


# ---- inside


def _trial_frames(
    trial_id: str, tables: Mapping[str, Sequence[Row]], config: Mapping[str, Value]
) -> dict[str, pl.DataFrame]:
    for name in tables:
        if name not in PER_TRIAL:
            raise unknown_name("table of a trial", name, PER_TRIAL)
    require(
        len(tables.get("trials", ())) == 1,
        "a trial writes exactly one row to 'trials'",
        len(tables.get("trials", ())),
    )
    frames = {
        name: frame_of(name, [{"trial_id": trial_id, **row} for row in tables.get(name, ())])
        for name in PER_TRIAL
    }
    for name, frame in frames.items():
        strangers = frame.filter(pl.col("trial_id") != trial_id).height
        require(
            strangers == 0,
            f"rows of {name!r} must all be of trial {trial_id}; rows of another trial",
            strangers,
        )
    return frames | {"trials": frames["trials"].with_columns(_config_columns(config))}


def _config_columns(config: Mapping[str, Value]) -> list[pl.Expr]:
    for name, value in config.items():
        require(
            name not in column_names("trials"),
            "a setting must not be named as a column of 'trials'",
            name,
        )
        require(
            type(value) in TYPES, f"{name} must be text, an integer, a number or true/false", value
        )
    return [pl.lit(value, dtype=TYPES[type(value)]).alias(name) for name, value in config.items()]


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
    return {column.name: KINDS[column.kind] for column in TABLES[table]}


def _parquet(frame: pl.DataFrame) -> bytes:
    """The file in memory first: the disk then sees one plain write, whose errors carry their
    number.
    """
    buffer = BytesIO()
    frame.write_parquet(buffer, metadata={VERSION_KEY: str(VERSION)})
    return buffer.getvalue()


def _write_bytes(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _scratch(run: Path, name: str) -> Path:
    """A new folder beside the data and on the same file system, outside everything that readers
    look at.
    """
    (run / ".tmp").mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=run / ".tmp"))


def _put_folder(scratch: Path, target: Path, run: Path) -> None:
    # mkdtemp makes it readable for its owner alone
    scratch.chmod(0o755)
    if not target.exists():
        os.replace(scratch, target)
        return
    aside = _scratch(run, f"{target.name}-old")
    os.replace(target, aside)
    try:
        os.replace(scratch, target)
    except BaseException:
        os.replace(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _drop_folder(folder: Path, run: Path) -> None:
    aside = _scratch(run, f"{folder.name}-compacted")
    os.replace(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _write_folder(contents: Mapping[str, bytes], target: Path, run: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch(run, target.name)
    try:
        for name, content in contents.items():
            _write_bytes(scratch / name, content)
        if origin(target) is not None:
            (scratch / UNSENT).touch()
        _put_folder(scratch, target, run)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _write_file(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write_bytes(temporary, content)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _write_scan(path: Path, frame: pl.LazyFrame) -> None:
    """Write a table that may be larger than memory, in one rename."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _errno_of_polars():
            frame.sink_parquet(temporary, metadata={VERSION_KEY: str(VERSION)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


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


def patiently(what: str, act: Callable[[], T]) -> T:
    """The result of `act`, tried again while the file system fails, for a minute; then, and at once
    where it is full, a UserError.

    `what` completes "could not ...". An act must be one that may be broken off anywhere and begun
    again.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return act()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                why = "the disk is full"
            elif time.monotonic() < deadline:
                time.sleep(RETRY_SECONDS)
                continue
            else:
                why = f"storage has failed for {PATIENCE_SECONDS:g} s ({error})"
            raise UserError(
                f"{why}: could not {what}; nothing half-written is left, finished trials are"
                " untouched"
            ) from error


def _trial_folders(run: Path) -> list[Path]:
    return sorted(file.parent for file in run.glob("trials/*/trials.parquet"))


def _scan_per_trial(run: Path, table: str, folders: Sequence[Path]) -> pl.LazyFrame:
    """Rows of the folders, and the compacted rows of every other trial."""
    ids = pl.Series([folder.name for folder in folders], dtype=pl.String)
    compacted = run / "tables" / f"{table}.parquet"
    files = [folder / f"{table}.parquet" for folder in folders]
    if table == "trials":
        older = _scan_union([compacted] if compacted.exists() else [])
        return _unite([older.filter(~pl.col("trial_id").is_in(ids.implode())), _scan_union(files)])
    older = _scan_file(compacted, table).filter(~pl.col("trial_id").is_in(ids.implode()))
    return pl.concat([older, _scan_fixed([f for f in files if f.exists()], table)])


def _scan_file(path: Path, table: str) -> pl.LazyFrame:
    if not path.exists():
        return pl.LazyFrame(schema=_schema(table))
    _footer(path)
    return _scan_fixed([path], table)


def _scan_fixed(files: Sequence[Path], table: str) -> pl.LazyFrame:
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


def _scan_union(files: Sequence[Path]) -> pl.LazyFrame:
    """One scan per distinct set of columns: polars refuses an extra column, and one that is int
    here and float there.
    """
    alike: dict[tuple[tuple[str, Any], ...], list[Path]] = {}
    for file in files:
        alike.setdefault(tuple(_footer(file).items()), []).append(file)
    return _unite(
        [pl.scan_parquet(paths, schema=dict(schema), glob=False) for schema, paths in alike.items()]
    )


def _unite(frames: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
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


def _footer(path: Path) -> pl.Schema:
    """Columns of a file. Raises UserError where it was written under a newer schema or is damaged."""
    metadata: dict[str, str] = _read(path, pl.read_parquet_metadata)
    version = int(metadata.get(VERSION_KEY, "0"))
    if version > VERSION:
        versions = f"schema version {version}, this rayunlearn reads up to {VERSION}"
        raise UserError(
            f"{path} was written under {versions}: update rayunlearn; nothing was changed"
        )
    return pl.Schema(_read(path, pl.read_parquet_schema))


def _read(path: Path, reader: Callable[[Path], T]) -> T:
    try:
        return reader(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as Parquet ({error}); remove it (a trial's whole folder) and"
            " run again to make it anew"
        ) from error
