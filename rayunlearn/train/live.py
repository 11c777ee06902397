"""What a training says while it runs, and who listens: nobody, unless a listener was set."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

# an optimizer step, from 1, and what was seen there by name
LivePoint = tuple[int, Mapping[str, float]]
Listener = Callable[[Sequence[LivePoint]], None]

_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let `listener` have what is told inside the block, in this process.

    Example:
        >>> heard = []
        >>> with listening(heard.extend):
        ...     tell([(25, {"train/loss": 0.5})])
        >>> heard
        [(25, {'train/loss': 0.5})]
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell(points: Sequence[LivePoint]) -> None:
    """Tell everyone who listens."""
    for listener in _listeners:
        listener(points)
