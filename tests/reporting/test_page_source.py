"""A page that would be drawn the same again stays as it is, and no other."""

import os
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from rayunlearn.cli.check import stale_reports
from rayunlearn.cli.output import print_table
from rayunlearn.reporting import page_source
from rayunlearn.reporting.html import page
from rayunlearn.storage.run import compact, open_run, read_experiment, write_experiment
from tests import synthetic


def is_drawn(run: Path) -> bool:
    """Print the run as `run` and `report` do; whether its page was written then."""
    report = run / "report.html"
    os.utime(report, ns=(0, 0))
    print_table(run, Console(file=StringIO(), width=200))
    return report.stat().st_mtime_ns > 0


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose tables are joined, with its report."""
    folder = synthetic.write_run(tmp_path / "run")
    compact(folder)
    print_table(folder, Console(file=StringIO(), width=200))
    return folder


def test_a_page_whose_tables_did_not_change_is_not_drawn_again(run: Path) -> None:
    before = (run / "report.html").read_bytes()
    assert not is_drawn(run)
    write_experiment(run, read_experiment(run) | {"seconds_used": 12.5})
    assert not is_drawn(run)
    assert (run / "report.html").read_bytes() == before
    assert page_source.without_stamp(before) == page(open_run(run)).encode()
    assert stale_reports(run) == []


def test_a_page_is_drawn_again_where_a_trial_the_experiment_or_the_page_itself_changed(
    run: Path,
) -> None:
    synthetic.add_trial(run, {"train.seed": 77}, {"forget": 0.5, "retain": 0.9}, coverage=None)
    # rows of a trial's own folder are in no table that the manifest names
    assert is_drawn(run) and is_drawn(run)
    compact(run)
    assert is_drawn(run) and not is_drawn(run)
    write_experiment(run, read_experiment(run) | {"question": "Another question?"})
    assert is_drawn(run) and "Another question?" in (run / "report.html").read_text()
    report = run / "report.html"
    report.write_text(report.read_text().replace("Another question?", "A wrong one?"))
    assert stale_reports(run) == ["html"]
    assert is_drawn(run) and "Another question?" in report.read_text()


@pytest.mark.parametrize("name", ["package_digest", "version_of"])
def test_a_page_of_other_code_or_libraries_is_drawn_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(page_source, name, lambda *_: "another")
    assert is_drawn(run) and not is_drawn(run)
