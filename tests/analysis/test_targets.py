"""Distances from gold and chance, worked by hand."""

import numpy as np
import pytest

from rayunlearn.analysis.intervals import Interval
from rayunlearn.analysis.targets import (
    Target,
    above_target,
    cell_distance,
    chance_metric,
    is_over_forgotten,
    target_distance,
)
from tests.synthetic import METRICS

GOLD = Target("gold", np.array([0.0, 0.2, 0.4, np.nan]))


def test_below_gold_counts_as_far_as_above_it() -> None:
    """Gold's values 0, .2, .4. All at 0: (0 + .2 + .4) / 3 = .2; each .2 higher than gold: .2."""
    assert target_distance([0, 0, 0, 0.9], GOLD) == pytest.approx(0.2)
    assert target_distance([0.2, 0.4, 0.6, 0.9], GOLD) == pytest.approx(0.2)


def test_two_models_that_never_knew_are_near_each_other_whichever_documents_they_guess() -> None:
    """The same values on other documents: 0, though the mean |x - gold| is .27, more than the .2 of
    a model that is ruined.
    """
    assert target_distance([0.4, 0.0, 0.2, np.nan], GOLD) == pytest.approx(0)
    assert np.mean(np.abs([0.4, -0.2, -0.2])) > 0.2


def test_equal_means_are_not_enough() -> None:
    """Half the documents known and half destroyed: 0, 0, .6 against 0, .2, .4 is .4 / 3."""
    assert target_distance([0, 0.6, 0, np.nan], GOLD) == pytest.approx(0.4 / 3)


def test_the_distance_is_that_of_a_brute_force_search_over_pairings() -> None:
    """Wasserstein-1 is the least mean |x - y| over all ways to pair the documents."""
    from itertools import permutations

    x, y = np.random.default_rng(0).random((2, 6))
    least = min(np.abs(x - np.array(order)).mean() for order in permutations(y))
    assert target_distance(x, Target("gold", y)) == pytest.approx(least)


def test_chance_is_a_mean_and_not_a_distribution() -> None:
    """Right on one of four questions with four options is chance; on none or two .25 away."""
    chance = Target("chance", np.full(4, 0.25))
    distances = [target_distance(x, chance) for x in ([1, 0, 0, 0], [0] * 4, [1, 1, 0, 0])]
    assert distances == pytest.approx([0, 0.25, 0.25])


def test_nothing_in_common_is_no_distance() -> None:
    nothing = np.full((1, 4), np.nan)
    assert np.isnan(target_distance(nothing[0], GOLD)) and cell_distance(nothing, GOLD) is None
    assert above_target(nothing, GOLD).mean is None


def test_a_cell_is_the_mean_of_its_trials_so_that_opposite_errors_do_not_cancel() -> None:
    cell = np.array([[0.0, 0.0, 0.0, 0.0], [0.2, 0.4, 0.6, 0.0]])
    assert cell_distance(cell, GOLD) == pytest.approx(0.2)
    assert above_target(cell, GOLD).mean == pytest.approx(0)


def test_over_forgotten_is_shown_by_the_interval_and_not_by_the_mean() -> None:
    """Ten documents 0 against gold's .1 to .3 are below it; two that differ by .1 either way, and
    one document alone, show nothing.
    """
    gold = Target("gold", np.linspace(0.1, 0.3, 10))
    assert is_over_forgotten(above_target(np.zeros((1, 10)), gold))
    assert not is_over_forgotten(above_target(gold.values[None] + 0.1, gold))
    assert not is_over_forgotten(above_target(gold.values[None, ::-1], gold))
    assert not is_over_forgotten(above_target(np.zeros((1, 1)), Target("gold", np.array([0.1]))))
    above = Interval(mean=2.0, low=1.0, high=3.0, over="documents")
    assert is_over_forgotten(above, lower_forgets=False) and not is_over_forgotten(above)


def test_the_chance_level_is_the_metric_that_the_run_names() -> None:
    rows = [row | {"chance": "option_chance"} for row in METRICS if row["name"] != "probability"]
    assert chance_metric({"metrics": rows}, "multiple_choice") == "option_chance"
    assert chance_metric({"metrics": METRICS}, "probability") == ""
