"""The part of a sweep that needs Ray: prepare models side by side, then one Tune run over
everything that is left.
"""

import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from rayunlearn.cluster.gauges import SweepGauges
from rayunlearn.cluster.searcher import LedgerSearch
from rayunlearn.cluster.session import ConcurrencyLimit, smallest_gpu, trial_resources
from rayunlearn.cluster.trackers import RunInfo, TrackerCallback
from rayunlearn.cluster.trainable import TrialActor, forward_warnings, limit_threads
from rayunlearn.config import NO_RUNGS, Trial
from rayunlearn.errors import UserError
from rayunlearn.planning.backend import TrialBackend
from rayunlearn.planning.gpu_memory import gpu_share
from rayunlearn.planning.outcomes import TrialResult
from rayunlearn.planning.plan_run import PlanRun
from rayunlearn.planning.progress import PreparationProgress, Snapshot, View, watch_progress
from rayunlearn.storage.scratch import scratch_folder
from rayunlearn.storage.sync import run_ready
from rayunlearn.train.live import LivePoint
from rayunlearn.trial.workspace import data_model_pair

# as Ray's dashboard shows it
TRIAL_ACTOR = "UnlearningTrial"
# what lost its worker is started again this often
WORKER_DEATHS = 2

# Tune keeps every trial it ran; a longer sweep is several Tune runs, so that memory ends with each
# (a choice, not measured)
TRIALS_PER_TUNE = 2000


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """What every worker needs beside the trial: plain values, so that it can be anywhere."""

    work: TrialBackend
    run: str
    experiment: str
    version: str
    commit: str
    track: tuple[str, ...] = ()
    processes: int = 1
    trial_hours: float = 0.0


class ProgressActor:
    """A place on the cluster where whoever works leaves word for whoever watches.

    A board that was lost comes back empty: what is out at the first view it is then given is taken
    to have begun. Every view of a sweep is shown as Ray's metrics too.
    """

    def __init__(self, experiment: str = "", version: str = "") -> None:
        self.gauges = SweepGauges(experiment, version)
        self.view: View | None = None
        self.began: set[str] = set()
        self.warnings: list[str] = []
        self.points: list[tuple[str, LivePoint]] = []
        self.lost = bool(ray.get_runtime_context().was_current_actor_reconstructed)

    def put(self, view: View) -> None:
        """Leave a view."""
        if self.lost and isinstance(view, Snapshot):
            self.lost = False
            self.began.update(view.handed_out)
        self.view = view
        if isinstance(view, Snapshot):
            self.gauges.show(view)

    def step(self, name: str, done: int, planned: int) -> None:
        """Leave word of one model's training."""
        steps = dict(self.view.steps) if isinstance(self.view, PreparationProgress) else {}
        self.view = PreparationProgress(steps | {name: (done, planned)})

    def begin(self, trial_id: str) -> None:
        """Note that a worker has begun a trial."""
        self.began.add(trial_id)

    def all_began(self) -> bool:
        """Whether every trial that was handed out and has room has begun on a worker."""
        if not isinstance(self.view, Snapshot):
            return True
        waiting = sum(trial_id not in self.began for trial_id in self.view.handed_out)
        return waiting <= max(0, len(self.view.handed_out) - self.view.slots)

    def pause_is_over(self) -> bool:
        """Whether a paused worker should come back for a trial: one is ready, or none runs that
        could make one ready.
        """
        return (
            not isinstance(self.view, Snapshot)
            or self.view.n_ready > 0
            or self.view.at_end
            or self.view.n_left <= 0
        )

    def read(self) -> View | None:
        """The latest view, None before there is one."""
        return self.view

    def put_points(self, trial_id: str, points: Sequence[LivePoint]) -> None:
        """Leave what a trial's training says."""
        self.points += [(trial_id, point) for point in points]

    def take_points(self) -> list[tuple[str, LivePoint]]:
        """What was left since the last call: (trial, point), in order."""
        points, self.points = self.points, []
        return points

    def warn(self, text: str) -> None:
        """Leave a line for the driver to print."""
        self.warnings.append(text)

    def take_warnings(self) -> list[str]:
        """The lines that were left since the last call."""
        lines, self.warnings = self.warnings, []
        return lines


def run_searcher(
    plan: PlanRun,
    results: dict[str, TrialResult],
    *,
    commit: str,
    trials: Collection[Trial],
    planned: Sequence[Trial],
) -> bool:
    """Prepare what `trials` need, then run everything the plan asks for; results are in the run
    folder afterwards.

    Where nobody said how much of a GPU a trial takes, it is what the largest of `planned` needs,
    and said on the console.

    Returns whether nothing was left to run or budget.hours are over: Ctrl-C while trials run makes
    Tune return early, while preparing it raises KeyboardInterrupt. Raises UserError when results
    could no longer be written, and before anything is scheduled for a trial too large for a GPU.
    """
    experiment = plan.planner.experiment
    options, board = plan.options, start_progress_actor(experiment.name, experiment.version)
    share = partial(fitting_share, plan, planned) if options.processes == 1 else whole_gpu
    resources = trial_resources(gpus_per_trial=options.gpus_per_trial, share=share, on=options.on)
    with printed_warnings(plan.console, board), watch_progress(plan.console, lambda: _read(board)):
        prepare_all(
            trials,
            plan.cache,
            work=plan.work,
            board=board,
            resources=trial_resources(gpus_per_trial=options.gpus_per_trial),
        )
        job = _job_of(plan, commit)
        workspaces = {
            data_model_pair(trial): plan.work.workspace(trial, plan.cache) for trial in trials
        }
        parameters = {"job": job, "workspaces": workspaces, "board": board}
        _tune_until_done(plan, results, parameters, resources)
    view = ray.get(board.read.remote())
    if isinstance(view, Snapshot) and view.fatal:
        raise UserError(view.fatal)
    return isinstance(view, Snapshot) and (view.at_end or view.out_of_hours)


def _job_of(plan: PlanRun, commit: str) -> SweepJob:
    experiment = plan.planner.experiment
    return SweepJob(
        work=plan.work,
        run=str(plan.run),
        experiment=experiment.name,
        version=experiment.version,
        commit=commit,
        track=experiment.track,
        processes=plan.options.processes,
        trial_hours=experiment.budget.trial_hours,
    )


def _tune_until_done(
    plan: PlanRun,
    results: dict[str, TrialResult],
    parameters: dict[str, Any],
    resources: dict[str, float],
) -> None:
    """Tune runs of at most TRIALS_PER_TUNE trials, one after another, until nothing is left."""
    job, options = parameters["job"], plan.options
    # the searcher is then a copy over there, and what it learns does not come back
    far_away = ray.util.client.ray.is_connected()
    at_most = sys.maxsize if far_away else TRIALS_PER_TUNE
    together = {name: job.processes * amount for name, amount in resources.items()}
    while True:
        slots = ConcurrencyLimit(together, options.workers, options.on)
        search = LedgerSearch(
            plan.planner,
            results,
            plan.run,
            parameters["board"],
            slots,
            at_most=at_most,
            seconds_left=plan.over_at - time.monotonic(),
            gpus=together.get("gpu", 0.0),
        )
        callbacks = [tracker_callback(job, plan.run, parameters["board"])] if job.track else []
        run_tune(
            search, parameters, resources=resources, processes=job.processes, callbacks=callbacks
        )
        results = search.results
        # running here: Ctrl-C
        if search.left > 0 or search.running or not search.ready or search.fatal:
            return


def tracker_callback(job: SweepJob, run: Path, board: Any) -> TrackerCallback:
    """What tells the trackers: live from the board, and at each trial's end."""
    run_info = RunInfo(run, job.experiment, job.version)
    return TrackerCallback(job.track, run_info, lambda: ray.get(board.take_points.remote()))


def start_progress_actor(experiment: str = "", version: str = "") -> Any:
    """A board beside the driver, so that no other machine's end takes it along; it comes back if
    its own process is killed.
    """
    on_driver = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=on_driver
    )(ProgressActor).remote(experiment, version)


@contextmanager
def printed_warnings(console: Console, board: Any) -> Iterator[None]:
    """Print what workers warned of, a line each, when the block ends, however it ends."""
    try:
        yield
    finally:
        # the cluster may be gone already
        with suppress(ray.exceptions.RayError):
            for line in ray.get(board.take_warnings.remote(), timeout=5):
                console.print(line, highlight=False, markup=False, soft_wrap=True)


def fitting_share(plan: PlanRun, planned: Sequence[Trial]) -> float:
    """The share of a GPU that the largest planned trial needs; a whole one where no worker can say
    how large a GPU is.
    """
    gpu = smallest_gpu(plan.work.gpu_bytes, plan.options.on)
    if gpu == 0:
        return 1.0
    share, words = gpu_share(plan.work.gpu_memory_of(planned, plan.run), gpu)
    plan.console.print(words, highlight=False, soft_wrap=True)
    return share


def whole_gpu() -> float:
    """What each of several processes takes: a trial that needs several GPUs shares none."""
    return 1.0


def prepare_only(
    trials: Collection[Trial],
    cache: Path,
    *,
    work: TrialBackend,
    gpus_per_trial: float | None,
    console: Console,
) -> None:
    """Teach what is missing, and show it."""
    board = start_progress_actor()
    with printed_warnings(console, board), watch_progress(console, lambda: _read(board)):
        prepare_all(
            trials,
            cache,
            work=work,
            board=board,
            resources=trial_resources(gpus_per_trial=gpus_per_trial),
        )


def prepare_all(
    trials: Iterable[Trial],
    cache: Path,
    *,
    work: TrialBackend,
    board: Any,
    resources: dict[str, float],
) -> None:
    """Teach every missing base and gold model, each as its own task, side by side."""
    # max_calls: the process ends with its task, so that what it loaded is not held while the trials
    # run.
    task = ray.remote(
        num_cpus=1, num_gpus=resources.get("gpu", 0), max_retries=WORKER_DEATHS, max_calls=1
    )(prepare_one)
    pairs = list({data_model_pair(trial): trial for trial in trials}.values())
    missing = [
        (trial, role, _model_name(role, trial, number if len(pairs) > 1 else 0))
        for number, trial in enumerate(pairs, 1)
        for role in work.missing(trial, cache)
    ]
    try:
        ray.get(
            [
                task.remote(work, trial, str(cache), role, name, board)
                for trial, role, name in missing
            ]
        )
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from error
        raise


def prepare_one(
    work: TrialBackend, trial: Trial, cache: str, role: str, name: str, board: Any
) -> None:
    """One model, on a worker."""
    work.preload()
    limit_threads()
    forward_warnings(board)
    run_ready(Path(cache))
    work.prepare(
        trial, Path(cache), lambda _, done, planned: board.step.remote(name, done, planned), (role,)
    )


def run_tune(
    search: LedgerSearch,
    parameters: dict[str, Any],
    *,
    resources: dict[str, float],
    processes: int,
    callbacks: list[tune.Callback],
) -> None:
    """One Tune run: reused actors, no checkpoints, no loggers; its own files go to a temporary
    folder. The searcher says how wide.
    """
    bundle = {
        name.upper() if name in ("cpu", "gpu") else name: amount
        for name, amount in resources.items()
    }
    bundles = resources if processes == 1 else tune.PlacementGroupFactory([bundle] * processes)
    trainable = tune.with_resources(tune.with_parameters(TrialActor, **parameters), bundles)
    name_plainly(trainable)
    with scratch_folder("tune") as folder:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=search,
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(folder),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=WORKER_DEATHS),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=callbacks,
            ),
        )
        tuner.fit()


def name_plainly(trainable: type) -> None:
    """Give an actor's class the name that Ray's dashboard and `ps` show, instead of that of Tune's
    inner class. It is no name of a module here: the class travels by its content.
    """
    trainable.__name__ = trainable.__qualname__ = TRIAL_ACTOR


def _model_name(role: str, trial: Trial, number: int) -> str:
    return f"{role} of {trial.data.name}" + (f" {number}" if number else "")


def _trial_name(trial: Any) -> str:
    # a trial that goes on from a rung is another one to Tune
    return f"{trial.config['trial_id']}-{trial.config.get('rungs', NO_RUNGS).until:g}"


def _read(board: Any) -> View | None:
    view: View | None = None
    # the cluster may be gone already; the line just stays as it was
    with suppress(ray.exceptions.RayError):
        view = ray.get(board.read.remote(), timeout=5)
    return view
