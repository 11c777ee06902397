"""What is said where there is no terminal, while trials run or models are prepared."""

import io
import time

import pytest
from rich.console import Console

from rayunlearn.planning import progress
from rayunlearn.planning.progress import PlainLines, PreparationProgress, View, watch_progress


def test_a_line_comes_every_minute_also_while_nothing_changes() -> None:
    """The first step of a large model can take minutes."""
    lines = PlainLines()
    said = {
        second: line
        for second in range(0, 260, 10)
        if (line := lines.due("base 0%" if second < 200 else "base 1%", now=float(second)))
    }
    assert said == {
        0: "base 0%",
        60: "base 0% (unchanged for 1 min)",
        120: "base 0% (unchanged for 2 min)",
        180: "base 0% (unchanged for 3 min)",
        240: "base 1%",
    }


def test_what_prints_a_result_within_a_minute_says_nothing_before() -> None:
    lines = PlainLines(since=0.0)
    assert [lines.due("1/2", now=now) for now in (1.0, 59.0, 60.0)] == ["", "", "1/2"]


def test_a_preparation_that_stands_still_is_said_again_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(progress, "LIVE_EVERY_SECONDS", 0.01)
    screen = io.StringIO()
    views: list[View | None] = [None, None, None]

    def read() -> View | None:
        return views.pop() if views else PreparationProgress({"base": (0, 20)})

    with watch_progress(Console(file=screen, force_terminal=False, width=200), read):
        deadline = time.monotonic() + 30
        while screen.getvalue().count("\n") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    first, *again = screen.getvalue().splitlines()
    assert first == "preparing: base 0%" and len(again) >= 2
    assert set(again) == {"preparing: base 0% (unchanged for 0 min)"}
