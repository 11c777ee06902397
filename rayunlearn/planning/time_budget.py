"""`budget.hours` and `budget.trial_hours`: what of them is used, by what a run's tables say."""

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rayunlearn.experiment import Budget
from rayunlearn.planning.outcomes import TrialResult
from rayunlearn.schema import FINISHED, PAUSED, PRUNED, TIMED_OUT
from rayunlearn.trial.time_limit import SECONDS_PER_HOUR


def stands(result: TrialResult, budget: Budget) -> bool:
    """Whether a trial of an earlier call need not run again from its start: one that timed out
    does, where it may now take longer than it took.
    """
    if result.status != TIMED_OUT:
        return result.status in (*FINISHED, PAUSED, PRUNED)
    return 0 < budget.trial_hours * SECONDS_PER_HOUR <= result.seconds


def ended_for_good(results: Mapping[str, TrialResult], budget: Budget) -> dict[str, TrialResult]:
    """The results that stand (`stands`)."""
    return {trial_id: result for trial_id, result in results.items() if stands(result, budget)}


def without_ended_too_early(
    results: Mapping[str, TrialResult], budget: Budget
) -> dict[str, TrialResult]:
    """The results without those of trials that timed out and may now take longer."""
    return {
        trial_id: result
        for trial_id, result in results.items()
        if result.status != TIMED_OUT or stands(result, budget)
    }


def seconds_used(run: Path, experiment: Mapping[str, Any]) -> float:
    """Seconds that all calls of a sweep took so far: what the last one to close its run wrote, or,
    where drivers were killed since, at least the time in which a trial ran that has ended.

    Args:
        run: folder of the run.
        experiment: its experiment.json, {} where there is none.
    """
    from rayunlearn.storage.run import scan_trials

    columns = ("started_at", "seconds")
    rows = scan_trials(run)["trials"].select(columns).drop_nulls().collect().iter_rows()
    spans = [(datetime.fromisoformat(start).timestamp(), seconds) for start, seconds in rows]
    return max(float(experiment.get("seconds_used", 0.0)), covered_seconds(spans))


def covered_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans of time, each a beginning and a length, in seconds.

    Example:
        >>> covered_seconds([(0, 10), (5, 10), (100, 1)])
        16.0
    """
    total, end = 0.0, -math.inf
    for start, seconds in sorted(spans):
        total += max(0.0, start + seconds - max(start, end))
        end = max(end, start + seconds)
    return total


def seconds_left(budget: Budget, used: float) -> float:
    """Seconds of `budget.hours` that are left, infinite where there is no limit."""
    return max(0.0, budget.hours * SECONDS_PER_HOUR - used) if budget.hours else math.inf


def hours_note(budget: Budget, used: float, n_left: int) -> tuple[str, ...]:
    """A line where the hours are over and trials are left; `used` in seconds."""
    if seconds_left(budget, used) > 0 or n_left == 0:
        return ()
    return (
        f"budget.hours = {budget.hours:g} are over ({used / SECONDS_PER_HOUR:.2f} hours in all"
        f" calls): {n_left} trials were not begun; a larger budget.hours goes on",
    )
