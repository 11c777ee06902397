"""What the experiments on steps, redundancy and defences ask, answered from their rows. Polars, numpy and scipy.

The statistics are ours; each says what would refute the hypothesis of its experiment file. Intervals are percentile bootstraps:
over seeds and documents where cells are compared, over trials where trials are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy.optimize import isotonic_regression

from rayunlearn.results.analysis import DRAWS, LEVEL, Numbers, objective_of, placed_trials, trial_table, weighted_means
from rayunlearn.results.attacks import plain_setting, recovery_table
from rayunlearn.results.frontier import matrix_of
from rayunlearn.results.statistics import difference, paired_p
from rayunlearn.results.store import Run

METHOD = ("method.forget", "method.retain")
LENGTH = (*METHOD, "select.ratio", "train.length")
ESTIMATE = {"mean": pl.Float64, "low": pl.Float64, "high": pl.Float64}
GAPS = {"method": pl.String, "gap": pl.String, "pairs": pl.Int64, **ESTIMATE}
LENGTHS = {"method": pl.String, "ratio": pl.Float64, "steps": pl.Float64, **ESTIMATE}
PREDICTORS = {"coverage": "facts", "keyword_coverage": "keywords", "select.ratio": "ratio"}  # column to its name in tables


# ---- steps or documents


def step_gaps(run: Run, *, draws: int = DRAWS, seed: int = 0) -> pl.DataFrame:
    """Per method the mean distance of a coreset's forgetting to the full set's, columns GAPS.

    `equal steps`: against the full set after as many steps; `equal epochs`: against the full set after as many passes over its own
    documents, steps / ratio. `epochs - steps` is their difference: over 0, steps are what counts. Over the (ratio, steps) for
    which both partners were run. `full set, last - first`: its forgetting at the most steps minus that at the fewest of at
    least one epoch: under 0, it goes on past one epoch.
    """
    cells, epoch = _length_cells(run), _epoch(run)
    rows: list[dict[str, Any]] = []
    for method in dict.fromkeys(method for method, _, _ in cells):
        mine = {(ratio, steps): cell for (m, ratio, steps), cell in cells.items() if m == method}
        drawn = _drawn(mine, draws=draws, seed=seed)
        pairs = [(r, s) for r, s in mine if r < 1 and (1.0, s) in mine and (1.0, _same_epochs(s, r)) in mine]
        if pairs:
            steps, epochs = (
                np.mean([np.abs(drawn[pair] - drawn[1.0, partner(*pair)]) for pair in pairs], axis=0)
                for partner in (lambda _r, s: s, lambda r, s: _same_epochs(s, r))
            )
            for name, values in (("equal steps", steps), ("equal epochs", epochs), ("epochs - steps", epochs - steps)):
                rows.append({"method": method, "gap": name, "pairs": len(pairs), **_estimate(values)})
        whole = sorted(s for r, s in mine if r == 1 and s >= epoch)
        if len(whole) > 1:
            rows.append({"method": method, "gap": "full set, last - first", "pairs": 1, **_estimate(drawn[1.0, whole[-1]] - drawn[1.0, whole[0]])})
    return pl.DataFrame(rows, schema=GAPS)


def step_lags(run: Run, *, draws: int = DRAWS, seed: int = 0) -> pl.DataFrame:
    """Columns method, ratio, steps and ESTIMATE: forgetting of a coreset minus that of the full set after the most steps of both; over 0 it lags."""
    rows = []
    cells = _length_cells(run)
    for method in dict.fromkeys(method for method, _, _ in cells):
        mine = {(ratio, steps): cell for (m, ratio, steps), cell in cells.items() if m == method}
        drawn = _drawn(mine, draws=draws, seed=seed)
        for ratio in sorted({ratio for ratio, _ in mine if ratio < 1}):
            steps = max((s for r, s in mine if r == ratio and (1.0, s) in mine), default=None)
            if steps is not None:
                rows.append({"method": method, "ratio": ratio, "steps": steps, **_estimate(drawn[ratio, steps] - drawn[1.0, steps])})
    return pl.DataFrame(rows, schema=LENGTHS)


def length_curves(run: Run, *, draws: int = DRAWS, seed: int = 0) -> pl.DataFrame:
    """Columns method, ratio, steps and ESTIMATE: forgetting after that many steps, with its interval over seeds and documents."""
    rows = []
    cells = _length_cells(run)
    for method in dict.fromkeys(method for method, _, _ in cells):
        drawn = _drawn({(ratio, steps): cell for (m, ratio, steps), cell in cells.items() if m == method}, draws=draws, seed=seed)
        rows += [{"method": method, "ratio": ratio, "steps": steps, **_estimate(values)} for (ratio, steps), values in drawn.items()]
    return pl.DataFrame(rows, schema=LENGTHS)


def _same_epochs(steps: float, ratio: float) -> float:
    return float(round(steps / ratio))


def _epoch(run: Run) -> float:
    """Steps that one pass over the full set takes."""
    row = run.trials.filter(pl.col("stage") == "unlearned").select(pl.col("n_forget").max(), pl.col("train.batch_size").min()).collect().row(0)
    return float(row[0]) / float(row[1])


def _length_cells(run: Run) -> dict[tuple[str, float, float], Numbers]:
    """(method, ratio, steps) -> (seeds, documents) of forgetting, seeds in order so that cells share them."""
    row_of, values = matrix_of(run, "forget", objective_of(run.experiment).forgetting, "")
    grid = placed_trials(run).filter(pl.col("role") == "grid", pl.col("trial_id").is_in(list(row_of))).unique("trial_id")
    found = {}
    for key, rows in grid.sort(*LENGTH, "train.seed").group_by(LENGTH, maintain_order=True):
        forget, retain, ratio, steps = key
        found[f"{forget} + {retain}", float(str(ratio)), float(str(steps))] = values[[row_of[t] for t in rows["trial_id"]]]
    return found


def _drawn(cells: Mapping[tuple[float, float], Numbers], *, draws: int, seed: int) -> dict[tuple[float, float], Numbers]:
    """Bootstrap means of every cell, the point estimate first: the same documents and, where cells have as many, the same seeds."""
    generator = np.random.default_rng(seed)
    n_documents = next(iter(cells.values())).shape[1]
    documents = np.vstack([np.ones(n_documents), generator.multinomial(n_documents, np.full(n_documents, 1 / n_documents), draws)])
    by_size: dict[int, Numbers] = {}
    for cell in cells.values():
        n = len(cell)
        if n not in by_size:
            by_size[n] = np.vstack([np.ones(n), generator.multinomial(n, np.full(n, 1 / n), draws)])
    return {key: weighted_means(cell, by_size[len(cell)], documents) for key, cell in cells.items()}


# ---- redundancy and coverage


ENOUGH = 0.9  # of what the full set unlearns; ours
FORETOLD = tuple(f"{what}_by_{predictor}" for what in ("error", "enough") for predictor in PREDICTORS.values())
PREDICTED = {"method": pl.String, "bed": pl.String, "trials": pl.Int64, "enough": pl.Float64, **dict.fromkeys(FORETOLD, pl.Float64)}


def predicted(run: Run) -> pl.DataFrame:
    """How well numbers that are known before training foretell a bed from the other beds of its method, columns PREDICTED.

    The share of a trial is (base - x) / (base - full), means over documents, full the mean of the bed's full-set trials. For each predictor
    a non-decreasing curve (isotonic regression, least squares) is fitted to the other beds; `error_by_*` is its mean distance to the
    trials of this one. `enough` is the smallest tried ratio of random documents whose mean share is ENOUGH or more (1: no smaller one),
    `enough_by_*` the one that is foretold. Null: the predictor is not known of this bed (the facts of a real book), or of no other.
    """
    rows = []
    for (method,), mine in unlearned_shares(run).group_by(["method"], maintain_order=True):
        for (bed,), left in mine.group_by(["bed"], maintain_order=True):
            drawn = left.filter(pl.col("select.name") == "random")
            row: dict[str, Any] = {"method": method, "bed": bed, "trials": left.height, "enough": _smallest(drawn, drawn["share"].to_numpy())}
            for predictor, name in PREDICTORS.items():
                others = mine.filter(pl.col("bed") != bed, pl.col(predictor).is_not_null())
                if others.height and left[predictor].null_count() == 0:
                    row[f"error_by_{name}"] = float(np.abs(_foretold(others, left, predictor) - left["share"].to_numpy()).mean())
                    row[f"enough_by_{name}"] = _smallest(drawn, _foretold(others, drawn, predictor))
            rows.append(row)
    return pl.DataFrame(rows, schema=PREDICTED)


def unlearned_shares(run: Run) -> pl.DataFrame:
    """Grid trials of ratio < 1 with `method`, `bed`, selector, the three predictors and `share` (1: as much as the full set), beds in order."""
    trials = with_beds(trial_table(run)).with_columns(pl.concat_str(METHOD, separator=" + ").alias("method"))
    base = trials.filter(pl.col("role") == "base").group_by("bed").agg(pl.col("forgetting").mean().alias("base"))
    grid = trials.filter(pl.col("role") == "grid", pl.col("forgetting").is_not_null()).unique("trial_id", maintain_order=True)
    full = grid.filter(pl.col("select.ratio") == 1).group_by("method", "bed").agg(pl.col("forgetting").mean().alias("full"))
    parts = grid.filter(pl.col("select.ratio") < 1).join(base, on="bed").join(full, on=["method", "bed"])
    share = (pl.col("base") - pl.col("forgetting")) / (pl.col("base") - pl.col("full"))
    ordered = parts.sort("data.name", "model.size", "data.redundancy", "method", descending=[False, True, False, False])
    return ordered.select("trial_id", "method", "bed", "select.name", "train.seed", *PREDICTORS, share.alias("share"))


def with_beds(trials: pl.DataFrame) -> pl.DataFrame:
    """The trials with a column `bed`: `domain, 20 per fact`, `domain, 20 per fact, small model`, or the corpus by the last part of its path."""
    place = pl.col("data.path").fill_null("").str.strip_chars_end("/").str.split("/").list.last()
    per_fact = _where(pl.col("data.name") == "domain", pl.concat_str(pl.lit(", "), "data.redundancy", pl.lit(" per fact")))
    model = _where(pl.col("model.size") != "tiny", pl.concat_str(pl.lit(", "), "model.size", pl.lit(" model")))
    named = pl.when(place != "").then(place).otherwise(pl.col("data.name"))
    return trials.with_columns(pl.concat_str(named, per_fact, model).alias("bed"))


def _where(condition: pl.Expr, words: pl.Expr) -> pl.Expr:
    return pl.when(condition).then(words).otherwise(pl.lit(""))


def _foretold(others: pl.DataFrame, left: pl.DataFrame, predictor: str) -> Numbers:
    """The shares of the left-out trials, from the curve of the others."""
    curve = others.group_by(predictor).agg(pl.col("share").mean(), pl.len()).sort(predictor)
    heights = isotonic_regression(curve["share"].to_numpy(), weights=curve["len"].to_numpy()).x
    return np.asarray(np.interp(left[predictor].to_numpy(), curve[predictor].to_numpy(), heights))


def _smallest(trials: pl.DataFrame, shares: Numbers) -> float:
    """The smallest ratio whose mean share is ENOUGH or more; 1 where there is none, since the full set's share is 1."""
    means = trials.select("select.ratio").with_columns(pl.Series("share", shares)).group_by("select.ratio").agg(pl.col("share").mean())
    return float(means.filter(pl.col("share") >= ENOUGH)["select.ratio"].min() or 1.0)  # type: ignore[arg-type]


BEATEN = {"method": pl.String, "bed": pl.String, "ratio": pl.Float64, "seeds": pl.Int64, **ESTIMATE, "p": pl.Float64}


def against_random(run: Run, selector: str) -> pl.DataFrame:
    """Per method, bed and ratio with both selectors: forgetting of `selector` minus random's, columns BEATEN; under 0 it forgets more.

    Paired by document, two-way clustered (`statistics.difference`); low and high are mean -/+ 1.96 standard errors, p is not corrected.
    """
    row_of, values = matrix_of(run, "forget", objective_of(run.experiment).forgetting, "")
    grid = with_beds(placed_trials(run)).filter(pl.col("role") == "grid", pl.col("trial_id").is_in(list(row_of))).unique("trial_id")
    rows = []
    for key, mine in grid.sort("data.redundancy", "train.seed", "trial_id").group_by([*METHOD, "bed", "select.ratio"], maintain_order=True):
        cells = [values[[row_of[t] for t in mine.filter(pl.col("select.name") == name)["trial_id"]]] for name in (selector, "random")]
        if key[-1] == 1 or not all(len(cell) for cell in cells):
            continue
        gap = difference(*cells)
        ends = {"low": gap.mean - 1.96 * gap.stderr, "high": gap.mean + 1.96 * gap.stderr}
        place = {"method": f"{key[0]} + {key[1]}", "bed": key[2], "ratio": key[3], "seeds": gap.n_seeds}
        rows.append(place | {"mean": gap.mean, **ends, "p": paired_p(gap)})
    return pl.DataFrame(rows, schema=BEATEN).sort("method", "ratio", maintain_order=True)


# ---- defences


BEYOND_PLAIN = ("beyond_plain", "beyond_low", "beyond_high")
LEFT = ("left", "left_low", "left_high")
ARMS = {"arm": pl.String, "attack": pl.String, "trials": pl.Int64, **dict.fromkeys((*LEFT, *ESTIMATE, *BEYOND_PLAIN), pl.Float64)}


def survived(run: Run, *, draws: int = DRAWS, seed: int = 0) -> pl.DataFrame:
    """What every arm has left before and after every attack, and how much more that is than plain's after it, columns ARMS.

    In the attack's own metric (the objective's), not as recovered fractions: an arm that forgot little has little to recover. Means over the
    arm's attacked trials with percentile bootstraps over them; `beyond_plain` over 0: the attacker has more in the end than of plain.
    """
    table = recovery_table(run).filter(pl.col("after").is_not_null())
    trials = run.trials.collect()
    table = table.with_columns(
        pl.col("attacked").replace_strict({r["trial_id"]: arm_of(r) for r in trials.to_dicts()}, default="").alias("arm"),
        pl.col("setting").map_elements(plain_setting, return_dtype=pl.String).alias("attack"),
    )
    generator, rows = np.random.default_rng(seed), []
    for (attack,), mine in table.group_by(["attack"], maintain_order=True):
        arms = {str(arm[0]): rows_ for arm, rows_ in mine.group_by(["arm"], maintain_order=True)}
        after = {arm: _trial_draws(rows_["after"].to_numpy(), generator, draws) for arm, rows_ in arms.items()}
        for arm, values in after.items():
            left = _estimate(_trial_draws(arms[arm]["unlearned"].to_numpy(), generator, draws))
            beyond = _estimate(values - after["plain"]) if "plain" in after and arm != "plain" else dict.fromkeys(ESTIMATE)
            named = dict(zip((*LEFT, *BEYOND_PLAIN), (*left.values(), *beyond.values()), strict=True))
            rows.append({"arm": arm, "attack": attack, "trials": arms[arm].height, **_estimate(values), **named})
    return pl.DataFrame(rows, schema=ARMS)


def arm_of(row: Mapping[str, Any]) -> str:
    """`plain`, `sam`, `token.cap 160`, `5 % of the documents by random`: what a trial of experiments/defences.py has that plain NPO has not."""
    said = [str(row.get("method.wrappers") or "")]
    said += [f"token.cap {row['token.cap']:g}"] if row.get("token.cap") else []
    said += [f"token.keep {row['token.keep']:g}"] if (row.get("token.keep") or 1) < 1 else []
    if (row.get("select.ratio") or 1) < 1:
        said.append(f"{100 * row['select.ratio']:g} % of the documents by {row['select.name']}")
    return ", ".join(filter(None, said)) or "plain"


# ---- inside


def _trial_draws(values: Numbers, generator: np.random.Generator, draws: int) -> Numbers:
    """The mean, then bootstrap means over the trials."""
    drawn = values[generator.integers(0, len(values), (draws, len(values)))].mean(1)
    return np.concatenate([[values.mean()], drawn])


def _estimate(values: Numbers) -> dict[str, float | None]:
    """The first value, and percentiles of the others."""
    low, high = np.nanquantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": float(values[0]), "low": float(low), "high": float(high)}


def in_words(row: Mapping[str, Any], *, names: Sequence[str] = ("mean", "low", "high")) -> str:
    """`+0.12 [0.08, 0.16]`."""
    mean, low, high = (row[name] for name in names)
    return "-" if mean is None else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
