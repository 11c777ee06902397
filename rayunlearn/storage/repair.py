"""A run's files made whole again, where something is left to make them of.

Only under the run's lock. What cannot be repaired stays as it is, so that a copy of the file can
still be put in its place.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import polars as pl

from rayunlearn.errors import UserError
from rayunlearn.schema import LATER_TABLES, PER_TRIAL
from rayunlearn.storage.artifact_cache import MANIFEST
from rayunlearn.storage.parquet import check_table_file, parquet_bytes, read_table_file
from rayunlearn.storage.run import TABLE_FILES, drop_trial, run_defects, scan_trials, trial_folders
from rayunlearn.storage.run_manifest import (
    DRIVER_FILES,
    OF_RUN,
    forget_files,
    manifest_text,
    read_contents,
    stored_file,
    trial_defects,
    trial_owner,
    write_run_file,
)
from rayunlearn.storage.sync import send_folder, upload_file

EVALS = "tables/evals.parquet"


Tables = Mapping[str, pl.LazyFrame]


def repair_tables(run: Path, evals_again: Callable[[Tables], pl.DataFrame]) -> list[str]:
    """Repair what can be of a run's files; what was done, a line for each.

    `evals_again`: rows of `evals` from the other tables of a run. Raises UserError where tables
    without a manifest do not fit the schema.
    """
    return [
        *_adopt_trials(run),
        *_drop_trials(run),
        *_adopt_tables(run),
        *_drop_compacted(run),
        *_rebuild_evals(run, evals_again),
        *_drop_attacks(run),
    ]


def _adopt_trials(run: Path) -> list[str]:
    """Write the manifest of trials that another version wrote without one."""
    lines = []
    for folder in trial_folders(run):
        if not (folder / MANIFEST).exists() and _is_trial(folder):
            _write_manifest(folder, trial_owner(folder.name), _tables_in(folder))
            send_folder(folder)
            lines.append(f"trials/{folder.name} had no manifest, its tables fit: it has one now")
    return lines


def _drop_trials(run: Path) -> list[str]:
    """Remove the folders of damaged trials: they are not finished any more."""
    damaged = [folder for folder in trial_folders(run) if trial_defects(folder)]
    for folder in damaged:
        drop_trial(run, folder)
    return [
        f"trials/{f.name} was removed: the next `rayunlearn run` makes it again" for f in damaged
    ]


def _adopt_tables(run: Path) -> list[str]:
    """Write the run's manifest where there is none that can be read, of what is there."""
    present = [name for name in DRIVER_FILES if (run / name).exists()]
    if not present or not isinstance(read_contents(run, OF_RUN), str):
        return []
    later = {f"tables/{table}.parquet" for table in LATER_TABLES}
    lacking = sorted({*TABLE_FILES} - {*present} - later) if {*TABLE_FILES} & {*present} else []
    if lacking:
        return [
            f"{MANIFEST} is not made: {', '.join(lacking)} of {len(TABLE_FILES)} tables missing"
        ]
    for name in present:
        if name.endswith(".parquet"):
            check_table_file(run / name)
    _write_manifest(run, OF_RUN, present)
    upload_file(run / MANIFEST)
    return [
        f"{MANIFEST} was made of the {len(present)} files that are there; nothing says any more"
        " that they are what was written"
    ]


def _drop_compacted(run: Path) -> list[str]:
    """Forget damaged tables whose rows all come from folders of trials: a compaction was killed,
    and the next one writes them again.
    """
    damaged = _damaged(run, TABLE_FILES)
    folders = {folder.name for folder in trial_folders(run)}
    ids: set[str] = set()
    whole = [name for name in TABLE_FILES if name not in damaged and (run / name).exists()]
    for name in whole:
        rows = read_table_file(run / name, lambda file: pl.read_parquet(file, columns=["trial_id"]))
        ids |= {*rows["trial_id"]}
    if not damaged or not whole or ids - folders:
        return []
    forget_files(run, damaged)
    return [f"{name} was removed: its rows are in the trials' folders" for name in damaged]


def _rebuild_evals(run: Path, evals_again: Callable[[Tables], pl.DataFrame]) -> list[str]:
    """Write compacted `evals` again from the other tables, where as many rows come out as were
    written.
    """
    if _damaged(run, TABLE_FILES) != [EVALS]:
        return []
    contents = read_contents(run, OF_RUN)
    written = None if isinstance(contents, str) else contents[EVALS][-1].rows
    frame = evals_again(scan_trials(run, without=EVALS))
    ids = {folder.name for folder in trial_folders(run)}
    frame = frame.filter(~pl.col("trial_id").is_in(list(ids)))
    if frame.height != written:
        return [f"{EVALS} is not rebuilt: {frame.height} of its {written} rows can be"]
    write_run_file(run, EVALS, parquet_bytes(frame), frame.height)
    return [f"{EVALS} was rebuilt from examples, {frame.height} rows"]


def _drop_attacks(run: Path) -> list[str]:
    """Forget a damaged table of attacks, which keeps `rayunlearn attack` from reading the run."""
    damaged = _damaged(run, ("attacks.parquet",))
    forget_files(run, damaged)
    again = "the commands `rayunlearn attack` write it again and keep their trials"
    return [f"{name} was removed: {again}" for name in damaged]


def _damaged(run: Path, names: Iterable[str]) -> list[str]:
    defects = run_defects(run)
    return [name for name in names if run / name in defects]


def _tables_in(folder: Path) -> list[str]:
    return [f"{table}.parquet" for table in PER_TRIAL if (folder / f"{table}.parquet").exists()]


def _is_trial(folder: Path) -> bool:
    """Whether a folder has every table of one trial, of which it has the name; later tables where
    it was written with them.
    """
    names = _tables_in(folder)
    try:
        for name in names:
            check_table_file(folder / name)
            rows = read_table_file(folder / name, pl.read_parquet)
            if {*rows["trial_id"]} - {folder.name}:
                return False
    except UserError:
        return False
    expected = {f"{table}.parquet" for table in PER_TRIAL if table not in LATER_TABLES}
    return expected <= {*names}


def _write_manifest(folder: Path, owner: str, names: Iterable[str]) -> None:
    stored = {}
    for name in names:
        file, rows = folder / name, None
        if name.endswith(".parquet"):
            rows = pl.scan_parquet(file, glob=False).select(pl.len()).collect().item()
        stored[name] = [stored_file(file, rows)]
    (folder / MANIFEST).write_bytes(manifest_text(owner, stored))
