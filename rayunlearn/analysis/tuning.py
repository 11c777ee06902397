"""What the searches of a run tried, what they found, and which hyperparameters mattered. Polars,
numpy and scipy.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.analysis.intervals import Numbers
from rayunlearn.analysis.run_frames import (
    CONTEXT_SECTIONS,
    objective_of,
    trial_table,
    varying_settings,
)
from rayunlearn.lazy import scipy
from rayunlearn.storage.run import Run

# Settings under which a rank correlation says nothing: of four points the most extreme order comes
# by chance once in twelve.
FEWEST_SETTINGS = 5

# share of a range, in its own scale, from an end at which a value found there asks for a wider one
EDGE = 0.05

# orders of the values that a permutation test goes through at most: all of those of seven
PERMUTATIONS = 5_040

TUNED_SCHEMA = {
    "group": pl.String,
    "search": pl.Int64,
    "setting": pl.String,
    "value": pl.String,
    "low": pl.Float64,
    "high": pl.Float64,
    "at_edge": pl.Boolean,
    "tried": pl.Int64,
    "feasible": pl.Int64,
    "importance": pl.Float64,
    "correlation": pl.Float64,
    "p": pl.Float64,
    "utility_correlation": pl.Float64,
}


def searched_settings(run: Run) -> dict[str, Mapping[str, Any]]:
    """The hyperparameters of SEARCH that some trial has, each with its domain as experiment.json
    has it.
    """
    columns = run.trials.collect_schema().names()
    search: Mapping[str, Mapping[str, Any]] = run.experiment.get("search") or {}
    return {name: domain for name, domain in search.items() if name in columns}


def settings_tried(run: Run) -> pl.DataFrame:
    """One row per setting of a study, as it was judged: means over its seeds, `feasible` where all
    of them keep the utility floor, under the id of the first; a column per searched
    hyperparameter, null where the method has none of it.

    Args:
        run: an opened run (`storage.run.open_run`).

    Returns:
        The settings in the order of the studies; no rows where nothing was tuned.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> tried = settings_tried(open_run("docs/notebooks/runs/coreset"))
        >>> tried.group_by("study", maintain_order=True).len()["len"].to_list()
        [4, 4]
    """
    trials = trial_table(run)
    tuned = trials.filter(pl.col("role") == "tuning", pl.col("forgetting").is_not_null())
    contexts = [n for n in varying_settings(run, trials) if n.startswith(CONTEXT_SECTIONS)]
    judged = _with_feasible(tuned, trials, contexts, objective_of(run.experiment).utility_floor)
    means = [pl.col(name).mean() for name in ("objective", "forgetting", "utility")]
    first = ["group", "search", "trial_id", *searched_settings(run)]
    return judged.group_by(["study", "study_index"], maintain_order=True).agg(
        *means, *(pl.col(name).first() for name in first), pl.col("feasible").all()
    )


def _with_feasible(
    tuned: pl.DataFrame, trials: pl.DataFrame, contexts: Sequence[str], floor: float
) -> pl.DataFrame:
    """The tuned trials with `before`, the utility of their base model, and `feasible`: whether
    they keep the fraction `floor` of it.
    """
    base = trials.filter(pl.col("role") == "base").select(
        *contexts, pl.col("utility").alias("before")
    )
    joined = (
        tuned.join(base, on=contexts, how="left", maintain_order="left")
        if contexts
        else tuned.with_columns(pl.lit(base["before"].max()).alias("before"))
    )
    return joined.with_columns(
        (pl.col("utility") >= floor * pl.col("before")).fill_null(False).alias("feasible")
    )


def tuned_table(run: Run) -> pl.DataFrame:
    """One row per search and hyperparameter that it tuned: the value that the grid was run with,
    the ends of its range, and how much it mattered.

    `at_edge`: the value lies within 5% of an end of its range (in the logarithm where it was drawn
    so). `tried` settings, `feasible` of them kept the utility floor. `importance` is the square of
    `correlation`, Spearman's rank correlation of the hyperparameter with what the search minimised,
    positive where larger values were worse; `p` is its permutation p-value, and
    `utility_correlation` the same with utility. That importance is this share of rank variance is
    our choice: searches here try 4 to 30 settings, too few for fANOVA's forest
    (`rayunlearn studies` writes a file for Optuna's own). It sees neither interactions nor a best
    value in the middle. Null under five settings, and where all had one value or names.

    Args:
        run: an opened run (`storage.run.open_run`).

    Returns:
        The table; no rows where nothing was tuned.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> table = tuned_table(open_run("docs/notebooks/runs/coreset"))
        >>> table.select("setting", "tried").rows()[0]
        ('train.learning_rate', 4)
    """
    tried, winners = settings_tried(run), _winners(run)
    rows = []
    for (_,), study in tried.group_by(["study"], maintain_order=True):
        group, search = study["group"][0], study["search"].fill_null(0)[0]
        for name, domain in searched_settings(run).items():
            values = study[name]
            if values.null_count() < len(values):
                rows.append(
                    {
                        "group": group,
                        "search": search,
                        "setting": name,
                        "tried": len(values),
                        "feasible": study["feasible"].sum(),
                        **_found(winners.get((group, search), {}).get(name), domain),
                        **_importance(study, name),
                    }
                )
    return pl.DataFrame(rows, schema=TUNED_SCHEMA)


def _winners(run: Run) -> dict[tuple[str, int], dict[str, Any]]:
    """(group, search) -> the searched hyperparameters of its grid, which has the winner's."""
    names = list(searched_settings(run))
    grid = (
        run.plan.filter(pl.col("role") == "grid")
        .select("trial_id", "group", pl.col("search").fill_null(0))
        .join(run.trials.select("trial_id", *names), on="trial_id", maintain_order="left")
        .collect()
    )
    rows = grid.unique(["group", "search"], keep="first", maintain_order=True)
    return {
        (row["group"], row["search"]): {name: row[name] for name in names}
        for row in rows.iter_rows(named=True)
    }


def _found(value: Any, domain: Mapping[str, Any]) -> dict[str, Any]:
    """The value, the ends of its range, and whether it lies at one of them; a Choice has no
    ends.
    """
    low, high = domain.get("low"), domain.get("high")
    is_range = low is not None and high is not None
    at_edge = None
    if is_range and value is not None:
        ends = np.array([low, value, high], dtype=np.float64)
        start, position, end = np.log(ends) if domain.get("log") else ends
        at_edge = bool(min(position - start, end - position) <= EDGE * (end - start))
    text = f"{value:.3g}" if isinstance(value, float) else None if value is None else str(value)
    return {"value": text, "low": low, "high": high, "at_edge": at_edge}


def _importance(study: pl.DataFrame, name: str) -> dict[str, float | None]:
    """`importance`, `correlation`, `p` and `utility_correlation` of a hyperparameter of a study."""
    nothing = dict.fromkeys(("importance", "correlation", "p", "utility_correlation"))
    rows = study.drop_nulls([name, "objective"])
    if rows.height < FEWEST_SETTINGS or not rows.schema[name].is_numeric():
        return nothing
    if min(rows[name].n_unique(), rows["objective"].n_unique()) < 2:
        return nothing
    correlation, p = correlation_test(rows[name].to_numpy(), rows["objective"].to_numpy())
    with_utility = rows.drop_nulls("utility")
    has_spread = with_utility.height >= FEWEST_SETTINGS and with_utility["utility"].n_unique() > 1
    utility = (
        correlation_test(with_utility[name].to_numpy(), with_utility["utility"].to_numpy())[0]
        if has_spread
        else None
    )
    return {
        "importance": correlation**2,
        "correlation": correlation,
        "p": p,
        "utility_correlation": utility,
    }


def correlation_test(first: Numbers, second: Numbers) -> tuple[float, float]:
    """Spearman's rank correlation and its two-sided permutation p-value: exact where all orders
    can be gone through, else over `PERMUTATIONS` of them.

    Args:
        first, second: (n,) values, not all alike; ties have their mean rank.

    Returns:
        The correlation, from -1 to 1, and p.

    Example:
        >>> correlation, p = correlation_test(np.arange(5.0), np.arange(5.0) ** 2)
        >>> print(f"{correlation:.1f} {p:.4f}")
        1.0 0.0167
    """
    centred = [ranks - ranks.mean() for ranks in map(scipy.stats.rankdata, (first, second))]
    fixed, scale = centred[1], float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))

    def statistic(orders: Numbers, axis: int = -1) -> Numbers:
        return np.asarray(np.moveaxis(orders, axis, -1) @ fixed / scale)

    result = scipy.stats.permutation_test(
        (centred[0],),
        statistic,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng(0),
    )
    return float(result.statistic), float(result.pvalue)


def tuned_values(run: Run) -> dict[str, str]:
    """Trial of the grid or a control -> the searched hyperparameters that it was run with, as
    `train.learning_rate 0.0021, npo.beta 0.03`; empty where nothing was tuned.
    """
    names = list(searched_settings(run))
    if not names or run.plan.filter(pl.col("role") == "tuning").limit(1).collect().is_empty():
        return {}
    trials = run.trials.select("trial_id", *names).collect()
    return {row["trial_id"]: values_in_words(row, names) for row in trials.iter_rows(named=True)}


def values_in_words(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """`train.learning_rate 0.0021, npo.beta 0.03`: the settings that the row has."""
    return ", ".join(
        f"{name} {row[name]:.3g}" if isinstance(row[name], float) else f"{name} {row[name]}"
        for name in names
        if row[name] is not None
    )
