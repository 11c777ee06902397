"""Frames of a run: trials with their roles, examples, settings that vary, values by trial."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.analysis.bootstrap import Numbers
from rayunlearn.config import SEED_SETTINGS, Objective
from rayunlearn.storage.run import Run

# settings of where a cell is, not of what is done there
CONTEXT_SECTIONS = ("data.", "model.")


# always in the coreset table, varying or not
CELL_SETTINGS = ("method.forget", "method.retain", "select.name", "select.ratio")


# split of what base and gold know and no unlearning run is shown, where the data has one
UNTOUCHED = "untouched"


def objective_of(experiment: Mapping[str, Any]) -> Objective:
    """The objective of experiment.json, defaults where it says nothing."""
    settings = experiment.get("objective") or {}
    return Objective(
        **{name: settings[name] for name in Objective.__dataclass_fields__ if name in settings}
    )


def lower_is_forgotten(experiment: Mapping[str, Any]) -> bool:
    """Whether a smaller forgetting metric means more forgotten: yes, unless the metric is an error
    such as perplexity.
    """
    name = objective_of(experiment).forgetting
    return not any(
        metric["name"] == name and metric.get("direction") == "lower"
        for metric in experiment.get("metrics", ())
    )


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

    Of data and model settings those that tell apart what the ones before leave together: another
    corpus brings its own path along.
    """
    grid = placed.filter(pl.col("role") == "grid")
    hidden = {*SEED_SETTINGS, *CELL_SETTINGS, *run.experiment.get("search", {})}
    names = [
        name
        for name in grid.columns
        if "." in name and name not in hidden and grid[name].drop_nulls().n_unique() > 1
    ]
    context_settings: list[str] = []
    for name in names:
        if name.startswith(CONTEXT_SECTIONS) and grid.select(*context_settings, name).n_unique() > (
            grid.select(context_settings).n_unique() if context_settings else 1
        ):
            context_settings.append(name)
    return [
        name for name in names if name in context_settings or not name.startswith(CONTEXT_SECTIONS)
    ]


def trial_table(run: Run) -> pl.DataFrame:
    """`trials_with_roles` with columns `forgetting` and `utility`: means over documents, null where not
    measured.
    """
    goal = objective_of(run.experiment)
    placed = trials_with_roles(run)
    for name, split, metric in (
        ("forgetting", "forget", goal.forgetting),
        ("utility", goal.utility_split, goal.utility),
    ):
        rows = examples_without_attacks(run).filter(
            pl.col("split") == split, pl.col("metric") == metric
        )
        placed = placed.join(
            rows.group_by("trial_id").agg(pl.col("value").mean().alias(name)).collect(),
            on="trial_id",
            how="left",
        )
    return placed


def examples_without_attacks(run: Run, stage: str = "") -> pl.LazyFrame:
    """Examples before any attack of what a trial is about: base and gold themselves, an unlearned
    model at `stage` ('': the objective's).
    """
    stage = stage or objective_of(run.experiment).stage
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


def values_by_trial(
    run: Run, split: str, metric: str, stage: str
) -> tuple[dict[str, int], Numbers]:
    """(trial -> row, values (trials, documents)) of a metric on a split, of what the trials are
    about (`examples_without_attacks`).
    """
    rows = examples_without_attacks(run, stage).filter(
        pl.col("split") == split, pl.col("metric") == metric
    )
    wide = rows.collect().pivot(
        on="doc_id", index="trial_id", values="value", aggregate_function="mean", sort_columns=True
    )
    values = wide.drop("trial_id").fill_null(float("nan")).to_numpy().astype(np.float64)
    return {trial: index for index, trial in enumerate(wide["trial_id"])}, values
