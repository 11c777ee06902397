"""The page, the terminal and docs/results.md: complete, escaped,
and the same numbers everywhere.
"""

import json
import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from rayunlearn.analysis.coreset_table import coreset_table
from rayunlearn.analysis.labels import format_mean, format_percent
from rayunlearn.analysis.pareto import pareto_front
from rayunlearn.analysis.run_frames import trial_table
from rayunlearn.cli.docs_results import results_page
from rayunlearn.errors import UserError
from rayunlearn.reporting import console as console_module
from rayunlearn.reporting import plots
from rayunlearn.reporting.html import write_report
from rayunlearn.reporting.sentences import finding_sentences
from rayunlearn.reporting.tables import coreset_view
from rayunlearn.schema import STATUSES, TABLES
from rayunlearn.storage import run as run_module
from rayunlearn.storage.run import (
    Run,
    compact,
    finished_ids,
    open_run,
    write_experiment,
    write_run_table,
)
from tests import synthetic


class Page(HTMLParser):
    """Collects elements, and text outside scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.text.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(synthetic.write_run(tmp_path_factory.mktemp("run"))).in_memory()


@pytest.fixture(scope="module")
def table(run: Run) -> pl.DataFrame:
    return coreset_table(run)


@pytest.fixture(scope="module")
def page(run: Run) -> Page:
    parsed = Page()
    parsed.feed(write_report(run.path).read_text(encoding="utf-8"))
    return parsed


def printed(width: int) -> tuple[Console, StringIO]:
    out = StringIO()
    return Console(file=out, width=width), out


def traces(figure: object, **wanted: object) -> list:
    return [
        trace
        for trace in figure.data
        if all(getattr(trace, name) == value for name, value in wanted.items())
    ]  # type: ignore[attr-defined]


def test_the_page_loads_nothing_from_elsewhere(page: Page) -> None:
    links = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href")
    ]
    assert links and all(value is not None and value.startswith("#") for value in links)
    policy = next(
        a["content"]
        for tag, a in page.elements
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None and policy.startswith("default-src 'none'")


def test_every_figure_has_its_pictures_and_every_link_its_place(page: Page) -> None:
    sections = {a.get("id") for tag, a in page.elements if tag == "section"}
    names = ("coreset", "coverage", "looks", "pareto", "training", "tuning", "parallel")
    assert {f"figure-{name}" for name in names} <= sections
    anchors = {a.get("id") for _, a in page.elements}
    assert {(a["href"] or "")[1:] for tag, a in page.elements if tag == "a"} <= anchors


def test_values_from_data_are_text_and_never_markup(page: Page) -> None:
    text = "".join(page.text)
    for hostile in ("worker died <script>alert(1)</script>", "<b>bold</b>", "processor <x86>"):
        assert hostile in text
    # the tiles, one of all trials and one of each status, are the only bold text
    assert not [tag for tag, _ in page.elements if tag in ("b", "x86")][1 + len(STATUSES) :]
    assert sum(tag == "script" for tag, _ in page.elements) == 1


def test_the_findings_say_what_is_equal_what_differs_and_what_the_control_did(
    run: Run, table: pl.DataFrame, page: Page
) -> None:
    """By construction 25% random matches the full set (0.11 and 0.10, width 0.1), 25% min_k
    (0.26) does not.
    """
    said = finding_sentences(run, table)
    text = "".join(page.text)
    assert all(sentence in text for sentence in said)
    assert any(
        re.match(
            r"rmu \+ nll, random, compared with the full set \(forget 0\.10 \[.*?\]\):"
            r" 25% \(50 documents\) equal within 0\.1: 0\.11 \[",
            s,
        )
        for s in said
    )
    assert any(
        re.match(r"rmu \+ nll, min_k, .*: 25% \(50 documents\) different: 0\.26", s) for s in said
    )
    assert any(
        s.startswith("Retain loss alone, no forget loss (control for npo, rmu): forget 0.93")
        for s in said
    )
    assert "the data are too few to say" in text
    assert "55 of 55 planned trials have ended: 53 complete, 1 collapsed, 1 failed" in text
    assert "documents rejected: 1 (1 x empty answer)" in text


def test_page_and_terminal_show_the_numbers_of_the_table(table: pl.DataFrame, page: Page) -> None:
    console, out = printed(220)
    console_module.print_coreset_table(table, console, experiment=synthetic.EXPERIMENT)
    cells = [part.strip() for part in page.text]
    for row in table.iter_rows(named=True):
        shown = (
            f"{format_mean(row['forgetting'])} [{format_mean(row['forgetting_low'])},"
            f" {format_mean(row['forgetting_high'])}]"
        )
        assert shown in cells and shown in out.getvalue()
    assert "33% collapsed" in cells and "33% failed" in out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_a_narrow_terminal_drops_columns_and_says_which(table: pl.DataFrame, width: int) -> None:
    console, out = printed(width)
    console_module.print_coreset_table(table, console, experiment=synthetic.EXPERIMENT)
    assert "too narrow for: " in out.getvalue() or width == 160
    row = next(
        line
        for line in out.getvalue().splitlines()
        if "rmu + nll" in line and "min_k" in line and "5% (10)" in line
    )
    assert "0.34 [" in row and "0.65 [" in row and "…" not in row


def test_a_corpus_whose_facts_are_not_known_has_no_column_of_coverage(table: pl.DataFrame) -> None:
    from_outside = table.with_columns(pl.lit(None, pl.Float64).alias("coverage"))
    for rows, has_column in ((table, True), (from_outside, False)):
        view = coreset_view(rows, synthetic.EXPERIMENT)
        assert ("coverage" in view.headers) is has_column
        assert all(len(row) == len(view.headers) for row in view.rows)


def test_a_trial_is_shown_by_a_prefix_of_its_id(run: Run) -> None:
    trial_id = run.trials.filter(pl.col("status") == "failed").collect()["trial_id"][0]
    console, out = printed(100)
    console_module.print_trial(run.path, trial_id[:10], console)
    assert (
        f"trial {trial_id}: failed" in out.getvalue()
        and "loop.py:10" in out.getvalue()
        and "select.ratio" in out.getvalue()
    )
    known = list(finished_ids(run.path))
    measured = next(name for name in known if name != trial_id)
    console, out = printed(100)
    console_module.print_trial(run.path, measured, console)
    assert "multiple_choice" in out.getvalue()


def test_show_and_the_page_have_what_the_looks_of_training_found(run: Run) -> None:
    """A cell of rmu at 25%: 0.97 at the start, then its own value, in a table and as a curve."""
    cell = trial_table(run).filter(
        pl.col("role") == "grid",
        pl.col("method.forget") == "rmu",
        pl.col("select.name") == "random",
        pl.col("select.ratio") == 0.25,
    )
    row = cell.sort("train.seed").row(0, named=True)
    console, out = printed(100)
    console_module.print_trial(run.path, row["trial_id"], console)
    _, _, table = out.getvalue().partition("while it unlearned")
    lines = [line.split() for line in table.splitlines()]
    assert ["step", "forget", "probability", "retain", "probability"] in lines
    assert ["0", "0.97", "0.97"] in lines
    figure = plots.look_curves(run)
    assert figure is not None
    drawn = [trace for trace in figure.data if row["trial_id"] in str(trace.hovertemplate)]
    forgetting, utility = drawn
    assert list(forgetting.x) == [0, 20] and list(utility.y) == [0.97, 0.95]
    assert forgetting.y[1] == pytest.approx(row["forgetting"], abs=0.1) and forgetting.y[0] == 0.97


def test_an_unknown_or_ambiguous_trial_is_said_plainly() -> None:
    assert run_module.find_trial(["ab", "abc"], "ab") == "ab"
    with pytest.raises(
        UserError, match="no trial 'abcx' among 2 in this run; the nearest is 'abcd'"
    ):
        run_module.find_trial(["abcd", "ffff"], "abcx")
    with pytest.raises(UserError, match="not unique: abc, abd"):
        run_module.find_trial(["abc", "abd", "x"], "ab")
    with pytest.raises(UserError, match="no trial ''"):
        run_module.find_trial(["abc"], "")


def test_each_line_of_the_coreset_curve_ends_in_the_full_set_that_selectors_share(
    run: Run, table: pl.DataFrame
) -> None:
    figure = plots.coreset_curve(table, run.experiment)
    npo = [next(iter(traces(figure, name=f"npo + nll, {name}"))) for name in ("random", "min_k")]
    assert [trace.x for trace in npo] == [(0.01, 0.05, 0.25, 1.0)] * 2
    assert npo[0].y[-1] == npo[1].y[-1] and npo[0].y[0] != npo[1].y[0]
    full = table.filter(pl.col("select.ratio") == 1, pl.col("method.forget") == "npo").row(
        0, named=True
    )
    assert npo[0].y[-1] + npo[0].error_y.array[-1] == pytest.approx(full["forgetting_high"])
    base = table.filter(pl.col("role") == "base")["forgetting"][0]
    assert traces(figure, name="before unlearning (base)")[0].y == (base, base)
    # both groups ended with the same control
    assert len(traces(figure, name="retain loss only (nll)")) == 1


def test_a_method_has_one_colour_and_a_selector_one_dash_in_every_figure(
    run: Run, table: pl.DataFrame
) -> None:
    curve, coverage = (
        plots.coreset_curve(table, run.experiment),
        plots.coverage_curve(table, run.experiment),
    )
    styles = [
        {t.name: (t.line.color, t.line.dash) for t in f.data if "+" in t.name}
        for f in (curve, coverage)
    ]
    assert styles[0] == styles[1] and len({colour for colour, _ in styles[0].values()}) == 2
    points = {t.name: t.marker.color for t in plots.pareto(run).data}
    assert points["rmu"] == points["rmu, collapsed"] == styles[0]["rmu + nll, random"][0]


def test_the_pareto_figure_draws_every_measured_trial_and_the_front(run: Run) -> None:
    trials = trial_table(run).filter(
        pl.col("role").is_in(["grid", "tuning"]), pl.col("utility").is_not_null()
    )
    figure = plots.pareto(run)
    drawn = [
        (x, y)
        for t in figure.data
        if t.mode == "markers" and t.name.split(",")[0] in synthetic.METHODS
        for x, y in zip(t.x, t.y, strict=True)
    ]
    expected = sorted(trials.select("forgetting", "utility").iter_rows())
    # polars sums in no fixed order
    assert np.array(sorted(drawn)) == pytest.approx(np.array(expected), abs=1e-12)
    front = pareto_front(trials, "forgetting", "utility")
    assert list(traces(figure, name="front")[0].x) == pytest.approx(
        front["forgetting"].to_list(), abs=1e-12
    )


def test_long_training_curves_are_thinned_and_keep_their_end() -> None:
    curve = plots._thinned(pl.DataFrame({"step": range(1, 1001)}))
    assert (
        curve.height <= plots.MAX_POINTS and curve["step"][-1] == 1000 and curve["step"].is_sorted()
    )


def test_several_corpora_get_a_panel_each(tmp_path: Path) -> None:
    plan = []
    for redundancy in (4, 20):
        for role in ("base", "gold"):
            values = {"forget": 0.9 if role == "base" else 0.1, "retain": 0.9}
            plan.append(
                synthetic.plan_row(
                    synthetic.add_trial(
                        tmp_path, {"data.redundancy": redundancy, "stage": role}, values
                    ),
                    role,
                    "{}",
                )
            )
        for ratio in (1.0, 0.1):
            trial_id = synthetic.add_trial(
                tmp_path,
                {"data.redundancy": redundancy, "select.ratio": ratio},
                {"forget": 0.5, "retain": 0.9},
            )
            plan.append(
                synthetic.plan_row(trial_id, "grid", json.dumps({"data.redundancy": redundancy}))
            )
            plan.append(
                synthetic.plan_row(
                    trial_id, "tuning", json.dumps({"data.redundancy": redundancy}), 0
                )
            )
    write_run_table(tmp_path, "plan", plan)
    write_experiment(tmp_path, synthetic.EXPERIMENT)
    run = open_run(tmp_path).in_memory()
    titles = [
        note.text
        for note in plots.coreset_curve(coreset_table(run), run.experiment).layout.annotations
    ]
    assert titles == ["data.redundancy 4", "data.redundancy 20"]
    assert write_report(tmp_path).exists()


def test_a_run_that_has_only_begun_still_makes_a_page(tmp_path: Path) -> None:
    write_run_table(tmp_path, "plan", [synthetic.plan_row("a", "grid", "{}")])
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "No trial has ended yet." in text and "has not been measured yet" in text
    part = synthetic.add_trial(tmp_path, {"select.ratio": 0.5}, {"forget": 0.5, "retain": 0.9})
    write_run_table(tmp_path, "plan", [synthetic.plan_row(part, "grid", "{}")])
    assert "has not been measured, so there is nothing to match" in write_report(
        tmp_path
    ).read_text(encoding="utf-8")
    failed = synthetic.add_trial(tmp_path, {}, None, status="failed", coverage=None)
    write_run_table(tmp_path, "plan", [synthetic.plan_row(failed, "grid", "{}")])
    assert "RuntimeError" in write_report(tmp_path).read_text(encoding="utf-8")


def test_the_page_is_the_same_after_compaction(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path)
    before = coreset_table(open_run(run))
    compact(run)
    assert coreset_table(open_run(run)).equals(before)
    assert write_report(run).exists()


def test_percentages_keep_small_ratios_apart() -> None:
    assert [format_percent(x) for x in (2.4e-12, -1e-9)] == ["<0.01%", ">-0.01%"]
    assert [format_percent(x) for x in (1.0, 0.25, 0.05, 0.01, 0.005, 0.0, None)] == [
        "100%",
        "25%",
        "5%",
        "1%",
        "0.5%",
        "0%",
        "–",
    ]
    assert [format_mean(x) for x in (0.5, 0.05, 0.004, 0.0, 12.3456, None)] == [
        "0.50",
        "0.05",
        "0.004",
        "0.00",
        "12.3",
        "–",
    ]


def test_the_documented_tables_are_those_of_the_schema() -> None:
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    assert text == results_page()
    for table, columns in TABLES.items():
        part = text.split(f"\n## {table}\n")[1].split("\n## ")[0]
        assert re.findall(r"^\| `(\w+)`", part, re.MULTILINE) == [column.name for column in columns]


def test_notes_of_the_planner_and_trials_outside_the_plan_are_said(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path)
    synthetic.add_trial(
        run, {"select.ratio": 0.77}, {"forget": 0.5, "retain": 0.9}, status="collapsed"
    )
    write_experiment(
        run,
        synthetic.EXPERIMENT
        | {
            "planned": 55,
            "notes": ["npo: no trial kept utility over the floor"],
        },
    )
    lines = console_module.summary_lines(run)
    assert "npo: no trial kept utility over the floor" in lines
    assert lines[0] == "55 of 55 planned trials have ended: 53 complete, 1 collapsed, 1 failed"
    assert any(line.startswith("1 more trial in this folder is not in the plan") for line in lines)
