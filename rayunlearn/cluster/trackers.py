"""Experiment trackers: what a trial's Parquet files say, told to TensorBoard, Weights & Biases or
MLflow when it ends.

A tracker is a mirror for people who look there; the run folder stays what everything is read from.
Tune calls `TrackerCallback` (a Ray callback) when a trial ends; a thread of the driver reads the
trial's files and tells each tracker, so no trial waits for a server. A tracker that fails loses
that trial on its pages, which is said at the end of the run, and nothing else.

TensorBoard: files in `<run>/tensorboard/<cell>/<trial>`. W&B: project = experiment, group = cell,
tag = version; a server and key by WANDB_* as everywhere, `WANDB_MODE=offline` writes `<run>/wandb`.
MLflow: experiment = experiment/version at MLFLOW_TRACKING_URI, else `<run>/mlflow.db`; tag = cell.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import polars as pl
from ray.tune import Callback

from rayunlearn.config import SEED_SETTINGS, Value, digest
from rayunlearn.schema import TABLES

# what a cell is called by
CELL_NAMES = ("stage", "method.forget", "select.name", "select.ratio")


@dataclass(frozen=True, kw_only=True)
class TrackedTrial:
    """One ended trial: its settings, one number per measurement, and what was recorded along its
    steps as (step, {name: value}). Trials that differ in their seeds only are of one `cell`.
    """

    trial_id: str
    cell: str
    status: str
    settings: Mapping[str, Value]
    measured: Mapping[str, float]
    steps: Sequence[tuple[int, Mapping[str, float]]]


class Tracker(Protocol):
    """Takes ended trials, one after the other, always from the same thread."""

    def log_trial(self, trial: TrackedTrial) -> None:
        """Put one trial where the tracker keeps it; the same trial again replaces it."""


@dataclass(frozen=True)
class RunInfo:
    """Which run it is: its folder, the experiment's name and its version."""

    run: Path
    experiment: str
    version: str


class TensorBoard:
    """A folder of event files per trial, in its cell's folder: its steps, and its settings beside
    its measurements (the HPARAMS page).
    """

    def __init__(self, run_info: RunInfo) -> None:
        self.folder = run_info.run / "tensorboard"

    def log_trial(self, trial: TrackedTrial) -> None:
        """Write the trial's event files."""
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.folder / trial.cell / trial.trial_id)) as writer:
            for step, numbers in trial.steps:
                for name, value in numbers.items():
                    writer.add_scalar(name, value, step)
            settings = {**trial.settings, "status": trial.status}
            writer.add_hparams(settings, dict(trial.measured), run_name=".")


class WandB:
    """A W&B run per trial, with the trial's id: its steps as history, its measurements as summary.
    The trials of a cell are a group, so that W&B shows the mean and the spread over seeds.
    """

    def __init__(self, run_info: RunInfo) -> None:
        self.run_info = run_info
        run_info.run.mkdir(parents=True, exist_ok=True)

    def log_trial(self, trial: TrackedTrial) -> None:
        """Start the trial's run, fill it and finish it."""
        import wandb

        quiet = wandb.Settings(silent=True, console="off")
        started = wandb.init(
            project=self.run_info.experiment,
            group=trial.cell,
            tags=[self.run_info.version],
            id=trial.trial_id,
            name=trial.trial_id,
            config={**trial.settings, "status": trial.status},
            dir=str(self.run_info.run),
            resume="allow",
            reinit="create_new",
            settings=quiet,
        )
        for step, numbers in trial.steps:
            started.log(dict(numbers), step=step)
        started.summary.update(dict(trial.measured))
        started.finish(exit_code=int(trial.status == "failed"))


class MLflow:
    """An MLflow run per trial: settings as parameters, steps and measurements as metrics."""

    def __init__(self, run_info: RunInfo) -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI")
            or f"sqlite:///{run_info.run / 'mlflow.db'}"
        )
        name = f"{run_info.experiment}/{run_info.version}"
        experiment = self.client.get_experiment_by_name(name)
        self.experiment = (
            experiment.experiment_id if experiment else self.client.create_experiment(name)
        )

    def log_trial(self, trial: TrackedTrial) -> None:
        """Write the trial's run; one that stands there from an earlier telling is deleted."""
        from mlflow.entities import Metric, Param

        for earlier in self.client.search_runs(
            [self.experiment], f"tags.trial_id = '{trial.trial_id}'"
        ):
            self.client.delete_run(earlier.info.run_id)
        run = self.client.create_run(
            self.experiment,
            run_name=trial.trial_id,
            tags={"trial_id": trial.trial_id, "status": trial.status, "cell": trial.cell},
        ).info.run_id
        last = max((step for step, _ in trial.steps), default=0)
        points = [*trial.steps, (last, trial.measured)]
        metrics = [
            Metric(_mlflow_name(name), value, 0, step)
            for step, numbers in points
            for name, value in numbers.items()
        ]
        # MLflow takes a thousand at a time, and a hundred parameters
        for begin in range(0, len(metrics), 1000):
            self.client.log_batch(run, metrics=metrics[begin : begin + 1000])
        parameters = [Param(name, str(value)) for name, value in trial.settings.items()]
        for begin in range(0, len(parameters), 100):
            self.client.log_batch(run, params=parameters[begin : begin + 100])
        self.client.set_terminated(run, "FAILED" if trial.status == "failed" else "FINISHED")


TRACKERS: dict[str, Callable[[RunInfo], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


@dataclass
class TrackerCallback(Callback):
    """The Ray callback: every ended trial to every tracker, one after the other in a thread of its
    own.
    """

    names: Sequence[str]
    run_info: RunInfo
    failed: dict[str, list[str]] = field(default_factory=dict)

    def setup(self, **_info: Any) -> None:
        """Start the thread; the trackers are made in it when the first trial ends."""
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trackers")
        self.trackers: dict[str, Tracker] = {}

    def on_trial_complete(
        self, iteration: int, trials: Sequence[Any], trial: Any, **_info: Any
    ) -> None:
        """A trial of Tune's ended: if it was one of ours (not a pause), it is told."""
        if trial.config.get("trial") is not None:
            self.thread.submit(self._log_ended_trial, trial.config["trial_id"])

    def on_trial_error(
        self, iteration: int, trials: Sequence[Any], trial: Any, **_info: Any
    ) -> None:
        """A worker died; the row that the searcher wrote of it is told too."""
        self.on_trial_complete(iteration, trials, trial)

    def on_experiment_end(self, trials: Sequence[Any], **_info: Any) -> None:
        """Wait until everything is told; one warning per tracker that missed a trial, with the
        first reason.
        """
        self.thread.shutdown(wait=True)
        for name, reasons in self.failed.items():
            logging.warning(
                "%s was not told of %d trials (%s); the run folder has them all",
                name,
                len(reasons),
                reasons[0],
            )

    def _log_ended_trial(self, trial_id: str) -> None:
        for name in self.names:
            try:
                if name not in self.trackers:
                    self.trackers[name] = TRACKERS[name](self.run_info)
                self.trackers[name].log_trial(tracked_trial(self.run_info.run, trial_id))
            # somebody else's page: what it missed is counted and said, and the sweep goes on
            except Exception as error:
                self.failed.setdefault(name, []).append(f"{type(error).__name__}: {error}")


def tracked_trial(run: Path, trial_id: str) -> TrackedTrial:
    """An ended trial of the run folder, as trackers are told it; what is not finite is left out, as
    most of them refuse it.
    """
    trials, evals, steps = (
        pl.read_parquet(run / "trials" / trial_id / f"{table}.parquet")
        for table in ("trials", "evals", "steps")
    )
    row, columns = trials.row(0, named=True), TABLES["trials"]
    numbers = {
        c.name: float(row[c.name])
        for c in columns
        if c.kind in ("i64", "f64") and _finite(row[c.name])
    }
    settings = {
        name: value
        for name, value in row.items()
        if name not in {c.name for c in columns} and value is not None
    }
    return TrackedTrial(
        trial_id=trial_id,
        cell=cell_of(settings),
        status=row["status"],
        settings=settings,
        measured={
            _name(metric): metric["value"]
            for metric in evals.iter_rows(named=True)
            if _finite(metric["value"])
        }
        | numbers,
        steps=list(_steps(steps)),
    )


def cell_of(settings: Mapping[str, Value]) -> str:
    """A name that trials share which differ in nothing but their seeds: method, selector, ratio and
    eight digits for all the rest.

    Example:
        >>> one = {"method.forget": "npo", "select.ratio": 0.5, "train.seed": 0}
        >>> cell_of(one) == cell_of(one | {"train.seed": 1})
        True
        >>> cell_of(one).startswith("npo-0.5-")
        True
    """
    fixed = {name: value for name, value in settings.items() if name not in SEED_SETTINGS}
    shown = [fixed[name] for name in CELL_NAMES if name in fixed]
    return "-".join([*map(str, shown), digest(fixed, 8)])


def _steps(steps: pl.DataFrame) -> Iterator[tuple[int, dict[str, float]]]:
    for row in steps.sort("step").iter_rows(named=True):
        yield (
            row["step"],
            {
                f"train/{name}": float(value)
                for name, value in row.items()
                if name not in ("trial_id", "step") and _finite(value)
            },
        )


def _name(row: Mapping[str, Any]) -> str:
    """`unlearned/forget/probability`, with the attack before the split where there is one."""
    attack = [] if row["attack"] == "none" else [row["attack"]]
    return "/".join([row["stage"], *attack, row["split"], row["metric"]])


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _mlflow_name(name: str) -> str:
    """MLflow allows letters, digits and a few signs in a metric's name."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)
