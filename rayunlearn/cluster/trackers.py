"""Experiment trackers: what a trial's Parquet files say, told to TensorBoard, Weights & Biases or
MLflow when it ends.

A tracker is a mirror for people who look there; the run folder stays what everything is read from.
While a trial trains, what it says at each look (`train.live`) goes over the board to the driver and
to each tracker. Tune calls `TrackerCallback` (a Ray callback) when a trial ends: its files are read
and what was not told yet is. All this is done by a thread of the driver, so no trial waits for a
server. A tracker that fails loses that trial on its pages, which is said at the end of the run, and
nothing else.

TensorBoard: files in `<run>/tensorboard/<cell>/<trial>`. W&B: project = experiment, group = cell,
tag = version; a server and key by WANDB_* as everywhere, `WANDB_MODE=offline` writes `<run>/wandb`.
MLflow: experiment = experiment/version at MLFLOW_TRACKING_URI, else `<run>/mlflow.db`; tag = cell.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import polars as pl
from ray.tune import Callback

from rayunlearn.config import SEED_SETTINGS, Value, digest, flatten
from rayunlearn.schema import TABLES
from rayunlearn.train.live import LivePoint

# status of a trial that runs
RUNNING = "running"
# between two looks at what running trials said
LIVE_SECONDS = 2.0
# what a cell is called by
CELL_NAMES = ("stage", "method.forget", "select.name", "select.ratio")


@dataclass(frozen=True, kw_only=True)
class TrackedTrial:
    """One trial: its settings, one number per measurement, and what was recorded along its steps as
    (step, {name: value}). Of a trial that runs (status `running`) nothing is measured yet. Trials
    that differ in their seeds only are of one `cell`.
    """

    trial_id: str
    cell: str
    status: str
    settings: Mapping[str, Value]
    measured: Mapping[str, float]
    steps: Sequence[tuple[int, Mapping[str, float]]]


class Tracker(Protocol):
    """Takes trials, always from the same thread."""

    def log_points(self, trial: TrackedTrial) -> None:
        """Add steps of a trial that runs where the tracker keeps it."""

    def log_trial(self, trial: TrackedTrial) -> None:
        """Put an ended trial there: its steps that are not there yet, and everything else."""

    def close(self) -> None:
        """Close what is open of trials that did not end."""


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
        self.writers: dict[str, Any] = {}

    def log_points(self, trial: TrackedTrial) -> None:
        """Add the steps to the trial's event files."""
        from torch.utils.tensorboard import SummaryWriter

        if trial.trial_id not in self.writers:
            folder = str(self.folder / trial.cell / trial.trial_id)
            self.writers[trial.trial_id] = SummaryWriter(folder)
        writer = self.writers[trial.trial_id]
        for step, numbers in trial.steps:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)
        writer.flush()

    def log_trial(self, trial: TrackedTrial) -> None:
        """Write the trial's event files."""
        self.log_points(trial)
        settings = {**trial.settings, "status": trial.status}
        with self.writers.pop(trial.trial_id) as writer:
            writer.add_hparams(settings, dict(trial.measured), run_name=".")

    def close(self) -> None:
        """Close the files of trials that did not end."""
        for writer in self.writers.values():
            writer.close()


class WandB:
    """A W&B run per trial, with the trial's id: its steps as history, its measurements as summary.
    The trials of a cell are a group, so that W&B shows the mean and the spread over seeds.
    """

    def __init__(self, run_info: RunInfo) -> None:
        self.run_info = run_info
        self.started: dict[str, Any] = {}
        run_info.run.mkdir(parents=True, exist_ok=True)

    def log_points(self, trial: TrackedTrial) -> None:
        """Add the steps to the trial's run, which begins with the first of them."""
        if trial.trial_id not in self.started:
            self.started[trial.trial_id] = self._start(trial)
        for step, numbers in trial.steps:
            self.started[trial.trial_id].log(dict(numbers), step=step)

    def log_trial(self, trial: TrackedTrial) -> None:
        """Fill the trial's run and finish it."""
        self.log_points(trial)
        started = self.started.pop(trial.trial_id)
        started.config.update({"status": trial.status}, allow_val_change=True)
        started.summary.update(dict(trial.measured))
        started.finish(exit_code=int(trial.status == "failed"))

    def close(self) -> None:
        """Finish the runs of trials that did not end as failed; the next call goes on with them."""
        for started in self.started.values():
            started.finish(exit_code=1)

    def _start(self, trial: TrackedTrial) -> Any:
        import wandb

        quiet = wandb.Settings(silent=True, console="off")
        return wandb.init(
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

        self.started: dict[str, str] = {}

    def log_points(self, trial: TrackedTrial) -> None:
        """Add the steps to the trial's run, which begins with the first of them."""
        if trial.trial_id not in self.started:
            self.started[trial.trial_id] = self._start(trial)
        self._log(self.started[trial.trial_id], trial.steps)

    def log_trial(self, trial: TrackedTrial) -> None:
        """Fill the trial's run and end it."""
        from mlflow.entities import Param

        self.log_points(trial)
        run = self.started.pop(trial.trial_id)
        last = max((step for step, _ in trial.steps), default=0)
        self._log(run, [(last, trial.measured)])
        self.client.set_tag(run, "status", trial.status)
        parameters = [Param(name, str(value)) for name, value in trial.settings.items()]
        # MLflow takes a hundred at a time
        for begin in range(0, len(parameters), 100):
            self.client.log_batch(run, params=parameters[begin : begin + 100])
        self.client.set_terminated(run, "FAILED" if trial.status == "failed" else "FINISHED")

    def close(self) -> None:
        """End the runs of trials that did not."""
        for run in self.started.values():
            self.client.set_terminated(run, "KILLED")

    def _start(self, trial: TrackedTrial) -> str:
        """A new run; one that stands there from an earlier telling is deleted."""
        for earlier in self.client.search_runs(
            [self.experiment], f"tags.trial_id = '{trial.trial_id}'"
        ):
            self.client.delete_run(earlier.info.run_id)
        tags = {"trial_id": trial.trial_id, "status": trial.status, "cell": trial.cell}
        started = self.client.create_run(self.experiment, run_name=trial.trial_id, tags=tags)
        return str(started.info.run_id)

    def _log(self, run: str, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(_mlflow_name(name), value, 0, step)
            for step, numbers in points
            for name, value in numbers.items()
        ]
        # MLflow takes a thousand at a time
        for begin in range(0, len(metrics), 1000):
            self.client.log_batch(run, metrics=metrics[begin : begin + 1000])


TRACKERS: dict[str, Callable[[RunInfo], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


@dataclass
class TrackerCallback(Callback):
    """The Ray callback: what trials say while they run, and every ended trial, to every tracker,
    one after the other in a thread of its own.

    `take_points` gives what trials said since its last call, (trial, point) in order.
    """

    names: Sequence[str]
    run_info: RunInfo
    take_points: Callable[[], list[tuple[str, LivePoint]]]
    failed: dict[str, list[str]] = field(default_factory=dict)
    running: dict[str, Mapping[str, Value]] = field(default_factory=dict)
    sent: dict[str, set[tuple[str, int, str]]] = field(default_factory=dict)
    next_look: float = 0.0

    def setup(self, **_info: Any) -> None:
        """Start the thread; the trackers are made in it when the first trial ends."""
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trackers")
        self.trackers: dict[str, Tracker] = {}

    def on_trial_start(
        self, iteration: int, trials: Sequence[Any], trial: Any, **_info: Any
    ) -> None:
        """A trial begins: its settings are known."""
        if trial.config.get("trial") is not None:
            self.running[trial.config["trial_id"]] = flatten(trial.config["trial"])

    def on_step_end(self, iteration: int, trials: Sequence[Any], **_info: Any) -> None:
        """Tune looks after its trials: every two seconds what they said is told."""
        if time.monotonic() >= self.next_look:
            self.next_look = time.monotonic() + LIVE_SECONDS
            self.thread.submit(self._log_points)

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
        self.thread.submit(self._close)
        self.thread.shutdown(wait=True)
        for name, reasons in self.failed.items():
            logging.warning(
                "%s was not told of %d trials (%s); the run folder has them all",
                name,
                len(reasons),
                reasons[0],
            )

    def _log_points(self) -> None:
        """What running trials said. A tracker that fails now is told at the trial's end."""
        points: dict[str, list[LivePoint]] = {}
        for trial_id, point in self.take_points():
            points.setdefault(trial_id, []).append(point)
        for trial_id in points.keys() & self.running.keys():
            trial = running_trial(trial_id, self.running[trial_id], points[trial_id])
            for name in self.names:
                with suppress(Exception):
                    self._tell(name, trial)

    def _log_ended_trial(self, trial_id: str) -> None:
        self._log_points()
        self.running.pop(trial_id, None)
        for name in self.names:
            try:
                self._tell(name, tracked_trial(self.run_info.run, trial_id))
            # somebody else's page: what it missed is counted and said, and the sweep goes on
            except Exception as error:
                self.failed.setdefault(name, []).append(f"{type(error).__name__}: {error}")
            self.sent[name] = {row for row in self.sent.get(name, set()) if row[0] != trial_id}

    def _tell(self, name: str, trial: TrackedTrial) -> None:
        """Tell a tracker what it has not been told of the trial."""
        if name not in self.trackers:
            self.trackers[name] = TRACKERS[name](self.run_info)
        sent = self.sent.setdefault(name, set())
        news = replace(trial, steps=_not_sent(trial, sent))
        tracker = self.trackers[name]
        (tracker.log_points if trial.status == RUNNING else tracker.log_trial)(news)
        sent.update((trial.trial_id, step, key) for step, numbers in news.steps for key in numbers)

    def _close(self) -> None:
        for tracker in self.trackers.values():
            with suppress(Exception):
                tracker.close()


def _not_sent(
    trial: TrackedTrial, sent: Collection[tuple[str, int, str]]
) -> list[tuple[int, dict[str, float]]]:
    """The trial's steps without the numbers that were sent."""
    remaining = (
        (step, {k: v for k, v in numbers.items() if (trial.trial_id, step, k) not in sent})
        for step, numbers in trial.steps
    )
    return [(step, numbers) for step, numbers in remaining if numbers]


def running_trial(
    trial_id: str, settings: Mapping[str, Value], points: Sequence[LivePoint]
) -> TrackedTrial:
    """A trial that runs, with what it has just said."""
    return TrackedTrial(
        trial_id=trial_id,
        cell=cell_of(settings),
        status=RUNNING,
        settings=settings,
        measured={},
        steps=points,
    )


def tracked_trial(run: Path, trial_id: str) -> TrackedTrial:
    """An ended trial of the run folder, as trackers are told it; what is not finite is left out, as
    most of them refuse it.
    """
    trials, evals, steps, curves = (
        pl.read_parquet(run / "trials" / trial_id / f"{table}.parquet")
        for table in ("trials", "evals", "steps", "curves")
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
        steps=_merged([*_steps(steps), *_looks(curves)]),
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


def _looks(curves: pl.DataFrame) -> Iterator[tuple[int, dict[str, float]]]:
    for row in curves.filter(pl.col("kind") == "training").iter_rows(named=True):
        if _finite(row["value"]):
            yield int(row["x"]), {f"training/{row['split']}/{row['metric']}": row["value"]}


def _merged(
    points: Sequence[tuple[int, dict[str, float]]],
) -> list[tuple[int, dict[str, float]]]:
    """One entry per step, in order."""
    by_step: dict[int, dict[str, float]] = {}
    for step, numbers in sorted(points, key=lambda point: point[0]):
        by_step.setdefault(step, {}).update(numbers)
    return list(by_step.items())


def _name(row: Mapping[str, Any]) -> str:
    """`unlearned/forget/probability`, with the attack before the split where there is one."""
    attack = [] if row["attack"] == "none" else [row["attack"]]
    return "/".join([row["stage"], *attack, row["split"], row["metric"]])


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _mlflow_name(name: str) -> str:
    """MLflow allows letters, digits and a few signs in a metric's name."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)
