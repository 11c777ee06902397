"""How often the 95% intervals hold the truth, by simulation: made-up runs of which it is known.

    python -m benchmarks.intervals                       # the table of docs/explanation.md, minutes
    python -m benchmarks.intervals --repetitions 200     # a look

A run is a matrix of seeds and documents. What varies is set by shares of the variance of its mean:
from the seeds, from the documents, and noise that is neither's. Beside each interval stands the
percentile bootstrap over seeds and documents that it replaced.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from rayunlearn.analysis.hypothesis_tests import difference
from rayunlearn.analysis.intervals import LEVEL, Interval, Numbers, gap_closed, mean_interval
from rayunlearn.analysis.metric_robustness import ROBUSTNESS_PARTS, with_intervals

SEEDS = (3, 5, 10)
DOCUMENTS = (40, 160)
NOISE = 0.1
# shares of the variance of a mean: (seeds, documents)
WHAT_VARIES = {
    "seeds": (1 - NOISE, 0.0),
    "documents": (0.0, 1 - NOISE),
    "both": ((1 - NOISE) / 2, (1 - NOISE) / 2),
    "both, seeds most": (0.75 * (1 - NOISE), 0.25 * (1 - NOISE)),
}
Ends = tuple[float, float]


@dataclass(frozen=True)
class Case:
    """A kind of made-up run: `draw` makes one, `interval` gives its interval, which is to hold
    `truth`. `resampled`: what is drawn is one matrix, which a bootstrap could resample.
    """

    what: str
    varies: str
    seeds: int
    documents: int
    truth: float
    draw: Callable[[np.random.Generator], Any]
    interval: Callable[[Any], Ends | None]
    resampled: bool = False


def held(case: Case, repetitions: int, *, seed: int = 0) -> float:
    """Share of the repetitions in which the interval holds the truth; one without an interval does
    not.
    """
    generator = np.random.default_rng([seed, case.seeds, case.documents])
    found = [case.interval(case.draw(generator)) for _ in range(repetitions)]
    return float(np.mean([_holds(ends, case.truth) for ends in found]))


def held_by_bootstrap(case: Case, repetitions: int, *, seed: int = 0) -> float:
    """The same of the percentile interval over seeds and documents, on the same runs."""
    generator = np.random.default_rng([seed, case.seeds, case.documents])
    draws = np.random.default_rng(seed)
    found = [bootstrapped(draws, case.draw(generator)) for _ in range(repetitions)]
    return float(np.mean([_holds(ends, case.truth) for ends in found]))


def _holds(ends: Ends | None, truth: float) -> bool:
    return ends is not None and ends[0] - 1e-12 <= truth <= ends[1] + 1e-12


# ---- runs


def normal_run(
    generator: np.random.Generator,
    seeds: int,
    documents: int,
    shares: tuple[float, float],
    *,
    of_documents: Numbers | None = None,
    group: int = 1,
) -> Numbers:
    """(seeds, documents) with mean 0 and variance 1 of its mean: normal effects of seeds, of groups
    of `group` documents (or the effects given, (documents,)), and noise.
    """
    from_seeds, from_documents = shares
    if of_documents is None:
        n_groups = documents // group
        effects = generator.normal(0, math.sqrt(from_documents * n_groups), n_groups)
        of_documents = np.repeat(effects, group)
    noise = math.sqrt((1 - from_seeds - from_documents) * seeds * documents)
    shifts = generator.normal(0, math.sqrt(from_seeds * seeds), (seeds, 1))
    return of_documents + shifts + generator.normal(0, noise, (seeds, documents))


def logistic_run(
    generator: np.random.Generator,
    seeds: int,
    documents: int,
    centre: float,
    spreads: tuple[float, float, float],
    *,
    binary: bool = False,
) -> Numbers:
    """(seeds, documents) in [0, 1]: logistic of centre + normal effects of seeds, documents and
    both; `binary`: 0 or 1 with that chance.
    """
    of_seeds, of_documents, of_both = spreads
    chance = expit(
        centre
        + generator.normal(0, of_seeds, (seeds, 1))
        + generator.normal(0, of_documents, documents)
        + generator.normal(0, of_both, (seeds, documents))
    )
    return (generator.random(chance.shape) < chance).astype(np.float64) if binary else chance


def logistic_mean(centre: float, spreads: tuple[float, float, float]) -> float:
    """The true mean of `logistic_run`, by quadrature."""
    spread = math.sqrt(sum(s**2 for s in spreads))
    at = norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    return float(expit(centre + spread * at).mean())


# ---- cases


def mean_cases() -> Iterator[Case]:
    """Means of normal values, on the grid that intervals have to hold on."""
    for varies, seeds, documents in product(WHAT_VARIES, SEEDS, DOCUMENTS):
        yield mean_case(varies, seeds, documents)


def few_cases() -> Iterator[Case]:
    """One seed and two, and questions in groups of five."""
    for documents in DOCUMENTS:
        yield mean_case("documents", 1, documents)
    for varies in WHAT_VARIES:
        yield mean_case(varies, 2, 40)
    for seeds, documents in product(SEEDS, DOCUMENTS):
        yield mean_case("both", seeds, documents, group=5)


def mean_case(varies: str, seeds: int, documents: int, *, group: int = 1) -> Case:
    """A mean of normal values, of documents in groups of `group`."""
    codes = np.arange(documents) // group
    return Case(
        f"mean, groups of {group}" if group > 1 else "mean",
        varies,
        seeds,
        documents,
        0.0,
        partial(
            normal_run,
            seeds=seeds,
            documents=documents,
            shares=WHAT_VARIES[varies],
            group=group,
        ),
        lambda run: _ends(mean_interval(run, groups=codes)),
        resampled=True,
    )


def difference_cases() -> Iterator[Case]:
    """Differences of two cells that share half of what their documents differ by."""
    for varies, seeds, documents in product(WHAT_VARIES, SEEDS, DOCUMENTS):
        shares = WHAT_VARIES[varies]
        draw = partial(_two_runs, seeds=seeds, documents=documents, shares=shares)
        yield Case("difference", varies, seeds, documents, 0.0, draw, _difference_ends)


# in standard errors of the mean of a run: how far base and gold lie apart; and where the run lies
APART, WAY = 30.0, 0.6


def ratio_cases() -> Iterator[Case]:
    """Shares of the base-gold gap, three fifths of it."""
    for varies, seeds, documents in product(WHAT_VARIES, SEEDS, DOCUMENTS):
        shares = WHAT_VARIES[varies]
        draw = partial(_three_runs, seeds=seeds, documents=documents, shares=shares)
        yield Case(
            "fraction of the gap closed",
            varies,
            seeds,
            documents,
            WAY,
            draw,
            lambda runs: _ends(gap_closed(*runs)),
        )


# centre and spreads (seeds, documents, both) on the logistic scale, and whether values are 0 or 1
BOUNDED: dict[str, tuple[float, tuple[float, float, float], bool]] = {
    "middle, both": (0.0, (0.5, 2.0, 0.5), False),
    "near 0, documents": (-3.0, (0.1, 2.0, 0.5), False),
    "near 0, seeds": (-3.0, (1.0, 0.3, 0.3), False),
    "near 0, both": (-3.0, (1.0, 2.0, 0.5), False),
    "nearer 0, both": (-5.0, (1.0, 2.0, 0.5), False),
    "near 1, both": (4.0, (1.0, 2.0, 0.5), False),
    "0 or 1, near 0": (-3.0, (0.5, 1.0, 0.5), True),
    "0 or 1, nearer 0": (-4.5, (0.3, 1.0, 0.5), True),
    "0 or 1, near 1": (2.0, (0.3, 3.0, 0.5), True),
}


def bounded_cases() -> Iterator[Case]:
    """Skewed values in [0, 1], also close to an end."""
    for varies, seeds, documents in product(BOUNDED, (1, 3, 5), DOCUMENTS):
        centre, spreads, binary = BOUNDED[varies]
        if seeds == 1:
            # one seed knows nothing of others, so none is to differ
            spreads = (0.0, *spreads[1:])
        truth = logistic_mean(centre, spreads)
        draw = partial(
            logistic_run,
            seeds=seeds,
            documents=documents,
            centre=centre,
            spreads=spreads,
            binary=binary,
        )
        yield Case(
            f"in [0, 1], mean {truth:.2g}",
            varies,
            seeds,
            documents,
            truth,
            draw,
            lambda run: _ends(mean_interval(run, bounds=(0.0, 1.0))),
            resampled=True,
        )


def correlation_cases() -> Iterator[Case]:
    """Correlation, slope and order kept over cells of three models; `documents` are cells here."""
    for part, cells, rho in product(ROBUSTNESS_PARTS, (6, 18), (0.5, 0.9)):
        truth = 0.5 + math.asin(rho) / math.pi if part == "kept" else rho
        draw = partial(_models, cells=cells, rho=rho)
        interval = partial(_part_ends, part=part)
        yield Case(part, f"correlation {rho}", 3, cells, truth, draw, interval)


def _ends(interval: Interval) -> Ends | None:
    return None if interval.low is None or interval.high is None else (interval.low, interval.high)


def _two_runs(
    generator: np.random.Generator, *, seeds: int, documents: int, shares: tuple[float, float]
) -> tuple[Numbers, Numbers]:
    spread = math.sqrt(shares[1] * documents / 2)
    common, *own = generator.normal(0, spread, (3, documents))
    first, second = (
        normal_run(generator, seeds, documents, shares, of_documents=common + effects)
        for effects in own
    )
    return first, second


def _difference_ends(runs: tuple[Numbers, Numbers]) -> Ends:
    found = difference(*runs)
    half = found.half_width(LEVEL)
    return found.mean - half, found.mean + half


def _three_runs(
    generator: np.random.Generator, *, seeds: int, documents: int, shares: tuple[float, float]
) -> tuple[Numbers, Numbers, Numbers]:
    """A run, base and gold; the last two are one model each, so that their documents alone vary."""
    base, gold = (generator.normal(0, math.sqrt(documents), (1, documents)) for _ in range(2))
    run = normal_run(generator, seeds, documents, shares) + WAY * gold + (1 - WAY) * base
    return run + (1 - WAY) * APART, base + APART, gold


def _models(
    generator: np.random.Generator, *, cells: int, rho: float, seeds: int = 3
) -> tuple[Numbers, Numbers, Any]:
    """Values before and after of cells of models, and the cells; half of the variance lies between
    cells.
    """
    root = np.linalg.cholesky(np.array([[1.0, rho], [rho, 1.0]]))
    of_cells = np.repeat(root @ generator.normal(0, 1, (2, cells)), seeds, axis=1)
    before, after = of_cells + root @ generator.normal(0, 1, (2, cells * seeds))
    return before, after, np.repeat(np.arange(cells), seeds)


def _part_ends(models: tuple[Numbers, Numbers, Any], *, part: str) -> Ends | None:
    found = with_intervals(*models)
    low, high = found[f"{part}_low"], found[f"{part}_high"]
    return None if low is None or high is None else (low, high)


def bootstrapped(generator: np.random.Generator, run: Numbers, *, draws: int = 300) -> Ends:
    """The percentile interval of crossed resampling of seeds and documents."""
    by_seed, by_document = (
        generator.multinomial(n, np.full(n, 1 / n), draws) / n for n in run.shape
    )
    means = np.einsum("ds,sn,dn->d", by_seed, run, by_document, optimize=True)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


# ---- the tables


GRID_FAMILIES = (mean_cases, difference_cases, ratio_cases)
OTHER_FAMILIES = (few_cases, bounded_cases, correlation_cases)
FAMILIES = (*GRID_FAMILIES, *OTHER_FAMILIES)
GRID_HEADERS = (
    "what varies",
    "seeds",
    "documents",
    "mean",
    "difference",
    "gap closed",
    "mean, bootstrap",
)
HEADERS = ("interval of", "what varies", "seeds", "documents", "holds", "bootstrap")


def grid_rows(repetitions: int) -> Iterator[tuple[Any, ...]]:
    """A row per mixture, number of seeds and of documents: how often each of the three holds."""
    for means, differences, ratios in zip(*(cases() for cases in GRID_FAMILIES), strict=True):
        shares = [held(case, repetitions) for case in (means, differences, ratios)]
        shares.append(held_by_bootstrap(means, repetitions))
        yield means.varies, means.seeds, means.documents, *map(_percent, shares)


def other_rows(repetitions: int) -> Iterator[tuple[Any, ...]]:
    """A row per case outside the grid."""
    for case in (case for cases in OTHER_FAMILIES for case in cases()):
        bootstrap = _percent(held_by_bootstrap(case, repetitions)) if case.resampled else ""
        share = _percent(held(case, repetitions))
        yield case.what, case.varies, case.seeds, case.documents, share, bootstrap


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _print_table(headers: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> None:
    print(f"| {' | '.join(headers)} |\n|{'---|' * len(headers)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def main() -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=2000)
    repetitions = parser.parse_args().repetitions
    _print_table(GRID_HEADERS, grid_rows(repetitions))
    print()
    _print_table(HEADERS, other_rows(repetitions))


if __name__ == "__main__":
    main()
