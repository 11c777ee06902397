"""Write and read a run folder. A trial's folder appears in one rename, so its existence means that
the trial ended.

`trials/<trial_id>/<table>.parquet` is what a worker wrote; `tables/<table>.parquet` is the same,
compacted. Where a trial has a folder, the folder is right and its compacted rows are ignored: so
compaction may die at any point. What is written below the mirror of a URL is under the URL when the
call returns (`storage/sync.py`).
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from rayunlearn.config import Value
from rayunlearn.errors import UserError, require, unknown_name
from rayunlearn.schema import FINISHED, PER_TRIAL, column_names
from rayunlearn.storage.parquet import (
    TYPES,
    Row,
    frame_of,
    parquet_bytes,
    read_table_file,
    retry_transient,
    scan_file,
    scan_fixed_schema,
    scan_union,
    unite_frames,
    write_bytes,
    write_file_bytes,
    write_scan,
)
from rayunlearn.storage.parquet_guard import refuse_decompression_bomb
from rayunlearn.storage.sync import (
    UNSENT,
    drop_below,
    drop_folders,
    local_run,
    origin,
    send_trial,
    unsent,
    upload_file,
)

# written by the driver, one file each
RUN_TABLES = ("plan", "attacks", "corpora", "quarantine", "scores")


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
    contents = {f"{name}.parquet": parquet_bytes(frame) for name, frame in frames.items()}
    target = run / "trials" / trial_id
    retry_transient(
        f"write trial {trial_id} of {run}", partial(_write_folder, contents, target, run)
    )
    send_trial(target)
    return target


def send_unsent(run: Path) -> None:
    """Put under the run's URL the trials that ended here and did not get there; failed ones run
    again instead.
    """
    for folder in unsent(run):
        if status_of(run, folder.name) in FINISHED:
            send_trial(folder)


def write_experiment(run: Path, experiment: Mapping[str, Any]) -> None:
    """Write `experiment.json` (name, question, axes, search, budget, objective, version, planned,
    metrics).
    """
    write_bytes(
        run / "experiment.json", json.dumps(experiment, indent=1, ensure_ascii=False).encode()
    )


def forget_trials(run: Path) -> None:
    """Remove every trial of the run, here and under its URL."""
    for name in ("trials", "tables", "checkpoints"):
        drop_below(run / name)
        shutil.rmtree(run / name, ignore_errors=True)
    # written anew when the run ends; until then they may be of another schema
    for table in RUN_TABLES:
        (run / f"{table}.parquet").unlink(missing_ok=True)


def remove_scratch(run: Path) -> None:
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
    retry_transient(f"compact {run}", partial(compact_once, run))


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
        write_scan(run / "tables" / f"{table}.parquet", _scan_per_trial(run, table, folders))
        upload_file(run / "tables" / f"{table}.parquet")
    drop_folders(folders)
    for folder in folders:
        _drop_folder(folder, run)


def finished_ids(run: Path) -> dict[str, str]:
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
    return str(read_table_file(path, pl.read_parquet)["status"].item()) if path.exists() else ""


def open_run(run: Path | str, *, own_trials: bool = False) -> Run:
    """Open a run, a folder or a URL, for reading: lazy frames, nothing is loaded yet. Readable
    while it is written to.

    `own_trials`: this process wrote it, or its workers did. Of any other run the footer of every
    file is looked at first (`parquet_guard.refuse_decompression_bomb`). Raises UserError where
    there is no run, where a file was written under another schema than this one, and for a Parquet
    bomb.
    """
    path = local_run(run) if isinstance(run, str) else run
    written = [path / "trials", path / "tables", path / "plan.parquet", path / "experiment.json"]
    require(
        any(p.exists() for p in written),
        "a run is a folder with trials/, tables/, plan.parquet or experiment.json",
        str(path),
    )
    folders = _trial_folders(path)
    for file in (
        ()
        if own_trials
        else (
            *path.glob("*.parquet"),
            *path.glob("tables/*.parquet"),
            *(f for folder in folders for f in folder.glob("*.parquet")),
        )
    ):
        refuse_decompression_bomb(file)
    frames = {table: _scan_per_trial(path, table, folders) for table in PER_TRIAL}
    frames |= {table: scan_file(path / f"{table}.parquet", table) for table in RUN_TABLES}
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
            write_file_bytes(scratch / name, content)
        if origin(target) is not None:
            (scratch / UNSENT).touch()
        _put_folder(scratch, target, run)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _trial_folders(run: Path) -> list[Path]:
    return sorted(file.parent for file in run.glob("trials/*/trials.parquet"))


def _scan_per_trial(run: Path, table: str, folders: Sequence[Path]) -> pl.LazyFrame:
    """Rows of the folders, and the compacted rows of every other trial."""
    ids = pl.Series([folder.name for folder in folders], dtype=pl.String)
    compacted = run / "tables" / f"{table}.parquet"
    files = [folder / f"{table}.parquet" for folder in folders]
    if table == "trials":
        older = scan_union([compacted] if compacted.exists() else [])
        return unite_frames(
            [older.filter(~pl.col("trial_id").is_in(ids.implode())), scan_union(files)]
        )
    older = scan_file(compacted, table).filter(~pl.col("trial_id").is_in(ids.implode()))
    return pl.concat([older, scan_fixed_schema([f for f in files if f.exists()], table)])


def find_trial(trial_ids: list[str], prefix: str) -> str:
    """The one id that is `wanted` or begins with it."""
    matches = (
        [prefix]
        if prefix in trial_ids
        else sorted(name for name in trial_ids if prefix and name.startswith(prefix))
    )
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(
            f"trial {prefix!r} is not unique:"
            f" {', '.join(matches[:5])}{' ...' if len(matches) > 5 else ''}"
        )
    suggestions = get_close_matches(prefix, trial_ids, n=1, cutoff=0.3)
    raise UserError(
        f"no trial {prefix!r} among {len(trial_ids)} in this"
        f" run{f'; the nearest is {suggestions[0]!r}' if suggestions else ''}"
    )
