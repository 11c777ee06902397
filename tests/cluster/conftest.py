"""One Ray of two CPUs for this folder's tests. It ends with the last of them.

A test has a cluster of its own only where a shared one would not do, and says why: it counts what
a private cluster listens on, needs a GPU that Ray believes in, loses machines or the head
(tests/cluster_of_nodes.py), or asks the job server (test_jobs.py). The drivers that a test kills
or interrupts are processes of their own that join this cluster.
"""

import logging
import logging.handlers
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rayunlearn.cluster import sweep as sweeping
from rayunlearn.cluster.session import ray_session
from rayunlearn.cluster.sweep import SweepResult, sweep
from rayunlearn.config import Objective, Trial
from rayunlearn.experiment import Budget, Experiment, grids_of
from rayunlearn.planning.plan_run import Options
from tests import fake_work

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="package")
def ray_address() -> Iterator[str]:
    """Address of the cluster; sweeps in this process join it by themselves."""
    before = dict(os.environ)
    # workers import the fakes by name
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    try:
        with ray_session(address="local", workers=2):
            import ray

            yield str(ray.get_runtime_context().gcs_address)
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_sweep(experiment: Experiment, output: Path) -> SweepResult:
    """The experiment with fake work on the shared cluster, two trials at once."""
    options, console = Options(workers=2), Console(file=sys.stdout, width=200)
    return sweep(experiment, output, work=fake_work.fake_work(), options=options, console=console)


def untuned(axes: dict[str, tuple[object, ...]], **values: Any) -> Experiment:
    """A grid over the axes."""
    return Experiment(
        name="fake",
        question="?",
        base=Trial(),
        grids=grids_of(axes),
        search={},
        budget=Budget(tuning="none"),
        objective=Objective(),
        **values,
    )


@dataclass(frozen=True)
class Tracked:
    """A sweep and its output folder, what a tracker was told of its trials (id, status), and the
    warnings that it ended with.
    """

    output: Path
    result: SweepResult
    told: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


@pytest.fixture(scope="package")
def tracked(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    """A sweep over two corpora that one tracker listens to, as `tensorboard`, and another cannot be
    reached from, as `mlflow`.
    """
    from rayunlearn.cluster import trackers

    output, told = tmp_path_factory.mktemp("tracked"), []
    warnings = logging.handlers.BufferingHandler(1000)

    class Listening:
        def __init__(self, run_info: trackers.RunInfo) -> None:
            self.run_info = run_info

        def log_points(self, trial: trackers.TrackedTrial) -> None:
            assert trial.status == "running"

        def log_trial(self, trial: trackers.TrackedTrial) -> None:
            told.append((trial.trial_id, trial.status))

        def close(self) -> None:
            pass

    def unreachable(place: trackers.RunInfo) -> trackers.Tracker:
        raise ConnectionError("nobody at that address")

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(trackers.TRACKERS, "tensorboard", Listening)
        patched.setitem(trackers.TRACKERS, "mlflow", unreachable)
        patched.setattr(sweeping, "check_trackers", lambda _: None)
        logging.getLogger().addHandler(warnings)
        try:
            experiment = untuned({"data.seed": (0, 1)}, track=("tensorboard", "mlflow"))
            result = run_sweep(experiment, output)
        finally:
            logging.getLogger().removeHandler(warnings)
    said = tuple(record.getMessage() for record in warnings.buffer)
    return Tracked(output, result, tuple(told), said)
