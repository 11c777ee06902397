"""docs/paper.md from its text and the pages of docs/findings: `python -m experiments.findings.paper
[docs] [--pdf FILE]`.

The text (`paper_text.md` beside this file) has no number of ours written by hand. It refers to one
and what is written is the number, with a link to its row:

    {{pretrained-coreset | method=rmu + activation, arm=random, ratio=0.05 | forget}}
    {{redundancy ~ RMU: (\\S+) of}}

The first is the cell of one row of a page's table, the second the group of a pattern in one line of
a page. A reference that meets no row, or several, ends the command. Numbers of other papers are
written by hand beside their citation.
"""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
REFERENCE = re.compile(r"\{\{(.+?)\}\}", re.DOTALL)
TEXT = Path(__file__).with_name("paper_text.md")
ROW_MARK = '<a id="{}"></a>'


class MissingRowError(SystemExit):
    """A reference to a row that is not there, or not alone."""


@dataclass(frozen=True, kw_only=True)
class PageLine:
    """A line of a page that can be linked: its anchor, its cells by column (of a table's row), and
    its text without escapes.
    """

    anchor: str
    cells: Mapping[str, str]
    text: str


def page_lines(text: str) -> Iterator[PageLine]:
    """The rows of a page's tables and the sentences of its lists, in order.

    Example:
        >>> [row] = page_lines("| arm | left |\\n|---|---|\\n| random | 0.2 \\\\[0.1, 0.3\\\\] |")
        >>> row.anchor, row.cells["left"]
        ('row-1', '0.2 [0.1, 0.3]')
    """
    columns: Sequence[str] = ()
    counts = {"row": 0, "sentence": 0}
    for line in text.splitlines():
        plain = _plain(line)
        raw = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
        cells = [_plain(cell.strip()) for cell in raw]
        if plain.startswith("- "):
            kind, named = "sentence", {}
        elif not plain.startswith("|"):
            columns = ()
            continue
        elif not columns:
            columns = cells
            continue
        elif set(plain) <= set("|- :"):
            continue
        else:
            kind, named = "row", dict(zip(columns, cells, strict=True))
        counts[kind] += 1
        yield PageLine(anchor=f"{kind}-{counts[kind]}", cells=named, text=plain)


def with_anchors(text: str) -> str:
    """A page whose rows and sentences can be linked to; the same page where they can already."""
    anchors = iter([line.anchor for line in page_lines(text)])
    lines, in_table = [], 0
    for line in text.splitlines():
        is_row, is_rule = line.startswith("|"), set(line) <= set("|- :")
        in_table = in_table + 1 if is_row else 0
        start = "- " if line.startswith("- ") else "| " if in_table > 1 and not is_rule else ""
        mark = ROW_MARK.format(next(anchors)) if start else ""
        is_marked = mark and line.removeprefix(start).startswith("<a id=")
        lines.append(f"{start}{mark}{line.removeprefix(start)}" if mark and not is_marked else line)
    return "\n".join(lines) + "\n"


def written(text: str, pages: Mapping[str, str]) -> str:
    """The paper's text with every reference replaced by its number, linked to its row.

    Raises MissingRowError for a page that is not there and for a reference that meets no row, or
    more than one.
    """
    lines = {name: list(page_lines(page)) for name, page in pages.items()}
    return REFERENCE.sub(lambda match: _linked(" ".join(match[1].split()), lines), text)


def _linked(reference: str, lines: Mapping[str, Sequence[PageLine]]) -> str:
    is_cell = " | " in reference
    name, _, rest = reference.partition(" | " if is_cell else " ~ ")
    if name not in lines:
        raise MissingRowError(f"paper: no page {name} for {{{{{reference}}}}}")
    number, line = (_cell if is_cell else _group)(reference, rest, lines[name])
    return f"[{number}](findings/{name}.md#{line.anchor})"


def _cell(reference: str, rest: str, lines: Sequence[PageLine]) -> tuple[str, PageLine]:
    conditions, _, column = rest.rpartition(" | ")
    cells = dict(part.split("=", 1) for part in re.split(r",\s+(?=[\w. ]+=)", conditions))
    met = [line for line in lines if line.cells and cells.items() <= line.cells.items()]
    line = _only(reference, met)
    if column not in line.cells:
        raise MissingRowError(f"paper: no column {column!r} among {list(line.cells)}")
    return line.cells[column], line


def _group(reference: str, pattern: str, lines: Sequence[PageLine]) -> tuple[str, PageLine]:
    met = [(match, line) for line in lines if (match := re.search(pattern, line.text))]
    match, line = _only(reference, met)
    return match[1], line


def _only(reference: str, met: Sequence[T]) -> T:
    if len(met) != 1:
        raise MissingRowError(f"paper: {{{{{reference}}}}} must meet one row, met {len(met)}")
    return met[0]


def _plain(line: str) -> str:
    """A line as a reader sees it."""
    without_marks = re.sub(r'<a id="[^"]*"></a>', "", line)
    return re.sub(r"\\([][_|.*])", r"\1", without_marks)


def findings_by_name(docs: Path) -> dict[str, str]:
    """The text of every page of findings."""
    files = sorted((docs / "findings").glob("*.md"))
    return {file.stem: file.read_text(encoding="utf-8") for file in files}


def main() -> None:
    """Write the paper, and give the pages that it cites their anchors."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("docs", type=Path, nargs="?", default=Path("docs"))
    parser.add_argument("--pdf", type=Path, help="write it as PDF too (extra pdf)")
    chosen = parser.parse_args()
    pages = findings_by_name(chosen.docs)
    for name, text in pages.items():
        (chosen.docs / "findings" / f"{name}.md").write_text(with_anchors(text), encoding="utf-8")
    paper = written(TEXT.read_text(encoding="utf-8"), pages)
    (chosen.docs / "paper.md").write_text(paper, encoding="utf-8")
    if chosen.pdf:
        from rayunlearn.reporting.formats import markdown_pdf

        chosen.pdf.write_bytes(markdown_pdf(paper))


if __name__ == "__main__":
    main()
