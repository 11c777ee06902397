"""The run on one page, for who has to decide: what was to be forgotten, what is left, how sure that
is, which attacks recover it.

`summary_blocks` is that page and the tables after it as plain blocks; `reporting.formats` renders
them as Markdown and PDF, the page report.html shows `run_summary` first. Every number is one of the
coreset table or of the matrix of attacks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from rayunlearn.analysis.coreset_table import coreset_table, extra_settings
from rayunlearn.analysis.labels import (
    UNKNOWN,
    format_cell,
    format_gap_closed,
    format_interval,
    format_mean,
    format_number,
    format_percent,
)
from rayunlearn.analysis.recovery import recovery_table
from rayunlearn.analysis.run_frames import objective_of, planned_trials
from rayunlearn.reporting.attack_tables import attack_labels, attack_tables
from rayunlearn.reporting.attribution_tables import attribution_sections
from rayunlearn.reporting.connectivity_tables import connectivity_sections
from rayunlearn.reporting.probe_set_tables import probe_set_sections
from rayunlearn.reporting.robustness_tables import faithfulness_sections, robustness_sections
from rayunlearn.reporting.sentences import caution_sentences, finding_sentences, status_lines
from rayunlearn.reporting.tables import (
    Section,
    coreset_view,
    has_untouched,
    method_label,
    over_forgotten_sentence,
    ranking_sentences,
    with_mark,
)
from rayunlearn.reporting.text_tables import (
    COMPARISON_HEADERS,
    HIDDEN_TEXTS,
    TEXTS_CAPTION,
    comparison_row,
    hides_texts,
    text_comparisons,
)
from rayunlearn.storage.run import Run

# methods and attacks on the first page; the tables behind it have them all
MAX_LINES = 12


@dataclass(frozen=True, kw_only=True)
class SummaryTable:
    """Headers and rows as text; the first column names the row."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class SummaryBlock:
    """A question, its answer in sentences, and the numbers, where a table says them better."""

    anchor: str
    title: str
    sentences: tuple[str, ...]
    table: SummaryTable | None = None


def run_summary(run: Run, table: pl.DataFrame) -> tuple[SummaryBlock, ...]:
    """The four questions of the first page, from a run and its coreset table.

    Args:
        run: an opened run (`storage.run.open_run`).
        table: `coreset_table(run)`.

    Returns:
        One answer per question: title, sentences and a small table.

    Example:
        >>> from rayunlearn.analysis.coreset_table import coreset_table
        >>> from rayunlearn.storage.run import open_run
        >>> run = open_run("docs/notebooks/runs/coreset")
        >>> [answer.title for answer in run_summary(run, coreset_table(run))]
        ['Forget set', 'Forgetting', 'Uncertainty', 'Recovery under attack']
    """
    return (
        _dataset_answer(run, table),
        _forgetting_answer(run, table),
        _uncertainty_answer(run, table),
        _recovery_answer(run),
    )


def summary_blocks(run: Run) -> tuple[SummaryBlock, ...]:
    """The first page, then findings, the whole table, the order at equal retention, attacks,
    statuses and provenance.
    """
    table = coreset_table(run)
    view = coreset_view(table, run.experiment)
    later = (
        SummaryBlock(
            anchor="findings",
            title="Findings",
            sentences=(*finding_sentences(run, table), caution_sentences(run.experiment)),
        ),
        SummaryBlock(
            anchor="table",
            title="Table",
            sentences=(INTERVALS,),
            table=SummaryTable(headers=view.headers, rows=view.rows),
        ),
        SummaryBlock(
            anchor="control", title="At equal retention", sentences=tuple(ranking_sentences(run))
        ),
        *_attack_blocks(run),
        *(
            SummaryBlock(anchor=s.anchor, title=s.title, sentences=(s.caption,), table=_table(s))
            for s in summary_sections(run)
        ),
        *_text_blocks(run),
        SummaryBlock(
            anchor="statuses", title="How the trials ended", sentences=tuple(status_lines(run))
        ),
    )
    return (*run_summary(run, table), *(section for section in later if section.sentences))


def _attack_blocks(run: Run) -> list[SummaryBlock]:
    """The matrix of attacks and the recovery curves; none before an attack has ended."""
    return [
        SummaryBlock(
            anchor="attacks",
            title="Attacks",
            sentences=(part.caption,),
            table=SummaryTable(headers=part.headers, rows=part.rows),
        )
        for part in attack_tables(run)
    ]


def _text_blocks(run: Run) -> list[SummaryBlock]:
    """What the models wrote, or that it is hidden; none where no metric read texts."""
    title, rows = "What the models wrote", tuple(map(comparison_row, text_comparisons(run)))
    if hides_texts(run):
        return [SummaryBlock(anchor="texts", title=title, sentences=(HIDDEN_TEXTS,))]
    table = SummaryTable(headers=COMPARISON_HEADERS, rows=rows)
    sentences = (TEXTS_CAPTION,)
    return (
        [SummaryBlock(anchor="texts", title=title, sentences=sentences, table=table)]
        if rows
        else []
    )


def summary_sections(run: Run) -> list[Section]:
    """The tables of explanations, faithfulness and metrics under attack that
    the run has rows for.
    """
    return [
        *probe_set_sections(run),
        *attribution_sections(run),
        *connectivity_sections(run),
        *faithfulness_sections(run),
        *robustness_sections(run),
    ]


def _table(section: Section) -> SummaryTable:
    return SummaryTable(headers=section.view.headers, rows=section.view.rows)


# seeds from which t intervals are no longer wide for want of them: 2.3 standard errors with ten
SEVERAL = 5

INTERVALS = (
    "[low, high]: 95% t intervals over seeds and documents, over documents alone where there is"
    " one seed; questions that the data says are about one person or fact count as drawn together."
)


def _dataset_answer(run: Run, table: pl.DataFrame) -> SummaryBlock:
    goal, settings = objective_of(run.experiment), extra_settings(table)
    sentences = []
    for base in table.filter(pl.col("role") == "base").iter_rows(named=True):
        context = format_cell(base, settings)
        size = (
            f"{format_number(int(base['n_forget']))} documents"
            if base["n_forget"] is not None
            else "Documents"
        )
        corpus = "the corpus" if "data.name" in settings else _corpora(run)
        text = f"{size} of {corpus}{' (' + context + ')' if context else ''}."
        if base["forgetting"] is not None:
            text += (
                " Asked about them, the model before unlearning scores"
                f" {format_interval(base, 'forgetting')} ({goal.forgetting})"
            )
            text += f"; {_gold_sentence(table, base, settings)}."
        sentences.append(text)
    return SummaryBlock(
        anchor="forgotten",
        title="Forget set",
        sentences=tuple(sentences) or ("Nothing has been measured yet.",),
    )


def _forgetting_answer(run: Run, table: pl.DataFrame) -> SummaryBlock:
    settings = extra_settings(table)
    grid = table.filter(pl.col("role") == "grid", pl.col("forgetting").is_not_null())
    full_set = grid.sort("select.ratio", descending=True, maintain_order=True).unique(
        ["method", *settings], keep="first", maintain_order=True
    )
    if not full_set.height:
        words = "No unlearned model has been measured yet."
        return SummaryBlock(anchor="left", title="Forgetting", sentences=(words,))
    goal = objective_of(run.experiment)
    aims = [] if goal.target == "none" else full_set["aim"].drop_nulls().unique().to_list()
    order = f"the nearest to {aims[0]}" if aims else "the least left"
    words = (
        f"After unlearning with the largest part of the forget set that was tried, {order} first"
        f" ({goal.forgetting} of the answers):"
    )
    more = full_set.height - MAX_LINES
    best_first = full_set.sort("objective").head(MAX_LINES)
    marked = over_forgotten_sentence(full_set)
    return SummaryBlock(
        anchor="left",
        title="Forgetting",
        sentences=(words, *([f"{more} more are in the table."] if more > 0 else []), *marked),
        table=_forgetting_table(best_first, settings, untouched=has_untouched(table)),
    )


def _forgetting_table(
    cells: pl.DataFrame, settings: Sequence[str], *, untouched: bool
) -> SummaryTable:
    """A row per cell: its settings, what is left, the gap closed, what is retained."""
    headers = (
        "method",
        *settings,
        "part used",
        "forgetting metric",
        "distance",
        "base-gold gap closed",
        "retained",
        *(["untouched"] if untouched else []),
    )
    rows = tuple(
        (
            method_label(row, settings),
            *(format_number(row[name]) for name in settings),
            format_percent(row["select.ratio"]),
            with_mark(format_interval(row, "forgetting"), row),
            format_interval(row, "distance"),
            format_gap_closed(row),
            format_interval(row, "utility"),
            *([format_interval(row, "untouched")] if untouched else []),
        )
        for row in cells.iter_rows(named=True)
    )
    return SummaryTable(headers=headers, rows=rows)


def _uncertainty_answer(run: Run, table: pl.DataFrame) -> SummaryBlock:
    grid = table.filter(pl.col("role") == "grid", pl.col("seeds") > 0)
    sentences = []
    if grid.height:
        low, high = (int(float(str(v))) for v in (grid["seeds"].min(), grid["seeds"].max()))
        seeds = f"{low}" if low == high else f"{low} to {high}"
        sentences.append(
            f"Every number is a mean over {seeds} repetitions with other random numbers."
            f" {INTERVALS}"
        )
        if low == 1:
            sentences.append(
                "Where there is one repetition the interval is over documents alone: it says"
                " nothing about what another repetition would give."
            )
        elif low < SEVERAL:
            sentences.append(
                f"Intervals from {low} repetitions are wide because {low} say little about what"
                " another would give: a true difference may well be inside them."
            )
    sentences += (
        [_control_words(table)]
        if table.filter(pl.col("role") == "control", pl.col("unlearning").is_not_null()).height
        else []
    )
    lost = planned_trials(run).filter(pl.col("status") != "complete").height
    if lost:
        sentences.append(
            f"Trials that did not end as complete: {lost}. They are counted and named below."
        )
    sentences.append(
        "What is measured is answers to these questions. That no question found it is no proof that"
        " it is gone."
    )
    return SummaryBlock(anchor="sure", title="Uncertainty", sentences=tuple(sentences))


def _recovery_answer(run: Run) -> SummaryBlock:
    title, table = "Recovery under attack", recovery_table(run)
    measured = table.filter(pl.col("recovered").is_not_null()).sort("recovered", descending=True)
    if not measured.height:
        words = NOTHING_REMOVED if table.height else NOT_ATTACKED
        return SummaryBlock(anchor="back", title=title, sentences=(words,))
    names = attack_labels(run, measured["attacked"].unique(maintain_order=True).to_list())
    rows = tuple(_attack_row(row, names) for row in measured.head(MAX_LINES).iter_rows(named=True))
    strongest = _strongest_sentence(measured.row(0, named=True), names)
    return SummaryBlock(
        anchor="back",
        title=title,
        sentences=(f"{_attacks_sentence(table)} {strongest}", RECOVERY_SCALE),
        table=SummaryTable(headers=RECOVERY_HEADERS, rows=rows),
    )


def _strongest_sentence(worst: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """What the row of the largest recovered fraction says."""
    if worst["recovered"] <= 0:
        return "None recovered anything."
    return (
        f"The strongest attack recovers {format_percent(worst['recovered'])} of what unlearning"
        f" removed: {worst['setting']}, on {names[worst['attacked']]}."
    )


NOT_ATTACKED = (
    "No attack has been run, so nothing here says that it cannot be recovered. `rayunlearn"
    " attack RUN` asks."
)

NOTHING_REMOVED = "The attacked models had lost nothing that could be recovered."

RECOVERY_SCALE = (
    "0% is what unlearning left, 100% what the model knew before. The last column is the"
    " same attack on the gold model: the information that the attack itself leaks."
)

RECOVERY_HEADERS = ("attack", "model", "recovered", "gold model: before -> after")


def _corpora(run: Run) -> str:
    names = planned_trials(run)
    corpora = (
        sorted({str(v) for v in names["data.name"].drop_nulls()})
        if "data.name" in names.columns
        else []
    )
    return f"the corpus {', '.join(corpora)}" if corpora else "the corpus"


def _gold_sentence(table: pl.DataFrame, base: Mapping[str, Any], settings: Sequence[str]) -> str:
    same = [pl.col(name).eq_missing(pl.lit(base[name])) for name in settings]
    gold = table.filter(pl.col("role") == "gold", *same, pl.col("forgetting").is_not_null())
    if not gold.height:
        return (
            "there is no model that never saw them to compare with, so how low is low enough is not"
            " known"
        )
    return (
        "a model that never saw them scores"
        f" {format_interval(gold.row(0, named=True), 'forgetting')}, which is as low as forgetting"
        " needs to go"
    )


def _control_words(table: pl.DataFrame) -> str:
    ways = table.filter(pl.col("role") == "control")["unlearning"].drop_nulls()
    # + 0.0: no minus before a zero
    low, high = (round(float(str(v)), 2) + 0.0 for v in (ways.min(), ways.max()))
    span = (
        format_percent(high) if low == high else f"{format_percent(low)} to {format_percent(high)}"
    )
    return (
        f"The same training without the forget loss (control) closes {span} of the base-gold"
        " gap: that"
        " part is not an effect of the forget loss."
    )


def _attacks_sentence(table: pl.DataFrame) -> str:
    attacks = table["setting"].str.split(" ").list.first().n_unique()
    return (
        f"{attacks} {'attack was' if attacks == 1 else 'attacks were'} run on"
        f" {table['attacked'].n_unique()} models."
    )


def _attack_row(row: Mapping[str, Any], names: Mapping[str, str]) -> tuple[str, ...]:
    recovered = format_percent(row["recovered"])
    if row["recovered_low"] is not None:
        recovered += (
            f" [{format_percent(row['recovered_low'])}, {format_percent(row['recovered_high'])}]"
        )
    gold = (
        f"{format_mean(row['gold'])} -> {format_mean(row['gold_after'])}"
        if row["gold_after"] is not None
        else UNKNOWN
    )
    return (row["setting"], names[row["attacked"]], recovered, gold)
