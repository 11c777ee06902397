"""The longest that a trial may take."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SECONDS_PER_HOUR = 3600.0
# asked once more so much later, where something caught the first
AGAIN_SECONDS = 30.0


class TrialTimeoutError(Exception):
    """A trial took longer than `budget.trial_hours`."""


@contextmanager
def time_limit(hours: float) -> Iterator[None]:
    """Raise TrialTimeoutError inside the block when it takes longer. In the main thread only, which
    a worker of Ray's runs its trials in.

    A call that is inside a library's own code, a kernel for example, ends first.

    Args:
        hours: the limit; 0 for none.

    Raises:
        TrialTimeoutError: the block took longer.

    Example:
        >>> with time_limit(0.0001):  # 0.36 s
        ...     total = sum(range(10))
        >>> total
        45
    """
    if hours == 0:
        yield
        return

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise TrialTimeoutError(f"the trial took longer than budget.trial_hours = {hours:g}")

    handler = signal.signal(signal.SIGALRM, end)
    earlier = signal.setitimer(signal.ITIMER_REAL, hours * SECONDS_PER_HOUR, AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *earlier)
