"""What a trial takes of a cluster's GPUs, on a Ray that believes in one."""

import os
import subprocess
import sys
from pathlib import Path

from tests.cluster.conftest import REPOSITORY

# in a process and a cluster of its own: a shared one that has a GPU would give every trial some
SWEEP = """
import sys
from pathlib import Path
import ray
from rich.console import Console
from rayunlearn.cluster.sweep import Options, sweep
from rayunlearn.config import Train, Trial
from rayunlearn.errors import UserError
from rayunlearn.experiment import Budget, Experiment, Objective, grids_of
from tests.fake_work import fake_work
ray.init(
    address="local", num_cpus=2, num_gpus=1, object_store_memory=100 * 2**20,
    include_dashboard=False, log_to_driver=False,
)
for name, size in (("fits", 1), ("large", 8)):
    base = Trial(train=Train(batch_size=size, warmup_fraction=0.2))
    experiment = Experiment(
        name=name, question="?", base=base, grids=grids_of({"train.seed": (0, 1)}), search={},
        budget=Budget(tuning="none"), objective=Objective(),
    )
    try:
        result = sweep(
            experiment, Path(sys.argv[1]), work=fake_work(), options=Options(),
            console=Console(width=200),
        )
        print("ran", result.ran)
    except UserError as mistake:
        print("refused:", mistake)
"""


def test_ray_gives_each_trial_the_share_that_fits_and_nothing_starts_that_does_not(
    tmp_path: Path,
) -> None:
    """A GPU of 8 GiB that only Ray believes in: trials of 1 GiB take (1.25 + 0.59) / 8, rounded up
    to 0.25; one of 8 GiB never starts.
    """
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert (
        "each trial takes 0.25 of a GPU of 8.0 GiB: 1.00 GiB for fake (from made up)" in done.stdout
    ), done.stdout + done.stderr
    assert "refused: a trial (fake) must fit on the device's 8.0 GiB" in done.stdout
    started = [
        line.split() for file in tmp_path.rglob("started") for line in file.read_text().splitlines()
    ]
    assert started and {line[3] for line in started} == {"0.25"}
    assert not (tmp_path / "large" / "1" / "started").exists()


# Stops at the first import of Ray and says what Ray would have read then.
FIRST_IMPORT = """
import importlib.abc, os, sys
from contextlib import ExitStack
from pathlib import Path
from rich.console import Console

class StopAtRay(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "ray":
            print("loopback only:", os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == "0")
            raise ImportError("stopped")

sys.meta_path.insert(0, StopAtRay())
from rayunlearn.cluster.corpus_engine import ray_engine
from rayunlearn.planning.plan_run import Options
from rayunlearn.cluster.sweep import sweep
from rayunlearn.config import Trial
from rayunlearn.experiment import Budget, Experiment, Objective, grids_of
from tests.fake_work import fake_work
experiment = Experiment(
    name="order", question="?", base=Trial(), grids=grids_of({"train.seed": (0,)}), search={},
    budget=Budget(tuning="none"), objective=Objective(),
)
for start in (
    lambda: sweep(
        experiment, Path(sys.argv[1]), work=fake_work(), options=Options(address="local"),
        console=Console(),
    ),
    lambda: ray_engine(ExitStack(), address="local")(lambda: None, [0], print),
):
    try:
        start()
    except ImportError as error:
        assert str(error) == "stopped", error
"""


def test_ray_is_first_imported_when_it_has_been_told_to_listen_on_this_machine_alone(
    tmp_path: Path,
) -> None:
    """Whatever starts Ray does so through `ray_session`: a sweep, and a job over a corpus."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", FIRST_IMPORT, str(tmp_path)],
        env=environment | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["loopback only: True"] * 2, done.stdout + done.stderr
