"""What models wrote, for reading: before, after and gold beside each other for the documents that
changed most.

The texts are a corpus's and a model's own: every page escapes them, and no page of a private corpus
has them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from rayunlearn.analysis.generations import MODELS, is_private, text_table
from rayunlearn.analysis.labels import UNKNOWN, format_coreset_size, format_number
from rayunlearn.analysis.run_frames import trial_table
from rayunlearn.storage.run import Run

# models on a page, the best first, and documents of the forget set and of the others for each
MAX_MODELS = 3
MAX_FORGET = 5
MAX_OTHER = 3

HIDDEN_TEXTS = (
    "What the models wrote is not shown: the corpus is marked private (data.private). It is in the"
    " run's table generations, and `rayunlearn show` prints it."
)

TEXTS_CAPTION = (
    "What the models wrote for the documents whose metric changed most, of the best trial of each"
    " method; greedy texts."
)


@dataclass(frozen=True, kw_only=True)
class WrittenText:
    """One model's text: the model, what it wrote, and its metric and verdict in words."""

    model: str
    text: str
    note: str


@dataclass(frozen=True, kw_only=True)
class TextComparison:
    """One document through base, the unlearned model and gold; `title` names model, split and
    metric.
    """

    title: str
    doc_id: str
    prompt: str
    reference: str
    texts: tuple[WrittenText, ...]


def text_comparisons(run: Run) -> list[TextComparison]:
    """The comparisons of a page; none for a private corpus and where no metric read texts."""
    if is_private(run):
        return []
    return [
        comparison
        for label, trial_id in _shown_trials(run)
        for comparison in comparisons_of(run, trial_id, label, changed=True)
    ]


def hides_texts(run: Run) -> bool:
    """Whether a page would have texts if the corpus were not private."""
    return is_private(run) and not run.generations.limit(1).collect().is_empty()


def comparisons_of(
    run: Run,
    trial_id: str,
    label: str,
    *,
    n_forget: int = MAX_FORGET,
    n_other: int = MAX_OTHER,
    changed: bool = False,
) -> list[TextComparison]:
    """Documents of a trial that changed most: `n_forget` of the forget set and `n_other` of all
    other splits; with `changed` none of those whose metric is as before. Texts that are not greedy
    come where there are no others.
    """
    table = text_table(run, trial_id)
    if "generated" in table["input"]:
        table = table.filter(pl.col("input") == "generated")
    first = table.unique(["split", "doc_id"], keep="first", maintain_order=True)
    if changed:
        # what base was not asked may have changed
        first = first.filter(pl.col("change").is_null() | (pl.col("change") > 0))
    is_forget = pl.col("split") == "forget"
    chosen = [first.filter(is_forget).head(n_forget), first.filter(~is_forget).head(n_other)]
    return [_comparison(row, label) for part in chosen for row in part.iter_rows(named=True)]


def comparison_row(comparison: TextComparison) -> tuple[str, ...]:
    """The comparison as cells of one line of a table."""
    texts = [f"{t.text} ({t.note})" if t.note else t.text for t in comparison.texts]
    return (comparison.title, comparison.prompt, comparison.reference, *texts)


COMPARISON_HEADERS = ("model", "prompt", "reference", *MODELS)


def _comparison(row: Mapping[str, Any], label: str) -> TextComparison:
    texts = [
        WrittenText(
            model=model,
            text=UNKNOWN if row[f"generated_{model}"] is None else row[f"generated_{model}"],
            note=_note(row, model),
        )
        for model in MODELS
    ]
    return TextComparison(
        title=f"{label}, {row['split']}, {row['metric']}",
        doc_id=row["doc_id"],
        prompt=row["prompt"],
        reference=row["reference"],
        texts=tuple(texts),
    )


def _note(row: Mapping[str, Any], model: str) -> str:
    """The metric of a text, and the judge's verdict where there is one."""
    value, verdict = row[f"value_{model}"], row[f"verdict_{model}"]
    return ", ".join(
        [*([] if value is None else [format_number(float(value))]), *([verdict] if verdict else [])]
    )


def _shown_trials(run: Run) -> Sequence[tuple[str, str]]:
    """(label, id) of the trial nearest to its target, one per method, of those that have texts."""
    with_texts = run.generations.select("trial_id").unique().collect()
    cells = trial_table(run).filter(
        pl.col("role") == "grid", pl.col("status") == "complete", pl.col("objective").is_not_null()
    )
    best = (
        cells.join(with_texts, on="trial_id", how="semi")
        .sort("objective", "trial_id")
        .unique(["method.forget", "method.retain"], keep="first", maintain_order=True)
    )
    return [
        (
            f"{row['method.forget']} + {row['method.retain']}, "
            + format_coreset_size(row["select.name"], row["select.ratio"]),
            str(row["trial_id"]),
        )
        for row in best.head(MAX_MODELS).iter_rows(named=True)
    ]
