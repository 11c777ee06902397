"""Tests between two cells of a run: is there a difference, is there none that matters, and how many
more data would tell.

A cell is a (seeds, documents) matrix of one metric, NaN where a trial has no value. Two cells are
asked the same documents, so documents are paired; seeds are not. What varies are the documents
drawn and the seeds drawn, and both count (`two_way`).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from rayunlearn.analysis.intervals import Numbers
from rayunlearn.analysis.two_way import (
    Estimate,
    Groups,
    combined_estimate,
    degrees_of,
    t_above,
    t_tail,
)
from rayunlearn.errors import require

# documents or seeds beyond which "more of them" is no answer
MAX_SAMPLE = 1_000_000


def difference(first: Numbers, second: Numbers, *, groups: Groups | None = None) -> Estimate:
    """Mean of `first` minus mean of `second`, (seeds, documents) matrices over the same documents,
    with its uncertainty; documents of one group, a number per column, count as drawn together.

    Documents that either cell never measured are left out. With one document in common only seeds
    vary, and with one seed each as well nothing does: such a difference has no interval and shows
    nothing. Raises UserError without a document in common.
    """
    same = first.ndim == second.ndim == 2 and first.shape[1] == second.shape[1]
    require(
        same,
        "two cells must be (seeds, documents) over the same documents, shapes",
        (first.shape, second.shape),
    )
    shared = np.isfinite(first).any(0) & np.isfinite(second).any(0)
    require(
        bool(shared.any()),
        "a comparison needs a document that both cells measured, documents",
        int(shared.sum()),
    )
    a, b = (_filled(cell[:, shared]) for cell in (first, second))
    return combined_estimate([a, -b], groups=None if groups is None else groups[shared])


def paired_p(estimate: Estimate) -> float:
    """Two-sided p-value of "there is no difference", by Student's t."""
    if estimate.variance == 0:
        return 1.0 if estimate.mean == 0 else 0.0
    return 2 * t_tail(abs(estimate.mean) / estimate.stderr, estimate.degrees)


def equivalence_p(estimate: Estimate, margin: float) -> float:
    """p-value of "the cells differ by `margin` or more": the larger of two one-sided t-tests (TOST,
    Schuirmann 1987).

    Small means equivalent within the margin; not small means not shown, not different.
    """
    require(margin > 0, "margin must be > 0", margin)
    if estimate.variance == 0:
        return 0.0 if abs(estimate.mean) < margin else 1.0
    return t_tail((margin - abs(estimate.mean)) / estimate.stderr, estimate.degrees)


def not_worse_p(estimate: Estimate, margin: float, *, worse: int) -> float:
    """p-value of "the first cell is worse by `margin` or more"; `worse` is the sign of a difference
    for the worse. Better is no failure.
    """
    require(margin > 0, "margin must be > 0", margin)
    if estimate.variance == 0:
        return 0.0 if worse * estimate.mean < margin else 1.0
    return t_tail((margin - worse * estimate.mean) / estimate.stderr, estimate.degrees)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the order given (Holm 1979): reject those <= alpha,
    at most alpha false ones among all.

    Args:
        p_values: one per hypothesis, from 0 to 1.

    Returns:
        The corrected values, at most 1 each.

    Example:
        >>> holm([0.01, 0.04])
        [0.02, 0.04]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def equivalence_power(
    estimate: Estimate, margin: float, *, alpha: float, n_documents: int, n_seeds: int
) -> float:
    """Chance that TOST shows equivalence with so many documents and seeds per cell, if the true
    difference and spreads are those seen.

    A shifted t stands for the noncentral one; the overlap of documents and seeds is left in and the
    seeds' degrees of freedom are those of one cell, so the chance is rather too low. Documents come
    in groups as large as now.
    """
    documents, seeds = (
        estimate.from_documents * estimate.n_documents / n_documents,
        estimate.from_seeds * estimate.n_seeds / n_seeds,
    )
    variance = documents + seeds
    if math.isinf(estimate.variance):
        return 0.0
    if variance == 0:
        return float(abs(estimate.mean) < margin)
    n_groups = n_documents * estimate.n_groups / estimate.n_documents
    degrees = degrees_of(variance, documents, n_groups - 1, seeds, max(1, n_seeds - 1))
    critical, stderr = t_above(alpha, degrees), math.sqrt(variance)
    sides = (
        (margin - estimate.mean) / stderr - critical,
        (margin + estimate.mean) / stderr - critical,
    )
    return max(0.0, 1 - sum(t_tail(side, degrees) for side in sides))


def documents_needed(
    estimate: Estimate, margin: float, *, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Documents, more than now, with which TOST would show equivalence with chance `power`, seeds
    as they are; None where no number would do.
    """

    def enough(n: int) -> bool:
        return (
            equivalence_power(
                estimate, margin, alpha=alpha, n_documents=n, n_seeds=estimate.n_seeds
            )
            >= power
        )

    return _fewest(enough, start=estimate.n_documents + 1)


def seeds_needed(
    estimate: Estimate, margin: float, *, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Seeds per cell, more than now, with which TOST would show equivalence, documents as they are;
    None where no number would do, and where one seed says nothing of how others differ."""

    def enough(n: int) -> bool:
        return (
            equivalence_power(
                estimate, margin, alpha=alpha, n_documents=estimate.n_documents, n_seeds=n
            )
            >= power
        )

    return _fewest(enough, start=estimate.n_seeds + 1) if estimate.n_seeds > 1 else None


def _filled(cell: Numbers) -> Numbers:
    """Seeds that measured something; a value missing in one of them is its document's mean plus the
    seed's own shift.
    """
    cell = cell[np.isfinite(cell).any(1)]
    document, seed, grand = (
        np.nanmean(cell, 0),
        np.nanmean(cell, 1, keepdims=True),
        float(np.nanmean(cell)),
    )
    return np.where(np.isfinite(cell), cell, document + seed - grand)


def _fewest(enough: Callable[[int], bool], *, start: int) -> int | None:
    """The smallest n >= start that is enough, as every larger one is; None beyond MOST."""
    if not enough(MAX_SAMPLE):
        return None
    low, high = start - 1, MAX_SAMPLE
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
