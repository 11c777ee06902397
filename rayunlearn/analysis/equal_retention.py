"""The order of the methods as training left them, and once all of them retain the same. Polars and
numpy.

"Unlearning with Control" (2406.09179): what is forgotten is compared at equal retention, after
calibration. Which pairs change places, and whether that is shown, is our question; so are the
intervals of the ranks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.analysis.bootstrap import DRAWS, LEVEL, Numbers, bootstrap_interval, weighted_means
from rayunlearn.analysis.hypothesis_tests import difference, holm, paired_p
from rayunlearn.analysis.run_frames import (
    CELL_SETTINGS,
    CONTEXT_SECTIONS,
    objective_of,
    trials_with_roles,
    values_by_trial,
    varying_settings,
)
from rayunlearn.storage.run import Run

COMPARED = ("unlearned", "calibrated", "calibrated_beside")


ALPHA_OF = {"calibrated": "calibrated_alpha", "calibrated_beside": "calibrated_beside_alpha"}


# places
RANK_CHANGE_SCHEMA = 2


# p after Holm's correction at which a change of places is called shown
ORDER_SIGNIFICANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class RankedMethod:
    """One cell of the grid at one stage: (seeds, documents) of what is left on forget, and of what
    is retained.
    """

    dataset: str
    name: str
    stage: str
    alpha: float | None
    forgetting: Numbers
    retained: Numbers


RANKING_SCHEMA = {
    "place": pl.String,
    "name": pl.String,
    "stage": pl.String,
    "alpha": pl.Float64,
    **{
        f"{what}{end}": pl.Float64
        for what in ("left", "retained", "rank")
        for end in ("", "_low", "_high")
    },
    "seeds": pl.Int64,
}


ORDER_CHANGE_SCHEMA = {
    "place": pl.String,
    "first": pl.String,
    "second": pl.String,
    "before": pl.Float64,
    "after": pl.Float64,
    "p_before": pl.Float64,
    "p_after": pl.Float64,
    "p": pl.Float64,
    "shown": pl.Boolean,
}


def has_calibrated(run: Run) -> bool:
    """Whether any trial of the run was calibrated."""
    return bool(run.examples.filter(pl.col("stage") == "calibrated").head(1).collect().height)


def method_ranking(run: Run, *, draws: int = DRAWS) -> pl.DataFrame:
    """Columns STANDINGS: every cell of the grid at every stage that was measured, the least left
    first.

    `left` and `retained` are means of the objective's metrics with 95 % bootstrap intervals; `rank`
    counts from 1, the least left, among the cells of the same data and model at that stage, and its
    interval is over seeds and documents drawn again.
    """
    ranked = list(ranking_of_frames(run))
    rows = []
    for key in dict.fromkeys((s.dataset, s.stage) for s in ranked):
        group = [s for s in ranked if (s.dataset, s.stage) == key]
        rows += [
            _row(s, rank)
            for s, rank in zip(
                group, ranks([s.forgetting for s in group], draws=draws), strict=True
            )
        ]
    frame = pl.DataFrame(rows, schema=RANKING_SCHEMA)
    order = pl.col("stage").replace_strict(
        {stage: index for index, stage in enumerate(COMPARED)}, return_dtype=pl.Int64
    )
    return frame.sort(["place", order, "rank", "name"], maintain_order=True)


def order_changes(run: Run, *, after: str = "calibrated") -> pl.DataFrame:
    """Columns CHANGES: pairs of cells of which one leaves less as training left them, and the other
    at stage `after`.

    `before` and `after` are differences first - second, `before` below 0. `p` is the larger of the
    two paired p-values (both differences must be there), Holm-corrected over all pairs of the run,
    those that keep their order included; `shown` at SHIFT_SHOWN_AT.
    """
    ranked = {(s.dataset, s.name, s.stage): s for s in ranking_of_frames(run)}
    rows = []
    for dataset in dict.fromkeys(dataset for dataset, _, _ in ranked):
        names = [
            n
            for p, n, stage in ranked
            if p == dataset and stage == "unlearned" and (dataset, n, after) in ranked
        ]
        rows += [_pair(ranked, dataset, a, b, after) for a, b in combinations(names, 2)]
    adjusted = holm([row["p"] for row in rows])
    changed = [
        row | {"p": p, "shown": p <= ORDER_SIGNIFICANCE}
        for row, p in zip(rows, adjusted, strict=True)
        if row["before"] * row["after"] < 0
    ]
    return pl.DataFrame(changed, schema=ORDER_CHANGE_SCHEMA).sort(
        "p", "before", maintain_order=True
    )


def n_pairs(table: pl.DataFrame) -> int:
    """Pairs of cells that `order_changes` looks at, from a table of `standings`."""
    sizes = table.filter(pl.col("stage") == "calibrated").group_by("place").len()["len"].to_list()
    return sum(n * (n - 1) // 2 for n in sizes)


def ranks(
    cells: Sequence[Numbers], *, draws: int = DRAWS, seed: int = 0
) -> list[tuple[float, float, float]]:
    """(rank, low, high) of each cell's mean among all of them, 1 the smallest; cells are (seeds,
    documents) over the same documents.

    Every draw takes documents once for all cells and seeds for each cell on its own, since seeds of
    two methods have nothing in common; the interval is of percentiles. Equal means share the
    smaller rank.
    """
    generator = np.random.default_rng(seed)
    n_documents = cells[0].shape[1]
    documents = generator.multinomial(
        n_documents, np.full(n_documents, 1 / n_documents), draws
    ).astype(np.float64)
    bootstrap_ranks = [
        weighted_means(
            c,
            generator.multinomial(len(c), np.full(len(c), 1 / len(c)), draws).astype(np.float64),
            documents,
        )
        for c in cells
    ]
    means, table = np.array([np.nanmean(c) for c in cells]), np.array(bootstrap_ranks)
    # (cells, draws)
    sampled_rank = (table[None] < table[:, None]).sum(1) + 1
    low, high = np.quantile(
        sampled_rank, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1, method="nearest"
    )
    observed_rank = (means[None] < means[:, None]).sum(1) + 1
    return [
        (float(r), float(a), float(b)) for r, a, b in zip(observed_rank, low, high, strict=True)
    ]


def ranking_of_frames(run: Run) -> Iterator[RankedMethod]:
    """Every cell of the grid at every stage at which all its measured trials have both metrics."""
    placed = (
        trials_with_roles(run)
        .filter(pl.col("role") == "grid")
        .unique("trial_id", keep="first", maintain_order=True)
    )
    settings, goal = varying_settings(run, placed), objective_of(run.experiment)
    groups = [
        (rows, *_named(rows, placed, settings))
        for _, rows in placed.group_by([*CELL_SETTINGS, *settings], maintain_order=True)
    ]
    for stage in COMPARED:
        sides = [
            values_by_trial(run, split, metric, stage)
            for split, metric in (("forget", goal.forgetting), (goal.utility_split, goal.utility))
        ]
        for rows, dataset, name in groups:
            trials = rows["trial_id"].to_list()
            forgetting, retained = (
                values[[row_of[t] for t in trials if t in row_of]] for row_of, values in sides
            )
            if len(forgetting) and len(retained):
                alpha = rows[ALPHA_OF[stage]].mean() if stage in ALPHA_OF else None
                yield RankedMethod(
                    dataset=dataset,
                    name=name,
                    stage=stage,
                    alpha=alpha,  # type: ignore[arg-type]
                    forgetting=_asked(forgetting),
                    retained=_asked(retained),
                )


def rank_changes(table: pl.DataFrame, *, after: str = "calibrated") -> pl.DataFrame:
    """Of a table of `standings` the cells that move by two places or more, with 95 % intervals of
    rank before and at stage `after` that lie apart.

    Columns place, name, rank*, and the same with `_after`; the furthest first. Interval by
    interval, without correction for their number. Two places: among methods that forget nothing one
    more in the tie moves them all by one.
    """
    ranks_ = ("rank", "rank_low", "rank_high")
    sides = [
        table.filter(pl.col("stage") == stage).select("place", "name", *ranks_)
        for stage in ("unlearned", after)
    ]
    both = sides[0].join(sides[1], on=("place", "name"), suffix="_after")
    apart = (pl.col("rank_low_after") > pl.col("rank_high")) | (
        pl.col("rank_high_after") < pl.col("rank_low")
    )
    far = (pl.col("rank_after") - pl.col("rank")).abs()
    return both.filter(apart, far >= RANK_CHANGE_SCHEMA).sort(
        far, descending=True, maintain_order=True
    )


def _named(rows: pl.DataFrame, all_rows: pl.DataFrame, settings: Sequence[str]) -> tuple[str, str]:
    """(data and model settings that vary, what tells the cell from others there) in words.

    A setting that all cells of a method share is part of how that method is used, and is not said.
    """
    first = rows.row(0, named=True)
    context_settings = [name for name in settings if name.startswith(CONTEXT_SECTIONS)]
    method = (
        first["method.forget"]
        if first["method.retain"] == "none"
        else f"{first['method.forget']} + {first['method.retain']}"
    )
    alike = all_rows.filter(
        pl.col("method.forget") == first["method.forget"],
        pl.col("method.retain") == first["method.retain"],
    )
    part = (
        [] if first["select.ratio"] == 1 else [f"{first['select.name']} {first['select.ratio']:g}"]
    )
    other_settings = [
        f"{name} {first[name]}"
        for name in settings
        if name not in context_settings and alike[name].n_unique() > 1
    ]
    return ", ".join(f"{name} {first[name]}" for name in context_settings), ", ".join(
        [method, *part, *other_settings]
    )


def _asked(matrix: Numbers) -> Numbers:
    """Without the documents of other corpora."""
    return matrix[:, np.isfinite(matrix).any(0)]


def _pair(
    ranked: Mapping[tuple[str, str, str], RankedMethod], dataset: str, a: str, b: str, after: str
) -> dict[str, Any]:
    """One pair, the one that leaves less before first; p is 1 where the order stays."""
    gaps = [
        difference(ranked[dataset, a, stage].forgetting, ranked[dataset, b, stage].forgetting)
        for stage in ("unlearned", after)
    ]
    sign, (first, second) = (1, (a, b)) if gaps[0].mean <= 0 else (-1, (b, a))
    p = [paired_p(gap) for gap in gaps]
    turned = gaps[0].mean * gaps[1].mean < 0
    row = {
        "place": dataset,
        "first": first,
        "second": second,
        "before": sign * gaps[0].mean,
        "after": sign * gaps[1].mean,
    }
    return row | {"p_before": p[0], "p_after": p[1], "p": max(p) if turned else 1.0}


def _row(standing: RankedMethod, rank: tuple[float, float, float]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "place": standing.dataset,
        "name": standing.name,
        "stage": standing.stage,
        "alpha": standing.alpha,
    }
    for what, matrix in (("left", standing.forgetting), ("retained", standing.retained)):
        interval = bootstrap_interval(matrix)
        row |= {what: interval.mean, f"{what}_low": interval.low, f"{what}_high": interval.high}
    return row | {
        "rank": rank[0],
        "rank_low": rank[1],
        "rank_high": rank[2],
        "seeds": len(standing.forgetting),
    }
