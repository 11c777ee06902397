"""What was measured on further probe sets: by hand, on the terminal and on the page."""

from io import StringIO
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from rayunlearn.analysis.probe_sets import further_sets, probe_set_table
from rayunlearn.reporting.console import print_probe_sets
from rayunlearn.reporting.html import write_report
from rayunlearn.storage.run import Run, open_run, write_experiment, write_run_table
from tests import synthetic


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Base, and a trial that took near with it and not far."""
    base = synthetic.add_trial(
        tmp_path,
        {"stage": "base"},
        {"forget": 0.9, "retain": 0.9, "untouched": 0.8, "near": 0.8, "far": 0.7},
    )
    other = synthetic.add_trial(
        tmp_path,
        {},
        {"forget": 0.4, "retain": 0.9, "untouched": 0.8, "near": 0.3, "far": 0.7},
    )
    rows = [synthetic.plan_row(base, "base", "{}"), synthetic.plan_row(other, "grid", "{}")]
    write_run_table(tmp_path, "plan", rows)
    write_experiment(tmp_path, synthetic.EXPERIMENT)
    return open_run(tmp_path).in_memory()


def test_each_cell_has_the_mean_of_each_further_set(run: Run) -> None:
    assert further_sets(run) == ["far", "near"]
    table = probe_set_table(run)
    assert table.select("split", "role").rows() == [
        ("far", "base"),
        ("far", "grid"),
        ("near", "base"),
        ("near", "grid"),
    ]
    for row in table.iter_rows(named=True):
        stage = "base" if row["role"] == "base" else "unlearned"
        examples = run.examples.filter(
            pl.col("split") == row["split"],
            pl.col("metric") == "probability",
            pl.col("stage") == stage,
        ).collect()
        assert row["value"] == pytest.approx(examples["value"].mean())
        assert row["value_low"] < row["value"] < row["value_high"]
        assert row["n_documents"] == examples.height and row["metric"] == "probability"


def test_terminal_and_report_show_the_sets_and_nothing_without_them(
    run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    written = StringIO()
    print_probe_sets(run, Console(file=written, width=160))
    assert "Further probe sets" in written.getvalue()
    assert "near" in written.getvalue() and "npo + nll" in written.getvalue()
    page = write_report(run.path, None).read_text()
    assert "Further probe sets" in page
    plain = open_run(synthetic.write_run(tmp_path_factory.mktemp("plain"))).in_memory()
    assert probe_set_table(plain).is_empty()
    nothing = StringIO()
    print_probe_sets(plain, Console(file=nothing))
    assert nothing.getvalue() == ""


def test_a_set_that_is_the_constraint_s_has_its_column_and_no_second_one(run: Run) -> None:
    objective = synthetic.EXPERIMENT["objective"] | {"utility_split": "near"}
    write_experiment(run.path, synthetic.EXPERIMENT | {"objective": objective})
    assert further_sets(open_run(run.path)) == ["far"]


def test_a_control_is_named_with_what_it_controls(tmp_path: Path) -> None:
    values = {"forget": 0.9, "retain": 0.9, "untouched": 0.8, "near": 0.8}
    base = synthetic.add_trial(tmp_path, {"stage": "base"}, values)
    grid = synthetic.add_trial(tmp_path, {}, values | {"near": 0.3})
    control = synthetic.add_trial(tmp_path, {"method.forget": "none"}, values)
    group = '{"method.forget": "npo", "method.retain": "nll"}'
    roles = ((base, "base"), (grid, "grid"), (control, "control"))
    write_run_table(tmp_path, "plan", [synthetic.plan_row(t, role, group) for t, role in roles])
    write_experiment(tmp_path, synthetic.EXPERIMENT)
    written = StringIO()
    print_probe_sets(open_run(tmp_path), Console(file=written, width=160))
    assert "(npo)" in written.getvalue()
