"""Tests between cells: by hand, against scipy where a case has a textbook form, and their error
rates by simulation.
"""

import numpy as np
import pytest
from scipy import stats

from rayunlearn.analysis.hypothesis_tests import (
    difference,
    documents_needed,
    equivalence_p,
    equivalence_power,
    holm,
    not_worse_p,
    paired_p,
    seeds_needed,
)
from rayunlearn.errors import UserError


def cell(
    generator: np.random.Generator,
    *,
    seeds: int,
    documents: np.ndarray,
    mean: float = 0.0,
    between: float = 0.0,
    noise: float = 1.0,
) -> np.ndarray:
    """mean + document effects + a shift per seed + noise, (seeds, documents)."""
    shifts = generator.normal(0, between, (seeds, 1)) if between else np.zeros((seeds, 1))
    return mean + documents + shifts + generator.normal(0, noise, (seeds, documents.shape[-1]))


def test_with_one_seed_the_test_is_the_paired_t_test() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(0.2, 1, (1, 30)), generator.normal(0, 1, (1, 30))
    found = difference(a, b)
    assert found.over == "documents" and found.degrees == pytest.approx(29)
    assert paired_p(found) == pytest.approx(stats.ttest_rel(a[0], b[0]).pvalue)


def test_a_difference_of_two_by_two_cells_by_hand() -> None:
    """a = [[1, 3], [3, 5]], b = [[0, 0], [0, 4]]. Document means: a 2, 4; b 0, 2; differences 2, 2,
    variance 0.

    Seed means: a 2, 4 (variance 2), b 0, 2 (variance 2), over 2 seeds each: 1 + 1. a is additive,
    its residuals are 0; b's are +1 and -1 in a pattern: sum of squares 4, over (1 x 1) and 4
    values: overlap 1. max(0 + 2 - 1, 0, 2) = 2.
    """
    found = difference(np.array([[1.0, 3.0], [3.0, 5.0]]), np.array([[0.0, 0.0], [0.0, 4.0]]))
    assert (found.mean, found.from_documents, found.from_seeds, found.variance) == pytest.approx(
        (2.0, 0.0, 2.0, 2.0)
    )
    assert found.degrees == pytest.approx(2**2 / (1**2 / 1 + 1**2 / 1))
    assert found.over == "seeds and documents"


def test_pairing_takes_the_documents_own_difficulty_out() -> None:
    generator = np.random.default_rng(1)
    hard = generator.normal(0, 5, 40)
    a, b = (
        cell(generator, seeds=3, documents=hard, mean=0.5, noise=0.1),
        cell(generator, seeds=3, documents=hard, noise=0.1),
    )
    assert difference(a, b).stderr < 0.05
    # unpaired, the documents' spread of 5 hides a shift of 0.5
    assert stats.ttest_ind(a.mean(0), b.mean(0)).pvalue > 0.3
    assert paired_p(difference(a, b)) < 1e-4


@pytest.mark.parametrize(("between", "seeds"), [(0.0, 3), (0.3, 4), (0.3, 2)])
def test_no_difference_is_called_one_at_most_as_often_as_alpha_says(
    between: float, seeds: int
) -> None:
    """1,500 pairs of equal cells, documents and seeds random: at most 5% of tests below 0.05, and
    three standard errors.
    """
    generator = np.random.default_rng(2)
    below = []
    for _ in range(1500):
        shared = generator.normal(0, 1, 25)
        own = generator.normal(0, 0.5, (2, 25))
        a, b = (
            cell(generator, seeds=seeds, documents=shared + own[side], between=between, noise=0.4)
            for side in (0, 1)
        )
        below.append(paired_p(difference(a, b)) < 0.05)
    assert np.mean(below) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1500)
    # nor is the test asleep
    assert np.mean(below) > 0.005


def test_a_difference_as_large_as_the_margin_is_called_equivalent_at_most_as_often() -> None:
    generator = np.random.default_rng(3)
    below = []
    for _ in range(1500):
        shared = generator.normal(0, 1, 25)
        a = cell(generator, seeds=3, documents=shared, mean=0.5, between=0.1, noise=0.4)
        below.append(
            equivalence_p(
                difference(a, cell(generator, seeds=3, documents=shared, between=0.1, noise=0.4)),
                0.5,
            )
            < 0.05
        )
    assert 0.005 < np.mean(below) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1500)


def test_tost_is_the_larger_of_two_one_sided_tests() -> None:
    generator = np.random.default_rng(4)
    a, b = generator.normal(0.1, 1, (1, 50)), generator.normal(0, 1, (1, 50))
    gap = a[0] - b[0]
    expected = max(
        stats.ttest_1samp(gap, -0.6, alternative="greater").pvalue,
        stats.ttest_1samp(gap, 0.6, alternative="less").pvalue,
    )
    assert equivalence_p(difference(a, b), 0.6) == pytest.approx(expected)
    assert not_worse_p(difference(a, b), 0.6, worse=1) == pytest.approx(
        stats.ttest_1samp(gap, 0.6, alternative="less").pvalue
    )
    assert not_worse_p(difference(a, b), 0.6, worse=-1) == pytest.approx(
        stats.ttest_1samp(gap, -0.6, alternative="greater").pvalue
    )


def test_equal_cells_are_equivalent_and_not_different() -> None:
    same = np.full((2, 5), 0.5)
    assert paired_p(difference(same, same)) == 1.0
    assert equivalence_p(difference(same, same), 0.01) == 0.0
    assert paired_p(difference(same, same + 0.1)) == 0.0
    assert equivalence_p(difference(same, same + 0.1), 0.05) == 1.0


def test_holm_by_hand() -> None:
    """0.01, 0.04, 0.03 of three: 3 x 0.01, then 2 x 0.03 = 0.06, then max(0.06, 0.04)."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.7, 0.9]) == [1.0, 1.0]


def test_missing_values_leave_the_means_of_what_is_there() -> None:
    """The document that b never saw is left out; the one value that a's second seed lacks is filled
    additively.
    """
    a = np.array([[1.0, 2.0, 9.0], [2.0, np.nan, 9.0]])
    b = np.array([[0.0, 0.0, np.nan]])
    found = difference(a, b)
    assert found.n_documents == 2
    whole = difference(np.array([[1.0, 2.0], [2.0, 2.0 + 2.0 - 5 / 3]]), b[:, :2])
    assert found.mean == pytest.approx(whole.mean)


def test_cells_of_other_documents_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="same documents"):
        difference(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(UserError, match="a document that both"):
        difference(np.array([[1.0, np.nan]]), np.array([[np.nan, 1.0]]))
    with pytest.raises(UserError, match=r"margin must be > 0, got 0"):
        equivalence_p(difference(np.zeros((1, 2)), np.ones((1, 2))), 0)


def test_the_power_is_the_share_of_simulated_tests_that_pass() -> None:
    """One seed, 60 documents, difference 0.1 of noise 1, margin 0.5: the formula against 2,000
    simulated tests.
    """
    generator = np.random.default_rng(5)
    passed = [
        equivalence_p(difference(generator.normal(0.1, 1, (1, 60)), np.zeros((1, 60))), 0.5) < 0.05
        for _ in range(2000)
    ]
    # mean 0.1, sd 1
    exact = difference(np.tile([1.1, -0.9], 30)[None] * 1.0, np.zeros((1, 60)))
    assert equivalence_power(exact, 0.5, alpha=0.05, n_documents=60, n_seeds=1) == pytest.approx(
        np.mean(passed), abs=0.03
    )


def test_the_documents_needed_have_the_power_and_one_fewer_has_not() -> None:
    generator = np.random.default_rng(6)
    found = difference(generator.normal(0.02, 1, (1, 40)), np.zeros((1, 40)))
    n = documents_needed(found, 0.3)
    assert n is not None and n > 40
    chances = [
        equivalence_power(found, 0.3, alpha=0.05, n_documents=number, n_seeds=1)
        for number in (n - 1, n)
    ]
    assert chances[0] < 0.8 <= chances[1]


def test_a_few_seeds_have_few_degrees_of_freedom_and_are_not_called_enough() -> None:
    """Two seeds that differ a little: their spread is small but hardly known, so the test fails and
    asks for more of them.
    """
    found = difference(np.array([[-0.005], [0.005]]) + np.zeros((2, 40)), np.zeros((2, 40)))
    assert equivalence_p(found, 0.02) > 0.05
    n = seeds_needed(found, 0.02)
    assert n is not None and 2 < n < 10


def test_the_seeds_needed_are_enough_in_simulation() -> None:
    """Seeds of spread 0.1 in both cells, margin 0.15, no true difference: with the number asked
    for, TOST shows it as often as promised.
    """
    generator = np.random.default_rng(8)
    # a sample of four whose standard deviation is 0.1
    shape = np.array([-0.1, 0.1, -0.1, 0.1]) * np.sqrt(3 / 4)
    n = seeds_needed(
        difference(shape[:, None] + np.zeros((4, 20)), shape[::-1, None] + np.zeros((4, 20))), 0.15
    )
    assert n is not None and n > 4
    cells = [generator.normal(0, 0.1, (2, n, 1)) + np.zeros((2, n, 20)) for _ in range(600)]
    assert np.mean([equivalence_p(difference(a, b), 0.15) < 0.05 for a, b in cells]) > 0.75


def test_no_number_is_given_where_none_would_do() -> None:
    generator = np.random.default_rng(7)
    outside = difference(generator.normal(1.0, 0.1, (2, 40)), np.zeros((2, 40)))
    assert documents_needed(outside, 0.3) is None and seeds_needed(outside, 0.3) is None
    one_seed = difference(generator.normal(0, 1, (1, 40)), np.zeros((1, 40)))
    assert seeds_needed(one_seed, 0.3) is None
    # what differs are the seeds: documents cannot help, seeds can
    apart = np.array([[-0.4], [0.4]]) + np.zeros((2, 40))
    assert documents_needed(difference(apart, np.zeros((2, 40))), 0.3) is None
    assert (seeds_needed(difference(apart, np.zeros((2, 40))), 0.3) or 0) > 2
