"""The table of further probe sets, for the terminal and the report."""

from collections import Counter
from collections.abc import Mapping

import polars as pl

from rayunlearn.analysis.coreset_table import extra_settings
from rayunlearn.analysis.labels import UNKNOWN, format_interval, format_number, format_percent
from rayunlearn.analysis.probe_sets import probe_set_table
from rayunlearn.reporting.attribution_tables import attribution_view
from rayunlearn.reporting.tables import Section, method_label
from rayunlearn.storage.run import Run


def probe_set_sections(run: Run) -> list[Section]:
    """A row per cell and a column per set, each with the objective's utility metric; no section
    where the run has no further sets.
    """
    table = probe_set_table(run)
    # a set of whole documents has no value of a metric of answers
    measured = table.drop_nulls("value")["split"].unique()
    table = table.filter(pl.col("split").is_in(measured.to_list()))
    if table.is_empty():
        return []
    settings, sets = extra_settings(table), table["split"].unique(maintain_order=True).to_list()
    keys = ["role", "group", "method", *settings, "select.name", "select.ratio", "n_kept"]
    rows = [
        _set_cells(cells, settings, sets) for _, cells in table.group_by(keys, maintain_order=True)
    ]
    metrics = dict(table.select("split", "metric").unique(maintain_order=True).iter_rows())
    return [
        Section(
            anchor="probe-sets",
            title="Further probe sets",
            caption=f"Mean {_metrics_in_words(metrics)} with a 95% t interval over seeds and"
            " documents, by set.",
            view=attribution_view(_headers(table, settings, metrics), rows),
        )
    ]


def _headers(
    table: pl.DataFrame, settings: list[str], metrics: Mapping[str, str]
) -> dict[str, str]:
    """Title of every column and what it says; `metrics`: set -> its metric."""
    counts = dict(table.select("split", "n_documents").unique(maintain_order=True).iter_rows())
    return {
        "method": "method",
        **dict.fromkeys(settings, "setting that varies"),
        "selector": "how the coreset was chosen",
        "coreset": "share and number of forget documents that unlearning trained on",
        **{
            name: f"split {name}, {counts[name]} documents: {metric}"
            for name, metric in metrics.items()
        },
    }


def _metrics_in_words(metrics: Mapping[str, str]) -> str:
    """`key_probability (of general: probability)`: the metric of most sets, and of which sets it is
    another.
    """
    usual, *others = [name for name, _ in Counter(metrics.values()).most_common()]
    exceptions = [
        f"of {', '.join(name for name in metrics if metrics[name] == other)}: {other}"
        for other in others
    ]
    return f"{usual} ({'; '.join(exceptions)})" if exceptions else usual


def _set_cells(cells: pl.DataFrame, settings: list[str], sets: list[str]) -> tuple[str, ...]:
    """A line of the table: one cell of the run, with its value on every set."""
    by_set = {row["split"]: row for row in cells.iter_rows(named=True)}
    cell = cells.row(0, named=True)
    kept = f"{format_percent(cell['select.ratio'])} ({format_number(cell['n_kept'])})"
    return (
        method_label(cell, settings),
        *(format_number(cell[name]) for name in settings),
        cell["select.name"] or UNKNOWN,
        kept if cell["role"] == "grid" else UNKNOWN,
        *(format_interval(by_set[name], "value") for name in sets),
    )
