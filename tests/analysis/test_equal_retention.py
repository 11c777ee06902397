"""The two orders of the methods: ranks counted by hand, changes of place planted in a made run."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rayunlearn.analysis.coreset_table import coreset_table
from rayunlearn.analysis.equal_retention import (
    has_calibrated,
    method_ranking,
    order_changes,
    rank_changes,
    ranks,
)
from rayunlearn.config import Trial, Value, digest, flatten, with_values
from rayunlearn.reporting.html import page
from rayunlearn.reporting.tables import ranking_sentences, ranking_view
from rayunlearn.storage.run import Run, open_run, write_experiment, write_run_table, write_trial
from tests.synthetic import EXPERIMENT, plan_row

# Mean left on forget as trained and calibrated: ga leaves the least as trained and the most at
# equal retention; npo and rmu stay in order.
LEFT = {"ga": (0.05, 0.8), "npo": (0.2, 0.3), "rmu": (0.5, 0.6)}


def rows_of(stage: str, forget: float, retain: float, seed: int) -> list[dict[str, Any]]:
    """Twenty documents per split, scattered evenly by 0.04 around the mean, the mean itself moved
    by 0.01 per seed.
    """
    common = {"stage": stage, "attack": "none", "metric": "probability"}
    scatter = np.linspace(-0.04, 0.04, 20) + 0.01 * (seed - 1)
    means = (("forget", forget), ("retain", retain))
    return [
        common | {"doc_id": f"{split}{at}", "split": split, "value": mean + float(e)}
        for split, mean in means
        for at, e in enumerate(scatter)
    ]


def made_run(folder: Path, *, stage: str = "unlearned", calibrated: bool = True) -> Run:
    plan = []
    for method, (before, after) in LEFT.items():
        for seed in (0, 1, 2):
            values: dict[str, Value] = {
                "method.forget": method,
                "train.seed": seed,
                "calibrate.tau": 0.95,
            }
            trial = with_values(Trial(), values)
            examples = rows_of("unlearned", before, 0.5, seed) + (
                rows_of("calibrated", after, 0.95, seed) if calibrated else []
            )
            identity = digest(flatten(trial))
            row = {"status": "complete", "n_forget": 20, "n_kept": 20, "calibrated_alpha": 0.25}
            write_trial(folder, identity, {"trials": [row], "examples": examples}, flatten(trial))
            plan.append(plan_row(identity, "grid", "{}"))
    write_run_table(folder, "plan", plan)
    write_experiment(
        folder, EXPERIMENT | {"search": {}, "objective": EXPERIMENT["objective"] | {"stage": stage}}
    )
    return open_run(folder).in_memory()


def test_ranks_of_cells_that_lie_far_apart_are_certain_and_equal_ones_share_the_first_place() -> (
    None
):
    """Cells of constants: nothing varies, so every order is shown and the interval is the rank. Of
    two equal ones no test says which comes first: the interval holds both places.
    """
    assert ranks([np.full((2, 5), value) for value in (0.3, 0.1, 0.2)]) == [
        (3, 3, 3),
        (1, 1, 1),
        (2, 2, 2),
    ]
    assert ranks([np.full((2, 5), 0.1)] * 2) == [(1, 1, 2), (1, 1, 2)]


def test_ranks_of_cells_that_seeds_cannot_tell_apart_range_over_both_places() -> None:
    """Two methods with the same two seeds, 0 and 1: other seeds may put either first."""
    cell = np.repeat(np.array([[0.0], [1.0]]), 4, axis=1)
    assert [interval[1:] for interval in ranks([cell, cell + 0.001])] == [(1, 2), (1, 2)]


def test_standings_hold_the_means_the_order_and_the_share_of_the_weights_at_each_stage(
    tmp_path: Path,
) -> None:
    table = method_ranking(made_run(tmp_path))
    order = {
        stage: rows["name"].to_list()
        for (stage,), rows in table.group_by("stage", maintain_order=True)
    }
    assert order == {
        "unlearned": ["ga + nll", "npo + nll", "rmu + nll"],
        "calibrated": ["npo + nll", "rmu + nll", "ga + nll"],
    }
    last = table.row(-1, named=True)
    assert (
        last["left"] == pytest.approx(0.8)
        and last["retained"] == pytest.approx(0.95)
        and last["alpha"] == 0.25
        and last["seeds"] == 3
    )
    assert (last["rank"], last["rank_low"], last["rank_high"]) == (3, 3, 3) and last[
        "left_low"
    ] < 0.8 < last["left_high"]


def test_the_planted_changes_of_place_are_found_and_shown_and_no_other(tmp_path: Path) -> None:
    changes = order_changes(made_run(tmp_path)).sort("second")
    assert changes.select("first", "second", "shown").rows() == [
        ("ga + nll", "npo + nll", True),
        ("ga + nll", "rmu + nll", True),
    ]
    assert changes["before"].to_list() == pytest.approx([-0.15, -0.45]) and changes[
        "after"
    ].to_list() == pytest.approx([0.5, 0.2])
    assert (
        changes["p"] >= changes.select(pl.max_horizontal("p_before", "p_after")).to_series()
    ).all()


def test_methods_move_whose_rank_intervals_lie_apart_and_no_other() -> None:
    rows = [
        ("apart", "unlearned", 1, 1, 2),
        ("apart", "calibrated", 4, 3, 5),
        ("touching", "unlearned", 3, 2, 4),
        ("touching", "calibrated", 5, 4, 6),
    ]
    columns = ("name", "stage", "rank", "rank_low", "rank_high")
    table = pl.DataFrame(rows, schema=columns, orient="row").with_columns(pl.lit("").alias("place"))
    assert rank_changes(table).select("name", "rank", "rank_after").rows() == [("apart", 1, 4)]


def test_page_and_words_say_it_and_a_run_without_calibration_says_nothing(tmp_path: Path) -> None:
    run = made_run(tmp_path / "with")
    words = ranking_sentences(run)
    assert words[0].startswith(
        "Interpolated to the same share of base's retention, 2 of 3 pairs of methods change places;"
        " of 2 of these"
    )
    assert any(
        line.startswith(
            "ga + nll leaves less than npo + nll as trained and more at equal retention:"
            " -0.150 before"
        )
        for line in words
    )
    assert words[-1].startswith(
        "Ranks whose 95% intervals lie apart, as trained and at equal retention: ga + nll"
        " from 1 [1, 1] to"
        " 3 [3, 3]."
    )
    html = page(run)
    assert 'id="control"' in html and "3 [3, 3]" in html
    plain = made_run(tmp_path / "without", calibrated=False)
    assert (
        not has_calibrated(plain)
        and ranking_sentences(plain) == []
        and 'id="control"' not in page(plain)
    )
    assert ranking_view(run)[1][0][0] == "npo + nll"


def test_the_objective_s_stage_is_what_tables_show(tmp_path: Path) -> None:
    tables = [
        coreset_table(made_run(tmp_path / stage, stage=stage))
        for stage in ("unlearned", "calibrated")
    ]
    assert [
        t.filter(pl.col("method") == "ga + nll")["forgetting"].item() for t in tables
    ] == pytest.approx([0.05, 0.8])
