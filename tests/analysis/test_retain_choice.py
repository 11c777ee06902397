"""Arms of the retain set against random documents, on made-up runs whose differences are known."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rayunlearn.analysis.retain_choice import retain_table, selection_frequency
from rayunlearn.config import Trial, Value, digest, flatten, with_values
from rayunlearn.reporting.retain_tables import retain_sections, retain_sentences
from rayunlearn.storage.run import open_run, write_experiment, write_run_table, write_trial
from tests.analysis.test_baselines import EXPERIMENT, written

ARMS: dict[tuple[str, float], float] = {
    ("random", 0.0): 0.0,
    ("nearest", 0.0): 0.2,
    ("moderate", 0.0): 0.0,
    ("random", 0.5): -0.1,
}


def rows_of(shift: float, seed: int) -> list[dict[str, Any]]:
    """Thirty documents on three splits: hard and easy ones, a seed's own shift of up to 0.3 that
    all arms of the seed share, and the arm's shift on `untouched` alone.
    """
    hard = np.linspace(-0.1, 0.1, 30) + 0.15 * (seed - 1)
    noise = np.random.default_rng([seed, round(100 * (shift + 1))]).normal(0, 0.01, 30)
    means = {"forget": 0.3, "retain": 0.6, "untouched": 0.5 + shift}
    common = {"stage": "unlearned", "attack": "none", "metric": "probability"}
    return [
        common | {"doc_id": f"{split}{at}", "split": split, "value": float(value)}
        for split, mean in means.items()
        for at, value in enumerate(mean + hard + noise)
    ]


def test_an_arm_is_held_against_random_documents_of_its_own_seed(tmp_path: Path) -> None:
    """`nearest` keeps 0.2 more of untouched, half general text 0.1 less, and moderate as much;
    seeds shift by 0.15 each, which pairs take out: intervals are a tenth of that.
    """
    plan = []
    for (name, general), shift in ARMS.items():
        for seed in (0, 1, 2):
            values: dict[str, Value] = {
                "retain.name": name,
                "retain.ratio": 0.1,
                "retain.general": general,
                "retain.seed": seed,
                "train.seed": seed,
            }
            trial = with_values(Trial(), values)
            plan.append(written(tmp_path, trial, rows_of(shift, seed), "grid"))
    write_run_table(tmp_path, "plan", plan)
    write_experiment(tmp_path, EXPERIMENT | {"search": {}})
    table = retain_table(open_run(tmp_path))
    assert table.height == 3 * 3 and set(table["seeds"]) == {3}
    untouched = table.filter(measure="untouched")
    found = dict(untouched.select("arm", "difference").iter_rows())
    expected = {"nearest": 0.2, "moderate": 0.0, "random, general 0.5": -0.1}
    assert found == pytest.approx(expected, abs=0.01)
    assert (untouched["high"] - untouched["low"]).max() < 0.05  # type: ignore[operator]
    shown = untouched.filter(pl.col("p_holm") < 0.05)["arm"].to_list()
    assert sorted(shown) == ["nearest", "random, general 0.5"]
    rest = table.filter(pl.col("measure") != "untouched")
    assert rest["p_holm"].min() > 0.05  # type: ignore[operator]
    said = retain_sentences(table)
    assert said[:2] == [
        f"{measure}, less that of as many random retain documents: no selector differs"
        " significantly."
        for measure in ("forgetting", "utility")
    ]
    assert re.search(r"nearest \+0\.2.*random, general 0\.5 -0\.(1|09).*; 1 others do not", said[2])
    (section,) = retain_sections(open_run(tmp_path))
    assert [len(row) for row in section.view.rows] == [len(section.view.headers)] * 9
    nearest = next(row for row in section.view.rows if row[1:3] == ("nearest", "untouched"))
    assert nearest[6].startswith("+0.2") and float(nearest[7].replace("<", "")) < 0.05


def test_how_often_a_document_was_chosen_is_a_share_of_its_selectors_trials(
    tmp_path: Path,
) -> None:
    """Random drew a, b and then a, c; the forget documents of the same trials do not count."""
    for seed, ids in enumerate((("a", "b"), ("a", "c"))):
        trial = with_values(Trial(), {"retain.ratio": 0.5, "retain.seed": seed})
        rows = [{"doc_id": i, "role": "retain", "rank": n} for n, i in enumerate(ids)]
        rows.append({"doc_id": "f", "role": "forget", "rank": 0})
        tables = {"trials": [{"status": "complete"}], "coresets": rows}
        write_trial(tmp_path, digest(flatten(trial)), tables, flatten(trial))
    write_experiment(tmp_path, EXPERIMENT | {"search": {}})
    table = selection_frequency(open_run(tmp_path))
    assert list(table.select("doc_id", "trials", "share").iter_rows()) == [
        ("a", 2, 1.0),
        ("b", 2, 0.5),
        ("c", 2, 0.5),
    ]
    assert selection_frequency(open_run(tmp_path), "forget")["doc_id"].to_list() == ["f"]
    assert selection_frequency(open_run(tmp_path), "general").is_empty()
