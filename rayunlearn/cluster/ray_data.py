"""Passes over a corpus on Ray Data: a pool of actors, each with its worker (and its model), one
piece at a time.

A row of the data set is the number of a piece, and a worker reads and writes the piece itself: a
piece is the unit of resuming and of the atomic write, and what travels through the object store is
a few bytes. So memory goes with pieces in work, not with the corpus. On a cluster of several
machines corpus and output must lie where all of them see them. Passes run before trials and never
inside one: two trials that each wait for Ray Data's workers hold the CPUs those workers wait for.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
import ray.data
from ray.exceptions import RayTaskError

from rayunlearn.corpus.engine import OnDone, PartitionResult, WorkerFactory
from rayunlearn.errors import UserError

RowBatch = dict[str, Any]


class PartitionActor:
    """Holds one worker for all pieces it is given."""

    def __init__(self, worker: WorkerFactory) -> None:
        self.do = worker()

    def __call__(self, batch: RowBatch) -> RowBatch:
        """The notes of a batch of pieces."""
        notes = [self.do(int(partition)) for partition in batch["piece"]]
        return {"note": np.array(notes, dtype=object)}


def run_on_ray_data(
    worker: WorkerFactory,
    pieces: Sequence[int],
    on_done: OnDone,
    *,
    workers: int = 0,
    with_model: bool = False,
) -> None:
    """The partitions on the cluster that this process is connected to, by at most `workers` actors
    (0: one per CPU, or per GPU for models).
    """
    with _quiet():
        n, resources = _pool(workers, with_model)
        numbers = ray.data.from_items(
            [{"piece": partition} for partition in pieces], override_num_blocks=len(pieces)
        )
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(n, len(pieces))))
        notes = numbers.map_batches(
            PartitionActor,
            fn_constructor_args=(worker,),
            batch_size=1,
            compute=pool,
            **resources,
        )
        for note in _unwrapped(notes):
            on_done(note)


def _pool(workers: int, with_model: bool) -> tuple[int, dict[str, float]]:
    """How many actors at most, and what each takes."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if with_model else 0
    n = gpus or int(resources.get("CPU", 1))
    return (min(workers, n) if workers else n), (
        {"num_cpus": 1, "num_gpus": 1} if gpus else {"num_cpus": 1}
    )


def _unwrapped(notes: "ray.data.Dataset") -> Iterator[PartitionResult]:
    """Notes as they come. A worker's UserError is raised as itself, without the stack of the
    cluster.
    """
    try:
        for row in notes.iter_rows():
            yield row["note"]
    except RayTaskError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        raise UserError(str(cause)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Ray Data's own bars, and without the warnings that it raises about its own defaults;
    put back afterwards.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current()
        before = context.enable_progress_bars
        context.enable_progress_bars = False
        try:
            yield
        finally:
            context.enable_progress_bars = before
