"""What BUDGET can ask of a search, each once with Ray itself: several seeds, several searches,
other samplers, and the winners of another run, tried or taken.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from rayunlearn.cluster.sweep import SweepResult
from rayunlearn.experiment import Budget, Experiment, Range, grids_of
from rayunlearn.planning.study_export import study_of_run
from rayunlearn.planning.winners import with_winners
from rayunlearn.storage.run import finished_ids, open_run
from tests import fake_work
from tests.cluster.conftest import run_sweep
from tests.fake_driver import tuned

# the promises without Ray: tests/planning/test_planner.py, test_winners.py, test_study.py
pytestmark = pytest.mark.slow


def searched(budget: Budget, version: str) -> Experiment:
    """One group with two numbers to search, and two cells, which share a control."""
    return replace(
        tuned(0.0),
        grids=grids_of({"method.forget": ("npo",), "select.ratio": (0.25, 1.0)}),
        search={
            "train.learning_rate": Range(1e-5, 1e-2, log=True),
            "npo.beta": Range(0.01, 1.0, log=True),
        },
        budget=budget,
        version=version,
    )


def plan_of(result: SweepResult) -> pl.DataFrame:
    """The plan of a sweep of which every trial is complete."""
    assert result.done == result.total and not result.interrupted
    assert set(finished_ids(result.run).values()) == {"complete"}
    return open_run(result.run).plan.collect()


def test_settings_of_several_seeds_and_searches_are_found_then_tried_and_then_taken(
    ray_address: str, tmp_path: Path
) -> None:
    """Two searches of four settings with two seeds each; a run whose trial 1 is the winner; a run
    of that winner alone, without a search.
    """
    budget = Budget(trials=4, batch=2, seeds=2, repeats=2, sampler="nsga2")
    first = run_sweep(searched(budget, "first"), tmp_path)
    plan = plan_of(first)
    tuning = plan.filter(pl.col("role") == "tuning")
    assert Counter(tuning["search"]) == {0: 8, 1: 8} and tuning["trial_id"].is_unique().all()
    assert Counter(plan.filter(pl.col("role") == "grid")["search"]) == {0: 2, 1: 2}
    names = tuning["study"].unique().sort().to_list()
    assert [len(study_of_run(first.run, name).trials) for name in names] == [4, 4]

    tried_budget = Budget(trials=3, batch=3, sampler="gp", tuned_from=str(first.run))
    tried = with_winners(searched(tried_budget, "tried"), check=fake_work.check)
    rows = plan_of(run_sweep(tried, tmp_path)).filter(pl.col("role") == "tuning")
    (source,) = rows.filter(pl.col("study_index") == 1)["tuned_from"]
    assert source.startswith(f"{first.run} ") and source.split()[-1] in tuning["trial_id"]
    assert rows.filter(pl.col("tuned_from") != "").height == 1

    taken_budget = Budget(tuning=f"from:{first.run}")
    taken = with_winners(searched(taken_budget, "taken"), check=fake_work.check)
    plan = plan_of(run_sweep(taken, tmp_path))
    assert Counter(plan["role"]) == {"base": 1, "gold": 1, "grid": 2, "control": 1}
    assert set(plan.filter(pl.col("role") == "grid")["tuned_from"]) == {source}


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random"])
def test_every_sampler_asks_the_batches_of_a_sweep(
    ray_address: str, tmp_path: Path, sampler: str
) -> None:
    budget = Budget(trials=6, batch=3, sampler=sampler)
    rows = plan_of(run_sweep(searched(budget, "1"), tmp_path)).filter(pl.col("role") == "tuning")
    assert sorted(rows["study_index"]) == list(range(6)) and rows["trial_id"].is_unique().all()
