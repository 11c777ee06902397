"""Engines that run a job's partitions: in this process or in several."""

import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context

from rayunlearn.lazy import quiet_libraries


@dataclass(frozen=True, kw_only=True)
class PartitionResult:
    """What a worker says of a piece it has done. `files`: those that it wrote, by path below the
    folder of the work; `counts`: rows or keywords it wrote, by name.
    """

    piece: int
    n_documents: int
    files: Sequence[str] = ()
    n_rejected: int = 0
    seconds: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)


ProcessPartition = Callable[[int], PartitionResult]

# made where the work is: must be picklable
WorkerFactory = Callable[[], ProcessPartition]
OnDone = Callable[[PartitionResult], None]
Engine = Callable[[WorkerFactory, Sequence[int], OnDone], None]


def run_in_sequence(worker: WorkerFactory, pieces: Sequence[int], on_done: OnDone) -> None:
    """One piece after another, in this process."""
    do = worker()
    for partition in pieces:
        on_done(do(partition))


@contextmanager
def process_engine(n: int) -> Iterator[Engine]:
    """`n` processes of this machine, this one among them; the others start with the first pass that
    has pieces for them and stay for the next.

    With one, or for one piece, this process alone. While another process starts this one works
    already.
    """
    pools: list[ProcessPoolExecutor] = []

    def engine(worker: WorkerFactory, pieces: Sequence[int], on_done: OnDone) -> None:
        if min(n, len(pieces)) <= 1:
            run_in_sequence(worker, pieces, on_done)
            return
        if not pools:
            pools.append(ProcessPoolExecutor(n - 1, get_context("spawn"), quiet_libraries))
        _run_in_pool(pools[0], n - 1, worker, pieces, on_done)

    try:
        yield engine
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def _run_in_pool(
    pool: ProcessPoolExecutor,
    n_others: int,
    worker: WorkerFactory,
    pieces: Sequence[int],
    on_done: OnDone,
) -> None:
    """The pieces by this process and the pool's, whoever is free takes the next one; each of the
    others has one more waiting.
    """
    queue, out = deque(pieces), set[Future[PartitionResult]]()
    key = uuid.uuid4().hex
    do = worker()
    try:
        while queue or out:
            while queue and len(out) < 2 * n_others:
                out.add(pool.submit(_of_pass, key, worker, queue.popleft()))
            if queue:
                on_done(do(queue.popleft()))
            done, out = wait(out, timeout=0 if queue else None, return_when=FIRST_COMPLETED)
            for future in done:
                on_done(future.result())
    except BaseException:
        for future in out:
            future.cancel()
        raise


# in a process of `process_engine`: the worker of the pass that it is in
_MINE: dict[str, ProcessPartition] = {}


def _of_pass(key: str, worker: WorkerFactory, partition: int) -> PartitionResult:
    if key not in _MINE:
        _MINE.clear()
        _MINE[key] = worker()
    return _MINE[key](partition)
