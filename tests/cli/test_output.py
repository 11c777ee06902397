"""How a command ends: its last lines, and when it is told to."""

import signal
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from rayunlearn.analysis.coreset_table import coreset_table
from rayunlearn.analysis.labels import format_mean
from rayunlearn.cli.output import sigterm_as_interrupt, what_now
from rayunlearn.storage.run import open_run

RUN = Path(__file__).parents[2] / "docs" / "notebooks" / "runs" / "coreset"


def test_a_run_ends_with_the_best_of_each_method_the_report_and_what_to_do_next() -> None:
    """The best is the cell nearest to the objective's target: both methods keep the floor here."""
    best, report, after = what_now(RUN)
    grid = coreset_table(open_run(RUN)).filter(pl.col("role") == "grid")
    for method, cells in grid.group_by("method"):
        nearest = cells.sort("objective").row(0, named=True)
        assert f"{method[0]} {format_mean(nearest['forgetting'])} at" in best
    assert best.startswith("best per method, probability on forget: ") and "floor" not in best
    assert report == f"report: {RUN / 'report.html'}"
    assert after.startswith("next: rayunlearn attack") and str(RUN) in after


@pytest.fixture
def ignored_interrupt() -> Iterator[None]:
    """Ctrl-C ignored, as a shell starts what runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ignored_interrupt")
def test_sigterm_ends_a_command_that_a_shell_started_in_the_background() -> None:
    """`nohup rayunlearn run ... &` in a script: SIGINT is ignored there, and SIGTERM still ends."""
    with pytest.raises(KeyboardInterrupt), sigterm_as_interrupt() as record:
        signal.raise_signal(signal.SIGTERM)
    assert record.received
