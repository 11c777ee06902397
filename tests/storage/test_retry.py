"""The one retry loop."""

import pytest

from rayunlearn.storage import retry as retry_module
from rayunlearn.storage.retry import retry


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.pauses = 0.0, list[float]()
        monkeypatch.setattr(retry_module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(retry_module.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def test_pauses_double_to_twenty_seconds_and_end_after_two_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """0.5 + 1 + 2 + 4 + 8 + 16 = 31.5 s, then 20 s each: four of them end at 111.5 s, a fifth would
    end after 120 s.
    """
    clock, error = Clock(monkeypatch), ConnectionError("away")

    def act() -> None:
        raise error

    with pytest.raises(ConnectionError, match="away"):
        retry(act, is_transient=lambda _: True)
    assert clock.pauses == [0.5, 1, 2, 4, 8, 16, 20, 20, 20, 20]


def test_what_works_again_is_returned_and_what_is_final_is_not_tried_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, failures = Clock(monkeypatch), [OSError("a"), OSError("b")]

    def act() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert retry(act, is_transient=lambda error: isinstance(error, OSError)) == "done"
    assert clock.pauses == [0.5, 1]
    failures.append(OSError("final"))
    with pytest.raises(OSError, match="final"):
        retry(act, is_transient=lambda _: False)
    assert len(clock.pauses) == 2


def test_without_patience_the_first_failure_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(monkeypatch), list[int]()

    def act() -> None:
        calls.append(1)
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        retry(act, is_transient=lambda _: True, patience=0)
    assert calls == [1] and not clock.pauses
