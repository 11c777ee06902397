"""Selectors of the second batch: by hand, and greedy ones against plain greedy and against all
subsets.
"""

import random
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayunlearn.errors import UserError
from rayunlearn.selectors import greedy
from rayunlearn.selectors.cost import n_places, require_affordable
from rayunlearn.selectors.greedy import (
    craig,
    facility_location,
    facility_order,
    herding,
    k_center,
    keyword_coverage,
)
from rayunlearn.selectors.table import ccs, el2n, grand, influence, loss, top_k_documents, upcore


def order_of(scores: Tensor) -> list[int]:
    return top_k_documents(scores, 1.0)


def all_of(selector: Callable[..., Tensor], documents: Tensor | list[Any]) -> Tensor:
    """The selector's scores with every document ranked."""
    return selector(documents, len(documents))


def plain_greedy(n: int, value: Callable[[list[int]], float]) -> list[int]:
    """The document that raises `value` most, again and again, ties to the first."""
    taken: list[int] = []
    while len(taken) < n:
        left = [i for i in range(n) if i not in taken]
        taken.append(max(left, key=lambda i: (value([*taken, i]), -i)))
    return taken


def test_k_center_on_a_line_by_hand() -> None:
    """0 1 2 6 10, mean 3.8: 2 is nearest (1.8), then 10 (8 away), then 6 (4), then 0 (2),
    then 1.
    """
    assert order_of(all_of(k_center, torch.tensor([[0.0], [1], [2], [6], [10]]))) == [2, 4, 3, 0, 1]


def test_k_center_is_within_twice_the_best_radius_of_all_subsets() -> None:
    points = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)).double()
    distance = torch.cdist(points, points)
    for k in (2, 3, 4):
        best = min(
            float(distance[:, list(s)].min(1).values.max()) for s in combinations(range(9), k)
        )
        assert (
            float(distance[:, order_of(all_of(k_center, points))[:k]].min(1).values.max())
            <= 2 * best + 1e-9
        )


def test_k_center_orders_copies_too() -> None:
    assert sorted(order_of(all_of(k_center, torch.zeros(4, 2)))) == [0, 1, 2, 3]


def test_herding_by_hand() -> None:
    """Unit vectors (1,0) (0,1) (-1,0) (0,1): mean (0, 1/2). First: (0,1) at 1/2 beats (1,0) at sqrt
    1.25. Then the copy gives mean (0,1), off by 1/2; (1,0) gives (1/2,1/2), off by 1/2: a tie, to
    the first, document 0. Then (-1,0) gives (0,1/3), off by 1/6; the copy gives (1/3,2/3), off by
    0.37."""
    points = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, 1]])
    assert order_of(all_of(herding, points)) == [1, 0, 2, 3]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(0, 10_000))
def test_lazy_facility_location_is_plain_greedy(n: int, seed: int) -> None:
    similarity = torch.randint(0, 5, (n, n), generator=torch.Generator().manual_seed(seed)).float()
    similarity = torch.maximum(similarity, similarity.T)
    assert facility_order(similarity.__getitem__, n, n) == plain_greedy(
        n, lambda s: float(similarity[s].max(0).values.sum())
    )


def test_facility_location_reaches_its_share_of_the_best_subset() -> None:
    """Greedy has at least 1 - 1/e of the best value of all subsets of its size."""
    points = torch.nn.functional.normalize(
        torch.randn(9, 3, generator=torch.Generator().manual_seed(2)), dim=1
    )
    similarity = (1 + points @ points.T) / 2
    order = order_of(all_of(facility_location, points))
    for k in (1, 2, 3):
        best = max(
            float(similarity[list(s)].max(0).values.sum()) for s in combinations(range(9), k)
        )
        assert float(similarity[order[:k]].max(0).values.sum()) >= 0.632 * best


def test_craig_takes_the_middle_of_the_large_cluster_then_the_small_one() -> None:
    """Gradients 0 1 2 | 50 on a line. Sums of distances: 53, 51, 51 (at 2: 2 + 1 + 48), 147; d_max
    - d summed is largest at 1 and 2, the first wins. Then 50 saves 49, more than 0 or 2 (1
    each)."""
    assert order_of(all_of(craig, torch.tensor([[0.0], [1], [2], [50]])))[:2] == [1, 3]


def test_keyword_coverage_by_hand() -> None:
    """Corpus weights: a 2, b 4, c 3, d 1. First {b, c} = 7, then {a, b} adds 2, {d} adds 1, {a, d}
    adds 3 -> {a, d}; all is covered; the next round: {a, b} = 6, then {d} adds 1."""
    documents = [{"a": 1.0, "b": 2.0}, {"b": 2.0, "c": 3.0}, {"a": 1.0, "d": 0.5}, {"d": 0.5}]
    assert order_of(all_of(keyword_coverage, documents)) == [1, 2, 0, 3]


def test_keyword_coverage_orders_documents_without_keywords_last_in_their_order() -> None:
    assert order_of(all_of(keyword_coverage, [{}, {"a": 1.0}, {}, {"a": 1.0}])) == [1, 3, 0, 2]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.frozensets(st.sampled_from("abcdef"), min_size=1), min_size=1, max_size=7))
def test_the_first_round_of_keyword_coverage_is_plain_greedy_and_covers_everything(
    documents: list[frozenset[str]],
) -> None:
    order = order_of(all_of(keyword_coverage, [dict.fromkeys(d, 1.0) for d in documents]))
    weight = {w: sum(w in d for d in documents) for w in "abcdef"}
    expected = plain_greedy(
        len(documents),
        lambda s: sum(weight[w] for w in frozenset().union(*(documents[i] for i in s))),
    )
    first_round = next(
        k
        for k in range(1, len(documents) + 1)
        if frozenset().union(*(documents[i] for i in expected[:k])) == frozenset().union(*documents)
    )
    assert order[:first_round] == expected[:first_round]


def points_in_clusters(n: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(1, n // 8), width, generator=generator)
    members = torch.randint(0, len(centres), (n,), generator=generator)
    # each second point is a copy of the one before it: ties, which go to the first
    near = centres[members] + 0.3 * torch.randn(n, width, generator=generator)
    near[1::2] = near[: n // 2 * 2 : 2]
    return near


def plain_k_center(points: Tensor) -> list[int]:
    """Farthest first with every distance computed at every step."""
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    order = [int((points - points.mean(0)).norm(dim=1).argmin())]
    while len(order) < len(points):
        nearest = distance[:, order].min(1).values
        nearest[order] = -1
        order.append(int(nearest.argmax()))
    return order


def plain_herding(points: Tensor) -> list[int]:
    """The criterion of iCaRL as it is written, in float64."""
    points = torch.nn.functional.normalize(points, dim=1)
    order: list[int] = []
    while len(order) < len(points):
        means = (points[order].sum(0) + points) / (len(order) + 1)
        distance = (points.mean(0) - means).norm(dim=1)
        distance[order] = torch.inf
        order.append(int(distance.argmin()))
    return order


@pytest.mark.parametrize("seed", range(3))
def test_lazy_k_center_is_plain_farthest_first(seed: int) -> None:
    points = points_in_clusters(200, 5, seed)
    assert order_of(all_of(k_center, points)) == plain_k_center(points.double())


@pytest.mark.parametrize("seed", range(3))
def test_herding_by_inner_products_is_herding_by_distances(seed: int) -> None:
    # no copies: among equals the two ways may round differently
    points = points_in_clusters(120, 5, seed)[::2]
    assert order_of(all_of(herding, points)) == plain_herding(points.double())


@pytest.mark.parametrize("selector", [facility_location, craig])
def test_rows_computed_when_looked_at_give_the_order_of_the_kept_matrix(
    selector: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    points = points_in_clusters(150, 6, 0)[::2]
    kept = order_of(all_of(selector, points))
    monkeypatch.setattr(greedy, "MATRIX_LIMIT", 0)
    monkeypatch.setattr(greedy, "BLOCK_NUMBERS", 1000)
    assert order_of(all_of(selector, points)) == kept


def test_craig_is_plain_greedy_of_equation_13() -> None:
    gradients = points_in_clusters(24, 4, 1)[::2]
    distance = torch.cdist(gradients, gradients).double()
    similarity = distance.max() - distance
    expected = plain_greedy(len(gradients), lambda s: float(similarity[s].max(0).values.sum()))
    assert order_of(all_of(craig, gradients)) == expected


@pytest.mark.parametrize("selector", [k_center, herding, facility_location, craig])
def test_the_first_places_are_the_same_however_many_are_asked_for(
    selector: Callable[..., Tensor],
) -> None:
    points = points_in_clusters(64, 4, 2)
    whole, part = selector(points, 64), selector(points, 10)
    assert order_of(part)[:10] == order_of(whole)[:10]
    assert sorted(part.tolist())[:54] == [-10.0] * 54


def plain_coverage(documents: list[dict[str, float]]) -> list[int]:
    """Rounds of cover with every gain summed anew at every step."""
    weight: dict[str, float] = {}
    for keywords in documents:
        for word, value in keywords.items():
            weight[word] = weight.get(word, 0.0) + value
    order: list[int] = []
    covered: set[str] = set()
    while len(order) < len(documents):
        left = [i for i in range(len(documents)) if i not in order]
        gain = {i: sum(weight[w] for w in documents[i] if w not in covered) for i in left}
        best = max(left, key=lambda i: (gain[i], -i))
        if gain[best] > 0:
            order.append(best)
            covered |= set(documents[best])
        elif covered:
            covered = set()
        else:
            order += left
    return order


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 4)), max_size=12))
def test_keyword_coverage_is_plain_greedy_through_all_rounds(
    documents: list[dict[str, int]],
) -> None:
    weighted = [{word: float(value) for word, value in d.items()} for d in documents]
    if weighted:
        assert order_of(all_of(keyword_coverage, weighted)) == plain_coverage(weighted)


def test_only_as_many_documents_as_asked_for_are_ranked_by_coverage() -> None:
    generator = random.Random(0)
    words = [f"w{i}" for i in range(30)]
    documents = [dict.fromkeys(generator.sample(words, 3), 1.0) for _ in range(4_000)]
    scores = keyword_coverage(documents, 200)
    assert len(set(order_of(scores)[:200])) == 200 and float(scores.min()) == -200


def test_a_selection_that_would_take_hours_is_refused_with_its_estimate() -> None:
    with pytest.raises(UserError, match=r"facility_location of 10,000 from 200,000 documents .*"):
        facility_location(torch.zeros(200_000, 64), 10_000)
    with pytest.raises(UserError, match=r"an estimate of [\d,]+ minutes and [\d.]+ GiB"):
        require_affordable("k_center", 200_000, 4096, 200_000)
    require_affordable("k_center", 200_000, 128, 10_000)
    require_affordable("herding", 200_000, 128, 10_000)
    require_affordable("random", 10**9, 0, 10**9)


@pytest.mark.parametrize(
    ("n", "ratio", "places"),
    [
        (4_096, 0.01, 4_096),
        (200_000, 0.05, 12_500),
        (200_000, 0.06, 12_500),
        (200_000, 1.0, 200_000),
        (5_001, 0.0001, 1),
    ],
)
def test_neighbouring_ratios_share_an_order(n: int, ratio: float, places: int) -> None:
    assert n_places(n, ratio) == places


def test_losses_and_error_norms_are_means_over_tokens_and_the_hardest_come_first() -> None:
    tokens = [torch.tensor([1.0, 3.0]), torch.tensor([5.0])]
    assert loss(tokens).tolist() == el2n(tokens).tolist() == [2.0, 5.0] and top_k_documents(
        loss(tokens), 0.5
    ) == [1]


def test_grand_averages_the_trajectory_and_zero_epochs_is_one_point() -> None:
    """Norms (1, 4) at the base model and (7, 2) after an epoch: means (4, 3); at the base model
    alone the second is first.
    """
    norms = torch.tensor([[1.0, 4.0], [7.0, 2.0]])
    assert grand(lambda epochs: norms[: epochs + 1], epochs=1).tolist() == [4.0, 3.0]
    assert top_k_documents(grand(lambda epochs: norms[: epochs + 1], epochs=0), 0.5) == [1]


def test_influence_takes_what_goes_least_along_the_retain_gradient() -> None:
    assert order_of(influence(torch.tensor([0.9, -0.5, 0.1]))) == [1, 2, 0]


def test_upcore_drops_the_far_point_first() -> None:
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    points[17] = 30.0
    assert order_of(upcore(points, 0))[-1] == 17


def test_ccs_takes_equally_from_every_stratum_and_the_hardest_last() -> None:
    """Losses: six of 0.x, two of 5.x, one 9.9 and one 100. The hardest tenth (100) is last. Range
    0-9.9 in two: below 4.95 six, above three. Of 4 two from each; of 8 five and three, as the small
    stratum is exhausted."""
    losses = [torch.tensor([v]) for v in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 5.0, 5.1, 9.9, 100.0)]
    order = order_of(ccs(losses, 0, strata=2, hard_cutoff=0.1))
    assert order[-1] == 9
    assert [sum(i < 6 for i in order[:k]) for k in (2, 4, 6, 8)] == [1, 2, 3, 5]
    assert order != order_of(ccs(losses, 1, strata=2, hard_cutoff=0.1))


def test_stratified_coresets_share_out_topics_to_within_one_document_and_are_nested() -> None:
    """Topics of 10, 5 and 1 documents: 16 k / 16 ... each share is within one of its proportion at
    every size.
    """
    topics = ["a"] * 10 + ["b"] * 5 + ["c"]
    scores = torch.rand(16, generator=torch.Generator().manual_seed(0))
    whole = top_k_documents(scores, 1.0, topics)
    for k in range(1, 17):
        kept = top_k_documents(scores, k / 16, topics)
        assert kept == whole[:k]
        assert all(
            abs(sum(topics[i] == t for i in kept) - k * topics.count(t) / 16) < 1 for t in "abc"
        )
    assert [i for i in whole if i < 10] == [i for i in top_k_documents(scores, 1.0) if i < 10]


@pytest.mark.parametrize("topics", [(), ("same",) * 5])
def test_one_topic_or_none_leaves_the_order_alone(topics: tuple[str, ...]) -> None:
    assert top_k_documents(torch.tensor([1.0, 5, 3, 2, 4]), 0.6, topics) == [1, 4, 2]
