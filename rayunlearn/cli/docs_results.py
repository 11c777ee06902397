"""docs/results.md, made from the schema: `python -m rayunlearn.cli.docs_results >
docs/results.md`.
"""

from rayunlearn.schema import TABLES, VERSION, Column

TABLE_DESCRIPTIONS = {
    "trials": (
        "One row per trial that ended, failed ones too. Also one column per setting"
        " (`select.ratio`, ...), named as on the command line."
    ),
    "plan": (
        "One row per purpose of a planned trial: one that serves two groups, or tuning and grid,"
        " has two. In `plan.parquet`."
    ),
    "attacks": (
        "One row per attacked model, attack and seed. `attacks.parquet`, from `rayunlearn attack`."
    ),
    "curves": (
        "One row per point of a path: what is known while a model unlearns, recovery along a"
        " training attack, what layers know, a way between two models."
    ),
    "steps": "One row per training step.",
    "evals": "One row per metric of a stage: means of `examples`.",
    "examples": "One row per document and metric. Every mean is taken from here.",
    "generations": (
        "One row per document and text that a metric reads: what the model was given, what should"
        " stand there and what it wrote; `measure.keep_texts` documents of each split, 0 for none."
        " Empty where no metric reads texts. `rayunlearn.analysis.generations.text_table(run,"
        " trial_id)` puts before, after and gold beside each other. Of a private corpus"
        " (`data.private`) the table stays in the run: no report and no evaluation has its texts."
    ),
    "coresets": "One row per kept document.",
    "attributions": (
        "One row per token and per word of a prompt, where `explain.documents` asks for them. The"
        " answer is the right one."
    ),
    "diagnostics": (
        "One row per block of a measured model, where `explain.diagnostics` asks for it"
        " (diagnostics.md)."
    ),
    "scores": "One row per document and scorer. `scores.parquet`.",
    "keywords": "One row per document and keyword. `keywords.parquet`, from `rayunlearn keywords`.",
    "corpora": (
        "One row per file that a corpus was read from; none for a generated one. `corpora.parquet`."
    ),
    "quarantine": "One row per document that was rejected. `quarantine.parquet`.",
}

RESULTS_HEAD = """# What a run leaves behind

A run is a folder `<output>/<experiment>/<version>/`. Reading it needs polars, neither torch nor
Ray:

```python
import polars as pl

import rayunlearn

run = rayunlearn.open("runs/hello/1")
best = run.trials.filter(pl.col("status") == "complete").join(run.evals, on="trial_id")
print(
    best.filter(pl.col("metric") == "probability", pl.col("split") == "forget")
    .sort("value")
    .collect()
)
```

`run` holds one lazy frame per table below and `run.experiment`, the content of `experiment.json`
(name, question, axes, search, budget, objective, version, number of planned trials, metrics).
`rayunlearn.analysis.coreset_table.coreset_table(run)` makes the table of the report.

| file | holds |
|---|---|
| `trials/<trial_id>/<table>.parquet` | what one trial wrote; the folder appears in one rename, so \
its existence means that the trial ended |
| `tables/<table>.parquet` | the same, compacted; where a trial has a folder, the folder is right |
| `plan.parquet`, `attacks.parquet`, `corpora.parquet`, `quarantine.parquet`, `scores.parquet` | \
written by the driver, each in one rename |
| `experiment.json`, `report.html` | what the experiment said of itself; the page, by `rayunlearn \
report` (or `.md`, `.json`, `.pdf`) |
"""

RESULTS_FOOT = """
Words: [glossary](glossary.md). Made from `rayunlearn/schema.py` by
`python -m rayunlearn.cli.docs_results`; a test holds the two together.
"""


def results_page() -> str:
    """The page as Markdown."""
    version = (
        f"The schema version, {VERSION}, is in every file's metadata (`rayunlearn.schema_version`);"
        " a file with another one is refused, with what to do."
    )
    return "\n".join(
        [
            RESULTS_HEAD,
            version,
            "",
            *(table_section(table) for table in TABLES),
            RESULTS_FOOT.lstrip("\n"),
        ]
    )


def table_section(table: str) -> str:
    """One table: what a row is, then its columns."""
    head = (
        f"## {table}\n\n{TABLE_DESCRIPTIONS[table]}\n\n| column | type | unit | better | meaning"
        " |\n|---|---|---|---|---|\n"
    )
    return head + "".join(_line(column) for column in TABLES[table])


def _line(column: Column) -> str:
    cells = (f"`{column.name}`", column.kind, column.unit, column.direction, column.meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    print(results_page(), end="")
