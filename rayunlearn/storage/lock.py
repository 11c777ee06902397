"""One driver per run folder: a lock file, and the folder made with its first content."""

import fcntl
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

from rayunlearn.errors import UserError
from rayunlearn.storage.lease import hold_lease
from rayunlearn.storage.run import forget_trials, remove_scratch, send_unsent
from rayunlearn.storage.sync import display_path, pull, run_ready


@contextmanager
def run_lock(run: Path) -> Iterator[Callable[[], None]]:
    """Hold the run for this process. The kernel lets go of the lock when the process ends, however
    it ends.

    A run under a URL is held on this machine and by a lease, and its folder is then as under the
    URL. Gives a function that raises UserError once the run is not ours any more: to be called
    before finished trials are moved. Raises UserError where another driver holds the run.
    """
    with _lock_file(run) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UserError(
                f"only one driver may work on a run; {run} is in use by"
                f" {file.read().strip() or 'another process'}"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        with hold_lease(run, _machine(run)) as still_ours:
            send_unsent(run)
            pull(run)
            yield still_ours


def _lock_file(run: Path) -> TextIOWrapper:
    """The file that is locked. Raises UserError at once where the run cannot be written to."""
    try:
        run_ready(run)
        return (run / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"a run that is worked on must be writable, {display_path(run)} is not"
            f" ({error.strerror})"
        ) from error


def create_run_folder(run: Path, *, version: str) -> None:
    """Clear what a killed driver left half-written; version `dev` starts from nothing."""
    remove_scratch(run)
    if version == "dev":
        forget_trials(run)


def _machine(run: Path) -> str:
    """A name for what the lock file of this folder covers, made once and kept in it."""
    note = run / ".machine"
    if not note.exists():
        note.write_text(f"{socket.gethostname()} {secrets.token_hex(8)}", encoding="utf-8")
    return note.read_text(encoding="utf-8")
