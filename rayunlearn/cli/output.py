"""What a command prints at its end: tables, the conclusion, the exit code."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rayunlearn.cli.arguments import DONE, INCOMPLETE, INTERRUPTED, TERMINATED
from rayunlearn.errors import require
from rayunlearn.storage.sync import display_path

if TYPE_CHECKING:
    from rich.console import Console

    from rayunlearn.cluster.sweep import SweepResult
    from rayunlearn.storage.run import Run


@dataclass
class SigtermRecord:
    """Whether a command was ended by SIGTERM."""

    received: bool = False

    @property
    def status(self) -> int:
        """The exit status of a command that was interrupted: 143 by SIGTERM, 130 by Ctrl-C."""
        return TERMINATED if self.received else INTERRUPTED


@contextmanager
def sigterm_as_interrupt() -> Iterator[SigtermRecord]:
    """Let SIGTERM end a command as Ctrl-C does: `ray job stop`, `timeout`, a batch system at its
    time limit and a machine that is taken back send it. Later ones, while the run is closed, change
    nothing.
    """
    record = SigtermRecord()

    def handle(_number: int, _frame: FrameType | None) -> None:
        if record.received:
            return
        record.received = True
        # a shell starts what runs in the background with Ctrl-C ignored, which SIGTERM is not
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    if threading.current_thread() is not threading.main_thread():
        yield record
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield record
    finally:
        signal.signal(signal.SIGTERM, before)


def print_conclusion(result: "SweepResult", words: Sequence[str], console: "Console") -> int:
    """Print how a sweep ended; returns the exit status."""
    for line in exit_code(result, words):
        console.print(line, highlight=False, soft_wrap=True)
    if result.interrupted:
        return INTERRUPTED
    return DONE if result.done == result.total else INCOMPLETE


def exit_code(result: "SweepResult", words: Sequence[str]) -> list[str]:
    """What is done, what is not, and how to go on."""
    counts = ", ".join(f"{count} {status}" for status, count in sorted(result.statuses.items()))
    lines = [
        f"{result.done} of {result.total} trials are done ({result.ran} in this call,"
        f" {result.seconds:.0f} s){': ' + counts if counts else ''}"
    ]
    remaining = result.total - result.done
    if result.interrupted:
        lines.insert(0, "stopped before the end; every trial that had finished is kept")
    if remaining:
        lines.append(
            f"{remaining} of {result.total} trials are not done; resume with: {shlex.join(words)}"
        )
    return lines


def require_writable(folder: Path, hint: str) -> None:
    """Raise UserError at once where nothing can be written in a folder that is there, or is to be
    made.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    require(existing.is_dir(), f"{display_path(folder)} must be a folder; a file is", str(existing))
    rule = f"{display_path(folder)} must be writable ({hint}); it is"
    require(os.access(existing, os.W_OK), rule, "read-only")


def print_any_text() -> None:
    """Let a terminal or log that knows few characters show the others as escapes (PYTHONIOENCODING
    or a locale of ASCII): no text ends a command.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_what_now(folder: Path, console: "Console") -> None:
    """The last three lines of a run: the best of each method, where the report is, what to do
    next.
    """
    for line in what_now(folder):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def what_now(folder: Path) -> list[str]:
    """The best cell of each method (the first of those that keep the utility floor, in the order
    that the objective gives), the report, and the next commands.
    """
    import polars as pl

    from rayunlearn.analysis.baselines import objective_of
    from rayunlearn.analysis.coreset_table import coreset_table, whole_document_cells
    from rayunlearn.analysis.labels import format_mean, format_percent
    from rayunlearn.storage.run import open_run

    run = open_run(folder).in_memory()
    goal, table = objective_of(run.experiment), coreset_table(run)
    base = table.filter(pl.col("role") == "base")["utility"].min()
    floor = goal.utility_floor * base if isinstance(base, float) else 0.0
    grid = table.filter(pl.col("role") == "grid").drop_nulls(["objective", "utility"])
    grid = whole_document_cells(grid)
    grid = grid.with_columns((pl.col("utility") < floor).alias("is_low"))
    grid = grid.sort("is_low", "objective", maintain_order=True)
    best = [
        f"{row['method']} {format_mean(row['forgetting'])} at {format_percent(row['select.ratio'])}"
        f" ({row['select.name']}; {goal.utility_split} {format_mean(row['utility'])}"
        f"{', below the floor' if row['is_low'] else ''})"
        for row in grid.unique("method", keep="first", maintain_order=True).iter_rows(named=True)
    ]
    run_path = display_path(folder)
    metric = f"{goal.forgetting} on forget"
    lines = [f"best per method, {metric}: {'; '.join(best)}"] if best else []
    return [
        *lines,
        f"report: {named_trials(folder / 'report.html')}",
        f"next: rayunlearn attack {run_path} (is it gone?), rayunlearn frontier {run_path} (how"
        " little is enough?)",
    ]


# characters of a table that goes to a file or a log: all columns fit
PIPED_WIDTH = 190


def console_for_output() -> "Console":
    from rich.console import Console

    wide = Console()
    return wide if wide.is_terminal else Console(width=max(wide.width, PIPED_WIDTH))


def print_table(folder: Path, console: "Console", file: Path | None = None) -> None:
    """Print what a run found and write its report, to `file` or into the run; a report that would
    be drawn the same again stays as it is.
    """
    from rayunlearn.analysis.coreset_table import coreset_table
    from rayunlearn.reporting.console import (
        print_attribution,
        print_baselines,
        print_coreset_table,
        print_probe_sets,
        print_ranking,
        print_retain_choice,
        print_robustness,
        print_warnings,
        summary_lines,
    )
    from rayunlearn.storage.run import open_run

    opened = open_run(folder).in_memory()
    page = _report_of(opened, file or folder / "report.html")
    table = coreset_table(opened)
    print_coreset_table(table, console, experiment=opened.experiment)
    print_warnings(opened, table, console)
    print_probe_sets(opened, console)
    print_ranking(opened, console)
    print_baselines(opened, console)
    print_attribution(opened, console)
    print_robustness(opened, console)
    print_retain_choice(opened, console)
    for line in (*summary_lines(opened), f"report: {named_trials(page)}"):
        console.print(line, highlight=False, soft_wrap=True)


def _report_of(run: "Run", page: Path) -> Path:
    """The run's report, drawn where it is not there as it would be drawn now."""
    from rayunlearn.reporting.page_source import is_drawn_from, page_source

    if is_drawn_from(page, page_source(run)):
        return page
    # loads what draws
    from rayunlearn.reporting.html import write_page

    return write_page(run, page)


def named_trials(page: Path) -> str:
    """Where a page is, and, of one under a URL, where it can be opened here."""
    return str(page) if display_path(page) == str(page) else f"{display_path(page)} (here: {page})"
