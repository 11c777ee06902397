"""Means with 95% intervals over seeds and documents."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.analysis.two_way import (
    Groups,
    block_of,
    codes_of,
    combined_estimate,
    fieller_interval,
    score_interval,
    what_varies,
)
from rayunlearn.errors import require
from rayunlearn.schema import column_names

LEVEL = 0.95
Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its interval, of a t; all None where nothing was measured. `over` says what counts
    as drawn at random; the ends are None where nothing was drawn twice, one value, say.
    """

    mean: float | None
    low: float | None
    high: float | None
    over: str


NO_INTERVAL = Interval(mean=None, low=None, high=None, over="nothing")


def summarise_examples(examples: pl.DataFrame, *, step: int | None = None) -> pl.DataFrame:
    """Rows of `evals` from rows of `examples`: mean over the documents, their number, stderr = sd /
    sqrt(n).

    Nulls are excluded and not counted; stderr is null where n < 2, the value where n = 0. A `step`
    becomes the column of that name.
    """
    keys = [
        name
        for name in ("trial_id", "stage", "attack", "split", "metric")
        if name in examples.columns
    ]
    value = pl.col("value")
    n = value.count().cast(pl.Int64)
    rows = examples.group_by(keys, maintain_order=True).agg(
        value.mean(), n.alias("n"), (value.std() / n.sqrt()).alias("stderr")
    )
    if step is not None:
        rows = rows.with_columns(pl.lit(step, dtype=pl.Int64).alias("step"))
    return rows.select([name for name in column_names("evals") if name in rows.columns])


def gap_closed(
    matrix: Numbers,
    base: Numbers,
    gold: Numbers,
    *,
    groups: Groups | None = None,
    level: float = LEVEL,
) -> Interval:
    """(base - x) / (base - gold) with Fieller's interval of a ratio: 0 is the untouched model, 1
    the one that never saw the forget set.

    Args:
        matrix: (seeds, documents), values of the unlearned models, NaN = missing.
        base: (1, documents), the same documents before unlearning; those count that all three
            were measured on.
        gold: (1, documents), the same of the model that never saw the forget set.
        groups: a number per document; documents of one group are drawn together.
        level: of the interval, in (0, 1).

    Returns:
        The fraction and its interval; all None where base and gold cannot be distinguished at
        this level: there is no gap to close.

    Example:
        >>> base, gold = np.array([[0.9, 1.0, 0.8]]), np.array([[0.1, 0.2, 0.0]])
        >>> print(f"{gap_closed((base + gold) / 2, base, gold).mean:.2f}")
        0.50
    """
    if not all(np.isfinite(part).any() for part in (matrix, base, gold)):
        return NO_INTERVAL
    parts = [part[np.isfinite(part).any(1)] for part in (matrix, base, gold)]
    is_defined = np.all([np.isfinite(part).any(0) for part in parts], axis=0)
    if not is_defined.any():
        return NO_INTERVAL
    codes = codes_of(is_defined, groups)
    x, before, gold_block = (block_of(p[:, is_defined], codes, int(codes.max()) + 1) for p in parts)
    top, bottom = before.mean - x.mean, before.mean - gold_block.mean
    over = what_varies(len(x.pulls), int(is_defined.sum()), x.n_seeds)
    if over == "nothing" and bottom:
        return Interval(mean=top / bottom, low=None, high=None, over=over)
    ends = fieller_interval(
        before.pulls - x.pulls,
        before.pulls - gold_block.pulls,
        means=(top, bottom),
        from_seeds=(x.from_seeds, x.overlap, max(1, x.n_seeds - 1)),
        level=level,
    )
    if ends is None:
        return NO_INTERVAL
    return Interval(mean=top / bottom, low=ends[0], high=ends[1], over=over)


def mean_interval(
    matrix: Numbers,
    *,
    groups: Groups | None = None,
    bounds: tuple[float, float] | None = None,
    level: float = LEVEL,
) -> Interval:
    """Mean of a (seeds, documents) matrix with an interval by Student's t.

    Its variance is that of seeds and of documents (`two_way.combined_estimate`). With one seed only
    documents vary, and `over` says so: that interval knows nothing of how much another seed would
    differ; with one document only seeds do. Raises UserError for another number of dimensions.

    Args:
        matrix: (seeds, documents), NaN = missing.
        groups: a number per document; documents of one group are drawn together.
        bounds: smallest and largest value of the metric, where it has them; the interval stays
            within (`two_way.score_interval`).
        level: of the interval, in (0, 1).

    Returns:
        The mean and its interval; all None where nothing was measured.

    Example:
        >>> interval = mean_interval(np.array([[0.0, 0.5, 1.0], [0.0, 0.5, 1.0]]), bounds=(0, 1))
        >>> interval.mean, interval.over
        (0.5, 'seeds and documents')
    """
    require(
        matrix.ndim == 2, "an interval needs a (seeds, documents) matrix, dimensions", matrix.ndim
    )
    if not np.isfinite(matrix).any():
        return NO_INTERVAL
    estimate = combined_estimate([matrix], groups=groups)
    low, high = (
        estimate.ends(level)
        if bounds is None or estimate.over == "nothing"
        else score_interval(estimate, level=level, bounds=bounds)
    )
    return Interval(mean=estimate.mean, low=low, high=high, over=estimate.over)


def bounds_of(experiment: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    """The range of a metric as experiment.json has it; None where it has no ends, or is not
    there.
    """
    for row in experiment.get("metrics", ()):
        if row["name"] == metric and row.get("low") is not None and row.get("high") is not None:
            return float(row["low"]), float(row["high"])
    return None


def interval_columns(name: str, interval: Interval) -> dict[str, float | None]:
    """The interval as three columns: `name`, `name_low` and `name_high`."""
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
