"""One driver per run under a URL, without a lock server and without trusting clocks.

A run's lease is an object `lease-<number>.json`. Whoever wants the run creates the next number,
which the store grants to one alone. Who holds it writes a new count into it every few seconds; who
wants it watches for longer than that, and takes it over only where nothing changed. Numbers are
never used twice while anybody could still believe in an old one.
"""

import _thread
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayunlearn.errors import UserError
from rayunlearn.storage import object_store
from rayunlearn.storage.sync import origin

BEAT_SECONDS = 10.0

# of silence before a lease is taken over: several beats, and a store that is slow for a while
EXPIRY_SECONDS = 90.0
POLL_SECONDS = 2.0

# a lease that cannot be given back ends by itself
RELEASE_SECONDS = 5.0


@dataclass
class Lease:
    """A run's lease that this process holds."""

    url: str
    number: int
    machine: str
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    count: int = 0

    def content(self, *, released: bool = False) -> bytes:
        """What the object says: who holds it, and a count that shows life."""
        self.count += 1
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        return json.dumps(
            {
                "who": holder,
                "machine": self.machine,
                "token": self.token,
                "count": self.count,
                "released": released,
            }
        ).encode()

    def renew(self) -> None:
        """Show life and see that nobody took over. Raises UserError where somebody did."""
        object_store.put_bytes(self.content(), lease_file_name(self.url, self.number))
        highest = max(numbers(self.url), default=0)
        if highest > self.number:
            other = _read(self.url, highest).get("who", "another process")
            raise UserError(
                f"only one driver may work on a run; {self.url} was taken over by {other} while"
                " this one was silent; nothing was lost"
            )


@contextmanager
def hold_lease(run: Path, machine: str) -> Iterator[Callable[[], None]]:
    """Hold the lease of the run's URL for the block; gives a function that raises UserError once it
    is not ours any more.

    `machine` names what the local lock of the run covers: a former driver under the same name is
    dead, because that lock is held now. Of a run on disk nothing is done. Raises UserError where
    another driver holds the run.
    """
    url = origin(run)
    if url is None:
        yield lambda: None
        return
    lease = acquire(url, machine)
    is_released = threading.Event()
    beating = threading.Thread(target=_beat, args=(lease, is_released), daemon=True, name="lease")
    beating.start()
    try:
        yield lease.renew
    finally:
        is_released.set()
        beating.join()
        with suppress(UserError):
            object_store.put_bytes(
                lease.content(released=True),
                lease_file_name(url, lease.number),
                patience=RELEASE_SECONDS,
            )


def acquire(url: str, machine: str) -> Lease:
    """Take the next number. Raises UserError where a living driver holds the present one or another
    was faster.
    """
    before = numbers(url)
    present = max(before, default=0)
    current = _read(url, present) if present else {"released": True}
    if (
        not current.get("released")
        and current.get("machine") != machine
        and _is_alive(url, present, current)
    ):
        raise UserError(
            f"only one driver may work on a run; {url} is in use by"
            f" {current.get('who', 'another process')}"
        )
    lease = Lease(url, present + 1, machine)
    if not object_store.put_bytes(lease.content(), lease_file_name(url, lease.number), create=True):
        # ourselves, where the answer to our put was lost on its way and the put was repeated
        winner = _read(url, lease.number)
        if winner.get("token") != lease.token:
            raise UserError(
                f"only one driver may work on a run; {url} was just taken by"
                f" {winner.get('who', 'another process')}"
            )
    object_store.remove([lease_file_name(url, number) for number in before if number < present])
    return lease


def numbers(url: str) -> list[int]:
    """Numbers of the leases under the run's URL."""
    files = (
        re.fullmatch(r"lease-(\d{1,12})\.json", name) for name in object_store.list_names(f"{url}/")
    )
    return sorted(int(match[1]) for match in files if match)


def lease_file_name(url: str, number: int) -> str:
    """The object of a number."""
    return f"{url}/lease-{number:06d}.json"


def _is_alive(url: str, number: int, current: dict[str, Any]) -> bool:
    """Whether the lease's holder shows life within EXPIRY_SECONDS of this process's own time."""
    end = time.monotonic() + EXPIRY_SECONDS
    print(
        f"{current.get('who', 'another process')} held {url}; waiting up to {EXPIRY_SECONDS:.0f} s"
        " to see whether it still does",
        file=sys.stderr,
    )
    while time.monotonic() < end:
        time.sleep(POLL_SECONDS)
        now = _read(url, number)
        if now != current:
            return not now.get("released")
    return False


def _beat(lease: Lease, is_released: threading.Event) -> None:
    while not is_released.wait(BEAT_SECONDS):
        try:
            lease.renew()
        except UserError:
            if max(_numbers_now(lease.url), default=0) > lease.number:
                # stop starting trials; the sweep then finds out why, before it writes
                _thread.interrupt_main()
                return


def _numbers_now(url: str) -> list[int]:
    with suppress(UserError):
        return numbers(url)
    return []


def _read(url: str, number: int) -> dict[str, Any]:
    content = object_store.get_bytes(lease_file_name(url, number))
    return dict(json.loads(content)) if content else {}
