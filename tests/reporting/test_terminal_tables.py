"""Tables in a terminal of any width: every number is whole and no line is wider."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from rayunlearn.analysis.coreset_table import coreset_table
from rayunlearn.cli.listing import print_attacks, print_selectors
from rayunlearn.reporting.console import print_coreset_table, print_ranking
from rayunlearn.reporting.terminal_tables import print_fitting
from rayunlearn.storage.run import open_run

RUNS = Path(__file__).parents[2] / "docs" / "notebooks" / "runs"


def screen(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)


def lines_of(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_columns_that_do_not_fit_follow_below_under_the_same_names() -> None:
    """Two numbers of 14 characters beside a name of 3 need 35."""
    headers, row = ("of", "first", "second"), ("npo", "0.1 [0.0, 0.2]", "0.3 [0.2, 0.4]")
    for width, tables in ((35, 1), (34, 2)):
        console = screen(width)
        print_fitting(console, headers, [row], numeric=(False, True, True), title="t", caption="c")
        lines = lines_of(console)
        assert sum(line.startswith("npo ") for line in lines) == tables
        assert lines.count("t") == 1 and lines.count("c") == 1
        assert all(any(number in line for line in lines) for number in row)


def test_a_name_is_broken_before_columns_are_moved() -> None:
    console = screen(26)
    row = ("rmu + activation", "0.1 [0.0, 0.2]")
    print_fitting(console, ("method", "left"), [row], numeric=(False, True))
    assert lines_of(console)[-2:] == ["rmu +", "activation  0.1 [0.0, 0.2]"]


@pytest.mark.parametrize("width", [80, 100, 190])
def test_the_tables_of_a_run_are_whole_at_a_terminal_s_width(width: int) -> None:
    """17 methods, as trained and at equal retention."""
    run, console = open_run(RUNS / "control"), screen(width)
    print_coreset_table(coreset_table(run), console, experiment=run.experiment)
    print_ranking(run, console)
    text = "\n".join(lines_of(console))
    table = text[: text.index("At equal retention")] + text[text.index("calibrated") :]
    assert "\u2026" not in table
    # the headline and its cost, in the first table or below it
    assert "101% [89, 115]" in text and "untouched" in text
    assert all(len(line) <= width for line in lines_of(console) if "  " in line.strip())


@pytest.mark.parametrize("show", [print_selectors, print_attacks])
def test_a_list_is_broken_to_the_terminal_and_is_a_line_each_in_a_file(show: object) -> None:
    assert callable(show)
    narrow, file = screen(80), Console(file=io.StringIO(), width=80)
    show(narrow)
    show(file)
    assert max(map(len, lines_of(narrow))) <= 80
    lines = lines_of(file)
    joined = " ".join(" ".join(lines_of(narrow)).split())
    assert len(lines) < len(lines_of(narrow)) or max(map(len, lines)) <= 84
    assert joined == " ".join(" ".join(lines).split())
