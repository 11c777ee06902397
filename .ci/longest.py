"""Print the longest functions (docstrings not counted) and files of the package: a look at them, no
limit.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

SHOWN = 8
PACKAGE = Path(__file__).parents[1] / "rayunlearn"


def functions(path: Path) -> Iterator[tuple[int, str]]:
    """(lines without the docstring, place) of every function of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            lines = (
                (node.end_lineno or node.lineno)
                - node.lineno
                + 1
                - (len(text.splitlines()) if text else 0)
            )
            yield lines, f"{path.relative_to(PACKAGE.parent)}:{node.lineno} {node.name}"


def main() -> None:
    """Both lists, longest first."""
    files = sorted(PACKAGE.rglob("*.py"))
    longest = sorted((found for path in files for found in functions(path)), reverse=True)[:SHOWN]
    lengths = sorted(
        (
            (
                len(path.read_text(encoding="utf-8").splitlines()),
                str(path.relative_to(PACKAGE.parent)),
            )
            for path in files
        ),
        reverse=True,
    )
    for title, rows in (
        ("longest functions (lines without docstring)", longest),
        ("longest files (lines)", lengths[:SHOWN]),
    ):
        print(title)
        for lines, place in rows:
            print(f"  {lines:4}  {place}")


main()
