"""Which engine a pass over a corpus gets, and what a person sees while it runs."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from rayunlearn.cluster.session import ray_session
from rayunlearn.corpus.engine import Engine, OnDone, WorkerFactory, process_engine
from rayunlearn.corpus.job import JobProgress, OnProgress
from rayunlearn.corpus.partitions import source_bytes
from rayunlearn.corpus.source import CorpusSource, exceeds_local_limit
from rayunlearn.errors import require, unknown_name
from rayunlearn.planning.progress import (
    LIVE_EVERY_SECONDS,
    bars,
    plain_lines,
    time_left,
)
from rayunlearn.trial.narration import now_doing

ENGINES = ("auto", "local", "ray")

# under this a second process costs more to start than it saves
ALONE_BYTES = 16 * 2**20
ChooseEngine = Callable[[Sequence[CorpusSource], bool], Engine]


@contextmanager
def engines(name: str, workers: int, address: str) -> Iterator[ChooseEngine]:
    """What chooses the engine `name`, or by size, for the length of the block. Ray is imported and
    started only when it is used.

    Raises UserError for another name.
    """
    if name not in ENGINES:
        raise unknown_name("--engine", name, ENGINES)
    require(workers >= 0, "--workers must be >= 0", workers)

    def choose(sources: Sequence[CorpusSource], with_model: bool) -> Engine:
        if name == "ray" or (name == "auto" and exceeds_local_limit(*sources)):
            return ray_engine(stack, address=address, workers=workers, with_model=with_model)
        small = sum(source_bytes(source.pieces) for source in sources) < ALONE_BYTES
        return stack.enter_context(
            process_engine(workers or (1 if small or with_model else len(os.sched_getaffinity(0))))
        )

    with ExitStack() as stack:
        yield choose


def ray_engine(
    stack: ExitStack, *, address: str = "auto", workers: int = 0, with_model: bool = False
) -> Engine:
    """Ray Data on the cluster at `address` (`session.ray_session`).

    The first job with partitions to do connects; the connection ends with `stack`, so that jobs
    share it.
    """
    sessions: list[str] = []

    def engine(worker: WorkerFactory, pieces: Sequence[int], on_done: OnDone) -> None:
        if not sessions:
            sessions.append(stack.enter_context(ray_session(address=address, workers=workers)))
        # inside the session: it imports Ray
        from rayunlearn.cluster.ray_data import run_on_ray_data

        run_on_ray_data(worker, pieces, on_done, workers=workers, with_model=with_model)

    return engine


def progress_line(progress: JobProgress, *, waited: float = 0.0) -> str:
    """`keywords: 3/40 partitions, 30,000 documents, 5,200 documents/s, about 12 s left`, `waited`
    seconds after it was said.
    """
    words = [
        f"{progress.name}: {progress.done}/{progress.pieces} partitions",
        f"{progress.n_documents:,} documents",
    ]
    # no rate before, and none of pieces that an earlier call did
    if progress.fresh_pieces:
        rate = progress.fresh_documents / max(progress.seconds, 1e-3)
        words.append(f"{rate:,.0f} documents/s" if rate >= 10 else f"{rate:.2g} documents/s")
        if progress.done < progress.pieces:
            words.append(time_left(max(0.0, progress.seconds_left - waited)))
    return ", ".join(words)


@contextmanager
def reporting(console: Console) -> Iterator[OnProgress]:
    """A bar on a terminal, gone when the pass is; elsewhere a plain line a minute."""
    with (_live if console.is_terminal else _plain)(console) as report:
        yield report


@contextmanager
def _plain(console: Console) -> Iterator[OnProgress]:
    """Also while one partition lasts: the line is said again, with the time left as it is now."""
    latest: tuple[JobProgress, float] | None = None

    def report(progress: JobProgress) -> None:
        nonlocal latest
        latest = (progress, time.monotonic())

    def line() -> str:
        if latest is None:
            return ""
        progress, counts = latest
        return progress_line(progress, waited=time.monotonic() - counts)

    with plain_lines(console, line, at_once=False):
        yield report


@contextmanager
def _live(console: Console) -> Iterator[OnProgress]:
    """Drawn twice a second, not only when a partition is done: a clock that stands still looks like
    a pass that does.
    """
    latest: tuple[JobProgress, float] | None = None
    now_doing("")

    def report(progress: JobProgress) -> None:
        nonlocal latest
        latest = (progress, time.monotonic())

    with Live(
        console=console,
        get_renderable=lambda: _render_progress(latest),
        refresh_per_second=1 / LIVE_EVERY_SECONDS,
        transient=True,
    ):
        yield report


def _render_progress(latest: tuple[JobProgress, float] | None) -> RenderableType:
    if latest is None:
        return Text("reading")
    progress, counts = latest
    words = progress_line(progress, waited=time.monotonic() - counts).removeprefix(
        f"{progress.name}: "
    )
    return Group(bars({progress.name: (progress.done, progress.pieces)}), Text(f"  {words}"))
