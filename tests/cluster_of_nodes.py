"""A Ray cluster of several simulated machines on this one, drivers on it, and the accidents that
happen to both.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayunlearn.cluster.session import set_ray_environment

REPOSITORY = Path(__file__).parents[1]
# seconds until what should happen counts as never happening, beside other work
PATIENCE = 600.0
# A machine whose processes were killed is missed after five seconds instead of half a minute;
# workers are as quick as what waits for them.
QUICK = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "10",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    "RAY_worker_niceness": "0",
}


def name_of(machine: Any) -> str:
    """Ray's name of a simulated machine, as `fake_work.machine` says it from inside."""
    return str(machine.node_id)


@dataclass
class Machines:
    """A head that runs no trial and machines of one CPU each. `folder` is the cluster's own: a
    process that has a file of it open is of it.
    """

    cluster: Any
    folder: Path

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def join(self) -> Any:
        """One more machine."""
        return self.cluster.add_node(
            num_cpus=1, node_ip_address="127.0.0.1", object_store_memory=80 * 2**20
        )

    def kill(self, machine: Any) -> None:
        """A machine that loses its power: every process of it, at once."""
        self.cluster.remove_node(machine, allow_graceful=False)

    def at_work(self, run: Path) -> Any:
        """The machine that began a trial last; any one where all that did are lost."""
        by_name = {name_of(machine): machine for machine in self.cluster.worker_nodes}
        return next(
            (by_name[line[4]] for line in reversed(starts(run)) if line[4] in by_name),
            next(iter(by_name.values())),
        )

    def processes(self) -> dict[int, str]:
        """Processes of the cluster, workers of dead machines included: id and command."""
        found = {}
        for entry in Path("/proc").iterdir():
            if (
                entry.name.isdigit()
                and int(entry.name) != os.getpid()
                and _has_open(entry, self.folder)
            ):
                found[int(entry.name)] = command(int(entry.name))
        return found

    def workers(self) -> dict[int, str]:
        """Those of them that run trials or hold the board."""
        return {
            pid: words
            for pid, words in self.processes().items()
            if "ResourceTrainable" in words or "TrialActor" in words or "ray::Board" in words
        }


@contextmanager
def machines(n: int) -> Iterator[Machines]:
    """A cluster of a head and `n` machines; nothing of it is left afterwards."""
    before = dict(os.environ)
    set_ray_environment("local")
    os.environ.update(QUICK | {"PYTHONPATH": str(REPOSITORY)})
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    try:
        head = {
            "num_cpus": 0,
            "include_dashboard": False,
            "node_ip_address": "127.0.0.1",
            "temp_dir": str(folder),
            "object_store_memory": 80 * 2**20,
        }
        here = Machines(Cluster(initialize_head=True, head_node_args=head), folder)
        try:
            for _ in range(n):
                here.join()
            yield here
        finally:
            here.cluster.shutdown()
        until(lambda: not here.processes(), lambda: f"left behind: {here.processes()}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)


@dataclass
class Driver:
    """A `tests.fake_driver` in a process of its own, and what it says."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    def ended(self) -> int:
        """Its exit status, once it has one."""
        try:
            return self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired as error:
            self.process.kill()
            raise AssertionError(f"the driver hangs:\n{self.said}") from error


@dataclass
class Sweep:
    """A sweep of fake trials on the cluster, started as often as it takes; made by `sweep_on`,
    which ends its drivers.
    """

    machines: Machines
    output: Path
    seconds: float
    n_seeds: int = 2
    drivers: list[Driver] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.output / "fake" / "1"

    @property
    def driver(self) -> Driver:
        return self.drivers[-1]

    def start(self) -> Driver:
        """A driver that begins the sweep, or goes on with it."""
        self.output.mkdir(parents=True, exist_ok=True)
        log = self.output.with_name(f"{self.output.name}-{len(self.drivers)}.log")
        words = [
            sys.executable,
            "-m",
            "tests.fake_driver",
            str(self.output),
            str(self.seconds),
            "0",
            str(self.n_seeds),
        ]
        environment = os.environ | {"RAY_ADDRESS": self.machines.address}
        with log.open("wb") as file:
            self.drivers.append(
                Driver(
                    subprocess.Popen(
                        words,
                        cwd=REPOSITORY,
                        env=environment,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    ),
                    log,
                )
            )
        return self.driver

    def finished(self) -> set[str]:
        """Trials that have ended, compacted ones not counted."""
        return {path.parent.name for path in self.run.glob("trials/*/trials.parquet")}

    def until_done(self, n: int) -> None:
        """Wait for `n` trials."""
        until(
            lambda: len(self.finished()) >= n, lambda: self.driver.said, alive=self.driver.process
        )

    def to_the_end(self) -> None:
        """Wait for the driver; start it again, as its last line says, until everything is done."""
        for _ in range(5):
            if self.driver.ended() == 0:
                return
            self.start()
        raise AssertionError(self.driver.said)


@contextmanager
def sweep_on(machines: Machines, output: Path, seconds: float, n_seeds: int = 2) -> Iterator[Sweep]:
    """A sweep that is to be started; no driver of it is left afterwards."""
    sweep = Sweep(machines, output, seconds, n_seeds)
    try:
        yield sweep
    finally:
        for driver in sweep.drivers:
            driver.process.kill()
            driver.process.wait()


def starts(run: Path) -> list[list[str]]:
    """One row per start of a trial: trial, process, moment, GPUs, machine."""
    path = run / "started"
    return (
        [line.split() for line in path.read_text().splitlines() if line.count(" ") == 4]
        if path.exists()
        else []
    )


def running(sweep: Sweep) -> list[int]:
    """Processes that are in the middle of a trial."""
    done = sweep.finished()
    return [
        int(line[1])
        for line in starts(sweep.run)
        if line[0] not in done and "ray::" in command(int(line[1]))
    ]


def until(
    holds: Callable[[], bool], why: Callable[[], str], alive: subprocess.Popen[bytes] | None = None
) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline and (alive is None or alive.poll() is None), why()
        time.sleep(0.2)


def command(pid: int) -> str:
    """The command of a process, '' where there is none."""
    try:
        return (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode(errors="replace")
            .strip()
        )
    except OSError:
        return ""


def _has_open(process: Path, folder: Path) -> bool:
    try:
        return any(
            os.readlink(entry).startswith(f"{folder}/") for entry in (process / "fd").iterdir()
        )
    except OSError:
        return False


# ---- accidents: each returns when it has happened


def worker_killed(sweep: Sweep) -> None:
    """The process of a trial is killed as the kernel does when memory runs out."""
    _signal_a_trial(sweep, signal.SIGKILL)


def worker_terminated(sweep: Sweep) -> None:
    """The process of a trial is asked to end."""
    _signal_a_trial(sweep, signal.SIGTERM)


def board_killed(sweep: Sweep) -> None:
    """The actor that workers and driver talk through is killed."""
    for pid, words in sweep.machines.workers().items():
        if "ray::Board" in words:
            os.kill(pid, signal.SIGKILL)


def machine_killed(sweep: Sweep) -> None:
    """A machine loses its power; another one joins."""
    sweep.machines.kill(sweep.machines.at_work(sweep.run))
    sweep.machines.join()


def machine_taken_back(sweep: Sweep) -> None:
    """A spot machine: every process is asked to end, and killed two seconds later; another one
    joins.
    """
    machine = sweep.machines.at_work(sweep.run)
    on_it = {int(line[1]) for line in starts(sweep.run) if line[4] == name_of(machine)}
    raylets = [info.process.pid for infos in machine.all_processes.values() for info in infos]
    for pid in (*raylets, *(pid for pid in on_it if "ray::" in command(pid))):
        os.kill(pid, signal.SIGTERM)
    time.sleep(2)
    sweep.machines.kill(machine)
    sweep.machines.join()


def driver_killed(sweep: Sweep) -> None:
    """The driver is killed and started again."""
    sweep.driver.process.kill()
    sweep.driver.process.wait()
    sweep.start()


def driver_terminated(sweep: Sweep) -> None:
    """The driver's machine is taken back with notice, or its job is stopped; started again."""
    sweep.driver.process.terminate()
    sweep.driver.ended()
    sweep.start()


def storage_fails(sweep: Sweep) -> None:
    """For three seconds nothing can be written beside the trials: the folder for half-written ones
    is a file.

    A stand-in that works for root too, whom no read-only folder stops.
    """
    scratch, aside = sweep.run / ".tmp", sweep.run / ".gone"
    scratch.mkdir(exist_ok=True)
    scratch.rename(aside)
    scratch.touch()
    time.sleep(3)
    shutil.rmtree(aside)
    scratch.unlink()


def machine_joins(sweep: Sweep) -> None:
    """One more machine, for good."""
    sweep.machines.join()


def _signal_a_trial(sweep: Sweep, number: signal.Signals) -> None:
    until(
        lambda: bool(running(sweep)) or sweep.driver.process.poll() is not None,
        lambda: sweep.driver.said,
    )
    for pid in running(sweep)[:1]:
        os.kill(pid, number)


ACCIDENTS = (
    worker_killed,
    worker_terminated,
    board_killed,
    machine_killed,
    machine_taken_back,
    driver_killed,
    driver_terminated,
    storage_fails,
)
