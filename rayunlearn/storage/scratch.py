"""Temporary folders of a driver: removed when it ends, and by the next one where it could not.

A folder belongs to a process as long as that holds the lock of the file `.owner` in it; the kernel
lets go of the lock however the process ends, so a folder whose lock can be had is nobody's.
"""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rayunlearn.errors import UserError

OWNER = ".owner"
# of folders that this module made, in a place where others' are
SCRATCH_PREFIX = "rul-"
# A socket's path may have 107 bytes; under a private cluster's folder Ray needs 64 of them
# (/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store).
LONGEST_PATH = 107 - 64
# what Ray and Tune take in a path: Tune reads `%` and `#` as parts of a URL
PLAIN = re.compile(r"[A-Za-z0-9/._-]+")
# tried in turn where the environment's own cannot be used
COMMON_ROOTS = ("/tmp", "/var/tmp")


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A new folder `rul-<purpose>-...`, short and plain enough for Ray's sockets, for the length of
    the block.

    It lies in the environment's temporary folder (TMPDIR) or, where that is too long or has signs
    that Ray does not take, in /tmp. What drivers that were killed left there is removed first.
    Raises UserError where no such folder can be written.
    """
    root = scratch_root(purpose)
    remove_abandoned(root)
    folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{purpose}-", dir=root))
    try:
        with _owned(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def scratch_root(purpose: str) -> Path:
    """The first of TMPDIR, /tmp and /var/tmp that is short, plain and can be written."""
    places = [tempfile.gettempdir(), *COMMON_ROOTS]
    # mkdtemp adds eight signs
    room = LONGEST_PATH - len(f"/{SCRATCH_PREFIX}{purpose}-") - 8
    for root in places:
        usable = PLAIN.fullmatch(root) and len(root) <= room
        if usable and os.access(root, os.W_OK | os.X_OK):
            return Path(root)
    raise UserError(
        f"a temporary folder (TMPDIR) must have at most {room} of the signs A-Z a-z 0-9 / . _ - and"
        f" be writable, got {', '.join(dict.fromkeys(places))}"
    )


def remove_abandoned(root: Path) -> list[Path]:
    """Remove this user's scratch folders in `root` whose process is gone; which they were."""
    removed = []
    for folder in root.glob(f"{SCRATCH_PREFIX}*"):
        with suppress(OSError):
            if folder.stat().st_uid == os.getuid() and _is_abandoned(folder):
                shutil.rmtree(folder)
                removed.append(folder)
    return removed


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. It gets its name only when it is held, so that nobody takes a folder
    that is just being made for an abandoned one.
    """
    unnamed = folder / f"{OWNER}.new"
    with unnamed.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        unnamed.rename(folder / OWNER)
        yield


def _is_abandoned(folder: Path) -> bool:
    with (folder / OWNER).open() as file:
        return _has_no_owner(file)


def _has_no_owner(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
