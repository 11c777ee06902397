"""A mean over seeds and documents and how far it may be off: variance, degrees of freedom, and
intervals by Student's t.

What varies are the seeds drawn and the documents drawn, and both count: a variance is that of the
documents plus that of the seeds, less what they share (two-way clustering, Cameron, Gelbach &
Miller 2011, jbes.2010.07136). Tests (`statistics`) and intervals (`analysis`) both take it from
here, so that an interval of a difference leaves out zero exactly where its test says so.

Questions about one person or fact are not independent draws. With `groups`, one number per column,
the columns of a group are drawn together: the group is the unit on the side of the documents.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[np.float64]]
Groups = np.ndarray[Any, np.dtype[np.int64]]

# Satterthwaite's formula has 2 here. Where most of the variance is that of three seeds it gives too
# many degrees of freedom whenever their spread comes out small by chance, and 95% intervals hold
# 92%; with 3/2 they hold 93 to 98% at every mixture (benchmarks/intervals.py). Ours.
POWER = 1.5

# of the largest value: a smaller deviation from the mean comes from adding up equal values
ROUNDING = 1e-13


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean, or a sum of means, and the variance of that estimate = documents' share + seeds'
    share - overlap.

    `degrees` of freedom of its Student's t. `n_groups` counts what is drawn on the side of the
    documents: groups of them, or the documents themselves. With one seed in a cell `over` has no
    seeds: the estimate then knows nothing of how much another seed would differ. Variance is
    infinite where nothing is drawn twice.
    """

    mean: float
    variance: float
    degrees: float
    from_documents: float
    from_seeds: float
    n_documents: int
    n_groups: int
    # of the cell that has fewest
    n_seeds: int
    over: str

    @property
    def stderr(self) -> float:
        """Standard error of the mean."""
        return math.sqrt(self.variance)

    def half_width(self, level: float) -> float:
        """What stands on either side of the mean in an interval of that level."""
        return t_above((1 - level) / 2, self.degrees) * self.stderr if self.variance else 0.0

    def ends(self, level: float) -> tuple[float, float] | tuple[None, None]:
        """(low, high) of the interval of that level; no ends where nothing was drawn twice."""
        if math.isinf(self.variance):
            return None, None
        half = self.half_width(level)
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Block:
    """What one cell adds: its mean, each group's pull on it, and variances from its seeds."""

    mean: float
    # (groups,), summing to zero
    pulls: Matrix
    from_seeds: float
    overlap: float
    n_seeds: int


def combined_estimate(blocks: Sequence[Matrix], *, groups: Groups | None = None) -> Estimate:
    """Sum of the means of `blocks`: (seeds, documents) over the same documents, NaN = missing, each
    with seeds of its own.

    So a cell alone is `[cell]`, a difference `[first, -second]`. The mean is over the values that
    are there. Columns that no block has a value of are left out.

    Args:
        blocks: (seeds, documents) each; at least one value is there.
        groups: a number per document; documents of one group are drawn together.

    Returns:
        The sum of means, its variance and its degrees of freedom.

    Example:
        >>> first, second = np.array([[0.9, 0.7], [0.8, 0.8]]), np.array([[0.1, 0.3], [0.2, 0.2]])
        >>> estimate = combined_estimate([first, -second])
        >>> print(f"{estimate.mean:.2f}", estimate.n_documents, estimate.n_seeds)
        0.60 2 2
    """
    is_defined = np.any([np.isfinite(block).any(0) for block in blocks], axis=0)
    codes = codes_of(is_defined, groups)
    n_groups = int(codes.max()) + 1
    parts = [block_of(block[:, is_defined], codes, n_groups) for block in blocks]
    pulls = np.sum([part.pulls for part in parts], axis=0)
    documents = n_groups / (n_groups - 1) * float((pulls**2).sum()) if n_groups > 1 else 0.0
    seeds = sum(part.from_seeds for part in parts)
    variance = max(documents + seeds - sum(part.overlap for part in parts), documents, seeds)
    n_seeds = [part.n_seeds for part in parts]
    is_sampled = n_groups > 1 or max(n_seeds) > 1
    return Estimate(
        mean=sum(part.mean for part in parts),
        variance=variance if is_sampled else math.inf,
        degrees=degrees_of(variance, documents, n_groups - 1, *seed_degrees(parts)),
        from_documents=documents,
        from_seeds=seeds,
        n_documents=int(is_defined.sum()),
        n_groups=n_groups,
        n_seeds=min(n_seeds),
        over=what_varies(n_groups, int(is_defined.sum()), (min if n_groups > 1 else max)(n_seeds)),
    )


def codes_of(is_defined: np.ndarray[Any, np.dtype[np.bool_]], groups: Groups | None) -> Groups:
    """0, 1, ... for the groups of the columns that are there; a column each without `groups`."""
    if groups is None:
        return np.arange(int(is_defined.sum()))
    return np.unique(groups[is_defined], return_inverse=True)[1]


def block_of(cell: Matrix, codes: Groups, n_groups: int) -> Block:
    """One cell's part: `pulls` are sums of deviations from its mean over the number of values, so
    that groups of unequal size weigh as they do in the mean.

    The overlap is what seeds and groups leave unexplained of each other, from the cells (seed,
    group) that were measured; 0 where these are too few to tell.
    """
    cell = cell[np.isfinite(cell).any(1)]
    is_defined = np.isfinite(cell)
    n = int(is_defined.sum())
    mean = float(cell[is_defined].sum()) / n
    deviations = np.where(is_defined, cell - mean, 0.0)
    deviations[abs(deviations) <= ROUNDING * float(abs(cell[is_defined]).max())] = 0.0
    totals, counts = (
        _by_group(part, codes, n_groups) for part in (deviations, is_defined.astype(np.float64))
    )
    s = len(cell)
    by_seed, by_group = totals.sum(1), totals.sum(0)
    if s < 2:
        return Block(mean, by_group / n, 0.0, 0.0, s)
    with np.errstate(invalid="ignore"):
        rest = totals - counts * (
            (by_seed / counts.sum(1))[:, None] + np.nan_to_num(by_group / counts.sum(0))
        )
    measured = int((counts > 0).sum())
    free = measured - s - n_groups + 1
    overlap = float((rest**2).sum()) * measured / free / n**2 if free > 0 else 0.0
    return Block(mean, by_group / n, s / (s - 1) * float((by_seed**2).sum()) / n**2, overlap, s)


def seed_degrees(parts: Sequence[Block]) -> tuple[float, float]:
    """(variance from seeds, its degrees of freedom by Satterthwaite) of cells whose seeds are their
    own.
    """
    several = [part for part in parts if part.n_seeds > 1]
    variance = sum(part.from_seeds for part in several)
    below = sum(part.from_seeds**2 / (part.n_seeds - 1) for part in several)
    # seeds that agree exactly, or none: their share is zero and its degrees do not matter
    return variance, variance**2 / below if below > 0 else 1.0


def degrees_of(
    variance: float, documents: float, of_documents: float, seeds: float, of_seeds: float
) -> float:
    """Degrees of freedom of a variance from two shares and theirs: Satterthwaite's formula with
    POWER, never fewer than those of the share that has fewest.
    """
    shares = [(part, n) for part, n in ((documents, of_documents), (seeds, of_seeds)) if part > 0]
    if not shares:
        return math.inf
    below = sum((part / variance) ** POWER / n for part, n in shares)
    return max(1 / below, min(n for _, n in shares))


def t_tail(value: float, degrees: float) -> float:
    """The chance that Student's t is above the value."""
    # scipy.stats takes most of a second to import, and this is all of it that is needed
    from scipy.special import ndtr, stdtr

    return float(ndtr(-value) if math.isinf(degrees) else stdtr(degrees, -value))


def t_above(chance: float, degrees: float) -> float:
    """The value that Student's t is above with that chance."""
    from scipy.special import stdtrit

    return (
        -NormalDist().inv_cdf(chance)
        if math.isinf(degrees)
        else float(stdtrit(degrees, 1 - chance))
    )


def score_interval(
    estimate: Estimate, *, level: float, bounds: tuple[float, float]
) -> tuple[float, float]:
    """(low, high) within `bounds`, for the mean of values that cannot leave them.

    Wilson's score interval (1927) with Student's t and the effective number of values,
    (mean - low) (high - mean) / variance, as for proportions of complex samples (Korn & Graubard
    1998; Franco, Little, Louis & Slud 2019): the variance is taken to shrink towards the bounds as
    a fraction's does, so that the inner side of a mean near a bound is the longer one. Where all
    values lie on a bound the number is that of the documents: nothing then shows how they hang
    together.
    """
    low, high = bounds
    if math.isinf(estimate.variance):
        return low, high
    width = high - low
    p = min(max((estimate.mean - low) / width, 0.0), 1.0)
    variance = estimate.variance / width**2
    if variance == 0 and 0 < p < 1:
        return estimate.mean, estimate.mean
    n = p * (1 - p) / variance if variance else float(estimate.n_documents)
    degrees = estimate.degrees if variance else float(max(1, estimate.n_documents - 1))
    t2 = t_above((1 - level) / 2, degrees) ** 2
    middle = p + t2 / (2 * n)
    half_width = math.sqrt(t2 * p * (1 - p) / n + (t2 / (2 * n)) ** 2)
    below, above = ((middle + side * half_width) / (1 + t2 / n) for side in (-1, 1))
    return low + width * max(below, 0.0), low + width * min(above, 1.0)


def fieller_interval(
    top: Matrix,
    bottom: Matrix,
    *,
    means: tuple[float, float],
    from_seeds: tuple[float, float, float],
    level: float,
) -> tuple[float, float] | None:
    """(low, high) of means[0] / means[1], the ratio of two correlated means; None where the lower
    one is not significantly different from zero, as the ratio may then be anything.

    Fieller's theorem (1954): the ratios r for which top - r bottom is not significantly different
    from zero. `top` and `bottom` (groups,) are the pulls of the groups on each. Seeds move the top
    alone: `from_seeds` is their variance, the overlap and their degrees of freedom.
    """
    n = len(top)
    scale = n / (n - 1) if n > 1 else 0.0
    tt, tb, bb = (scale * float(a @ b) for a, b in ((top, top), (top, bottom), (bottom, bottom)))
    a, b = means
    if b == 0:
        return None
    seeds, overlap, of_seeds = from_seeds
    ratio = a / b
    documents = tt - 2 * ratio * tb + ratio**2 * bb
    variance = max(documents + seeds - overlap, documents, seeds)
    t2 = t_above((1 - level) / 2, degrees_of(variance, documents, n - 1, seeds, of_seeds)) ** 2
    # square r^2 - 2 linear r + constant <= 0
    square, linear = b**2 - t2 * bb, a * b - t2 * tb
    constant = a**2 - t2 * (tt + variance - documents)
    if square <= 0:
        return None
    half_width = math.sqrt(max(0.0, linear**2 - square * constant))
    return (linear - half_width) / square, (linear + half_width) / square


def group_codes(documents: Sequence[str], group_of: Mapping[str, str]) -> Groups:
    """A number per document, the same for documents of one group; a document without a group has
    its own.
    """
    names: dict[tuple[str, str], int] = {}
    keys = [("group", group_of[d]) if group_of.get(d) else ("document", d) for d in documents]
    return np.array([names.setdefault(key, len(names)) for key in keys], dtype=np.int64)


def what_varies(n_groups: int, n_documents: int, n_seeds: int) -> str:
    """What was drawn more than once, in words: an interval is over it."""
    documents = (
        "" if n_groups < 2 else "documents" if n_groups == n_documents else "groups of documents"
    )
    return " and ".join(filter(None, ("seeds" if n_seeds > 1 else "", documents))) or "nothing"


def _by_group(values: Matrix, codes: Groups, n_groups: int) -> Matrix:
    """(seeds, groups) sums of (seeds, documents), in one pass over the documents."""
    return np.array([np.bincount(codes, weights=row, minlength=n_groups) for row in values])
