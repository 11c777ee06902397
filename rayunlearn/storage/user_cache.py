"""Where this program keeps what belongs to a person and to no run."""

import os
from pathlib import Path


def user_cache(name: str) -> Path | None:
    """A person's folder for `name`: `~/.cache/rayunlearn/NAME`, or the same under XDG_CACHE_HOME;
    None for a person without a home.
    """
    caches = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(caches) / "rayunlearn" / name if os.path.isabs(caches) else None
