"""Numbers and findings in words: shared by the page and the terminal, so that both say the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from rayunlearn.results.analysis import (
    UNTOUCHED,
    controlled,
    extra_settings,
    lower_is_forgotten,
    objective_of,
    planned_trials,
    shortened,
    smallest_sufficient,
)
from rayunlearn.results.store import Run
from rayunlearn.schema import STATUSES

UNKNOWN = "–"


@dataclass(frozen=True, kw_only=True)
class View:
    """A coreset table as text: `headers` with their `meanings`, and rows of cells beside the role
    of each row.
    """

    headers: tuple[str, ...]
    meanings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    roles: tuple[str, ...]
    numeric: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table with what the terminal and the page say of it: anchor, title, how to read it."""

    anchor: str
    title: str
    caption: str
    view: View


# ---- numbers


def number(value: Any) -> str:
    """Three significant digits; integers as they are; `–` for nothing."""
    if value is None:
        return UNKNOWN
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def mean_of(value: float | None) -> str:
    """A mean in [0, 1] with two decimals, three below 0.01; anything else with three significant
    digits.
    """
    if value is None or abs(value) > 1:
        return number(value)
    return f"{value:.3f}" if 0 < abs(value) < 0.01 else f"{value:.2f}"


def percent(value: float | None) -> str:
    """A fraction as a percentage: whole from 10 % on, so that 1 % and 0.5 % stay apart."""
    if value is None:
        return UNKNOWN
    return f"{100 * value:.0f} %" if abs(value) >= 0.1 or value == 0 else f"{100 * value:.2g} %"


def with_interval(row: Mapping[str, Any], name: str) -> str:
    """`0.45 [0.43, 0.47]`, or `–`."""
    if row[name] is None:
        return UNKNOWN
    return f"{mean_of(row[name])} [{mean_of(row[f'{name}_low'])}, {mean_of(row[f'{name}_high'])}]"


def way_with_interval(row: Mapping[str, Any]) -> str:
    """`58 % [55, 61]`, or `–`."""
    if row["unlearning"] is None:
        return UNKNOWN
    mean, low, high = (round(100 * row[f"unlearning{end}"]) for end in ("", "_low", "_high"))
    return f"{mean} % [{low}, {high}]"


def fate(row: Mapping[str, Any]) -> str:
    """`all complete`, or the shares of the trials of the cell that ended otherwise."""
    parts = [
        f"{percent(row[f'share_{s}'])} {s}"
        for s in STATUSES
        if s != "complete" and row[f"share_{s}"]
    ]
    return ", ".join(parts) or "complete"


def name_of(row: Mapping[str, Any], settings: Sequence[str] = ()) -> str:
    """The method of a row; for a control also what it controls, beyond the `settings` and the
    retain loss that it shows itself.
    """
    group = (
        controlled(row["group"], without=[*settings, "method.retain"])
        if row["role"] == "control"
        else ""
    )
    return f"{row['method']} ({group})" if group else str(row["method"])


# ---- the table


def coreset_view(table: pl.DataFrame, experiment: Mapping[str, Any]) -> View:
    """The coreset table for reading, one text cell per column."""
    goal = objective_of(experiment)
    settings = extra_settings(table)
    interval = "mean and 95 % bootstrap interval"
    beside = has_untouched(table)
    untouched = (
        [
            (
                f"{UNTOUCHED} {goal.utility}",
                f"split {UNTOUCHED}, known and never shown to unlearning: {interval}",
                True,
            )
        ]
        if beside
        else []
    )
    columns = [
        (
            "method",
            (
                "forget loss + retain loss; control: retain loss alone, with the settings of the"
                " group in brackets"
            ),
            False,
        )
    ]
    columns += [(name, "setting that varies", False) for name in settings]
    columns += [
        ("selector", "how the kept documents were chosen", False),
        ("kept", "share and number of forget documents kept", True),
        ("coverage", "share of the forget set's facts that a kept document states", True),
        (f"forget {goal.forgetting}", f"split forget: {interval}", True),
        ("unlearned", "share of the way from base to gold, with its interval", True),
        (f"{goal.utility_split} {goal.utility}", f"split {goal.utility_split}: {interval}", True),
        *untouched,
        ("choice forget", "multiple choice, split forget, fraction right", True),
        (
            f"choice {goal.utility_split}",
            f"multiple choice, split {goal.utility_split}, fraction right",
            True,
        ),
        ("seeds", "trials measured", True),
        ("fate", "how the trials of the cell ended", False),
        ("steps", "optimizer steps, mean", True),
        ("shown", "forget documents shown, repeats counted, mean", True),
    ]
    headers, meanings, numeric = zip(*columns, strict=True)
    rows = tuple(_cells(row, settings, untouched=beside) for row in table.iter_rows(named=True))
    return View(
        headers=headers, meanings=meanings, numeric=numeric, rows=rows, roles=tuple(table["role"])
    )


def has_untouched(table: pl.DataFrame) -> bool:
    """Whether the data has a split that base and gold know and no unlearning run is shown."""
    return table["untouched"].null_count() < table.height


def _cells(row: Mapping[str, Any], settings: list[str], *, untouched: bool) -> tuple[str, ...]:
    grid, trained = row["role"] == "grid", row["role"] in ("grid", "control")
    selector = ("(all)" if row["select.ratio"] == 1 else row["select.name"]) if grid else UNKNOWN
    kept = f"{percent(row['select.ratio'])} ({number(row['n_kept'])})" if grid else UNKNOWN
    beside = (with_interval(row, "untouched"),) if untouched else ()
    measured = (
        with_interval(row, "forgetting"),
        way_with_interval(row),
        with_interval(row, "utility"),
        *beside,
    )
    choices = (mean_of(row["choice_forget"]), mean_of(row["choice_retain"]))
    effort = tuple(
        number(row[name]) if trained else UNKNOWN for name in ("optimizer_steps", "presentations")
    )
    front = (
        name_of(row, settings),
        *(shortened(number(row[name])) for name in settings),
        selector,
        kept,
        percent(row["coverage"]) if grid else UNKNOWN,
    )
    return (*front, *measured, *choices, number(row["seeds"]), fate(row), *effort)


# ---- findings


def findings(run: Run, table: pl.DataFrame) -> list[str]:
    """The run in plain sentences: what was there to forget, how little was enough, what the control
    did.
    """
    return [*starting_points(run, table), *_how_little(run, table), *controls(table)]


def caution(experiment: Mapping[str, Any]) -> str:
    """How the sentences about "not told apart" are meant."""
    floor = percent(objective_of(experiment).utility_floor)
    return (
        "“Not told apart” means here: the 95 % interval of forgetting overlaps the full set's, or"
        f" lies beyond it, and utility stays at or above {floor} of the model before unlearning;"
        " the same for every larger part that was tried. This is a first look, not an equivalence"
        " test: few seeds or few documents make wide intervals, and wide intervals overlap easily."
        " `rayunlearn frontier RUN --margin M` is the test."
    )


def fates(run: Run) -> dict[str, int]:
    """Ended trials of the plan by status, every status listed."""
    counts = dict(planned_trials(run).group_by("status").len().iter_rows())
    return {status: counts.get(status, 0) for status in STATUSES}


def fate_lines(run: Run) -> list[str]:
    """Done, failed and why, what the tuning could not do, set aside: one line each, nothing left
    out.
    """
    counts, planned = fates(run), run.experiment.get("planned")
    ended = sum(counts.values())
    done = (
        f"{ended} of {planned} planned trials have ended"
        if planned
        else f"{ended} trials have ended"
    )
    lines = [
        done
        + ": "
        + ", ".join(
            f"{count} {status}" for status, count in counts.items() if count or status == "complete"
        )
    ]
    lines += _failed(planned_trials(run), "failed")
    lines += failed_attack_lines(run)
    lines += run.experiment.get("notes", [])
    others = (
        run.trials.join(run.attacks, on="trial_id", how="anti").select(pl.len()).collect().item()
        - ended
    )
    if others:
        lines.append(
            f"{others} more trials in this folder are not in the plan (the experiment has changed"
            " since) and are not shown"
        )
    aside = (
        run.quarantine.group_by("reason")
        .len()
        .sort(["len", "reason"], descending=[True, False])
        .collect()
    )
    if aside.height:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in aside.iter_rows())
        lines.append(f"documents set aside: {aside['len'].sum()} ({reasons})")
    return lines


def failed_attack_lines(run: Run) -> list[str]:
    """Attacks that failed and why, a line for each reason; none where none failed."""
    return _failed(
        run.trials.join(run.attacks.select("trial_id"), on="trial_id", how="semi").collect(),
        "attack failed",
    )


def _failed(trials: pl.DataFrame, what: str) -> list[str]:
    counted = (
        trials.filter(pl.col("status") == "failed")
        .group_by("error_type", "error", "error_where")
        .len()
    )
    ordered = counted.sort(["len", "error"], descending=[True, False])
    return [
        f"{what} {count} x: {kind} at {where}: {message}"
        for kind, message, where, count in ordered.iter_rows()
    ]


def kept_words(selector: str, ratio: float) -> str:
    """`random 25 %`, or `whole set`."""
    return "whole set" if ratio == 1 else f"{selector} {percent(ratio)}"


def place_words(row: Mapping[str, Any], settings: list[str]) -> str:
    """`data.redundancy 20, data.name domain`: the varying settings of a row; an empty text says
    nothing.
    """
    return ", ".join(
        f"{name} {shortened(number(row[name]))}" for name in settings if row[name] not in (None, "")
    )


def starting_points(run: Run, table: pl.DataFrame) -> list[str]:
    """A sentence per bed: documents to forget, and what base and gold know of them."""
    metric = objective_of(run.experiment).forgetting
    settings, sentences = extra_settings(table), []
    for base in table.filter(
        pl.col("role") == "base", pl.col("forgetting").is_not_null()
    ).iter_rows(named=True):
        where = place_words(base, settings)
        size = number(int(base["n_forget"])) if base["n_forget"] is not None else "unknown many"
        before = f"Before unlearning, {metric} on forget is {with_interval(base, 'forgetting')}"
        text = (
            f"{'With ' + where + ', the' if where else 'The'} forget set has {size} documents."
            f" {before}"
        )
        same = [pl.col(n).eq_missing(pl.lit(base[n])) for n in settings]
        gold = table.filter(pl.col("role") == "gold", *same, pl.col("forgetting").is_not_null())
        other = "there is no model that never saw the forget set to compare with"
        if gold.height:
            other = (
                "in a model that never saw the forget set it is"
                f" {with_interval(gold.row(0, named=True), 'forgetting')}"
            )
        sentences.append(f"{text}; {other}.")
    return sentences or ["The model before unlearning has not been measured yet."]


VERDICTS = {
    "full only": "Every part smaller than the full set is told apart from it",
    "full set fails": (
        "Even the full set did not unlearn within the utility floor, so there is nothing to match"
    ),
    "no full set": (
        "The full set or the base model has not been measured, so there is nothing to match"
    ),
}


def _how_little(run: Run, table: pl.DataFrame) -> list[str]:
    """A sentence per method and selector for which less is not told apart, then one per other
    verdict with all that it holds for.
    """
    goal = objective_of(run.experiment)
    found = smallest_sufficient(
        table, utility_floor=goal.utility_floor, lower_forgets=lower_is_forgotten(run.experiment)
    )
    settings = extra_settings(table)
    places: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    sentences = []
    for row in found.iter_rows(named=True):
        where = place_words(row, settings)
        place = f"{row['method']}, {row['select.name']}{' (' + where + ')' if where else ''}"
        if row["verdict"] != "smaller":
            places[row["verdict"]].append(place)
            continue
        part, full = (_forgetting_at(table, row, ratio) for ratio in (row["ratio"], 1.0))
        enough = (
            f"{percent(row['ratio'])} of the forget set ({number(row['n_kept'])} documents) is not"
            " told apart from the full set"
        )
        sentences.append(f"{place}: {enough}: forget {part} against {full}.")
    return sentences + [
        f"{VERDICTS[verdict]}: {'; '.join(names)}." for verdict, names in places.items() if names
    ]


def _forgetting_at(table: pl.DataFrame, place: Mapping[str, Any], ratio: float | None) -> str:
    """Forgetting with its interval at one ratio of a method and selector; the full set belongs to
    every selector.
    """
    names = ["method", *extra_settings(table), *([] if ratio == 1 else ["select.name"])]
    same = [pl.col(name).eq_missing(pl.lit(place[name])) for name in names]
    found = table.filter(
        pl.col("role") == "grid", pl.col("select.ratio").eq_missing(pl.lit(ratio)), *same
    )
    return with_interval(found.row(0, named=True), "forgetting") if found.height else UNKNOWN


def controls(table: pl.DataFrame) -> list[str]:
    """One sentence per distinct outcome: groups that ended with the same values share their
    control.
    """
    outcomes: dict[str, list[str]] = {}
    for row in table.filter(
        pl.col("role") == "control", pl.col("forgetting").is_not_null()
    ).iter_rows(named=True):
        way = (
            f", {way_with_interval(row)} of the way from base to gold"
            if row["unlearning"] is not None
            else ""
        )
        outcome = (
            f"forget {with_interval(row, 'forgetting')}{way}. That much is not the forget loss's"
            " doing."
        )
        outcomes.setdefault(outcome, []).append(
            controlled(row["group"]).replace(", ", " ") or "every method"
        )
    return [
        f"Retain loss alone, no forget loss (control for {', '.join(groups)}): {outcome}"
        for outcome, groups in outcomes.items()
    ]
