"""Hours of a sweep and of a trial: what is counted, and what a later call makes of it."""

import math
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayunlearn.errors import UserError
from rayunlearn.experiment import Budget
from rayunlearn.planning.outcomes import TrialResult
from rayunlearn.planning.time_budget import (
    covered_seconds,
    hours_note,
    seconds_left,
    seconds_used,
    stands,
)
from rayunlearn.storage.run import write_trial
from rayunlearn.trial.time_limit import TrialTimeoutError, time_limit

SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), max_size=8)


@given(SPANS)
def test_time_is_covered_once_however_many_trials_ran(spans: list[tuple[int, int]]) -> None:
    """Against counting every second of the clock."""
    seconds = {second for start, length in spans for second in range(start, start + length)}
    assert covered_seconds(spans) == len(seconds)


def test_hours_are_those_of_all_calls_and_of_a_killed_driver_those_of_its_trials(
    tmp_path: Path,
) -> None:
    """Two trials side by side for 100 s, one alone for 50 s: 150 s."""
    begins = {"a": "2026-01-01T00:00:00", "b": "2026-01-01T00:00:30", "c": "2026-01-02T00:00:00"}
    lengths = {"a": 100.0, "b": 60.0, "c": 50.0}
    for trial_id, begin in begins.items():
        row = {"status": "complete", "started_at": f"{begin}+00:00", "seconds": lengths[trial_id]}
        write_trial(tmp_path, trial_id, {"trials": [row]}, {})
    assert seconds_used(tmp_path, {}) == pytest.approx(150.0)
    assert seconds_used(tmp_path, {"seconds_used": 400.0}) == 400.0
    assert seconds_used(tmp_path / "nowhere", {}) == 0.0
    budget = Budget(tuning="none", hours=0.1)
    assert seconds_left(budget, 150.0) == pytest.approx(210.0)
    assert seconds_left(budget, 400.0) == 0.0
    assert seconds_left(Budget(tuning="none"), 1e9) == math.inf


def test_trials_that_were_not_begun_are_said() -> None:
    budget = Budget(tuning="none", hours=2.0)
    assert hours_note(budget, 7000.0, 3) == () and hours_note(budget, 7300.0, 0) == ()
    said = "budget.hours = 2 are over (2.03 hours in all calls): 3 trials were not begun"
    assert hours_note(budget, 7300.0, 3)[0].startswith(said)


@pytest.mark.parametrize(("hours", "again"), [(1.0, False), (0.5, False), (1.5, True), (0.0, True)])
def test_a_trial_that_timed_out_runs_again_only_where_it_may_take_longer(
    hours: float, again: bool
) -> None:
    result = TrialResult("timed_out", seconds=3600.1)
    assert stands(result, Budget(tuning="none", trial_hours=hours)) is not again
    assert stands(TrialResult("complete"), Budget(tuning="none", trial_hours=hours))
    assert not stands(TrialResult("failed"), Budget(tuning="none", trial_hours=hours))


@pytest.mark.parametrize("name", ["hours", "trial_hours"])
@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_hours_are_finite_and_not_negative(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"budget\.{name} must be finite and >= 0"):
        Budget(tuning="none", **{name: value})


def test_a_block_that_takes_longer_is_ended_and_nothing_of_the_limit_remains() -> None:
    handler, timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    begin = time.monotonic()
    rule = "longer than budget.trial_hours = 2e-05"
    with pytest.raises(TrialTimeoutError, match=rule), time_limit(2e-5):
        time.sleep(30)
    assert time.monotonic() - begin < 10
    assert signal.getsignal(signal.SIGALRM) == handler
    assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == (timer[0] > 0)
    with time_limit(1.0):
        pass
    assert signal.getsignal(signal.SIGALRM) == handler
