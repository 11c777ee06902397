"""Correlation and slope of metrics under attack: closed forms, numbers worked by hand, and a run
made of them.
"""

import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from rayunlearn.analysis.metric_robustness import (
    MIN_MODELS,
    robustness_parts,
    robustness_table,
    with_intervals,
)
from rayunlearn.reporting.console import print_robustness
from rayunlearn.reporting.html import write_report
from rayunlearn.reporting.robustness_tables import robustness_sections
from rayunlearn.storage.run import open_run, write_experiment, write_run_table, write_trial

ONE = np.ones((1, 3))


def test_correlation_slope_and_order_by_hand() -> None:
    """before 0, 1, 2, after 1, 3, 2: deviations (-1, 0, 1), (-1, 1, 0); sums xy 1, xx 2, yy 2: r
    1/2, slope 1/2. Of three pairs (0,1) and (0,2) keep their order and (1,2) does not: 2/3."""
    found = robustness_parts(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 2.0]), ONE)
    assert (found["pearson"][0], found["slope"][0], found["kept"][0]) == pytest.approx(
        (0.5, 0.5, 2 / 3)
    )


def test_a_tie_afterwards_counts_half_and_one_before_is_no_pair() -> None:
    """before 0, 0, 1, after 1, 2, 1: the pair of equals is none; (0,2) is a tie afterwards, (1,2)
    turns: 1/2 of 2.
    """
    assert robustness_parts(np.array([0.0, 0.0, 1.0]), np.array([1.0, 2.0, 1.0]), ONE)["kept"][
        0
    ] == pytest.approx(0.25)


def test_weights_are_repetitions() -> None:
    before, after, weights = (
        np.array([0.1, 0.7, 0.3]),
        np.array([0.2, 0.4, 0.9]),
        np.array([[2.0, 1.0, 3.0]]),
    )
    repeated = [np.repeat(values, [2, 1, 3]) for values in (before, after)]
    direct = float(np.corrcoef(*repeated)[0, 1]), float(np.polyfit(*repeated, 1)[0])
    found = robustness_parts(before, after, weights)
    assert (found["pearson"][0], found["slope"][0]) == pytest.approx(direct)
    assert found["kept"][0] == pytest.approx(
        robustness_parts(*repeated, np.ones((1, 6)))["kept"][0]
    )


def test_a_line_has_its_slope_without_doubt_and_what_does_not_vary_has_none() -> None:
    x, cells = np.linspace(0, 1, 8), np.arange(8)
    found = with_intervals(x, 0.3 - 2 * x, cells)
    assert [found[f"pearson{end}"] for end in ("", "_low", "_high")] == pytest.approx([-1, -1, -1])
    assert [found[f"slope{end}"] for end in ("", "_low", "_high")] == pytest.approx([-2, -2, -2])
    assert found["kept"] == 0
    flat = with_intervals(np.ones(8), x, cells)
    assert flat["pearson"] is flat["slope"] is flat["kept"] is None
    assert with_intervals(x, np.ones(8), cells)["pearson"] is None


def test_the_interval_is_that_of_fisher_where_models_are_many_and_normal() -> None:
    """r = 0.8 of 400 pairs: Fisher's z gives tanh(atanh r +- 1.96 / sqrt(397)); and models in cells
    of four that agree count as one.
    """
    generator = np.random.default_rng(3)
    x = generator.normal(size=400)
    y = 0.8 * x + 0.6 * generator.normal(size=400)
    found = with_intervals(x, y, np.arange(400))
    r = float(np.corrcoef(x, y)[0, 1])
    fisher = np.tanh(np.arctanh(r) + np.array([-1.96, 1.96]) / np.sqrt(397))
    assert [found["pearson_low"], found["pearson_high"]] == pytest.approx(fisher, abs=0.012)
    copies = with_intervals(
        np.repeat(x[:100], 4),
        np.repeat(y[:100], 4),
        np.repeat(np.arange(100), 4),
    )
    once = with_intervals(x[:100], y[:100], np.arange(100))
    assert copies == pytest.approx(once)


# ---- a run


def add(
    run: Path,
    trial_id: str,
    attack: str,
    method: str,
    values: dict[str, tuple[float, ...]],
    seed: int = 0,
) -> None:
    examples = [
        {
            "stage": "unlearned",
            "attack": attack,
            "doc_id": f"d{at}",
            "split": "forget",
            "metric": metric,
            "value": value,
        }
        for metric, several in values.items()
        for at, value in enumerate(several)
    ]
    config = {
        "stage": "unlearned",
        "method.forget": method,
        "select.ratio": 1.0,
        "train.seed": seed,
        "attack.name": attack,
    }
    write_trial(run, trial_id, {"trials": [{"status": "complete"}], "examples": examples}, config)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Six models of as many methods. Metric `steady` is halved by noise, on the one document that
    it asks; `fickle` is turned round.
    """
    rows = []
    for at in range(6):
        level = at / 10
        add(
            tmp_path,
            f"m{at}",
            "none",
            f"method{at}",
            {"steady": (level, 9.0), "fickle": (level, 9.0)},
            seed=at % 2,
        )
        add(
            tmp_path,
            f"a{at}",
            "noise",
            f"method{at}",
            {"steady": (level / 2,), "fickle": (1 - level,)},
            seed=at % 2,
        )
        place = {
            "trial_id": f"a{at}",
            "attacked": f"m{at}",
            "setting": "noise share=0.2",
            "study": "",
            "study_index": -1,
        }
        rows.append(place | {"role": "attack", "control_for": ""})
    rows.append({**rows[0], "attacked": "base", "role": "control"})
    write_run_table(tmp_path, "attacks", rows)
    write_experiment(
        tmp_path,
        {
            "name": "hand",
            "question": "?",
            "objective": {"forgetting": "fickle", "utility": "steady"},
        },
    )
    return tmp_path


def test_a_table_is_over_the_documents_that_the_attack_asked(run: Path) -> None:
    table = {row["metric"]: row for row in robustness_table(open_run(run)).iter_rows(named=True)}
    steady, fickle = table["steady"], table["fickle"]
    assert (steady["pearson"], steady["slope"], steady["kept"]) == pytest.approx((1, 0.5, 1))
    assert (fickle["pearson"], fickle["slope"], fickle["kept"]) == pytest.approx((-1, -1, 0))
    assert (steady["before"], steady["after"], steady["models"], steady["cells"]) == (
        pytest.approx(0.25),
        pytest.approx(0.125),
        6,
        6,
    )


def test_it_is_read_in_the_terminal_and_on_the_page(run: Path) -> None:
    (section,) = robustness_sections(open_run(run))
    assert section.view.headers == (
        "metric",
        "noise correlation",
        "noise slope",
        "noise order kept",
    )
    assert [row[0] for row in section.view.rows] == ["steady", "fickle"] and section.view.rows[0][
        1
    ] == "1.00 [1.00, 1.00]"
    best = (
        "Over 6 unlearned models steady (1.00 [1.00, 1.00] at worst, under noise) keeps to its"
        " values best, fickle (-1.00"
    )
    assert section.caption.startswith(best) and "Of the 1 others 0 have" in section.caption
    printed = io.StringIO()
    print_robustness(open_run(run), Console(file=printed, width=160))
    page = write_report(run).read_text(encoding="utf-8")
    for text in (printed.getvalue(), page):
        assert "steady" in text and "1.00 [1.00, 1.00]" in text and best[:40] in text


def test_with_too_few_cells_nothing_is_said(run: Path) -> None:
    frame = pl.read_parquet(run / "attacks.parquet")
    write_run_table(run, "attacks", frame.head(MIN_MODELS - 1).to_dicts())
    assert robustness_sections(open_run(run)) == []
    assert "Which metric keeps the order" not in write_report(run).read_text(encoding="utf-8")
