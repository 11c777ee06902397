"""What a command is doing while it shows nothing else: a line on stderr when a part of it has
lasted a second and a half, and another every minute, of a part that is counted every 20 seconds.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

FIRST_AFTER_SECONDS = 1.5
AGAIN_EVERY_SECONDS = 60.0
COUNT_EVERY_SECONDS = 20.0
LISTEN_EVERY_SECONDS = 0.1


class Narrator:
    """The part of a command that is going on, and when that was last said.

    Example:
        >>> narrator = Narrator()
        >>> narrator.begin("starting Ray", now=0.0)
        >>> narrator.line(now=1.0), narrator.line(now=2.0), narrator.line(now=3.0)
        ('', 'starting Ray ...', '')
        >>> narrator.line(now=62.0)
        'starting Ray ... (1 min)'
    """

    def __init__(self) -> None:
        self.part, self._count, self._since, self._last = "", "", 0.0, -1.0

    def begin(self, part: str, *, now: float | None = None) -> None:
        """Another part begins; '': something else is on the screen now."""
        self._since = time.monotonic() if now is None else now
        self.part, self._count, self._last = part, "", -1.0

    def count(self, done: int, total: int) -> None:
        """How far the part is that goes on."""
        self._count = f": {done} of {total}"

    def line(self, *, now: float) -> str:
        """The line that is due now, '' for none."""
        lasted, is_first = now - self._since, self._last < 0
        again = COUNT_EVERY_SECONDS if self._count else AGAIN_EVERY_SECONDS
        due = FIRST_AFTER_SECONDS if is_first else self._last + again - self._since
        if not self.part or lasted < due:
            return ""
        self._last, line = now, f"{self.part}{self._count} ..."
        return (
            line if is_first or lasted < AGAIN_EVERY_SECONDS else f"{line} ({lasted / 60:.0f} min)"
        )


_narrators: list[Narrator] = []


def now_doing(part: str) -> None:
    """Say what the command does from here on, where somebody listens (`narrated`); '': it shows
    something itself.
    """
    for narrator in _narrators:
        narrator.begin(part)


@contextmanager
def ending(part: str) -> Iterator[None]:
    """Say that `part` goes on when the block has ended, however it ended: Ctrl-C is answered."""
    try:
        yield
    finally:
        now_doing(part)


@contextmanager
def counting(part: str, total: int) -> Iterator[Callable[[int], None]]:
    """Say that `part` goes on as long as the block runs, and how far it is: the block calls what
    it is given with how many of `total` are done. What was said before goes on afterwards.

    Example:
        >>> with counting("reading files", 2) as count:
        ...     count(1)
    """
    earlier = [(narrator, narrator.part) for narrator in _narrators]
    now_doing(part)

    def count(done: int) -> None:
        for narrator in _narrators:
            narrator.count(done, total)

    try:
        yield count
    finally:
        for narrator, before in earlier:
            narrator.begin(before)


@contextmanager
def narrated(part: str, stream: TextIO | None = None) -> Iterator[None]:
    """Say on `stream` (stderr) what a command does as long as the block runs, `part` at first."""
    narrator, stop = Narrator(), threading.Event()
    narrator.begin(part)
    _narrators.append(narrator)

    def speak() -> None:
        while not stop.wait(LISTEN_EVERY_SECONDS):
            if line := narrator.line(now=time.monotonic()):
                print(line, file=stream or sys.stderr, flush=True)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        _narrators.remove(narrator)
