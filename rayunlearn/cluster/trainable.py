"""The worker: a reused Tune actor whose one step is one whole trial."""

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune

from rayunlearn.cluster.process_group import rank_workers, run_with_ranks
from rayunlearn.config import NO_RUNGS, Rungs
from rayunlearn.errors import UserError
from rayunlearn.schema import FINISHED, PAUSED
from rayunlearn.storage.run import rung_of, send_unsent, status_of
from rayunlearn.storage.sync import run_ready
from rayunlearn.train.live import LivePoint, listening

# how long a worker waits for the actor that keeps the progress, and for other workers to begin
PROGRESS_ACTOR_SECONDS = 60.0


class TrialActor(tune.Trainable):
    """Runs one trial per configuration and is then given the next: imports and base weights are
    paid for once.

    When a trial ends, Tune gives its actor to the next trial even if that trial's own actor is
    still starting, and kills the starting one. Trials shorter than an actor's start (seconds, with
    torch) would so keep a whole cluster on a single worker for ever (Ray 2.60). Therefore a trial's
    end is reported only when no actor is starting.
    """

    def setup(
        self, config: dict[str, Any], *, job: Any, workspaces: dict[Any, Any], board: Any
    ) -> None:
        """`job` is a `tune_runner.SweepJob`; `workspaces` by (data, model); `board` a handle of
        `tune_runner.ProgressActor`.
        """
        self.job, self.workspaces, self.board = job, workspaces, board
        job.work.preload()
        forward_warnings(board)
        self.companions = rank_workers(job.processes, job.work.preload)
        self.patient = True
        wait_for_start(Path(job.run), job.version)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial; nothing of the last one is kept here."""
        self.trial, self.trial_id_here = new_config["trial"], new_config["trial_id"]
        self.rungs = new_config.get("rungs", NO_RUNGS)
        self.shorter = new_config.get("shorter", ())
        return True

    def step(self) -> dict[str, Any]:
        """Run the trial to its end. What it found is in its folder;
        Tune only hears how it ended.
        """
        if self.trial is None:
            pause_seconds(self.board)
            return {"done": True, "status": "pause"}
        limit_threads()
        limit_memory()
        self.board.begin.remote(self.trial_id_here)
        report = self.report()
        self.patient = self.patient and others_have_started(self.board)
        return {"done": True, **report}

    def report(self) -> dict[str, str]:
        """Run the trial, unless a worker did that was lost before it could say so; how it ended, or
        what no second try would mend.
        """
        job, run = self.job, Path(self.job.run)
        status = status_of(run, self.trial_id_here)
        waits = status == PAUSED and rung_of(run, self.trial_id_here) >= self.rungs.until
        if status in FINISHED or waits:
            return {"status": status}
        workspace = self.workspaces[(self.trial.data, self.trial.model)]
        live = listening(self.send_points) if job.track else nullcontext()
        work = partial(
            run_trial_in, job, self.trial, workspace, rungs=self.rungs, shorter=self.shorter
        )
        try:
            with live:
                return {"status": run_with_ranks(self.companions, work, run)}
        # its row could not be written (a full disk)
        except UserError as mistake:
            return {"mistake": str(mistake)}

    def send_points(self, points: Sequence[LivePoint]) -> None:
        """Leave on the board what a training says while it runs; nobody waits for it."""
        self.board.put_points.remote(self.trial_id_here, list(points))


class WarningForwarder(logging.Handler):
    """Leaves the warnings of this process on the board, from where the driver prints them: what a
    worker writes to its terminal nobody sees.
    """

    def __init__(self, board: Any) -> None:
        super().__init__(logging.WARNING)
        self.board = board

    def emit(self, record: logging.LogRecord) -> None:
        """Wait until the board has it: this process may end at once."""
        with suppress(ray.exceptions.RayError):
            ray.get(self.board.warn.remote(record.getMessage()), timeout=PROGRESS_ACTOR_SECONDS)


def forward_warnings(board: Any) -> None:
    """Send the warnings of rayunlearn in this process to the driver."""
    logging.getLogger("rayunlearn").handlers = [WarningForwarder(board)]


def run_trial_in(
    job: Any, trial: Any, workspace: Any, run: Path, *, rungs: Rungs, shorter: Sequence[Any] = ()
) -> str:
    """The trial, as far as its rungs let it; its rows and those of shorter ones go to `run`."""
    columns = (job.experiment, job.version, job.commit, job.trial_hours)
    if shorter and job.processes == 1 and job.work.run_lengths is not None:
        return str(job.work.run_lengths((*shorter, trial), workspace, run, *columns))
    return str(job.work.run(trial, workspace, run, *columns, rungs))


def wait_for_start(run: Path, version: str) -> None:
    """Make this machine's folder of the run; what ended here under an earlier driver and is not
    under the URL is put there.
    """
    run_ready(run)
    if version != "dev":
        send_unsent(run)


def pause_seconds(board: Any) -> None:
    """Do nothing until there is something to do."""
    while not ray.get(board.pause_is_over.remote()):
        time.sleep(0.1)


def others_have_started(board: Any) -> bool:
    """Wait until every trial that was handed out has begun; False if a minute was not enough (a
    busy cluster).
    """
    deadline = time.monotonic() + PROGRESS_ACTOR_SECONDS
    while time.monotonic() < deadline:
        if ray.get(board.all_began.remote()):
            return True
        time.sleep(0.1)
    return False


def limit_memory() -> None:
    """No more of a GPU than Ray gave this actor: a trial that needs more fails by itself, not its
    neighbour.
    """
    memory = sys.modules.get("rayunlearn.models.device_memory")
    if memory is not None:
        memory.limit_share(ray.get_runtime_context().get_assigned_resources().get("GPU", 1.0))


def limit_threads() -> None:
    """One torch thread per trial: two trials with one thread each beat one with two."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
