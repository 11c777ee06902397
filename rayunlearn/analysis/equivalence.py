"""The headline question: the smallest part of the forget set that does what the whole does, or what
it would take to tell.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.analysis.hypothesis_tests import (
    difference,
    documents_needed,
    equivalence_p,
    not_worse_p,
    paired_p,
    seeds_needed,
)
from rayunlearn.analysis.intervals import (
    NO_INTERVAL,
    Interval,
    Numbers,
    bounds_of,
    interval_columns,
    mean_interval,
)
from rayunlearn.analysis.run_frames import (
    CELL_SETTINGS,
    CONTEXT_SECTIONS,
    MetricValues,
    objective_of,
    targets_of_run,
    trials_with_roles,
    values_by_trial,
    varying_settings,
)
from rayunlearn.analysis.targets import Target, above_target, is_over_forgotten
from rayunlearn.analysis.two_way import Estimate, Groups
from rayunlearn.config import FULL_RATIO, SEED_SETTINGS
from rayunlearn.errors import require
from rayunlearn.storage.run import Run

# the sign of a difference for the worse: more is remembered, less is useful
WORSE = {"forgetting": 1, "utility": -1}


@dataclass(frozen=True, kw_only=True)
class EquivalenceCriterion:
    """What counts as the same: both metrics within `margin` at level `alpha`; `power` is for the
    numbers needed to show it.

    With `better_counts` a ratio need only be no worse by the margin; without, one that forgets more
    or harms less by more than the margin is different too, and fails.
    """

    margin: float
    alpha: float = 0.05
    power: float = 0.8
    better_counts: bool = False

    def __post_init__(self) -> None:
        require(self.margin > 0, "margin must be > 0", self.margin)
        require(0 < self.alpha < 0.5, "alpha must be in (0, 0.5)", self.alpha)
        require(0 < self.power < 1, "power must be in (0, 1)", self.power)


def widest_margin(run: Run) -> float:
    """The largest difference that either metric of a run's objective can have; infinite for one
    without bounds, or of a run that does not say them.
    """
    goal = objective_of(run.experiment)
    ranges = {row["name"]: row for row in run.experiment.get("metrics", ())}
    widths = [
        ranges[name]["high"] - ranges[name]["low"]
        for name in (goal.forgetting, goal.utility)
        if name in ranges and None not in (ranges[name]["low"], ranges[name]["high"])
    ]
    return float(max(widths)) if len(widths) == len((goal.forgetting, goal.utility)) else math.inf


@dataclass(frozen=True, kw_only=True)
class CoresetCell:
    """One method and selector at one ratio: forgetting and utility as (seeds, documents), all cells
    over the same documents.

    `setting` is every other thing that varies, in words, and `full_set_setting` the same without
    what only a part has: the full set is not chosen, so it has no extractor or strata to vary.
    `unmeasured` counts trials that ended without rows (diverged, failed). `groups`: by metric a
    number per document, the same for documents that are drawn together; each by itself where there
    is none. `target`: what forgetting is held against, gold or chance.
    """

    setting: str
    method: str
    selector: str
    ratio: float
    n_kept: float
    forgetting: Numbers
    utility: Numbers
    unmeasured: int = 0
    full_set_setting: str = ""
    groups: Mapping[str, Groups] = field(default_factory=dict)
    target: Target | None = None


# difference of either metric that does not matter, where nobody says another
DEFAULT_MARGIN = 0.1

FULL_SET_SCHEMA = {
    "setting": pl.String,
    "method": pl.String,
    "selector": pl.String,
    "full_set": pl.String,
    "full": pl.Float64,
    "full_low": pl.Float64,
    "full_high": pl.Float64,
    "ratio": pl.Float64,
    "n_kept": pl.Float64,
    "part": pl.Float64,
    "part_low": pl.Float64,
    "part_high": pl.Float64,
    "difference": pl.Float64,
    "p_equal": pl.Float64,
    "p_different": pl.Float64,
    "verdict": pl.String,
}

FRONTIER_SCHEMA = {
    "setting": pl.String,
    "method": pl.String,
    "selector": pl.String,
    "verdict": pl.String,
    "ratio": pl.Float64,
    "n_kept": pl.Float64,
    "p": pl.Float64,
    "stopped_at": pl.Float64,
    "stopped_by": pl.String,
    "difference": pl.Float64,
    "stopped_p": pl.Float64,
    "documents_needed": pl.Int64,
    "seeds_needed": pl.Int64,
    "over": pl.String,
}


def frontier(
    cells: Sequence[CoresetCell], base: Mapping[str, CoresetCell], standard: EquivalenceCriterion
) -> pl.DataFrame:
    """Per setting, method and selector: the smallest ratio that the standard finds the same as the
    full set. `verdict`, in words:

    - shown: forgetting and utility at this ratio, and at every larger one, are within the margin
      of the full set;
    - not shown: no smaller ratio could be shown equivalent; `stopped_at` is the first that could
      not;
    - full set does not forget: it is within the margin of base, or not significantly different
      from it, so there is nothing to be equivalent to;
    - full set over-forgets: it is shown to be below gold (chance, where there is no gold) and not
      shown to be within the margin of it, so a part that equals it is no better;
    - no full set: it was not run, or not all of its trials could be measured.

    Ratios are tested downwards and the first failure ends the search, a fixed order that needs no
    correction among them; every test must pass for forgetting AND utility (their larger p counts),
    which needs none either. Over the methods and selectors alpha is divided by their number
    (Bonferroni). A ratio with trials that could not be measured is a failure. `base` holds base's
    cell by setting. `p` is the largest p of the ratios shown; `stopped_*`, `difference` and the
    needed numbers are of the first failure, each needed number with everything else as it is.
    """
    parts = sorted(
        (c for c in cells if c.ratio < FULL_RATIO),
        key=lambda c: (c.setting, c.method, c.selector, -c.ratio),
    )
    families = [
        (key, list(group))
        for key, group in groupby(parts, key=lambda c: (c.setting, c.method, c.selector))
    ]
    full = {(c.full_set_setting, c.method): c for c in cells if c.ratio == FULL_RATIO}
    each = replace(standard, alpha=standard.alpha / max(1, len(families)))
    rows = []
    for (setting, method, selector), smaller in families:
        row = _walk_down(
            full.get((smaller[0].full_set_setting, method)), base.get(setting), smaller, each
        )
        rows.append({"setting": setting, "method": method, "selector": selector} | row)
    return pl.DataFrame(rows, schema=FRONTIER_SCHEMA)


def frontier_of_run(run: Run, standard: EquivalenceCriterion) -> pl.DataFrame:
    """`frontier` of a run's own cells, on the forgetting and utility of its objective.

    Args:
        run: an opened run (`storage.run.open_run`).
        standard: margin, level and power of the test.

    Returns:
        One row per setting, method and selector: `verdict`, `ratio`, `p`, what would decide.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> run = open_run("docs/notebooks/runs/coreset")
        >>> table = frontier_of_run(run, EquivalenceCriterion(margin=0.1))
        >>> table.select("method", "verdict", "ratio").row(1)
        ('rmu + activation', 'shown', 0.25)
    """
    return frontier(*coreset_cells(run), standard)


def full_set_comparison(
    run: Run, standard: EquivalenceCriterion = EquivalenceCriterion(margin=DEFAULT_MARGIN)
) -> pl.DataFrame:
    """Columns FULL_SET_SCHEMA: every part of a run's own grid against the full set of the same
    method, the larger parts first.

    `verdict` of a part:

    - equal: forgetting and utility are shown to differ by less than the margin (TOST, both at
      level alpha);
    - different: one of them is shown to differ, and not to be equal within the margin;
    - not decided: neither is shown;
    - not measured: trials of it could not be measured.

    `full_set` says what the full set itself did: forgets, does not forget, over-forgets (as in
    `frontier`), loses utility (below the objective's floor), not measured. Each part is tested by
    itself, without correction for their number. `p_equal` and `p_different` are of forgetting.

    Args:
        run: an opened run (`storage.run.open_run`).
        standard: margin and level of the test.

    Returns:
        One row per part.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> table = full_set_comparison(open_run("docs/notebooks/runs/coreset"))
        >>> table.select("method", "ratio", "verdict").row(0)
        ('npo + nll', 0.25, 'not decided')
    """
    cells, bases = coreset_cells(run)
    floor = objective_of(run.experiment).utility_floor
    bounds = bounds_of(run.experiment, objective_of(run.experiment).forgetting)
    full = {(c.full_set_setting, c.method): c for c in cells if c.ratio == FULL_RATIO}
    parts = sorted(
        (c for c in cells if c.ratio < FULL_RATIO),
        key=lambda c: (c.setting, c.method, c.selector, -c.ratio),
    )
    rows = []
    for part in parts:
        whole = full.get((part.full_set_setting, part.method))
        row: dict[str, Any] = {
            "setting": part.setting,
            "method": part.method,
            "selector": part.selector,
            "ratio": part.ratio,
            "n_kept": part.n_kept,
            "full_set": _full_set_verdict(whole, bases.get(part.setting), standard, floor),
        }
        for name, cell in (("part", part), ("full", whole)):
            interval = (
                mean_interval(cell.forgetting, groups=cell.groups.get("forgetting"), bounds=bounds)
                if cell is not None
                else NO_INTERVAL
            )
            row |= interval_columns(name, interval)
        rows.append(row | part_verdict(part, whole, standard))
    return pl.DataFrame(rows, schema=FULL_SET_SCHEMA)


def _full_set_verdict(
    full: CoresetCell | None,
    base: CoresetCell | None,
    standard: EquivalenceCriterion,
    floor: float,
) -> str:
    """What the full set did, in words."""
    if full is None or base is None or full.unmeasured:
        return "not measured"
    if not all(map(len, (full.forgetting, full.utility, base.forgetting, base.utility))):
        return "not measured"
    if paired_p(_difference_of_cells(full, base, "forgetting")) > standard.alpha:
        return "does not forget"
    if np.nanmean(full.utility) < floor * np.nanmean(base.utility):
        return "loses utility"
    return "over-forgets" if _over_forgetting(full, standard) is not None else "forgets"


def part_verdict(
    part: CoresetCell, full: CoresetCell | None, standard: EquivalenceCriterion
) -> dict[str, Any]:
    """`verdict`, `difference` and the two p-values of a part."""
    is_measured = [
        c is not None and not c.unmeasured and len(c.forgetting) and len(c.utility)
        for c in (part, full)
    ]
    if full is None or not all(is_measured):
        return {"verdict": "not measured"}
    both = {name: _difference_of_cells(part, full, name) for name in WORSE}
    equal = {name: equivalence_p(estimate, standard.margin) for name, estimate in both.items()}
    unequal = {name: paired_p(estimate) for name, estimate in both.items()}
    verdict = "not decided"
    if max(equal.values()) <= standard.alpha:
        verdict = "equal"
    elif any(unequal[name] <= standard.alpha < equal[name] for name in WORSE):
        verdict = "different"
    return {
        "verdict": verdict,
        "difference": both["forgetting"].mean,
        "p_equal": equal["forgetting"],
        "p_different": unequal["forgetting"],
    }


def coreset_cells(run: Run, stage: str = "") -> tuple[list[CoresetCell], dict[str, CoresetCell]]:
    """The grid's cells of a run at `stage` ('': the objective's), and base's by setting (data and
    model settings that vary).
    """
    placed = (
        trials_with_roles(run)
        .filter(pl.col("role").is_in(["grid", "base"]))
        .unique(["trial_id", "role"], keep="first", maintain_order=True)
    )
    settings = varying_settings(run, placed)
    goal = objective_of(run.experiment)
    matrices = [
        values_by_trial(run, split, metric, stage)
        for split, metric in (("forget", goal.forgetting), (goal.utility_split, goal.utility))
    ]
    context_settings = [name for name in settings if name.startswith(CONTEXT_SECTIONS)]
    targets = targets_of_run(run)
    grid, places = [], {}
    for _, rows in placed.filter(pl.col("role") == "grid").group_by(
        [*CELL_SETTINGS, *settings], maintain_order=True
    ):
        common_setting = _format_settings(
            rows, [name for name in settings if name not in selector_label(rows)]
        )
        target = targets.target(rows.row(0, named=True), matrices[0].documents)
        cell = _cell(_format_settings(rows, settings), common_setting, rows, matrices)
        grid.append(replace(cell, target=target))
        places[_format_settings(rows, settings)] = _format_settings(rows, context_settings)
    bases = {}
    for _, rows in placed.filter(pl.col("role") == "base").group_by(
        context_settings or ["role"], maintain_order=True
    ):
        bases[_format_settings(rows, context_settings)] = _cell("", "", rows, matrices)
    return grid, {
        setting: bases[dataset] for setting, dataset in places.items() if dataset in bases
    }


def _walk_down(
    full: CoresetCell | None,
    base: CoresetCell | None,
    smaller: Sequence[CoresetCell],
    standard: EquivalenceCriterion,
) -> dict[str, Any]:
    empty_row: dict[str, Any] = {
        name: None for name in FRONTIER_SCHEMA if name not in ("setting", "method", "selector")
    }
    if full is None or full.unmeasured or not (len(full.forgetting) and len(full.utility)):
        return empty_row | {"verdict": "no full set"}
    if failure := _failure_of_full_set(full, base, standard):
        verdict, difference_from_it = failure
        return empty_row | {
            "verdict": verdict,
            "difference": difference_from_it.mean,
            "stopped_p": paired_p(difference_from_it),
            "over": difference_from_it.over,
        }
    row = empty_row | {"verdict": "not shown"}
    for cell in smaller:
        by, estimate, p = _weaker_equivalence(cell, full, standard)
        if estimate is None or p > standard.alpha:
            return row | _stopped(cell, by, estimate, p, standard)
        row |= {
            "verdict": "shown",
            "ratio": cell.ratio,
            "n_kept": cell.n_kept,
            "p": max(p, row["p"] or 0.0),
            "over": estimate.over,
        }
    return row


def _failure_of_full_set(
    full: CoresetCell, base: CoresetCell | None, standard: EquivalenceCriterion
) -> tuple[str, Estimate] | None:
    """Why a full set is no standard, with its difference from base or from its target; None where
    it is one.
    """
    if base is not None and len(base.forgetting):
        moved = _difference_of_cells(full, base, "forgetting")
        if abs(moved.mean) <= standard.margin or paired_p(moved) > standard.alpha:
            return "full set does not forget", moved
    above = _over_forgetting(full, standard)
    return None if above is None else ("full set over-forgets", above)


def _over_forgetting(full: CoresetCell, standard: EquivalenceCriterion) -> Estimate | None:
    """How far the full set is from its target, where it is shown to be below it (forgetting is of a
    metric where less is more forgotten) and not to be the same within the margin.
    """
    target = full.target
    if target is None or not is_over_forgotten(_above(full.forgetting, target, full.groups)):
        return None
    estimate = difference(
        full.forgetting, target.values[None, :], groups=full.groups.get("forgetting")
    )
    return estimate if equivalence_p(estimate, standard.margin) > standard.alpha else None


def _above(forgetting: Numbers, target: Target, groups: Mapping[str, Groups]) -> Interval:
    return above_target(forgetting, target, groups=groups.get("forgetting"))


def _weaker_equivalence(
    cell: CoresetCell, full: CoresetCell, standard: EquivalenceCriterion
) -> tuple[str, Estimate | None, float]:
    """(forgetting or utility, its difference, its p): whichever of the two is less the same."""
    if cell.unmeasured or not (len(cell.forgetting) and len(cell.utility)):
        return "unmeasured trials", None, 1.0
    both = {metric: _difference_of_cells(cell, full, metric) for metric in WORSE}
    ranked = [
        (name, estimate, _same_p(name, estimate, standard)) for name, estimate in both.items()
    ]
    return max(ranked, key=lambda entry: entry[2])


def _difference_of_cells(first: CoresetCell, second: CoresetCell, metric: str) -> Estimate:
    """Difference of two cells of a run, whose documents have the same groups."""
    return difference(
        getattr(first, metric), getattr(second, metric), groups=first.groups.get(metric)
    )


def _same_p(name: str, estimate: Estimate, standard: EquivalenceCriterion) -> float:
    if standard.better_counts:
        return not_worse_p(estimate, standard.margin, worse=WORSE[name])
    return equivalence_p(estimate, standard.margin)


def _stopped(
    cell: CoresetCell, by: str, estimate: Estimate | None, p: float, standard: EquivalenceCriterion
) -> dict[str, Any]:
    row: dict[str, Any] = {"stopped_at": cell.ratio, "stopped_by": by, "stopped_p": p}
    if estimate is None:
        return row
    chance = {"alpha": standard.alpha, "power": standard.power}
    needed = {
        "documents_needed": documents_needed(estimate, standard.margin, **chance),
        "seeds_needed": seeds_needed(estimate, standard.margin, **chance),
    }
    return row | needed | {"difference": estimate.mean, "over": estimate.over}


def selector_label(rows: pl.DataFrame) -> list[str]:
    """Settings of a cell that say how its part was chosen and that a full set has not
    (`canonical.canonical_full_set`).
    """
    original = "select.text" not in rows.columns or rows["select.text"][0] in (None, "original")
    return [
        n
        for n in rows.columns
        if n.startswith("select.") and (original or n in ("select.name", "select.stratified"))
    ]


def _cell(
    setting: str,
    full_set_setting: str,
    rows: pl.DataFrame,
    matrices: Sequence[MetricValues],
) -> CoresetCell:
    trials = rows["trial_id"].unique(maintain_order=True).to_list()
    forgetting, utility = (measured.rows(trials) for measured in matrices)
    first = rows.row(0, named=True)
    method = (
        str(first["method.forget"])
        if first["method.retain"] == "none"
        else f"{first['method.forget']} + {first['method.retain']}"
    )
    return CoresetCell(
        setting=setting,
        full_set_setting=full_set_setting,
        method=method,
        selector=str(first["select.name"]),
        ratio=float(first["select.ratio"] or 0.0),
        n_kept=float(rows["n_kept"].cast(pl.Float64).mean() or 0.0),  # type: ignore[arg-type]
        forgetting=forgetting,
        utility=utility,
        unmeasured=len(trials) - min(measured.n_measured(trials) for measured in matrices),
        groups={name: measured.groups for name, measured in zip(WORSE, matrices, strict=True)},
    )


def _format_settings(rows: pl.DataFrame, settings: Sequence[str]) -> str:
    """`data.redundancy 4, model.size tiny` of the rows' common values."""
    first = rows.row(0, named=True)
    return ", ".join(f"{name} {first[name]}" for name in settings if name not in SEED_SETTINGS)
