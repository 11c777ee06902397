"""Numbers and findings in words: shared by the page and the terminal, so that both say the same."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from rayunlearn.analysis.coreset_table import extra_settings
from rayunlearn.analysis.equivalence import (
    DEFAULT_MARGIN,
    EquivalenceCriterion,
    full_set_comparison,
)
from rayunlearn.analysis.intervals import NO_INTERVAL, interval_columns
from rayunlearn.analysis.labels import (
    control_label,
    format_cell,
    format_gap_closed,
    format_interval,
    format_mean,
    format_number,
    format_percent,
)
from rayunlearn.analysis.run_frames import (
    CONTEXT_SECTIONS,
    objective_of,
    planned_trials,
)
from rayunlearn.analysis.run_warnings import (
    BASE_KNOWS_LITTLE,
    BASE_UNMEASURED,
    GOLD_KNOWS,
    GOLD_UNMEASURED,
    NOTHING_TO_KEEP,
    RunWarning,
    run_warnings,
)
from rayunlearn.config import Objective
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
    if row["verdict"] == "full set over-forgets":
        return (
            f"{name}: the full set is over-forgotten, {-row['difference']:.3f} below gold (p"
            f" {row['stopped_p']:.2g}), so no part that equals it is called enough."
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
        *full_set_sentences(run),
        *control_sentences(table),
    ]


def warning_sentences(run: Run, table: pl.DataFrame) -> list[str]:
    """Why the numbers of a run may mean nothing, a sentence each; none where nothing is wrong.

    Args:
        run: an opened run (`storage.run.open_run`).
        table: `coreset_table(run)`.

    Returns:
        The sentences of `analysis.run_warnings`, those on base and gold first.

    Example:
        >>> from rayunlearn.analysis.coreset_table import coreset_table
        >>> from rayunlearn.storage.run import open_run
        >>> run = open_run("docs/notebooks/runs/coreset")
        >>> warning_sentences(run, coreset_table(run))
        []
    """
    goal = objective_of(run.experiment)
    return [_warning_sentence(warning, goal) for warning in run_warnings(run, table)]


def _warning_sentence(warning: RunWarning, goal: Objective) -> str:
    """What is wrong, on which numbers, and what cannot be said for it."""
    context = format_cell(warning.context, list(warning.context))
    where = f" ({context})" if context else ""
    if warning.rule in (BASE_UNMEASURED, BASE_KNOWS_LITTLE):
        return _base_sentence(warning, goal, where)
    if warning.rule in (GOLD_UNMEASURED, GOLD_KNOWS):
        return _gold_sentence(warning, where)
    if warning.rule == NOTHING_TO_KEEP:
        return (
            f"Base hardly knows {goal.utility_split}{where}, {goal.utility}"
            f" {format_mean(warning.utility)}: there is little to keep, so a floor under it says"
            " little. Choose a split that base knows (`objective.utility_split`)."
        )
    names = ", ".join(warning.retain_losses)
    return (
        f"No control{where}: without a forget loss there is no trial with the retain loss {names},"
        " so what the forget loss did is not known."
    )


def _base_sentence(warning: RunWarning, goal: Objective, where: str) -> str:
    """That base was not measured, or knows little."""
    if warning.rule == BASE_UNMEASURED:
        return f"Base was not measured{where}: nobody knows what there was to forget."
    chance = "" if warning.chance is None else f", chance {format_mean(warning.chance)}"
    return (
        f"Base hardly knows the forget set{where}, {goal.forgetting}"
        f" {format_mean(warning.base)}{chance}: there is little to forget, and fractions of it mean"
        " little. Train it on the data first (`model.teach`), or ask what it knows."
    )


def _gold_sentence(warning: RunWarning, where: str) -> str:
    """That gold was not measured, or knows as much as base."""
    if warning.rule == GOLD_UNMEASURED:
        return (
            f"There is no gold model{where}: how low is low enough is not known, and a very low"
            " value may be damage and not forgetting."
        )
    gap = format_interval(interval_columns("gap", warning.gap or NO_INTERVAL), "gap")
    return (
        f"Gold, which never saw the forget set, is as good as base{where}: base minus gold is"
        f" {gap}. Fractions of so small a gap mean nothing; the questions can be answered without"
        " the forget set, or gold was trained on it."
    )


def caution_sentences(experiment: Mapping[str, Any]) -> str:
    """How the verdicts on parts of the forget set are meant."""
    floor = format_percent(objective_of(experiment).utility_floor)
    return (
        f"“Equal” means here: forgetting and utility are shown to differ from the full set's by"
        f" less than {DEFAULT_MARGIN:g} (two one-sided t-tests at 5%). “Different”: one of them is"
        " shown to differ, and not to be equal. “Not decided”: neither is shown; the data are too"
        " few to say, and means that lie far apart may be among them. Each part is tested by"
        " itself, without correction for their number. A full set is compared with only where it"
        f" forgets and keeps {floor} of base's utility. `rayunlearn frontier RUN --margin M` says"
        " the smallest part that is equal, under another margin and corrected, and how many"
        " documents or seeds would decide."
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
        *training_notes(run),
        *failed_attack_lines(run),
        *run.experiment.get("notes", []),
        *_unplanned_lines(run, n_ended=sum(counts.values())),
        *_rejected_lines(run),
    ]


def training_notes(run: Run) -> list[str]:
    """One line per method and note that its trials carry: what may have come to nothing."""
    trials = planned_trials(run)
    # settings are columns from the first trial that has them
    if "method.forget" not in trials.columns:
        return []
    counts = (
        trials.drop_nulls("note")
        .group_by("method.forget", "note", maintain_order=True)
        .agg(pl.len(), pl.col("trial_id").first())
    )
    return [
        f"note: {forget}: {note} (trial {trial_id}{f' and {n - 1} more' if n > 1 else ''})"
        for forget, note, n, trial_id in counts.iter_rows()
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
    trials, are = ("trial", "is") if n_unplanned == 1 else ("trials", "are")
    return [
        f"{n_unplanned} more {trials} in this folder {are} not in the plan (the experiment has"
        f" changed since) and {are} not shown"
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
    metric = objective_of(run.experiment).forgetting_words
    settings, sentences = extra_settings(table), []
    for base in table.filter(
        pl.col("role") == "base", pl.col("forgetting").is_not_null()
    ).iter_rows(named=True):
        context = format_cell(base, settings)
        size = (
            format_number(int(base["n_forget"])) if base["n_forget"] is not None else "unknown many"
        )
        before = f"Before unlearning, {metric} is {format_interval(base, 'forgetting')}"
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


FULL_SET_SENTENCES = {
    "does not forget": "Even the full set is not shown to forget, so there is nothing to match",
    "loses utility": (
        "Even the full set did not unlearn within the utility floor, so there is nothing to match"
    ),
    "over-forgets": (
        "The full set is over-forgotten, so a part that matches it would be no better"
    ),
    "not measured": (
        "The full set or the base model has not been measured, so there is nothing to match"
    ),
}


def full_set_sentences(run: Run) -> list[str]:
    """A sentence per method and selector with what each part is, compared with the full set: equal,
    different or not decided; then one per full set that is no measure, with all that it holds for.

    Args:
        run: an opened run (`storage.run.open_run`).

    Returns:
        The sentences.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> full_set_sentences(open_run("docs/notebooks/runs/coreset"))[0].partition(" (")[0]
        'npo + nll, random, compared with the full set'
    """
    table = full_set_comparison(run)
    named = table.select("method", "setting").unique(maintain_order=True).rows()
    settings = _distinguishing_settings(named)
    excluded: dict[str, list[str]] = {verdict: [] for verdict in FULL_SET_SENTENCES}
    sentences = []
    for _, parts in table.group_by("setting", "method", "selector", maintain_order=True):
        first = parts.row(0, named=True)
        setting = settings[first["method"], first["setting"]]
        words = f"{first['method']}, {first['selector']}{f' ({setting})' if setting else ''}"
        if first["full_set"] in excluded:
            excluded[first["full_set"]].append(words)
            continue
        verdicts = "; ".join(
            f"{format_percent(row['ratio'])} ({format_number(row['n_kept'])} documents)"
            f" {_verdict_words(row)}: {format_interval(row, 'part')}"
            for row in parts.iter_rows(named=True)
        )
        full = format_interval(first, "full")
        sentences.append(f"{words}, compared with the full set (forget {full}): {verdicts}.")
    return sentences + [
        f"{FULL_SET_SENTENCES[verdict]}: {'; '.join(names)}."
        for verdict, names in excluded.items()
        if names
    ]


def verdict_sentences(run: Run) -> list[str]:
    """What the tests of the run come to, in numbers of parts; the smallest part that equals the
    full set, where one does.

    Args:
        run: an opened run (`storage.run.open_run`).

    Returns:
        The sentences; one that says so where no part was compared.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> verdict_sentences(open_run("docs/notebooks/runs/coreset"))[0].partition(":")[0]
        'Of 4 parts of the forget set that were compared with all of it'
    """
    table = full_set_comparison(run)
    is_excluded = pl.col("full_set").is_in(list(FULL_SET_SENTENCES))
    judged = table.filter(~is_excluded, pl.col("verdict").is_in(list(PART_VERDICTS)))
    sentences = []
    if judged.height:
        counts = dict(judged.group_by("verdict").len().iter_rows())
        numbers = ", ".join(
            f"{counts.get(name, 0)} {words}" for name, words in PART_VERDICTS.items()
        )
        sentences.append(
            f"Of {judged.height} parts of the forget set that were compared with all of it:"
            f" {numbers}."
        )
        equal = judged.filter(pl.col("verdict") == "equal")
        if equal.height:
            row = equal.sort("ratio").row(0, named=True)
            sentences.append(
                f"The smallest that is equal is {format_percent(row['ratio'])}"
                f" ({format_number(row['n_kept'])} documents): {row['method']}, {row['selector']}."
            )
    n_excluded = table.filter(is_excluded).height
    if n_excluded:
        sentences.append(
            f"{n_excluded} parts have no full set to be compared with, which the findings name."
        )
    return sentences or ["No part of the forget set was compared with all of it."]


PART_VERDICTS = {
    "equal": f"equal within {DEFAULT_MARGIN:g}",
    "different": "different",
    "not decided": "not decided",
}


def _verdict_words(row: Mapping[str, Any]) -> str:
    return f"equal within {DEFAULT_MARGIN:g}" if row["verdict"] == "equal" else row["verdict"]


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
