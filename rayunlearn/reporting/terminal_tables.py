"""Tables within the width of a terminal: columns that do not fit beside the first ones follow in a
table below, under the same names of the rows.
"""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

# characters between two columns
GAP = 2


def stacked(header: str) -> str:
    """A header with its words below each other.

    Example:
        >>> stacked("forget probability")
        'forget\\nprobability'
    """
    return header.replace(" ", "\n")


def column_widths(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Characters of the longest line in each column, headers stacked.

    Example:
        >>> column_widths(("method", "forget probability"), (("npo", "0.2"),))
        [6, 11]
    """
    return [
        max(
            len(line)
            for text in (stacked(header), *(row[i] for row in rows))
            for line in text.split("\n")
        )
        for i, header in enumerate(headers)
    ]


def least_widths(
    headers: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]
) -> list[int]:
    """Characters that each column needs: of texts the longest word, as they are broken at blanks;
    a number stays in its line.

    Example:
        >>> rows = (("rmu + activation", "0.1 [0.0, 0.2]"),)
        >>> least_widths(("method", "forget"), rows, (False, True))
        [10, 14]
    """
    words = [[word for text in row for word in text.split()] for row in zip(*rows, strict=True)]
    full = column_widths(headers, rows)
    return [
        full[i]
        if is_number
        else min(full[i], max(map(len, (*header.split(), *(words[i] if words else ())))))
        for i, (header, is_number) in enumerate(zip(headers, numeric, strict=True))
    ]


def table_parts(widths: Sequence[int], width: int, *, named_by: int = 1) -> list[list[int]]:
    """Columns of the tables that together show them all: each begins with those that name a row.

    Args:
        widths: characters that each column needs.
        width: characters of the terminal.
        named_by: columns from the left that name a row.

    Returns:
        Indices of the columns of each table; one column at least beside the names.

    Example:
        >>> table_parts([6, 11, 11, 11], 34)
        [[0, 1, 2], [0, 3]]
    """
    names = list(range(named_by))
    parts, part = [], list(names)
    for i in range(named_by, len(widths)):
        if len(part) > named_by and _taken(widths, [*part, i]) > width:
            parts.append(part)
            part = list(names)
        part.append(i)
    return [*parts, part]


def _taken(widths: Sequence[int], columns: Sequence[int]) -> int:
    return sum(widths[i] + GAP for i in columns) - GAP


def print_fitting(
    console: Console,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Sequence[bool],
    title: str = "",
    caption: str = "",
    named_once: bool = False,
) -> None:
    """Print a table in as many parts as the console's width asks for.

    Args:
        console: where it is printed.
        headers: one per column; the first names the rows.
        rows: cells as text.
        numeric: per column, whether it stands at the right.
        title: above the first part.
        caption: below the last part.
        named_once: whether a name that repeats is printed once.
    """
    parts = table_parts(least_widths(headers, rows, numeric), console.width)
    for number, columns in enumerate(parts):
        is_last = number == len(parts) - 1
        table = empty_table(
            headers, columns, numeric, title="" if number else title, caption=caption * is_last
        )
        for row, before in zip(rows, ((), *rows), strict=False):
            is_repeated = named_once and bool(before) and before[0] == row[0]
            table.add_row(*(Text("" if is_repeated and i == 0 else row[i]) for i in columns))
        console.print(table)
        if not is_last:
            console.print()


def empty_table(
    headers: Sequence[str],
    columns: Sequence[int],
    numeric: Sequence[bool],
    *,
    title: str = "",
    caption: str = "",
) -> Table:
    """A table with these columns and no row: numbers stand at the right and are never broken."""
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        caption=Text(caption) if caption else None,
        caption_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    for i in columns:
        table.add_column(
            Text(stacked(headers[i])),
            justify="right" if numeric[i] else "left",
            vertical="bottom",
            overflow="fold",
            no_wrap=numeric[i],
        )
    return table
