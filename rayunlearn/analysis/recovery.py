"""What attacks recovered, from Parquet alone: recovered fractions with intervals, their maximum,
recovery curves, the matrix.

recovered fraction = (attacked - unlearned) / (base - unlearned), on the documents that the attack
was asked: 0 is what unlearning left, 1 what base knew. The same difference on gold, which never
saw it, is information leaked by the attack.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.analysis.intervals import (
    Interval,
    Numbers,
    bounds_of,
    gap_closed,
    interval_columns,
    mean_interval,
)
from rayunlearn.analysis.run_frames import CONTEXT_SECTIONS, groups_of, means_by, objective_of
from rayunlearn.analysis.two_way import group_codes
from rayunlearn.schema import HELD_IN
from rayunlearn.storage.run import Run

HALF_RECOVERED = 0.5

# what tuned attacks differ in from trial to trial
SEARCHED_ATTACKS = ("learning_rate=", "steps=", "candidates=")

# range of what attacks measure in their own way: chances, recalls and rights and wrongs
OWN_RANGE = (0.0, 1.0)


@dataclass(frozen=True)
class AttackedCell:
    """One attack setting on one attacked trial."""

    attacked: str
    setting: str


# trial -> document -> value
ValuesByTrial = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class AttackResults:
    """What the rows of a recovery table are made from.

    `placed`: rows of `attacks` whose trial is complete; `trials`: settings of every trial, by id;
    `values`, `learned`, `utility`: the metric on split forget and on what attacks learned from, and
    the objective's utility; `group_of`: documents that are drawn together.
    """

    run: Run
    metric: str
    placed: pl.DataFrame
    trials: Mapping[str, Mapping[str, Any]]
    values: ValuesByTrial
    learned: ValuesByTrial
    utility: ValuesByTrial
    group_of: Mapping[str, str]

    def ids(self, **columns: str) -> list[str]:
        """Ids of the placed trials with these values."""
        return self.placed.filter(**columns)["trial_id"].to_list()

    def attacks(self, cell: AttackedCell) -> list[str]:
        """The attack itself, a trial per seed."""
        return self.ids(role="attack", attacked=cell.attacked, setting=cell.setting)

    def same_attack_on(self, anchor: str, cell: AttackedCell) -> list[str]:
        """The same attack on base or gold."""
        setting = cell.setting
        return self.ids(role="control", attacked=anchor, setting=setting, control_for=setting)

    def companions(self, cell: AttackedCell) -> list[str]:
        """The control that the attack's row of the table names, on the attacked model itself."""
        return self.ids(role="control", attacked=cell.attacked, control_for=cell.setting)

    def interval(self, trials: Sequence[str], bounds: tuple[float, float] | None) -> Interval:
        """Mean of the trials' values with its interval."""
        return _interval(trials, self.values, self.group_of, bounds)


def recovery_table(run: Run, *, metric: str = "") -> pl.DataFrame:
    """One row per attacked trial and attack setting; `metric` is on split forget, the objective's
    forgetting metric by default.

    base, unlearned, after: means over the documents asked. recovered, with _low and _high: 95% by
    Fieller's theorem, over seeds and documents.
    most: the largest recovered fraction of a single seed or tuned strength. gold, gold_after (with
    interval): the same attack on gold; gold_rise (with interval): after less before, document by
    document.
    companion: recovered fraction of the control that the attack's row names. learned,
    companion_learned: the metric after the attack and after that control on what each was learned
    from (split held_in), null but for soft prompts. area: under the recovery curve, as a mean over
    its steps. half: steps to half of base's lead, straight between the curve's points
    (docs/attacks.md), null where it is never reached. utility_loss: share of the objective's
    utility that the attack cost the model, mean over seeds. seeds, documents: how many. Null where
    base and the unlearned model cannot be distinguished, so that there is nothing to recover.

    An attack that measures in its own way (linear probes, sampled attempts) has no fraction:
    `metric` says what `after` (with interval), `base` and `gold_after` are then, each after the
    same attack; `shuffled` is a probe's control. Else `metric` is ''.

    Args:
        run: an opened run (`storage.run.open_run`).
        metric: a metric of `examples`; '' is the objective's forgetting metric.

    Returns:
        The table; no rows where nothing was attacked.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> table = recovery_table(open_run("runs/attacked/1"))
        >>> row = table.row(0, named=True)
        >>> row["setting"]
        'relearning learning_rate=0.001 steps=20'
        >>> print(f"{row['unlearned']:.2f} -> {row['after']:.2f}: {row['recovered']:.3f}")
        0.10 -> 0.60: 0.625
    """
    goal = objective_of(run.experiment)
    metric = metric or goal.forgetting
    placed = run.attacks.collect().join(
        run.trials.filter(pl.col("status") == "complete").select("trial_id").collect(),
        on="trial_id",
        how="semi",
    )
    if placed.is_empty():
        return pl.DataFrame(schema=RECOVERY_SCHEMA)
    results = AttackResults(
        run=run,
        metric=metric,
        placed=placed,
        trials={row["trial_id"]: row for row in run.trials.collect().iter_rows(named=True)},
        values=_values(run, metric),
        learned=_values(run, metric, split=HELD_IN),
        utility=_values(run, goal.utility, split=goal.utility_split),
        group_of=groups_of(run),
    )
    rows = [
        (_row(cell, results), _mean_on_learned(cell, results) | _utility_columns(cell, results))
        for cell in _cells(results)
    ]
    return pl.DataFrame(
        [row | more for row, more in rows if row], schema=RECOVERY_SCHEMA, infer_schema_length=None
    )


RECOVERY_SCHEMA: dict[str, Any] = {
    "attacked": pl.String,
    "setting": pl.String,
    "metric": pl.String,
    **dict.fromkeys(
        ("base", "unlearned", "after", "recovered", "recovered_low", "recovered_high", "most"),
        pl.Float64,
    ),
    **dict.fromkeys(
        ("gold", "gold_after", "gold_after_low", "gold_after_high", "companion", "area", "half"),
        pl.Float64,
    ),
    **dict.fromkeys(("learned", "companion_learned"), pl.Float64),
    **dict.fromkeys(
        ("gold_rise", "gold_rise_low", "gold_rise_high", "after_low", "after_high", "shuffled"),
        pl.Float64,
    ),
    "utility_loss": pl.Float64,
    "seeds": pl.Int64,
    "documents": pl.Int64,
}


def worst_case(table: pl.DataFrame) -> pl.DataFrame:
    """The attack that recovers most of each attacked trial.

    Args:
        table: `recovery_table(run)`.

    Returns:
        A row per attacked trial, the most recovered first: the attack's setting and the recovered
        fraction with its 95% interval.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> table = recovery_table(open_run("runs/attacked/1"))
        >>> table.height, worst_case(table)["setting"].to_list()
        (2, ['relearning learning_rate=0.001 steps=20'])
    """
    measured = table.filter(pl.col("recovered").is_not_null()).sort("recovered", descending=True)
    return measured.unique("attacked", keep="first", maintain_order=True).select(
        "attacked", "setting", "recovered", "recovered_low", "recovered_high"
    )


def area_under(steps: Numbers, recovered: Numbers) -> float:
    """Mean height of the recovery curve over its steps: the trapezoids' sum divided by the last
    step.

    Args:
        steps: steps of the curve's points, ascending.
        recovered: recovered fraction at each.

    Returns:
        The area as a mean height: 1 is all recovered from the start.

    Example:
        >>> area_under(np.array([0.0, 10.0]), np.array([0.0, 1.0]))
        0.5
    """
    return float(np.trapezoid(recovered, steps) / (steps[-1] - steps[0]))


def steps_to(share: float, steps: Numbers, recovered: Numbers) -> float | None:
    """First step at which the curve, straight between its points, reaches `share`; None where it
    never does.
    """
    above = np.flatnonzero(recovered >= share)
    if not above.size:
        return None
    index = int(above[0])
    if index == 0:
        return float(steps[0])
    rise = (share - recovered[index - 1]) / (recovered[index] - recovered[index - 1])
    return float(steps[index - 1] + rise * (steps[index] - steps[index - 1]))


def _values(run: Run, metric: str, *, split: str = "forget") -> dict[str, dict[str, float]]:
    """trial -> document -> value on the split, each trial after the attack
    that it is and no other.
    """
    schema = run.trials.collect_schema()
    is_plain = (
        pl.col("attack.name").fill_null("none") if "attack.name" in schema else pl.lit("none")
    )
    trials = run.trials.select(
        "trial_id", is_plain.alias("_attack"), pl.col("stage").alias("_stage")
    )
    rows = run.examples.filter(pl.col("split") == split, pl.col("metric") == metric).join(
        trials, on="trial_id"
    )
    selected = rows.filter(
        pl.col("attack") == pl.col("_attack"), pl.col("stage") == pl.col("_stage")
    ).drop_nulls("value")
    values_by_trial: dict[str, dict[str, float]] = {}
    for trial, document, value in means_by(
        selected, ("trial_id", "doc_id"), ("value",)
    ).iter_rows():
        values_by_trial.setdefault(trial, {})[document] = value
    return values_by_trial


def _cells(results: AttackResults) -> list[AttackedCell]:
    attacks = (
        results.placed.filter(pl.col("role") == "attack")
        .select("attacked", "setting")
        .unique(maintain_order=True)
    )
    return [AttackedCell(*row) for row in attacks.iter_rows() if row[0] in results.trials]


def _row(cell: AttackedCell, results: AttackResults) -> dict[str, Any]:
    """The row of an attack on a model; empty where base or the model itself was not measured."""
    attacks, values = results.attacks(cell), results.values
    base, gold = (
        _anchor(results.trials, results.trials[cell.attacked], role) for role in ("base", "gold")
    )
    if attacks and not set(attacks) & set(values):
        return _own_row(cell, attacks, (base, gold), results)
    if base not in values or cell.attacked not in values:
        return {}
    return _recovery_row(cell, attacks, base, results) | _gold_columns(cell, gold, results)


def _recovery_row(
    cell: AttackedCell, attacks: Sequence[str], base: str, results: AttackResults
) -> dict[str, Any]:
    """What the attack recovered of base's lead, beside the attack's own control."""
    values = results.values
    after, before, base_values = _after_before_base(attacks, cell.attacked, base, values)
    documents = _common_documents(attacks, cell.attacked, base, values)
    fraction = gap_closed(
        after, before, base_values, groups=group_codes(documents, results.group_of)
    )
    # None where base and the unlearned model cannot be distinguished
    is_known, base_mean = fraction.mean is not None, float(np.nanmean(base_values))
    companions = results.companions(cell)
    return {
        "attacked": cell.attacked,
        "setting": cell.setting,
        "metric": "",
        "base": base_mean,
        "unlearned": float(np.nanmean(before)),
        "after": float(np.nanmean(after)),
        **interval_columns("recovered", fraction),
        "most": (
            _highest_recovery(_strengths(cell, results), cell.attacked, base, values)
            if is_known
            else None
        ),
        "companion": (
            _recovered(companions, cell.attacked, base, values) if companions and is_known else None
        ),
        **_curve_numbers(results.run, attacks, base_mean, results.metric, is_known=is_known),
        "seeds": len(attacks),
        "documents": after.shape[1],
    }


def _gold_columns(cell: AttackedCell, gold: str, results: AttackResults) -> dict[str, float | None]:
    """Gold before and after the same attack: the information leaked by it."""
    attacks, own_values = results.same_attack_on(gold, cell), results.values.get(gold, {})
    after = results.interval(attacks, bounds_of(results.run.experiment, results.metric))
    return {
        "gold": _mean_on_asked(own_values, results.values, attacks),
        **interval_columns("gold_after", after),
        **interval_columns(
            "gold_rise", _rise(attacks, own_values, results.values, results.group_of)
        ),
    }


def utility_loss(before: float, after: float) -> float:
    """Share of a model's utility that an attack cost it; below 0 where it gained.

    Example:
        >>> utility_loss(0.5, 0.25)
        0.5
    """
    return (before - after) / before


def _utility_columns(cell: AttackedCell, results: AttackResults) -> dict[str, float | None]:
    """What the attack cost its attacker, on the documents that it was asked; None where utility was
    not measured, or was 0 before.
    """
    attacks = [trial for trial in results.attacks(cell) if trial in results.utility]
    utility = results.utility.get(cell.attacked, {})
    before = _mean_on_asked(utility, results.utility, attacks)
    if not attacks or not before:
        return {"utility_loss": None}
    after = float(np.nanmean(_matrix(attacks, results.utility)))
    return {"utility_loss": utility_loss(before, after)}


def _strengths(cell: AttackedCell, results: AttackResults) -> list[str]:
    """Trials of the same attack on the same model at any searched strength, its study's too."""
    plain = plain_setting(cell.setting)
    rows = results.placed.filter(
        pl.col("attacked") == cell.attacked, pl.col("role") != "control"
    ).select("trial_id", "setting")
    return [trial for trial, setting in rows.iter_rows() if plain_setting(setting) == plain]


def _mean_on_learned(cell: AttackedCell, results: AttackResults) -> dict[str, float | None]:
    """Mean on what the attack and its control were learned from, None where nothing of that was
    asked.
    """
    trials_by_column = {
        "learned": results.attacks(cell),
        "companion_learned": results.companions(cell),
    }
    return {
        name: float(np.nanmean(_matrix(trials, results.learned)))
        if set(trials) & set(results.learned)
        else None
        for name, trials in trials_by_column.items()
    }


def _own_row(
    cell: AttackedCell, attacks: Sequence[str], anchors: tuple[str, str], results: AttackResults
) -> dict[str, Any]:
    """The row of an attack that measures in its own way."""
    metric = _own_metric(results.run, attacks)
    if not metric:
        return {}
    values, shuffled = (_values(results.run, name) for name in (metric, f"{metric}_shuffled"))
    after, on_base, on_gold = (
        _interval(trials, values, results.group_of, OWN_RANGE)
        for trials in (attacks, *(results.same_attack_on(anchor, cell) for anchor in anchors))
    )
    return {
        "attacked": cell.attacked,
        "setting": cell.setting,
        "metric": metric,
        "base": on_base.mean,
        **interval_columns("after", after),
        **interval_columns("gold_after", on_gold),
        "shuffled": _interval(attacks, shuffled, results.group_of, OWN_RANGE).mean,
        "seeds": len(attacks),
        "documents": _matrix(attacks, values).shape[1],
    }


def _own_metric(run: Run, attacks: Sequence[str]) -> str:
    """The metric that only these attacks have; of `leak_at_1`, `leak_at_2`, ... the one of most
    attempts. '' where they have none.
    """
    metric_rows = run.examples.filter(
        pl.col("trial_id").is_in(list(attacks)), pl.col("split") == "forget"
    )
    names = [
        name
        for name in metric_rows.select("metric").unique().collect()["metric"].sort().to_list()
        if not name.endswith("_shuffled")
    ]
    return max(
        names,
        key=lambda name: (
            int(name.rpartition("_")[2]) if name.rpartition("_")[2].isdecimal() else 0,
            name,
        ),
        default="",
    )


def _anchor(stages: Mapping[str, Mapping[str, Any]], row: Mapping[str, Any], role: str) -> str:
    """Unattacked trial of base or gold with the same data and model settings, '' where there is
    none.
    """
    context_settings = [name for name in row if name.startswith(CONTEXT_SECTIONS)]
    for trial_id, other in stages.items():
        same = (
            other.get("stage") == role
            and other.get("attack.name") in (None, "none")
            and all(other.get(name) == row[name] for name in context_settings)
        )
        if same and other["status"] == "complete":
            return trial_id
    return ""


def _after_before_base(
    attacks: Sequence[str], attacked: str, base: str, values: ValuesByTrial
) -> tuple[Numbers, Numbers, Numbers]:
    """(seeds, documents) after the attacks and (1, documents) before them and of base, on the
    documents that some attack asked.

    Attacks that hold facts out ask different documents with every seed: what one did not ask is
    missing there.
    """
    documents = _common_documents(attacks, attacked, base, values)
    rows = [
        np.array([[values[t].get(d, np.nan) for d in documents] for t in group if t in values])
        for group in (attacks, [attacked], [base])
    ]
    return rows[0], rows[1], rows[2]


def _common_documents(
    attacks: Sequence[str], attacked: str, base: str, values: ValuesByTrial
) -> list[str]:
    """Documents that some attack asked, and that the attacked model and base were asked."""
    return sorted(set(_documents(attacks, values)) & set(values[attacked]) & set(values[base]))


def _documents(trials: Sequence[str], values: ValuesByTrial) -> list[str]:
    return sorted({d for t in trials for d in values.get(t, {})})


def _interval(
    trials: Sequence[str],
    values: ValuesByTrial,
    group_of: Mapping[str, str],
    bounds: tuple[float, float] | None,
) -> Interval:
    """Mean of the trials' values with its interval; NOTHING without trials."""
    groups = group_codes(_documents(trials, values), group_of)
    return mean_interval(_matrix(trials, values), groups=groups, bounds=bounds)


def _matrix(trials: Sequence[str], values: ValuesByTrial) -> Numbers:
    documents = _documents(trials, values)
    return np.array(
        [[values[t].get(d, np.nan) for d in documents] for t in trials if t in values]
    ).reshape(-1, max(1, len(documents)))


def _rise(
    attacks: Sequence[str],
    own_values: Mapping[str, float],
    values: ValuesByTrial,
    group_of: Mapping[str, str],
) -> Interval:
    """After less before, on documents that were asked both times."""
    documents = sorted(set(_documents(attacks, values)) & set(own_values))
    rises = np.array(
        [
            [values[t].get(d, np.nan) - own_values[d] for d in documents]
            for t in attacks
            if t in values
        ]
    ).reshape(-1, max(1, len(documents)))
    return mean_interval(rises, groups=group_codes(documents, group_of))


def _recovered(
    trials: Sequence[str], attacked: str, base: str, values: ValuesByTrial
) -> float | None:
    """Mean over the trials of (after - before) / (base - before),
    each on the documents it asked.
    """
    shares = []
    for trial in trials:
        after, before, base_values = _after_before_base([trial], attacked, base, values)
        if after.size and np.nanmean(base_values) != np.nanmean(before):
            shares.append(
                (np.nanmean(after) - np.nanmean(before))
                / (np.nanmean(base_values) - np.nanmean(before))
            )
    return float(np.mean(shares)) if shares else None


def _highest_recovery(
    trials: Sequence[str], attacked: str, base: str, values: ValuesByTrial
) -> float | None:
    candidates = [
        share
        for trial in trials
        if (share := _recovered([trial], attacked, base, values)) is not None
    ]
    return max(candidates, default=None)


def _mean_on_asked(
    own_values: Mapping[str, float],
    values: ValuesByTrial,
    attacks: Sequence[str],
) -> float | None:
    # sorted: a mean follows the order of what it is of in its last bit
    documents = sorted({d for t in attacks for d in values.get(t, {})} & set(own_values))
    return float(np.mean([own_values[d] for d in documents])) if documents else None


def _curve_numbers(
    run: Run, attacks: Sequence[str], base: float, metric: str, *, is_known: bool
) -> dict[str, float | None]:
    """Area and steps to half, of the mean curve over seeds;
    its beginning is what unlearning left.
    """
    metric_rows = (
        (pl.col("kind") == "relearning")
        & (pl.col("split") == "forget")
        & (pl.col("metric") == metric)
    )
    rows = run.curves.filter(pl.col("trial_id").is_in(list(attacks)) & metric_rows)
    curve = means_by(rows, ("x",), ("value",))
    if curve.height < 2 or not is_known:
        return {"area": None, "half": None}
    steps, heights = curve["x"].to_numpy(), curve["value"].to_numpy()
    recovered = (heights - heights[0]) / (base - heights[0])
    return {
        "area": area_under(steps, recovered),
        "half": steps_to(HALF_RECOVERED, steps, recovered),
    }


def plain_setting(setting: str) -> str:
    """The setting without its searched strength."""
    return " ".join(part for part in setting.split(" ") if not part.startswith(SEARCHED_ATTACKS))
