"""Which trial of a run is meant: by its id, by the beginning of it, or as the best one."""

import polars as pl

from rayunlearn.analysis.run_frames import objective_of, trial_table
from rayunlearn.errors import UserError
from rayunlearn.storage.run import Run, find_trial

BEST = "best"

# characters of a short id, more where two trials of a run share them
SHORT_ID = 6


def measured_cells(table: pl.DataFrame) -> pl.DataFrame:
    """The complete trials of the grid whose forgetting was measured, of a `trial_table`."""
    return table.filter(
        (pl.col("role") == "grid")
        & (pl.col("status") == "complete")
        & pl.col("forgetting").is_finite()
    )


def best_trials(run: Run, table: pl.DataFrame) -> pl.DataFrame:
    """The best trial of each method and retain loss, the best of all first: the lowest objective
    among those that keep the objective's utility floor.

    Args:
        run: an opened run.
        table: `trial_table(run)`.

    Returns:
        Rows of the table; none where no trial keeps enough.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> run = open_run("docs/notebooks/runs/coreset")
        >>> best_trials(run, trial_table(run)).height
        2
    """
    floor = objective_of(run.experiment).utility_floor
    base = table.filter(pl.col("role") == "base")["utility"].mean()
    required = floor * float(str(base if base is not None else 0.0))
    ordered = measured_cells(table).filter(pl.col("utility") >= required).sort("objective")
    return ordered.unique(["method.forget", "method.retain"], keep="first", maintain_order=True)


def chosen_trial(run: Run, name: str) -> str:
    """The id of the trial that `name` means: `best`, an id, or the beginning of exactly one.

    Raises UserError where no trial is meant or several are.

    Args:
        run: an opened run.
        name: what the user wrote.

    Returns:
        The whole id.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> run = open_run("docs/notebooks/runs/coreset")
        >>> chosen_trial(run, "best") in run.trials.collect()["trial_id"]
        True
    """
    if name != BEST:
        return find_trial(run.trials.select("trial_id").collect()["trial_id"].to_list(), name)
    best = best_trials(run, trial_table(run))
    if best.is_empty():
        raise UserError(
            "trial best must be a complete trial of the grid that keeps the objective's"
            " utility_floor; found none (name one by its id)"
        )
    return str(best["trial_id"][0])


def short_ids(trial_ids: list[str]) -> dict[str, str]:
    """Each id with its beginning, as long as all of them need to differ, `SHORT_ID` at required.

    Example:
        >>> short_ids(["3f2a90c1", "3f2a90d2"])
        {'3f2a90c1': '3f2a90c', '3f2a90d2': '3f2a90d'}
    """
    length, unique = SHORT_ID, set(trial_ids)
    longest = max(map(len, unique), default=0)
    while length < longest and len({name[:length] for name in unique}) < len(unique):
        length += 1
    return {name: name[:length] for name in trial_ids}
