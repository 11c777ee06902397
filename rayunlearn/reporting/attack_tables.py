"""Tables of attacks: the matrix of recoveries, recovery curves, labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.analysis.labels import format_number
from rayunlearn.analysis.recovery import plain_setting, recovery_table, worst_case
from rayunlearn.analysis.run_frames import CELL_SETTINGS, objective_of
from rayunlearn.storage.run import Run

WORST_CASE = "worst case"
PLAIN_SETTING = "no attack"

# trains on what is then asked, so that gold learns it too
TRAINS_MODEL = ("relearning",)


def control_rises(table: pl.DataFrame) -> list[str]:
    """A line for every attack after which gold, which never saw the answers, answers more of them:
    the information leaked by the attack.

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
    return [_rise_in_words(label, row) for label, row in worst.items()]


def _rise_in_words(label: str, row: Mapping[str, Any]) -> str:
    reason = (
        "it trains on what is asked"
        if label.split(" ")[0] in TRAINS_MODEL
        else "that much is information leaked by the attack (gold-model control)"
    )
    by = _bracketed(row, "gold_rise")
    return f"gold, which never saw the answers, rises by {by} under {label}: {reason}"


@dataclass(frozen=True, kw_only=True)
class AttackMatrix:
    """The table of `rayunlearn attack` and of the report: attacks down, attacked trials across; the
    other way round where there are more trials.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    notes: tuple[str, ...] = ()


def attack_tables(run: Run, *, metric: str = "") -> tuple[AttackMatrix, ...]:
    """`values_by_trial`, and under it `recovery_curves` where an attack trained; nothing before an
    attack has ended.
    """
    table = recovery_table(run, metric=metric)
    if not table.height:
        return ()
    matrix, curves = attack_matrix(run, table, metric=metric), recovery_curves(run, table)
    return (matrix, curves) if curves.rows else (matrix,)


def recovery_curves(run: Run, table: pl.DataFrame) -> AttackMatrix:
    """Of every attack with a recovery curve or a control of its own: strength, the curve in two
    numbers, what the control recovered.
    """
    names = attack_labels(run, table["attacked"].unique(maintain_order=True).to_list())
    rows = [
        (
            row["setting"],
            names[row["attacked"]],
            f"{row['recovered']:z.2f}",
            _format_two_digits(row["area"]),
            _format_half_steps(row),
            _format_two_digits(row["companion"]),
            _format_learned(row),
            _format_two_digits(row["utility_loss"]),
        )
        for row in (
            table.filter(pl.col("area").is_not_null() | pl.col("companion").is_not_null())
            .sort("attacked", "setting")
            .iter_rows(named=True)
        )
    ]
    return AttackMatrix(headers=CURVE_HEADERS, rows=tuple(rows), caption=CURVE_CAPTION)


CURVE_HEADERS = (
    "attack at its strength",
    "trial",
    "recovered",
    "area under curve",
    "steps to half",
    "control",
    "on what it learned from",
    "utility lost",
)

CURVE_CAPTION = (
    "Area: mean recovered fraction over the steps. Steps to half: where the curve first"
    " reaches 0.5. Control: recovered fraction after equal steps on unrelated text, a soft"
    " prompt learned towards random text, or a random prefix; '-' where the attack is"
    " itself that. On what it learned from: of soft prompts, the metric on the true answers"
    " that they were learned from (control: on the random text): a control as high says"
    " that reaching an answer so is no sign of knowing it. Utility lost: the share of the"
    " model's utility that the attack cost."
)


def attack_matrix(run: Run, table: pl.DataFrame, *, metric: str = "") -> AttackMatrix:
    """Recovered fractions [interval], the most of any seed or strength, and the same attack on
    gold.
    """
    names = attack_labels(run, table["attacked"].unique(maintain_order=True).to_list())
    settings = table["setting"].unique(maintain_order=True).to_list()
    cells = {(row["setting"], row["attacked"]): row for row in table.iter_rows(named=True)}
    rows = [
        (
            label,
            *(
                _format_recovery(_label_of_cell(cells, table, label, attacked))
                for attacked in names
            ),
            _format_gold(cells, label, names),
        )
        for label in _short_label(settings)
    ]
    worst = {row["attacked"]: row for row in worst_case(table).iter_rows(named=True)}
    grid = (("attack", *names.values(), "gold: before → after"), _plain_row(table, names), *rows)
    grid += ((WORST_CASE, *(_named(worst.get(attacked)) for attacked in names), ""),)
    # what there is more of goes down the page
    if len(names) > len(settings):
        grid = (("trial", *(row[0] for row in grid[1:])), *list(zip(*grid, strict=True))[1:])
    return AttackMatrix(
        headers=grid[0],
        rows=grid[1:],
        notes=tuple(control_rises(table)),
        caption=(
            f"Recovered fraction of {metric or objective_of(run.experiment).forgetting} on forget,"
            " 0: as unlearned, 1: as base; [low, high]: 95% interval over seeds and documents"
            " (Fieller);"
            " 'most': the best single seed or strength, picked by looking at these very documents."
        ),
    )


def attack_labels(run: Run, attacked: Sequence[str]) -> dict[str, str]:
    """Attacked trial -> a short name: method, retain loss, selector, ratio and seed as far as they
    differ, the folder of an external model, and the id's beginning."""
    trials = run.trials.filter(pl.col("trial_id").is_in(list(attacked))).collect()
    varying = [
        n
        for n in (*CELL_SETTINGS, "train.seed")
        if n in trials.columns and trials[n].n_unique() > 1
    ] or ["method.forget"]
    rows = {row["trial_id"]: row for row in trials.iter_rows(named=True)}
    model_names = {t: Path(rows[t].get("model.unlearned") or "").name for t in attacked}
    return {
        t: " ".join(
            [
                *(
                    [model_names[t]]
                    if model_names[t]
                    else [_format_cell(n, rows[t].get(n)) for n in varying]
                ),
                t[:6],
            ]
        )
        for t in attacked
    }


def _format_learned(row: Mapping[str, Any]) -> str:
    if row["learned"] is None:
        return "-"
    return f"{row['learned']:.2f} (control {_format_two_digits(row['companion_learned'])})"


def _format_two_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:z.2f}"


def _format_half_steps(row: Mapping[str, Any]) -> str:
    """Steps to half; `never` for a curve that does not get there."""
    if row["area"] is None:
        return "-"
    return "never" if row["half"] is None else f"{row['half']:.1f}"


def _format_cell(name: str, value: Any) -> str:
    return f"seed {value}" if name.endswith("seed") else format_number(value)


def _short_label(settings: Sequence[str]) -> list[str]:
    """Settings without the strengths that were searched, which differ from trial to trial, each
    once.
    """
    return list(dict.fromkeys(plain_setting(setting) for setting in settings))


def _label_of_cell(
    cells: Mapping[tuple[str, str], dict[str, Any]], table: pl.DataFrame, label: str, attacked: str
) -> dict[str, Any] | None:
    """The attack's row on that trial; of several strengths (panels run one after another) the one
    that got most back.
    """
    cells_of_label = [
        row
        for (setting, trial), row in cells.items()
        if trial == attacked and plain_setting(setting) == label
    ]
    return max(
        cells_of_label,
        key=lambda row: row["recovered"] if row["recovered"] is not None else -np.inf,
        default=None,
    )


def _plain_row(table: pl.DataFrame, names: Mapping[str, str]) -> tuple[str, ...]:
    """What the metric was before any attack, on the documents of the attack that asked most."""
    largest = {
        row["attacked"]: row
        for row in table.filter(pl.col("metric") == "").sort("documents").iter_rows(named=True)
    }
    gold = next((f"{row['gold']:.2f}" for row in largest.values() if row["gold"] is not None), "-")
    return (
        PLAIN_SETTING,
        *(
            f"{largest[t]['unlearned']:.2f} (base {largest[t]['base']:.2f})"
            if t in largest
            else "-"
            for t in names
        ),
        gold,
    )


def _format_recovery(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    if row["metric"]:
        # of the forget questions held out none has an answer that the probe was fitted to
        if row["after"] is None:
            return "not measured"
        notes = [
            f"{name} {row[name]:.2f}" for name in ("base", "shuffled") if row[name] is not None
        ]
        return f"{row['metric']} {_bracketed(row, 'after')} ({', '.join(notes)})"
    if row["recovered"] is None:
        return "nothing to recover"
    return _bracketed(row, "recovered") + (
        f" most {row['most']:.2f}"
        if row["most"] is not None and row["most"] > row["recovered"] + 0.005
        else ""
    )


def _format_gold(
    cells: Mapping[tuple[str, str], dict[str, Any]], label: str, names: Mapping[str, str]
) -> str:
    cells_of_label = [
        r
        for (setting, t), r in cells.items()
        if t in names and plain_setting(setting) == label and r["gold_after"] is not None
    ]
    if not cells_of_label:
        return "-"
    row = max(cells_of_label, key=lambda r: r["gold_after"])
    before = row["metric"] if row["gold"] is None else f"{row['gold']:.2f} →"
    return f"{before} {_bracketed(row, 'gold_after')}"


def _bracketed(row: Mapping[str, Any], name: str) -> str:
    """`0.45 [0.43, 0.47]`; without brackets where there is no interval. No minus before a zero."""
    ends = [row[f"{name}_low"], row[f"{name}_high"]]
    interval = "" if None in ends else f" [{ends[0]:z.2f}, {ends[1]:z.2f}]"
    return f"{row[name]:z.2f}{interval}"


def _named(row: Mapping[str, Any] | None) -> str:
    return "-" if row is None else f"{row['recovered']:z.2f} {row['setting'].split(' ')[0]}"
