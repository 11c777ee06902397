"""Tables of mode connectivity and of attacks on coreset models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.analysis.intervals import interval_columns, mean_interval
from rayunlearn.analysis.labels import (
    UNKNOWN,
    format_coreset_size,
    format_interval,
    format_mean,
    format_number,
)
from rayunlearn.analysis.mode_connectivity import (
    PATH_SPLITS,
    barrier,
    connectivity_table,
    path_cells,
)
from rayunlearn.analysis.recovery import recovery_table
from rayunlearn.reporting.attribution_tables import attribution_view
from rayunlearn.reporting.tables import Section
from rayunlearn.storage.run import Run

AREA = ", area under its curve"


def path_section(rows: Sequence[Mapping[str, Any]], start: str, end: str) -> Section:
    """A path between two trials for reading: answer probability at every point, and in the last row
    the barrier, split by split.
    """
    splits = [split for split in PATH_SPLITS if any(row["split"] == split for row in rows)]
    measured = {
        (row["split"], row["x"]): row["value"] for row in rows if row["metric"] == "probability"
    }
    places = sorted({x for _, x in measured})
    cells = [(f"{x:.2f}", *(format_mean(measured[split, x]) for split in splits)) for x in places]
    heights = [
        barrier([measured[split, x] for x in places], higher_is_better=split != "forget")
        for split in splits
    ]
    caption = (
        f"Mean answer probability; 0 is {start}, 1 is {end}. Barrier: how far the path falls behind"
        " the straight line between its ends."
    )
    headers = {
        "share of the second": "x of (1 - x) first + x second",
        **dict.fromkeys(splits, "mean answer probability"),
    }
    view = attribution_view(
        headers, [*cells, ("barrier", *(format_mean(height) for height in heights))]
    )
    return Section(
        anchor="path", title="Linear path between the weights", caption=caption, view=view
    )


PATH_FROM_FULL_SET = {
    "barrier_forget": (
        "how far forgetting falls behind the straight line between the two models, in answer"
        " probability"
    ),
    "barrier_retain": "the same of retain, where a fall is a loss",
    "barrier_untouched": "the same of what base and gold know and no unlearning is shown",
    "agreement": "share of forget questions that both answer right, or both wrong",
    "agreement_retain": "the same of the retain questions",
    "overlap": "Jaccard of their key tokens, forget questions",
    "rank": "Spearman correlation of their contributions, forget questions",
}

PATH_FROM_BASE = {
    "base_barrier_forget": (
        "how far forgetting falls behind the straight line from base to this model, in answer"
        " probability"
    ),
    "base_barrier_retain": "the same of retain",
    "base_barrier_untouched": "the same of untouched",
}


def connectivity_sections(run: Run) -> list[Section]:
    """The table for reading, the paths from base and, where trials were attacked, the attacks; none
    where no trial has a path.
    """
    table = connectivity_table(run)
    if not table.height:
        return []
    twins = (
        "Each coreset model against the model of the same seed that unlearned the full forget set."
        " A barrier of 0: forgetting and utility nowhere on the straight line between the weights"
        " are worse than between their ends. Square brackets: 95% t intervals over seeds (and"
        " questions)."
    )
    base = (
        "From base to each model, all in one start's neighbourhood. Square brackets: 95% t"
        " intervals over seeds."
    )
    return [
        *_section("faithfulness", "Like the full-set model?", twins, table, PATH_FROM_FULL_SET),
        *_section("from-base", "On the line from base", base, table, PATH_FROM_BASE),
        *attack_sections(run),
    ]


def _section(
    anchor: str, title: str, caption: str, table: pl.DataFrame, meanings: Mapping[str, str]
) -> list[Section]:
    """The rows and columns that have a value."""
    names = [n for n in meanings if n in table.columns and table[n].null_count() < table.height]
    measured = [r for r in table.iter_rows(named=True) if any(r[n] is not None for n in names)]
    rows = [
        (
            r["method"],
            format_coreset_size(r["select.name"], r["select.ratio"]),
            format_number(r["seeds"]),
            *(format_interval(r, n) for n in names),
        )
        for r in measured
    ]
    headers = {
        "method": "forget loss + retain loss",
        "coreset": "part of the forget set",
        "seeds": "trials",
    }
    view = attribution_view(
        headers | {n.replace("_", " "): meanings[n] for n in names}, rows, n_texts=2
    )
    return [Section(anchor=anchor, title=title, caption=caption, view=view)] if rows else []


def attack_sections(run: Run) -> list[Section]:
    """Attacks down, cells across: mean recovered fraction of the attacked trials of each cell, with
    intervals over them.
    """
    recovered = recovered_by_cell(run)
    if not recovered:
        return []
    cells = [
        cell for cell in path_cells(run) if any(cell in by_cell for by_cell in recovered.values())
    ]
    names = [
        f"{forget} + {retain}, {format_coreset_size(selector, ratio)}"
        for forget, retain, selector, ratio in cells
    ]
    rows = [
        (setting, *(by_cell.get(cell, UNKNOWN) for cell in cells))
        for setting, by_cell in recovered.items()
    ]
    caption = (
        "Recovered fraction, 0: as unlearned, 1: as base; mean over the attacked trials of a cell"
        " and 95% t interval over them. One trial alone has no interval. Area: the mean"
        " over the steps, which still tells models apart where in the end all of it is back. The"
        " controls are in the table of attacks."
    )
    view = attribution_view(
        {"attack": "attack and its settings", **dict.fromkeys(names, "recovered fraction")}, rows
    )
    return [
        Section(
            anchor="attacks-by-ratio",
            title="Attacks on coreset and full-set models",
            caption=caption,
            view=view,
        )
    ]


def recovered_by_cell(run: Run) -> dict[str, dict[tuple[Any, ...], str]]:
    """Attack setting -> cell -> its recovered fraction in words; under a training attack, in a line
    of its own, the area of its curve.
    """
    table = recovery_table(run)
    recovered: dict[str, dict[tuple[Any, ...], str]] = {}
    cell_of_trial = {trial: cell for cell, pairs in path_cells(run).items() for trial, _ in pairs}
    for (setting,), rows in table.group_by("setting", maintain_order=True):
        for column, label in (("recovered", str(setting)), ("area", f"{setting}{AREA}")):
            values: dict[tuple[Any, ...], list[float]] = {}
            for attacked, value in (
                rows.drop_nulls(column)
                .filter(pl.col("attacked").is_in(list(cell_of_trial)))
                .select("attacked", column)
                .iter_rows()
            ):
                values.setdefault(cell_of_trial[attacked], []).append(value)
            recovered[label] = {cell: _recovered(numbers) for cell, numbers in values.items()}
    return {label: by_cell for label, by_cell in recovered.items() if by_cell}


def _recovered(values: Sequence[float]) -> str:
    if len(values) == 1:
        # no minus before a zero
        return f"{round(values[0], 2) + 0.0:.2f}"
    return format_interval(
        interval_columns("recovered", mean_interval(np.array(values).reshape(-1, 1))),
        "recovered",
    )
