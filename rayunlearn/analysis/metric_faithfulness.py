"""Which metric can be believed: does it tell models that have the knowledge from models that never
had it, and is it still right after relearning and after rounding? From Parquet alone.

The meta-evaluation of OpenUnlearning (2506.12618, sec. 4.1). *Faithfulness*: the AUC of a metric
between models trained with the forget set (base) and without it (gold). *R*, relearning: what gold
gains by it over what the unlearned model gains, at most 1; under 1 the unlearned model had hidden
what the metric did not see. *Q*, quantisation: the value before over the value after, at most 1;
under 1 rounding recovers what the metric had called gone. *Robustness* is their harmonic mean.
The paper's equations 2 to 4 are taken as the authors of UDS (2605.24614) restate them: R =
min((gold_after - gold_before) / (own_after - own_before), 1), Q = min(own_before / own_after, 1).

Ours: all values are put on a scale from 0 to 1 where higher is more knowledge (`on_scale`), R and Q
are kept within 0 and 1, and the intervals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.analysis.intervals import LEVEL, Numbers, interval_columns, mean_interval
from rayunlearn.analysis.run_frames import CONTEXT_SECTIONS, means_by, objective_of
from rayunlearn.analysis.two_way import Estimate, score_interval
from rayunlearn.storage.run import Run

FAITHFULNESS_COLUMNS = {
    "AUC": "how well the metric tells models that know from models that never did; 1 is wanted",
    "R": "relearning: what gold gains over what the unlearned model gains, at most 1",
    "Q": "quantisation: value before over value after, at most 1",
    "robustness": "harmonic mean of R and Q",
    "models": "unlearned models that R and Q are over",
}

RELEARNING_NAMES = ("relearning",)
QUANTIZATION_NAMES = (
    "round_to_nearest",
    "four_bit_normal_float",
    "gptq",
    "awq",
    "gptq_by_library",
    "awq_by_library",
)
# attacks that teach nothing of the forget set: base still knows and gold still does not
KNOWLEDGE_KEPT = (*QUANTIZATION_NAMES, "unrelated_training")

# pairs of base and gold: an interval over fewer says nothing
MIN_PAIRS = 3
# an unlearned model counts where it keeps so much of its base's utility (OpenUnlearning's choice)
UTILITY_SHARE = 0.8

MEASURED = ("auc", "relearning", "quantization")
FAITHFULNESS_SCHEMA = {
    "metric": pl.String,
    **{f"{part}{end}": pl.Float64 for part in MEASURED for end in ("", "_low", "_high")},
    "robustness": pl.Float64,
    "knowing": pl.Int64,
    "unknowing": pl.Int64,
    "pairs": pl.Int64,
    "models": pl.Int64,
    "compares": pl.Boolean,
}


@dataclass(frozen=True)
class ModelValues:
    """A model's mean of one metric on split forget, on the scale 0 to 1: `before` any attack and
    `after` one (NaN: none). `pair` numbers the base and gold that it belongs to; `kind` is base,
    gold or unlearned.
    """

    kind: str
    pair: int
    attack: str
    before: float
    after: float


def on_scale(value: float, *, low: float | None, high: float | None, direction: str) -> float:
    """A metric's value on a scale from 0 to 1 where more is more knowledge.

    A fraction stays, or is taken from 1 where less is more knowledge. x from 0 (or 1) up becomes
    1 / (1 + x), or x / (1 + x); a value without bounds its logistic function. An AUC does not see
    the scale; R and Q do. The choice is ours.

    Example:
        >>> on_scale(3.0, low=0.0, high=None, direction="lower")
        0.25
    """
    if low is not None and high is not None:
        share = (value - low) / (high - low)
        return share if direction == "higher" else 1 - share
    # 1 / (1 + e^x) without the overflow of e^x
    logistic = float(np.exp(-np.logaddexp(0.0, value)))
    known = logistic if low is None else 1 / (1 + max(value, 0.0))
    return known if direction == "lower" else 1 - known


def auc_with_interval(
    knowing: Numbers, unknowing: Numbers, n_pairs: int
) -> tuple[float, float, float]:
    """(AUC, low, high): the share of pairs of a knowing and an unknowing model in which the first
    has the higher value, ties half, and its 95% interval.

    The interval takes the largest variance that an AUC A of m and n independent values can have, A
    (1 - A) / min(m, n) (Birnbaum & Klose 1957, for m and n values of any distribution), and is
    Wilson's, with Student's t: it says something where the metric never fails. `n_pairs`: models
    of one base count as one.

    Example: two of four comparisons are right and one is a tie.
        >>> auc_with_interval(np.array([1.0, 3.0]), np.array([1.0, 2.0]), 2)[0]
        0.625
    """
    above = (knowing[:, None] > unknowing[None]).mean()
    ties = (knowing[:, None] == unknowing[None]).mean()
    auc = float(above + ties / 2)
    estimate = Estimate(
        mean=auc,
        variance=auc * (1 - auc) / n_pairs,
        degrees=max(1, n_pairs - 1),
        from_documents=0.0,
        from_seeds=0.0,
        n_documents=n_pairs,
        n_groups=n_pairs,
        n_seeds=1,
        over="pairs",
    )
    return auc, *score_interval(estimate, level=LEVEL, bounds=(0.0, 1.0))


def relearning_robustness(gold: tuple[float, float], unlearned: tuple[float, float]) -> float:
    """R of one model, from (before, after) of gold and of the model, both on the scale.

    min(gold's gain / own gain, 1), and not below 0. 1 where the model gains nothing or no more than
    gold: the metric had not missed anything. The bounds are ours.

    Example: gold gains 0.1 and the model 0.4.
        >>> round(relearning_robustness((0.2, 0.3), (0.1, 0.5)), 6)
        0.25
    """
    gold_gain, own_gain = gold[1] - gold[0], unlearned[1] - unlearned[0]
    if own_gain <= 0 or own_gain <= gold_gain:
        return 1.0
    return max(gold_gain, 0.0) / own_gain


def quantization_robustness(before: float, after: float) -> float:
    """Q of one model on the scale: min(before / after, 1); 1 where nothing is there afterwards.

    Example:
        >>> quantization_robustness(0.1, 0.4), quantization_robustness(0.4, 0.3)
        (0.25, 1.0)
    """
    return min(before / after, 1.0) if after > 0 else 1.0


def forgetting_threshold(knowing: Numbers, unknowing: Numbers) -> float:
    """The value that tells the two pools apart with most models right, halfway between two of them;
    a model at or below it counts as one that does not know. The lowest of equals.

    Example:
        >>> float(forgetting_threshold(np.array([0.9, 0.7]), np.array([0.1, 0.3])))
        0.5
    """
    values = np.unique([*knowing, *unknowing])
    cuts = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    right = [(knowing > cut).sum() + (unknowing <= cut).sum() for cut in cuts]
    return float(cuts[int(np.argmax(right))])


def faithfulness_table(run: Run) -> pl.DataFrame:
    """One row per metric of split forget that says which way more knowledge goes; the highest AUC
    first, then the most robust.

    auc with its interval: models that know (base, and base after attacks that teach nothing of the
    forget set) against those that never did (gold, the same). A metric that compares with base or
    gold (`compares`) is 0 or 1 on them by definition: of it only the attacked ones count. R and Q
    with intervals over pairs of base and gold: means over unlearned models that kept 80% of the
    utility and that the metric itself calls unlearned (at or under the value that tells the pools
    apart best; OpenUnlearning's filters); null where no such model was attacked. models: the
    smaller number of the two. No rows where there are fewer than three pairs.

    Args:
        run: an opened run (`storage.run.open_run`).

    Returns:
        The table, columns `FAITHFULNESS_SCHEMA`.
    """
    described = {row["name"]: row for row in run.experiment.get("metrics", ())}
    pairs = _pairs(run)
    if len(set(pairs.values())) < MIN_PAIRS:
        return pl.DataFrame(schema=FAITHFULNESS_SCHEMA)
    useful = _useful_models(run, pairs)
    rows = []
    for (metric,), part in _values(run).group_by("metric", maintain_order=True):
        about = _described(str(metric), described)
        if about.get("direction"):
            values = _model_values(part, pairs, about)
            row = _row(values, useful, compares=bool(about.get("compares")))
            rows += (
                [{"metric": metric, "compares": bool(about.get("compares"))} | row] if row else []
            )
    table = pl.DataFrame(rows, schema=FAITHFULNESS_SCHEMA)
    return table.sort(
        ["auc", "robustness", "metric"], descending=[True, True, False], nulls_last=True
    )


def _described(metric: str, described: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """What is known of a metric; of the AUC of a membership score what is known of the score."""
    score = metric.removesuffix("_auc")
    if metric in described or score not in described:
        return described.get(metric, {})
    return {**described[score], "low": 0.0, "high": 1.0, "direction": "higher"}


def _pairs(run: Run) -> dict[str, int]:
    """trial -> number of its data and model, for those that have a base and a gold model."""
    # before the first trial has ended there is no such column
    if "stage" not in run.trials.collect_schema():
        return {}
    trials = run.trials.filter(pl.col("status") == "complete").collect()
    names = sorted(n for n in trials.columns if n.startswith(CONTEXT_SECTIONS))
    contexts = {
        row["trial_id"]: tuple(str(row[n]) for n in names)
        for row in trials.select("trial_id", *names).iter_rows(named=True)
    }
    stages = dict(zip(trials["trial_id"], trials["stage"], strict=True))
    both = set[tuple[str, ...]].intersection(
        *(
            {contexts[t] for t, stage in stages.items() if stage == role}
            for role in ("base", "gold")
        )
    )
    numbers = {context: number for number, context in enumerate(sorted(both))}
    return {t: numbers[context] for t, context in contexts.items() if context in numbers}


def _values(run: Run) -> pl.DataFrame:
    """trial_id, metric, kind, attack ('' for none), before, after: means on split forget of every
    model as it is and after each attack, over the documents that the attack asked. A metric of the
    whole corpus (an AUC) is the value that `evals` has.
    """
    forget = pl.col("split") == "forget"
    models = ["base", "gold", "unlearned"]
    keys = ["trial_id", "metric", "doc_id"]
    examples = run.examples.filter(forget).select("stage", "attack", *keys, "value")
    evals = run.evals.filter(forget, pl.col("metric").str.ends_with("_auc")).select(
        "stage", "attack", "trial_id", "metric", pl.lit("").alias("doc_id"), "value"
    )
    rows = pl.concat([examples, evals]).drop_nulls("value")
    before = rows.filter(pl.col("attack") == "none", pl.col("stage").is_in(models)).select(
        *keys, pl.col("stage").alias("kind"), pl.col("value").alias("before")
    )
    attacks = run.attacks.select("trial_id", "attacked", "setting").unique()
    after = (
        rows.filter(pl.col("attack") != "none")
        .join(attacks, on="trial_id")
        .select(pl.col("attacked").alias("trial_id"), "setting", "metric", "doc_id", "value")
        .rename({"value": "after"})
    )
    attacked = means_by(
        before.join(after, on=keys), ("trial_id", "metric", "kind", "setting"), ("before", "after")
    )
    plain = means_by(before, ("trial_id", "metric", "kind"), ("before",)).with_columns(
        pl.lit("").alias("setting"), pl.lit(None, dtype=pl.Float64).alias("after")
    )
    columns = ["trial_id", "metric", "kind", "setting", "before", "after"]
    return pl.concat([plain.select(columns), attacked.select(columns)]).sort(columns[:4])


def _model_values(
    part: pl.DataFrame, pairs: Mapping[str, int], about: Mapping[str, Any]
) -> dict[str, list[ModelValues]]:
    """trial -> its values of one metric, on the scale."""
    values: dict[str, list[ModelValues]] = {}
    how = {name: about.get(name) for name in ("low", "high")}
    direction = str(about["direction"])
    for row in part.iter_rows(named=True):
        if row["trial_id"] in pairs:
            before, after = (
                np.nan if row[side] is None else on_scale(row[side], **how, direction=direction)
                for side in ("before", "after")
            )
            name = row["setting"].split(" ")[0]
            model = ModelValues(row["kind"], pairs[row["trial_id"]], name, before, after)
            values.setdefault(row["trial_id"], []).append(model)
    return values


def _row(
    values: Mapping[str, Sequence[ModelValues]], useful: set[str], *, compares: bool
) -> dict[str, Any]:
    models = [model for several in values.values() for model in several]
    knowing, unknowing = (_pool(models, kind, compares=compares) for kind in ("base", "gold"))
    n_pairs = min(len(knowing[1]), len(unknowing[1]))
    if n_pairs < MIN_PAIRS:
        return {}
    auc, low, high = auc_with_interval(knowing[0], unknowing[0], n_pairs)
    cut = forgetting_threshold(knowing[0], unknowing[0])
    judged = [
        model
        for trial in useful & values.keys()
        for model in values[trial]
        if model.kind == "unlearned" and model.before <= cut
    ]
    return {
        "auc": auc,
        "auc_low": low,
        "auc_high": high,
        **_robustness_columns(judged, models),
        "knowing": len(knowing[0]),
        "unknowing": len(unknowing[0]),
        "pairs": n_pairs,
    }


def _robustness_columns(
    judged: Sequence[ModelValues], models: Sequence[ModelValues]
) -> dict[str, Any]:
    """R and Q of the judged models, each with its interval, their harmonic mean and their number;
    `models`: all there are, the attacked gold models among them.
    """
    gold = {(m.pair, m.attack): (m.before, m.after) for m in models if m.kind == "gold"}
    r = [
        (m.pair, relearning_robustness(gold[m.pair, m.attack], (m.before, m.after)))
        for m in judged
        if m.attack in RELEARNING_NAMES and (m.pair, m.attack) in gold
    ]
    q = [
        (m.pair, quantization_robustness(m.before, m.after))
        for m in judged
        if m.attack in QUANTIZATION_NAMES
    ]
    columns = _mean_columns("relearning", r) | _mean_columns("quantization", q)
    both = [columns["relearning"], columns["quantization"]]
    return columns | {
        "robustness": None if None in both else _harmonic_mean(both),
        "models": min(len(r), len(q)),
    }


def _pool(models: Sequence[ModelValues], kind: str, *, compares: bool) -> tuple[Numbers, set[int]]:
    """Values of the models of one kind, as they are and after attacks that keep what they know, and
    the pairs that they come from.
    """
    pairs_and_values = [
        (model.pair, model.after if model.attack else model.before)
        for model in models
        if model.kind == kind and (model.attack in KNOWLEDGE_KEPT or not (model.attack or compares))
    ]
    finite = [(pair, value) for pair, value in pairs_and_values if np.isfinite(value)]
    return np.array([value for _, value in finite]), {pair for pair, _ in finite}


def _mean_columns(
    part: str, pairs_and_values: Sequence[tuple[int, float]]
) -> dict[str, float | None]:
    """Mean over models, with its interval over pairs."""
    if not pairs_and_values:
        return {part: None, f"{part}_low": None, f"{part}_high": None}
    groups, values = (
        np.array([pair for pair, _ in pairs_and_values]),
        np.array([v for _, v in pairs_and_values]),
    )
    codes = np.unique(groups, return_inverse=True)[1]
    interval = mean_interval(values[None], groups=codes, bounds=(0.0, 1.0))
    return interval_columns(part, interval)


def _harmonic_mean(values: Sequence[Any]) -> float:
    return len(values) / sum(1 / value for value in values) if min(values) > 0 else 0.0


def _useful_models(run: Run, pairs: Mapping[str, int]) -> set[str]:
    """Unlearned models that kept `UTILITY_SHARE` of the utility of their base."""
    goal = objective_of(run.experiment)
    rows = run.examples.filter(
        pl.col("attack") == "none",
        pl.col("split") == goal.utility_split,
        pl.col("metric") == goal.utility,
    )
    means = means_by(rows, ("trial_id", "stage"), ("value",)).drop_nulls("value")
    of_base = {
        pairs[row["trial_id"]]: row["value"]
        for row in means.filter(pl.col("stage") == "base").iter_rows(named=True)
        if row["trial_id"] in pairs
    }
    return {
        row["trial_id"]
        for row in means.filter(pl.col("stage") == "unlearned").iter_rows(named=True)
        if pairs.get(row["trial_id"]) in of_base
        and row["value"] >= UTILITY_SHARE * of_base[pairs[row["trial_id"]]]
    }
