"""The Optuna studies of a finished run, as Optuna storage."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn.config import Objective, Value, recorded_objective
from rayunlearn.errors import UserError, require, unknown_name
from rayunlearn.experiment import Choice, Domain, Range
from rayunlearn.planning.outcomes import StudyGoal, TrialResult, study_goal
from rayunlearn.planning.planner import pruned_trial, study_trial
from rayunlearn.planning.rungs import RungRule, rung_value
from rayunlearn.planning.study import (
    StudyTrial,
    best_trial,
    judged_by_seeds,
    quiet_optuna,
    study_from,
)
from rayunlearn.schema import PAUSED, PRUNED

if TYPE_CHECKING:
    import optuna
    import polars as pl


def study_of_run(run: str | Path, name: str) -> "optuna.Study":
    """The study `name` of a run, rebuilt from its Parquet files, for notebooks and dashboards.

    COMPLETE: measured to the end; PRUNED: collapsed, diverged, or pruned at a rung, then with what
    is minimised by step as intermediate value; FAIL: failed, or measured as not a number. Trials
    that have not ended are not in it. Raises UserError for an unknown run or study.

    Args:
        run: folder or URL of a run.
        name: the study's name, as `rayunlearn studies` prints it.

    Returns:
        An Optuna study in memory.

    Example:
        >>> name = "method.forget=npo, method.retain=nll"
        >>> study = study_of_run("docs/notebooks/runs/coreset", name)
        >>> len(study.trials) > 0
        True
    """
    studies = {study.name: study for study in studies_of_run(Path(run))}
    if name not in studies:
        raise unknown_name("study", name, studies)
    return study_from(studies[name].space, studies[name].finished, seed=0)


@dataclass(frozen=True, kw_only=True)
class RecordedStudy:
    """A study as a run's files have it. `group`: its axis values; `finished`: its settings of which
    all seeds have ended, in study order, and `rows` the row of `trials` of the first seed of each;
    `is_complete`: nothing more is asked of it.
    """

    name: str
    group: Mapping[str, Value]
    space: Mapping[str, Domain]
    finished: tuple[StudyTrial, ...]
    rows: tuple[Mapping[str, Value], ...]
    is_complete: bool


def studies_of_run(run: Path) -> tuple[RecordedStudy, ...]:
    """The studies of a run, sorted by name; none where nothing was tuned."""
    from rayunlearn.planning.outcomes import trial_results
    from rayunlearn.storage.run import experiment_of_run, open_run

    opened = open_run(run)
    settings = experiment_of_run(opened)
    plan = opened.plan.collect()
    trials = {row["trial_id"]: row for row in opened.trials.collect().iter_rows(named=True)}
    results = trial_results(run, study_objective(settings), with_curves=True)
    return tuple(_recorded(name, plan, trials, results, settings) for name in _names(plan))


def _recorded(
    name: str,
    plan: "pl.DataFrame",
    trials: Mapping[str, Mapping[str, Any]],
    results: Mapping[str, TrialResult],
    settings: Mapping[str, Any],
) -> RecordedStudy:
    import polars as pl

    planned = plan.filter(pl.col("study") == name).sort("study_index", maintain_order=True)
    group, search = planned["group"].item(0) or "{}", planned["search"].fill_null(0).item(0)
    by_setting = [
        [trials[key] for key in part["trial_id"] if key in trials]
        for part in planned.partition_by("study_index", maintain_order=True)
    ]
    by_setting = [[t for t in seeds if t["status"] != PAUSED] for seeds in by_setting]
    n_seeds = settings.get("budget", {}).get("seeds", 1)
    ended = [seeds for seeds in by_setting if len(seeds) == n_seeds]
    rows, objective = tuple(seeds[0] for seeds in ended), study_objective(settings)
    space = {
        key: study_domain(key, content)
        for key, content in settings["search"].items()
        if any(row.get(key) is not None for row in rows)
    }
    # its grid is planned when its winner is known
    own_rows = plan.filter(pl.col("group") == group, pl.col("search").fill_null(0) == search)
    return RecordedStudy(
        name=name,
        group=json.loads(group),
        space=space,
        finished=tuple(_judged(seeds, space, plan, trials, results, objective) for seeds in ended),
        rows=rows,
        is_complete="grid" in own_rows["role"],
    )


def _judged(
    seeds: Sequence[Mapping[str, Any]],
    space: Mapping[str, Domain],
    plan: "pl.DataFrame",
    trials: Mapping[str, Mapping[str, Any]],
    results: Mapping[str, TrialResult],
    objective: Objective,
) -> StudyTrial:
    """A setting from the rows of its trials."""
    row = seeds[0]
    base, gold = (_stage_result(role, plan, trials, row, results) for role in ("base", "gold"))
    with_gold = bool(row["model.teach"] or row["model.gold"])
    goal = study_goal(objective, base=base, gold=gold, with_gold=with_gold)
    values = {name: row[name] for name in space}
    floor = objective.utility_floor
    return judged_by_seeds(
        [_told(values, results[seed["trial_id"]], goal, seed, floor) for seed in seeds]
    )


def _told(
    values: Mapping[str, Value],
    result: TrialResult,
    goal: StudyGoal,
    row: Mapping[str, Any],
    floor: float,
) -> StudyTrial:
    """An ended trial as its study knows it; a pruned one by what its last look saw."""
    rule = RungRule((), 2, floor)
    value = rung_value(result, goal, rule, result.rung) if result.status == PRUNED else None
    if value is not None:
        return pruned_trial(values, value, trial_id=row["trial_id"])
    return study_trial(values, result, goal, trial_id=row["trial_id"])


def write_studies(run: str | Path, file: Path) -> tuple[str, ...]:
    """All studies of a run into an Optuna storage, a SQLite file that optuna-dashboard opens;
    returns their names.

    A picture of the run as it is now: an older file of that name is replaced. The setting that the
    grid was run with has the user attribute `chosen`, and the study its trial under that name.
    Raises UserError for a run without studies.
    """
    import optuna

    from rayunlearn.storage.run import open_run

    names = _names(open_run(Path(run)).plan.collect())
    require(
        bool(names), "a run must have tuned something (budget.tuning) to have studies", str(run)
    )
    studies = {name: study_of_run(run, name) for name in names}
    best = {each.name: best_trial(each.finished) for each in studies_of_run(Path(run))}
    times = trial_times(Path(run))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    for name, study in studies.items():
        copy = optuna.create_study(study_name=name, storage=storage, directions=study.directions)
        with quiet_optuna():
            copy.set_metric_names(study.metric_names or [])
        trials = study.trials
        for trial in trials:
            trial_id = trial.user_attrs["trial_id"]
            if trial_id in times:
                trial.datetime_start, trial.datetime_complete = times[trial_id]
            if (chosen := best[name]) and chosen.trial_id == trial_id:
                trial.set_user_attr("chosen", True)
                copy.set_user_attr("chosen", trial_id)
        copy.add_trials(trials)
    return names


def trial_times(run: Path) -> dict[str, tuple[datetime, datetime]]:
    """Start and end of the trials of a run that say them, by id, in this machine's time as Optuna
    has it.
    """
    import polars as pl

    from rayunlearn.storage.run import open_run

    parts = [f"seconds_{part}" for part in ("load", "select", "train", "measure")]
    # a run of an earlier version says its parts alone
    length = pl.coalesce("seconds", pl.sum_horizontal(parts, ignore_nulls=False))
    rows = open_run(run).trials.select("trial_id", "started_at", length).collect()
    times = {}
    for trial_id, started_at, seconds in rows.drop_nulls().iter_rows():
        start = datetime.fromisoformat(started_at).astimezone().replace(tzinfo=None)
        times[trial_id] = start, start + timedelta(seconds=seconds)
    return times


def study_objective(settings: Mapping[str, Any]) -> Objective:
    """The objective that experiment.json holds."""
    return recorded_objective(settings["objective"])


def study_domain(name: str, content: Mapping[str, Any]) -> Domain:
    """A domain from its form in experiment.json."""
    if content["kind"] == "choice":
        return Choice(*content["values"])
    if content["kind"] == "range":
        return Range(
            content["low"], content["high"], log=content["log"], integer=content["integer"]
        )
    raise UserError(f"the kind of {name} must be 'range' or 'choice', got {content['kind']!r}")


def _names(plan: "pl.DataFrame") -> tuple[str, ...]:
    """The studies of a run's plan, sorted."""
    return tuple(sorted(set(plan["study"].to_list()) - {""}))


def _stage_result(
    role: str,
    plan: "pl.DataFrame",
    trials: Mapping[str, Mapping[str, Any]],
    row: Mapping[str, Any],
    results: Mapping[str, TrialResult],
) -> TrialResult | None:
    """The result of the base or gold trial that shares the row's data and model; None where it has
    not ended.
    """
    import polars as pl

    same = [key for key in row if key.startswith(("data.", "model."))]
    for trial_id in plan.filter(pl.col("role") == role)["trial_id"]:
        if trial_id in trials and all(trials[trial_id][key] == row[key] for key in same):
            return results[trial_id]
    return None
