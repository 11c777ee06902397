"""`rayunlearn report RUN --format html|md|json|pdf`: the same findings for a browser, a text, a
program and a printer.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from rayunlearn.analysis.coreset_table import coreset_table
from rayunlearn.analysis.equal_retention import has_calibrated, method_ranking
from rayunlearn.analysis.recovery import recovery_table
from rayunlearn.analysis.run_frames import objective_of
from rayunlearn.analysis.tuning import tuned_table
from rayunlearn.errors import UserError, require, unknown_name
from rayunlearn.reporting.figures import Figure, figures_of
from rayunlearn.reporting.html import page, provenance, write_report
from rayunlearn.reporting.page_tables import page_tables, plain_view
from rayunlearn.reporting.sentences import finding_sentences, status_counts, warning_sentences
from rayunlearn.reporting.summary import SummaryTable, run_summary, summary_blocks
from rayunlearn.reporting.svg import WIDTH as PANEL_WIDTH
from rayunlearn.reporting.svg import LegendEntry
from rayunlearn.schema import VERSION
from rayunlearn.storage.parquet import write_bytes
from rayunlearn.storage.run import Run, open_run

# columns of a table on an A4 page
PDF_COLUMNS = 8
# of a heading, by its level
TITLE_SIZES = {1: 18, 2: 13}
# its words may have brackets in pairs
LINK = re.compile(r"\[((?:[^][]|\[[^][]*\])*)\]\([^)]*\)")


def report_file(run: Path, form: str, output: str = "") -> Path:
    """Where a report is written: into the run, or to `output`, a file of this form's ending or a
    folder. Raises UserError for an unknown form and for an ending of another one.
    """
    if form not in FORMATS:
        raise unknown_name("--format", form, FORMATS)
    path = Path(output) if output else Path(run)
    ending = path.suffix.removeprefix(".")
    if not output or path.is_dir() or ending not in FORMATS:
        return path / f"report.{form}"
    require(ending == form, f"--output must end in .{form} for --format {form}", output)
    return path


def write_as(run: Path, form: str, file: Path | None = None) -> Path:
    """Write the report from the run's Parquet files alone, as `file` or `<run>/report.<form>`;
    returns its path. Raises UserError for an unknown form.
    """
    path = report_file(run, form) if file is None else file
    if form == "html":
        return write_report(run, path)
    write_bytes(path, FORMATS[form](open_run(run).in_memory()))
    return path


def markdown(run: Run) -> str:
    """The report as CommonMark with pipe tables; text of the run cannot start markup of its own."""
    lines = [f"# {escape_html(title_of(run))}", "", escape_html(question_of(run)), ""]
    for section in summary_blocks(run):
        lines += [
            f"## {section.title}",
            "",
            *(line for sentence in section.sentences for line in (escape_html(sentence), "")),
        ]
        lines += [*escape_pipes(section.table), ""] if section.table else []
    lines += [
        "## Where this comes from",
        "",
        *(f"- {name}: {escape_html(value)}" for name, value in provenance(run)),
        "",
    ]
    return "\n".join(lines)


def as_json(run: Run) -> dict[str, Any]:
    """The report as plain values: the first page in words, then every table as a list of rows; what
    is not known is null.
    """
    table = coreset_table(run)
    return {
        "report": 1,
        "schema": VERSION,
        "rayunlearn": version("rayunlearn"),
        "name": run.experiment.get("name", run.path.name),
        "version": run.experiment.get("version", ""),
        "question": question_of(run),
        "objective": vars(objective_of(run.experiment)),
        "warnings": warning_sentences(run, table),
        "brief": [
            {"question": s.title, "answer": list(s.sentences), "table": _rows(s.table)}
            for s in run_summary(run, table)
        ],
        "findings": finding_sentences(run, table),
        "statuses": status_counts(run),
        "cells": _plain(table),
        "tuned": _plain(tuned_table(run)),
        "attacks": _plain(recovery_table(run)),
        "standings": _plain(method_ranking(run)) if has_calibrated(run) else [],
        "provenance": dict(provenance(run)),
    }


def pdf(run: Run) -> bytes:
    """The report on A4 pages, tables of many columns in parts, and the figures. Raises UserError
    where the extra `pdf` is not installed.
    """
    document = _empty_pdf()
    document.add_page()
    _heading(document, title_of(run), 18)
    _paragraph(document, question_of(run))
    for section in summary_blocks(run):
        _heading(document, section.title, 13)
        for sentence in section.sentences:
            _paragraph(document, sentence)
        if section.table is not None:
            view = plain_view(section.table.headers, section.table.rows)
            for table in page_tables(view, named_by=section.named_by, size=PDF_COLUMNS):
                _grid(document, table.headers, table.rows)
    for figure in figures_of(run, coreset_table(run)):
        _figure(document, figure)
    _heading(document, "Where this comes from", 13)
    for name, value in provenance(run):
        _paragraph(document, f"{name}: {value}", size=8)
    return bytes(document.output())


def markdown_pdf(text: str) -> bytes:
    """A text of headings, paragraphs, lists and pipe tables on A4 pages; a link is its words.

    Raises UserError where the extra `pdf` is not installed.

    Example:
        >>> markdown_pdf("# Title\\n\\nOne [paragraph](page.md).")[:5]
        b'%PDF-'
    """
    document = _empty_pdf()
    document.add_page()
    for block in re.split(r"\n\s*\n", text.strip()):
        words = LINK.sub(r"\1", block)
        level = len(words) - len(words.lstrip("#"))
        if level:
            _heading(document, words.lstrip("# "), TITLE_SIZES.get(level, 11))
        elif words.startswith("|"):
            head, _, *rows = (_cells_of(line) for line in words.splitlines())
            _grid(document, head, rows)
        elif words.startswith("- "):
            for item in re.split(r"\n(?=- )", words):
                _paragraph(document, f"\u2022 {' '.join(item[2:].split())}")
        else:
            _paragraph(document, " ".join(words.split()).replace("**", ""))
    return bytes(document.output())


def _cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def title_of(run: Run) -> str:
    """Name and version of the experiment."""
    return " ".join(
        filter(
            None,
            (
                str(run.experiment.get("name", run.path.name)),
                str(run.experiment.get("version", "")),
            ),
        )
    )


def question_of(run: Run) -> str:
    """The first paragraph of the experiment's docstring."""
    return " ".join(str(run.experiment.get("question", "")).strip().partition("\n\n")[0].split())


def escape_html(text: str) -> str:
    """Text whose characters mean themselves in Markdown; back-ticks that we write stay."""
    for character in "\\*_[]<>|#":
        text = text.replace(character, "\\" + character)
    return text


def escape_pipes(table: SummaryTable) -> list[str]:
    """A pipe table, a line each."""
    rows = [table.headers, ("---",) * len(table.headers), *table.rows]
    return [
        "| "
        + " | ".join(
            cell if cell == "---" else escape_html(cell.replace("\n", " ")) for cell in row
        )
        + " |"
        for row in rows
    ]


def _rows(table: SummaryTable | None) -> list[dict[str, str]]:
    return [dict(zip(table.headers, row, strict=True)) for row in table.rows] if table else []


def _plain(frame: pl.DataFrame) -> list[dict[str, Any]]:
    return [
        {name: _finite(value) for name, value in row.items()} for row in frame.iter_rows(named=True)
    ]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _empty_pdf() -> Any:
    try:
        from fpdf import FPDF

        # for DejaVu, a font with the scripts that a run may hold
        from matplotlib import get_data_path
    except ImportError as missing:
        raise UserError(
            "--format pdf needs the extra `pdf`: pip install 'rayunlearn[pdf]'"
        ) from missing
    document = FPDF(format="A4")
    fonts = Path(get_data_path()) / "fonts" / "ttf"
    document.add_font("DejaVu", "", fonts / "DejaVuSans.ttf")
    document.add_font("DejaVu", "B", fonts / "DejaVuSans-Bold.ttf")
    document.set_auto_page_break(True, margin=15)
    return document


def _heading(document: Any, text: str, size: int) -> None:
    document.set_font("DejaVu", "B", size)
    document.ln(2)
    document.multi_cell(0, size / 2, text, new_x="LMARGIN", new_y="NEXT")
    document.ln(1)


def _paragraph(document: Any, text: str, *, size: float = 9.5) -> None:
    document.set_font("DejaVu", "", size)
    document.multi_cell(0, size / 2, text, new_x="LMARGIN", new_y="NEXT")
    document.ln(1)


def _grid(document: Any, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose words stay whole; columns are as wide as their longest word asks, and then by
    how much is in them.
    """
    size = 7.5
    document.set_font("DejaVu", "", size)
    columns = list(zip(headers, *rows, strict=True))
    words = [
        max(len(word) for cell in column for word in (cell.split() or [""])) for column in columns
    ]
    widths = [
        max(4, word, min(28, max(len(cell) for cell in column)))
        for word, column in zip(words, columns, strict=True)
    ]
    with document.table(
        col_widths=widths,
        line_height=size / 2 + 0.4,
        text_align="LEFT",
        first_row_as_headings=True,
    ) as grid:
        for cells in (headers, *rows):
            row = grid.row()
            for cell in cells:
                row.cell(cell)
    document.ln(2)


def _figure(document: Any, figure: Figure) -> None:
    """Title, how to read it, legend, and its panels two in a line, none over the end of a page."""
    side, gap = (document.epw - 6) / 2, 6
    heights = [side * panel.height / PANEL_WIDTH for panel in figure.drawing.panels]
    # the words and the first line of panels stay together
    if document.will_page_break(30 + heights[0]):
        document.add_page()
    _heading(document, figure.title, 13)
    _paragraph(document, figure.caption, size=8)
    _legend(document, figure.drawing.legend)
    for start in range(0, len(heights), 2):
        tallest = max(heights[start : start + 2])
        if document.will_page_break(tallest):
            document.add_page()
        top = document.get_y()
        for column, panel in enumerate(figure.drawing.panels[start : start + 2]):
            picture = _picture_file(panel.svg)
            document.image(picture, x=document.l_margin + column * (side + gap), y=top, w=side)
        document.set_y(top + tallest + 3)


def _picture_file(svg: str) -> BytesIO:
    """An SVG without its words, which fpdf2 does not read and warns of."""
    shapes = re.sub(r"<(title|desc)[^>]*>.*?</\1>", "", svg, flags=re.DOTALL)
    return BytesIO(shapes.encode("utf-8"))


def _legend(document: Any, entries: Sequence[LegendEntry]) -> None:
    """Swatches with their names, as many in a line as it holds."""
    document.set_font("DejaVu", "", 8)
    for entry in entries:
        width = 12 + document.get_string_width(entry.name)
        if document.get_x() + width > document.w - document.r_margin:
            document.ln(5)
        picture = _picture_file(entry.svg)
        document.image(picture, x=document.get_x(), y=document.get_y() + 0.6, w=8)
        document.set_x(document.get_x() + 9)
        document.cell(width - 9, 5, entry.name)
    if entries:
        document.ln(7)


FORMATS: Mapping[str, Callable[[Run], bytes]] = {
    "html": lambda run: page(run).encode("utf-8"),
    "md": lambda run: markdown(run).encode("utf-8"),
    "json": (
        lambda run: (
            json.dumps(as_json(run), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        ).encode("utf-8")
    ),
    "pdf": pdf,
}
