"""What searches tried and found, and how much a hyperparameter mattered."""

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rayunlearn.analysis.coreset_table import coreset_table
from rayunlearn.analysis.tuning import correlation_test, settings_tried, tuned_table
from rayunlearn.reporting.formats import as_json, markdown
from rayunlearn.reporting.html import page
from rayunlearn.storage.run import Run, open_run, write_experiment, write_run_table
from tests import synthetic

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SEARCH = {
    "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True, "kind": "range"},
    "npo.beta": {"low": 0.01, "high": 1.0, "log": True, "kind": "range"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Five learning rates: the larger, the less is left and the less is retained; the last keeps
    too little, so that the grid has the fourth.
    """
    folder, plan = tmp_path_factory.mktemp("tuned"), []
    for stage, left in (("base", 0.9), ("gold", 0.1)):
        trial = synthetic.add_trial(folder, {"stage": stage}, {"forget": left, "retain": 0.9})
        plan.append(synthetic.plan_row(trial, stage, "{}"))
    for index, rate in enumerate(RATES):
        values = {"forget": 0.8 - 0.1 * index, "retain": 0.9 if index < 4 else 0.2}
        changes = {"train.learning_rate": rate, "npo.beta": 0.1}
        trial = synthetic.add_trial(folder, changes, values)
        plan.append(synthetic.plan_row(trial, "tuning", "{}", index))
        if index == 3:
            plan.append(synthetic.plan_row(trial, "grid", "{}"))
    write_run_table(folder, "plan", plan)
    write_experiment(folder, synthetic.EXPERIMENT | {"search": SEARCH})
    return open_run(folder).in_memory()


def test_the_table_has_the_value_of_the_grid_its_range_and_what_it_did(run: Run) -> None:
    rate, beta = tuned_table(run).rows(named=True)
    assert (rate["setting"], rate["value"], rate["low"], rate["high"]) == (
        "train.learning_rate",
        "0.003",
        1e-4,
        1e-2,
    )
    assert (rate["tried"], rate["feasible"], rate["at_edge"]) == (5, 4, False)
    # more of it left less: a perfect order, one of the two most extreme among 120
    assert rate["correlation"] == pytest.approx(-1) and rate["importance"] == pytest.approx(1)
    assert rate["p"] == pytest.approx(2 / 120)
    # one value alone cannot matter
    assert beta["value"] == "0.1" and beta["importance"] is None


def test_a_value_at_the_end_of_its_range_is_said_to_be(run: Run) -> None:
    narrow = SEARCH | {"npo.beta": {"low": 0.1, "high": 1.0, "log": True, "kind": "range"}}
    table = tuned_table(replace(run, experiment={**run.experiment, "search": narrow}))
    assert table.filter(pl.col("setting") == "npo.beta")["at_edge"].to_list() == [True]


def test_settings_are_judged_with_their_seeds_and_the_floor(run: Run) -> None:
    tried = settings_tried(run)
    assert tried["study_index"].to_list() == [0, 1, 2, 3, 4]
    assert tried["feasible"].to_list() == [True] * 4 + [False]


def test_the_permutation_test_is_that_of_all_orders() -> None:
    """Five values: Spearman's correlation by its definition over all 120 orders."""
    first, second = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 4, 3, 9])
    correlation, p = correlation_test(first, second)
    ranks = np.array([2.0, 1, 4, 3, 5])
    assert correlation == pytest.approx(1 - 6 * ((first - ranks) ** 2).sum() / (5 * 24))
    orders = [np.corrcoef(first, list(order))[0, 1] for order in permutations(ranks)]
    assert p == pytest.approx(np.mean(np.abs(orders) >= correlation - 1e-9))


def test_tuned_hyperparameters_stand_in_table_page_json_and_text(run: Run) -> None:
    table = coreset_table(run)
    grid = table.filter(pl.col("role") == "grid")
    assert grid["tuned"].to_list() == ["train.learning_rate 0.003, npo.beta 0.1"]
    text = page(run)
    assert "Tuned hyperparameters" in text and "train.learning_rate 0.003" in text
    assert 'id="figure-parallel"' in text and 'id="figure-importance"' in text
    assert "setting 3: best that kept utility: train.learning_rate 0.003" in text
    told = as_json(run)
    assert json.loads(json.dumps(told))["tuned"][0]["setting"] == "train.learning_rate"
    assert told["cells"][-1]["tuned"] == "train.learning_rate 0.003, npo.beta 0.1"
    assert "Tuned hyperparameters" in markdown(run)


def test_a_run_without_a_search_has_no_such_table(tmp_path: Path) -> None:
    trial = synthetic.add_trial(tmp_path, {}, {"forget": 0.5, "retain": 0.9})
    write_run_table(tmp_path, "plan", [synthetic.plan_row(trial, "grid", "{}")])
    write_experiment(tmp_path, synthetic.EXPERIMENT | {"search": {}})
    opened = open_run(tmp_path).in_memory()
    assert tuned_table(opened).is_empty()
    assert coreset_table(opened)["tuned"].to_list() == [""]
