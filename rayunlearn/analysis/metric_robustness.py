"""Which metric keeps the order of models when they are attacked: correlation and slope of every
metric, after against before.

"Unlearning with Control" (2406.09179): a metric is worth trusting where its values over many
unlearned models correlate before and after an attack; where the attack leaves the knowledge in the
model (a jailbreak prompt, a probed layer) the slope should be 1 too, where it changes it
(relearning, a noised question) the correlation alone counts. Intervals (a jackknife over cells and
Student's t) and the share of pairs that keep their order are ours: a correlation of unbounded
values (perplexity) is that of its few largest.
"""

from typing import Any

import numpy as np
import polars as pl

from rayunlearn.analysis.intervals import LEVEL, Numbers
from rayunlearn.analysis.run_frames import (
    CELL_SETTINGS,
    CONTEXT_SECTIONS,
    examples_without_attacks,
    means_by,
)
from rayunlearn.analysis.two_way import Estimate, score_interval, t_above
from rayunlearn.storage.run import Run

ROBUSTNESS_COLUMNS = {
    "correlation": "Pearson's, of the models' means before and after the attack; 1 is wanted",
    "slope": (
        "least squares, after on before; 1 is wanted where the attack leaves the knowledge in the"
        " model (a jailbreak prompt, a probed layer)"
    ),
    "order kept": "share of pairs of models in the same order before and after",
}

HOW_TO_READ = "[low, high]: 95% intervals over cells (method, selector, ratio), by the jackknife."

# cells of attacked models: fewer give an interval that says nothing
MIN_MODELS = 6
ROBUSTNESS_PARTS = ("pearson", "slope", "kept")

ROBUSTNESS_SCHEMA = {
    "setting": pl.String,
    "split": pl.String,
    "metric": pl.String,
    **{f"{part}{end}": pl.Float64 for part in ROBUSTNESS_PARTS for end in ("", "_low", "_high")},
    "before": pl.Float64,
    "after": pl.Float64,
    "models": pl.Int64,
    "cells": pl.Int64,
}


def robustness_table(run: Run) -> pl.DataFrame:
    """Columns SCHEMA: one row per attack setting, split and metric with attacked models of
    `MIN_MODELS` cells or more.

    pearson and slope (least squares, after on before) of the models' means, and `kept`, the share
    of pairs of models that keep their order (a tie afterwards counts half); null where all means
    are one before, pearson also where they are after. Each with a 95% interval over cells (method,
    selector, ratio), all seeds of a cell together. Base and gold are no models here.
    Means are over the documents that the attack asked, on both sides, and over the attack's seeds.
    """
    pairs, cell_of = model_means(run), _cells(run)
    rows = []
    for key, part in pairs.group_by("setting", "split", "metric", maintain_order=True):
        usable = part.filter(pl.col("before").is_finite() & pl.col("after").is_finite())
        cells = np.unique([cell_of[t] for t in usable["attacked"]], return_inverse=True)[1]
        if len(set(cells)) >= MIN_MODELS:
            before, after = usable["before"].to_numpy(), usable["after"].to_numpy()
            columns = with_intervals(before, after, cells)
            cell = dict(zip(("setting", "split", "metric"), key, strict=True))
            rows.append(
                cell
                | columns
                | {
                    "before": before.mean(),
                    "after": after.mean(),
                    "models": len(before),
                    "cells": int(cells.max()) + 1,
                }
            )
    return pl.DataFrame(rows, schema=ROBUSTNESS_SCHEMA)


def model_means(run: Run) -> pl.DataFrame:
    """setting, attacked, split, metric, before, after: means of every attacked model over the
    documents that the attack asked.
    """
    attacks = (
        run.attacks.filter(pl.col("role") == "attack")
        .select("trial_id", "attacked", "setting")
        .unique(maintain_order=True)
    )
    keys = ["split", "metric", "doc_id"]
    after = (
        run.examples.filter(pl.col("attack") != "none")
        .join(attacks, on="trial_id")
        .select("attacked", "setting", *keys, "value")
    )
    before = examples_without_attacks(run, "unlearned").select(
        pl.col("trial_id").alias("attacked"), *keys, pl.col("value").alias("before")
    )
    both = after.join(before, on=["attacked", *keys]).drop_nulls(["value", "before"])
    named = ("setting", "attacked", "split", "metric")
    means = means_by(both, named, ("before", "value")).rename({"value": "after"})
    return means.sort("setting", "split", "metric", "attacked")


def with_intervals(before: Numbers, after: Numbers, cells: Any) -> dict[str, float | None]:
    """PARTS of (n,) means, each with _low and _high; `cells` (n,) numbers each model's cell.

    Standard errors from the values that each part has with one cell left out (jackknife, Tukey
    1958), Student's t with cells - 1 degrees of freedom; pearson on Fisher's z, kept within [0, 1]
    by `score_interval`. Percentiles of a bootstrap held 86 to 93% with 6 to 18 cells, these 92 to
    98% (benchmarks/intervals.py).
    """
    observed = robustness_parts(before, after, np.ones((1, len(before))))
    n_cells = int(cells.max()) + 1
    left_out = robustness_parts(before, after, (1 - np.eye(n_cells))[:, cells])
    return {
        f"{part}{end}": value
        for part in ROBUSTNESS_PARTS
        for end, value in zip(
            ("", "_low", "_high"),
            _value_and_interval(part, float(observed[part][0]), left_out[part]),
            strict=True,
        )
    }


def robustness_parts(before: Numbers, after: Numbers, weights: Numbers) -> dict[str, Numbers]:
    """PARTS (draws,) of models weighted (draws, n); NaN where they are not defined."""
    total = weights.sum(1)
    x, y = (values - (weights @ values / total)[:, None] for values in (before, after))
    xx, yy, xy = ((weights * a * b).sum(1) for a, b in ((x, x), (y, y), (x, y)))
    order = np.sign(before[:, None] - before[None])
    agree = np.where(order != 0, (1 + order * np.sign(after[:, None] - after[None])) / 2, 0.0)
    agreeing, ordered = (
        np.einsum("di,ij,dj->d", weights, table, weights, optimize=True)
        for table in (agree, np.abs(order))
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "pearson": np.clip(xy / np.sqrt(xx * yy), -1, 1),
            "slope": xy / xx,
            "kept": agreeing / ordered,
        }


def worst_correlation(table: pl.DataFrame) -> pl.DataFrame:
    """split, metric, setting, pearson (with interval): of every metric the attack that leaves it
    least correlated, the best metric first.

    A metric that some attack leaves without a correlation comes after those that have all.
    """
    worst = table.sort("pearson", nulls_last=False, maintain_order=True).unique(
        ["split", "metric"], keep="first", maintain_order=True
    )
    return worst.sort(
        ["split", "pearson", "metric"], descending=[False, True, False], nulls_last=True
    )


def _value_and_interval(
    part: str, observed: float, left_out: Numbers
) -> tuple[float | None, float | None, float | None]:
    """A value and its interval; all None where it is not defined."""
    if not np.isfinite(observed):
        return None, None, None
    if part == "pearson":
        # a correlation of exactly 1 stays one: its z is finite in floating point
        z, jackknife = (np.arctanh(np.clip(v, -1 + 1e-12, 1 - 1e-12)) for v in (observed, left_out))
        half_width = _jackknife_half_width(jackknife)
        return observed, float(np.tanh(z - half_width)), float(np.tanh(z + half_width))
    half_width, n = _jackknife_half_width(left_out), len(left_out)
    if part == "slope":
        return observed, observed - half_width, observed + half_width
    estimate = Estimate(
        mean=observed,
        variance=(half_width / t_above((1 - LEVEL) / 2, n - 1)) ** 2,
        degrees=n - 1,
        from_documents=0.0,
        from_seeds=0.0,
        n_documents=n,
        n_groups=n,
        n_seeds=1,
        over="cells",
    )
    return observed, *score_interval(estimate, level=LEVEL, bounds=(0.0, 1.0))


def _jackknife_half_width(left_out: Numbers) -> float:
    """Half the width of the interval, from values each with one cell left out; infinite where one
    of them is not defined.
    """
    n = len(left_out)
    spread = (n - 1) / n * float(((left_out - left_out.mean()) ** 2).sum())
    return t_above((1 - LEVEL) / 2, n - 1) * np.sqrt(spread) if np.isfinite(spread) else np.inf


def _cells(run: Run) -> dict[str, str]:
    """trial -> what names its cell: method, selector, ratio and whatever else is set, seeds left
    out.
    """
    trials = run.trials.collect()
    context_settings = [
        n for n in trials.columns if n in CELL_SETTINGS or n.startswith(CONTEXT_SECTIONS)
    ]
    return {
        row["trial_id"]: " ".join(str(row[n]) for n in context_settings)
        for row in trials.select("trial_id", *context_settings).iter_rows(named=True)
    }
