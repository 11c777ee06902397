"""The run on one page, for readers who have to decide: what was to be forgotten, how it was tested,
what is left, what attacks recover, how sure that is, and what was not tested.

`summary_blocks` is that page and the tables after it as plain blocks; `reporting.formats` renders
them as Markdown and PDF, the page report.html shows `run_summary` first. Every number is one of the
coreset table or of the matrix of attacks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from rayunlearn.analysis.coreset_table import (
    TEXT,
    coreset_table,
    extra_settings,
    whole_document_cells,
)
from rayunlearn.analysis.equal_retention import has_calibrated
from rayunlearn.analysis.labels import (
    UNKNOWN,
    format_cell,
    format_gap_closed,
    format_interval,
    format_mean,
    format_number,
    format_percent,
    shorten,
)
from rayunlearn.analysis.probe_sets import further_sets
from rayunlearn.analysis.recovery import recovery_table
from rayunlearn.analysis.run_frames import (
    UNTOUCHED,
    examples_without_attacks,
    objective_of,
    planned_trials,
)
from rayunlearn.reporting.attack_tables import attack_labels, attack_tables
from rayunlearn.reporting.attribution_tables import attribution_sections
from rayunlearn.reporting.connectivity_tables import connectivity_sections
from rayunlearn.reporting.probe_set_tables import probe_set_sections
from rayunlearn.reporting.retain_tables import retain_sections
from rayunlearn.reporting.robustness_tables import faithfulness_sections, robustness_sections
from rayunlearn.reporting.sentences import (
    caution_sentences,
    finding_sentences,
    status_lines,
    verdict_sentences,
    warning_sentences,
)
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
from rayunlearn.reporting.tuning_tables import tuning_sections
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
    """A question, its answer in sentences, and the numbers, where a table says them better;
    `named_by`: columns that name a row of it.
    """

    anchor: str
    title: str
    sentences: tuple[str, ...]
    table: SummaryTable | None = None
    named_by: int = 1


def run_summary(run: Run, table: pl.DataFrame) -> tuple[SummaryBlock, ...]:
    """The questions of the first page, from a run and its coreset table.

    Args:
        run: an opened run (`storage.run.open_run`).
        table: `coreset_table(run)`.

    Returns:
        One answer per question: title, sentences and, where numbers say it better, a small table.

    Example:
        >>> from rayunlearn.analysis.coreset_table import coreset_table
        >>> from rayunlearn.storage.run import open_run
        >>> run = open_run("docs/notebooks/runs/coreset")
        >>> [answer.anchor for answer in run_summary(run, coreset_table(run))]
        ['forgotten', 'tested', 'left', 'back', 'sure', 'untested', 'outcome']
    """
    return (
        _dataset_answer(run, table),
        _test_answer(run, table),
        _forgetting_answer(run, table),
        _recovery_answer(run),
        _uncertainty_answer(run, table),
        _untested_answer(run, table),
        _outcome_answer(run),
    )


def summary_block(run: Run, table: pl.DataFrame, anchor: str) -> SummaryBlock:
    """One answer of the first page by its anchor.

    Args:
        run: an opened run.
        table: `coreset_table(run)`.
        anchor: `forgotten`, `tested`, `left`, `back`, `sure`, `untested` or `outcome`.

    Returns:
        The answer.

    Example:
        >>> from rayunlearn.analysis.coreset_table import coreset_table
        >>> from rayunlearn.storage.run import open_run
        >>> run = open_run("docs/notebooks/runs/coreset")
        >>> summary_block(run, coreset_table(run), "left").title
        'What is left'
    """
    return next(block for block in run_summary(run, table) if block.anchor == anchor)


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
            named_by=3 + len(extra_settings(table)),
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
    blocks = (_warning_block(run, table), *run_summary(run, table), *later)
    return tuple(section for section in blocks if section.sentences)


def _warning_block(run: Run, table: pl.DataFrame) -> SummaryBlock:
    """Why the numbers may mean nothing; without sentences where nothing is wrong."""
    return SummaryBlock(
        anchor="warnings",
        title="Read the numbers with care",
        sentences=tuple(warning_sentences(run, table)),
    )


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
    """The tables of tuned hyperparameters, explanations, faithfulness and metrics under attack that
    the run has rows for.
    """
    return [
        *tuning_sections(run),
        *probe_set_sections(run),
        *attribution_sections(run),
        *connectivity_sections(run),
        *faithfulness_sections(run),
        *robustness_sections(run),
        *retain_sections(run),
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
        title="What was to be forgotten",
        sentences=tuple(sentences) or ("Nothing has been measured yet.",),
    )


def _forgetting_answer(run: Run, table: pl.DataFrame) -> SummaryBlock:
    grid = table.filter(pl.col("role") == "grid", pl.col("forgetting").is_not_null())
    settings, grid, other_texts = _without_other_texts(extra_settings(table), grid)
    full_set = grid.sort("select.ratio", descending=True, maintain_order=True).unique(
        ["method", *settings], keep="first", maintain_order=True
    )
    if not full_set.height:
        words = "No unlearned model has been measured yet."
        return SummaryBlock(anchor="left", title="What is left", sentences=(words,))
    goal = objective_of(run.experiment)
    aims = [] if goal.target == "none" else full_set["aim"].drop_nulls().unique().to_list()
    order = f"the nearest to {aims[0]}" if aims else "the least left"
    n = full_set.height
    part = f"; {MAX_LINES} of {n}, the others are in the table" if n > MAX_LINES else ""
    words = (
        f"After unlearning with the largest part of the forget set that was tried, {order} first"
        f"{part} ({goal.forgetting} of the answers):"
    )
    best_first = full_set.sort("objective").head(MAX_LINES)
    marked = over_forgotten_sentence(full_set)
    return SummaryBlock(
        anchor="left",
        title="What is left",
        sentences=(words, *other_texts, *marked),
        table=_forgetting_table(
            pl.concat([_beside(table), best_first]), settings, untouched=has_untouched(table, goal)
        ),
    )


def _without_other_texts(
    settings: list[str], grid: pl.DataFrame
) -> tuple[list[str], pl.DataFrame, list[str]]:
    """The settings and cells of whole documents, and a sentence on those that trained on other
    texts in their place; all as it is where there are no such cells beside.
    """
    whole = whole_document_cells(grid)
    if whole.height == grid.height:
        return settings, grid, []
    others = grid.filter(pl.col(TEXT) != whole[TEXT][0]).group_by(TEXT, maintain_order=True)
    arms = []
    for row in others.agg(low=pl.min("forgetting"), high=pl.max("forgetting")).to_dicts():
        ends = dict.fromkeys((format_mean(row["low"]), format_mean(row["high"])))
        arms.append(f"{str(row[TEXT]).replace('_', ' ')} {' to '.join(ends)}")
    words = "Trained as long on other texts in their place, as controls, models leave: "
    return [name for name in settings if name != TEXT], whole, [f"{words}{', '.join(arms)}."]


def _beside(table: pl.DataFrame) -> pl.DataFrame:
    """Base, gold and the controls, what the unlearned models are read against; of many contexts
    the first lines alone.
    """
    roles = pl.col("role").is_in(["base", "gold", "control"])
    return table.filter(roles, pl.col("forgetting").is_not_null()).head(MAX_LINES)


def _forgetting_table(
    cells: pl.DataFrame, settings: Sequence[str], *, untouched: bool
) -> SummaryTable:
    """A row per cell: its settings, what is left, the gap closed, what is retained."""
    headers = (
        "model",
        *settings,
        "part used",
        "left of the forget set",
        "base-gold gap closed",
        "retained",
        *(["untouched"] if untouched else []),
    )
    rows = tuple(
        (
            method_label(row, settings),
            *(shorten(format_number(row[name])) for name in settings),
            format_percent(row["select.ratio"]),
            with_mark(format_interval(row, "forgetting"), row),
            format_gap_closed(row),
            format_interval(row, "utility"),
            *([format_interval(row, "untouched")] if untouched else []),
        )
        for row in cells.iter_rows(named=True)
    )
    return SummaryTable(headers=headers, rows=rows)


def _test_answer(run: Run, table: pl.DataFrame) -> SummaryBlock:
    """Methods, questions and measures, and the models that stand beside the unlearned ones."""
    goal = objective_of(run.experiment)
    grid = table.filter(pl.col("role") == "grid")
    if not grid.height:
        words = "No unlearned model has been trained yet."
        return SummaryBlock(anchor="tested", title="How it was tested", sentences=(words,))
    questions = _questions(run)
    measures = [
        f"what is left of the forget set by {goal.forgetting}{goal.after_attack}"
        f" on {questions.get('forget', 'its')} questions",
        f"what should stay by {goal.utility} on {questions.get(goal.utility_split, 'the')}"
        f" questions of the {goal.utility_split} set",
    ]
    if has_untouched(table, goal):
        measures.append(
            f"and on {questions.get(UNTOUCHED, 'the')} questions that base knows and no training"
            " was shown (untouched)"
        )
    meanings = {row["name"]: row["meaning"] for row in run.experiment.get("metrics", ())}
    explained = [
        f"{name}: {meanings[name]}."
        for name in dict.fromkeys((goal.forgetting, goal.utility))
        if name in meanings
    ]
    methods = method_sentences(run, table)
    sentences = (
        f"Unlearned with {_joined(grid['method'].unique(maintain_order=True).to_list())}, on"
        f" {_joined(_parts(grid))} of the forget set.",
        *methods,
        f"Measured: {'; '.join(measures)}. {' '.join(explained)}".strip(),
        _anchors_sentence(table),
    )
    return SummaryBlock(anchor="tested", title="How it was tested", sentences=sentences)


BESIDE = {
    "base": "base, the model before unlearning",
    "gold": "gold, a model trained without the forget set",
    "control": "control, the same training with the retain loss alone",
}


def _anchors_sentence(table: pl.DataFrame) -> str:
    """Which models the unlearned ones are read against, of those that the run has."""
    named = [words for role, words in BESIDE.items() if role in table["role"].to_list()]
    return f"Read against: {'; '.join(named) or 'no other model'}."


def method_sentences(run: Run, table: pl.DataFrame) -> list[str]:
    """What each method and selector of the grid is, with its source; none for a run of an earlier
    version, which did not write it down.
    """
    grid = table.filter(pl.col("role") == "grid")
    used = {
        (setting, value)
        for setting in ("method.forget", "method.retain", "select.name")
        for value in grid[setting].drop_nulls()
    }
    return [
        f"{row['name']}: {row['meaning']} ({row['source']})."
        for row in run.experiment.get("names") or ()
        if (row["setting"], row["name"]) in used
    ]


def _questions(run: Run) -> dict[str, str]:
    """Split -> how many questions of it were asked of some trial, at most."""
    counts = (
        examples_without_attacks(run).group_by("split").agg(pl.col("doc_id").n_unique()).collect()
    )
    return {split: format_number(n) for split, n in counts.iter_rows()}


def _parts(grid: pl.DataFrame) -> list[str]:
    """`100%`, `25%` and so on, the largest first."""
    ratios = grid["select.ratio"].drop_nulls().unique().sort(descending=True)
    return [format_percent(ratio) for ratio in ratios]


def _joined(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _untested_answer(run: Run, table: pl.DataFrame) -> SummaryBlock:
    """What a reader may take for tested and is not, as far as the run's tables say."""
    first = (
        "What is measured is answers to these questions. That no question found it is no proof that"
        " it is gone."
    )
    rules = (*_attack_gaps(run), *_question_gaps(run, table), *_comparison_gaps(run))
    sentences = (first, *(sentence for is_so, sentence in rules if is_so))
    return SummaryBlock(anchor="untested", title="What was not tested", sentences=sentences)


# whether it holds, and the sentence
Gap = tuple[bool, str]


def _attack_gaps(run: Run) -> tuple[Gap, ...]:
    """Attacks that were not run, and models that none was run on."""
    trials = planned_trials(run)
    is_staged = "stage" in trials.columns
    n_unlearned = trials.filter(pl.col("stage") == "unlearned").height if is_staged else 0
    n_attacked = run.attacks.select("attacked").unique().collect().height
    return (
        (n_attacked == 0, "No attack was run: whether somebody recovers it was not asked."),
        (
            0 < n_attacked < n_unlearned,
            f"Attacks were run on {n_attacked} of {n_unlearned} unlearned models, the others were"
            " not attacked.",
        ),
    )


def _question_gaps(run: Run, table: pl.DataFrame) -> tuple[Gap, ...]:
    """Questions that were not asked."""
    measured = run.evals.select("split", "metric").unique().collect()
    names = [*measured["metric"], *measured["split"]]
    return (
        (
            not any("paraphras" in name for name in names),
            "The questions were not asked in other words: a model may have forgotten the wording"
            " alone.",
        ),
        (
            table["untouched"].null_count() == table.height and not further_sets(run),
            "Nothing was asked that no training was shown: what else was damaged is not known.",
        ),
    )


def _comparison_gaps(run: Run) -> tuple[Gap, ...]:
    """Models, corpora, searches and comparisons that there was one of, or none."""
    trials, search = planned_trials(run), run.plan.select("search", "role").collect()
    is_tuned = "tuning" in search["role"]
    n_models, n_corpora = (
        trials[f"{name}_digest"].drop_nulls().n_unique() for name in ("model", "corpus")
    )
    return (
        (n_models == 1, "One base model: another may behave otherwise."),
        (n_corpora == 1, "One corpus: another may behave otherwise."),
        (
            is_tuned and not search["search"].fill_null(0).max(),
            "Each group was tuned once: how much another search would find is in no interval.",
        ),
        (not is_tuned, "Nothing was tuned: other hyperparameters may do better or worse."),
        (
            not has_calibrated(run),
            "Methods were not compared at equal retention: one that keeps more may have forgotten"
            " less for it.",
        ),
    )


def _outcome_answer(run: Run) -> SummaryBlock:
    """The hypothesis as the experiment has it, and beside it what the tests of this run say."""
    hypothesis = str(run.experiment.get("question", "")).strip().partition("\n\n")[2]
    paragraphs = [" ".join(part.split()) for part in hypothesis.split("\n\n") if part.strip()]
    verdicts = verdict_sentences(run)
    stated = [part for part in paragraphs if part.startswith(("Hypothesis", "Refuted"))]
    return SummaryBlock(
        anchor="outcome",
        title="Hypothesis and outcome" if stated else "Outcome",
        sentences=(*stated, *verdicts),
    )


def _uncertainty_answer(run: Run, table: pl.DataFrame) -> SummaryBlock:
    grid = table.filter(pl.col("role") == "grid", pl.col("seeds") > 0)
    sentences = []
    if grid.height:
        low, high = (int(float(str(v))) for v in (grid["seeds"].min(), grid["seeds"].max()))
        seeds = f"{low}" if low == high else f"{low} to {high}"
        repeated = (
            "Every number is of one training, with one random seed."
            if high == 1
            else f"Every number is a mean over {seeds} random seeds."
        )
        sentences.append(f"{repeated} {INTERVALS}")
        if low == 1:
            sentences.append(
                "Where there is one seed the interval is over documents alone: it says nothing"
                " about what another seed would give."
            )
        elif low < SEVERAL:
            sentences.append(
                f"Intervals from {low} seeds are wide because {low} say little about what another"
                " would give: a true difference may well be inside them."
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
    sentences = sentences or ["Nothing has been measured yet."]
    return SummaryBlock(anchor="sure", title="How sure this is", sentences=tuple(sentences))


def _recovery_answer(run: Run) -> SummaryBlock:
    title, table = "What an attacker recovers", recovery_table(run)
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
        f"The strongest attack recovers {100 * worst['recovered']:.0f}% of what unlearning"
        f" removed: {worst['setting']}, on {names[worst['attacked']]}."
    )


NOT_ATTACKED = (
    "No attack has been run, so nothing here says that it cannot be recovered. `rayunlearn"
    " attack RUN` asks."
)

NOTHING_REMOVED = "The attacked models had lost nothing that could be recovered."

RECOVERY_SCALE = (
    "0% is what unlearning left, 100% what the model knew before. The last column is the"
    " same attack on the gold model, where there is one: the information that the attack itself"
    " leaks."
)

RECOVERY_HEADERS = ("attack", "model", "recovered", "gold model: before → after")


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
    models = table["attacked"].n_unique()
    return (
        f"{attacks} {'attack was' if attacks == 1 else 'attacks were'} run on"
        f" {models} {'model' if models == 1 else 'models'}."
    )


def _attack_row(row: Mapping[str, Any], names: Mapping[str, str]) -> tuple[str, ...]:
    recovered = f"{100 * row['recovered']:z.0f}%"
    if row["recovered_low"] is not None:
        low, high = 100 * row["recovered_low"], 100 * row["recovered_high"]
        recovered += f" [{low:z.0f}, {high:z.0f}]"
    gold = (
        f"{format_mean(row['gold'])} → {format_mean(row['gold_after'])}"
        if row["gold_after"] is not None
        else UNKNOWN
    )
    return (row["setting"], names[row["attacked"]], recovered, gold)
