"""Selectors that build a coreset one document at a time: the score of a document is minus its place
in that order.

So they are nested like the others. Every tie goes to the document that comes first. Order of all n
documents is built once and serves every ratio: O(n^2) time, and for the two facility-location rows
an (n, n) float32 matrix (1.6 GB at n = 20,000).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rayunlearn.lazy import functional, torch

if TYPE_CHECKING:
    from torch import Tensor


def k_center(embeddings: Tensor) -> Tensor:
    """Farthest-first traversal: each next document is the one farthest from all that are taken
    (Euclidean).

    embeddings (n, D); returns -rank (n,). Sener and Savarese 1708.00489, algorithm 1; the first is
    the document nearest to the mean (ours).
    """
    points = embeddings.double()
    first = int((points - points.mean(0)).norm(dim=1).argmin())
    order, nearest = [first], (points - points[first]).norm(dim=1)
    while len(order) < len(points):
        # taken documents never win, duplicates of them (distance 0) still can
        nearest[order[-1]] = -1.0
        order.append(int(nearest.argmax()))
        nearest = torch.where(
            nearest < 0, nearest, torch.minimum(nearest, (points - points[order[-1]]).norm(dim=1))
        )
    return rank_scores(order)


def herding(embeddings: Tensor) -> Tensor:
    """Each next document moves the coreset's mean as near to the corpus's mean as one document can.

    embeddings (n, D), scaled to unit length here; returns -rank (n,). Welling 2009 in the form of
    iCaRL (Rebuffi et al.
    1611.07725, algorithm 4): argmin || mean - (sum of taken + x) / (k + 1) ||, without replacement.
    """
    points = functional.normalize(embeddings.double(), dim=1)
    target, total = points.mean(0), torch.zeros(points.shape[1], dtype=torch.float64)
    order: list[int] = []
    candidates = torch.ones(len(points), dtype=torch.bool)
    for size in range(1, len(points) + 1):
        distance = (target - (total + points) / size).norm(dim=1)
        order.append(int(torch.where(candidates, distance, torch.inf).argmin()))
        candidates[order[-1]] = False
        total += points[order[-1]]
    return rank_scores(order)


def facility_location(embeddings: Tensor) -> Tensor:
    """Greedy maximum of sum_i max_{j taken} (1 + cosine_ij) / 2: every document has a taken one
    like it.

    embeddings (n, D); returns -rank (n,). Lin and Bilmes 2011; lazy greedy (Minoux 1978), equal to
    plain greedy.
    """
    points = functional.normalize(embeddings.float(), dim=1)
    return rank_scores(facility_order((1 + points @ points.T) / 2))


def craig(gradients: Tensor) -> Tensor:
    """Facility location on gradients: greedy maximum of sum_i max_{j taken} (d_max - ||g_i -
    g_j||).

    gradients (n, d); returns -rank (n,). CRAIG (Mirzasoleiman et al. 1906.01827, equation 13).
    """
    distance = torch.cdist(gradients.float(), gradients.float())
    return rank_scores(facility_order(distance.max() - distance))


def keyword_coverage(document_keywords: Sequence[Mapping[str, float]]) -> Tensor:
    """Greedy cover of weighted keywords: each next document adds the most weight not yet covered.

    document_keywords: keyword to weight of every document; a keyword weighs the sum of its weights
    over the corpus. When nothing new is left, a new round of cover begins among the remaining
    documents. Returns -rank (n,). Ours; weighted maximum coverage, of which greedy reaches 1 - 1/e
    (Nemhauser et al. 1978).
    """
    weights: dict[str, float] = {}
    for keywords in document_keywords:
        for word, weight in keywords.items():
            weights[word] = weights.get(word, 0.0) + weight
    order: list[int] = []
    candidates = list(range(len(document_keywords)))
    while candidates:
        order += _one_cover(document_keywords, weights, candidates)
        chosen = set(order)
        candidates = [document for document in candidates if document not in chosen]
    return rank_scores(order)


def _one_cover(
    document_keywords: Sequence[Mapping[str, float]],
    weights: Mapping[str, float],
    candidates: Sequence[int],
) -> list[int]:
    """Documents of `left` until none adds weight; all of them where none ever does."""
    covered: set[str] = set()

    def gain(document: int) -> float:
        return sum(weights[word] for word in document_keywords[document] if word not in covered)

    order = lazy_greedy(
        candidates, gain, lambda candidate: covered.update(document_keywords[candidate]), until=0.0
    )
    return order or list(candidates)


def facility_order(similarity: Tensor) -> list[int]:
    """All documents in the order of greedy facility location; similarity (n, n), none negative."""
    best = torch.zeros(len(similarity), dtype=similarity.dtype)

    def gain(document: int) -> float:
        return float((similarity[document] - best).clamp_min(0).sum(dtype=torch.float64))

    def take(document: int) -> None:
        torch.maximum(best, similarity[document], out=best)

    return lazy_greedy(range(len(similarity)), gain, take)


def lazy_greedy(
    candidates: Sequence[int],
    gain: Callable[[int], float],
    take: Callable[[int], None],
    until: float = -1.0,
) -> list[int]:
    """Candidates in the order of greedy choice, ties to the first; stops when the best gain is
    `until` or less.

    `gain(i)` may only fall as others are taken (a submodular function), so an old gain that is
    beaten by a fresh one needs no new look.
    """
    heap = [(-gain(document), priority, 0) for priority, document in enumerate(candidates)]
    heapq.heapify(heap)
    order: list[int] = []
    while heap:
        value, priority, seen = heapq.heappop(heap)
        if seen < len(order):
            heapq.heappush(heap, (-gain(candidates[priority]), priority, len(order)))
        elif -value <= until:
            break
        else:
            order.append(candidates[priority])
            take(candidates[priority])
    return order


def rank_scores(order: Sequence[int]) -> Tensor:
    """Order to scores: minus the place of each document, (n,) float32."""
    scores = torch.empty(len(order))
    scores[torch.tensor(order, dtype=torch.long)] = -torch.arange(len(order), dtype=torch.float32)
    return scores
