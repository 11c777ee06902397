"""Tables of attribution and emphasis."""

from collections.abc import Mapping, Sequence

import polars as pl

from rayunlearn.analysis.attribution import (
    TRACKED_METRICS,
    attribution_cells,
    damage_table,
    emphasis_table,
    goes_by_key,
    tracking_table,
)
from rayunlearn.analysis.labels import format_interval, format_number
from rayunlearn.reporting.tables import Section, TableView
from rayunlearn.storage.run import Run

EMPHASIS_HEADERS = {
    "form": "how words are pointed out (docs/attribution.md)",
    "questions": (
        "forget questions that base answers right and this model does not, mean over seeds; of"
        " base, those it answers right"
    ),
    "key words": (
        "share of them answered right when the words that base's answer hangs on are pointed out"
    ),
    "random words": "the same with the same number of other words of the question",
    "difference": "key words minus random words, question by question",
    "retain harmed": (
        "share of the retain questions that this model answers right as asked and wrong with the"
        " key words pointed out"
    ),
}

DAMAGE_HEADERS = {
    "destroyed": "share of the retain questions that base answers right and this model does not",
    "destroyed_untouched": (
        "the same of the questions that base and gold know and no unlearning is shown"
    ),
    "function_words_forget": "change of mean log p of the function words in forget documents, nats",
    "keywords_forget": "the same of the keywords there (tfidf, at most three tenths of the words)",
    "against_keywords_forget": (
        "function words minus keywords, document by document: above 0, function words were spared"
    ),
    "content_words_forget": "change of mean log p of all words but function words there, nats",
    "function_words_retain": "change of mean log p of the function words in retain documents, nats",
    "keywords_retain": "the same of the keywords there",
    "against_keywords_retain": "function words minus keywords, document by document",
    "content_words_retain": "change of mean log p of all words but function words there, nats",
}


def attribution_sections(run: Run) -> list[Section]:
    """The three tables for reading; none where the run explains nothing."""
    if not attribution_cells(run):
        return []
    emphasis = _emphasis_section(run)
    return [
        # of questions that base answers right, and there may be none
        *([emphasis] if emphasis.view.rows else []),
        _measured_section(
            "destruction",
            "What was destroyed",
            damage_table(run),
            DAMAGE_HEADERS,
            "Measured against base: questions that it answers right, and its log-probabilities."
            " Square brackets: 95% t intervals over seeds and documents.",
        ),
        _measured_section(
            "key-tokens",
            "What answers hang on",
            tracking_table(run),
            TRACKED_METRICS,
            "Forget questions, each model against base; base against itself shows how far two of"
            " these measures agree at best.",
        ),
    ]


def _emphasis_section(run: Run) -> Section:
    """What pointing out words recovers, a row per model and form of emphasis."""
    rows = [
        (
            r["cell"],
            r["form"].replace("_", " "),
            f"{r['forgotten']:.1f}",
            *(format_interval(r, n) for n in ("recovered", "random", "net", "harmed")),
        )
        for r in emphasis_table(run).iter_rows(named=True)
    ]
    headers = {"model": "method, or stage", **EMPHASIS_HEADERS}
    return Section(
        anchor="emphasis",
        title="Recovery by emphasis",
        caption=(
            f"Right: {right_in_words(run)}. A difference above zero says that the words which"
            " carried the answer recover it."
        ),
        view=attribution_view(headers, rows, n_texts=2),
    )


def right_in_words(run: Run) -> str:
    """What counts as a right answer."""
    if goes_by_key(run):
        return "the key word is more probable than all others together (key_probability 0.5)"
    return "the greedy text is the answer"


def attribution_view(
    meanings: Mapping[str, str], rows: Sequence[Sequence[str]], *, n_texts: int = 1
) -> TableView:
    """A table of cells in words; the first `n_texts` columns are set as text, the others as
    numbers.
    """
    view_rows = tuple(tuple(row) for row in rows)
    numeric = tuple(index >= n_texts for index in range(len(meanings)))
    return TableView(
        headers=tuple(meanings),
        meanings=tuple(meanings.values()),
        rows=view_rows,
        roles=("grid",) * len(view_rows),
        numeric=numeric,
    )


def _measured_section(
    anchor: str, title: str, table: pl.DataFrame, meanings: Mapping[str, str], caption: str
) -> Section:
    """Columns that no row has a value of are left out: no gradients, no untouched split."""
    names = [n for n in meanings if n in table.columns and table[n].null_count() < table.height]
    rows = [
        (r["cell"], format_number(r["seeds"]), *(format_interval(r, n) for n in names))
        for r in table.iter_rows(named=True)
    ]
    headers = {
        "model": "method, or stage",
        "seeds": "trials",
        **{n.replace("_", " "): meanings[n] for n in names},
    }
    return Section(
        anchor=anchor, title=title, caption=caption, view=attribution_view(headers, rows)
    )
