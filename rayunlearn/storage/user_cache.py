"""Where this program keeps what belongs to a person and to no run."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


def user_cache(name: str) -> Path | None:
    """A person's folder for `name`: `~/.cache/rayunlearn/NAME`, or the same under XDG_CACHE_HOME;
    None for a person without a home.
    """
    caches = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(caches) / "rayunlearn" / name if os.path.isabs(caches) else None


def answer_once(file: Path, answer: Callable[[], Any]) -> Any:
    """`answer()`, a JSON value, or what an earlier process wrote to `file`, whose name holds all
    that decides it. What can be worked out again at any time needs no lock and no manifest: a file
    that is not there or half written is written anew, and where nothing can be written the answer
    is worked out each time.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     answer_once(Path(folder) / "n.json", lambda: 1), answer_once(
        ...         Path(folder) / "n.json", lambda: 2
        ...     )
        (1, 1)
    """
    with suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    value = answer()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(value), encoding="utf-8")
        os.replace(temporary, file)
    return value
