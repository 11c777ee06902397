"""The batch script of `rayunlearn submit --slurm` with Ray itself: the time limit comes in the
middle of a sweep, the job is queued again, and every trial has run once. Slurm's commands are
stand-ins.
"""

import os
import subprocess
from pathlib import Path

import pytest

from rayunlearn.cli.slurm import SlurmJob, batch_script
from rayunlearn.storage.run import finished_ids
from tests.cluster.test_sweep import starts, undisturbed
from tests.fake_driver import tuned
from tests.slurm_stand_ins import JOB, stand_ins

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SECONDS = 0.3
# processes and a network of its own, so that symmetric-run sees no other Ray and ends no other
ALONE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
ALONE += ["--mount", "--net"]
# two hosts, node0 and node1, on a network
TWO_HOSTS = """
set -e
mount -t tmpfs none /run && mkdir /run/netns
ip link set lo up
ip link add bridge0 type bridge && ip addr add 10.7.0.254/24 dev bridge0 && ip link set bridge0 up
for i in 0 1; do
  ip netns add node$i
  ip link add port$i type veth peer name eth0 netns node$i
  ip link set port$i master bridge0 up
  ip -n node$i addr add 10.7.0.1$i/24 dev eth0
  for link in eth0 lo; do ip -n node$i link set $link up; done
  ip -n node$i route add default via 10.7.0.254
done
"""


def sweep_on_slurm(folder: Path, nodes: int, cpus: int, around: list[str]) -> str:
    """A sweep of twenty trials whose time is up after six; what it printed."""
    words = ("python", "-m", "tests.fake_driver", f"{folder}/runs", str(SECONDS), "0")
    job = SlurmJob(name="fake", words=words, nodes=nodes, cpus=cpus)
    (folder / "fake.sbatch").write_text(batch_script(job))
    environment = os.environ | {
        "PATH": stand_ins(folder / "bin"),
        "PYTHONPATH": str(ROOT),
        "SLURM_STAND_IN_LIMIT": f"{folder}/runs/fake/1/trials/* 6",
        "SLURM_STAND_IN_NODE": "ip netns exec node%t" if around else "",
    }
    subprocess.run(
        [*around, "sbatch", "fake.sbatch"], check=True, timeout=500, cwd=folder, env=environment
    )
    return (folder / f"slurm-fake-{JOB}.out").read_text()


def check_that_it_went_on(folder: Path, said: str) -> None:
    """Queued again once, and every trial has run; those that were out at the limit began twice."""
    assert (folder / f"status-{JOB}").read_text() == "0 1", said
    assert "the time limit: queued again" in said and "20 of 20 trials are done" in said
    run = folder / "runs" / "fake" / "1"
    assert set(finished_ids(run)) == undisturbed(tuned(SECONDS))
    begun_twice = [trial for trial, number in starts(run).items() if number > 1]
    assert len(begun_twice) <= 4 and max(starts(run).values()) <= 2
    assert not Path(f"/tmp/rayunlearn-{JOB}").exists()


def test_on_shared_nodes_the_time_limit_costs_no_trial_and_repeats_none(tmp_path: Path) -> None:
    check_that_it_went_on(tmp_path, sweep_on_slurm(tmp_path, 2, 1, []))


def test_on_whole_nodes_symmetric_run_starts_ray_and_the_limit_costs_no_trial(
    tmp_path: Path,
) -> None:
    around = [*ALONE, "bash", "-c", f'{TWO_HOSTS} exec ip netns exec node0 "$@"', "bash"]
    if subprocess.run([*around, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs unshare and ip, and the right to make networks")
    said = sweep_on_slurm(tmp_path, 2, 0, around)
    assert "Waiting for nodes to start" in said or "Running command on head node" in said
    check_that_it_went_on(tmp_path, said)
