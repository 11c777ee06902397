"""Distances from gold and chance, worked by hand."""

import numpy as np
import pytest

from rayunlearn.analysis.intervals import Interval
from rayunlearn.analysis.targets import (
    Target,
    above_target,
    cell_distance,
    chance_metric,
    distance_by_document,
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
    assert np.isnan(target_distance(nothing[0], GOLD)) and cell_distance(nothing).mean is None
    assert above_target(nothing, GOLD).mean is None


def test_a_cell_is_the_mean_of_its_trials_so_that_opposite_errors_do_not_cancel() -> None:
    cell = np.array([[0.0, 0.0, 0.0, 0.0], [0.2, 0.4, 0.6, 0.0]])
    assert cell_distance(distance_by_document(cell, GOLD)).mean == pytest.approx(0.2)
    assert above_target(cell, GOLD).mean == pytest.approx(0)


def test_contributions_of_documents_add_up_to_the_distance() -> None:
    """Against gold .1, .3: 0 and .6 are at ranks 1 and 2, below and above: gold's .1 counts with
    plus and its .3 with minus, so (0 + .1, .6 - .3) = (.1, .3), mean .2. Any matrix: as
    `target_distance` says.
    """
    gold = Target("gold", np.array([0.1, 0.3]))
    assert distance_by_document(np.array([[0.0, 0.6]]), gold)[0] == pytest.approx([0.1, 0.3])
    values, aim = np.random.default_rng(1).random((3, 8)), np.random.default_rng(2).random(8)
    aim[2] = values[1, 5] = np.nan
    for kind in ("gold", "chance"):
        target = Target(kind, aim)
        means = np.nanmean(distance_by_document(values, target), axis=1)
        assert means == pytest.approx([target_distance(row, target) for row in values])


def test_the_interval_of_a_distance_is_that_of_the_documents_that_were_drawn() -> None:
    """300 corpora of 40 documents; the model's mean is .2 below gold's throughout, so the distance
    is .2: the 95% interval has to hold it in 93 to 97% of them (99% of such counts).
    """
    generator, held = np.random.default_rng(3), 0
    for _ in range(300):
        x, y = generator.normal(0.3, 0.1, 40), generator.normal(0.5, 0.1, 40)
        interval = cell_distance(distance_by_document(x[None], Target("gold", y)))
        assert interval.low is not None and interval.high is not None
        held += interval.low <= 0.2 <= interval.high
    assert 0.92 * 300 <= held <= 0.98 * 300


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
