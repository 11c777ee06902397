"""Numbers and findings in words: shared by the page and the terminal, so that both say the same."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from rayunlearn.analysis.coreset_table import extra_settings, smallest_sufficient
from rayunlearn.analysis.equivalence import EquivalenceCriterion
from rayunlearn.analysis.labels import (
    UNKNOWN,
    control_label,
    format_cell,
    format_gap_closed,
    format_interval,
    format_number,
    format_percent,
)
from rayunlearn.analysis.run_frames import (
    CONTEXT_SECTIONS,
    lower_is_forgotten,
    objective_of,
    planned_trials,
)
from rayunlearn.config import FULL_RATIO
from rayunlearn.errors import rejections_in_words
from rayunlearn.schema import STATUSES, TIMED_OUT
from rayunlearn.storage.run import Run


def frontier_in_words(table: pl.DataFrame, standard: EquivalenceCriterion) -> list[str]:
    """One sentence per row of a frontier; of a setting what tells it from others of the same data,
    model and method.

    Args:
        table: `analysis.equivalence.frontier_of_run` of a run.
        standard: the criterion that it was made with.

    Returns:
        The sentences, in the order of the rows.

    Example:
        >>> from rayunlearn.analysis.equivalence import frontier_of_run
        >>> from rayunlearn.storage.run import open_run
        >>> run = open_run("docs/notebooks/runs/coreset")
        >>> standard = EquivalenceCriterion(margin=0.1)
        >>> sentences = frontier_in_words(frontier_of_run(run, standard), standard)
        >>> sentences[1].partition(";")[0]
        'rmu + activation, random: 0.25 of the forget set is enough within 0.1 (p 0.014)'
    """
    sentences = _distinguishing_settings(
        table.select("method", "setting").unique(maintain_order=True).rows()
    )
    return [
        _sentence(row | {"setting": sentences[row["method"], row["setting"]]}, standard.margin)
        for row in table.iter_rows(named=True)
    ]


def _distinguishing_settings(named: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """(method, setting) -> the setting without what all settings of that method, data and model
    share.
    """
    groups: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for method, setting in named:
        groups.setdefault((method, *_context_parts(setting)), []).append((method, setting))
    shared = {
        key: set.intersection(*({*setting.split(", ")} for _, setting in group))
        for key, group in groups.items()
    }
    return {
        (method, setting): ", ".join(
            part for part in setting.split(", ") if part in key or part not in shared[key]
        )
        for key, group in groups.items()
        for method, setting in group
    }


def _context_parts(setting: str) -> tuple[str, ...]:
    return tuple(part for part in setting.split(", ") if part.startswith(CONTEXT_SECTIONS))


def _sentence(row: Mapping[str, Any], margin: float) -> str:
    name = ", ".join(filter(None, (row["method"], row["selector"], row["setting"])))
    if row["verdict"] == "no full set":
        return f"{name}: nothing to compare with, the full set was not measured."
    if row["verdict"] == "full set does not forget":
        return (
            f"{name}: the full set itself is no further than {margin:g} from base (difference"
            f" {row['difference']:+.3f}, p {row['stopped_p']:.2g})."
        )
    enough = (
        "not shown at any ratio"
        if row["ratio"] is None
        else f"{row['ratio']:g} of the forget set is enough within {margin:g} (p {row['p']:.2g})"
    )
    start = f"{name}: {enough}"
    if row["stopped_at"] is None:
        return f"{start}; no smaller ratio was run."
    if row["stopped_by"] == "unmeasured trials":
        return f"{start}; at {row['stopped_at']:g} some trials could not be measured."
    return (
        f"{start}; at {row['stopped_at']:g} {row['stopped_by']} differs by"
        f" {row['difference']:+.3f}, {_what_would_decide(row, margin)}."
    )


def _what_would_decide(row: Mapping[str, Any], margin: float) -> str:
    if abs(row["difference"]) >= margin:
        return f"which is outside {margin:g}: more data would not show equivalence"
    ways = [
        f"{row[f'{resource}_needed']:,} {resource}"
        for resource in ("documents", "seeds")
        if row[f"{resource}_needed"] is not None
    ]
    if not ways:
        return (
            "and neither more documents nor more seeds alone would decide it"
            if "seeds" in row["over"]
            else "and one seed cannot decide it"
        )
    return f"which {' or '.join(ways)} would decide, if it stays so" + (
        "" if "seeds" in row["over"] else " (one seed: its spread is unknown)"
    )


def finding_sentences(run: Run, table: pl.DataFrame) -> list[str]:
    """The run in plain sentences: what was there to forget, how little was enough, what the control
    did.
    """
    return [
        *starting_points(run, table),
        *_smallest_sentence(run, table),
        *control_sentences(table),
    ]


def caution_sentences(experiment: Mapping[str, Any]) -> str:
    """How the sentences about "not significantly different" are meant."""
    floor = format_percent(objective_of(experiment).utility_floor)
    return (
        "“Not significantly different” means here: the 95% interval of forgetting overlaps the"
        f" full set's, or lies beyond it, and utility stays at or above {floor} of the model"
        " before unlearning;"
        " the same for every larger part that was tried. This is a first look, not an equivalence"
        " test. The intervals are as wide as few seeds and few documents require, up to 4.3"
        " standard errors on either side with three seeds, and wide intervals overlap easily."
        " `rayunlearn frontier RUN --margin M` is the test."
    )


def status_counts(run: Run) -> dict[str, int]:
    """Ended trials of the plan by status, every status listed."""
    counts = dict(planned_trials(run).group_by("status").len().iter_rows())
    return {status: counts.get(status, 0) for status in STATUSES}


def status_lines(run: Run) -> list[str]:
    """Done, failed and why, what the tuning could not do, rejected: one line each, nothing left
    out.
    """
    counts = status_counts(run)
    return [
        _ended_line(counts, run.experiment.get("planned")),
        *_failed(planned_trials(run), "failed"),
        *_timed_out(planned_trials(run)),
        *failed_attack_lines(run),
        *run.experiment.get("notes", []),
        *_unplanned_lines(run, n_ended=sum(counts.values())),
        *_rejected_lines(run),
    ]


def _ended_line(counts: Mapping[str, int], planned: int | None) -> str:
    """How many trials have ended, and how."""
    n_ended = sum(counts.values())
    done = (
        f"{n_ended} of {planned} planned trials have ended"
        if planned
        else f"{n_ended} trials have ended"
    )
    parts = [
        f"{count} {status}" for status, count in counts.items() if count or status == "complete"
    ]
    return f"{done}: {', '.join(parts)}"


def _unplanned_lines(run: Run, *, n_ended: int) -> list[str]:
    """Trials of the folder that belong to no plan and no attack."""
    ended = run.trials.join(run.attacks, on="trial_id", how="anti").select(pl.len())
    n_unplanned = ended.collect().item() - n_ended
    if not n_unplanned:
        return []
    return [
        f"{n_unplanned} more trials in this folder are not in the plan (the experiment has"
        " changed since) and are not shown"
    ]


def _rejected_lines(run: Run) -> list[str]:
    """Documents that were rejected, by reason."""
    reasons = dict(run.quarantine.group_by("reason").len().collect().iter_rows())
    return [rejections_in_words(reasons)] if reasons else []


def failed_attack_lines(run: Run) -> list[str]:
    """Attacks that failed and why, a line for each reason; none where none failed."""
    return _failed(
        run.trials.join(run.attacks.select("trial_id"), on="trial_id", how="semi").collect(),
        "attack failed",
    )


def _failed(trials: pl.DataFrame, kind_of_trial: str) -> list[str]:
    counted = (
        trials.filter(pl.col("status") == "failed")
        .group_by("error_type", "error", "error_where")
        .len()
    )
    ordered = counted.sort(["len", "error"], descending=[True, False])
    return [
        f"{kind_of_trial} {count} x: {kind} at {location}: {message}"
        for kind, message, location, count in ordered.iter_rows()
    ]


def _timed_out(trials: pl.DataFrame) -> list[str]:
    """How many trials budget.trial_hours ended."""
    n_ended = trials.filter(pl.col("status") == TIMED_OUT).height
    text = "a larger budget.trial_hours runs them again"
    return [f"timed out {n_ended} x after budget.trial_hours; {text}"] if n_ended else []


def starting_points(run: Run, table: pl.DataFrame) -> list[str]:
    """A sentence per dataset: documents to forget, and what base and gold know of them."""
    metric = objective_of(run.experiment).forgetting
    settings, sentences = extra_settings(table), []
    for base in table.filter(
        pl.col("role") == "base", pl.col("forgetting").is_not_null()
    ).iter_rows(named=True):
        context = format_cell(base, settings)
        size = (
            format_number(int(base["n_forget"])) if base["n_forget"] is not None else "unknown many"
        )
        before = f"Before unlearning, {metric} on forget is {format_interval(base, 'forgetting')}"
        text = (
            f"{'With ' + context + ', the' if context else 'The'} forget set has {size} documents."
            f" {before}"
        )
        same = [pl.col(n).eq_missing(pl.lit(base[n])) for n in settings]
        gold = table.filter(pl.col("role") == "gold", *same, pl.col("forgetting").is_not_null())
        other = "there is no model that never saw the forget set to compare with"
        if gold.height:
            other = (
                "in a model that never saw the forget set it is"
                f" {format_interval(gold.row(0, named=True), 'forgetting')}"
            )
        sentences.append(f"{text}; {other}.")
    return sentences or ["The model before unlearning has not been measured yet."]


VERDICT_SENTENCES = {
    "full only": "Every part smaller than the full set differs significantly from it",
    "full set fails": (
        "Even the full set did not unlearn within the utility floor, so there is nothing to match"
    ),
    "no full set": (
        "The full set or the base model has not been measured, so there is nothing to match"
    ),
}


def _smallest_sentence(run: Run, table: pl.DataFrame) -> list[str]:
    """A sentence per method and selector for which less is not significantly different, then one
    per other verdict with all that it holds for.
    """
    goal = objective_of(run.experiment)
    sufficient = smallest_sufficient(
        table, utility_floor=goal.utility_floor, lower_forgets=lower_is_forgotten(run.experiment)
    )
    settings = extra_settings(table)
    places: dict[str, list[str]] = {verdict: [] for verdict in VERDICT_SENTENCES}
    sentences = []
    for row in sufficient.iter_rows(named=True):
        context = format_cell(row, settings)
        cell_words = (
            f"{row['method']}, {row['select.name']}{' (' + context + ')' if context else ''}"
        )
        if row["verdict"] != "smaller":
            places[row["verdict"]].append(cell_words)
            continue
        part, full = (_forgetting_at(table, row, ratio) for ratio in (row["ratio"], 1.0))
        enough = (
            f"{format_percent(row['ratio'])} of the forget set ({format_number(row['n_kept'])}"
            " documents) is not significantly different from the full set"
        )
        values = f"forget {part} against {full}"
        sentences.append(
            f"{cell_words}: {enough}, which does not show that they are equal: {values}."
        )
    return sentences + [
        f"{VERDICT_SENTENCES[verdict]}: {'; '.join(names)}."
        for verdict, names in places.items()
        if names
    ]


def _forgetting_at(table: pl.DataFrame, cell: Mapping[str, Any], ratio: float | None) -> str:
    """Forgetting with its interval at one ratio of a method and selector; the full set belongs to
    every selector.
    """
    names = ["method", *extra_settings(table), *([] if ratio == FULL_RATIO else ["select.name"])]
    same = [pl.col(name).eq_missing(pl.lit(cell[name])) for name in names]
    rows = table.filter(
        pl.col("role") == "grid", pl.col("select.ratio").eq_missing(pl.lit(ratio)), *same
    )
    return format_interval(rows.row(0, named=True), "forgetting") if rows.height else UNKNOWN


def control_sentences(table: pl.DataFrame) -> list[str]:
    """One sentence per distinct outcome: groups that ended with the same values share their
    control.
    """
    outcomes: dict[str, list[str]] = {}
    for row in table.filter(
        pl.col("role") == "control", pl.col("forgetting").is_not_null()
    ).iter_rows(named=True):
        way = (
            f", {format_gap_closed(row)} of the base-gold gap closed"
            if row["unlearning"] is not None
            else ""
        )
        outcome = (
            f"forget {format_interval(row, 'forgetting')}{way}. This part is not an effect of the"
            " forget loss."
        )
        outcomes.setdefault(outcome, []).append(
            control_label(row["group"]).replace(", ", " ") or "every method"
        )
    return [
        f"Retain loss alone, no forget loss (control for {', '.join(groups)}): {outcome}"
        for outcome, groups in outcomes.items()
    ]
