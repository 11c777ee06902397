"""What a command says while it shows nothing else."""

import io
import time

import pytest

from rayunlearn.trial import narration
from rayunlearn.trial.narration import Narrator, counting, ending, narrated, now_doing


def test_a_part_that_lasts_is_said_once_and_again_every_minute() -> None:
    narrator = Narrator()
    narrator.begin("starting Ray", now=10.0)
    lines = [narrator.line(now=10.0 + seconds) for seconds in range(0, 200, 1)]
    said = {seconds: line for seconds, line in enumerate(lines) if line}
    assert said == {
        2: "starting Ray ...",
        62: "starting Ray ... (1 min)",
        122: "starting Ray ... (2 min)",
        182: "starting Ray ... (3 min)",
    }


def test_a_part_that_is_counted_is_said_more_often_with_how_far_it_is() -> None:
    narrator = Narrator()
    narrator.begin("asking", now=0.0)
    said = {}
    for seconds in range(70):
        narrator.count(seconds, 90)
        if line := narrator.line(now=float(seconds)):
            said[seconds] = line
    assert said == {
        2: "asking: 2 of 90 ...",
        22: "asking: 22 of 90 ...",
        42: "asking: 42 of 90 ...",
        62: "asking: 62 of 90 ... (1 min)",
    }


def test_what_went_on_before_a_counted_part_goes_on_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    narrator = Narrator()
    monkeypatch.setattr(narration, "_narrators", [narrator])
    now_doing("planning")
    with counting("asking", 2) as count:
        count(1)
        assert narrator.line(now=time.monotonic() + 2) == "asking: 1 of 2 ..."
    assert narrator.line(now=time.monotonic() + 2) == "planning ..."


def test_a_short_part_is_not_said_and_nothing_is_where_something_else_is_shown() -> None:
    narrator = Narrator()
    narrator.begin("reading", now=0.0)
    assert narrator.line(now=1.0) == ""
    narrator.begin("", now=1.0)
    assert narrator.line(now=100.0) == ""


def test_a_block_says_its_parts_on_the_stream_within_two_seconds() -> None:
    stream = io.StringIO()
    with narrated("reading", stream):
        now_doing("planning")
        deadline = time.monotonic() + 30
        while not stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert stream.getvalue() == "planning ...\n"
    assert narration.FIRST_AFTER_SECONDS < 2
    now_doing("nobody listens")
    assert stream.getvalue() == "planning ...\n"


def test_what_follows_an_interruption_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray takes seconds to end after Ctrl-C."""
    narrator = Narrator()
    monkeypatch.setattr(narration, "_narrators", [narrator])
    with pytest.raises(KeyboardInterrupt), ending("ending Ray"):
        now_doing("")
        raise KeyboardInterrupt
    assert narrator.line(now=time.monotonic() + 2) == "ending Ray ..."
