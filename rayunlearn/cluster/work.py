"""What the cluster is to do, as plain functions of the trial layer: the sweep knows no torch of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayunlearn.config import Trial
from rayunlearn.estimate import Room
from rayunlearn.plan import Check, Identify

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Work:
    """Functions must be importable on the workers, by name.

    check: a trial with its options filled in, or UserError; identify: its id; missing: roles (`base`, `gold`) that
    `prepare(trial, cache, progress, roles)` still has to make; workspace: what `run` takes, cheap once prepared;
    run(trial, workspace, run_dir, experiment, version, commit): runs a trial, writes its folder, returns its status;
    room(trials, run): what the hungriest of the trials needs of a GPU; gpu_bytes: the size of the GPU of the process that
    asks, 0 where it sees none; metrics: the metric table, for experiment.json.
    """

    check: Check
    identify: Identify
    missing: Callable[[Trial, Path], tuple[str, ...]]
    prepare: Callable[[Trial, Path, Progress, tuple[str, ...]], Any]
    workspace: Callable[[Trial, Path], Any]
    run: Callable[[Trial, Any, Path, str, str, str], str]
    metrics: Callable[[], Mapping[str, Any]]
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
        room=room.room_of,
        gpu_bytes=device_bytes,
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
    return tuple(role for role, folder in folders.items() if trial.model.teach and not is_taught(Path(folder)))
