"""The order of looks and the area of a training curve, by hand."""

import math

import pytest

from rayunlearn.analysis.training_curve import constrained_rank, forget_utility_area


def test_what_keeps_the_floor_comes_before_what_forgot_more_without_it() -> None:
    """By hand: kept 0.2, kept 0.5, broken by 0.01 (forgot all), broken by 0.3, unknown."""
    looks = [
        (0.2, -0.1),
        (0.5, 0.0),
        (0.0, 0.01),
        (0.0, 0.3),
        (math.nan, -0.5),
    ]
    ranks = [constrained_rank(*look) for look in looks]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(ranks)


def test_the_area_of_a_curve_that_comes_back_counts_its_front_alone() -> None:
    """Forgetting 1.0, 0.5, 0.8, 0.2 of the start's and utility 1.0, 0.6, 0.9, 0.5: the front is
    (0, 1), (.2, .9), (.5, .6), (.8, .5). Trapezoids: .2 x .95 + .3 x .75 + .3 x .55 = .58.
    """
    area = forget_utility_area([2.0, 1.0, 1.6, 0.4], [0.5, 0.3, 0.45, 0.25])
    assert area == pytest.approx(0.58)


def test_the_area_of_a_model_that_is_destroyed_at_once_is_half_of_what_is_kept() -> None:
    """One straight line from (0, 1) to (1, 0)."""
    assert forget_utility_area([0.9, 0.0], [0.9, 0.0]) == pytest.approx(0.5)
    assert forget_utility_area([0.9, 0.9], [0.9, 0.9]) == 0.0
    assert forget_utility_area([0.9], [0.9]) is None
    assert forget_utility_area([0.0, 0.0], [0.9, 0.9]) is None
