"""What the experiments on steps, redundancy, attacks, words, coresets' weights and defences ask,
answered from their rows. Polars, numpy and scipy.

The statistics are ours; each says what would refute the hypothesis of its experiment file.
Intervals are 95% by Student's t (`two_way`): over seeds and documents where cells are compared,
over trials where trials are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.analysis.attribution import damage_table, emphasis_table
from rayunlearn.analysis.hypothesis_tests import difference, paired_p
from rayunlearn.analysis.intervals import LEVEL, Numbers, bounds_of, mean_interval
from rayunlearn.analysis.labels import format_coreset_size, format_interval
from rayunlearn.analysis.mode_connectivity import connectivity_table
from rayunlearn.analysis.recovery import plain_setting, recovery_table
from rayunlearn.analysis.run_frames import (
    objective_of,
    trial_table,
    trials_with_roles,
    values_by_trial,
)
from rayunlearn.analysis.two_way import Estimate, Groups, combined_estimate
from rayunlearn.lazy import scipy
from rayunlearn.storage.run import Run

METHOD = ("method.forget", "method.retain")
LENGTH = (*METHOD, "select.ratio", "train.length")
ESTIMATE = {"mean": pl.Float64, "low": pl.Float64, "high": pl.Float64}
GAPS = {"method": pl.String, "gap": pl.String, "pairs": pl.Int64, **ESTIMATE}
LENGTHS = {"method": pl.String, "ratio": pl.Float64, "steps": pl.Float64, **ESTIMATE}

# column to its name in tables
PREDICTORS = {"coverage": "facts", "keyword_coverage": "keywords", "select.ratio": "ratio"}


def step_gaps(run: Run) -> pl.DataFrame:
    """Per method the mean distance of a coreset's forgetting to the full set's, columns GAPS.

    `equal steps`: against the full set after as many steps; `equal epochs`: against the full set
    after as many passes over its own documents, steps / ratio. `epochs - steps` is their
    difference: over 0, steps are what counts. Over the (ratio, steps) for which both partners were
    run. `full set, last - first`: its forgetting at the most steps minus that at the fewest of at
    least one epoch: under 0, it goes on past one epoch.

    A distance has the sign of its mean difference in its interval, so where cells are equal but for
    chance it is too large by chance, and its interval does not know it.
    """
    cells, epoch = _length_cells(run), _epoch(run)
    rows: list[dict[str, Any]] = []
    for method in dict.fromkeys(method for method, _, _ in cells.values):
        of_method = {
            (r, steps): cell for (m, r, steps), cell in cells.values.items() if m == method
        }
        pairs = [
            (r, s)
            for r, s in of_method
            if r < 1 and (1.0, s) in of_method and (1.0, _same_epochs(s, r)) in of_method
        ]
        if pairs:
            steps = _distances(of_method, {pair: (1.0, pair[1]) for pair in pairs})
            epochs = _distances(
                of_method, {pair: (1.0, _same_epochs(pair[1], pair[0])) for pair in pairs}
            )
            gap = _summed([*epochs.items(), *((key, -weight) for key, weight in steps.items())])
            for name, weights in (
                ("equal steps", steps),
                ("equal epochs", epochs),
                ("epochs - steps", gap),
            ):
                result = _estimate(_weighted(of_method, weights, cells.groups))
                rows.append({"method": method, "gap": name, "pairs": len(pairs), **result})
        full_set = sorted(s for r, s in of_method if r == 1 and s >= epoch)
        if len(full_set) > 1:
            weights = {(1.0, full_set[-1]): 1.0, (1.0, full_set[0]): -1.0}
            result = _estimate(_weighted(of_method, weights, cells.groups))
            rows.append({"method": method, "gap": "full set, last - first", "pairs": 1, **result})
    return pl.DataFrame(rows, schema=GAPS)


def step_lags(run: Run) -> pl.DataFrame:
    """Columns method, ratio, steps and ESTIMATE: forgetting of a coreset minus that of the full set
    after the most steps of both; over 0 it lags.
    """
    rows = []
    cells = _length_cells(run)
    for method in dict.fromkeys(method for method, _, _ in cells.values):
        of_method = {
            (r, steps): cell for (m, r, steps), cell in cells.values.items() if m == method
        }
        for ratio in sorted({ratio for ratio, _ in of_method if ratio < 1}):
            steps = max(
                (s for r, s in of_method if r == ratio and (1.0, s) in of_method), default=None
            )
            if steps is not None:
                weights = {(ratio, steps): 1.0, (1.0, steps): -1.0}
                result = _estimate(_weighted(of_method, weights, cells.groups))
                rows.append({"method": method, "ratio": ratio, "steps": steps, **result})
    return pl.DataFrame(rows, schema=LENGTHS)


def length_curves(run: Run) -> pl.DataFrame:
    """Columns method, ratio, steps and ESTIMATE: forgetting after that many steps, with its
    interval over seeds and documents.
    """
    cells = _length_cells(run)
    bounds = bounds_of(run.experiment, objective_of(run.experiment).forgetting)
    rows = []
    for (method, ratio, steps), cell in cells.values.items():
        interval = mean_interval(cell, groups=cells.groups, bounds=bounds)
        result = {"mean": interval.mean, "low": interval.low, "high": interval.high}
        rows.append({"method": method, "ratio": ratio, "steps": steps, **result})
    return pl.DataFrame(rows, schema=LENGTHS)


def _same_epochs(steps: float, ratio: float) -> float:
    return float(round(steps / ratio))


def _epoch(run: Run) -> float:
    """Steps that one pass over the full set takes."""
    row = (
        run.trials.filter(pl.col("stage") == "unlearned")
        .select(pl.col("n_forget").max(), pl.col("train.batch_size").min())
        .collect()
        .row(0)
    )
    return float(row[0]) / float(row[1])


# (ratio, steps) of a cell
Length = tuple[float, float]


@dataclass(frozen=True)
class LengthCells:
    """(method, ratio, steps) -> (seeds, documents) of forgetting, seeds in order so that cells
    share them, and the groups of the documents.
    """

    values: Mapping[tuple[str, float, float], Numbers]
    groups: Groups


def _length_cells(run: Run) -> LengthCells:
    left = values_by_trial(run, "forget", objective_of(run.experiment).forgetting, "")
    grid = (
        trials_with_roles(run)
        .filter(pl.col("role") == "grid", pl.col("trial_id").is_in(list(left.row_of)))
        .unique("trial_id")
    )
    result = {}
    for key, rows in grid.sort(*LENGTH, "train.seed").group_by(LENGTH, maintain_order=True):
        forget, retain, ratio, steps = key
        result[f"{forget} + {retain}", float(str(ratio)), float(str(steps))] = left.rows(
            rows["trial_id"].to_list()
        )
    # a method's cells one after another, in the order in which methods come
    methods = list(dict.fromkeys(method for method, _, _ in result))
    ordered = sorted(result, key=lambda key: methods.index(key[0]))
    return LengthCells({key: result[key] for key in ordered}, left.groups)


def _distances(
    cells: Mapping[Length, Numbers], partner: Mapping[Length, Length]
) -> dict[Length, float]:
    """Weights of the cells in the mean over the pairs of |cell - its partner|: signs of the mean
    differences.
    """
    mean = {key: float(np.nanmean(cell)) for key, cell in cells.items()}
    signed = []
    for one, other in partner.items():
        sign = 1.0 if mean[one] >= mean[other] else -1.0
        signed += [(one, sign / len(partner)), (other, -sign / len(partner))]
    return _summed(signed)


def _summed(weights: Iterable[tuple[Length, float]]) -> dict[Length, float]:
    result: dict[Length, float] = {}
    for key, weight in weights:
        result[key] = result.get(key, 0.0) + weight
    return result


def _weighted(
    cells: Mapping[Length, Numbers], weights: Mapping[Length, float], groups: Groups
) -> Estimate:
    """Weighted sum of the cells' means. Cells with as many seeds have the same ones and are added
    up seed by seed; others have seeds of their own.
    """
    by_size: dict[int, Numbers] = {}
    for key, weight in weights.items():
        cell = weight * cells[key]
        by_size[len(cell)] = by_size.get(len(cell), 0.0) + cell
    return combined_estimate(list(by_size.values()), groups=groups)


# of what the full set unlearns; ours
ENOUGH = 0.9

PREDICTED_COLUMNS = tuple(
    f"{what}_by_{predictor}" for what in ("error", "enough") for predictor in PREDICTORS.values()
)

PREDICTED = {
    "method": pl.String,
    "dataset": pl.String,
    "trials": pl.Int64,
    "enough": pl.Float64,
    **dict.fromkeys(PREDICTED_COLUMNS, pl.Float64),
}


def cross_dataset_prediction(run: Run) -> pl.DataFrame:
    """How well numbers that are known before training predict a dataset from the other datasets of
    its method, columns PREDICTED.

    The share of a trial is (base - x) / (base - full), means over documents, full the mean of the
    dataset's full-set trials. For each predictor a non-decreasing curve (isotonic regression, least
    squares) is fitted to the other datasets; `error_by_*` is its mean distance to the trials of
    this one. `enough` is the smallest tried ratio of random documents whose mean share is ENOUGH or
    more (1: no smaller one), `enough_by_*` the one that is predicted. Null: the predictor is not
    known of this dataset (the facts of a real book), or of no other.
    """
    rows = []
    for (method,), of_method in unlearned_shares(run).group_by(["method"], maintain_order=True):
        for (dataset,), left in of_method.group_by(["dataset"], maintain_order=True):
            drawn = left.filter(pl.col("select.name") == "random")
            row: dict[str, Any] = {
                "method": method,
                "dataset": dataset,
                "trials": left.height,
                "enough": _smallest(drawn, drawn["share"].to_numpy()),
            }
            for predictor, name in PREDICTORS.items():
                others = of_method.filter(
                    pl.col("dataset") != dataset, pl.col(predictor).is_not_null()
                )
                if others.height and left[predictor].null_count() == 0:
                    row[f"error_by_{name}"] = float(
                        np.abs(
                            _isotonic_prediction(others, left, predictor) - left["share"].to_numpy()
                        ).mean()
                    )
                    row[f"enough_by_{name}"] = _smallest(
                        drawn, _isotonic_prediction(others, drawn, predictor)
                    )
            rows.append(row)
    return pl.DataFrame(rows, schema=PREDICTED)


def unlearned_shares(run: Run) -> pl.DataFrame:
    """Grid trials of ratio < 1 with `method`, `dataset`, selector, the three predictors and `share`
    (1: as much as the full set), datasets in order.
    """
    trials = with_datasets(trial_table(run)).with_columns(
        pl.concat_str(METHOD, separator=" + ").alias("method")
    )
    base = (
        trials.filter(pl.col("role") == "base")
        .group_by("dataset")
        .agg(pl.col("forgetting").mean().alias("base"))
    )
    grid = trials.filter(pl.col("role") == "grid", pl.col("forgetting").is_not_null()).unique(
        "trial_id", maintain_order=True
    )
    full = (
        grid.filter(pl.col("select.ratio") == 1)
        .group_by("method", "dataset")
        .agg(pl.col("forgetting").mean().alias("full"))
    )
    parts = (
        grid.filter(pl.col("select.ratio") < 1)
        .join(base, on="dataset")
        .join(full, on=["method", "dataset"])
    )
    share = (pl.col("base") - pl.col("forgetting")) / (pl.col("base") - pl.col("full"))
    ordered = parts.sort(
        "data.name",
        "model.size",
        "data.redundancy",
        "method",
        descending=[False, True, False, False],
    )
    return ordered.select(
        "trial_id",
        "method",
        "dataset",
        "select.name",
        "train.seed",
        *PREDICTORS,
        share.alias("share"),
    )


def with_datasets(trials: pl.DataFrame) -> pl.DataFrame:
    """The trials with a column `dataset`: `domain, 20 per fact`, `domain, 20 per fact, small
    model`, or the corpus by the last part of its path.
    """
    place = pl.col("data.path").fill_null("").str.strip_chars_end("/").str.split("/").list.last()
    per_fact = _text_if(
        pl.col("data.name") == "domain",
        pl.concat_str(pl.lit(", "), "data.redundancy", pl.lit(" per fact")),
    )
    model = _text_if(
        pl.col("model.size") != "tiny", pl.concat_str(pl.lit(", "), "model.size", pl.lit(" model"))
    )
    named = pl.when(place != "").then(place).otherwise(pl.col("data.name"))
    return trials.with_columns(pl.concat_str(named, per_fact, model).alias("dataset"))


def _text_if(condition: pl.Expr, words: pl.Expr) -> pl.Expr:
    return pl.when(condition).then(words).otherwise(pl.lit(""))


def _isotonic_prediction(others: pl.DataFrame, left: pl.DataFrame, predictor: str) -> Numbers:
    """The shares of the left-out trials, from the curve of the others."""
    curve = others.group_by(predictor).agg(pl.col("share").mean(), pl.len()).sort(predictor)
    heights = scipy.optimize.isotonic_regression(
        curve["share"].to_numpy(), weights=curve["len"].to_numpy()
    ).x
    return np.asarray(np.interp(left[predictor].to_numpy(), curve[predictor].to_numpy(), heights))


def _smallest(trials: pl.DataFrame, shares: Numbers) -> float:
    """The smallest ratio whose mean share is ENOUGH or more; 1 where there is none, since the full
    set's share is 1.
    """
    means = (
        trials.select("select.ratio")
        .with_columns(pl.Series("share", shares))
        .group_by("select.ratio")
        .agg(pl.col("share").mean())
    )
    enough = means.filter(pl.col("share") >= ENOUGH)["select.ratio"].to_list()
    return min(enough, default=1.0)


AGAINST_RANDOM_SCHEMA = {
    "method": pl.String,
    "dataset": pl.String,
    "ratio": pl.Float64,
    "seeds": pl.Int64,
    **ESTIMATE,
    "p": pl.Float64,
}


def against_random(run: Run, selector: str) -> pl.DataFrame:
    """Per method, dataset and ratio with both selectors: forgetting of `selector` minus random's,
    columns BEATEN; under 0 it forgets more.

    Paired by document, two-way clustered (`hypothesis_tests.difference`); low to high is the
    interval by the t of p, which is not corrected.
    """
    left = values_by_trial(run, "forget", objective_of(run.experiment).forgetting, "")
    grid = (
        with_datasets(trials_with_roles(run))
        .filter(pl.col("role") == "grid", pl.col("trial_id").is_in(list(left.row_of)))
        .unique("trial_id")
    )
    rows = []
    for key, of_method in grid.sort("data.redundancy", "train.seed", "trial_id").group_by(
        [*METHOD, "dataset", "select.ratio"], maintain_order=True
    ):
        cells = [
            left.rows(of_method.filter(pl.col("select.name") == name)["trial_id"].to_list())
            for name in (selector, "random")
        ]
        if key[-1] == 1 or not all(len(cell) for cell in cells):
            continue
        gap = difference(*cells, groups=left.groups)
        place = {
            "method": f"{key[0]} + {key[1]}",
            "dataset": key[2],
            "ratio": key[3],
            "seeds": gap.n_seeds,
        }
        rows.append(place | _estimate(gap) | {"p": paired_p(gap)})
    return pl.DataFrame(rows, schema=AGAINST_RANDOM_SCHEMA).sort(
        "method", "ratio", maintain_order=True
    )


RECOVERY_BY_METHOD_SCHEMA = {
    "method": pl.String,
    "attack": pl.String,
    "models": pl.Int64,
    **ESTIMATE,
    "gold": pl.Float64,
}


def recovery_by_method(run: Run) -> pl.DataFrame:
    """Per method and attack the recovered fraction, mean over its attacked models with a t interval
    over them, columns GIVEN.

    `gold`: what the same attack adds on the gold model, as a share of what unlearning had taken,
    mean over the same models.
    """
    gold = (pl.col("gold_rise") / (pl.col("base") - pl.col("unlearned"))).alias("gold_share")
    attack = pl.col("setting").map_elements(plain_setting, return_dtype=pl.String).alias("attack")
    table = _recoveries(run).with_columns(attack, gold)
    rows = []
    for (method, name), of_method in table.sort("method", "attack", "attacked").group_by(
        ["method", "attack"], maintain_order=True
    ):
        result = _estimate(_over_trials(of_method["recovered"]))
        rows.append(
            {
                "method": method,
                "attack": name,
                "models": of_method.height,
                **result,
                "gold": of_method["gold_share"].mean(),
            }
        )
    return pl.DataFrame(rows, schema=RECOVERY_BY_METHOD_SCHEMA)


def recovery_sentences(run: Run) -> list[str]:
    """Per method what attacks recover beyond what they tell by themselves; then which method
    recovers more, where intervals lie apart.
    """
    table = recovery_by_method(run)
    sentences = []
    for (method,), of_method in table.group_by(["method"], maintain_order=True):
        back = of_method.filter(
            pl.col("low") > pl.max_horizontal(pl.col("gold").fill_null(0.0), 0.0)
        ).sort("mean", descending=True)
        named = ", ".join(f"{row['attack']} {in_words(row)}" for row in back.iter_rows(named=True))
        half = (
            "one recovers half"
            if back.filter(pl.col("low") >= 0.5).height
            else "none is shown to recover half"
        )
        sentences.append(
            f"{method}: of {of_method.height} attacks {back.height} recover a share of what was"
            f" taken, more than they add on gold{': ' + named if named else ''}; {half} (means over"
            f" {max(of_method['models'].to_list())} models)."
        )
    pairs = combinations(table["method"].unique(maintain_order=True).to_list(), 2)
    return [*sentences, *(_recovers_more(table, one, other) for one, other in pairs)]


def _recovers_more(table: pl.DataFrame, one: str, other: str) -> str:
    """Under which attacks one method recovers something and more than the other, by intervals
    that lie apart.
    """
    words = []
    for first, second in ((one, other), (other, one)):
        both = table.filter(pl.col("method") == first).join(
            table.filter(pl.col("method") == second), on="attack", suffix="_second"
        )
        more = both.filter(pl.col("low") > pl.col("high_second"), pl.col("low") > 0)[
            "attack"
        ].to_list()
        words += [f"{first} recovers more than {second} under {', '.join(more)}"] if more else []
    return (
        "; ".join(words)
        if words
        else f"{one} and {other} are not significantly different under any attack"
    ) + " (intervals apart, not corrected)."


# forgotten on average: under it a share of them says nothing
FEW_QUESTIONS = 5

# of the retain questions: nine tenths are to stay (experiments/dilemma.py)
HARM = 0.1


def dilemma_sentences(run: Run) -> list[str]:
    """Per unlearned cell: whether key words recover more than random words do, whether the
    retain side was lost, which words paid.
    """
    asked, damage = emphasis_table(run), damage_table(run)
    if not (asked.height and damage.height):
        return []
    sentences = []
    for row in damage.filter(pl.col("role") == "grid").iter_rows(named=True):
        forms = asked.filter(pl.col("cell") == row["cell"])
        questions = float(forms["forgotten"].to_numpy().mean()) if forms.height else 0.0
        more = forms.filter(pl.col("net_low") > 0)
        if questions < FEW_QUESTIONS:
            outcome = f"{questions:.1f} questions forgotten, too few to ask what comes back"
        elif more.height:
            named = ", ".join(
                f"{form['form']} {format_interval(form, 'net')}"
                for form in more.iter_rows(named=True)
            )
            outcome = f"key words recover more than random words: {named}"
        else:
            most = max(forms["net"].to_list())
            outcome = (
                f"key words recover no more than random words in any of {forms.height} forms (at"
                f" most {most:+.2f})"
            )
        sentences.append("; ".join((f"{row['cell']}: {outcome}", *_cost_sentences(row))) + ".")
    return sentences


def _cost_sentences(row: Mapping[str, Any]) -> list[str]:
    """Of a row of `damage_table`: the retain questions lost, then function words beside keywords,
    where each was measured.
    """
    words = []
    if row["destroyed"] is not None:
        low, high = row["destroyed_low"], row["destroyed_high"]
        lost = (
            "retain is not decided"
            if low is None or low <= HARM < high
            else "retain is lost"
            if low > HARM
            else "retain stays"
        )
        words.append(
            f"{lost} ({format_interval(row, 'destroyed')} of its questions lost,"
            f" {format_interval(row, 'destroyed_untouched')} of untouched)"
        )
    if row["against_keywords_forget"] is not None:
        function, keywords = (
            -float(row[f"{kind}_forget"]) for kind in ("function_words", "keywords")
        )
        spared = (
            "they were spared"
            if (row["against_keywords_forget_low"] or 0) > 0
            else "they are not shown to be spared"
        )
        words.append(
            f"in forget documents function words fell by {function:.1f} nats and keywords by"
            f" {keywords:.1f}: {spared}"
        )
    return words


# in answer probability (experiments/faithfulness.py)
BARRIER = 0.1


def faithfulness_sentences(run: Run) -> list[str]:
    """Per coreset: the barrier to the full-set model, agreement with it, and which attacks recover
    more of it than of the full set's models.
    """
    table = connectivity_table(run)
    if not table.height:
        return []
    attacks = _recovered_by_cell(run)
    sentences = []
    for row in table.filter(pl.col("select.ratio") < 1).iter_rows(named=True):
        low, high = row["barrier_forget_low"], row["barrier_forget_high"]
        outcome = (
            "not decided"
            if low is None or low <= BARRIER < high
            else "a barrier: refuted"
            if low > BARRIER
            else "no barrier"
        )
        of_method, full = ((row["method"], ratio) for ratio in (row["select.ratio"], 1.0))
        measured = [name for name, cells in attacks.items() if of_method in cells and full in cells]
        more = [name for name in measured if _above(attacks[name][of_method], attacks[name][full])]
        under = (
            f"; of {len(measured)} attacks {len(more)} recover more than of the full set's"
            f" models{': ' + ', '.join(more) if more else ''}"
        )
        size = format_coreset_size(row["select.name"], row["select.ratio"])
        sentences.append(
            f"{row['method']}, {size}: the line to the full-set model lies"
            f" {format_interval(row, 'barrier_forget')} over the straight one in forgetting:"
            f" {outcome}; it answers {format_interval(row, 'agreement')} of the forget questions as"
            f" that model does{under if measured else ''}."
        )
    return sentences


def _recovered_by_cell(run: Run) -> dict[str, dict[tuple[str, float], dict[str, Any]]]:
    """Attack -> (method, ratio) -> the mean recovered fraction of its models with its interval over
    them.
    """
    table = _recoveries(run).sort("setting", "method", "select.ratio", "attacked")
    result: dict[str, dict[tuple[str, float], dict[str, Any]]] = {}
    for (attack, method, ratio), rows in table.group_by(
        ["setting", "method", "select.ratio"], maintain_order=True
    ):
        cell = _estimate(_over_trials(rows["recovered"]))
        result.setdefault(str(attack), {})[str(method), float(str(ratio))] = cell
    return result


def _above(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the interval of one lies above the other's; not where either has none."""
    return None not in (one["low"], other["high"]) and one["low"] > other["high"]


BEYOND_PLAIN = ("beyond_plain", "beyond_low", "beyond_high")
LEFT = ("left", "left_low", "left_high")

RESIDUAL_SCHEMA = {
    "arm": pl.String,
    "attack": pl.String,
    "trials": pl.Int64,
    **dict.fromkeys((*LEFT, *ESTIMATE, *BEYOND_PLAIN), pl.Float64),
}


def residual_after_attack(run: Run) -> pl.DataFrame:
    """What every arm has left before and after every attack, and how much more that is than plain's
    after it, columns ARMS.

    In the attack's own metric (the objective's), not as recovered fractions: an arm that forgot
    little has little to recover. Means over the arm's attacked trials with t intervals over them,
    Welch's for the difference; `beyond_plain` over 0: the attacker has more in the end than of
    plain.
    """
    table = recovery_table(run).filter(pl.col("after").is_not_null())
    trials = run.trials.collect()
    table = table.with_columns(
        pl.col("attacked")
        .replace_strict({r["trial_id"]: arm_of(r) for r in trials.to_dicts()}, default="")
        .alias("arm"),
        pl.col("setting").map_elements(plain_setting, return_dtype=pl.String).alias("attack"),
    )
    rows = []
    for (attack,), of_method in table.group_by(["attack"], maintain_order=True):
        arms = {
            str(arm[0]): rows_ for arm, rows_ in of_method.group_by(["arm"], maintain_order=True)
        }
        after = {arm: rows_["after"] for arm, rows_ in arms.items()}
        for arm, values in after.items():
            left = _estimate(_over_trials(arms[arm]["unlearned"]))
            beyond = (
                _estimate(_over_trials(values, -after["plain"]))
                if "plain" in after and arm != "plain"
                else dict.fromkeys(ESTIMATE)
            )
            named = dict(
                zip((*LEFT, *BEYOND_PLAIN), (*left.values(), *beyond.values()), strict=True)
            )
            rows.append(
                {
                    "arm": arm,
                    "attack": attack,
                    "trials": arms[arm].height,
                    **_estimate(_over_trials(values)),
                    **named,
                }
            )
    return pl.DataFrame(rows, schema=RESIDUAL_SCHEMA)


def arm_of(row: Mapping[str, Any]) -> str:
    """`plain`, `sam`, `token.cap 160`, `5% of the documents by random`: what a trial of
    experiments/defences.py has that plain NPO has not.
    """
    outcome = [str(row.get("method.wrappers") or "")]
    outcome += [f"token.cap {row['token.cap']:g}"] if row.get("token.cap") else []
    outcome += [f"token.keep {row['token.keep']:g}"] if (row.get("token.keep") or 1) < 1 else []
    if (row.get("select.ratio") or 1) < 1:
        outcome.append(f"{100 * row['select.ratio']:g}% of the documents by {row['select.name']}")
    return ", ".join(filter(None, outcome)) or "plain"


def _recoveries(run: Run) -> pl.DataFrame:
    """The attacks that have a recovered fraction, with `method` and `select.ratio` of the model
    they were made on.
    """
    trials = run.trials.select(
        pl.col("trial_id").alias("attacked"),
        pl.concat_str(METHOD, separator=" + ").alias("method"),
        "select.ratio",
    )
    return recovery_table(run).drop_nulls("recovered").join(trials.collect(), on="attacked")


def _over_trials(*values: pl.Series) -> Estimate:
    """Sum of the means of a number per trial, each over trials of its own; trials vary."""
    return combined_estimate([part.to_numpy().reshape(-1, 1) for part in values])


def _estimate(result: Estimate) -> dict[str, float | None]:
    """Mean, low and high; no ends where nothing was drawn twice."""
    low, high = result.ends(LEVEL)
    return {"mean": result.mean, "low": low, "high": high}


def in_words(row: Mapping[str, Any], *, names: Sequence[str] = ("mean", "low", "high")) -> str:
    """`+0.12 [0.08, 0.16]`."""
    mean, low, high = (row[name] for name in names)
    if mean is None:
        return "-"
    return f"{mean:+.3f}" if low is None else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
