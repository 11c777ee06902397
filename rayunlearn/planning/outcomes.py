"""What finished trials ended with: status and objective values."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rayunlearn.config import Objective

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended; `forgetting` and `utility` are NaN where it was not measured, `seconds`
    (how long it took) where the row does not say so.
    """

    status: str
    forgetting: float = math.nan
    utility: float = math.nan
    seconds: float = math.nan


def trial_results(run: Path, objective: Objective) -> dict[str, TrialResult]:
    """Every ended trial of a run with the two values that the objective asks for, read from
    Parquet.
    """
    from rayunlearn.storage.run import scan_trials

    tables = scan_trials(run)
    rows = tables["trials"].select("trial_id", "status", "seconds").collect()
    rows_of_values = _objective_values(tables["evals"], tables["trials"], objective).collect()
    values = {row[0]: (_number(row[1]), _number(row[2])) for row in rows_of_values.iter_rows()}
    return {
        trial_id: TrialResult(
            status, *values.get(trial_id, (math.nan, math.nan)), seconds=_number(seconds)
        )
        for trial_id, status, seconds in rows.iter_rows()
    }


def trial_result(run: Path, trial_id: str, objective: Objective) -> TrialResult | None:
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
    values = _objective_values(
        pl.scan_parquet(folder / "evals.parquet"),
        pl.scan_parquet(folder / "trials.parquet"),
        objective,
    ).collect()
    return (
        TrialResult(status, _number(values.item(0, 1)), _number(values.item(0, 2)))
        if values.height
        else TrialResult(status)
    )


def _objective_values(
    evals: "pl.LazyFrame", trials: "pl.LazyFrame", objective: Objective
) -> "pl.LazyFrame":
    """trial_id, forgetting, utility: the objective's stage (base's and gold's own) without attack,
    last step; of an attack's trial the model that it attacked, after that attack."""
    import polars as pl

    attack = (
        pl.col("attack.name").fill_null("none")
        if "attack.name" in trials.collect_schema()
        else pl.lit("none")
    )
    evals = evals.join(
        trials.select("trial_id", attack.alias("_own")), on="trial_id", maintain_order="left"
    )
    attacked = (pl.col("_own") != "none") & (pl.col("stage") == "unlearned")
    own_stage = (pl.col("stage").is_in(["base", "gold", objective.stage]) | attacked) & (
        pl.col("attack") == pl.col("_own")
    )
    forgetting = (pl.col("metric") == objective.forgetting) & (pl.col("split") == "forget")
    utility = (pl.col("metric") == objective.utility) & (pl.col("split") == objective.utility_split)
    measured = evals.filter(own_stage & (forgetting | utility)).sort("step", maintain_order=True)
    return measured.group_by("trial_id").agg(
        pl.col("value").filter(forgetting).last().alias("forgetting"),
        pl.col("value").filter(utility).last().alias("utility"),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
