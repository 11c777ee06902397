"""One trial on several processes, one GPU each: the trial's actor and its companions, which do what
it does and keep nothing.

Tune places them together (a bundle each); here they find each other. Every process runs the whole
trial; while it trains, batches and blocks are divided (`train/fsdp.py`), and only the actor's
own rows are written to the run. A companion whose trial fails ends, so that nobody waits for it in
vain: the actor's trial then fails too, and both start anew.
"""

import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayunlearn.schema import FINISHED

# what a companion may need longer than the actor to end its trial
LATER_SECONDS = 60.0


class RankWorker:
    """A further process of a trial, an actor in a bundle of its own."""

    def join(self, environment: dict[str, str], preload: Callable[[], None]) -> None:
        """Load what trials use, and find the others."""
        preload()
        join_group(environment)

    def run(self, work: Callable[[Path], str]) -> str:
        """The trial once more, written to a folder that goes; how it ended."""
        with tempfile.TemporaryDirectory(prefix="companion-") as folder:
            status = work(Path(folder))
        if status not in FINISHED:
            ray.actor.exit_actor()
        return status


def rank_workers(n: int, preload: Callable[[], None]) -> list[Any]:
    """The n - 1 companions of the actor that asks, once all have loaded what trials use and found
    each other; [] where n is 1.
    """
    if n == 1:
        return []
    bundle, resources = (
        ray.util.get_current_placement_group(),
        ray.get_runtime_context().get_assigned_resources(),
    )
    workers = [
        ray.remote(RankWorker)
        .options(
            num_cpus=1,
            num_gpus=resources.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                bundle, placement_group_bundle_index=number
            ),
        )
        .remote()
        for number in range(1, n)
    ]
    common = {
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(n),
        "MASTER_ADDR": ray.util.get_node_ip_address(),
        "MASTER_PORT": str(_free_port()),
    }
    if not resources.get("GPU"):
        common["ACCELERATE_USE_CPU"] = "true"
    addresses = [
        worker.join.remote(common | {"RANK": str(rank)}, preload)
        for rank, worker in enumerate(workers, start=1)
    ]
    join_group(common | {"RANK": "0"})
    ray.get(addresses)
    return workers


def join_group(environment: dict[str, str]) -> None:
    """Become a process of the group that the environment names; waits until all are there."""
    os.environ.update(environment)
    from rayunlearn.train.device import accelerator

    accelerator()


def run_with_ranks(other_workers: Sequence[Any], work: Callable[[Path], str], run: Path) -> str:
    """The trial on this process and on the others at once; how it ended here, which is what the run
    says.

    Raises RuntimeError where a companion was lost: this process's group is of no use any more,
    another worker must start one.
    """
    out = [worker.run.remote(work) for worker in other_workers]
    status = work(run)
    _, waiting = (
        ray.wait(out, num_returns=len(out), timeout=None if status in FINISHED else LATER_SECONDS)
        if out
        else ((), ())
    )
    if waiting or (out and status not in FINISHED):
        raise RuntimeError("a trial on several processes failed; its processes start anew")
    ray.get(out)
    return status


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
