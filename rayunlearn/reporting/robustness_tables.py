"""Tables of metric faithfulness and robustness."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from rayunlearn.analysis.labels import UNKNOWN, format_interval, format_number
from rayunlearn.analysis.metric_faithfulness import FAITHFULNESS_COLUMNS, faithfulness_table
from rayunlearn.analysis.metric_robustness import (
    HOW_TO_READ,
    ROBUSTNESS_COLUMNS,
    robustness_table,
    worst_correlation,
)
from rayunlearn.analysis.run_frames import objective_of
from rayunlearn.reporting.tables import Section, TableView
from rayunlearn.storage.run import Run

# an AUC that no metric needs to know anything for
CHANCE = 0.5
HOW_TO_READ_FAITHFULNESS = (
    "[low, high]: 95% intervals over pairs of base and gold. †: compares with base or gold, which"
    " are then in its pools only after attacks that teach nothing of the forget set."
)


def robustness_sections(run: Run) -> list[Section]:
    """A table per split, forget first: a row per metric, correlation, slope and order kept of every
    attack; the most robust first.

    The order is by the smallest correlation that any attack leaves. Nothing where too few cells
    were attacked.
    """
    table = robustness_table(run)
    splits = sorted(table["split"].unique().to_list(), key=lambda split: (split != "forget", split))
    return [_section(table.filter(pl.col("split") == split), split, run) for split in splits]


def faithfulness_sections(run: Run) -> list[Section]:
    """The table of `faithfulness_table`; none where there are too few pairs of base and gold."""
    table = faithfulness_table(run)
    if table.is_empty():
        return []
    rows = [
        (
            f"{row['metric']} †" if row["compares"] else row["metric"],
            format_interval(row, "auc"),
            format_interval(row, "relearning"),
            format_interval(row, "quantization"),
            format_number(row["robustness"]),
            format_number(row["models"]),
        )
        for row in table.iter_rows(named=True)
    ]
    view = TableView(
        headers=("metric", *FAITHFULNESS_COLUMNS),
        meanings=(
            "metric of a question, its mean over split forget",
            *FAITHFULNESS_COLUMNS.values(),
        ),
        rows=tuple(rows),
        roles=("grid",) * len(rows),
        numeric=(False,) + (True,) * len(FAITHFULNESS_COLUMNS),
    )
    return [
        Section(
            anchor="metric-faithfulness",
            title="Which metric tells models that know from models that never did",
            caption=f"{faithfulness_in_words(table)} {HOW_TO_READ_FAITHFULNESS}",
            view=view,
        )
    ]


def faithfulness_in_words(table: pl.DataFrame) -> str:
    """How many metrics of `faithfulness_table` tell the two pools apart, and which of those above
    chance is the most robust: a metric that says the same of every model survives everything.
    """
    apart = table.filter(pl.col("auc_low") > CHANCE)
    most = max(table["knowing"])
    words = (
        f"{apart.height} of {table.height} metrics tell models that know from models that never did"
        f" better than chance (up to {most} of each, from {max(table['pairs'])} pairs of base and"
        " gold)."
    )
    above = table.filter(pl.col("auc") > CHANCE, pl.col("robustness").is_not_null())
    robust = above.sort("robustness", descending=True)
    if robust.is_empty():
        return f"{words} None above chance was held against both relearning and quantisation."
    first, last = robust.row(0, named=True), robust.row(-1, named=True)
    return (
        f"{words} Most robust of those above chance: {first['metric']}"
        f" ({format_number(first['robustness'])}), least: {last['metric']}"
        f" ({format_number(last['robustness'])})."
    )


def robustness_in_words(table: pl.DataFrame, objective: str) -> str:
    """Which metric of one split keeps the order of models best and worst, and how the one called
    `objective` does.
    """
    worst = worst_correlation(table).filter(pl.col("pearson").is_not_null())
    if not worst.height:
        return "No metric varies over the models."
    first, last = worst.row(0, named=True), worst.row(-1, named=True)
    sentences = (
        f"Over {max(table['models'])} unlearned models {_worst_words(first)} keeps to its values"
        f" best, {_worst_words(last)} least."
    )
    own_row = worst.filter(pl.col("metric") == objective)
    if own_row.height and objective not in (first["metric"], last["metric"]):
        sentences += f" The objective: {_worst_words(own_row.row(0, named=True))}."
    overlap = worst.filter(pl.col("pearson_high") >= first["pearson_low"]).height - 1
    return (
        f"{sentences} Of the {worst.height - 1} others {overlap} have an interval that reaches into"
        " that of the first: not significantly different from it."
    )


def _section(table: pl.DataFrame, split: str, run: Run) -> Section:
    settings = table["setting"].unique(maintain_order=True).to_list()
    cells = {(row["metric"], row["setting"]): row for row in table.iter_rows(named=True)}
    names = [setting.split(" ")[0] for setting in settings]
    headers = ("metric", *(f"{name} {part}" for name in names for part in ROBUSTNESS_COLUMNS))
    meanings = (
        "metric of a question, its mean over the split",
        *(meaning for _ in names for meaning in ROBUSTNESS_COLUMNS.values()),
    )
    rows = [
        (
            metric,
            *(text for setting in settings for text in _format_parts(cells.get((metric, setting)))),
        )
        for metric in worst_correlation(table)["metric"]
    ]
    view = TableView(
        headers=headers,
        meanings=meanings,
        rows=tuple(rows),
        roles=("grid",) * len(rows),
        numeric=(False,) + (True,) * (len(headers) - 1),
    )
    words = robustness_in_words(table, objective_of(run.experiment).forgetting)
    return Section(
        anchor=f"robustness-{split}",
        title=f"Which metric keeps the order of models: {split}",
        caption=f"{words} {HOW_TO_READ}",
        view=view,
    )


def _worst_words(row: Mapping[str, Any]) -> str:
    return (
        f"{row['metric']} ({format_interval(row, 'pearson')} at worst, under"
        f" {row['setting'].split(' ')[0]})"
    )


def _format_parts(row: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if row is None:
        return UNKNOWN, UNKNOWN, UNKNOWN
    return format_interval(row, "pearson"), _format_slope(row), format_interval(row, "kept")


def _format_slope(row: Mapping[str, Any]) -> str:
    if row["slope"] is None:
        return UNKNOWN
    slope, low, high = (format_number(row[name]) for name in ("slope", "slope_low", "slope_high"))
    return f"{slope} [{low}, {high}]"
