"""Selectors by hand, and what holds for all of them."""

import zlib as library_zlib

import pytest
import torch
from torch import Tensor

from rayunlearn.ranges import options_of, required_inputs
from rayunlearn.selectors.table import (
    SELECTORS,
    min_k,
    min_k_plus,
    moderate,
    random,
    top_k_documents,
    zlib,
)

EMBEDDINGS = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
LOSSES = [torch.rand(3 + i % 5, generator=torch.Generator().manual_seed(i)) for i in range(40)]
INPUTS = {
    "n_documents": 40,
    "seed": 3,
    "embeddings": EMBEDDINGS,
    "token_nll": LOSSES,
    "answer_nll": LOSSES,
    "answer_surprise": [-losses for losses in LOSSES],
    "nll_per_byte": EMBEDDINGS[:, 1].exp(),
    "token_error": LOSSES,
    "gradients": EMBEDDINGS,
    "retain_alignment": EMBEDDINGS[:, 0].tanh(),
    "norms_along": lambda epochs: torch.rand(
        epochs + 1, 40, generator=torch.Generator().manual_seed(1)
    ),
    "n_ranked": 40,
    "document_keywords": [{f"word{i % 7}": 1.0 + i % 3, f"rare{i}": 0.1} for i in range(40)],
}


def scores_of(name: str) -> Tensor:
    function = SELECTORS[name].function
    return function(**{n: INPUTS[n] for n in required_inputs(function)})


def test_min_k_averages_the_least_likely_tokens_and_prefers_the_memorised() -> None:
    """Five tokens, 40%: the two largest NLL, 4 and 3, mean 3.5; a document of all 0.1 scores -0.1
    and comes first.
    """
    scores = min_k([torch.tensor([1.0, 4.0, 0.5, 3.0, 0.2]), torch.full((5,), 0.1)], fraction=0.4)
    assert scores.tolist() == pytest.approx([-3.5, -0.1])
    assert top_k_documents(scores, 0.5) == [1]


def test_min_k_of_one_token_uses_that_token() -> None:
    assert min_k([torch.tensor([2.0])]).tolist() == [-2.0]


def test_min_k_plus_averages_the_lowest_standardised_tokens() -> None:
    """Five tokens, 40%: the two lowest, -4 and -3, mean -3.5; a document of all -1 scores -1 and
    comes first.
    """
    scores = min_k_plus(
        [torch.tensor([-1.0, -4.0, -0.5, -3.0, -0.2]), torch.full((5,), -1.0)], fraction=0.4
    )
    assert scores.tolist() == pytest.approx([-3.5, -1.0])
    assert top_k_documents(scores, 0.5) == [1]


def test_zlib_prefers_what_is_known_beyond_its_repetition() -> None:
    """Both cost 6 nats; 'aaaa...' compresses to fewer bytes, so it owes more of that to repetition
    and comes second.
    """
    bytes_of = [
        len(library_zlib.compress(text.encode()))
        for text in ("a" * 40, "The quick brown fox jumps over a lazy dog")
    ]
    assert bytes_of[0] < bytes_of[1]
    assert top_k_documents(zlib(torch.tensor([6 / n for n in bytes_of])), 1.0) == [1, 0]


def test_moderate_keeps_the_median_distance_and_not_the_nearest() -> None:
    """One cluster on a line at 0, 1, 2, 3, 10: centroid 3.2, distances 3.2 2.2 1.2 0.2 6.8, median
    2.2 -> the point at 1.
    """
    points = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0]])
    scores = moderate(points, 0, clusters=1)
    assert top_k_documents(scores, 0.2) == [1]
    assert scores.tolist() == pytest.approx([-1.0, 0.0, -1.0, -2.0, -4.6])


def test_random_is_nested_across_ratios_and_a_function_of_the_seed() -> None:
    few, many = (
        top_k_documents(random(100, 5), 0.05),
        top_k_documents(random(100, 5), 0.5),
    )
    assert few == many[:5] and few == top_k_documents(random(100, 5), 0.05)
    assert few != top_k_documents(random(100, 6), 0.05)


def test_random_takes_every_document_equally_often() -> None:
    """2,000 seeds x 2 of 10: each document 400 times expected, standard deviation 17.9; five of
    them allowed.
    """
    counts = torch.zeros(10)
    for seed in range(2000):
        counts[top_k_documents(random(10, seed), 0.2)] += 1
    assert float((counts - 400).abs().max()) < 90


@pytest.mark.parametrize(
    ("n", "ratio", "kept"),
    [(200, 0.05, 10), (200, 0.01, 2), (10, 0.01, 1), (3, 1.0, 3), (7, 0.5, 4), (5, 0.5, 2)],
)
def test_ratio_r_keeps_the_larger_of_one_and_the_rounded_share(
    n: int, ratio: float, kept: int
) -> None:
    """round() is Python's: halves go to the even number (3.5 -> 4, 2.5 -> 2)."""
    assert len(top_k_documents(torch.zeros(n), ratio)) == kept


def test_equal_scores_keep_the_documents_order() -> None:
    assert top_k_documents(torch.zeros(20), 0.25) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_every_selector_scores_every_document_finitely_and_repeatably(name: str) -> None:
    first, again = scores_of(name), scores_of(name)
    assert first.shape == (40,) and bool(torch.isfinite(first).all()) and torch.equal(first, again)
    assert (
        SELECTORS[name].source and SELECTORS[name].departures and SELECTORS[name].function.__doc__
    )
    assert all(option.rule is not None for option in options_of(SELECTORS[name].function))
