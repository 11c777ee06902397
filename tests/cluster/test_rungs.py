"""A sweep with rungs whose driver is killed again and again, with real trials on a real Ray."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from rayunlearn.storage.run import open_run
from tests.cluster.conftest import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
N_KILLED = 4
# seconds until what should happen counts as never happening, beside other work
PATIENCE = 1500
# of a trial's own clock and machine
OTHER_EACH_TIME = (r"^.*seconds.*$", "started_at", "commit", "version", r"^.*memory.*$", "hardware")
EXPERIMENT = '''"""Which rate?"""
from rayunlearn.config import Measure, Method, Model, Stop, Train, Trial
from rayunlearn.experiment import Budget, Range

BASE = Trial(
    model=Model(teach_epochs=1),
    method=Method(forget="npo", retain="nll"),
    train=Train(length=8, batch_size=2),
    stop=Stop(utility_floor=0.0, check_every=2),
    measure=Measure(metrics="probability", limit_probes="32"),
)
AXES = {"method.forget": ("npo", "rmu"), "method.layer": (1,)}
SEARCH = {"train.learning_rate": Range(1e-4, 3e-2, log=True)}
BUDGET = Budget(trials=8, batch=4, rungs="0.25,0.5")
'''


@contextmanager
def driver(folder: Path, version: str, address: str) -> Iterator[subprocess.Popen[str]]:
    """`rayunlearn run` in a process of its own, on the shared cluster."""
    command = [sys.executable, "-m", "rayunlearn", "run", "mine.py", "--workers", "2"]
    with subprocess.Popen(
        [*command, "--version", version],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def to_its_end(folder: Path, version: str, address: str) -> None:
    """A driver that is left alone."""
    with driver(folder, version, address) as process:
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said


def pieces(run: Path) -> set[tuple[str, int]]:
    """The trials that have ended or paused, each with the moment at which it did."""
    rows = set()
    for path in run.glob("trials/*/trials.parquet"):
        try:
            rows.add((path.parent.name, path.stat().st_mtime_ns))
        except FileNotFoundError:
            # replaced at this moment
            continue
    return rows


def wait_for_pieces(process: subprocess.Popen[str], run: Path, n_more: int) -> None:
    """Until so many trials more have ended or paused."""
    before, deadline = pieces(run), time.monotonic() + PATIENCE
    while len(pieces(run) - before) < n_more:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def tables(run: Path) -> dict[str, pl.DataFrame]:
    """The run's rows, without its clock, in an order of their own."""
    opened = open_run(run)
    names = ("trials", "plan", "evals", "examples", "curves", "steps")
    frames = {name: getattr(opened, name).collect() for name in names}
    own = {name: frame.select(pl.exclude(OTHER_EACH_TIME)) for name, frame in frames.items()}
    return {name: frame.select(sorted(frame.columns)).sort(pl.all()) for name, frame in own.items()}


def test_a_sweep_with_rungs_whose_driver_is_killed_at_random_is_the_undisturbed_one(
    ray_address: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Two studies of two batches of four. Statuses, rungs, the plan, and every value that was
    measured, down to its last bit; of each batch two trials are pruned at the first rung and one at
    the second.
    """
    (tmp_path / "mine.py").write_text(EXPERIMENT)
    to_its_end(tmp_path, "quiet", ray_address)
    run, rng = tmp_path / "runs" / "mine" / "broken", random.Random(19)
    for _ in range(N_KILLED):
        with driver(tmp_path, "broken", ray_address) as process:
            wait_for_pieces(process, run, rng.randint(1, 5))
            time.sleep(rng.uniform(0.0, 1.0))
            process.send_signal(signal.SIGKILL)
    to_its_end(tmp_path, "broken", ray_address)
    expected, found = tables(run.with_name("quiet")), tables(run)
    statuses = expected["trials"].join(
        expected["plan"].filter(pl.col("role") == "tuning"), on="trial_id", how="semi"
    )
    assert dict(statuses.group_by("rung").len().iter_rows()) == {0.25: 8, 0.5: 4, None: 4}
    for name, frame in expected.items():
        assert frame.height and found[name].equals(frame, null_equal=True), name
    assert not list((run / "checkpoints").iterdir())
    record_property("survived", {"driver_killed": N_KILLED})
