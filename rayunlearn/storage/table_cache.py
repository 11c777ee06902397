"""A Parquet table that is made once: the twin of models/tensor_cache.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from rayunlearn.storage.parquet import write_table
from rayunlearn.storage.sync import download_file


def cached_table(path: Path, table: str, make: Callable[[], list[dict[str, Any]]]) -> None:
    """Write a table of the cache if it is not there yet; one process makes it, the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not download_file(path):
            write_table(path, table, make())
