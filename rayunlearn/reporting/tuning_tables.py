"""Tuned hyperparameters for the terminal and the report: what was found, what mattered, and every
setting that was tried across its axes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from rayunlearn.analysis.labels import UNKNOWN, format_number
from rayunlearn.analysis.run_frames import objective_of
from rayunlearn.analysis.tuning import (
    EDGE,
    FEWEST_SETTINGS,
    searched_settings,
    settings_tried,
    tuned_table,
)
from rayunlearn.reporting.attribution_tables import attribution_view
from rayunlearn.reporting.plots import COLOURS, GREY, MAX_PANELS, search_title
from rayunlearn.reporting.svg import (
    Drawing,
    LegendEntry,
    ParallelAxis,
    ParallelLine,
    Picture,
    bar_picture,
    parallel,
    swatch,
)
from rayunlearn.reporting.tables import Section
from rayunlearn.storage.run import Run

HEADERS = {
    "tuned for": "the group of trials that share the search",
    "hyperparameter": "the setting, under its dotted name",
    "chosen": "the value that the grid was run with",
    "range": "what the search drew from",
    "tried": "settings that were measured, and in brackets those that kept the utility floor",
    "importance": (
        "share of the rank variance of what was minimised that goes with this hyperparameter"
        " (Spearman's correlation squared), and its permutation p"
    ),
    "larger values": "what they went with: worse or better by what was minimised",
    "utility": "rank correlation of the hyperparameter with utility",
}

CAPTION = (
    f"Importance is a rank correlation over few settings, our choice; - under {FEWEST_SETTINGS} of"
    f" them. It sees no interaction and no best value in the middle. At the edge: within {EDGE:.0%}"
    " of an end of the range, so that a wider one may hold better values."
)


def tuning_sections(run: Run) -> list[Section]:
    """A row per search and hyperparameter; no section where nothing was tuned."""
    table = tuned_table(run)
    if table.is_empty():
        return []
    rows = [_cells(row) for row in table.iter_rows(named=True)]
    return [
        Section(
            anchor="tuned",
            title="Tuned hyperparameters",
            caption=CAPTION,
            view=attribution_view(HEADERS, rows, n_texts=4),
        )
    ]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    edge = ", at the edge" if row["at_edge"] else ""
    is_range = row["low"] is not None
    more = UNKNOWN
    if row["correlation"] is not None:
        more = (
            "no matter"
            if row["correlation"] == 0
            else "worse"
            if row["correlation"] > 0
            else "better"
        )
    return (
        search_title(row["group"], row["search"]),
        row["setting"],
        (row["value"] or UNKNOWN) + edge,
        f"{format_number(row['low'])} to {format_number(row['high'])}" if is_range else "names",
        f"{row['tried']} ({row['feasible']})",
        UNKNOWN if row["importance"] is None else f"{row['importance']:.2f} (p {row['p']:.2g})",
        more,
        UNKNOWN if row["utility_correlation"] is None else f"{row['utility_correlation']:+.2f}",
    )


def importance_drawing(run: Run) -> Drawing | None:
    """A panel per search with a bar per hyperparameter, the importance; None where none is
    known.
    """
    table = tuned_table(run).drop_nulls("importance")
    panels = []
    for index, ((group, search), rows) in enumerate(
        table.group_by(["group", "search"], maintain_order=True)
    ):
        values = [
            (row["setting"], row["importance"], f"{row['importance']:.2f} (p {row['p']:.2g})")
            for row in rows.sort("importance", descending=True).iter_rows(named=True)
        ]
        title = search_title(str(group), int(str(search)))
        panels.append(
            bar_picture(values, name=f"importance-{index}", title=title, colour=COLOURS[0])
        )
    return Drawing(panels=tuple(panels[:MAX_PANELS]), legend=()) if panels else None


def parallel_drawing(run: Run) -> Drawing | None:
    """A panel per search: a line per setting that was tried, down its hyperparameters to what was
    minimised and utility; None where nothing was tuned.
    """
    tried, domains = settings_tried(run), searched_settings(run)
    panels = [
        _parallel_panel(study, domains, run, index)
        for index, study in enumerate(tried.partition_by("study", maintain_order=True)[:MAX_PANELS])
    ]
    legend = tuple(LegendEntry(name=name, svg=swatch(*style)) for name, style in LINE_LOOKS.items())
    return Drawing(panels=tuple(panels), legend=legend) if panels else None


# colour, width, dash
LINE_LOOKS = {
    "best that kept utility": (COLOURS[1], 3.0, ""),
    "kept utility over the floor": (COLOURS[0], 1.4, ""),
    "under the floor": (GREY, 1.2, "5 4"),
}


def _parallel_panel(
    study: pl.DataFrame, domains: Mapping[str, Mapping[str, Any]], run: Run, index: int
) -> Picture:
    goal = objective_of(run.experiment)
    names = [
        name
        for name, domain in domains.items()
        if domain.get("low") is not None and study[name].null_count() < study.height
    ]
    axes = [
        ParallelAxis(
            name=name,
            low=float(domains[name]["low"]),
            high=float(domains[name]["high"]),
            is_log=bool(domains[name].get("log")),
        )
        for name in names
    ]
    measures = {
        "objective": f"minimised: {goal.forgetting}"
        + ("" if goal.target == "none" else ", distance"),
        "utility": f"{goal.utility} on {goal.utility_split}",
    }
    measures = {name: label for name, label in measures.items() if study[name].count()}
    for column, label in measures.items():
        ends = [float(str(end)) for end in (study[column].min(), study[column].max())]
        axes.append(ParallelAxis(name=label, low=ends[0], high=ends[1], is_log=False))
    lines = _parallel_lines(study, (*names, *measures))
    # the best line is drawn over the others
    lines.sort(key=lambda line: line.style[1])
    title = search_title(study["group"][0], study["search"][0])
    return parallel(axes, lines, name=f"parallel-{index}", title=title)


def _parallel_lines(study: pl.DataFrame, columns: Sequence[str]) -> list[ParallelLine]:
    """A line per setting of a study through these columns."""
    feasible = study.filter("feasible")["objective"].drop_nulls()
    best = feasible.min() if len(feasible) else None
    lines = []
    for row in study.drop_nulls(["objective", "utility"]).iter_rows(named=True):
        kind = "under the floor"
        if row["feasible"]:
            is_best = row["objective"] == best
            kind = "best that kept utility" if is_best else "kept utility over the floor"
        lines.append(
            ParallelLine(
                name=f"setting {row['study_index']}: {kind}",
                values=tuple(row[name] for name in columns),
                style=LINE_LOOKS[kind],
            )
        )
    return lines
