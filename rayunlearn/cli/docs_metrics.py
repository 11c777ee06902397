"""docs/metrics.md, made from the tables: `python -m rayunlearn.cli.docs_metrics >
docs/metrics.md`.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

from rayunlearn.metrics.corpus import CORPUS_METRICS
from rayunlearn.metrics.table import CHEAP, INPUTS, METRICS, Metric
from rayunlearn.ranges import options_of

METRICS_HEAD = """# What is measured

A metric has one value per document (table `examples`); means are taken in polars and nowhere else.
"more knowledge" says which way a model that knows more goes: for the forget set that is the wrong
way. A value is null where a document does not allow it (no wrong options, no second wording).
"chance" names the metric whose value on base is what a model that cannot know would score; where
there is no gold model, that is what forgetting aims at (search.md, `objective.target`).

Every trial measures those marked *; all of them come from one forward pass over answers, options
and paraphrased questions, of which only those go through the model that the asked metrics read.
The others ask for more: texts are written, gradients taken, or another model's outputs compared.
Which of them can be believed: [metric-faithfulness.md](metric-faithfulness.md).

## What the models wrote

People judge unlearning by reading. Every text that a metric reads is kept in the table
`generations`: prompt, reference and text, per trial, stage, split and document, with the names of
the metrics that read it. `measure.keep_texts` (1000) bounds the documents of each split, 0 keeps
none. The report puts before, after and gold beside each other for the documents that changed most,
`rayunlearn show RUN TRIAL --texts 5` prints them, and
`rayunlearn.analysis.generations.text_table(run, trial_id)` is a frame of all of them. Of a corpus
with `data.private=true` no report and no evaluation has a text (data.md). What `explain` and
attacks of kind decoding write for values of their own is not in the table.

A chat model in a local directory can judge the greedy texts:

```
rayunlearn run experiments/linked_questions.py --set judge.answers=models/chat \
    measure.metrics+=judged_same_fact,judged_refused,judged_gibberish,judged_wrong
```

It is shown the question, the right answer and the one that was given, and what decides is the
probability that it gives to the letter of each of four verdicts. A letter is likelier for its place
(2309.03882), so each verdict stands once at each of the four and the probabilities are averaged.
The prompt and the four verdicts are ours (`metrics/judge.py`); nothing says how well a given model
judges: read a few texts beside their column `verdict`. Answers that leave no room in the judge's
context are null, and `verdict` says why. Verdicts are kept in the cache by the judge's content and
the answers, so that none is asked twice.
"""

METRICS_FOOT = """
Words: [glossary](glossary.md). Made from `rayunlearn/metrics` by
`python -m rayunlearn.cli.docs_metrics`; a test holds the two together.
"""

CORPUS_HEAD = """## Metrics of a whole corpus

Computed from rows of `examples` (`metrics.corpus.corpus_rows`). Membership compares split `members`
(else `forget`) with split `holdout`, for every score whose name ends in `_score`:
`min_k_score_auc`, `min_k_score_tpr_at_fpr`.

| metric | meaning | unit | range | more knowledge | source |
|---|---|---|---|---|---|
"""

INPUT_HEAD = """## What metrics ask for

The names of a metric function's positional parameters, and the pass that makes them: of `scores`,
`moments` and `base` one over the answers, of `options` and `paraphrases` one over these texts, all
in the same batches; `ends` is read off the texts. What no asked metric reads is not run.

| input | pass | what it is |
|---|---|---|
"""


def metrics_page() -> str:
    """The page as Markdown."""
    table = (
        "| metric | meaning | unit | range | more knowledge | chance | asks for | source"
        " |\n|---|---|---|---|---|---|---|---|\n"
    )
    rows = "".join(_document_line(name, row) for name, row in METRICS.items())
    corpus = "".join(
        table_line(f"`{name}`", *_scale(row), row.source) for name, row in CORPUS_METRICS.items()
    )
    inputs = "".join(
        table_line(f"`{name}`", row.source, row.meaning) for name, row in INPUTS.items()
    )
    functions: dict[str, Callable[..., Any]] = {name: row.function for name, row in METRICS.items()}
    functions |= {name: row.function for name, row in CORPUS_METRICS.items()}
    details = "".join(_section(name, function) for name, function in functions.items())
    return "\n".join(
        [
            METRICS_HEAD,
            "## Metrics of a document\n",
            table + rows,
            CORPUS_HEAD + corpus,
            INPUT_HEAD + inputs,
            "## Definitions\n",
            details,
            METRICS_FOOT.lstrip("\n"),
        ]
    )


def _document_line(name: str, row: Metric) -> str:
    star = " *" if name in CHEAP else ""
    return table_line(
        f"`{name}`{star}",
        *_scale(row),
        f"`{row.chance}`" if row.chance else "",
        ", ".join(f"`{i}`" for i in row.inputs),
        row.source,
    )


def _scale(row: Metric) -> tuple[str, str, str, str]:
    return (
        row.title,
        row.unit,
        f"{_number(row.low)} to {_number(row.high)}",
        row.direction or "neither",
    )


def _number(value: float) -> str:
    return f"{value:g}" if math.isfinite(value) else ("∞" if value > 0 else "-∞")


def table_line(*cells: str) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def settings_words(name: str, function: Callable[..., Any]) -> str:
    """The hyperparameters of a family function with their defaults, as a paragraph; '' where there
    are none.
    """
    options = [f"`{name}.{o.argument}` = {o.default}" for o in options_of(function)]
    return f"\n\nSettings: {', '.join(options)}." if options else ""


def _section(name: str, function: Callable[..., Any]) -> str:
    return f"**{name}**. {inspect.getdoc(function)}{settings_words(name, function)}\n\n"


if __name__ == "__main__":
    print(metrics_page().rstrip())
