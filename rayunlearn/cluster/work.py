"""What the cluster is to do, as plain functions of the trial layer: the sweep knows no torch of its
own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayunlearn.config import Trial
from rayunlearn.errors import require
from rayunlearn.estimate import Room
from rayunlearn.plan import Check, Identify

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Work:
    """Functions must be importable on the workers, by name.

    check: a trial with its options filled in, or UserError; identify: its id; missing: roles
    (`base`, `gold`) that `prepare(trial, cache, progress, roles)` still has to make; workspace:
    what `run` takes, cheap once prepared; run(trial, workspace, run_dir, experiment, version,
    commit): runs a trial, writes its folder, returns its status; divide(trial, n): UserError where
    n processes cannot share the trial; room(trials, run): what the hungriest of the trials needs of
    a GPU; gpu_bytes: the size of the GPU of the process that asks, 0 where it sees none; metrics:
    the metric table, for experiment.json.
    """

    check: Check
    identify: Identify
    missing: Callable[[Trial, Path], tuple[str, ...]]
    prepare: Callable[[Trial, Path, Progress, tuple[str, ...]], Any]
    workspace: Callable[[Trial, Path], Any]
    run: Callable[[Trial, Any, Path, str, str, str], str]
    metrics: Callable[[], Mapping[str, Any]]
    divide: Callable[[Trial, int], None]
    room: Callable[[Sequence[Trial], Path], Room]
    gpu_bytes: Callable[[], int]


def unlearning() -> Work:
    """The real work. Loads torch."""
    from rayunlearn import attacked, room, workspace
    from rayunlearn.models.memory import device_bytes

    return Work(
        check=workspace.validate,
        identify=workspace.identify,
        missing=missing,
        prepare=workspace.prepare,
        workspace=workspace.workspace_of,
        run=attacked.run_any,
        metrics=metric_table,
        divide=divisible,
        room=room.room_of,
        gpu_bytes=device_bytes,
    )


def divisible(trial: Trial, processes: int) -> None:
    """Raise UserError for a trial that cannot be divided over as many processes
    (`train/sharded.py`).
    """
    from rayunlearn.methods.forget import FORGET
    from rayunlearn.methods.weightspace import as_trained

    train, shares = trial.train, trial.train.accumulation * processes
    require(
        train.batch_size % shares == 0,
        f"train.batch_size must be a multiple of train.accumulation x processes, {shares}",
        train.batch_size,
    )
    require(
        train.checkpoint_every == 0,
        "train.checkpoint_every must be 0 where a trial has several processes",
        train.checkpoint_every,
    )
    require(
        not trial.method.wrappers,
        "method.wrappers must be '' where a trial has several processes",
        trial.method.wrappers,
    )
    plain = FORGET[trial.method.forget].ending is as_trained
    require(
        plain,
        "method.forget must be one that ends as trained where a trial has several processes",
        trial.method.forget,
    )


def metric_table() -> Mapping[str, Any]:
    """The metrics with unit, range, direction and meaning."""
    from rayunlearn.metrics.document import METRICS

    return METRICS


def missing(trial: Trial, cache: Path) -> tuple[str, ...]:
    """Models of the trial's (data, model) pair that have not been taught yet."""
    from rayunlearn.workspace import is_taught, workspace_of

    workspace = workspace_of(trial, cache)
    folders = {"base": workspace.base, "gold": workspace.gold}
    return tuple(
        role
        for role, folder in folders.items()
        if trial.model.teach and not is_taught(Path(folder))
    )
