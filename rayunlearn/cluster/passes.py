"""Which engine a pass over a corpus gets, and what a person sees while it runs."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rayunlearn.cluster.progress import PLAIN_EVERY_SECONDS, duration
from rayunlearn.cluster.session import before_ray
from rayunlearn.data.pieces import source_bytes
from rayunlearn.errors import require, unknown_name
from rayunlearn.passes import Engine, Source, Standing, in_processes, is_large

ENGINES = ("auto", "local", "ray")
ALONE_BYTES = 16 * 2**20  # under this a second process costs more to start than it saves


Choose = Callable[[Sequence[Source], bool], Engine]


@contextmanager
def engines(name: str, workers: int, address: str) -> Iterator[Choose]:
    """What chooses the engine `name`, or by size, for the length of the block. Ray is imported and started only when it is used.

    Raises UserError for another name.
    """
    if name not in ENGINES:
        raise unknown_name("--engine", name, ENGINES)
    require(workers >= 0, "--workers must be >= 0", workers)

    def choose(sources: Sequence[Source], with_model: bool) -> Engine:
        if name == "ray" or (name == "auto" and is_large(*sources)):
            before_ray(address)
            from rayunlearn.cluster.corpus import on_ray

            return on_ray(stack, address=address, workers=workers, with_model=with_model)
        small = sum(source_bytes(source.pieces) for source in sources) < ALONE_BYTES
        return in_processes(workers or (1 if small or with_model else len(os.sched_getaffinity(0))))

    with ExitStack() as stack:
        yield choose


def line(standing: Standing) -> str:
    """`keywords: 3/40 partitions, 30,000 documents, 5,200 documents/s, about 12 s left`."""
    rate = f"{standing.fresh_documents / standing.seconds:,.0f}" if standing.seconds > 0 else "0"
    done = f"{standing.name}: {standing.done}/{standing.pieces} partitions, {standing.n_documents:,} documents"
    return f"{done}, {rate} documents/s, {duration(standing.seconds_left)} left"


@contextmanager
def reporting(console: Console) -> Iterator[Callable[[Standing], None]]:
    """One live line on a terminal; elsewhere a plain line at most every ten seconds."""
    shown = time.monotonic()

    def plain(standing: Standing) -> None:
        nonlocal shown
        if time.monotonic() - shown >= PLAIN_EVERY_SECONDS:
            shown = time.monotonic()
            console.print(line(standing), soft_wrap=True, highlight=False)

    if not console.is_terminal:
        yield plain
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda standing: live.update(Text(line(standing)), refresh=True)
