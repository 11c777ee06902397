"""Tables of the report and the terminal: coreset table, baselines, method ranking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from rayunlearn.analysis.baselines import SIGNIFICANCE
from rayunlearn.analysis.coreset_table import extra_settings
from rayunlearn.analysis.equal_retention import (
    COMPARED,
    ORDER_SIGNIFICANCE,
    method_ranking,
    n_pairs,
    order_changes,
    rank_changes,
)
from rayunlearn.analysis.labels import (
    UNKNOWN,
    control_label,
    format_cell,
    format_coreset_size,
    format_difference,
    format_gap_closed,
    format_interval,
    format_mean,
    format_number,
    format_percent,
    shorten,
)
from rayunlearn.analysis.run_frames import UNTOUCHED, objective_of
from rayunlearn.analysis.targets import OVER_FORGOTTEN
from rayunlearn.config import FULL_RATIO, Objective
from rayunlearn.schema import STATUSES
from rayunlearn.storage.run import Run


def baseline_sentences(table: pl.DataFrame) -> list[str]:
    """One sentence per place and reference: how many arms forget more, which, and how many less."""
    groups = table.group_by(["place", "reference"], maintain_order=True)
    return [_sentence(str(dataset), str(reference), rows) for (dataset, reference), rows in groups]


def baseline_view(table: pl.DataFrame) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(headers, rows) for reading."""
    headers = (
        "arm",
        "ratio",
        "reference",
        "forget",
        "forget (reference)",
        "difference",
        "p",
        "p (Holm)",
        "verdict",
        "retained",
    )
    rows: list[tuple[str, ...]] = [
        (
            ", ".join(filter(None, (r["arm"], r["name"], r["place"]))),
            f"{r['ratio']:g}",
            ", ".join(filter(None, (r["reference"], r["reference_name"]))),
            format_number(r["left"]),
            format_number(r["left_reference"]),
            format_difference(r),
            f"{r['p']:.2g}",
            f"{r['p_holm']:.2g}",
            r["verdict"],
            format_number(r["retained"]) + ("" if r["useful"] else ", under the floor"),
        )
        for r in table.iter_rows(named=True)
    ]
    return headers, rows


def _sentence(dataset: str, reference: str, rows: pl.DataFrame) -> str:
    context = f" ({dataset})" if dataset else ""
    more, less = (
        rows.filter(pl.col("verdict") == verdict) for verdict in ("forgets more", "forgets less")
    )
    named = ", ".join(
        dict.fromkeys(
            _brief(rows_) for _, rows_ in more.group_by(["arm", "ratio"], maintain_order=True)
        )
    )
    return (
        f"Compared with {reference}{context}: {more.height} of {rows.height} cells forget"
        f" more{': ' if named else ''}{named}; {less.height} forget less; for the others no"
        f" difference is shown (p at most {SIGNIFICANCE:g} after Holm over everything compared on"
        " this corpus)."
    )


def _brief(rows: pl.DataFrame) -> str:
    """`random at 0.05 -0.224`; where an arm stands beside several references at a ratio, how many
    and from which difference to which.
    """
    row = rows.row(0, named=True)
    low, high = float(str(rows["difference"].min())), float(str(rows["difference"].max()))
    several = f" to {high:+.3f} ({rows.height} cells)" if rows.height > 1 else ""
    floor = "" if rows["useful"].all() else " under the utility floor"
    return f"{row['arm']} at {row['ratio']:g} {low:+.3f}{several}{floor}"


def ranking_sentences(run: Run) -> list[str]:
    """How many pairs of methods change places at equal retention, which of them is shown, and which
    methods move.

    Args:
        run: an opened run (`storage.run.open_run`).

    Returns:
        The sentences; none where nothing was calibrated.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> run = open_run("docs/notebooks/runs/control")
        >>> ranking_sentences(run)[0].partition(";")[0].split(", ")[1]
        '42 of 136 pairs of methods change places'
    """
    changes, table = order_changes(run), method_ranking(run)
    total = n_pairs(table)
    if not total:
        return []
    significant = changes.filter("shown")
    first = (
        f"Interpolated to the same share of base's retention, {changes.height} of {total} pairs of"
        f" methods change places; of {significant.height} of these both differences are shown (p at"
        f" most {ORDER_SIGNIFICANCE:g} after Holm over all pairs)."
    )
    return [
        first,
        *(_change(row, objective_of(run.experiment)) for row in significant.iter_rows(named=True)),
        *_moves(rank_changes(table)),
    ]


def _moves(table: pl.DataFrame) -> list[str]:
    """One sentence for all that moved."""
    cells = [
        f"{', '.join(filter(None, (row['name'], row['place'])))} from {_rank(row)} to"
        f" {_rank(row, '_after')}"
        for row in table.iter_rows(named=True)
    ]
    return (
        [
            "Ranks whose 95% intervals lie apart, as trained and at equal retention:"
            f" {'; '.join(cells)}."
        ]
        if cells
        else []
    )


def _change(row: Mapping[str, Any], goal: Objective) -> str:
    context = f" ({row['place']})" if row["place"] else ""
    before, after = ("leaves less than", "more")
    if goal.target != "none":
        before, after = "is nearer to the target than", "further from it"
    gap = f"{row['before']:+.3f} before, {row['after']:+.3f} after, p {row['p']:.2g}"
    return (
        f"{row['first']} {before} {row['second']} as trained and {after} at equal"
        f" retention{context}: {gap}."
    )


def ranking_view(run: Run) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(headers, rows) for reading: a row per cell, the three stages side by side, in the order of
    stage calibrated.
    """
    table, goal = method_ranking(run), objective_of(run.experiment)
    kinds = {
        stage: {
            (r["place"], r["name"]): r
            for r in table.filter(pl.col("stage") == stage).iter_rows(named=True)
        }
        for stage in COMPARED
    }
    headers = [
        "method",
        "rank",
        f"forget {goal.forgetting}",
        f"{goal.utility_split} {goal.utility}",
    ]
    for stage in [stage for stage in COMPARED[1:] if kinds[stage]]:
        headers += [f"{stage.replace('_', ' ')} rank", f"{stage.replace('_', ' ')} forget", "alpha"]
    return tuple(headers), [
        _view_row(key, kinds) for key in kinds["calibrated"] if key in kinds["unlearned"]
    ]


def _view_row(
    key: tuple[str, str], kinds: Mapping[str, Mapping[tuple[str, str], Mapping[str, Any]]]
) -> tuple[str, ...]:
    before = kinds["unlearned"][key]
    cells = [
        ", ".join(filter(None, (key[1], key[0]))),
        _rank(before),
        with_mark(format_interval(before, "left"), before),
        format_interval(before, "retained"),
    ]
    for stage in [stage for stage in COMPARED[1:] if kinds[stage]]:
        row = kinds[stage].get(key)
        cells += (
            [
                _rank(row),
                with_mark(format_interval(row, "left"), row),
                format_mean(row["alpha"]),
            ]
            if row
            else [UNKNOWN] * 3
        )
    return tuple(cells)


def _rank(row: Mapping[str, Any], end: str = "") -> str:
    return f"{row[f'rank{end}']:.0f} [{row[f'rank_low{end}']:.0f}, {row[f'rank_high{end}']:.0f}]"


@dataclass(frozen=True, kw_only=True)
class TableView:
    """A coreset table as text: `headers` with their `meanings`, and rows of cells beside the role
    of each row.
    """

    headers: tuple[str, ...]
    meanings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    roles: tuple[str, ...]
    numeric: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table with what the terminal and the page say of it: anchor, title, how to read it."""

    anchor: str
    title: str
    caption: str
    view: TableView


def with_mark(text: str, row: Mapping[str, Any]) -> str:
    """A value of the forgetting metric, marked where it is shown to be below gold or chance."""
    return f"{text} {OVER_FORGOTTEN}" if row["over_forgotten"] else text


def over_forgotten_sentence(table: pl.DataFrame) -> list[str]:
    """Which cells of a coreset table are shown to be below gold, or below chance; none where none
    is.
    """
    rows = table.filter(pl.col("over_forgotten").fill_null(value=False))
    settings = extra_settings(table)
    cells: dict[str, list[str]] = {}
    for row in rows.iter_rows(named=True):
        part = format_coreset_size(row["select.name"], row["select.ratio"] or FULL_RATIO)
        words = ", ".join(filter(None, (method_label(row, settings), part)))
        context = format_cell(row, settings)
        cells.setdefault(row["aim"], []).append(f"{words} ({context})" if context else words)
    return [
        f"{OVER_FORGOTTEN}, the whole 95% interval below {NAMES_OF_TARGETS[aim]}:"
        f" {'; '.join(names)}. That is no better than reaching it."
        for aim, names in cells.items()
    ]


NAMES_OF_TARGETS = {
    "gold": "that of a model that never saw the forget set",
    "chance": "what a model that cannot know would score",
}


def status_label(row: Mapping[str, Any]) -> str:
    """`all complete`, or the shares of the trials of the cell that ended otherwise."""
    parts = [
        f"{format_percent(row[f'share_{s}'])} {s}"
        for s in STATUSES
        if s != "complete" and row[f"share_{s}"]
    ]
    marks = [OVER_FORGOTTEN] if row["over_forgotten"] else []
    return ", ".join([*(parts or ["complete"]), *marks])


def method_label(row: Mapping[str, Any], settings: Sequence[str] = ()) -> str:
    """The method of a row; for a control also what it controls, beyond the `settings` and the
    retain loss that it shows itself.
    """
    group = (
        control_label(row["group"], without=[*settings, "method.retain"])
        if row["role"] == "control"
        else ""
    )
    return f"{row['method']} ({group})" if group else str(row["method"])


def coreset_view(table: pl.DataFrame, experiment: Mapping[str, Any]) -> TableView:
    """The coreset table for reading, one text cell per column."""
    settings, has_untouched_split = (
        extra_settings(table),
        has_untouched(table, objective_of(experiment)),
    )
    # the facts of a corpus from outside are not known
    has_coverage = table["coverage"].count() > 0
    columns = (
        *_cell_columns(settings, coverage=has_coverage),
        *_metric_columns(objective_of(experiment), untouched=has_untouched_split),
        *TRIAL_COLUMNS,
        *([TUNED_COLUMN] if has_tuned(table) else []),
    )
    headers, meanings, numeric = zip(*columns, strict=True)
    rows = tuple(
        _cells(row, settings, untouched=has_untouched_split, coverage=has_coverage)
        + ((row["tuned"] or UNKNOWN,) if has_tuned(table) else ())
        for row in table.iter_rows(named=True)
    )
    return TableView(
        headers=headers, meanings=meanings, numeric=numeric, rows=rows, roles=tuple(table["role"])
    )


# header, what it means, whether its cells are numbers
ViewColumn = tuple[str, str, bool]

TRIAL_COLUMNS: tuple[ViewColumn, ...] = (
    ("seeds", "trials measured", True),
    ("status", "how the trials of the cell ended, and whether it is over-forgotten", False),
    ("steps", "optimizer steps, mean", True),
    ("documents seen", "forget documents seen in training, repeats counted, mean", True),
)


COVERAGE_COLUMN: ViewColumn = (
    "coverage",
    "share of the forget set's facts that the coreset states",
    True,
)

TUNED_COLUMN: ViewColumn = (
    "tuned",
    "the searched hyperparameters that the row was run with, of several searches one after another",
    False,
)


def has_tuned(table: pl.DataFrame) -> bool:
    """Whether some cell of a coreset table was run with what a search found."""
    return bool((table["tuned"] != "").any())


def _cell_columns(settings: Sequence[str], *, coverage: bool) -> list[ViewColumn]:
    """The method, the settings that vary and the coreset of a row."""
    method = (
        "forget loss + retain loss; control: retain loss alone, with the settings of the"
        " group in brackets"
    )
    return [
        ("method", method, False),
        *((name, "setting that varies", False) for name in settings),
        ("selector", "how the coreset was chosen", False),
        ("coreset", "share and number of forget documents that unlearning trained on", True),
        *([COVERAGE_COLUMN] if coverage else []),
    ]


def _metric_columns(goal: Objective, *, untouched: bool) -> list[ViewColumn]:
    """What was measured, with what it was measured on."""
    interval, split = "mean and 95% t interval", goal.utility_split
    gap_closed = "fraction of the base-gold gap closed, with its 95% interval (Fieller)"
    distance = (
        "how far forgetting is from the model that never saw the forget set, or from chance where"
        " there is none; below counts as far as above"
    )
    columns = [
        (
            f"forget {goal.forgetting}{goal.after_attack}",
            f"split forget{goal.after_attack}: {interval}",
            True,
        ),
        ("distance", distance, True),
        ("unlearned", gap_closed, True),
        (f"{split} {goal.utility}", f"split {split}: {interval}", True),
    ]
    if untouched:
        meaning = f"split {UNTOUCHED}, known to base and gold, never seen by unlearning: {interval}"
        columns.append((f"{UNTOUCHED} {goal.utility}", meaning, True))
    return [
        *columns,
        ("choice forget", "multiple choice, split forget, fraction right", True),
        (f"choice {split}", f"multiple choice, split {split}, fraction right", True),
    ]


def has_untouched(table: pl.DataFrame, goal: Objective) -> bool:
    """Whether the data has a split that base and gold know and no unlearning run is shown, and the
    objective's utility is not that already.
    """
    return goal.utility_split != UNTOUCHED and table["untouched"].null_count() < table.height


def _cells(
    row: Mapping[str, Any], settings: list[str], *, untouched: bool, coverage: bool
) -> tuple[str, ...]:
    grid, trained = row["role"] == "grid", row["role"] in ("grid", "control")
    selector = ("(all)" if row["select.ratio"] == 1 else row["select.name"]) if grid else UNKNOWN
    size_words = (
        f"{format_percent(row['select.ratio'])} ({format_number(row['n_kept'])})"
        if grid
        else UNKNOWN
    )
    untouched_cell = (format_interval(row, "untouched"),) if untouched else ()
    measured = (
        format_interval(row, "forgetting"),
        format_mean(row["distance"]),
        format_gap_closed(row),
        format_interval(row, "utility"),
        *untouched_cell,
    )
    choices = (format_mean(row["choice_forget"]), format_mean(row["choice_retain"]))
    effort = tuple(
        format_number(row[name]) if trained else UNKNOWN
        for name in ("optimizer_steps", "presentations")
    )
    front = (
        method_label(row, settings),
        *(shorten(format_number(row[name])) for name in settings),
        selector,
        size_words,
        *([format_percent(row["coverage"]) if grid else UNKNOWN] if coverage else []),
    )
    return (*front, *measured, *choices, format_number(row["seeds"]), status_label(row), *effort)
