"""Selectors give every forget document a score; the coreset is the max(1, round(ratio n)) documents with the highest.

So every selector is nested: a smaller coreset is part of a larger one. Positional parameters name what a selector
needs: `n_documents` (documents come sorted by doc_id, so the order of the file never matters), `token_nll` (one
(n_i,) tensor of nats per document) and `embeddings` (n, D), both of the base model; `seed` is `select.seed`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from rayunlearn.ranges import Count, Fraction


def random(n_documents: int, seed: int) -> Tensor:
    """Uniform without replacement: the score is the place in a seeded permutation, so ratios are nested. (n,)"""
    order = torch.randperm(n_documents, generator=torch.Generator().manual_seed(seed))
    scores = torch.empty(n_documents)
    scores[order] = -torch.arange(n_documents, dtype=torch.float32)
    return scores


def min_k(token_nll: Sequence[Tensor], *, fraction: Fraction = 0.4) -> Tensor:
    """Mean log-probability of the `fraction` of tokens the base model finds least likely; the most memorised first.

    token_nll: (n_i,) nats per document. At least one token counts. Higher is kept first, as in the coreset paper
    (a public re-implementation has the sign the other way round). Returns (n,).
    """
    lowest = [nll.sort(descending=True).values[: max(1, int(fraction * len(nll)))] for nll in token_nll]
    return torch.stack([-nll.mean() for nll in lowest])


def moderate(embeddings: Tensor, seed: int, *, clusters: Count = 4) -> Tensor:
    """K-means on the base model's penultimate layer; documents whose distance to their own centroid is nearest to
    their cluster's MEDIAN distance come first.

    embeddings (n, D); returns -|d_i - median of its cluster| (n,). The paper states neither pooling nor a quota for
    each cluster: we take the mean over tokens and rank over all clusters. With fewer documents than clusters every
    document is its own cluster.
    """
    points = embeddings.double().numpy()
    fitted = KMeans(n_clusters=min(clusters, len(points)), n_init=4, random_state=seed).fit(points)
    distance = np.linalg.norm(points - fitted.cluster_centers_[fitted.labels_], axis=1)
    median = np.array([np.median(distance[fitted.labels_ == label]) for label in fitted.labels_])
    return torch.from_numpy(-np.abs(distance - median)).float()


@dataclass(frozen=True)
class Selector:
    """A row of the family: the function and where it comes from."""

    function: Callable[..., Tensor]
    title: str
    source: str


SELECTORS = {
    row.function.__name__: row
    for row in (
        Selector(random, "uniform without replacement", "coreset paper 2504.10185, section 3 (RANDOM)"),
        Selector(min_k, "most memorised by min-k % probability", "Shi et al. 2310.16789; coreset paper 2504.10185, appendix C2"),
        Selector(moderate, "moderate coreset", "Xia et al., ICLR 2023; coreset paper 2504.10185, appendix C"),
    )
}


def keep(scores: Tensor, ratio: float) -> list[int]:
    """Positions of the max(1, round(ratio n)) highest scores, best first; equal scores keep the documents' order."""
    n_kept = max(1, round(ratio * len(scores)))
    return list(torch.sort(scores, descending=True, stable=True).indices[:n_kept].tolist())
