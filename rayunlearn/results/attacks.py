"""What attacks gave back, from Parquet alone: recovered fractions with intervals, their maximum,
recovery curves, the matrix.

recovered fraction = (attacked - unlearned) / (base - unlearned), on the documents that the attack
was asked: 0 is what unlearning left, 1 what base knew. The same difference on gold, which never
knew it, is what the attack itself tells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.results.analysis import (
    AROUND,
    CELL,
    NOTHING,
    Numbers,
    bootstrap_interval,
    objective_of,
    share_of_way,
)
from rayunlearn.results.store import Run
from rayunlearn.results.words import number
from rayunlearn.schema import HELD_IN

HALF = 0.5
WORST = "worst case"
PLAIN = "no attack"
# what tuned attacks differ in from trial to trial
SEARCHED = ("learning_rate=", "steps=", "candidates=")
# trains on what is then asked, so that gold learns it too
TEACHES = ("relearning",)


@dataclass(frozen=True)
class Cell:
    """One attack setting on one attacked trial."""

    attacked: str
    setting: str


def recovery_table(run: Run, *, metric: str = "") -> pl.DataFrame:
    """One row per attacked trial and attack setting; `metric` is on split forget, the objective's
    forgetting metric by default.

    base, unlearned, after: means over the documents asked. recovered, with _low and _high: 95 %
    bootstrap over seeds and documents.
    most: the largest recovered fraction of a single seed or tuned strength. gold, gold_after (with
    interval): the same attack on gold; gold_rise (with interval): after less before, document by
    document.
    companion: recovered fraction of the control that the attack's row names. learned,
    companion_learned: the metric after the attack and after that control on what each was learned
    from (split held_in), null but for soft prompts. area: under the recovery curve, as a mean over
    its steps. half: steps to half of base's lead, straight between the curve's points
    (docs/attacks.md), null where it is never reached. seeds, documents: how many. Null where base
    and the unlearned model cannot be told apart, so that there is nothing to recover.

    An attack that measures in its own way (linear probes, sampled attempts) has no fraction:
    `metric` says what `after` (with interval), `base` and `gold_after` are then, each after the
    same attack; `shuffled` is a probe's control. Else `metric` is ''.
    """
    metric = metric or objective_of(run.experiment).forgetting
    placed = run.attacks.collect().join(
        run.trials.filter(pl.col("status") == "complete").select("trial_id").collect(),
        on="trial_id",
        how="semi",
    )
    if placed.is_empty():
        return pl.DataFrame(schema=SCHEMA)
    values = _values(run, metric)
    stages = _stages(run)
    learned = _values(run, metric, split=HELD_IN)
    rows = [
        (_row(cell, placed, values, stages, run, metric), _learned(cell, placed, learned))
        for cell in _cells(placed, stages)
    ]
    return pl.DataFrame(
        [row | more for row, more in rows if row], schema=SCHEMA, infer_schema_length=None
    )


SCHEMA: dict[str, Any] = {
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
    "seeds": pl.Int64,
    "documents": pl.Int64,
}


def worst_case(table: pl.DataFrame) -> pl.DataFrame:
    """Per attacked trial the attack that gives most back (by `recovered`), as its setting and
    fraction.
    """
    known = table.filter(pl.col("recovered").is_not_null()).sort("recovered", descending=True)
    return known.unique("attacked", keep="first", maintain_order=True).select(
        "attacked", "setting", "recovered", "recovered_low", "recovered_high"
    )


def rises_of(table: pl.DataFrame) -> list[str]:
    """A line for every attack after which gold, which never knew the answers, answers more of them:
    what the attack itself tells.

    By `gold_rise`'s interval, without correction: of forty attacks that tell nothing one is named
    here by chance. Attacks that train on what is asked are said to; any other that is named here
    and again in another run is a leak of the data.
    """
    worst: dict[str, Mapping[str, Any]] = {}
    for row in (
        table.filter(pl.col("gold_rise_low") > 0)
        .sort("gold_rise", descending=True)
        .iter_rows(named=True)
    ):
        worst.setdefault(plain_setting(row["setting"]), row)
    return [_rise_in_words(shown, row) for shown, row in worst.items()]


def _rise_in_words(shown: str, row: Mapping[str, Any]) -> str:
    why = (
        "it trains on what is asked"
        if shown.split(" ")[0] in TEACHES
        else "that much is what the attack itself tells"
    )
    by = f"{row['gold_rise']:.2f} [{row['gold_rise_low']:.2f}, {row['gold_rise_high']:.2f}]"
    return f"gold, which never knew the answers, rises by {by} under {shown}: {why}"


def area_under(steps: Numbers, recovered: Numbers) -> float:
    """Mean height of the recovery curve over its steps: the trapezoids' sum divided by the last
    step.
    """
    return float(np.trapezoid(recovered, steps) / (steps[-1] - steps[0]))


def steps_to(share: float, steps: Numbers, recovered: Numbers) -> float | None:
    """First step at which the curve, straight between its points, reaches `share`; None where it
    never does.
    """
    above = np.flatnonzero(recovered >= share)
    if not above.size:
        return None
    at = int(above[0])
    if at == 0:
        return float(steps[0])
    rise = (share - recovered[at - 1]) / (recovered[at] - recovered[at - 1])
    return float(steps[at - 1] + rise * (steps[at] - steps[at - 1]))


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """The table of `rayunlearn attack` and of the report: attacks down, attacked trials across; the
    other way round where there are more trials.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    notes: tuple[str, ...] = ()


def attack_tables(run: Run, *, metric: str = "") -> tuple[Matrix, ...]:
    """`matrix_of`, and under it `curves_of` where an attack trained; nothing before an attack has
    ended.
    """
    table = recovery_table(run, metric=metric)
    if not table.height:
        return ()
    matrix, curves = matrix_of(run, table, metric=metric), curves_of(run, table)
    return (matrix, curves) if curves.rows else (matrix,)


def curves_of(run: Run, table: pl.DataFrame) -> Matrix:
    """Of every attack with a recovery curve or a control of its own: strength, the curve in two
    numbers, what the control got back.
    """
    names = names_of(run, table["attacked"].unique(maintain_order=True).to_list())
    rows = [
        (
            row["setting"],
            names[row["attacked"]],
            f"{row['recovered']:z.2f}",
            _two(row["area"]),
            _half(row),
            _two(row["companion"]),
            (
                "-"
                if row["learned"] is None
                else f"{row['learned']:.2f} (control {_two(row['companion_learned'])})"
            ),
        )
        for row in (
            table.filter(pl.col("area").is_not_null() | pl.col("companion").is_not_null())
            .sort("attacked", "setting")
            .iter_rows(named=True)
        )
    ]
    return Matrix(
        headers=(
            "attack at its strength",
            "trial",
            "recovered",
            "area under curve",
            "steps to half",
            "control",
            "on what it learned from",
        ),
        rows=tuple(rows),
        caption=(
            "Area: mean recovered fraction over the steps. Steps to half: where the curve first"
            " reaches 0.5. Control: recovered fraction after equal steps on unrelated text, a soft"
            " prompt learned towards random text, or a random prefix; '-' where the attack is"
            " itself that. On what it learned from: of soft prompts, the metric on the true answers"
            " that they were learned from (control: on the random text): a control as high says"
            " that reaching an answer so is no sign of knowing it."
        ),
    )


def matrix_of(run: Run, table: pl.DataFrame, *, metric: str = "") -> Matrix:
    """Recovered fractions [interval], the most of any seed or strength, and the same attack on
    gold.
    """
    names = names_of(run, table["attacked"].unique(maintain_order=True).to_list())
    settings = table["setting"].unique(maintain_order=True).to_list()
    cells = {(row["setting"], row["attacked"]): row for row in table.iter_rows(named=True)}
    rows = [
        (
            shown,
            *(_shown(_of(cells, table, shown, attacked)) for attacked in names),
            _gold_shown(cells, shown, names),
        )
        for shown in _short(settings)
    ]
    worst = {row["attacked"]: row for row in worst_case(table).iter_rows(named=True)}
    grid = (("attack", *names.values(), "gold: before -> after"), _plain_row(table, names), *rows)
    grid += ((WORST, *(_named(worst.get(attacked)) for attacked in names), ""),)
    # what there is more of goes down the page
    if len(names) > len(settings):
        grid = (("trial", *(row[0] for row in grid[1:])), *list(zip(*grid, strict=True))[1:])
    return Matrix(
        headers=grid[0],
        rows=grid[1:],
        notes=tuple(rises_of(table)),
        caption=(
            f"Recovered fraction of {metric or objective_of(run.experiment).forgetting} on forget,"
            " 0: as unlearned, 1: as base; [low, high]: 95 % bootstrap over seeds and documents;"
            " 'most': the best single seed or strength, picked by looking at these very documents."
        ),
    )


def names_of(run: Run, attacked: Sequence[str]) -> dict[str, str]:
    """Attacked trial -> a short name: method, retain loss, selector, ratio and seed as far as they
    differ, the folder of a model made elsewhere, and the id's beginning."""
    trials = run.trials.filter(pl.col("trial_id").is_in(list(attacked))).collect()
    varying = [
        n for n in (*CELL, "train.seed") if n in trials.columns and trials[n].n_unique() > 1
    ] or ["method.forget"]
    rows = {row["trial_id"]: row for row in trials.iter_rows(named=True)}
    given = {t: Path(rows[t].get("model.unlearned") or "").name for t in attacked}
    return {
        t: " ".join(
            [*([given[t]] if given[t] else [_said(n, rows[t].get(n)) for n in varying]), t[:6]]
        )
        for t in attacked
    }


# ---- inside


def _values(run: Run, metric: str, *, split: str = "forget") -> dict[str, dict[str, float]]:
    """trial -> document -> value on the split, each trial after the attack that it is and no other."""
    schema = run.trials.collect_schema()
    own = pl.col("attack.name").fill_null("none") if "attack.name" in schema else pl.lit("none")
    trials = run.trials.select("trial_id", own.alias("_attack"), pl.col("stage").alias("_stage"))
    rows = run.examples.filter(pl.col("split") == split, pl.col("metric") == metric).join(
        trials, on="trial_id"
    )
    kept = rows.filter(
        pl.col("attack") == pl.col("_attack"), pl.col("stage") == pl.col("_stage")
    ).drop_nulls("value")
    found: dict[str, dict[str, float]] = {}
    for trial, document, value in (
        kept.group_by("trial_id", "doc_id").agg(pl.col("value").mean()).collect().iter_rows()
    ):
        found.setdefault(trial, {})[document] = value
    return found


def _stages(run: Run) -> dict[str, dict[str, Any]]:
    """Settings of every trial, by id."""
    return {row["trial_id"]: row for row in run.trials.collect().iter_rows(named=True)}


def _cells(placed: pl.DataFrame, stages: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
    attacks = (
        placed.filter(pl.col("role") == "attack")
        .select("attacked", "setting")
        .unique(maintain_order=True)
    )
    return [Cell(*row) for row in attacks.iter_rows() if row[0] in stages]


def _row(
    cell: Cell,
    placed: pl.DataFrame,
    values: Mapping[str, Mapping[str, float]],
    stages: Mapping[str, Any],
    run: Run,
    metric: str,
) -> dict[str, Any]:
    mine = placed.filter(pl.col("attacked") == cell.attacked)
    attacks = mine.filter(pl.col("role") == "attack", pl.col("setting") == cell.setting)[
        "trial_id"
    ].to_list()
    base, gold = (_anchor(stages, stages[cell.attacked], role) for role in ("base", "gold"))
    if attacks and not set(attacks) & set(values):
        return _own_row(cell, attacks, placed, base, gold, run)
    if base not in values or cell.attacked not in values:
        return {}
    after, before, known = _three(attacks, cell.attacked, base, values)
    interval, shown = share_of_way(after, before, known), plain_setting(cell.setting)
    control = placed.filter(pl.col("role") == "control", pl.col("answers") == cell.setting)
    companions = _companions(cell, placed)
    golden = control.filter(pl.col("attacked") == gold, pl.col("setting") == cell.setting)[
        "trial_id"
    ].to_list()
    golden_after = _matrix(golden, values)
    on_gold = bootstrap_interval(golden_after) if golden else NOTHING
    rise = (
        bootstrap_interval(_rises(golden, values.get(gold, {}), values))
        if golden and gold in values
        else NOTHING
    )
    same = [setting for setting in mine["setting"].unique() if plain_setting(setting) == shown]
    tried = mine.filter(pl.col("setting").is_in(same), pl.col("role") != "control")
    return {
        "attacked": cell.attacked,
        "setting": cell.setting,
        "metric": "",
        "base": float(np.nanmean(known)),
        "unlearned": float(np.nanmean(before)),
        "after": float(np.nanmean(after)),
        **{
            f"recovered{end}": value
            for end, value in (
                ("", interval.mean),
                ("_low", interval.low),
                ("_high", interval.high),
            )
        },
        "most": (
            _most(tried["trial_id"].to_list(), cell.attacked, base, values)
            if interval.mean is not None
            else None
        ),
        "gold": _mean_on(values.get(gold, {}), values, golden),
        **{
            f"gold_after{end}": value
            for end, value in (("", on_gold.mean), ("_low", on_gold.low), ("_high", on_gold.high))
        },
        **{
            f"gold_rise{end}": value
            for end, value in (("", rise.mean), ("_low", rise.low), ("_high", rise.high))
        },
        "companion": (
            _recovered(companions, cell.attacked, base, values)
            if companions and interval.mean is not None
            else None
        ),
        **_curve_numbers(
            run, attacks, float(np.nanmean(known)), metric, known=interval.mean is not None
        ),
        "seeds": len(attacks),
        "documents": after.shape[1],
    }


def _companions(cell: Cell, placed: pl.DataFrame) -> list[str]:
    """Trials of the control that the attack's row of the table names, on the attacked model itself."""
    mine = (
        (pl.col("role") == "control")
        & (pl.col("answers") == cell.setting)
        & (pl.col("attacked") == cell.attacked)
    )
    return placed.filter(mine)["trial_id"].to_list()


def _learned(
    cell: Cell, placed: pl.DataFrame, learned: Mapping[str, Mapping[str, float]]
) -> dict[str, float | None]:
    """Mean on what the attack and its control were learned from, None where nothing of that was
    asked.
    """
    mine = (
        (pl.col("role") == "attack")
        & (pl.col("setting") == cell.setting)
        & (pl.col("attacked") == cell.attacked)
    )
    named = {
        "learned": placed.filter(mine)["trial_id"].to_list(),
        "companion_learned": _companions(cell, placed),
    }
    return {
        name: float(np.nanmean(_matrix(trials, learned))) if set(trials) & set(learned) else None
        for name, trials in named.items()
    }


def _own_row(
    cell: Cell, attacks: Sequence[str], placed: pl.DataFrame, base: str, gold: str, run: Run
) -> dict[str, Any]:
    """The row of an attack that measures in its own way."""
    metric = _own_metric(run, attacks)
    if not metric:
        return {}
    values, shuffled = _values(run, metric), _values(run, f"{metric}_shuffled")
    same = placed.filter(
        pl.col("role") == "control",
        pl.col("answers") == cell.setting,
        pl.col("setting") == cell.setting,
    )
    mine, known, golden = (
        bootstrap_interval(_matrix(trials, values))
        for trials in (
            attacks,
            *(
                same.filter(pl.col("attacked") == anchor)["trial_id"].to_list()
                for anchor in (base, gold)
            ),
        )
    )
    return {
        "attacked": cell.attacked,
        "setting": cell.setting,
        "metric": metric,
        "base": known.mean,
        **{
            f"after{end}": value
            for end, value in (("", mine.mean), ("_low", mine.low), ("_high", mine.high))
        },
        **{
            f"gold_after{end}": value
            for end, value in (("", golden.mean), ("_low", golden.low), ("_high", golden.high))
        },
        "shuffled": bootstrap_interval(_matrix(attacks, shuffled)).mean,
        "seeds": len(attacks),
        "documents": _matrix(attacks, values).shape[1],
    }


def _own_metric(run: Run, attacks: Sequence[str]) -> str:
    """The metric that only these attacks have; of `leak_at_1`, `leak_at_2`, ... the one of most
    attempts. '' where they have none.
    """
    here = run.examples.filter(pl.col("trial_id").is_in(list(attacks)), pl.col("split") == "forget")
    names = [
        name
        for name in here.select("metric").unique().collect()["metric"].sort().to_list()
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
    around = [name for name in row if name.startswith(AROUND)]
    for trial_id, other in stages.items():
        same = (
            other.get("stage") == role
            and other.get("attack.name") in (None, "none")
            and all(other.get(name) == row[name] for name in around)
        )
        if same and other["status"] == "complete":
            return trial_id
    return ""


def _three(
    attacks: Sequence[str], attacked: str, base: str, values: Mapping[str, Mapping[str, float]]
) -> tuple[Numbers, Numbers, Numbers]:
    """(seeds, documents) after the attacks and (1, documents) before them and of base, on the
    documents that some attack asked.

    Attacks that hold facts out ask different documents with every seed: what one did not ask is
    missing there.
    """
    documents = sorted(
        {d for t in attacks for d in values.get(t, {})} & set(values[attacked]) & set(values[base])
    )
    rows = [
        np.array([[values[t].get(d, np.nan) for d in documents] for t in group if t in values])
        for group in (attacks, [attacked], [base])
    ]
    return rows[0], rows[1], rows[2]


def _matrix(trials: Sequence[str], values: Mapping[str, Mapping[str, float]]) -> Numbers:
    documents = sorted({d for t in trials for d in values.get(t, {})})
    return np.array(
        [[values[t].get(d, np.nan) for d in documents] for t in trials if t in values]
    ).reshape(-1, max(1, len(documents)))


def _rises(
    attacks: Sequence[str], own: Mapping[str, float], values: Mapping[str, Mapping[str, float]]
) -> Numbers:
    """(seeds, documents) after less before, on documents that were asked both times."""
    documents = sorted({d for t in attacks for d in values.get(t, {})} & set(own))
    return np.array(
        [[values[t].get(d, np.nan) - own[d] for d in documents] for t in attacks if t in values]
    ).reshape(-1, max(1, len(documents)))


def _recovered(
    trials: Sequence[str], attacked: str, base: str, values: Mapping[str, Mapping[str, float]]
) -> float | None:
    """Mean over the trials of (after - before) / (base - before), each on the documents it asked."""
    shares = []
    for trial in trials:
        after, before, known = _three([trial], attacked, base, values)
        if after.size and np.nanmean(known) != np.nanmean(before):
            shares.append(
                (np.nanmean(after) - np.nanmean(before)) / (np.nanmean(known) - np.nanmean(before))
            )
    return float(np.mean(shares)) if shares else None


def _most(
    trials: Sequence[str], attacked: str, base: str, values: Mapping[str, Mapping[str, float]]
) -> float | None:
    found = [
        share
        for trial in trials
        if (share := _recovered([trial], attacked, base, values)) is not None
    ]
    return max(found, default=None)


def _mean_on(
    own: Mapping[str, float], values: Mapping[str, Mapping[str, float]], attacks: Sequence[str]
) -> float | None:
    asked = {d for t in attacks for d in values.get(t, {})} & set(own)
    return float(np.mean([own[d] for d in asked])) if asked else None


def _curve_numbers(
    run: Run, attacks: Sequence[str], base: float, metric: str, *, known: bool
) -> dict[str, float | None]:
    """Area and steps to half, of the mean curve over seeds; its beginning is what unlearning left."""
    here = (
        (pl.col("kind") == "relearning")
        & (pl.col("split") == "forget")
        & (pl.col("metric") == metric)
    )
    curve = (
        run.curves.filter(pl.col("trial_id").is_in(list(attacks)) & here)
        .group_by("x")
        .agg(pl.col("value").mean())
        .sort("x")
        .collect()
    )
    if curve.height < 2 or not known:
        return {"area": None, "half": None}
    steps, heights = curve["x"].to_numpy(), curve["value"].to_numpy()
    recovered = (heights - heights[0]) / (base - heights[0])
    return {"area": area_under(steps, recovered), "half": steps_to(HALF, steps, recovered)}


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:z.2f}"


def _half(row: Mapping[str, Any]) -> str:
    """Steps to half; `never` for a curve that does not get there."""
    if row["area"] is None:
        return "-"
    return "never" if row["half"] is None else f"{row['half']:.1f}"


def _said(name: str, value: Any) -> str:
    return f"seed {value}" if name.endswith("seed") else number(value)


def _short(settings: Sequence[str]) -> list[str]:
    """Settings without the strengths that were searched, which differ from trial to trial, each
    once.
    """
    return list(dict.fromkeys(plain_setting(setting) for setting in settings))


def plain_setting(setting: str) -> str:
    """The setting without its searched strength."""
    return " ".join(part for part in setting.split(" ") if not part.startswith(SEARCHED))


def _of(
    cells: Mapping[tuple[str, str], dict[str, Any]], table: pl.DataFrame, shown: str, attacked: str
) -> dict[str, Any] | None:
    """The attack's row on that trial; of several strengths (panels run one after another) the one
    that got most back.
    """
    found = [
        row
        for (setting, trial), row in cells.items()
        if trial == attacked and plain_setting(setting) == shown
    ]
    return max(
        found,
        key=lambda row: row["recovered"] if row["recovered"] is not None else -np.inf,
        default=None,
    )


def _plain_row(table: pl.DataFrame, names: Mapping[str, str]) -> tuple[str, ...]:
    """What the metric was before any attack, on the documents of the attack that asked most."""
    most = {
        row["attacked"]: row
        for row in table.filter(pl.col("metric") == "").sort("documents").iter_rows(named=True)
    }
    gold = next((f"{row['gold']:.2f}" for row in most.values() if row["gold"] is not None), "-")
    return (
        PLAIN,
        *(
            f"{most[t]['unlearned']:.2f} (base {most[t]['base']:.2f})" if t in most else "-"
            for t in names
        ),
        gold,
    )


def _shown(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    if row["metric"]:
        # of the forget questions held out none has an answer that the probe was fitted to
        if row["after"] is None:
            return "not measured"
        beside = [
            f"{name} {row[name]:.2f}" for name in ("base", "shuffled") if row[name] is not None
        ]
        return (
            f"{row['metric']} {row['after']:.2f} [{row['after_low']:.2f}, {row['after_high']:.2f}]"
            f" ({', '.join(beside)})"
        )
    if row["recovered"] is None:
        return "nothing to recover"
    text = f"{row['recovered']:z.2f} [{row['recovered_low']:z.2f}, {row['recovered_high']:z.2f}]"
    return text + (
        f" most {row['most']:.2f}"
        if row["most"] is not None and row["most"] > row["recovered"] + 0.005
        else ""
    )


def _gold_shown(
    cells: Mapping[tuple[str, str], dict[str, Any]], shown: str, names: Mapping[str, str]
) -> str:
    found = [
        r
        for (setting, t), r in cells.items()
        if t in names and plain_setting(setting) == shown and r["gold_after"] is not None
    ]
    if not found:
        return "-"
    row = max(found, key=lambda r: r["gold_after"])
    if row["gold"] is None:
        return (
            f"{row['metric']} {row['gold_after']:.2f} [{row['gold_after_low']:.2f},"
            f" {row['gold_after_high']:.2f}]"
        )
    return (
        f"{row['gold']:.2f} -> {row['gold_after']:.2f} [{row['gold_after_low']:.2f},"
        f" {row['gold_after_high']:.2f}]"
    )


def _named(row: Mapping[str, Any] | None) -> str:
    return "-" if row is None else f"{row['recovered']:z.2f} {row['setting'].split(' ')[0]}"
