"""Connecting to Ray: a private cluster on this machine that ends with us, or one that is there
already.
"""

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import rayunlearn
from rayunlearn.errors import UserError, require
from rayunlearn.storage.scratch import scratch_folder

# holds the workspaces (documents and paths), never weights
OBJECT_STORE_BYTES = 256 * 2**20
QUIET_ENVIRONMENT = {
    # Tune's own tables; the progress line replaces them
    "RAY_AIR_NEW_OUTPUT": "0",
    # csv, json and tensorboard copies of what Parquet holds
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune's snapshots: the ledger is the only state
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    # Tune would start workers one after another; the searcher says how many there are
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    # asking for a trial may write the plan and ask Optuna
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    # under `uv run` Ray would pack the current folder, runs and all, and start workers by `uv run`
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}

# of a resource that a trial asks for only to be on a machine that has it
TRACE_VARIABLE = 0.001
# for the machines that are there
ASK_EVERY_SECONDS = 2.0

# Read when Ray is imported: it then takes 127.0.0.1 for this node's address, and its servers listen
# there only.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class ClusterAddress:
    """Where Ray is to be found, and what the user set to say so: `--address` or `RAY_ADDRESS`."""

    value: str
    setting: str


FORMS = "auto, local, ray://host:port or host:port"


def set_ray_environment(address: str) -> ClusterAddress:
    """Set what Ray reads when it is imported; returns where the cluster is.

    Imported without it, Ray's servers on this machine would listen on every interface. So
    `ray_session` calls it and is the first to import Ray: modules that import Ray at their top are
    themselves imported inside a session.
    """
    resolved = resolve_address(address)
    is_local = resolved.value == "local"
    for name, value in (QUIET_ENVIRONMENT | (LOOPBACK if is_local else {})).items():
        os.environ.setdefault(name, value)
    return resolved


@contextmanager
def ray_session(*, address: str, workers: int) -> Iterator[str]:
    """Ray, for the length of the block, and the address of its dashboard ('': none); shut down
    afterwards only what was started here.

    `local`: a private cluster of `workers` CPUs (0: as many as there are), reachable from this
    machine only. `auto`: the cluster that RAY_ADDRESS names (a submitted job's own), else `local`.
    Anything else is an address. Raises UserError where no cluster answers.
    """
    resolved = set_ray_environment(address)
    import ray

    if ray.is_initialized():
        yield ""
        return
    with scratch_folder("ray") if resolved.value == "local" else nullcontext(Path()) as folder:
        try:
            with _own_sigterm():
                dashboard = _start(resolved, workers, folder)
            yield dashboard
        finally:
            ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep SIGTERM ours while Ray starts.

    `ray.init` sets a handler that ends the process at once: ours is put back. The signal is blocked
    meanwhile, also for the processes of a private cluster, which inherit that: where a batch system
    sends SIGTERM to every process of a job, the driver then closes its run and ends them itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        # in this order: a signal that came meanwhile is delivered when the mask is lifted
        signal.signal(signal.SIGTERM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def trial_resources(
    *, gpus_per_trial: float | None, share: Callable[[], float] = lambda: 1.0, on: str = ""
) -> dict[str, float]:
    """What one trial takes: one CPU, and of a cluster with GPUs `share()` of one unless said
    otherwise; `on`: a trace of that resource.

    Of a cluster that has no CPU nothing is known: its machines start for the trials that wait.
    Raises UserError there where nobody said what a trial takes, since it would take no GPU, and
    elsewhere for GPUs that are not there.
    """
    import ray

    available = resources_on(on)
    grows, has_gpus = available.get("CPU", 0) == 0, available.get("GPU", 0) > 0
    require(
        not on or on in available or ray.cluster_resources().get("CPU", 0) == 0,
        f"--on must name a resource of a machine that is there {_named()}",
        on,
    )
    only = {on: TRACE_VARIABLE} if on else {}
    if gpus_per_trial is None:
        require(
            not grows,
            "--gpus-per-trial must be said (0: none) as long as no machine of the cluster has a CPU"
            " for trials",
            gpus_per_trial,
        )
        return {"cpu": 1.0, "gpu": share(), **only} if has_gpus else {"cpu": 1.0, **only}
    if gpus_per_trial > 0 and not has_gpus and not grows:
        raise UserError(
            f"--gpus-per-trial needs a cluster with GPUs, got {gpus_per_trial} where Ray sees none"
        )
    return {"cpu": 1.0, "gpu": gpus_per_trial, **only} if gpus_per_trial else {"cpu": 1.0, **only}


def resources_on(on: str) -> dict[str, float]:
    """What the machines have together that have the resource `on`; '' is all of them."""
    total: Counter[str] = Counter()
    for node in _nodes(on):
        total.update(node["Resources"])
    return dict(total)


def _nodes(on: str) -> list[dict[str, Any]]:
    """The machines that are up and have the resource, ''  being all."""
    import ray

    return [
        node
        for node in ray.nodes()
        if node["Alive"] and (not on or node["Resources"].get(on, 0) > 0)
    ]


def _named() -> str:
    """What machines can be distinguished by, in brackets."""
    plain = ("CPU", "GPU", "memory", "object_store_memory")
    names = sorted(
        {
            name
            for node in _nodes("")
            for name in node["Resources"]
            if name not in plain and not name.startswith("node:")
        }
    )
    return f"({', '.join(names) or 'none has a name'})"


def smallest_gpu(gpu_bytes: Callable[[], int], on: str = "") -> int:
    """Memory of the smallest GPU of the machines that have the resource `on` ('': of all), asked
    for on each; 0 where one does not tell.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0, num_gpus=0.01, max_calls=1)(gpu_bytes)
    nodes = [node["NodeID"] for node in _nodes(on) if node["Resources"].get("GPU", 0) > 0]
    available = (
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node in nodes
    )
    return min(ray.get(list(available)), default=0)


@dataclass
class ConcurrencyLimit:
    """How many trials may be out at once: `workers`, or (0) as many as fit into the machines that
    are there at the moment.
    """

    resources: Mapping[str, float]
    workers: int = 0
    on: str = ""
    _limit: int = 1
    _until: float = 0.0

    def __call__(self) -> int:
        """The number now; Ray is asked every two seconds."""
        if self.workers:
            return self.workers
        if time.monotonic() >= self._until:
            self._limit = concurrency_limit(resources_on(self.on), self.resources)
            self._until = time.monotonic() + ASK_EVERY_SECONDS
        return self._limit


def concurrency_limit(available: Mapping[str, float], resources: Mapping[str, float]) -> int:
    """Number of trials at once, at least 1. A share of a GPU is of one GPU: three trials of 0.6
    need three GPUs.
    """
    cpus = int(available.get("CPU", 0) // resources["cpu"])
    gpu = resources.get("gpu", 0.0)
    if not gpu:
        return max(1, cpus)
    n_gpus = int(available.get("GPU", 0))
    # 1e-6: twenty times 0.05 are one GPU
    on_gpus = n_gpus * int(1 / gpu + 1e-6) if gpu <= 1 else int(n_gpus // gpu)
    return max(1, min(cpus, on_gpus))


def resolve_address(address: str) -> ClusterAddress:
    """`local`, `auto` (the cluster that Ray itself finds on this machine) or where a cluster is.

    address `auto` asks the variable RAY_ADDRESS, with the meaning that Ray's own tools give it, and
    is `local` where that is not set. Raises UserError for a job server's URL, which is where
    `rayunlearn submit` goes, and for what is no address.
    """
    variable = os.environ.get("RAY_ADDRESS", "")
    resolved = ClusterAddress(address, "--address")
    if address == "auto":
        resolved = ClusterAddress(variable or "local", "RAY_ADDRESS")
    resolved = replace(resolved, value=resolved.value.rstrip("/"))
    if resolved.value in ("auto", "local"):
        return resolved
    require(
        not resolved.value.startswith(("http://", "https://")),
        f"{resolved.setting} must be {FORMS} here; http://host:port is a job server, which"
        " `rayunlearn submit` and `jobs` go to",
        resolved.value,
    )
    host, _, port = resolved.value.removeprefix("ray://").rpartition(":")
    require(bool(host) and port.isdigit(), f"{resolved.setting} must be {FORMS}", resolved.value)
    return resolved


def check_port_open(address: ClusterAddress) -> None:
    """Raise UserError where nothing listens at `ray://host:port` or `host:port`; Ray itself would
    try for minutes.
    """
    host, _, port = address.value.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: ClusterAddress, error: Exception) -> UserError:
    return UserError(
        f"{address.setting} must name a Ray cluster that answers, got {address.value!r} ({error})"
    )


def _start(resolved: ClusterAddress, workers: int, folder: Path) -> str:
    """Connect; where the cluster's dashboard is."""
    import ray

    address = resolved.value
    if address == "local":
        _start_here(workers, folder)
        return ""
    if address != "auto":
        check_port_open(resolved)
    # A client of a cluster far away brings this package along; a driver on the cluster shares its
    # installation.
    package = (
        {"py_modules": [str(Path(rayunlearn.__file__).parent)]}
        if address.startswith("ray://")
        else {}
    )
    try:
        context = ray.init(
            address=address, runtime_env=package, log_to_driver=False, logging_level="ERROR"
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(resolved, error) from error
    return f"http://{context.dashboard_url}" if context.dashboard_url else ""


def _start_here(workers: int, folder: Path) -> None:
    """A private cluster. Raises UserError where its processes do not come up."""
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=workers or None,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
        )
    # a bare one, after Ray's own 30 seconds
    except Exception as error:
        is_late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        hint = "; a busy machine may be asked again" if is_late else ""
        raise UserError(f"Ray must start on this machine{hint}, got: {error}") from error
