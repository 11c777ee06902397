"""What finished trials ended with: status and objective values, and what forgetting aims at."""

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from rayunlearn.config import Objective

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class DocumentValues:
    """One metric by document: `ids`, sorted and shared by all trials that have the same, and
    `values` beside them. Thousands of trials are held at once.
    """

    ids: tuple[str, ...] = ()
    values: "array[float]" = field(default_factory=lambda: array("d"))

    def at(self, ids: tuple[str, ...]) -> "array[float]":
        """The values of these documents, NaN where there is none."""
        if ids is self.ids or ids == self.ids:
            return self.values
        by_id = dict(zip(self.ids, self.values, strict=True))
        return array("d", (by_id.get(name, math.nan) for name in ids))


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended; `forgetting` and `utility` are NaN where it was not measured, `seconds`
    (how long it took) where the row does not say so.

    `documents`: the forgetting metric by document, and `chance` its chance level, which base alone
    has. Neither is read where the objective has no target. `curve`: (step, forgetting, utility) at
    the looks of training, base first, read where a study has rungs; `planned_steps`: steps to the
    trial's end; `rung`: the share of them at which it stopped, where it is paused or pruned.
    """

    status: str
    forgetting: float = math.nan
    utility: float = math.nan
    seconds: float = math.nan
    documents: DocumentValues = field(default_factory=DocumentValues)
    chance: DocumentValues = field(default_factory=DocumentValues)
    curve: tuple[tuple[int, float, float], ...] = ()
    planned_steps: int = 0
    rung: float = math.nan


@dataclass(frozen=True)
class SearchTarget:
    """What a study's forgetting aims at: `kind`, gold, chance or none, and its documents."""

    kind: str
    documents: DocumentValues = field(default_factory=DocumentValues)

    def objective(self, result: TrialResult) -> float:
        """What is minimised: the distance of a trial from the target (`targets.target_distance`);
        without a target, the forgetting metric itself.
        """
        if self.kind == "none" or not self.documents.ids:
            return result.forgetting
        import numpy as np

        from rayunlearn.analysis.targets import Target, target_distance

        values = np.array(result.documents.at(self.documents.ids))
        return target_distance(values, Target(self.kind, np.array(self.documents.values)))

    def of_mean(self, forgetting: float) -> float:
        """What is minimised at a look, where the mean over its probes is all that is known: how far
        it is from the mean of the target.
        """
        if self.kind == "none" or not self.documents.ids:
            return forgetting
        return abs(forgetting - sum(self.documents.values) / len(self.documents.values))


@dataclass(frozen=True, kw_only=True)
class StudyGoal:
    """What a study aims at and what a trial has to keep: `floor` is NaN and `target` None while
    they are not known. `unmeasured`: base or gold, where it has ended without the values that say
    so; '' for none.
    """

    floor: float
    target: SearchTarget | None
    unmeasured: str = ""

    @property
    def is_known(self) -> bool:
        """Whether trials can be judged."""
        return math.isfinite(self.floor) and self.target is not None

    def objective(self, result: TrialResult) -> float:
        """What is minimised, NaN while the target is not known."""
        return self.target.objective(result) if self.target else math.nan


def study_goal(
    objective: Objective, *, base: TrialResult | None, gold: TrialResult | None, with_gold: bool
) -> StudyGoal:
    """The goal of a study, from the results of its base and, `with_gold`, its gold; None for one
    that has not ended.

    Without gold the target is chance; where no chance level was measured either, there is none.
    """
    floor = objective.utility_floor * base.utility if base else math.nan
    target: SearchTarget | None = None
    if objective.target == "none":
        target = SearchTarget("none")
    elif objective.target == "gold" and with_gold:
        target = SearchTarget("gold", gold.documents) if gold and gold.documents.ids else None
    elif base:
        target = SearchTarget("chance", base.chance) if base.chance.ids else SearchTarget("none")
    unmeasured = "gold" if gold and target is None else ""
    unmeasured = "base" if base and math.isnan(floor) else unmeasured
    return StudyGoal(floor=floor, target=target, unmeasured=unmeasured)


def trial_results(
    run: Path, objective: Objective, *, with_curves: bool = False
) -> dict[str, TrialResult]:
    """Every ended trial of a run with the two values that the objective asks for, read from
    Parquet; where the study has rungs `with_curves`.
    """
    from rayunlearn.storage.run import scan_trials

    tables = scan_trials(run)
    rows = tables["trials"].select("trial_id", "status", "seconds").collect()
    seconds = dict(rows.select("trial_id", "seconds").iter_rows())
    results = _results(dict(rows.select("trial_id", "status").iter_rows()), tables, objective)
    if with_curves:
        results = _with_curves(results, tables, objective)
    return {
        trial_id: replace(result, seconds=_number(seconds[trial_id]))
        for trial_id, result in results.items()
    }


def trial_result(
    run: Path, trial_id: str, objective: Objective, *, with_curves: bool = False
) -> TrialResult | None:
    """One trial's result from its own folder, None where it has none: cheap however many trials
    there are.
    """
    import polars as pl

    from rayunlearn.storage.run import status_of
    from rayunlearn.storage.sync import fetch_folder

    folder = run / "trials" / trial_id
    # of a run under a URL: it may have run on another machine
    fetch_folder(folder, overwrite=True)
    status = status_of(run, trial_id)
    if not status:
        return None
    names = ("evals", "trials", "examples", "curves")
    tables = {name: pl.scan_parquet(folder / f"{name}.parquet") for name in names}
    results = _results({trial_id: status}, tables, objective)
    return (_with_curves(results, tables, objective) if with_curves else results)[trial_id]


def _results(
    statuses: Mapping[str, str], tables: Mapping[str, "pl.LazyFrame"], objective: Objective
) -> dict[str, TrialResult]:
    """The result of every trial that has a status, from the tables that trials write."""
    means = _objective_values(tables["evals"], tables["trials"], objective).collect()
    values = {row[0]: (_number(row[1]), _number(row[2])) for row in means.iter_rows()}
    documents: dict[str, DocumentValues] = {}
    chance: dict[str, DocumentValues] = {}
    if objective.target != "none":
        examples = _own_rows(tables["examples"], tables["trials"], objective)
        documents = _by_document(examples, objective.forgetting)
        chance = _by_document(examples, _chance_metric(objective.forgetting))
    return {
        trial_id: TrialResult(
            status,
            *values.get(trial_id, (math.nan, math.nan)),
            documents=documents.get(trial_id, DocumentValues()),
            chance=chance.get(trial_id, DocumentValues()),
        )
        for trial_id, status in statuses.items()
    }


def _with_curves(
    results: Mapping[str, TrialResult],
    tables: Mapping[str, "pl.LazyFrame"],
    objective: Objective,
) -> dict[str, TrialResult]:
    """The results with what the looks at each trial saw of the objective's two metrics."""
    import polars as pl

    forgetting = (pl.col("metric") == objective.forgetting) & (pl.col("split") == "forget")
    utility = (pl.col("metric") == objective.utility) & (pl.col("split") == objective.utility_split)
    points = (
        tables["curves"]
        .filter(pl.col("kind") == "training", forgetting | utility)
        .group_by("trial_id", "x")
        .agg(
            pl.col("value").filter(forgetting).first().alias("forgetting"),
            pl.col("value").filter(utility).first().alias("utility"),
        )
        .sort("trial_id", "x")
        .collect()
    )
    curves: dict[str, list[tuple[int, float, float]]] = {}
    for trial_id, x, forget, retain in points.iter_rows():
        curves.setdefault(trial_id, []).append((int(x), _number(forget), _number(retain)))
    rows = tables["trials"].select("trial_id", "planned_steps", "rung").collect()
    stops = {trial_id: (steps or 0, _number(rung)) for trial_id, steps, rung in rows.iter_rows()}
    return {
        trial_id: replace(
            result,
            curve=tuple(curves.get(trial_id, ())),
            planned_steps=stops[trial_id][0],
            rung=stops[trial_id][1],
        )
        for trial_id, result in results.items()
    }


def _own_rows(rows: "pl.LazyFrame", trials: "pl.LazyFrame", objective: Objective) -> "pl.LazyFrame":
    """The rows of what each trial is about: the objective's stage (base's and gold's own) without
    attack; of an attack's trial the model that it attacked, after that attack.

    An objective after an attack: split forget is what the trial's own attack left, of base and gold
    too, and the other splits are from before it.
    """
    import polars as pl

    attack = (
        pl.col("attack.name").fill_null("none")
        if "attack.name" in trials.collect_schema()
        else pl.lit("none")
    )
    rows = rows.join(
        trials.select("trial_id", attack.alias("_own")), on="trial_id", maintain_order="left"
    )
    stage, is_forget = pl.col("stage"), pl.col("split") == "forget"
    after_own = objective.stage == "attacked"
    stages = ["base", "gold", "unlearned" if after_own else objective.stage]
    plain = stage.is_in(stages) & (pl.col("attack") == "none")
    if after_own:
        after = (stage == "attacked") & (pl.col("attack") == objective.attack)
        plain = (after & is_forget) | (plain & ~is_forget)
    attacked = stage.is_in(["base", "gold", "unlearned"]) & (pl.col("attack") == pl.col("_own"))
    return rows.filter(pl.when(pl.col("_own") == "none").then(plain).otherwise(attacked))


def _objective_values(
    evals: "pl.LazyFrame", trials: "pl.LazyFrame", objective: Objective
) -> "pl.LazyFrame":
    """trial_id, forgetting, utility of what each trial is about, last step."""
    import polars as pl

    forgetting = (pl.col("metric") == objective.forgetting) & (pl.col("split") == "forget")
    utility = (pl.col("metric") == objective.utility) & (pl.col("split") == objective.utility_split)
    rows = _own_rows(evals, trials, objective)
    measured = rows.filter(forgetting | utility).sort("step", maintain_order=True)
    return measured.group_by("trial_id").agg(
        pl.col("value").filter(forgetting).last().alias("forgetting"),
        pl.col("value").filter(utility).last().alias("utility"),
    )


def _by_document(examples: "pl.LazyFrame", metric: str) -> dict[str, DocumentValues]:
    """A metric on split forget by trial; a document that occurs twice counts with its mean."""
    import polars as pl

    from rayunlearn.analysis.run_frames import means_by

    rows = examples.filter(pl.col("split") == "forget", pl.col("metric") == metric)
    means = means_by(rows, ("trial_id", "doc_id"), ("value",)).drop_nulls("value")
    by_trial = means.group_by("trial_id", maintain_order=True).agg("doc_id", "value")
    return {
        trial_id: DocumentValues(_shared(tuple(ids)), array("d", values))
        for trial_id, ids, values in by_trial.iter_rows()
    }


@lru_cache(maxsize=256)
def _shared(ids: tuple[str, ...]) -> tuple[str, ...]:
    """One object for equal tuples of ids."""
    return ids


def _chance_metric(metric: str) -> str:
    """The metric whose value on base is the chance level of `metric`, '' for none."""
    from rayunlearn.metrics.table import METRICS

    return METRICS[metric].chance if metric in METRICS else ""


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
