"""Means with bootstrap intervals over seeds and documents."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.errors import require
from rayunlearn.schema import column_names

DRAWS = 1000


LEVEL = 0.95


Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its bootstrap interval; all None where nothing was measured. `over` says what was
    resampled.
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


def bootstrap_interval(
    matrix: Numbers, *, draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> Interval:
    """Mean of a (seeds, documents) matrix, NaN = missing, with a percentile interval.

    Crossed resampling: seeds and documents are drawn with replacement, each on its own, because
    every seed is asked the same documents. With one seed only documents are resampled, and `over`
    says so: that interval knows nothing of how much another seed would differ.
    """
    require(
        matrix.ndim == 2, "a bootstrap needs a (seeds, documents) matrix, dimensions", matrix.ndim
    )
    if not np.isfinite(matrix).any():
        return NO_INTERVAL
    weights = _draw_weights(*matrix.shape, draws=draws, seed=seed)
    return _interval(_mean(matrix), weighted_means(matrix, *weights), matrix.shape[0], level)


def gap_closed(
    matrix: Numbers,
    base: Numbers,
    gold: Numbers,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """(base - x) / (base - gold) with a percentile interval: 0 is the untouched model, 1 the one
    that never saw the forget set.

    `matrix` is (seeds, documents), `base` and `gold` (1, documents) on the same documents, so that
    one draw of documents serves all three. All None where base and gold cannot be told apart: there
    is no way to go.
    """
    if not all(np.isfinite(part).any() for part in (matrix, base, gold)):
        return NO_INTERVAL
    by_seed, by_document = _draw_weights(*matrix.shape, draws=draws, seed=seed)
    ones = np.ones((draws, 1))
    x = weighted_means(matrix, by_seed, by_document)
    before, never = weighted_means(base, ones, by_document), weighted_means(gold, ones, by_document)
    low, high = np.nanquantile(before - never, [(1 - level) / 2, (1 + level) / 2])
    if low <= 0 <= high:
        return NO_INTERVAL
    mean = (_mean(base) - _mean(matrix)) / (_mean(base) - _mean(gold))
    # a draw in which the two are one has no way to take a share of
    way = np.where(before == never, np.nan, before - never)
    return _interval(mean, (before - x) / way, matrix.shape[0], level)


@lru_cache(maxsize=8)
def _draw_weights(
    n_seeds: int, n_documents: int, *, draws: int, seed: int
) -> tuple[Numbers, Numbers]:
    """How often each seed (draws, seeds) and each document (draws, documents) is drawn, read-only.

    Documents are drawn first, so that they do not depend on the number of seeds. Kept, because all
    cells and metrics of a table have few shapes.
    """
    generator = np.random.default_rng(seed)
    by_document = _counts(generator.integers(0, n_documents, (draws, n_documents)), n_documents)
    by_seed = _counts(generator.integers(0, n_seeds, (draws, n_seeds)), n_seeds)
    by_document.setflags(write=False)
    by_seed.setflags(write=False)
    return by_seed, by_document


def _counts(draws_of: np.ndarray[Any, np.dtype[np.int64]], n: int) -> Numbers:
    """(draws, n): how often each of 0..n-1 occurs in each row of `drawn`, in one pass over all
    rows.
    """
    draws = len(draws_of)
    cells = (draws_of + n * np.arange(draws)[:, None]).ravel()
    counts: Numbers = np.bincount(cells, minlength=draws * n).reshape(draws, n).astype(np.float64)
    return counts


def weighted_means(matrix: Numbers, by_seed: Numbers, by_document: Numbers) -> Numbers:
    """(draws,) weighted means of a (seeds, documents) matrix over what is not NaN; NaN where a draw
    hit nothing.
    """
    present = np.isfinite(matrix)
    total = ((by_seed @ np.where(present, matrix, 0.0)) * by_document).sum(1)
    weight = ((by_seed @ present.astype(np.float64)) * by_document).sum(1)
    return np.divide(total, weight, out=np.full(len(total), np.nan), where=weight > 0)


def _mean(matrix: Numbers) -> float:
    return float(np.mean(matrix[np.isfinite(matrix)]))


def _interval(mean: float, draws: Numbers, n_seeds: int, level: float) -> Interval:
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        mean=mean,
        low=float(low),
        high=float(high),
        over="seeds and documents" if n_seeds > 1 else "documents",
    )
