"""The command line: a run as a benchmark card, and cards side by side."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn.cli.arguments import DONE, add_command, add_run_argument
from rayunlearn.cli.output import console_for_output, require_writable
from rayunlearn.storage.sync import local_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from rayunlearn.interop.compare_cards import Comparison
    from rayunlearn.reporting.tables import Section, TableView

LONGEST_TEXT = 60


def add_card_command(commands: Any) -> None:
    """`card RUN`."""
    text = "write a run as a small folder that another group can compare with theirs"
    added = add_command(commands, "card", card, text)
    add_run_argument(added)
    added.add_argument(
        "--output", metavar="DIR", default="", help="a new folder (default: `card` in the run)"
    )


def add_compare_command(commands: Any) -> None:
    """`compare CARD CARD`."""
    text = "hold benchmark cards against the first: what differs in settings, then the numbers"
    added = add_command(commands, "compare", compare, text)
    added.add_argument("cards", metavar="CARD", nargs="+", help="folder that `card` wrote")
    added.add_argument(
        "--metric",
        metavar="NAME,NAME",
        default="",
        help="these metrics on every split (default: what the first card's objective asks for)",
    )


def card(chosen: argparse.Namespace) -> int:
    """The card of a run."""
    from rayunlearn.interop.card import write_card

    run = local_run(chosen.run)
    output = Path(chosen.output) if chosen.output else run / "card"
    require_writable(output.parent, "--output names another place for the card")
    print(f"card: {write_card(run, output)}")
    return DONE


def compare(chosen: argparse.Namespace) -> int:
    """Settings that differ, then the table."""
    from rayunlearn.interop.card import read_card
    from rayunlearn.interop.compare_cards import compare_cards

    metrics = [name for name in chosen.metric.split(",") if name]
    comparison = compare_cards([read_card(Path(path)) for path in chosen.cards], metrics=metrics)
    print_comparison(comparison, console_for_output())
    return DONE


def print_comparison(comparison: "Comparison", console: "Console") -> None:
    """What differs in settings, then a row per cell and measure, then how to read it."""
    from rayunlearn.reporting.console import print_section

    for section in comparison_sections(comparison):
        print_section(section, console)
    for line in comparison_notes(comparison):
        console.print(line, highlight=False, soft_wrap=True)


def comparison_sections(comparison: "Comparison") -> "list[Section]":
    """The two tables of a comparison, in the order in which they are read."""
    from rayunlearn.reporting.tables import Section

    sections = []
    if comparison.settings.height:
        texts = [tuple(_cut(text) for text in row) for row in comparison.settings.iter_rows()]
        view = _view(comparison.settings.columns, texts, n_texts=comparison.settings.width)
        title = "What differs in how they were made"
        sections.append(Section(anchor="settings", title=title, caption="", view=view))
    rows = [_row(row, comparison) for row in comparison.cells.iter_rows(named=True)]
    differences = [f"{name} - first" for name in comparison.names[1:]]
    headers = ("cell", "measure", *comparison.names, *differences)
    caption = "[low, high] 95% interval; of a difference over seeds (Welch), not corrected"
    view = _view(headers, rows, n_texts=2)
    sections.append(Section(anchor="cells", title="What was measured", caption=caption, view=view))
    return sections


def _view(
    headers: "Sequence[str]", rows: "Sequence[tuple[str, ...]]", *, n_texts: int
) -> "TableView":
    """A table whose first `n_texts` columns are texts and the others numbers."""
    from rayunlearn.reporting.tables import TableView

    return TableView(
        headers=tuple(headers),
        meanings=("",) * len(headers),
        rows=tuple(rows),
        roles=("",) * len(rows),
        numeric=tuple(number >= n_texts for number in range(len(headers))),
    )


def comparison_notes(comparison: "Comparison") -> list[str]:
    """What a reader must know before believing a difference."""
    notes = []
    if not comparison.same_corpus:
        notes.append(
            "the cards are of different documents (corpora): no difference is computed, and two"
            " numbers in a row are not of the same questions"
        )
    for name in comparison.names:
        if not comparison.cells[f"mean {name}"].count():
            notes.append(f"{name} has none of these measures; --metric names others")
    if not comparison.settings.height:
        notes.append("nothing that a card records differs in how they were made")
    for name, number in zip(comparison.names[1:], comparison.unmatched, strict=True):
        if number:
            cells = "cell" if number == 1 else "cells"
            notes.append(f"{number} {cells} of {name} without a counterpart in the first card")
    return notes


def _row(row: "Mapping[str, Any]", comparison: "Comparison") -> tuple[str, ...]:
    from rayunlearn.analysis.labels import UNKNOWN, format_difference, format_interval

    keys = list(row)[: list(row).index("split")]
    texts = [_cell_text(name, row[name]) for name in keys]
    values = [
        format_interval(
            {"mean": row[f"mean {n}"], "mean_low": row[f"low {n}"], "mean_high": row[f"high {n}"]},
            "mean",
        )
        for n in comparison.names
    ]
    differences = [
        UNKNOWN
        if row[f"difference {n}"] is None
        else format_difference(
            {
                "difference": row[f"difference {n}"],
                "low": row[f"difference_low {n}"],
                "high": row[f"difference_high {n}"],
            }
        )
        for n in comparison.names[1:]
    ]
    cell = " ".join(text for text in texts if text)
    return (cell, f"{row['metric']} on {row['split']}", *values, *differences)


def _cell_text(name: str, value: Any) -> str:
    from rayunlearn.analysis.labels import format_number, format_percent

    # the method says the role of base, gold and control
    if value in (None, "") or name == "role":
        return ""
    if name == "select.ratio":
        return format_percent(value)
    return str(value) if name in ("method", "select.name") else f"{name}={format_number(value)}"


def _cut(text: str) -> str:
    """At most as much as helps to see that two texts differ."""
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 3]}..."
