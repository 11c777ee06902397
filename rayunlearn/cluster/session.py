"""Connecting to Ray: a private cluster on this machine that ends with us, or one that is there already."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rayunlearn
from rayunlearn.errors import UserError, require

OBJECT_STORE_BYTES = 256 * 2**20  # holds the workspaces (documents and paths), never weights
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables; the progress line replaces them
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # csv, json and tensorboard copies of what Parquet holds
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Tune's snapshots: the ledger is the only state
    "TUNE_WARN_THRESHOLD_S": "60",  # asking for a trial may write the plan and ask Optuna
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}

# Read when Ray is imported: it then takes 127.0.0.1 for this node's address, and its servers listen there only.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@contextmanager
def connected(*, address: str, workers: int) -> Iterator[None]:
    """Ray, for the length of the block; shut down afterwards only what was started here.

    `local`: a private cluster of `workers` CPUs (0: as many as there are), reachable from this machine only.
    `auto`: the cluster that RAY_ADDRESS names (a submitted job's own), else `local`. Anything else is an address.
    Raises UserError where no cluster answers.
    """
    place = _resolved(address)
    for name, value in (QUIET | (LOOPBACK if place == "local" else {})).items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    with _private_folder(place) as folder:
        _start(place, workers, folder)
        try:
            yield
        finally:
            ray.shutdown()


def trial_resources(*, gpus_per_trial: float | None) -> dict[str, float]:
    """What one trial takes: one CPU, and of a cluster with GPUs one GPU unless said otherwise."""
    import ray

    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    gpus = float(has_gpus) if gpus_per_trial is None else gpus_per_trial
    if gpus > 0 and not has_gpus:
        raise UserError(f"--gpus-per-trial needs a cluster with GPUs, got {gpus} where Ray sees none")
    return {"cpu": 1.0, "gpu": gpus} if gpus else {"cpu": 1.0}


def trial_slots(resources: dict[str, float]) -> int:
    """Number of trials that fit into the cluster at once."""
    import ray

    there = ray.cluster_resources()
    return max(1, int(min(there.get(name.upper(), 0) // amount for name, amount in resources.items())))


def knock(place: str) -> None:
    """Raise UserError where nothing listens at `ray://host:port` or `host:port`; Ray itself would try for minutes."""
    host, _, port = place.removeprefix("ray://").rpartition(":")
    require(bool(host) and port.isdigit(), "--address must be auto, local, ray://host:port or host:port", place)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"--address must name a Ray cluster that answers, got {place!r} ({error})") from error


def _resolved(address: str) -> str:
    if address != "auto":
        return address
    return os.environ.get("RAY_ADDRESS") or "local"


@contextmanager
def _private_folder(place: str) -> Iterator[Path]:
    """A folder for a private cluster's sockets and logs; short, because socket paths are limited to 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ray-")) if place == "local" else Path()
    try:
        yield folder
    finally:
        if place == "local":
            shutil.rmtree(folder, ignore_errors=True)


def _start(place: str, workers: int, folder: Path) -> None:
    import ray

    if place == "local":
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
        return
    knock(place)
    # A client of a cluster far away brings this package along; a driver on the cluster shares its installation.
    package = {"py_modules": [str(Path(rayunlearn.__file__).parent)]} if place.startswith("ray://") else {}
    try:
        ray.init(address=place, runtime_env=package, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--address must name a Ray cluster that answers, got {place!r} ({error})") from error
