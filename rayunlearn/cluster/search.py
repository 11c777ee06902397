"""The searcher: Tune asks it for trials, it asks the plan, and the ledger in Parquet is its only memory."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.tune.search import Searcher

from rayunlearn.cluster.progress import snapshot
from rayunlearn.config import flatten
from rayunlearn.errors import UserError
from rayunlearn.plan import Agenda, Planned, Plans, Result, result_of
from rayunlearn.results.store import write_trial


class LedgerSearch(Searcher):
    """Hands out each ready trial once, waits while a batch is out, and is finished when nothing is left to run.

    While it waits it hands out pauses: Tune ends all idle actors but one (Ray 2.60), and an actor that has loaded a
    model is dear. A pause is a Tune trial in which nothing runs, and it is over as soon as a trial is ready.

    board: handle of a `runner.Board`; holds a Snapshot of every change before the change takes effect.
    """

    def __init__(self, planner: Plans, results: dict[str, Result], run: Path, board: Any) -> None:
        super().__init__(metric=None, mode=None)
        self.planner = planner
        self.results = dict(results)
        self.run = run
        self.board = board
        self.running: dict[str, tuple[Planned, float]] = {}
        self.pauses: set[str] = set()
        self.seconds: list[float] = []
        self.fatal = ""
        self.agenda = self._look()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next ready trial; a pause or None while results are awaited; FINISHED when there is nothing to wait for."""
        ready = [] if self.fatal else self._ready()
        if ready:
            self.running[trial_id] = (ready[0], time.monotonic())
            self._show()
            return {"trial": ready[0].trial, "trial_id": ready[0].trial_id}
        if not self.running:
            return Searcher.FINISHED
        if self.fatal or len(self.pauses) >= self.agenda.waiting:
            return None
        self.pauses.add(trial_id)
        return {"trial": None, "trial_id": f"pause-{trial_id}"}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take the trial's result from its folder; a worker that died for good left none, so a row is written here."""
        self.pauses.discard(trial_id)
        if trial_id not in self.running:
            return
        planned, started = self.running.pop(trial_id)
        self.fatal = self.fatal or str((result or {}).get("mistake", ""))
        try:
            if not self.fatal:
                self._take(planned, time.monotonic() - started)
        except UserError as mistake:  # a full disk: nothing more can be recorded, so nothing more is started
            self.fatal = str(mistake)
        self._show()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial reports once, at its end."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the plan follows from the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

    def _take(self, planned: Planned, seconds: float) -> None:
        ended = result_of(self.run, planned.trial_id, self.planner.experiment.objective)
        self.results[planned.trial_id] = ended if ended is not None else self._write_death(planned)
        if planned.trial.stage == "unlearned":
            self.seconds.append(seconds)
        self.agenda = self._look()

    def _ready(self) -> list[Planned]:
        taken = {planned.trial_id for planned, _ in self.running.values()}
        return [row for row in self.agenda.ready if row.trial_id not in taken]

    def _look(self) -> Agenda:
        agenda = self.planner.agenda(self.results)
        self.planner.keep(self.run, agenda)
        return agenda

    def _show(self) -> None:
        running = [planned for planned, _ in self.running.values()]
        objective = self.planner.experiment.objective
        seconds, n_ready = tuple(self.seconds), len(self._ready())
        view = snapshot(self.agenda, self.results, running, n_ready=n_ready, seconds=seconds, objective=objective)
        ray.get(self.board.put.remote(replace(view, fatal=self.fatal)))

    def _write_death(self, planned: Planned) -> Result:
        experiment = self.planner.experiment
        row = {
            "experiment": experiment.name,
            "version": experiment.version,
            "status": "failed",
            "error_type": "WorkerDied",
            "error": "the worker process ended three times before the trial did (killed, or out of memory)",
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_trial(self.run, planned.trial_id, {"trials": [row]}, flatten(planned.trial))
        return Result("failed")
