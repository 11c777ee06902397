"""From rows to statements: means, bootstrap intervals, the coreset table, the forget-utility front.
Polars and numpy.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.config import Select
from rayunlearn.errors import require
from rayunlearn.results.store import Run
from rayunlearn.schema import ROLES, STATUSES, column_names

MULTIPLE_CHOICE = "multiple_choice"
# settings that are repeated over, never compared
SEEDS = ("select.seed", "train.seed")
# settings of where a cell is, not of what is done there
AROUND = ("data.", "model.")
# always in the coreset table, varying or not
CELL = ("method.forget", "method.retain", "select.name", "select.ratio")
# split of what base and gold know and no unlearning run is shown, where the data has one
UNTOUCHED = "untouched"
# each with _low and _high beside it
MEASURES = ("forgetting", "utility", "untouched", "choice_forget", "choice_retain", "unlearning")
DRAWS = 1000
LEVEL = 0.95
# characters of a setting's value in a table
LONGEST = 24

Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the experiment calls forgetting (metric on split `forget`) and utility, and of which
    stage, as in experiment.json.
    """

    forgetting: str = "probability"
    utility: str = "probability"
    utility_split: str = "retain"
    utility_floor: float = 0.9
    stage: str = "unlearned"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its bootstrap interval; all None where nothing was measured. `over` says what was
    resampled.
    """

    mean: float | None
    low: float | None
    high: float | None
    over: str


NOTHING = Interval(mean=None, low=None, high=None, over="nothing")


@dataclass(frozen=True)
class Measured:
    """One metric on one split: `values` (trials, documents), NaN where a trial has no value for a
    document.
    """

    row_of: Mapping[str, int]
    values: Numbers

    def rows(self, trial_ids: Sequence[str]) -> Numbers:
        """(trials that were measured, documents), in the order given."""
        return self.values[[self.row_of[t] for t in trial_ids if t in self.row_of]]


# ---- means and intervals


def summarise(examples: pl.DataFrame, *, step: int | None = None) -> pl.DataFrame:
    """Rows of `evals` from rows of `examples`: mean over the documents, their number, stderr = sd /
    sqrt(n).

    Nulls are excluded and not counted; stderr is null where n < 2, the value where n = 0. A `step`
    becomes the column of that name.
    """
    keys = [
        name
        for name in ("trial_id", "stage", "attack", "split", "metric")
        if name in examples.columns
    ]
    value = pl.col("value")
    n = value.count().cast(pl.Int64)
    rows = examples.group_by(keys, maintain_order=True).agg(
        value.mean(), n.alias("n"), (value.std() / n.sqrt()).alias("stderr")
    )
    if step is not None:
        rows = rows.with_columns(pl.lit(step, dtype=pl.Int64).alias("step"))
    return rows.select([name for name in column_names("evals") if name in rows.columns])


def bootstrap_interval(
    matrix: Numbers, *, draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> Interval:
    """Mean of a (seeds, documents) matrix, NaN = missing, with a percentile interval.

    Crossed resampling: seeds and documents are drawn with replacement, each on its own, because
    every seed is asked the same documents. With one seed only documents are resampled, and `over`
    says so: that interval knows nothing of how much another seed would differ.
    """
    require(
        matrix.ndim == 2, "a bootstrap needs a (seeds, documents) matrix, dimensions", matrix.ndim
    )
    if not np.isfinite(matrix).any():
        return NOTHING
    weights = _draw_weights(*matrix.shape, draws=draws, seed=seed)
    return _interval(_mean(matrix), weighted_means(matrix, *weights), matrix.shape[0], level)


def share_of_way(
    matrix: Numbers,
    base: Numbers,
    gold: Numbers,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """(base - x) / (base - gold) with a percentile interval: 0 is the untouched model, 1 the one
    that never saw the forget set.

    `matrix` is (seeds, documents), `base` and `gold` (1, documents) on the same documents, so that
    one draw of documents serves all three. All None where base and gold cannot be told apart: there
    is no way to go.
    """
    if not all(np.isfinite(part).any() for part in (matrix, base, gold)):
        return NOTHING
    by_seed, by_document = _draw_weights(*matrix.shape, draws=draws, seed=seed)
    one = np.ones((draws, 1))
    x = weighted_means(matrix, by_seed, by_document)
    before, never = weighted_means(base, one, by_document), weighted_means(gold, one, by_document)
    low, high = np.nanquantile(before - never, [(1 - level) / 2, (1 + level) / 2])
    if low <= 0 <= high:
        return NOTHING
    mean = (_mean(base) - _mean(matrix)) / (_mean(base) - _mean(gold))
    # a draw in which the two are one has no way to take a share of
    way = np.where(before == never, np.nan, before - never)
    return _interval(mean, (before - x) / way, matrix.shape[0], level)


# ---- tables


def objective_of(experiment: Mapping[str, Any]) -> Objective:
    """The objective of experiment.json, defaults where it says nothing."""
    given = experiment.get("objective") or {}
    return Objective(
        **{name: given[name] for name in Objective.__dataclass_fields__ if name in given}
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


def placed_trials(run: Run) -> pl.DataFrame:
    """Ended trials with their place in the plan; a trial has several rows where it serves several
    purposes or groups.

    Method, selector, ratio and seeds are columns even before the first trial has ended.
    """
    plan = run.plan.unique(
        ["trial_id", "role", "group", "study_index"], keep="first", maintain_order=True
    )
    placed = plan.join(run.trials, on="trial_id", how="inner", maintain_order="left").collect()
    types = {"select.ratio": pl.Float64, **dict.fromkeys(SEEDS, pl.Int64)}
    return placed.with_columns(
        pl.lit(None, dtype=types.get(n, pl.String)).alias(n)
        for n in (*CELL, *SEEDS)
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
    hidden = {*SEEDS, *CELL, *run.experiment.get("search", {})}
    names = [
        name
        for name in grid.columns
        if "." in name and name not in hidden and grid[name].drop_nulls().n_unique() > 1
    ]
    around: list[str] = []
    for name in names:
        if name.startswith(AROUND) and grid.select(*around, name).n_unique() > (
            grid.select(around).n_unique() if around else 1
        ):
            around.append(name)
    return [name for name in names if name in around or not name.startswith(AROUND)]


def trial_table(run: Run) -> pl.DataFrame:
    """`placed_trials` with columns `forgetting` and `utility`: means over documents, null where not
    measured.
    """
    goal = objective_of(run.experiment)
    placed = placed_trials(run)
    for name, split, metric in (
        ("forgetting", "forget", goal.forgetting),
        ("utility", goal.utility_split, goal.utility),
    ):
        rows = own_examples(run).filter(pl.col("split") == split, pl.col("metric") == metric)
        placed = placed.join(
            rows.group_by("trial_id").agg(pl.col("value").mean().alias(name)).collect(),
            on="trial_id",
            how="left",
        )
    return placed


def coreset_table(run: Run, *, draws: int = DRAWS, seed: int = 0) -> pl.DataFrame:
    """One row per cell: role, group, method, selector, ratio, every other setting that varies; then
    what was measured.

    `forgetting`, `utility`, `choice_forget`, `choice_retain` are means over all measured trials of
    the cell, collapsed ones included, with `_low` and `_high` (95 % bootstrap; `interval_over` says
    of what); `unlearning` is the share of the way from base to gold. `seeds` counts measured
    trials, `trials` ended ones; `share_*` are fractions of the ended ones. Rows of base and gold
    come first, then retain-only controls, then the grid.
    """
    placed = placed_trials(run)
    settings = varying_settings(run, placed)
    cells = _cells(placed, settings)
    measured = _measure_all(run)
    around = [name for name in settings if name.startswith(AROUND)]
    rows = []
    for cell in cells.iter_rows(named=True):
        anchors = {role: _anchor(cells, role, cell, around) for role in ("base", "gold")}
        rows.append(_measure_cell(cell, anchors, measured, draws=draws, seed=seed))
    return pl.concat(
        [cells.drop("trial_ids"), pl.DataFrame(rows, schema=_measured_schema())], how="horizontal"
    )


def extra_settings(table: pl.DataFrame) -> list[str]:
    """Columns of a coreset table that are varying settings beside method, selector and ratio."""
    return [name for name in table.columns if "." in name and name not in CELL]


def smallest_sufficient(
    table: pl.DataFrame, *, utility_floor: float, lower_forgets: bool = True
) -> pl.DataFrame:
    """Per method, setting and selector the smallest ratio that still does what the full set does; a
    first look, no equivalence test.

    A ratio suffices when its forgetting interval overlaps the full set's or lies beyond it, and its
    mean utility is at least `utility_floor` x base's. Ratios are gone through downwards and the
    first that fails ends the search. `verdict`: `smaller`, `full only` (no smaller one suffices),
    `full set fails` (the full set does not clear base's interval or the floor, so there is nothing
    to compare with), `no full set`. `ratio` and `n_kept` are of the smallest sufficient cell.
    """
    sign = 1.0 if lower_forgets else -1.0
    keys = ["method", *extra_settings(table), "select.name"]
    parts = table.filter(pl.col("role") == "grid", pl.col("select.ratio") < 1).sort(
        "select.ratio", descending=True, maintain_order=True
    )
    rows = []
    for values, cells in parts.group_by(keys, maintain_order=True):
        place = dict(zip(keys, values, strict=True))
        base, full = (_peer(table, role, place) for role in ("base", "grid"))
        rows.append(place | _descend(base, full, cells.to_dicts(), sign, utility_floor))
    kinds = {name: table.schema[name] for name in keys}
    return pl.DataFrame(
        rows, schema=kinds | {"verdict": pl.String, "ratio": pl.Float64, "n_kept": pl.Float64}
    )


# ---- fronts


def pareto_front(
    frame: pl.DataFrame, forgetting: str, utility: str, *, lower_forgets: bool = True
) -> pl.DataFrame:
    """Rows that no other row beats: at least as forgotten and as useful, and better in one. Equal
    rows all stay.

    Forgetting is minimised (maximised with `lower_forgets` off), utility maximised. Rows with a
    null or NaN in either are dropped.
    """
    known = frame.filter(pl.col(forgetting).is_finite() & pl.col(utility).is_finite())
    ordered = known.sort(
        [forgetting, utility], descending=[not lower_forgets, True], maintain_order=True
    )
    best = ordered.group_by(forgetting, maintain_order=True).agg(
        pl.col(utility).max().alias("_here")
    )
    best = best.with_columns(pl.col("_here").cum_max().shift(1).alias("_before"))
    kept = ordered.join(best, on=forgetting, how="left", maintain_order="left")
    beaten = (pl.col(utility) < pl.col("_here")) | (pl.col("_here") <= pl.col("_before")).fill_null(
        False
    )
    return kept.filter(~beaten).drop("_here", "_before")


def hypervolume(
    frame: pl.DataFrame, forgetting: str, utility: str, *, reference: tuple[float, float]
) -> float:
    """Area dominated by the rows, forgetting minimised and utility maximised, up to `reference` =
    (worst forgetting, worst utility).
    """
    worst_forgetting, worst_utility = reference
    inside = frame.filter(pl.col(forgetting) < worst_forgetting, pl.col(utility) > worst_utility)
    front = pareto_front(inside, forgetting, utility).unique([forgetting, utility]).sort(forgetting)
    edges = [*front[forgetting].to_list(), worst_forgetting]
    heights = (front[utility] - worst_utility).to_list()
    return float(
        sum(
            (right - left) * height
            for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True)
        )
    )


def best_so_far(
    frame: pl.DataFrame, *, order: str, value: str, feasible: str, lower_is_better: bool = True
) -> pl.DataFrame:
    """The frame in `order`, with `best_so_far`: the best `value` of the feasible rows up to here,
    null before the first.
    """
    counted = pl.when(pl.col(feasible)).then(pl.col(value))
    best = counted.cum_min() if lower_is_better else counted.cum_max()
    return frame.sort(order, maintain_order=True).with_columns(
        best.forward_fill().alias("best_so_far")
    )


# ---- inside


@lru_cache(maxsize=8)
def _draw_weights(
    n_seeds: int, n_documents: int, *, draws: int, seed: int
) -> tuple[Numbers, Numbers]:
    """How often each seed (draws, seeds) and each document (draws, documents) is drawn, read-only.

    Documents are drawn first, so that they do not depend on the number of seeds. Kept, because all
    cells and metrics of a table have few shapes.
    """
    generator = np.random.default_rng(seed)
    by_document = _counts(generator.integers(0, n_documents, (draws, n_documents)), n_documents)
    by_seed = _counts(generator.integers(0, n_seeds, (draws, n_seeds)), n_seeds)
    by_document.setflags(write=False)
    by_seed.setflags(write=False)
    return by_seed, by_document


def _counts(drawn: np.ndarray[Any, np.dtype[np.int64]], n: int) -> Numbers:
    """(draws, n): how often each of 0..n-1 occurs in each row of `drawn`, in one pass over all
    rows.
    """
    draws = len(drawn)
    cells = (drawn + n * np.arange(draws)[:, None]).ravel()
    counts: Numbers = np.bincount(cells, minlength=draws * n).reshape(draws, n).astype(np.float64)
    return counts


def weighted_means(matrix: Numbers, by_seed: Numbers, by_document: Numbers) -> Numbers:
    """(draws,) weighted means of a (seeds, documents) matrix over what is not NaN; NaN where a draw
    hit nothing.
    """
    present = np.isfinite(matrix)
    total = ((by_seed @ np.where(present, matrix, 0.0)) * by_document).sum(1)
    weight = ((by_seed @ present.astype(np.float64)) * by_document).sum(1)
    return np.divide(total, weight, out=np.full(len(total), np.nan), where=weight > 0)


def _mean(matrix: Numbers) -> float:
    return float(np.mean(matrix[np.isfinite(matrix)]))


def _interval(mean: float, draws: Numbers, n_seeds: int, level: float) -> Interval:
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        mean=mean,
        low=float(low),
        high=float(high),
        over="seeds and documents" if n_seeds > 1 else "documents",
    )


def own_examples(run: Run, stage: str = "") -> pl.LazyFrame:
    """Examples before any attack of what a trial is about: base and gold themselves, an unlearned
    model at `stage` ('': the objective's).
    """
    stage = stage or objective_of(run.experiment).stage
    rows = run.examples.filter(pl.col("attack") == "none")
    if "stage" not in run.trials.collect_schema():
        return rows
    wanted = (
        pl.when(pl.col("stage") == "unlearned")
        .then(pl.lit(stage))
        .otherwise(pl.col("stage"))
        .alias("_own")
    )
    return (
        rows.join(run.trials.select("trial_id", wanted), on="trial_id")
        .filter(pl.col("stage") == pl.col("_own"))
        .drop("_own")
    )


def _measure_all(run: Run) -> dict[str, Measured]:
    goal = objective_of(run.experiment)
    wanted = {
        "forgetting": ("forget", goal.forgetting),
        "utility": (goal.utility_split, goal.utility),
    }
    wanted |= {
        "choice_forget": ("forget", MULTIPLE_CHOICE),
        "choice_retain": (goal.utility_split, MULTIPLE_CHOICE),
    }
    wanted |= {"untouched": (UNTOUCHED, goal.utility)}
    pairs = pl.DataFrame([{"split": s, "metric": m} for s, m in sorted(set(wanted.values()))])
    rows = (
        own_examples(run)
        .join(pairs.lazy(), on=["split", "metric"])
        .select("trial_id", "doc_id", "split", "metric", "value")
        .collect()
    )
    parts = {
        name: rows.filter(pl.col("split") == s, pl.col("metric") == m)
        for name, (s, m) in wanted.items()
    }
    return {name: _wide(part) for name, part in parts.items() if part.height or name != "untouched"}


def _wide(rows: pl.DataFrame) -> Measured:
    """Rows of one metric and split as a matrix; a document that occurs twice in a trial counts with
    its mean.
    """
    trials, documents = rows["trial_id"].unique().sort(), rows["doc_id"].unique().sort()
    means = rows.group_by("trial_id", "doc_id").agg(pl.col("value").mean().fill_null(float("nan")))
    values = np.full((len(trials), len(documents)), np.nan)
    if means.height:
        places = (
            trials.search_sorted(means["trial_id"]).to_numpy(),
            documents.search_sorted(means["doc_id"]).to_numpy(),
        )
        values[places] = means["value"].to_numpy()
    return Measured({trial: i for i, trial in enumerate(trials)}, values)


def _cells(placed: pl.DataFrame, settings: Sequence[str]) -> pl.DataFrame:
    """Trials gathered into cells, in the order of the table."""
    keys = ["role", "group", *CELL, *settings]
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
        *[n for n in settings if not n.startswith(AROUND)],
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


def _peer(table: pl.DataFrame, role: str, place: Mapping[str, Any]) -> dict[str, Any] | None:
    """The base row, or the full-set row of the same method, under the same settings; None where
    there is none or it was not measured.

    A full set is not chosen (`plan.whole_set`): where none has the settings of `select` that its
    parts have, it stands at their defaults.
    """
    shared = (
        [n for n in place if n.startswith(AROUND)]
        if role == "base"
        else [n for n in place if n != "select.name"]
    )
    rows = table.filter(
        pl.col("role") == role,
        (pl.col("select.ratio") == 1) | (role == "base"),
        pl.col("forgetting").is_not_null(),
    )
    whole = {
        n: getattr(Select(), n.partition(".")[2])
        for n in shared
        if n.startswith("select.") and n != "select.text"
    }
    for wanted in (place, {**place, **whole}):
        found = rows.filter(*(pl.col(n).eq_missing(pl.lit(wanted[n])) for n in shared))
        if found.height:
            return found.row(0, named=True)
    return None


def _descend(
    base: dict[str, Any] | None,
    full: dict[str, Any] | None,
    cells: Sequence[dict[str, Any]],
    sign: float,
    utility_floor: float,
) -> dict[str, Any]:
    """Verdict, ratio and n_kept of `smallest_sufficient` for one method and selector; `cells` from
    the largest ratio down.
    """
    if base is None or full is None:
        return {"verdict": "no full set", "ratio": None, "n_kept": None}
    floor = utility_floor * (base["utility"] or 0.0)
    # the most and the least forgotten end of an interval
    near, far = ("low", "high") if sign > 0 else ("high", "low")
    if (
        sign * full[f"forgetting_{far}"] >= sign * base[f"forgetting_{near}"]
        or (full["utility"] or 0.0) < floor
    ):
        return {"verdict": "full set fails", "ratio": None, "n_kept": None}
    best = full
    for cell in cells:
        measured = cell["forgetting"] is not None and cell["utility"] is not None
        if (
            not measured
            or cell["utility"] < floor
            or sign * cell[f"forgetting_{near}"] > sign * full[f"forgetting_{far}"]
        ):
            break
        best = cell
    return {
        "verdict": "full only" if best is full else "smaller",
        "ratio": best["select.ratio"],
        "n_kept": best["n_kept"],
    }


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


def controlled(group: str | None, *, without: Sequence[str] = ()) -> str:
    """What a control controls, in words: the values of its group (`npo, domain`), those of the
    settings in `without` left out.
    """
    values = json.loads(group) if group else {}
    return ", ".join(
        filter(None, (shortened(value) for name, value in values.items() if name not in without))
    )


def shortened(value: Any) -> str:
    """A setting's value as text; a list of words is cut."""
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _anchor(cells: pl.DataFrame, role: str, cell: Mapping[str, Any], around: Sequence[str]) -> str:
    """Trial of the base or gold model with the same data and model settings; '' where there is
    none.
    """
    same = [pl.col(name).eq_missing(pl.lit(cell[name])) for name in around]
    found = cells.filter(pl.col("role") == role, *same)["trial_ids"].to_list()
    return str(found[0][0]) if found else ""


def _measure_cell(
    cell: Mapping[str, Any],
    anchors: Mapping[str, str],
    measured: Mapping[str, Measured],
    *,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    rows = {name: part.rows(cell["trial_ids"]) for name, part in measured.items()}
    intervals = {
        name: bootstrap_interval(_asked(matrix), draws=draws, seed=seed)
        for name, matrix in rows.items()
    }
    x = rows["forgetting"]
    base, gold = (measured["forgetting"].rows([anchors[role]]) for role in ("base", "gold"))
    asked = np.isfinite(x).any(0)
    comparable = cell["role"] in ("grid", "control") and len(base) > 0 and len(gold) > 0
    way = (
        share_of_way(x[:, asked], base[:, asked], gold[:, asked], draws=draws, seed=seed)
        if comparable
        else NOTHING
    )
    row: dict[str, Any] = {"seeds": len(x), "interval_over": intervals["forgetting"].over}
    for name, interval in (intervals | {"unlearning": way}).items():
        row |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return row


def _asked(matrix: Numbers) -> Numbers:
    """Without the documents of other corpora."""
    return matrix[:, np.isfinite(matrix).any(0)]


def _measured_schema() -> dict[str, Any]:
    numbers = {f"{name}{end}": pl.Float64 for name in MEASURES for end in ("", "_low", "_high")}
    return {"seeds": pl.Int64, "interval_over": pl.String, **numbers}
