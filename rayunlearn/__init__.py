"""How little of the forget set is needed, chosen how, unlearned with what - and is the knowledge
really gone?
"""

from typing import Any

__all__ = ["open"]


def __getattr__(name: str) -> Any:
    """`rayunlearn.open(run)` without making `import rayunlearn` load polars."""
    if name == "open":
        from rayunlearn.storage.run import open_run

        return open_run
    raise AttributeError(f"module 'rayunlearn' has no attribute {name!r}")
