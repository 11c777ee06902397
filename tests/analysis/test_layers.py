"""Diagnostics of a run: means over seeds by hand, and what the report draws of them."""

from pathlib import Path
from typing import Any

import pytest

from rayunlearn.analysis.layers import layer_table
from rayunlearn.reporting.html import write_report
from rayunlearn.reporting.plots import gradient_curves, layer_maps
from rayunlearn.storage.run import open_run, write_experiment, write_run_table
from tests.synthetic import EXPERIMENT, add_trial, plan_row


def block(stage: str, layer: int, change: float, rank: float | None) -> dict[str, Any]:
    return {
        "stage": stage,
        "layer": layer,
        "relative_change": change,
        "spectral_norm": 2 * change,
        "stable_rank": rank,
        "separation": 1.5,
    }


def effect(x: float, split: str, value: float) -> dict[str, Any]:
    return {
        "kind": "gradients",
        "x": x,
        "split": split,
        "metric": "g_effect_cosine",
        "value": value,
        "n": 4,
        "stderr": None,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Base and two seeds of a method; block 1 moved by .1 and .3 in 2 and 4 directions."""
    left = {"forget": 0.5, "retain": 0.9}
    plain = {"diagnostics": [block("base", layer, 0.0, None) for layer in range(2)]}
    plan = [plan_row(add_trial(tmp_path, {"stage": "base"}, left, more=plain), "base", "{}")]
    for seed, (change, rank) in enumerate(((0.1, 2.0), (0.3, 4.0))):
        more = {
            "diagnostics": [block("unlearned", 0, 0.0, None), block("unlearned", 1, change, rank)],
            "curves": [
                effect(x, split, value)
                for x, value in ((0.0, -0.9), (20.0, 0.1))
                for split in ("forget", "retain")
            ],
        }
        trial = add_trial(tmp_path, {"train.seed": seed}, left, more=more)
        plan.append(plan_row(trial, "grid", "{}"))
    write_run_table(tmp_path, "plan", plan)
    write_experiment(tmp_path, EXPERIMENT)
    return tmp_path


def test_a_cell_has_the_means_of_its_seeds_block_by_block(run: Path) -> None:
    table = layer_table(open_run(run))
    cells = table["cell"].unique(maintain_order=True).to_list()
    own = table.filter(cell=cells[-1], layer=1).row(0, named=True)
    assert len(cells) == 2 and own["trials"] == 2
    assert (own["relative_change"], own["stable_rank"]) == pytest.approx((0.2, 3.0))
    assert table.filter(cell=cells[0])["stable_rank"].null_count() == 2


def test_the_report_draws_blocks_and_gradients_where_there_are_some(run: Path) -> None:
    opened = open_run(run).in_memory()
    maps, curves = layer_maps(opened), gradient_curves(opened)
    assert maps is not None and curves is not None
    first = maps.data[0]
    assert [list(row) for row in first.z] == [[0.0, 0.0], [0.0, pytest.approx(0.2)]]
    assert list(first.x) == ["0", "1"] and "relative_change" in maps.layout.annotations[0].text
    assert sorted(curves.data[0].y) == [-0.9, 0.1]
    page = write_report(run).read_text(encoding="utf-8")
    assert "Block by block" in page and "Gradients while it unlearned" in page


def test_a_run_without_diagnostics_has_no_such_figures(tmp_path: Path) -> None:
    trial = add_trial(tmp_path, {"stage": "base"}, {"forget": 0.5, "retain": 0.9})
    write_run_table(tmp_path, "plan", [plan_row(trial, "base", "{}")])
    write_experiment(tmp_path, EXPERIMENT)
    opened = open_run(tmp_path).in_memory()
    assert layer_table(opened).is_empty()
    assert layer_maps(opened) is None and gradient_curves(opened) is None
