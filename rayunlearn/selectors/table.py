"""Selectors give every forget document a score; the coreset is the max(1, round(ratio n)) documents
with the highest.

So every selector is nested: a smaller coreset is part of a larger one. Positional parameters name
what a selector needs: `n_documents` (documents come sorted by doc_id, so the order of the file
never matters); of the base model `token_nll` and `token_error` (one (n_i,) tensor per document),
`answer_nll` and `answer_surprise` (the same without the end token), `nll_per_byte` (n,),
`embeddings` (n, D), `gradients` (n, d) and `retain_alignment` (n,); `gradient_norms_along`
(gradient norms on a trajectory of so many epochs), `document_keywords` (keyword to weight),
`n_ranked` (how many documents a greedy selector has to give a place, `selectors/cost.py`) and
`seed`, which is `select.seed`. `coreset.py` makes them. A row's `departures` say where we differ
from its source, and what the source leaves open and is decided here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayunlearn.config import rounded_share
from rayunlearn.lazy import np, sklearn, torch
from rayunlearn.ranges import Count, FamilyRow, Fraction, UnitInterval, Whole
from rayunlearn.selectors.greedy import (
    craig,
    facility_location,
    herding,
    k_center,
    keyword_coverage,
)

if TYPE_CHECKING:
    from torch import Tensor


def random(n_documents: int, seed: int) -> Tensor:
    """Uniform without replacement: the score is the place in a seeded permutation, so ratios are
    nested. (n,)
    """
    order = torch.randperm(n_documents, generator=torch.Generator().manual_seed(seed))
    scores = torch.empty(n_documents)
    scores[order] = -torch.arange(n_documents, dtype=torch.float32)
    return scores


def min_k(answer_nll: Sequence[Tensor], *, fraction: Fraction = 0.4) -> Tensor:
    """Mean log-probability of the `fraction` of tokens the base model finds least likely; the most
    memorised first.

    answer_nll: (n_i,) nats per document, the token that ends the text left out. floor(fraction
    n_i) tokens count, at least one. Returns (n,): minus the metric `min_k_score` at that share.
    """
    lowest = [
        nll.sort(descending=True).values[: max(1, int(fraction * len(nll)))] for nll in answer_nll
    ]
    return torch.stack([-nll.mean() for nll in lowest])


def min_k_plus(answer_surprise: Sequence[Tensor], *, fraction: Fraction = 0.4) -> Tensor:
    """Mean of the `fraction` lowest standardised log-probabilities of a document; the most
    memorised first.

    answer_surprise: (n_i,) per document, (log p(label) - mean) / standard deviation of log p under
    the base model's own distribution, the token that ends the text left out. Zhang et al.
    2404.02936, equation 3. floor(fraction n_i) tokens count, at least one. Returns (n,): minus the
    metric `min_k_plus_score` at that share.
    """
    return torch.stack(
        [
            surprise.sort().values[: max(1, int(fraction * len(surprise)))].mean()
            for surprise in answer_surprise
        ]
    )


def zlib(nll_per_byte: Tensor) -> Tensor:
    """Least NLL of the base model per byte of the zlib-compressed text first: known beyond what
    repetition explains. (n,)

    nll_per_byte (n,): mean token NLL of a document / bytes of its compressed answer. Carlini et al.
    2012.07805, section 5. Minus the metric `zlib_score`.
    """
    return -nll_per_byte


def moderate(embeddings: Tensor, seed: int, *, clusters: Count = 4) -> Tensor:
    """K-means on the base model's penultimate layer; documents whose distance to their own centroid
    is nearest to their cluster's MEDIAN distance come first.

    embeddings (n, D); returns -|d_i - median of its cluster| (n,). With fewer documents than
    clusters every document is its own cluster.
    """
    points = embeddings.double().numpy()
    fitted = sklearn.cluster.KMeans(
        n_clusters=min(clusters, len(points)), n_init=4, random_state=seed
    ).fit(points)
    distance = np.linalg.norm(points - fitted.cluster_centers_[fitted.labels_], axis=1)
    median = np.array([np.median(distance[fitted.labels_ == c]) for c in range(fitted.n_clusters)])
    return torch.from_numpy(-np.abs(distance - median[fitted.labels_])).float()


def loss(token_nll: Sequence[Tensor]) -> Tensor:
    """Mean NLL of the base model, the hardest first. (n,) nats per token, the metric `loss_score`.
    The easiest first is `min_k` with fraction 1, but for the end token, which counts here.
    """
    return torch.stack([nll.mean() for nll in token_nll])


def el2n(token_error: Sequence[Tensor]) -> Tensor:
    """Mean over label tokens of ||softmax - one-hot||_2 at the base model, the largest first. (n,)
    in [0, sqrt 2].

    Paul et al. 2107.07075, equation 4.
    """
    return torch.stack([error.mean() for error in token_error])


def grand(norms_along: Callable[[int], Tensor], *, epochs: Whole = 10) -> Tensor:
    """Mean over an unlearning trajectory of ||grad (l_f(z_f) + lambda l_r(z_r))||_2, the largest
    first. (n,)

    norms_along(epochs): (1 + epochs, n), the norms at the base model and after each epoch of
    unlearning on the full forget set with the trial's own losses, each once; 0 epochs is the norm
    at the base model alone. Coreset paper 2504.10185, appendix C1, with its 10 epochs.
    """
    return norms_along(epochs).mean(0)


def influence(retain_alignment: Tensor) -> Tensor:
    """Documents whose gradient goes least along the retain gradient come first: unlearning them
    harms retain least.

    retain_alignment (n,): cosine of the document's NLL gradient with the mean retain gradient, at
    the base model.
    """
    return -retain_alignment


def upcore(embeddings: Tensor, seed: int, *, trees: Count = 100) -> Tensor:
    """Outliers last: minus the anomaly score of an isolation forest, (n,).

    UPCORE (2502.15082) drops the 10% that its forest finds most anomalous, that is, ratio 0.9
    here.
    """
    fitted = sklearn.ensemble.IsolationForest(n_estimators=trees, random_state=seed).fit(
        embeddings.double().numpy()
    )
    return torch.from_numpy(fitted.score_samples(embeddings.double().numpy())).float()


def ccs(
    token_nll: Sequence[Tensor], seed: int, *, strata: Count = 10, hard_cutoff: UnitInterval = 0.1
) -> Tensor:
    """Coverage-centric: the same number of documents from every stratum of the score, small strata
    exhausted first.

    Drops the `hard_cutoff` share with the highest mean NLL, cuts the score's range in `strata`
    equal intervals and takes from them in turn, at random within each: at every size each stratum
    has given min(its size, an equal share). Zheng et al. 2210.15809, algorithm 1. The dropped come
    last, the least hard first. Returns -rank (n,).
    """
    scores = loss(token_nll).double()
    hardest_first = torch.sort(scores, descending=True, stable=True).indices.tolist()
    n_dropped = int(hard_cutoff * len(scores))
    dropped, remaining = hardest_first[:n_dropped], sorted(hardest_first[n_dropped:])
    rounds = _stratum_rounds(scores[remaining], strata, seed)
    order = [remaining[p] for p in sorted(range(len(remaining)), key=rounds.__getitem__)] + dropped[
        ::-1
    ]
    places = torch.empty(len(scores))
    places[torch.tensor(order)] = -torch.arange(len(order), dtype=torch.float32)
    return places


def _stratum_rounds(scores: Tensor, strata: int, seed: int) -> list[tuple[int, int]]:
    """(round in which it is taken, stratum) of every score: the n-th of its stratum in a seeded
    order is taken in round n.
    """
    if len(scores) == 0:
        return []
    low, width = float(scores.min()), float(scores.max() - scores.min())
    stratum = [
        min(strata - 1, int((float(s) - low) / width * strata)) if width > 0 else 0 for s in scores
    ]
    n_taken: Counter[int] = Counter()
    rounds = [(0, 0)] * len(scores)
    for document in torch.randperm(
        len(scores), generator=torch.Generator().manual_seed(seed)
    ).tolist():
        rounds[document] = (n_taken[stratum[document]], stratum[document])
        n_taken[stratum[document]] += 1
    return rounds


# The name of a positional parameter decides what a selector is given; n documents, T tokens each.
SELECTOR_INPUTS = {
    "n_documents": "how many documents the forget set has",
    "seed": "select.seed",
    "n_ranked": "how many places have to be ranked; a greedy selector may stop there",
    "token_nll": "list of (T,) float32, nats: base's NLL of a document's labelled tokens",
    "answer_nll": "the same without the token that ends the answer",
    "answer_surprise": "list of (T,) float32: the min-k++ score of the same tokens",
    "nll_per_byte": "(n,) float32: mean NLL over the bytes of the compressed answer",
    "token_error": "list of (T,) float32: length of softmax minus one-hot, EL2N of a token",
    "embeddings": "(n, D) float32: a document's state inside base",
    "gradients": "(n, P) float32: random projections of the head's gradients",
    "retain_alignment": "(n,) float32: cosine of a document's gradient and the retain set's",
    "document_keywords": "list of keyword -> weight, of select.extractor",
    "norms_along": "function(epochs) -> (n,): gradient norms along a run of the method itself",
}


@dataclass(frozen=True)
class Selector(FamilyRow["Tensor"]):
    """A row of the family. `departures`: where we differ from the source or had to choose."""

    departures: str


SELECTORS = {
    row.function.__name__: row
    for row in (
        Selector(
            random,
            "uniform without replacement",
            "coreset paper 2504.10185, section 3 (RANDOM)",
            "none; one permutation serves every ratio, so ratios are nested",
        ),
        Selector(
            min_k,
            "most memorised by min-k % probability",
            "Shi et al. 2310.16789; coreset paper 2504.10185, appendix C2",
            "open there: whose probabilities (base's) and which tokens (the answer's, without the"
            " one that ends it, as in the metric min_k_score). Highest first as in the paper; a"
            " public re-implementation has the sign the other way round",
        ),
        Selector(
            min_k_plus,
            "most memorised by min-k %++",
            "Zhang et al. 2404.02936",
            "a membership score there, a selector only here; its tokens and their share are"
            " min_k's",
        ),
        Selector(
            zlib,
            "most memorised for how compressible it is",
            "Carlini et al. 2012.07805",
            "a membership score there, a selector only here; mean NLL in nats over bytes, of the"
            " answer alone where there is a prompt",
        ),
        Selector(
            moderate,
            "moderate coreset",
            "Xia et al., ICLR 2023; coreset paper 2504.10185, appendix C",
            "open there: pooling (mean over all tokens) and a quota per cluster (none: ranked over"
            " all clusters)",
        ),
        Selector(
            grand,
            "largest gradient norm along an unlearning run",
            "Paul et al. 2107.07075; coreset paper 2504.10185, appendix C1",
            "open there: parameters (those the trial trains), direction (largest), z_r (a retain"
            " document drawn once for each forget document), trajectories (one, without warm-up;"
            " the mean is over base and the first step by which each epoch is over)",
        ),
        Selector(
            loss,
            "highest loss",
            "standard",
            "none; lowest loss first is min_k with fraction 1, but for the end token",
        ),
        Selector(
            el2n,
            "largest error norm",
            "Paul et al. 2107.07075, equation 4",
            "one prediction per example there, a mean over label tokens here; several early"
            " trainings there, the base model alone here",
        ),
        Selector(
            k_center,
            "farthest first",
            "Sener and Savarese 1708.00489, algorithm 1",
            "begins with a labelled pool there, with the document nearest to the mean here",
        ),
        Selector(
            herding,
            "mean kept",
            "Welling 2009; Rebuffi et al. 1611.07725, algorithm 4",
            "over the whole corpus, not per class; mean hidden states instead of a"
            " classifier's features",
        ),
        Selector(
            facility_location,
            "every document has one like it",
            "Lin and Bilmes 2011",
            "similarity is (1 + cosine) / 2 of mean hidden states",
        ),
        Selector(
            upcore,
            "outliers last",
            "UPCORE 2502.15082",
            "an order for every ratio, drops 10% there; states averaged over tokens, there the"
            " last of the question; seed is select.seed, 42 there",
        ),
        Selector(
            keyword_coverage,
            "most keyword weight covered",
            "ours; greedy cover as in Nemhauser et al. 1978",
            "none: no paper has it as a selector",
        ),
        Selector(
            ccs,
            "equal numbers of every difficulty",
            "Zheng et al. 2210.15809, algorithm 1",
            "score is the mean NLL, AUM there; the dropped come last, never there, so that every"
            " ratio has its size",
        ),
        Selector(
            craig,
            "every gradient has one like it",
            "CRAIG, Mirzasoleiman et al. 1906.01827, equation 13",
            "gradients of the head alone, projected at random (scores.sketch), at the base model"
            " alone; documents' weights are not used in training",
        ),
        Selector(
            influence,
            "least along the retain gradient",
            "after GUARD 2506.10946",
            "weighs documents and keeps all there, orders them here; the form of its weights is not"
            " confirmed; retain gradient of the mean NLL",
        ),
    )
}


def top_k_documents(scores: Tensor, ratio: float, topics: Sequence[str] = ()) -> list[int]:
    """Positions of the max(1, round(ratio n)) highest scores, best first; equal scores keep the
    documents' order.

    With topics the choice is stratified: within a topic by score, and of the topics in turn so that
    each has its proportional share at every size, to within one document (Webster's method, so
    ratios stay nested).

    Args:
        scores: (N,), a score per document.
        ratio: share of the documents that is kept, in (0, 1].
        topics: a topic per document; none, or one for all, is no stratification.

    Returns:
        Positions of the documents that are kept, best first.

    Example:
        >>> top_k_documents(torch.tensor([0.1, 0.9, 0.8, 0.7]), 0.5)
        [1, 2]
        >>> top_k_documents(torch.tensor([0.1, 0.9, 0.8, 0.7]), 0.5, ["a", "b", "b", "a"])
        [1, 3]
    """
    n_kept = rounded_share(ratio, len(scores))
    order = list(torch.sort(scores, descending=True, stable=True).indices.tolist())
    return (_interleave_topics(order, topics) if len(set(topics)) > 1 else order)[:n_kept]


def _interleave_topics(order: Sequence[int], topics: Sequence[str]) -> list[int]:
    sizes = Counter(topics)
    n_taken: defaultdict[str, int] = defaultdict(int)
    key: dict[int, tuple[float, int]] = {}
    for rank, document in enumerate(order):
        key[document] = ((n_taken[topics[document]] + 0.5) / sizes[topics[document]], rank)
        n_taken[topics[document]] += 1
    return sorted(order, key=key.__getitem__)
