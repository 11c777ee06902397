"""What a row says of where it came from: machine, versions, what went wrong, and the time each part
took.
"""

import json
import os
import platform
import resource
import socket
import subprocess
import time
import traceback
from pathlib import Path
from typing import Any

from rayunlearn.errors import without_secrets
from rayunlearn.lazy import torch
from rayunlearn.storage.code_identity import version_of


def commit_of(folder: Path) -> str:
    """Git commit of the working copy that holds `folder`, '+changes' where it is not clean, ''
    outside git.
    """
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return commit + (
            "+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout.strip()


PACKAGES = ("rayunlearn", "torch", "transformers", "ray", "optuna", "polars", "pyarrow")


def failure_row(error: BaseException) -> dict[str, Any]:
    """error_type, error (without secrets) and error_where of an exception; `where` is the deepest
    frame.
    """
    frames = traceback.extract_tb(error.__traceback__)
    location = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return {
        "error_type": type(error).__name__,
        "error": without_secrets(str(error))[:2000],
        "error_where": location,
    }


def machine() -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    peak = (
        torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    hardware = (
        torch.cuda.get_device_name()
        if on_gpu
        else f"{platform.machine()} CPU, {os.cpu_count()} cores"
    )
    return {
        "packages": json.dumps(installed_versions()),
        "hardware": hardware,
        "host": socket.gethostname(),
        "peak_memory_bytes": peak,
    }


def installed_versions() -> dict[str, str]:
    """Versions of the packages that could change a number; 'absent' where one is not installed."""
    return {name: version_of(name) for name in PACKAGES}


class Clock:
    """Seconds since the last lap, by name; laps of one name add up."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def as_of(self, name: str, now: float) -> "Clock":
        """A clock of its own from `now` on, with a lap of this name that ended then."""
        other = Clock()
        other.laps = self.laps | {name: self.laps.get(name, 0.0) + now - self._last}
        return other

    def leave_out(self, seconds: float) -> None:
        """Count these seconds of the running lap in no lap."""
        self._last += seconds

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now
