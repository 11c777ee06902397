"""The order of the methods as training left them, and once all of them retain the same. Polars and
numpy.

"Unlearning with Control" (2406.09179): what is forgotten is compared at equal retention, after
calibration. Which pairs change places, and whether that is shown, is our question; so are the
intervals of the ranks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import polars as pl

from rayunlearn.analysis.hypothesis_tests import difference, holm, paired_p
from rayunlearn.analysis.intervals import LEVEL, Numbers, bounds_of, mean_interval
from rayunlearn.analysis.run_frames import (
    CELL_SETTINGS,
    CONTEXT_SECTIONS,
    MetricValues,
    lower_is_forgotten,
    objective_of,
    targets_of_run,
    trials_with_roles,
    values_by_trial,
    varying_settings,
)
from rayunlearn.analysis.targets import (
    Target,
    above_target,
    distance_by_document,
    is_over_forgotten,
)
from rayunlearn.analysis.two_way import Estimate, Groups
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
    is retained; `groups`: a number per document of each, the same for documents drawn together, and
    `bounds`: the range of each metric.
    """

    dataset: str
    name: str
    stage: str
    alpha: float | None
    forgetting: Numbers
    retained: Numbers
    groups: Mapping[str, Groups] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    # what the order goes by: how each document moves the distance to the target, or `forgetting`
    compared: Numbers
    over_forgotten: bool = False


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
    "over_forgotten": pl.Boolean,
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


def method_ranking(run: Run) -> pl.DataFrame:
    """Columns RANKING_SCHEMA: every cell of the grid at every stage that was measured, the nearest
    to the target first (the least left, where the objective has none).

    `left` and `retained` are means of the objective's metrics with 95% t intervals; `rank` counts
    from 1, the smallest distance to the target, among the cells of the same data and model at that
    stage, with the interval of `ranks`. `over_forgotten`: shown to be below gold, or chance.

    Args:
        run: an opened run (`storage.run.open_run`).

    Returns:
        The ranking, one row per cell and stage.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> run = open_run("docs/notebooks/runs/control")
        >>> method_ranking(run).row(0, named=True)["name"]
        'ga'
    """
    ranked = list(ranking_of_frames(run))
    rows = []
    for key in dict.fromkeys((s.dataset, s.stage) for s in ranked):
        group = [s for s in ranked if (s.dataset, s.stage) == key]
        rows += [
            _row(s, rank)
            for s, rank in zip(
                group,
                ranks([s.compared for s in group], groups=group[0].groups.get("left")),
                strict=True,
            )
        ]
    frame = pl.DataFrame(rows, schema=RANKING_SCHEMA)
    order = pl.col("stage").replace_strict(
        {stage: index for index, stage in enumerate(COMPARED)}, return_dtype=pl.Int64
    )
    return frame.sort(["place", order, "rank", "name"], maintain_order=True)


def order_changes(run: Run, *, after: str = "calibrated") -> pl.DataFrame:
    """Columns ORDER_CHANGE_SCHEMA: pairs of cells of which one is nearer to the target as training
    left them (leaves less, where the objective has none), and the other at stage `after`.

    `before` and `after` are differences first - second, `before` below 0. `p` is the larger of the
    two paired p-values (both differences must be there), Holm-corrected over all pairs of the run,
    those that keep their order included; `shown` at SHIFT_SHOWN_AT.

    Args:
        run: an opened run (`storage.run.open_run`).
        after: the stage to compare with.

    Returns:
        One row per pair whose order changes.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> run = open_run("docs/notebooks/runs/control")
        >>> order_changes(run).height
        42
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
    cells: Sequence[Numbers], *, groups: Groups | None = None, level: float = LEVEL
) -> list[tuple[float, float, float]]:
    """(rank, low, high) of each cell's mean among all of them, 1 the smallest; cells are (seeds,
    documents) over the same documents.

    The interval leaves out the ranks that are shown to be wrong (Mogstad, Romano, Shaikh & Wilhelm
    2024, restud rdad006): a cell comes after those that are smaller, and before those that are
    larger, by the paired test of their difference, Holm-corrected over the cell's comparisons. So
    it holds the true rank at least as often as `level` says. Equal means share the smaller rank.
    """
    gaps = {
        (i, j): difference(cells[i], cells[j], groups=groups)
        for i, j in combinations(range(len(cells)), 2)
    }
    intervals = []
    for cell in range(len(cells)):
        # of the cell minus each other one
        own_gaps = [(gap, 1 if i == cell else -1) for (i, j), gap in gaps.items() if cell in (i, j)]
        smaller = sum(sign * gap.mean > 0 for gap, sign in own_gaps)
        before, after = _n_significant(own_gaps, level)
        intervals.append((float(1 + smaller), float(1 + before), float(len(cells) - after)))
    return intervals


def _n_significant(gaps: Sequence[tuple[Estimate, int]], level: float) -> tuple[int, int]:
    """How many others are shown to be smaller, and larger, than a cell; `gaps` to each with the
    sign that makes it cell minus other.
    """
    adjusted = holm([paired_p(gap) for gap, _ in gaps])
    significant = [
        sign * gap.mean for (gap, sign), p in zip(gaps, adjusted, strict=True) if p <= 1 - level
    ]
    return sum(gap > 0 for gap in significant), sum(gap < 0 for gap in significant)


def ranking_of_frames(run: Run) -> Iterator[RankedMethod]:
    """Every cell of the grid at every stage at which all its measured trials have both metrics."""
    placed = (
        trials_with_roles(run)
        .filter(pl.col("role") == "grid")
        .unique("trial_id", keep="first", maintain_order=True)
    )
    settings, goal = varying_settings(run, placed), objective_of(run.experiment)
    targets = targets_of_run(run)
    bounds = {
        "left": bounds_of(run.experiment, goal.forgetting),
        "retained": bounds_of(run.experiment, goal.utility),
    }
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
            if all(side.n_measured(trials) for side in sides):
                target = targets.target(rows.row(0, named=True), sides[0].documents)
                yield RankedMethod(
                    dataset=dataset,
                    name=name,
                    stage=stage,
                    alpha=_mean_alpha(rows, stage),
                    retained=sides[1].rows(trials),
                    groups={"left": sides[0].groups, "retained": sides[1].groups},
                    bounds=bounds,
                    **_held_against(sides[0], trials, target, run.experiment),
                )


def _mean_alpha(rows: pl.DataFrame, stage: str) -> float | None:
    """How far the stage's models are from base, on the mean; None where none was interpolated."""
    mean = rows[ALPHA_OF[stage]].mean() if stage in ALPHA_OF else None
    return mean if isinstance(mean, float) else None


def _held_against(
    measured: MetricValues,
    trials: Sequence[str],
    target: Target | None,
    experiment: Mapping[str, Any],
) -> dict[str, Any]:
    """`forgetting`, `compared` and `over_forgotten` of a cell."""
    forgetting = measured.rows(trials)
    if target is None:
        return {"forgetting": forgetting, "compared": forgetting}
    above = above_target(forgetting, target, groups=measured.groups)
    distances = measured.rows(trials, partial(distance_by_document, target=target))
    return {
        "forgetting": forgetting,
        "compared": forgetting if objective_of(experiment).target == "none" else distances,
        "over_forgotten": is_over_forgotten(above, lower_forgets=lower_is_forgotten(experiment)),
    }


def rank_changes(table: pl.DataFrame, *, after: str = "calibrated") -> pl.DataFrame:
    """Of a table of `standings` the cells that move by two places or more, with 95% intervals of
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
    is_disjoint = (pl.col("rank_low_after") > pl.col("rank_high")) | (
        pl.col("rank_high_after") < pl.col("rank_low")
    )
    far = (pl.col("rank_after") - pl.col("rank")).abs()
    return both.filter(is_disjoint, far >= RANK_CHANGE_SCHEMA).sort(
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


def _pair(
    ranked: Mapping[tuple[str, str, str], RankedMethod], dataset: str, a: str, b: str, after: str
) -> dict[str, Any]:
    """One pair, the one that comes first before; p is 1 where the order stays."""
    gaps = [
        difference(
            ranked[dataset, a, stage].compared,
            ranked[dataset, b, stage].compared,
            groups=ranked[dataset, a, stage].groups.get("left"),
        )
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


def _row(ranked: RankedMethod, rank: tuple[float, float, float]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "place": ranked.dataset,
        "name": ranked.name,
        "stage": ranked.stage,
        "alpha": ranked.alpha,
    }
    for column, matrix in (("left", ranked.forgetting), ("retained", ranked.retained)):
        interval = mean_interval(
            matrix, groups=ranked.groups.get(column), bounds=ranked.bounds.get(column)
        )
        row |= {
            column: interval.mean,
            f"{column}_low": interval.low,
            f"{column}_high": interval.high,
        }
    return row | {
        "rank": rank[0],
        "rank_low": rank[1],
        "rank_high": rank[2],
        "over_forgotten": ranked.over_forgotten,
        "seeds": len(ranked.forgetting),
    }
