"""One policy for what fails and works again: a file server that stalls, an object store that
throttles or restarts, a job server that has just begun.

An act is tried again after 0.5 s, and each further time after twice as long, 20 s at most, for two
minutes in all. What it fails with then is the caller's to put into words. Every act must be one
that may be broken off anywhere and begun again.
"""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 20.0


def retry(
    act: Callable[[], T],
    *,
    is_transient: Callable[[Exception], bool],
    patience: float | None = None,
) -> T:
    """The result of `act`, tried again while it fails with an error that `is_transient`.

    `patience`: seconds after which no further try begins (default PATIENCE_SECONDS). Raises the
    last error then, and at once one that is not transient.
    """
    end = time.monotonic() + (PATIENCE_SECONDS if patience is None else patience)
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return act()
        except Exception as error:
            if not is_transient(error) or time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
