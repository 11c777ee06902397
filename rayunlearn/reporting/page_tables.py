"""Tables as wide as a page: the columns that are read first in one, the columns on demand."""

from collections.abc import Sequence
from dataclasses import dataclass

from rayunlearn.reporting.tables import TableView

# columns that fit 1280 px, wrapped at spaces
MAX_COLUMNS = 9
# of cells that hold a sentence
MAX_WIDE_COLUMNS = 6

# CSS pixels at 1280: of a table, of a cell's left and right, of a bold character (measured)
PAGE_WIDTH, CELL_PADDING, CHARACTER_WIDTH = 1232, 16, 8.0

# beginnings of the headers of the coreset table that are shown on demand
CORESET_DETAILS = ("coverage", "distance", "choice", "steps", "documents seen", "tuned")


@dataclass(frozen=True, kw_only=True)
class PageTable:
    """A table of the page; `extra`: columns beside those that name its rows."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]
    meanings: tuple[str, ...]
    roles: tuple[str, ...]
    extra: int


def page_tables(
    view: TableView,
    *,
    named_by: int = 1,
    details: Sequence[str] = (),
    size: int = MAX_COLUMNS,
) -> tuple[PageTable, ...]:
    """The view as tables of at most `size` columns, each with the columns that name its rows.

    Args:
        view: a table in words.
        named_by: columns from the left that name a row.
        details: beginnings of headers that come last.
        size: columns of a table, those that name its rows counted.

    Returns:
        The tables, the one that is shown first; one at least.

    Example:
        >>> view = TableView(
        ...     headers=("method", "forget", "steps", "retain"),
        ...     meanings=("",) * 4,
        ...     rows=(("npo", "0.2", "100", "0.9"),),
        ...     roles=("grid",),
        ...     numeric=(False, True, True, True),
        ... )
        >>> [table.headers for table in page_tables(view, details=("steps",), size=3)]
        [('method', 'forget', 'retain'), ('method', 'steps')]
    """
    keys = list(range(named_by))
    columns = range(named_by, len(view.headers))
    is_detail = {i: view.headers[i].startswith(tuple(details)) for i in columns}
    # many settings may vary: two columns beside them are shown all the same
    n_shown = max(2, size - named_by)
    room = PAGE_WIDTH - sum(_least_width(view, i) for i in keys)
    groups: list[list[int]] = []
    for is_last in (False, True):
        part: list[int] = []
        for i in (i for i in columns if is_detail[i] == is_last):
            taken = sum(_least_width(view, n) for n in (*part, i))
            if not part or len(part) == n_shown or taken > room:
                part = []
                groups.append(part)
            part.append(i)
    return tuple(_columns_of(view, keys, group) for group in groups or [[]])


def _least_width(view: TableView, column: int) -> float:
    """Width of a column in CSS pixels at least: its longest word, as cells wrap at spaces."""
    texts = (view.headers[column], *(row[column] for row in view.rows))
    longest = max((len(word) for text in texts for word in text.split()), default=0)
    return CELL_PADDING + CHARACTER_WIDTH * longest


def _columns_of(view: TableView, keys: Sequence[int], group: Sequence[int]) -> PageTable:
    chosen = [*keys, *group]
    return PageTable(
        headers=tuple(view.headers[i] for i in chosen),
        rows=tuple(tuple(row[i] for i in chosen) for row in view.rows),
        numeric=tuple(view.numeric[i] for i in chosen),
        meanings=tuple(view.meanings[i] for i in chosen),
        roles=view.roles,
        extra=len(group),
    )


def plain_view(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, is_numeric: bool = True
) -> TableView:
    """Headers and rows without meanings as a view; the first column is text."""
    return TableView(
        headers=tuple(headers),
        meanings=("",) * len(headers),
        rows=tuple(tuple(row) for row in rows),
        roles=("grid",) * len(rows),
        numeric=(False, *((is_numeric,) * (len(headers) - 1))),
    )
