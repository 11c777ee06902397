"""What forgetting aims at, and how far a model is from it: gold's value, or chance.

A model that never saw the forget set is what unlearning should come to. One that scores below it
has not forgotten better: it has learnt to avoid these answers, or is ruined.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rayunlearn.analysis.hypothesis_tests import difference
from rayunlearn.analysis.intervals import LEVEL, NO_INTERVAL, Interval, Numbers, mean_interval
from rayunlearn.analysis.two_way import Groups

OVER_FORGOTTEN = "over-forgotten"


@dataclass(frozen=True)
class Target:
    """What the forgetting metric should come to: `kind`, gold or chance, and (documents,) values of
    it, NaN where it was not measured.
    """

    kind: str
    values: Numbers

    @property
    def mean(self) -> float:
        """Mean over the documents."""
        return float(np.nanmean(self.values))


def target_distance(values: Sequence[float] | Numbers, target: Target) -> float:
    """How far the documents of one model are from the target, in the unit of the metric; below it
    counts as far as above it. NaN without a document that both measured.

    Gold: the mean gap between the k-th smallest value of the model and the k-th smallest of gold,
    over all documents that both measured (Wasserstein-1 distance). It is 0 where the values are
    distributed as gold's are, and |difference of the means| where all lie on one side. TOFU
    compares the same two distributions by their largest gap (2401.06121, forget quality, a KS test)
    and MUSE counts below gold as far as above it (2407.06460, PrivLeak); that it is this distance
    is our choice. A document is not held against itself in gold: which of the wrong answers a model
    gives that never saw the right one is its own draw, so that two such models are far apart by
    mean |x - gold| and a ruined one can be nearer (docs/search.md has numbers).

    Chance: |mean - chance|, since chance is a mean and no distribution.

    Args:
        values: (documents,), one model's, NaN = missing.
        target: over the same documents.

    Returns:
        The distance, at least 0.

    Example:
        >>> gold = Target("gold", np.array([0.0, 0.1, 0.2]))
        >>> print(f"{target_distance([0.2, 0.0, 0.1], gold):.2f}")
        0.00
        >>> print(f"{target_distance([0.0, 0.0, 0.0], gold):.2f}")
        0.10
    """
    model_values = np.asarray(values, dtype=np.float64)
    is_shared = np.isfinite(model_values) & np.isfinite(target.values)
    if not is_shared.any():
        return float("nan")
    model, aim = model_values[is_shared], target.values[is_shared]
    gaps = np.sort(model) - np.sort(aim) if target.kind == "gold" else model.mean() - aim.mean()
    return float(np.abs(gaps).mean())


def distance_by_document(matrix: Numbers, target: Target) -> Numbers:
    """(seeds, documents) whose mean over the documents of a seed is its `target_distance`, for
    intervals and tests.

    The document at rank k of a model counts with sign_k x its value, and the document at rank k of
    gold with - sign_k x gold's, where sign_k says which of the two is larger there. That is how
    each document moves the distance (its influence function), so that two models are compared on
    the same documents. NaN where either was not measured. The linear form is our choice; near 0,
    where the signs are drawn at random, an interval of it is a rough one.

    Args:
        matrix: (seeds, documents), NaN = missing.
        target: over the same documents.

    Returns:
        The contributions, of the shape of `matrix`.

    Example:
        >>> gold = Target("gold", np.array([0.1, 0.3]))
        >>> print(distance_by_document(np.array([[0.0, 0.6]]), gold).mean().round(2))
        0.2
    """
    contributions = np.full(matrix.shape, np.nan)
    for row, values in enumerate(matrix):
        is_shared = np.isfinite(values) & np.isfinite(target.values)
        if is_shared.any():
            model, aim = values[is_shared], target.values[is_shared]
            contributions[row, is_shared] = _contributions(model, aim, target.kind)
    return contributions


def _contributions(model: Numbers, aim: Numbers, kind: str) -> Numbers:
    if kind != "gold":
        return np.asarray(np.sign(model.mean() - aim.mean()) * (model - aim))
    order, aim_order = np.argsort(model, kind="stable"), np.argsort(aim, kind="stable")
    signs = np.sign(model[order] - aim[aim_order])
    contributions = np.zeros_like(model)
    contributions[order] += signs * model[order]
    contributions[aim_order] -= signs * aim[aim_order]
    return contributions


def cell_distance(contributions: Numbers, *, groups: Groups | None = None) -> Interval:
    """`target_distance` of a cell, the mean over its trials, with its 95% interval, at least 0; all
    None where nothing was measured.

    Args:
        contributions: (seeds, documents), `distance_by_document` of the cell.
        groups: a number per document; documents of one group are drawn together.

    Returns:
        The distance and its interval.

    Example:
        >>> gold = Target("gold", np.array([0.1, 0.1]))
        >>> cell = distance_by_document(np.array([[0.0, 0.0], [0.1, 0.1]]), gold)
        >>> print(f"{cell_distance(cell).mean:.2f}")
        0.05
    """
    interval = mean_interval(contributions, groups=groups)
    low = None if interval.low is None else max(0.0, interval.low)
    return replace(interval, low=low)


def above_target(matrix: Numbers, target: Target, *, groups: Groups | None = None) -> Interval:
    """Mean of a cell minus the target's, with its 95% interval, documents paired; below 0 is below
    the target.

    Args:
        matrix: (seeds, documents), NaN = missing.
        target: over the same documents.
        groups: a number per document; documents of one group are drawn together.

    Returns:
        The difference; all None where nothing was measured on the same document.

    Example:
        >>> gold = Target("gold", np.array([0.1, 0.2, 0.3]))
        >>> print(f"{above_target(np.zeros((2, 3)), gold).mean:.2f}")
        -0.20
    """
    if not (np.isfinite(matrix).any(0) & np.isfinite(target.values)).any():
        return NO_INTERVAL
    estimate = difference(matrix, target.values[None, :], groups=groups)
    low, high = estimate.ends(LEVEL)
    return Interval(mean=estimate.mean, low=low, high=high, over=estimate.over)


def is_over_forgotten(above: Interval, *, lower_forgets: bool = True) -> bool:
    """Whether a cell is shown to be below its target: the whole interval of `above_target` is.

    Args:
        above: `above_target` of the cell.
        lower_forgets: whether a lower metric means more forgotten.

    Returns:
        The mark; False where there is no interval.

    Example:
        >>> is_over_forgotten(Interval(mean=-0.2, low=-0.3, high=-0.1, over="documents"))
        True
    """
    if above.low is None or above.high is None:
        return False
    return above.high < 0 if lower_forgets else above.low > 0


def chance_metric(experiment: Mapping[str, Any], metric: str) -> str:
    """The metric whose value on base is the chance level of `metric`, as experiment.json has it; ''
    where there is none.
    """
    described = {row["name"]: row for row in experiment.get("metrics", ())}
    return str(described.get(metric, {}).get("chance") or "")
