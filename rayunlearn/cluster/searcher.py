"""The searcher: Tune asks it for trials, it asks the plan, and the ledger in Parquet is its only
memory.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.tune.search import Searcher

from rayunlearn.config import flatten
from rayunlearn.errors import UserError
from rayunlearn.planning.lengths import by_longest
from rayunlearn.planning.outcomes import TrialResult, trial_result
from rayunlearn.planning.planner import Agenda, PlannedTrial, PlanSource
from rayunlearn.planning.progress import Snapshot, snapshot
from rayunlearn.schema import PRUNED
from rayunlearn.storage.parquet import retry_transient
from rayunlearn.storage.run import end_as_pruned, write_trial
from rayunlearn.trial.time_limit import SECONDS_PER_HOUR

# trials whose durations tell the time that is left
RECENT_SECONDS = 200

# share of the driver's time that may go into counting what is done for the progress line
STATUS_COUNTS = 0.05


class LedgerSearch(Searcher):
    """Hands out each ready trial once, waits while a batch is out, and is finished when nothing is
    left to run.

    While it waits it hands out pauses: Tune ends all idle actors but one (Ray 2.60), and an actor
    that has loaded a model is dear. A pause is a Tune trial in which nothing runs, and it is over
    as soon as a trial is ready.

    board: handle of a `tune_runner.ProgressActor`; holds a Snapshot of every change before the
    change takes effect. slots: how many trials may be out now; asked again and again, so machines
    that join are used. at_most: trials that this searcher hands out before it is finished, with the
    rest still to be done. seconds_left: after which it hands out no more, counted from the first
    that it is asked for; gpus: of each trial. Trials that differ in their length alone are handed
    out as one training (`planning.lengths`), and those that it did not measure once more. What it
    does per trial does not grow with their
    number: the plan is asked again only when a result may have changed it.
    """

    def __init__(
        self,
        planner: PlanSource,
        results: dict[str, TrialResult],
        run: Path,
        board: Any,
        slots: Callable[[], int],
        *,
        at_most: int,
        seconds_left: float = math.inf,
        gpus: float = 0.0,
    ) -> None:
        super().__init__(metric=None, mode=None)
        self.planner = planner
        self.results = dict(results)
        self.run = run
        self.board = board
        self.slots = slots
        self.left = at_most
        self.seconds_left, self.deadline = seconds_left, math.nan
        self.gpus, self.gpu_seconds = gpus, 0.0
        self.shorter: dict[str, tuple[PlannedTrial, ...]] = {}
        self.running: dict[str, tuple[PlannedTrial, float]] = {}
        self.ready: dict[str, PlannedTrial] = {}
        self.open: dict[tuple[str, str], set[str]] = {}
        self.pauses: set[str] = set()
        self.seconds: deque[float] = deque(maxlen=RECENT_SECONDS)
        self.fatal = ""
        self.counted, self.count_again_at = Snapshot(done=0, total=0, failed=0), 0.0
        self.agenda = self._refresh_agenda()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next ready trial; a pause or None while results are awaited; FINISHED when there is
        nothing to wait for.
        """
        slots = self.slots()
        out_of_hours = self._is_out_of_hours()
        may_start = bool(self.ready) and self.left > 0 and not self.fatal and not out_of_hours
        # else a pause ends first, and its actor takes the trial
        if may_start and len(self.running) + len(self.pauses) < slots:
            planned = self.ready.pop(next(iter(self.ready)))
            self.running[trial_id] = (planned, time.monotonic())
            self.left -= 1
            self._show(slots)
            return {
                "trial": planned.trial,
                "trial_id": planned.trial_id,
                "rungs": planned.rungs,
                "shorter": tuple(row.trial for row in self.shorter.get(planned.trial_id, ())),
            }
        if not self.running:
            return Searcher.FINISHED
        if (
            may_start
            or self.fatal
            or out_of_hours
            or self.left <= 0
            or len(self.pauses) >= min(self._n_waiting, slots - len(self.running))
        ):
            return None
        self.pauses.add(trial_id)
        return {"trial": None, "trial_id": f"pause-{trial_id}"}

    @property
    def _n_waiting(self) -> int:
        """Trials that something which is still to come lets begin, or go on."""
        return self.agenda.waiting + self.agenda.paused

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take the trial's result from its folder; a worker that died for good left none, so a row
        is written here.
        """
        self.pauses.discard(trial_id)
        if trial_id not in self.running:
            return
        planned, started = self.running.pop(trial_id)
        self.gpu_seconds += self.gpus * (time.monotonic() - started)
        self.fatal = self.fatal or str((result or {}).get("mistake", ""))
        try:
            if not self.fatal:
                self._take(planned, time.monotonic() - started, reported=bool(result) and not error)
        # a full disk: nothing more can be recorded, so nothing more is started
        except UserError as mistake:
            self.fatal = str(mistake)
        self._show(self.slots())

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial reports once, at its end."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the plan follows from the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

    def _take(self, planned: PlannedTrial, seconds: float, *, reported: bool) -> None:
        result = self._result_of(planned, reported=reported)
        self.results[planned.trial_id] = (
            result if result is not None else self._write_death(planned)
        )
        if planned.trial.stage == "unlearned":
            self.seconds.append(seconds)
        self._take_shorter(planned)
        if self._may_change_the_plan(planned.trial_id):
            self.agenda = self._refresh_agenda()

    def _take_shorter(self, planned: PlannedTrial) -> None:
        """Take what was measured on the trial's way; what was not is ready once more."""
        missed = []
        for row in self.shorter.pop(planned.trial_id, ()):
            result = trial_result(self.run, row.trial_id, self.planner.experiment.objective)
            if result is None:
                missed.append(row)
            else:
                self.results[row.trial_id] = result
        self._add_ready(missed)

    def _add_ready(self, rows: Iterable[PlannedTrial]) -> None:
        joined = by_longest(rows)
        self.ready |= {row.trial_id: row for row, _ in joined}
        self.shorter |= {row.trial_id: shorter for row, shorter in joined if shorter}

    def _result_of(self, planned: PlannedTrial, *, reported: bool) -> TrialResult | None:
        """What the trial's folder says, None where its worker died. A folder that a worker has
        written may show here later.
        """

        def read_result() -> TrialResult | None:
            goal = self.planner.experiment
            result = trial_result(
                self.run,
                planned.trial_id,
                goal.objective,
                with_curves=bool(goal.budget.rung_shares),
            )
            if result is None and reported:
                raise FileNotFoundError(f"{self.run / 'trials' / planned.trial_id} is not there")
            return result

        return retry_transient(f"see trial {planned.trial_id} of {self.run}", read_result)

    def _may_change_the_plan(self, trial_id: str) -> bool:
        """Whether this was the last of its batch of tuning trials, or measured a base or gold that
        tuning waits for; nothing else does.
        """
        last = False
        for ids in self.open.values():
            if trial_id in ids:
                ids.remove(trial_id)
                last = last or not ids
        return last and self._n_waiting > 0

    def _refresh_agenda(self) -> Agenda:
        agenda = self.planner.agenda(self.results)
        for planned in agenda.pruned:
            end_as_pruned(self.run, planned.trial_id)
            result = self.results[planned.trial_id]
            self.results[planned.trial_id] = replace(result, status=PRUNED)
        self.planner.write_plan(self.run, agenda)
        running = {planned.trial_id for planned, _ in self.running.values()}
        for row, _ in self.running.values():
            running |= {other.trial_id for other in self.shorter.get(row.trial_id, ())}
        self.ready, self.shorter = (
            {},
            {name: rows for name, rows in self.shorter.items() if name in running},
        )
        self._add_ready(row for row in agenda.ready if row.trial_id not in running)
        self.open = {}
        out = running | self.ready.keys()
        for row in agenda.rows if agenda.waiting + agenda.paused else ():
            if row.role in ("tuning", "base", "gold") and row.trial_id in out:
                batch = (row.study, "") if row.role == "tuning" else ("", row.trial_id)
                self.open.setdefault(batch, set()).add(row.trial_id)
        return agenda

    def _show(self, slots: int) -> None:
        running = [planned for planned, _ in self.running.values()]
        if time.monotonic() >= self.count_again_at or not running:
            started = time.monotonic()
            self.counted = snapshot(
                self.agenda,
                self.results,
                seconds=tuple(self.seconds),
                objective=self.planner.experiment.objective,
            )
            self.count_again_at = time.monotonic() + (time.monotonic() - started) / STATUS_COUNTS
        view = replace(
            self.counted,
            fatal=self.fatal,
            slots=slots,
            n_ready=len(self.ready),
            n_left=self.left,
            out_of_hours=self._is_out_of_hours(),
            gpu_hours=self.gpu_seconds / SECONDS_PER_HOUR,
        ).with_running(running)
        ray.get(self.board.put.remote(view))

    def _is_out_of_hours(self) -> bool:
        """Whether the time is over; it begins where this is first asked, maybe another machine than
        where the searcher was made.
        """
        now = time.monotonic()
        if math.isnan(self.deadline):
            self.deadline = now + self.seconds_left
        return now >= self.deadline

    def _write_death(self, planned: PlannedTrial) -> TrialResult:
        experiment = self.planner.experiment
        row = {
            "experiment": experiment.name,
            "version": experiment.version,
            "status": "failed",
            "error_type": "WorkerDied",
            "error": (
                "the worker process ended three times before the trial did (killed, or out of"
                " memory)"
            ),
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_trial(self.run, planned.trial_id, {"trials": [row]}, flatten(planned.trial))
        return TrialResult("failed")
