"""Frames of a run: trials with their roles, examples, settings that vary, values by trial."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import polars as pl

from rayunlearn.analysis.intervals import Numbers
from rayunlearn.analysis.targets import (
    Target,
    above_target,
    chance_metric,
    is_over_forgotten,
    target_distance,
)
from rayunlearn.analysis.two_way import Groups, group_codes
from rayunlearn.config import FULL_RATIO, SEED_SETTINGS, Objective, recorded_objective
from rayunlearn.storage.run import Run

P = ParamSpec("P")
T = TypeVar("T")

# settings of where a cell is, not of what is done there
CONTEXT_SECTIONS = ("data.", "model.")

# always in the coreset table, varying or not
CELL_SETTINGS = ("method.forget", "method.retain", "select.name", "select.ratio")

# split of what base and gold know and no unlearning run is shown, where the data has one
UNTOUCHED = "untouched"

# cells and trials of the full forget set, and of a part of it
FULL_SET = pl.col("select.ratio") == FULL_RATIO
CORESET = pl.col("select.ratio") < FULL_RATIO


def objective_of(experiment: Mapping[str, Any]) -> Objective:
    """The objective of experiment.json, defaults where it says nothing.

    Args:
        experiment: content of experiment.json, `run.experiment`.

    Returns:
        The objective.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> run = open_run("docs/notebooks/runs/coreset")
        >>> objective_of(run.experiment).utility_floor
        0.9
    """
    return recorded_objective(experiment.get("objective") or {})


def lower_is_forgotten(experiment: Mapping[str, Any]) -> bool:
    """Whether a smaller forgetting metric means more forgotten: yes, unless the metric is an error
    such as perplexity.
    """
    name = objective_of(experiment).forgetting
    return not any(
        metric["name"] == name and metric.get("direction") == "lower"
        for metric in experiment.get("metrics", ())
    )


def computed_once(function: Callable[Concatenate[Run, P], T]) -> Callable[Concatenate[Run, P], T]:
    """The function, whose result for the same arguments is kept with a run that is in memory
    (`Run.in_memory`): a report asks for the same frames from every section. Nobody may change what
    it returns.
    """

    @wraps(function)
    def computing(run: Run, *args: P.args, **kwargs: P.kwargs) -> T:
        if run.computed is None:
            return function(run, *args, **kwargs)
        key = (function.__qualname__, args, tuple(sorted(kwargs.items())))
        if key not in run.computed:
            run.computed[key] = function(run, *args, **kwargs)
        result: T = run.computed[key]
        return result

    return computing


@computed_once
def trials_with_roles(run: Run) -> pl.DataFrame:
    """Ended trials with their place in the plan; a trial has several rows where it serves several
    purposes or groups.

    Method, selector, ratio and seeds are columns even before the first trial has ended.
    """
    plan = run.plan.unique(
        ["trial_id", "role", "group", "study_index"], keep="first", maintain_order=True
    )
    placed = plan.join(run.trials, on="trial_id", how="inner", maintain_order="left").collect()
    types = {"select.ratio": pl.Float64, **dict.fromkeys(SEED_SETTINGS, pl.Int64)}
    return placed.with_columns(
        pl.lit(None, dtype=types.get(n, pl.String)).alias(n)
        for n in (*CELL_SETTINGS, *SEED_SETTINGS)
        if n not in placed.columns
    )


def planned_trials(run: Run) -> pl.DataFrame:
    """Ended trials that the plan asks for, once each; all of them where there is no plan. A changed
    experiment may leave others behind.
    """
    trials, plan = run.trials.collect(), run.plan.select("trial_id").collect()
    return trials.join(plan, on="trial_id", how="semi") if plan.height else trials


def varying_settings(run: Run, placed: pl.DataFrame) -> list[str]:
    """Settings that differ between the cells of the grid, tuned ones and seeds left out, in the
    order of the columns.

    Left out is what the ones before it decide: another corpus brings its own path along, a method
    the layers that it is run on.
    """
    grid = placed.filter(pl.col("role") == "grid")
    hidden = {*SEED_SETTINGS, *CELL_SETTINGS, *run.experiment.get("search", {})}
    settings = [name for name in grid.columns if "." in name and name not in hidden]
    # in one query: a run has a hundred settings
    counts = grid.select(pl.col(name).drop_nulls().n_unique() for name in settings)
    names = [name for name in settings if counts[name].item() > 1]
    context_settings = _undecided(grid, (), [n for n in names if n.startswith(CONTEXT_SECTIONS)])
    others = [name for name in names if not name.startswith(CONTEXT_SECTIONS)]
    methods = ("method.forget", "method.retain")
    chosen = {*context_settings, *_undecided(grid, (*context_settings, *methods), others)}
    return [name for name in names if name in chosen]


def _undecided(grid: pl.DataFrame, fixed: Sequence[str], names: Sequence[str]) -> list[str]:
    """Of `names` those that vary where all of `fixed` and the chosen ones before are the same."""
    chosen: list[str] = []
    for name in names:
        before = [*fixed, *chosen]
        n_before = grid.select(before).n_unique() if before else 1
        if grid.select(*before, name).n_unique() > n_before:
            chosen.append(name)
    return chosen


@computed_once
def trial_table(run: Run) -> pl.DataFrame:
    """`trials_with_roles` with columns `forgetting`, `utility` and `untouched` (the utility metric
    on that split), means over documents, null where not measured, and what they are held against.

    `aim` says what that is, gold or chance, null where neither was measured; `distance` is
    `target_distance` from it, `over_forgotten` whether the trial is shown to be below it
    (`is_over_forgotten`, over its documents). `objective` is what a search minimises: the distance,
    or `forgetting` where the objective has no target.

    Args:
        run: an opened run (`storage.run.open_run`).

    Returns:
        One row per purpose of a planned trial.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> run = open_run("docs/notebooks/runs/coreset")
        >>> trial_table(run).filter(role="base").height
        1
    """
    goal = objective_of(run.experiment)
    placed = trials_with_roles(run)
    for name, split, metric in (
        ("forgetting", "forget", goal.forgetting),
        ("utility", goal.utility_split, goal.utility),
        (UNTOUCHED, UNTOUCHED, goal.utility),
    ):
        rows = examples_without_attacks(run).filter(
            pl.col("split") == split, pl.col("metric") == metric
        )
        placed = placed.join(
            means_by(rows, ("trial_id",), ("value",)).rename({"value": name}),
            on="trial_id",
            how="left",
        )
    aimed = pl.DataFrame(_aimed_rows(run, placed), schema=AIMED_SCHEMA)
    minimised = pl.col("forgetting")
    if goal.target != "none":
        minimised = pl.coalesce("distance", "forgetting")
    return placed.join(aimed, on="trial_id", how="left", maintain_order="left").with_columns(
        minimised.alias("objective")
    )


def means_by(rows: pl.LazyFrame, keys: Sequence[str], columns: Sequence[str]) -> pl.DataFrame:
    """Mean of each column by the keys, the same to the last bit whenever it is asked for.

    polars joins and sums in no fixed order, and a sum in another order may differ in its last
    digit, which decides ties; so rows are summed in the order of their values.
    """
    ordered = rows.sort([*keys, *columns]).collect()
    return ordered.group_by(keys, maintain_order=True).agg(pl.col(list(columns)).mean())


AIMED_SCHEMA = {
    "trial_id": pl.String,
    "aim": pl.String,
    "distance": pl.Float64,
    "over_forgotten": pl.Boolean,
}


def _aimed_rows(run: Run, placed: pl.DataFrame) -> list[dict[str, Any]]:
    """Columns AIMED_SCHEMA of the unlearned trials that were measured."""
    measured = values_by_trial(run, "forget", objective_of(run.experiment).forgetting, "")
    targets = targets_of_run(run)
    lower = lower_is_forgotten(run.experiment)
    rows = []
    for trial in placed.unique("trial_id", keep="first", maintain_order=True).to_dicts():
        target = targets.target(trial, measured.documents)
        values = measured.rows([trial["trial_id"]])
        if trial["stage"] == "unlearned" and target and len(values):
            distance = target_distance(values[0], target)
            above = above_target(values, target, groups=measured.groups)
            rows.append(
                {
                    "trial_id": trial["trial_id"],
                    "aim": target.kind,
                    "distance": distance if np.isfinite(distance) else None,
                    "over_forgotten": is_over_forgotten(above, lower_forgets=lower),
                }
            )
    return rows


@dataclass(frozen=True)
class RunTargets:
    """What forgetting is held against, by the `settings` of data and model that vary: kind and
    value by document.
    """

    settings: tuple[str, ...]
    by_context: Mapping[tuple[Any, ...], tuple[str, Mapping[str, float]]]

    def target(self, row: Mapping[str, Any], documents: Sequence[str]) -> Target | None:
        """The target of a trial or cell, for these documents; None where there is none."""
        found_target = self.by_context.get(tuple(row[name] for name in self.settings))
        if found_target is None:
            return None
        kind, values = found_target
        target = Target(kind, np.array([values.get(name, np.nan) for name in documents]))
        return target if np.isfinite(target.values).any() else None


@computed_once
def targets_of_run(run: Run) -> RunTargets:
    """Gold's values of the forgetting metric, or its chance level on base where there is no gold or
    the objective aims at chance (`objective.target`).

    A run whose objective has no target has them too: they say what is over-forgotten there.
    """
    goal, placed = objective_of(run.experiment), trials_with_roles(run)
    settings = [n for n in varying_settings(run, placed) if n.startswith(CONTEXT_SECTIONS)]
    metrics = {"chance": chance_metric(run.experiment, goal.forgetting)}
    if goal.target != "chance":
        metrics["gold"] = goal.forgetting
    by_context: dict[tuple[Any, ...], tuple[str, Mapping[str, float]]] = {}
    # gold, last, takes the place of chance
    for kind, metric in metrics.items():
        rows = examples_without_attacks(run).filter(
            pl.col("split") == "forget", pl.col("metric") == metric
        )
        role = "gold" if kind == "gold" else "base"
        anchors = placed.filter(pl.col("role") == role).select("trial_id", *settings).unique()
        joined = rows.join(anchors.lazy(), on="trial_id")
        means = means_by(joined, (*settings, "doc_id"), ("value",)).drop_nulls("value")
        for part in means.partition_by(settings, maintain_order=True) if settings else [means]:
            if part.height:
                values = dict(part.select("doc_id", "value").iter_rows())
                by_context[tuple(part.row(0, named=True)[n] for n in settings)] = (kind, values)
    return RunTargets(tuple(settings), by_context)


def examples_without_attacks(run: Run, stage: str = "") -> pl.LazyFrame:
    """Examples before any attack of what a trial is about: base and gold themselves, an unlearned
    model at `stage` ('': the objective's).

    Where the objective is measured after an attack, split forget is what the trial's own attack
    left, of base and gold too; the other splits are from before it.
    """
    goal = objective_of(run.experiment)
    stage = stage or goal.stage
    if stage == "attacked":
        own_attack = (pl.col("stage") == stage) & (pl.col("attack") == goal.attack)
        after = run.examples.filter(own_attack, pl.col("split") == "forget")
        before = examples_without_attacks(run, "unlearned").filter(pl.col("split") != "forget")
        return pl.concat([after, before])
    rows = run.examples.filter(pl.col("attack") == "none")
    if "stage" not in run.trials.collect_schema():
        return rows
    columns = (
        pl.when(pl.col("stage") == "unlearned")
        .then(pl.lit(stage))
        .otherwise(pl.col("stage"))
        .alias("_own")
    )
    return (
        rows.join(run.trials.select("trial_id", columns), on="trial_id")
        .filter(pl.col("stage") == pl.col("_own"))
        .drop("_own")
    )


@dataclass(frozen=True)
class MetricValues:
    """One metric on one split: `values` (trials, documents), NaN where a trial has no value for a
    document, the `groups` of the documents (column `group` of `examples`) and their ids.

    `searches`: trial -> the searches whose winner it has, where a group was searched several times
    (`searches_of`).
    """

    row_of: Mapping[str, int]
    values: Numbers
    groups: Groups
    documents: tuple[str, ...]
    searches: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def n_measured(self, trial_ids: Sequence[str]) -> int:
        """How many of the trials were measured."""
        return sum(trial_id in self.row_of for trial_id in trial_ids)

    def rows(
        self, trial_ids: Sequence[str], made: Callable[[Numbers], Numbers] | None = None
    ) -> Numbers:
        """(trials that were measured, documents), in the order given; `made` of these values where
        it is there.

        Where the trials have the winners of several searches, a row is the mean of those of one
        search: trials of a search share what it found, so that the searches are what was drawn at
        random (the variance between their means has that between seeds in it).
        """
        measured = [t for t in trial_ids if t in self.row_of]
        values = self.values[[self.row_of[t] for t in measured]]
        values = values if made is None else made(values)
        found_by = sorted({search for t in measured for search in self.searches.get(t, ())})
        if len(found_by) < 2:
            return values
        parts = [
            values[[i for i, t in enumerate(measured) if search in self.searches.get(t, ())]]
            for search in found_by
        ]
        return np.array([_column_means(part) for part in parts])


def _column_means(values: Numbers) -> Numbers:
    """Means over the trials, NaN where none has a value."""
    counts = np.isfinite(values).sum(0)
    return np.where(counts > 0, np.nansum(values, 0) / np.maximum(counts, 1), np.nan)


def searches_of(run: Run) -> dict[str, tuple[int, ...]]:
    """Trial of the grid or a control -> the searches of its group whose winner it has; empty where
    every group was searched once.
    """
    plan = run.plan.filter(pl.col("role").is_in(["grid", "control"])).select("trial_id", "search")
    rows = plan.with_columns(pl.col("search").fill_null(0)).unique().sort("trial_id", "search")
    by_trial = rows.collect().group_by("trial_id", maintain_order=True).agg("search")
    searches = {trial_id: tuple(numbers) for trial_id, numbers in by_trial.iter_rows()}
    return searches if any(max(numbers) > 0 for numbers in searches.values()) else {}


@computed_once
def values_by_trial(run: Run, split: str, metric: str, stage: str) -> MetricValues:
    """A metric on a split, (trials, documents), of what the trials are about
    (`examples_without_attacks`).
    """
    rows = examples_without_attacks(run, stage).filter(
        pl.col("split") == split, pl.col("metric") == metric
    )
    return replace(measured_of(rows.collect()), searches=searches_of(run))


def measured_of(rows: pl.DataFrame) -> MetricValues:
    """Rows of `examples` of one metric and split as a matrix; a document that occurs twice in a
    trial counts with its mean.
    """
    trials, documents = rows["trial_id"].unique().sort(), rows["doc_id"].unique().sort()
    means = means_by(rows.lazy(), ("trial_id", "doc_id"), ("value",))
    values = np.full((len(trials), len(documents)), np.nan)
    if means.height:
        places = (
            trials.search_sorted(means["trial_id"]).to_numpy(),
            documents.search_sorted(means["doc_id"]).to_numpy(),
        )
        values[places] = means["value"].fill_null(float("nan")).to_numpy()
    names = documents.to_list()
    groups = group_codes(names, _group_of(rows))
    return MetricValues({trial: i for i, trial in enumerate(trials)}, values, groups, tuple(names))


def groups_of(run: Run) -> dict[str, str]:
    """doc_id -> group of every document of the run that has one."""
    return _group_of(run.examples.select("doc_id", "group").unique().collect())


def _group_of(rows: pl.DataFrame) -> dict[str, str]:
    grouped = rows.select("doc_id", "group").filter(pl.col("group") != "").unique("doc_id")
    return dict(grouped.iter_rows())
