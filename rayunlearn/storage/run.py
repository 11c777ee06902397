"""Write and read a run folder. A trial's folder appears in one rename, so its existence means that
the trial ended.

`trials/<trial_id>/<table>.parquet` is what a worker wrote; `tables/<table>.parquet` is the same,
compacted. Where a trial has a folder, the folder is right and its compacted rows are ignored: so
compaction may die at any point. What is read is held against the manifests first
(`storage/run_manifest.py`). What is written below the mirror of a URL is under the URL when the
call returns (`storage/sync.py`).
"""

import json
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from rayunlearn.config import Objective, Value
from rayunlearn.errors import UserError, require, unknown_name
from rayunlearn.schema import (
    FINISHED,
    LATER_TABLES,
    PAUSED,
    PER_TRIAL,
    PRUNED,
    RUN_TABLES,
    column_names,
)
from rayunlearn.storage.artifact_cache import MANIFEST
from rayunlearn.storage.parquet import (
    KINDS,
    Row,
    check_table_file,
    data_type,
    frame_of,
    parquet_bytes,
    read_table_file,
    retry_transient,
    scan_file,
    scan_fixed_schema,
    scan_union,
    table_columns,
    unite_frames,
    write_file_bytes,
    write_scan,
)
from rayunlearn.storage.run_manifest import (
    DRIVER_FILES,
    EXPERIMENT,
    DamagedRunError,
    announce_file,
    manifest_text,
    require_whole_files,
    settle_files,
    stored_bytes,
    stored_file,
    trial_defects,
    trial_owner,
    write_run_file,
)
from rayunlearn.storage.sync import (
    UNSENT,
    display_path,
    drop_below,
    drop_files,
    drop_folders,
    local_run,
    origin,
    send_trial,
    unsent,
    upload_file,
)

# times that a reader looks again at a run that changes while it is checked
LOOKS = 20


# of the Parquet files of one table, which take some ten times as much when they are read
IN_MEMORY_BYTES = 32 * 2**20
TABLE_FILES = tuple(f"tables/{table}.parquet" for table in PER_TRIAL)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, opened by `open_run`: one lazy frame per table, whose columns docs/results.md
    describes, and what the experiment said of itself.

    Args:
        path: folder of the run.
        trials: a row per ended trial, with a column per setting (`select.ratio`, `npo.beta`, ...)
            that is null where a trial has no such setting.
        steps: losses and gradient norms per optimizer step.
        evals: mean of every metric per trial, stage and split.
        examples: value of every metric per document.
        generations: what models wrote: prompt, reference and text per document.
        coresets: documents that a trial kept, by rank and score.
        attributions: contributions of tokens to answers.
        diagnostics: what weights and hidden states tell of each block.
        curves: metrics along steps of unlearning or of an attack, or a path between weights.
        plan: role and group of every trial that was planned.
        attacks: which trial attacks which, and how.
        corpora: the corpora that trials used.
        quarantine: documents that were rejected, and why.
        scores: scores of documents that selectors used.
        experiment: what experiment.json holds: name, question, objective, metrics.
        computed: what `analysis` has computed of tables that are in memory, so that it is computed
            once; None where the tables are files, which may change.

    Example:
        >>> run = open_run("docs/notebooks/runs/coreset")
        >>> run.trials.select("trial_id", "status").collect().height
        32
    """

    path: Path
    trials: pl.LazyFrame
    steps: pl.LazyFrame
    evals: pl.LazyFrame
    examples: pl.LazyFrame
    generations: pl.LazyFrame
    coresets: pl.LazyFrame
    attributions: pl.LazyFrame
    curves: pl.LazyFrame
    diagnostics: pl.LazyFrame
    plan: pl.LazyFrame
    attacks: pl.LazyFrame
    corpora: pl.LazyFrame
    quarantine: pl.LazyFrame
    scores: pl.LazyFrame
    experiment: dict[str, Any]
    computed: dict[tuple[Any, ...], Any] | None = field(default=None, repr=False, compare=False)

    def in_memory(self) -> "Run":
        """The same run, its small tables read now and once. A report asks them hundreds of times,
        and would else open the files of every trial as often.

        Returns:
            Lazy frames again: over what was read for tables whose files take at most
            `IN_MEMORY_BYTES`, over the files for larger ones.

        Example:
            >>> run = open_run("docs/notebooks/runs/coreset").in_memory()
            >>> run.trials.collect().height
            32
        """
        small = {
            table: getattr(self, table).collect().lazy()
            for table in (*PER_TRIAL, *RUN_TABLES)
            if _table_bytes(self.path, table) <= IN_MEMORY_BYTES
        }
        return replace(self, **small, computed={})

    def __repr__(self) -> str:
        ended = self.trials.select(pl.len()).collect().item()
        planned = self.experiment.get("planned", "?")
        question = str(self.experiment.get("question", "")).partition("\n")[0]
        return f"<Run {display_path(self.path)}: {ended} of {planned} trials. {question}>"


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
    return _write_frames(run, trial_id, _trial_frames(trial_id, tables, config))


def _write_frames(run: Path, trial_id: str, frames: Mapping[str, pl.DataFrame]) -> Path:
    """Make a trial's tables appear at once as its folder."""
    contents = {f"{name}.parquet": parquet_bytes(frame) for name, frame in frames.items()}
    stored = {
        f"{name}.parquet": [stored_bytes(contents[f"{name}.parquet"], frame.height)]
        for name, frame in frames.items()
    }
    contents[MANIFEST] = manifest_text(trial_owner(trial_id), stored)
    target = run / "trials" / trial_id
    retry_transient(
        f"write trial {trial_id} of {run}", partial(_write_folder, contents, target, run)
    )
    send_trial(target)
    return target


def send_unsent(run: Path) -> None:
    """Put under the run's URL the trials that ended here and did not get there; failed ones run
    again instead, and so do damaged ones, which are removed with one line of warning.
    """
    for folder in unsent(run):
        if defects := trial_defects(folder):
            file, wrong = next(iter(defects.items()))
            words = f"{wrong}; it was not sent yet and is removed: `rayunlearn run` runs it again"
            logging.getLogger("rayunlearn.run").warning("%s %s", display_path(file), words)
            _drop_folder(folder, run)
        elif status_of(run, folder.name) in (*FINISHED, PAUSED, PRUNED):
            send_trial(folder)


def write_experiment(run: Path, experiment: Mapping[str, Any]) -> None:
    """Write `experiment.json` (name, question, axes, search, budget, objective, version, planned,
    metrics).
    """
    content = json.dumps(experiment, indent=1, ensure_ascii=False)
    write_run_file(run, EXPERIMENT, content.encode())


def write_run_table(run: Path, table: str, rows: Sequence[Row]) -> None:
    """Write a table of the driver (`RUN_TABLES`) in one rename. Raises UserError as `write_trial`
    does.
    """
    write_run_frame(run, table, frame_of(table, rows))


def write_run_frame(run: Path, table: str, frame: pl.DataFrame) -> None:
    """`write_run_table` for rows that are a frame already."""
    if table not in RUN_TABLES:
        raise unknown_name("table of a run", table, RUN_TABLES)
    write_run_file(run, f"{table}.parquet", parquet_bytes(frame), frame.height)


def forget_trials(run: Path) -> None:
    """Remove every trial of the run, here and under its URL."""
    for name in ("trials", "tables", "checkpoints"):
        drop_below(run / name)
        shutil.rmtree(run / name, ignore_errors=True)
    # the manifest first: what it does not name is removed again by the next call
    files = [run / name for name in (MANIFEST, *DRIVER_FILES)]
    drop_files(files)
    for file in files:
        file.unlink(missing_ok=True)


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
    every trial once, and the next call goes on. Raises DamagedRunError, and writes nothing, where
    a file is not what was written: its rows would get a digest of their own.
    """
    folders = trial_folders(run)
    if not folders:
        return
    require_whole_files(run, folders, TABLE_FILES)
    for table, name in zip(PER_TRIAL, TABLE_FILES, strict=True):
        write_scan(
            run / name, _scan_per_trial(run, table, folders), partial(_announce_table, run, name)
        )
        upload_file(run / name)
    settle_files(run, TABLE_FILES)
    drop_folders(folders)
    for folder in folders:
        _drop_folder(folder, run)


def finished_ids(run: Path) -> dict[str, str]:
    """trial_id -> status of every trial that ended, failed ones too; empty where there is no run
    yet.

    Args:
        run: folder of the run.

    Returns:
        Status by trial id.

    Example:
        >>> statuses = finished_ids(Path("docs/notebooks/runs/coreset"))
        >>> sorted(set(statuses.values()))
        ['collapsed', 'complete']
    """
    rows = scan_trials(run)["trials"].select("trial_id", "status").collect()
    return dict(rows.iter_rows())


def status_of(run: Path, trial_id: str) -> str:
    """How a trial ended whose folder is there, '' where none is (not ended, or compacted). Raises
    DamagedRunError where its files are not what was written.
    """
    folder = run / "trials" / trial_id
    path = folder / "trials.parquet"
    if not path.exists():
        return ""
    if wrong := trial_defects(folder):
        raise DamagedRunError(run, wrong)
    return str(read_table_file(path, pl.read_parquet)["status"].item())


def rung_of(run: Path, trial_id: str) -> float:
    """The share of its steps at which a trial stopped whose folder is there."""
    row = read_table_file(run / "trials" / trial_id / "trials.parquet", pl.read_parquet)
    return float(row["rung"].item())


def end_as_pruned(run: Path, trial_id: str) -> None:
    """Let a trial that waits at a rung have ended there: its row says `pruned`, and what it would
    have gone on from is removed.
    """
    tables = scan_trials(run)
    frames = {
        name: frame.filter(pl.col("trial_id") == trial_id).collect()
        for name, frame in tables.items()
    }
    # other trials' settings, which this one does not have
    trials = frames["trials"]
    empty = [name for name in trials.columns if trials[name].null_count() == trials.height]
    columns = set(empty) - set(column_names("trials"))
    pruned = trials.drop(columns).with_columns(pl.lit(PRUNED).alias("status"))
    _write_frames(run, trial_id, frames | {"trials": pruned})
    checkpoint = run / "checkpoints" / f"{trial_id}.safetensors"
    retry_transient(f"remove {checkpoint}", partial(checkpoint.unlink, missing_ok=True))
    shutil.rmtree(run / "adapters" / trial_id, ignore_errors=True)


def remove_checkpoints(run: Path, trial_ids: Collection[str]) -> None:
    """Remove what these trials, which have ended, would have gone on from. A process that was
    killed after it had written a trial's last row has left it there.
    """
    for checkpoint in (run / "checkpoints").glob("*.safetensors"):
        if checkpoint.stem in trial_ids:
            retry_transient(f"remove {checkpoint}", partial(checkpoint.unlink, missing_ok=True))


def scan_trials(run: Path, *, without: str = "") -> dict[str, pl.LazyFrame]:
    """The tables that trials write, by name, for the driver of the run: what it writes itself is
    not looked at, nor the file `without`. Raises DamagedRunError where a file is not what was
    written.
    """
    folders = _whole_folders(run, [name for name in TABLE_FILES if name != without])
    return {table: _scan_per_trial(run, table, folders) for table in PER_TRIAL}


def scan_driver_table(run: Path, table: str) -> pl.LazyFrame:
    """One of the driver's tables, for the driver itself; nothing else is looked at. Raises
    DamagedRunError where it is not what was written.
    """
    require_whole_files(run, (), (f"{table}.parquet",))
    return scan_file(run / f"{table}.parquet", table)


def open_run(run: Path | str) -> Run:
    """Open a run, a folder or a URL, for reading: lazy frames, nothing is loaded yet. Readable
    while it is written to.

    Every file is held against the manifest that was written with it, and its footer is looked at
    (`parquet.check_table_file`). Raises UserError where there is no run, where a file is missing
    or is not what was written (DamagedRunError), where it was written under another schema than
    this one, and for a Parquet bomb.

    Args:
        run: folder or URL, for example `runs/hello/1`.

    Returns:
        One lazy frame per table, and the experiment as it was written.

    Example:
        >>> run = open_run("docs/notebooks/runs/coreset")
        >>> run.trials.collect().height
        32
    """
    path = local_run(run) if isinstance(run, str) else run
    require_run(path)
    folders = _whole_folders(path, DRIVER_FILES)
    for folder in (path, path / "tables", *folders):
        for file in folder.glob("*.parquet"):
            check_table_file(file)
    frames = {table: _scan_per_trial(path, table, folders) for table in PER_TRIAL}
    frames |= {table: scan_file(path / f"{table}.parquet", table) for table in RUN_TABLES}
    return Run(path=path, experiment=read_experiment(path), computed=None, **frames)


def _table_bytes(run: Path, table: str) -> int:
    """Bytes of all files of a table."""
    places = (f"trials/*/{table}.parquet", f"tables/{table}.parquet", f"{table}.parquet")
    return sum(file.stat().st_size for place in places for file in run.glob(place))


def require_run(path: Path) -> None:
    """Raise UserError where there is no run."""
    written = [path / "trials", path / "tables", path / "plan.parquet", path / EXPERIMENT]
    runs = sorted(file.parent for file in path.glob(f"*/{EXPERIMENT}"))
    meant = f" (did you mean {display_path(runs[-1])}?)" if runs else ""
    rule = f"a run is a folder with trials/, tables/, plan.parquet or {EXPERIMENT}{meant}"
    require(any(p.exists() for p in written), rule, str(path))


def read_experiment(run: Path) -> dict[str, Any]:
    """What `write_experiment` wrote; empty where there is nothing."""
    path = run / EXPERIMENT
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"{path} is not readable JSON: {problem}") from problem
    require(isinstance(content, dict), f"{path} must hold a JSON object", type(content).__name__)
    for name, fits in PARTS_OF_EXPERIMENT_FILE.items():
        require(
            name not in content or fits(content[name]),
            f"{path} does not fit: {name} must be as `rayunlearn run` writes it",
            content.get(name),
        )
    return dict(content)


def experiment_of_run(run: Run) -> dict[str, Any]:
    """What the experiment said of itself. Raises UserError for a run that has no experiment.json,
    or one without the parts that planning needs.
    """
    lacking = sorted({"name", "question", "search", "objective", "version"} - {*run.experiment})
    require(
        not lacking,
        f"{display_path(run.path / EXPERIMENT)} must be there with these parts (`rayunlearn run`"
        " writes it when it begins); it lacks",
        lacking,
    )
    return run.experiment


def _is_objective(value: Any) -> bool:
    """Whether an objective can be made of it."""
    try:
        Objective(**value)
    except (TypeError, ValueError):
        return False
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _are_objects(value: Any) -> bool:
    """Whether it is a list of objects that have a name."""
    return isinstance(value, list) and all(
        isinstance(row, dict) and isinstance(row.get("name"), str) for row in value
    )


# part of experiment.json -> whether a value can be one; what else there is, nobody reads
PARTS_OF_EXPERIMENT_FILE: Mapping[str, Callable[[Any], bool]] = {
    "name": _is_text,
    "question": _is_text,
    "version": _is_text,
    "axes": lambda value: isinstance(value, (dict, list)),
    "search": _is_mapping,
    "budget": _is_mapping,
    "objective": _is_objective,
    "planned": lambda value: isinstance(value, int),
    "metrics": _are_objects,
    "private": lambda value: isinstance(value, bool),
    "notes": lambda value: isinstance(value, list) and all(map(_is_text, value)),
}


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
            type(value) in KINDS, f"{name} must be text, an integer, a number or true/false", value
        )
    return [
        pl.lit(value, dtype=data_type(type(value))).alias(name) for name, value in config.items()
    ]


def _scratch(run: Path, name: str) -> Path:
    """A new folder beside the data and on the same file system, outside everything that readers
    look at.
    """
    (run / ".tmp").mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=run / ".tmp"))


def _put_folder(scratch: Path, target: Path, run: Path) -> None:
    # mkdtemp makes it readable for its owner alone; the folder that it is in is as the umask says
    scratch.chmod(stat.S_IMODE(scratch.parent.stat().st_mode))
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


def _announce_table(run: Path, name: str, file: Path) -> None:
    """Say what a compacted table holds, before it is renamed into place."""
    rows = pl.scan_parquet(file, glob=False).select(pl.len()).collect().item()
    announce_file(run, name, stored_file(file, rows))


def run_defects(run: Path) -> dict[Path, str]:
    """The files of a run that are not what was written: file -> what is wrong with it, in words."""
    try:
        _whole_folders(run, DRIVER_FILES)
    except DamagedRunError as error:
        return error.defects
    return {}


def drop_trial(run: Path, folder: Path) -> None:
    """Remove the folder of a trial, here and under the URL: it has not ended any more."""
    drop_folders([folder])
    _drop_folder(folder, run)


def _whole_folders(run: Path, names: Collection[str]) -> list[Path]:
    """The folders of trials, after they and the driver's files of these names were held against
    their manifests.

    Raises DamagedRunError where one is not what was written. A run that another process writes to
    meanwhile is looked at again.
    """
    for _ in range(LOOKS):
        before, folders = _state_of(run), trial_folders(run)
        try:
            require_whole_files(run, folders, names)
        except DamagedRunError as error:
            if _state_of(run) != before:
                continue
            _refuse_other_schema(error)
            raise
        return folders
    raise UserError(f"{display_path(run)} changes faster than it can be read; try again")


def _refuse_other_schema(error: DamagedRunError) -> None:
    """Raise UserError where a manifest is missing because another version wrote the tables."""
    for manifest in error.defects:
        if manifest.name == MANIFEST and not manifest.exists():
            for file in sorted(manifest.parent.glob("**/*.parquet"))[:1]:
                table_columns(file)


def _state_of(run: Path) -> tuple[Any, ...]:
    """What changes when a file of the run is written: its manifest, and the folders of trials."""
    manifest = run / MANIFEST
    return (
        manifest.stat().st_mtime_ns if manifest.exists() else 0,
        tuple((folder.name, folder.stat().st_ino) for folder in trial_folders(run)),
    )


def trial_folders(run: Path) -> list[Path]:
    """The folders of trials that ended and are not compacted, whole or not; sorted."""
    folders = {
        f.parent for name in (MANIFEST, "trials.parquet") for f in run.glob(f"trials/*/{name}")
    }
    return sorted(folder for folder in folders if not folder.name.startswith("."))


def _scan_per_trial(run: Path, table: str, folders: Sequence[Path]) -> pl.LazyFrame:
    """Rows of the folders, and the compacted rows of every other trial."""
    ids = pl.Series([folder.name for folder in folders], dtype=pl.String)
    compacted = run / "tables" / f"{table}.parquet"
    files = [folder / f"{table}.parquet" for folder in folders]
    if table in LATER_TABLES:
        files = [file for file in files if file.exists()]
    if table == "trials":
        older = scan_union([compacted] if compacted.exists() else [])
        return unite_frames(
            [older.filter(~pl.col("trial_id").is_in(ids.implode())), scan_union(files)]
        )
    older = scan_file(compacted, table).filter(~pl.col("trial_id").is_in(ids.implode()))
    return pl.concat([older, scan_fixed_schema(files, table)])


def find_trial(trial_ids: list[str], prefix: str) -> str:
    """The one id that is `wanted` or begins with it.

    Args:
        trial_ids: all ids of a run.
        prefix: an id, or the beginning of exactly one.

    Returns:
        The whole id.

    Raises:
        UserError: no id begins with it, or several do.

    Example:
        >>> find_trial(["3f2a90", "77b01c"], "77")
        '77b01c'
    """
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
