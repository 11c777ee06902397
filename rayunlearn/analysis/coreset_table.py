"""From rows to statements: means, their intervals, the coreset table, the forget-utility front.
Polars and numpy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.analysis.intervals import (
    NO_INTERVAL,
    bounds_of,
    gap_closed,
    interval_columns,
    mean_interval,
)
from rayunlearn.analysis.run_frames import (
    CELL_SETTINGS,
    CONTEXT_SECTIONS,
    UNTOUCHED,
    MetricValues,
    RunTargets,
    examples_without_attacks,
    lower_is_forgotten,
    measured_of,
    objective_of,
    searches_of,
    targets_of_run,
    trials_with_roles,
    varying_settings,
)
from rayunlearn.analysis.targets import (
    above_target,
    cell_distance,
    distance_by_document,
    is_over_forgotten,
)
from rayunlearn.analysis.tuning import tuned_values
from rayunlearn.config import Objective
from rayunlearn.schema import ROLES, STATUSES
from rayunlearn.storage.run import Run

MULTIPLE_CHOICE = "multiple_choice"

# what a cell trained on, where that varies
TEXT, ORIGINAL = "select.text", "original"
# each with _low and _high beside it
ENDS = ("", "_low", "_high")
MEASURES = ("forgetting", "utility", "untouched", "choice_forget", "choice_retain", "unlearning")


def coreset_table(run: Run) -> pl.DataFrame:
    """One row per cell: role, group, method, selector, ratio, every other setting that varies; then
    what was measured.

    `forgetting`, `utility`, `choice_forget`, `choice_retain` are means over all measured trials of
    the cell, collapsed ones included, with `_low` and `_high` (95% t; `interval_over` says over
    what); `unlearning` is the fraction of the base-gold gap closed. `aim` says what forgetting is
    held against, gold or chance, `distance` how far the cell is from it (`cell_distance`), `above`
    its mean minus the target's, and `over_forgotten` whether that is shown to be below 0
    (`is_over_forgotten`). `objective` is what the cells are ordered by: `distance`, or `forgetting`
    where the objective has no target. `tuned` has the searched hyperparameters that the cell was
    run with, of several searches one after another. `seeds` counts measured trials, `trials` ended
    ones; `share_*` are fractions of the ended ones. Rows of base and gold come first, then
    retain-only controls, then the grid.

    Args:
        run: an opened run (`storage.run.open_run`).

    Returns:
        The table, one row per cell.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> run = open_run("docs/notebooks/runs/coreset")
        >>> table = coreset_table(run)
        >>> table.select("method", "seeds").row(0)
        ('base', 1)
    """
    settings, cells = varying_settings(run, trials_with_roles(run)), table_cells(run)
    measured = _measure_all(run)
    bounds = {
        name: bounds_of(run.experiment, metric)
        for name, (_, metric) in _measures(objective_of(run.experiment)).items()
    }
    context_settings = [name for name in settings if name.startswith(CONTEXT_SECTIONS)]
    targets = targets_of_run(run)
    lower = lower_is_forgotten(run.experiment)
    rows = []
    for cell in cells.iter_rows(named=True):
        anchors = {role: _anchor(cells, role, cell, context_settings) for role in ("base", "gold")}
        row = _measure_cell(cell, anchors, measured, bounds)
        rows.append(row | _held_against(cell, targets, measured["forgetting"], lower_forgets=lower))
    values = tuned_values(run)
    hyperparameters = [
        # what base and gold were trained with is no search's
        " / ".join(dict.fromkeys(values[t] for t in cell["trial_ids"] if values.get(t)))
        if cell["role"] in ("grid", "control")
        else ""
        for cell in cells.iter_rows(named=True)
    ]
    cells = cells.with_columns(pl.Series("tuned", hyperparameters, dtype=pl.String))
    table = pl.concat(
        [cells.drop("trial_ids"), pl.DataFrame(rows, schema=_measured_schema())], how="horizontal"
    )
    minimised = pl.col("forgetting")
    if objective_of(run.experiment).target != "none":
        minimised = pl.coalesce("distance", "forgetting")
    return table.with_columns(minimised.alias("objective"))


def table_cells(run: Run) -> pl.DataFrame:
    """The cells of the coreset table before anything is measured, each with its `trial_ids`."""
    placed = trials_with_roles(run)
    return _cells(placed, varying_settings(run, placed))


def extra_settings(table: pl.DataFrame) -> list[str]:
    """Columns of a coreset table that are varying settings beside method, selector and ratio."""
    return [name for name in table.columns if "." in name and name not in CELL_SETTINGS]


def whole_document_cells(cells: pl.DataFrame) -> pl.DataFrame:
    """The cells that trained on documents as they are. What trained on other texts in their place
    is a control of the coreset; where there is nothing else, all cells.
    """
    if TEXT not in cells.columns or ORIGINAL not in cells[TEXT]:
        return cells
    return cells.filter(pl.col(TEXT) == ORIGINAL)


def _measures(goal: Objective) -> dict[str, tuple[str, str]]:
    """(split, metric) of each of MEASURES but `unlearning`."""
    return {
        "forgetting": ("forget", goal.forgetting),
        "utility": (goal.utility_split, goal.utility),
        "choice_forget": ("forget", MULTIPLE_CHOICE),
        "choice_retain": (goal.utility_split, MULTIPLE_CHOICE),
        "untouched": (UNTOUCHED, goal.utility),
    }


def _measure_all(run: Run) -> dict[str, MetricValues]:
    requested_metrics = _measures(objective_of(run.experiment))
    pairs = pl.DataFrame(
        [{"split": s, "metric": m} for s, m in sorted(set(requested_metrics.values()))]
    )
    rows = (
        examples_without_attacks(run)
        .join(pairs.lazy(), on=["split", "metric"])
        .select("trial_id", "doc_id", "group", "split", "metric", "value")
        .collect()
    )
    parts = {
        name: rows.filter(pl.col("split") == s, pl.col("metric") == m)
        for name, (s, m) in requested_metrics.items()
    }
    searches = searches_of(run)
    return {
        name: replace(measured_of(part), searches=searches)
        for name, part in parts.items()
        if part.height or name != "untouched"
    }


def _cells(placed: pl.DataFrame, settings: Sequence[str]) -> pl.DataFrame:
    """Trials gathered into cells, in the order of the table."""
    keys = ["role", "group", *CELL_SETTINGS, *settings]
    shares = [
        (pl.col("status") == s).mean().alias(f"share_{s}") for s in STATUSES if s != "complete"
    ]
    means = [
        pl.col(n).mean()
        for n in ("n_forget", "n_kept", "coverage", "optimizer_steps", "presentations", "epochs")
    ]
    facts = [
        pl.col("trial_id").alias("trial_ids"),
        pl.len().cast(pl.Int64).alias("trials"),
        *means,
        *shares,
        pl.col("tuning").first(),
    ]
    cells = _without_idle_settings(placed, settings).group_by(keys, maintain_order=True).agg(facts)
    named = cells.with_columns(_label().alias("method"))
    return _in_reading_order(named, settings).select("role", "method", pl.exclude("role", "method"))


def _without_idle_settings(placed: pl.DataFrame, settings: Sequence[str]) -> pl.DataFrame:
    """Null where a setting has no effect: no method on base and gold, no selector on them and on
    controls.
    """
    idle_on_anchors = [
        "group",
        "method.forget",
        "method.retain",
        *[n for n in settings if not n.startswith(CONTEXT_SECTIONS)],
    ]
    role = pl.col("role")
    cleared = [
        pl.when(~role.is_in(["base", "gold"])).then(pl.col(n)).alias(n) for n in idle_on_anchors
    ]
    cleared += [
        pl.when(role == "grid").then(pl.col(n)).alias(n) for n in ("select.name", "select.ratio")
    ]
    rows = placed.filter(role != "tuning").with_columns(cleared)
    return rows.unique(["trial_id", "role", "group"], maintain_order=True)


def _in_reading_order(cells: pl.DataFrame, settings: Sequence[str]) -> pl.DataFrame:
    """base, gold, control, grid; then settings, method, the full set that all selectors share,
    selector, ratio downwards.
    """
    rank = pl.col("role").replace_strict(
        {role: i for i, role in enumerate(ROLES)}, default=len(ROLES), return_dtype=pl.Int64
    )
    part = pl.col("select.ratio").fill_null(0) < 1
    order = [
        rank,
        *[pl.col(n) for n in (*settings, "method.forget", "method.retain")],
        part,
        pl.col("select.name"),
    ]
    return cells.sort(
        [*order, pl.col("select.ratio")],
        descending=[False] * len(order) + [True],
        maintain_order=True,
    )


def _label() -> pl.Expr:
    """`npo + nll`, `npo` without a retain loss, `control: nll` for the retain loss alone, else the
    role itself.
    """
    both = pl.format("{} + {}", "method.forget", "method.retain")
    named = pl.when(pl.col("method.retain") == "none").then("method.forget").otherwise(both)
    control = pl.format("control: {}", "method.retain")
    return (
        pl.when(pl.col("role") == "control")
        .then(control)
        .when(pl.col("role") == "grid")
        .then(named)
        .otherwise("role")
    )


def _anchor(
    cells: pl.DataFrame, role: str, cell: Mapping[str, Any], context_settings: Sequence[str]
) -> str:
    """Trial of the base or gold model with the same data and model settings; '' where there is
    none.
    """
    same = [pl.col(name).eq_missing(pl.lit(cell[name])) for name in context_settings]
    trial_ids = cells.filter(pl.col("role") == role, *same)["trial_ids"].to_list()
    return str(trial_ids[0][0]) if trial_ids else ""


def _measure_cell(
    cell: Mapping[str, Any],
    anchors: Mapping[str, str],
    measured: Mapping[str, MetricValues],
    bounds: Mapping[str, tuple[float, float] | None],
) -> dict[str, Any]:
    rows = {name: part.rows(cell["trial_ids"]) for name, part in measured.items()}
    intervals = {
        name: mean_interval(matrix, groups=measured[name].groups, bounds=bounds[name])
        for name, matrix in rows.items()
    }
    forgetting = measured["forgetting"]
    base, gold = (forgetting.rows([anchors[role]]) for role in ("base", "gold"))
    comparable = cell["role"] in ("grid", "control") and len(base) > 0 and len(gold) > 0
    way = (
        gap_closed(rows["forgetting"], base, gold, groups=forgetting.groups)
        if comparable
        else NO_INTERVAL
    )
    row: dict[str, Any] = {
        "seeds": measured["forgetting"].n_measured(cell["trial_ids"]),
        "interval_over": intervals["forgetting"].over,
    }
    for name, interval in (intervals | {"unlearning": way}).items():
        row |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return row


def _held_against(
    cell: Mapping[str, Any], targets: RunTargets, forgetting: MetricValues, *, lower_forgets: bool
) -> dict[str, Any]:
    """`aim`, `distance`, `above` and `over_forgotten` of a cell; null where it has no target."""
    values = forgetting.rows(cell["trial_ids"])
    target = targets.target(cell, forgetting.documents)
    is_unlearned = cell["role"] in ("grid", "control")
    if target is None or not is_unlearned or not np.isfinite(values).any():
        return {"aim": None, "over_forgotten": None} | {
            f"{name}{end}": None for name in ("distance", "above") for end in ENDS
        }
    above = above_target(values, target, groups=forgetting.groups)
    distances = forgetting.rows(cell["trial_ids"], partial(distance_by_document, target=target))
    return {
        "aim": target.kind,
        "over_forgotten": is_over_forgotten(above, lower_forgets=lower_forgets),
        **interval_columns("distance", cell_distance(distances, groups=forgetting.groups)),
        **interval_columns("above", above),
    }


def _measured_schema() -> dict[str, Any]:
    numbers = {
        f"{name}{end}": pl.Float64 for name in (*MEASURES, "distance", "above") for end in ENDS
    }
    texts = {"interval_over": pl.String, "aim": pl.String}
    return {"seeds": pl.Int64, **texts, "over_forgotten": pl.Boolean, **numbers}
