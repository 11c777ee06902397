"""`rayunlearn check RUN`: every file of a run and of its cache held against what was written."""

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn.cli.arguments import DONE, INCOMPLETE, add_command, add_run_argument
from rayunlearn.errors import UserError
from rayunlearn.storage.sync import display_path, local_run

if TYPE_CHECKING:
    import polars as pl

    from rayunlearn.storage.run import Run

# a page of a printer carries its own moment, so that it is never the same twice
REPORTS = ("html", "md", "json")


def add_check_command(commands: Any) -> None:
    """`check RUN`."""
    added = add_command(
        commands,
        "check",
        check,
        "hold every file of a run and its cache against what was written, and say what is wrong",
    )
    add_run_argument(added)
    added.add_argument(
        "--repair",
        action="store_true",
        help=(
            "make again what can be: damaged trials run again with the next `run`, evals come from"
            " examples, reports from the tables, caches when they are wanted"
        ),
    )


def check(chosen: argparse.Namespace) -> int:
    """What is wrong, a line each; with --repair what was done about it before. A folder of
    `rayunlearn evaluate` is checked too.
    """
    from rayunlearn.interop.evaluate import is_evaluation
    from rayunlearn.storage.run import require_run
    from rayunlearn.trial.load import cache_of

    run = local_run(chosen.run)
    if is_evaluation(run):
        return check_evaluation(run)
    require_run(run)
    cache = cache_of(run)
    if chosen.repair:
        for line in repair(run, cache):
            print(f"repaired: {line}")
    wrong = [*run_problems(run), *cache_problems(cache)]
    for line in wrong:
        print(line)
    files, entries = count_files(run, cache)
    counted = f"{len(wrong)} wrong" if wrong else "all as written"
    print(f"{display_path(run)}: {files} files and {entries} cache entries, {counted}")
    return INCOMPLETE if wrong else DONE


def check_evaluation(folder: Path) -> int:
    """What is wrong with the files of an evaluation, a line each; only `evaluate` writes them
    again.
    """
    from rayunlearn.interop.evaluate import EVALUATION_FILES, evaluation_defects

    wrong = evaluation_defects(folder)
    for file, words in wrong.items():
        print(f"{file} {words}")
    counted = f"{len(wrong)} wrong" if wrong else "all as written"
    print(f"{folder}: an evaluation of {len(EVALUATION_FILES)} files, {counted}")
    return INCOMPLETE if wrong else DONE


def repair(run: Path, cache: Path) -> Iterator[str]:
    """Repair what can be; what was done. Raises UserError where a driver works on the run."""
    from rayunlearn.storage.artifact_cache import damaged_entries, discard_entry
    from rayunlearn.storage.lock import run_lock
    from rayunlearn.storage.repair import repair_tables
    from rayunlearn.storage.run import run_defects
    from rayunlearn.storage.sync import pull_again
    from rayunlearn.trial.evals_from_examples import evals_again

    with run_lock(run):
        pull_again(run)
        yield from repair_tables(run, evals_again)
        if not run_defects(run):
            for form in stale_reports(run):
                yield f"{_write_report(run, form).name} was written again from the tables"
    for path, wrong in damaged_entries(cache).items():
        discard_entry(path)
        yield f"{display_path(path)} {wrong}: it is removed, and rebuilt when it is wanted"


def run_problems(run: Path) -> list[str]:
    """What is wrong with the run's own files: first the files, and only where these are whole what
    is in them.
    """
    from rayunlearn.storage.run import open_run, run_defects
    from rayunlearn.storage.run_manifest import remedy_of

    if defects := run_defects(run):
        return [f"{display_path(f)} {wrong}; {remedy_of(run, f)}" for f, wrong in defects.items()]
    try:
        opened = open_run(run)
        return [*_misfits(opened), *_stale(run)]
    except UserError as error:
        return [str(error)]


def cache_problems(cache: Path) -> list[str]:
    """What is wrong in the cache, which several runs may share; of one under a URL everything is
    brought first.
    """
    from rayunlearn.storage.artifact_cache import damaged_entries
    from rayunlearn.storage.sync import download_below

    lines = download_below(cache)
    again = "--repair removes it, and it is rebuilt when it is wanted"
    defects = damaged_entries(cache) if cache.is_dir() else {}
    return lines + [f"{display_path(f)} {wrong}; {again}" for f, wrong in defects.items()]


def stale_reports(run: Path) -> list[str]:
    """Forms of the run's reports that are not what its tables give now."""
    from rayunlearn.reporting.formats import FORMATS
    from rayunlearn.reporting.page_source import without_stamp
    from rayunlearn.storage.run import open_run

    files = {form: run / f"report.{form}" for form in REPORTS if (run / f"report.{form}").exists()}
    opened = open_run(run) if files else None
    return [
        form
        for form, file in files.items()
        if opened is not None
        and not same_report(without_stamp(file.read_bytes()), FORMATS[form](opened))
    ]


# a number as JSON and Python write it, with more digits than a table shows
LONG_NUMBER = re.compile(rb"-?\d+\.\d{6,}(?:e[+-]?\d+)?")


def same_report(written: bytes, now: bytes) -> bool:
    """Whether two reports say the same, to ten digits of every number.

    The means of a large table are summed by several threads, so that the last digit of a figure's
    point may be another each time.
    """
    if written == now:
        return True

    def shortened(match: re.Match[bytes]) -> bytes:
        return f"{float(match[0]):.10g}".encode()

    return LONG_NUMBER.sub(shortened, written) == LONG_NUMBER.sub(shortened, now)


def count_files(run: Path, cache: Path) -> tuple[int, int]:
    """Files of the run that have a manifest, and entries of the cache."""
    from rayunlearn.storage.artifact_cache import entries
    from rayunlearn.storage.run_manifest import DRIVER_FILES

    driver = [name for name in DRIVER_FILES if (run / name).exists()]
    trials = list(run.glob("trials/*/*.parquet"))
    return len(driver) + len(trials), len(entries(cache)) if cache.is_dir() else 0


def _write_report(run: Path, form: str) -> Path:
    from rayunlearn.reporting.formats import write_as

    return write_as(run, form)


def _stale(run: Path) -> list[str]:
    command = f"`rayunlearn report {display_path(run)} --format"
    return [
        f"{display_path(run / f'report.{form}')} is not what the tables give now; --repair or"
        f" {command} {form}` writes it again"
        for form in stale_reports(run)
    ]


def _misfits(run: "Run") -> list[str]:
    """What no digest says: tables that do not fit each other."""
    from rayunlearn.analysis import consistency

    tests: dict[str, Callable[[Run], pl.DataFrame]] = {
        "rows of evals that are not the mean of their examples": consistency.means_apart,
        "means of examples that evals does not have": consistency.examples_without_mean,
        "trials with more than one row": consistency.trials_doubled,
        "trials with a status that is none": consistency.statuses_unknown,
        "tables with rows of no trial": consistency.rows_of_no_trial,
    }
    misfits = {words: misfit(run) for words, misfit in tests.items()}
    return [
        f"{display_path(run.path)}: {frame.height} {words}, the first is {frame.row(0, named=True)}"
        for words, frame in misfits.items()
        if frame.height
    ]
