"""What makes a run's numbers mean little: an unknown or ignorant base, an unknown or knowing gold,
a utility that base does not have, no control.

"How much was unlearned" is a way from base to gold. Where base knows nothing there is nothing to
unlearn, where gold knows as much as base there is no way to go, where base knows nothing of what is
to be kept a floor keeps nothing, and without a control nobody can say what the forget loss did.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from rayunlearn.analysis.coreset_table import extra_settings, table_cells
from rayunlearn.analysis.hypothesis_tests import difference
from rayunlearn.analysis.intervals import LEVEL, Interval, bounds_of
from rayunlearn.analysis.run_frames import (
    CONTEXT_SECTIONS,
    MetricValues,
    examples_without_attacks,
    lower_is_forgotten,
    objective_of,
    values_by_trial,
)
from rayunlearn.analysis.targets import chance_metric
from rayunlearn.storage.run import Run

# Share of the range from chance (or the metric's lower end) to its upper end under which base is
# said to know little. Our choice: base models of the datasets here stand at 0.5 to 1, and a model
# that was never told at 0 to 0.15.
LITTLE_KNOWN = 0.25

# Gap between base and gold under which a fraction of it says little: the margin within which two
# cells count as equal (`equivalence.DEFAULT_MARGIN`), as a share of the metric's range.
SMALL_GAP = 0.1

# Share of the utility metric's range under which base is said to know little of what is to be kept.
# Our choice, lower than that of the forget set: nine tenths of a fifth are still something to lose.
LITTLE_TO_KEEP = 0.05

BASE_UNMEASURED = "base not measured"
BASE_KNOWS_LITTLE = "base knows little"
GOLD_UNMEASURED = "gold not measured"
GOLD_KNOWS = "gold as good as base"
NOTHING_TO_KEEP = "nothing to keep"
NO_CONTROL = "no control"


@dataclass(frozen=True, kw_only=True)
class RunWarning:
    """A rule that a run breaks, with what it was seen on.

    `context`: the data and model settings that vary between datasets of the run; `base`, `gold`,
    `chance`: means of the forgetting metric; `gap`: how much more base knows than gold, over the
    same documents; `utility`: of base, of `NOTHING_TO_KEEP`;
    `retain_losses`: of `NO_CONTROL`, those that were never run alone.
    """

    rule: str
    context: Mapping[str, Any] = field(default_factory=dict)
    base: float | None = None
    gold: float | None = None
    chance: float | None = None
    gap: Interval | None = None
    utility: float | None = None
    retain_losses: tuple[str, ...] = ()


def run_warnings(run: Run, table: pl.DataFrame) -> tuple[RunWarning, ...]:
    """The rules that a run breaks, by dataset and model; none before an unlearned model was
    measured.

    Base knows little where its mean is less than `LITTLE_KNOWN` of the range above chance (not
    asked of a metric without both ends, or where lower is better). Gold is
    as good as base where the 95% interval of base minus gold, documents paired, is not all above 0,
    or the gap is under `SMALL_GAP` of the range. There is nothing to keep where base's utility is
    under `LITTLE_TO_KEEP` of its range. The bounds are our choice. A control is missed for every
    retain loss that stood beside a forget loss and was not run alone.

    Args:
        run: an opened run (`storage.run.open_run`).
        table: `coreset_table(run)`.

    Returns:
        The warnings, those on base and gold first.

    Example:
        >>> from rayunlearn.analysis.coreset_table import coreset_table
        >>> from rayunlearn.storage.run import open_run
        >>> run = open_run("docs/notebooks/runs/coreset")
        >>> run_warnings(run, coreset_table(run))
        ()
    """
    grid = table.filter(pl.col("role") == "grid", pl.col("forgetting").is_not_null())
    if not grid.height:
        return ()
    goal = objective_of(run.experiment)
    settings = [name for name in extra_settings(table) if name.startswith(CONTEXT_SECTIONS)]
    contexts = grid.select(settings).unique(maintain_order=True).to_dicts() if settings else [{}]
    cells, measured = table_cells(run), values_by_trial(run, "forget", goal.forgetting, "")
    anchors = [_anchor_warning(run, table, cells, measured, context) for context in contexts]
    controls = [
        RunWarning(rule=NO_CONTROL, context=context, retain_losses=names)
        for context in contexts
        if (names := _uncontrolled(table, context))
    ]
    utilities = [_utility_warning(run, table, context) for context in contexts]
    warnings = (*anchors, *utilities)
    return (*(warning for warning in warnings if warning is not None), *controls)


def _utility_warning(
    run: Run, table: pl.DataFrame, context: Mapping[str, Any]
) -> RunWarning | None:
    """Of one dataset and model: whether base knows so little of what is to be kept that a floor
    keeps nothing.
    """
    bounds = bounds_of(run.experiment, objective_of(run.experiment).utility)
    utility = _mean_of(table, "base", context, "utility")
    if bounds is None or utility is None:
        return None
    is_little = utility - bounds[0] < LITTLE_TO_KEEP * (bounds[1] - bounds[0])
    rule = NOTHING_TO_KEEP
    return RunWarning(rule=rule, context=context, utility=utility) if is_little else None


def _anchor_warning(
    run: Run,
    table: pl.DataFrame,
    cells: pl.DataFrame,
    measured: MetricValues,
    context: Mapping[str, Any],
) -> RunWarning | None:
    """What is wrong with base or gold of one dataset and model, the gravest alone."""
    goal = objective_of(run.experiment)
    base, gold = (_mean_of(table, role, context) for role in ("base", "gold"))
    chance = _chance(run, cells, context)
    numbers: dict[str, Any] = {"context": context, "base": base, "gold": gold, "chance": chance}
    if base is None:
        return RunWarning(rule=BASE_UNMEASURED, **numbers)
    bounds = bounds_of(run.experiment, goal.forgetting)
    if bounds is not None and lower_is_forgotten(run.experiment):
        floor = bounds[0] if chance is None else chance
        if base - floor < LITTLE_KNOWN * (bounds[1] - floor):
            return RunWarning(rule=BASE_KNOWS_LITTLE, **numbers)
    if gold is None:
        return RunWarning(rule=GOLD_UNMEASURED, **numbers)
    rows = [measured.rows(_trials_of(cells, role, context)) for role in ("base", "gold")]
    # of an error, such as perplexity, it is gold that has more
    more, less = rows if lower_is_forgotten(run.experiment) else rows[::-1]
    estimate = difference(more, less, groups=measured.groups)
    low, high = estimate.ends(LEVEL)
    gap = Interval(mean=estimate.mean, low=low, high=high, over=estimate.over)
    # one document has no interval, and a metric without ends no scale to call a gap small on
    is_shown = (estimate.mean if low is None else low) > 0
    is_small = bounds is not None and estimate.mean < SMALL_GAP * (bounds[1] - bounds[0])
    if not is_shown or is_small:
        return RunWarning(rule=GOLD_KNOWS, **numbers, gap=gap)
    return None


def _matches(context: Mapping[str, Any]) -> list[pl.Expr]:
    return [pl.col(name).eq_missing(pl.lit(value)) for name, value in context.items()]


def _mean_of(
    table: pl.DataFrame, role: str, context: Mapping[str, Any], column: str = "forgetting"
) -> float | None:
    values = table.filter(pl.col("role") == role, *_matches(context))[column].drop_nulls()
    return float(values[0]) if len(values) else None


def _trials_of(cells: pl.DataFrame, role: str, context: Mapping[str, Any]) -> list[str]:
    trials = cells.filter(pl.col("role") == role, *_matches(context))["trial_ids"]
    return [str(trial) for part in trials for trial in part][:1]


def _chance(run: Run, cells: pl.DataFrame, context: Mapping[str, Any]) -> float | None:
    """The chance level of the forgetting metric, as base's trial measured it; None without one."""
    metric = chance_metric(run.experiment, objective_of(run.experiment).forgetting)
    values = (
        examples_without_attacks(run)
        .filter(
            pl.col("trial_id").is_in(_trials_of(cells, "base", context)),
            pl.col("split") == "forget",
            pl.col("metric") == metric,
        )
        .select(pl.col("value").drop_nulls().drop_nans())
        .collect()["value"]
    )
    return float(str(values.mean())) if len(values) else None


def _uncontrolled(table: pl.DataFrame, context: Mapping[str, Any]) -> tuple[str, ...]:
    """Retain losses of measured cells that no measured control has, in their order."""
    measured = table.filter(pl.col("forgetting").is_not_null(), *_matches(context))
    used, alone = (
        measured.filter(pl.col("role") == role)["method.retain"].drop_nulls().unique().sort()
        for role in ("grid", "control")
    )
    return tuple(str(name) for name in used if name != "none" and name not in alone.to_list())
