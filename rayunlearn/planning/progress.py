"""What a person sees while trials run: one live line, or a plain line now and then where there is
no terminal.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rayunlearn.canonical import has_gold
from rayunlearn.config import Objective
from rayunlearn.planning.outcomes import TrialResult, study_goal
from rayunlearn.planning.planner import Agenda, PlannedTrial
from rayunlearn.schema import PAUSED
from rayunlearn.trial.narration import now_doing

PLAIN_EVERY_SECONDS = 60.0
LIVE_EVERY_SECONDS = 0.5
TRIALS_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The sweep at one moment. `best` is the smallest distance to the target (the lowest forgetting
    where there is none, `aim` says which) at or above the utility floor, NaN until there is one; of
    a panel of attacks (`attacking`) the highest forgetting that one left on the model under attack.

    Of tasks of lm-evaluation-harness (`harness`) none is the best.

    `running` says the running trials in words, `handed_out` by id; `n_ready` could run as soon as a
    worker is free, `n_left` of them in this Tune run; `slots` trials have room at once; `seconds`
    are the durations of this session's latest trials; `fatal` says why no more trials are started,
    '' otherwise; `out_of_hours`: no more are, as budget.hours are over; `gpu_hours` are those of
    the trials that ended in this call.
    """

    done: int
    total: int
    failed: int
    running: tuple[str, ...] = ()
    handed_out: tuple[str, ...] = ()
    n_ready: int = 0
    n_left: int = 1
    slots: int = 1
    best: float = math.nan
    aim: str = "none"
    seconds: tuple[float, ...] = ()
    objective: Objective = field(default_factory=Objective)
    fatal: str = ""
    attacking: bool = False
    harness: bool = False
    out_of_hours: bool = False
    gpu_hours: float = 0.0

    @property
    def at_end(self) -> bool:
        """Whether no trial is running and none is ready."""
        return not self.running and self.n_ready == 0

    def with_running(self, running: Sequence[PlannedTrial]) -> "Snapshot":
        """The same with these trials running."""
        return replace(
            self,
            running=tuple(trial_label(planned) for planned in running),
            handed_out=tuple(planned.trial_id for planned in running),
        )

    @property
    def seconds_left(self) -> float:
        """Mean seconds of this session's trials x trials left / trials at once; NaN before the
        first has ended.
        """
        if not self.seconds:
            return math.nan
        return (
            sum(self.seconds)
            / len(self.seconds)
            * (self.total - self.done)
            / max(1, len(self.running))
        )


def snapshot(
    agenda: Agenda,
    results: Mapping[str, TrialResult],
    *,
    seconds: tuple[float, ...],
    objective: Objective,
) -> Snapshot:
    """The agenda and its results in numbers, with nothing running."""
    finished = [
        results[trial_id]
        for trial_id in {row.trial_id for row in agenda.rows}
        if trial_id in results and results[trial_id].status != PAUSED
    ]
    attacking = any(row.trial.attack.name != "none" for row in agenda.rows)
    best, aim = (
        (highest_index(agenda, results), "none")
        if attacking
        else best_of(agenda, results, objective)
    )
    return Snapshot(
        done=len(finished),
        total=agenda.total,
        failed=sum(result.status == "failed" for result in finished),
        best=best,
        aim=aim,
        seconds=seconds,
        objective=objective,
        attacking=attacking,
        harness=any(row.role == "harness" for row in agenda.rows),
    )


def trial_label(planned: PlannedTrial) -> str:
    """A running trial in few words."""
    trial = planned.trial
    if trial.harness.task:
        return f"{trial.harness.task} on {trial.stage}"
    if trial.attack.name != "none":
        return f"{trial.attack.name} on {trial.stage}"
    if trial.stage != "unlearned":
        return f"measure {trial.stage}"
    return f"{planned.role} {trial.method.forget} {trial.select.name} {trial.select.ratio:g}"


def best_of(
    agenda: Agenda, results: Mapping[str, TrialResult], objective: Objective
) -> tuple[float, str]:
    """(Smallest distance to its target of a complete unlearned trial whose utility is at least the
    floor's share of base's, the target's kind).
    """
    rows = {
        row.trial_id: row
        for row in agenda.rows
        if row.trial_id in results and results[row.trial_id].status == "complete"
    }
    base, gold = (
        {pair_label(row): results[row.trial_id] for row in rows.values() if row.role == role}
        for role in ("base", "gold")
    )
    good = []
    for row in rows.values():
        pair, result = pair_label(row), results[row.trial_id]
        if row.role not in ("tuning", "grid") or pair not in base:
            continue
        goal = study_goal(
            objective, base=base[pair], gold=gold.get(pair), with_gold=has_gold(row.trial)
        )
        if goal.target and result.utility >= goal.floor:
            good.append((goal.objective(result), goal.target.kind))
    measured = [entry for entry in good if math.isfinite(entry[0])]
    return min(measured, default=(math.nan, "none"))


def highest_index(agenda: Agenda, results: Mapping[str, TrialResult]) -> float:
    """Highest forgetting metric that an attack left on the model that it attacked, NaN before one
    has ended.
    """
    own_trials = (
        row.trial_id
        for row in agenda.rows
        if row.role in ("tuning", "attack") and row.trial_id in results
    )
    return max(
        (
            value
            for value in (results[trial_id].forgetting for trial_id in own_trials)
            if math.isfinite(value)
        ),
        default=math.nan,
    )


def pair_label(row: PlannedTrial) -> tuple[object, object]:
    """The data and model of a planned trial: trials are compared with the base model of the same
    pair.
    """
    return row.trial.data, row.trial.model


@dataclass(frozen=True)
class PreparationProgress:
    """Models being trained: name -> (steps done, steps planned)."""

    steps: Mapping[str, tuple[int, int]]


View = Snapshot | PreparationProgress


@contextmanager
def watch_progress(console: Console, read: Callable[[], View | None]) -> Iterator[None]:
    """Show what `read` returns until the block ends, from a thread of its own."""
    if not console.is_terminal:
        with plain_lines(console, lambda: status_line(view) if (view := read()) else ""):
            yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_live, args=(console, read, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def status_line(view: View) -> str:
    """One view as one plain line."""
    if isinstance(view, PreparationProgress):
        return "preparing: " + ", ".join(
            f"{name} {100 * done // max(1, planned)}%"
            for name, (done, planned) in sorted(view.steps.items())
        )
    parts = [f"trials {view.done}/{view.total}", f"running {len(view.running)}"]
    if view.failed:
        parts.append(f"{view.failed} failed")
    best = [] if view.harness else [format_best(view)]
    return " · ".join([*parts, *best, time_left(view.seconds_left)])


def format_best(view: Snapshot) -> str:
    """The best trial so far, with the rule it is best under; of attacks, how much the strongest has
    recovered.
    """
    if view.attacking:
        return (
            f"highest {view.objective.forgetting} on forget so far {view.best:.3f}"
            if math.isfinite(view.best)
            else "no attack on an unlearned model has ended yet"
        )
    rule = (
        f"{view.objective.utility} on {view.objective.utility_split} at least"
        f" {view.objective.utility_floor:g} x base"
    )
    away = "" if view.aim == "none" else f" away from {view.aim}"
    return (
        f"best so far {view.objective.forgetting} {view.best:.3f}{away} ({rule})"
        if math.isfinite(view.best)
        else f"no trial keeps enough utility yet ({rule})"
    )


def time_left(seconds: float) -> str:
    """`about 3 min left`; `time left: not known yet` for NaN."""
    if not math.isfinite(seconds):
        return "time left: not known yet"
    return f"{format_duration(seconds)} left"


def format_duration(seconds: float) -> str:
    """`about 3 min`; `time unknown` for NaN."""
    if not math.isfinite(seconds):
        return "time unknown"
    if seconds < 90:
        return f"about {math.ceil(seconds)} s"
    return (
        f"about {math.ceil(seconds / 60)} min"
        if seconds < 5400
        else f"about {seconds / 3600:.1f} h"
    )


class PlainLines:
    """What is said where there is no terminal: a line a minute, also while nothing changes.

    Example:
        >>> lines = PlainLines()
        >>> lines.due("preparing: base 0%", now=0.0), lines.due("preparing: base 1%", now=30.0)
        ('preparing: base 0%', '')
        >>> lines.due("preparing: base 1%", now=60.0)
        'preparing: base 1%'
        >>> lines.due("preparing: base 1%", now=120.0)
        'preparing: base 1% (unchanged for 1 min)'
    """

    def __init__(self, *, since: float = -math.inf) -> None:
        self._last, self._changed, self._printed = "", 0.0, since

    def due(self, line: str, *, now: float) -> str:
        """The line as it is to be printed now, '' for none."""
        if now - self._printed < PLAIN_EVERY_SECONDS:
            return ""
        self._printed = now
        if line != self._last:
            self._last, self._changed = line, now
            return line
        return f"{line} (unchanged for {(now - self._changed) / 60:.0f} min)"


@contextmanager
def plain_lines(
    console: Console, read: Callable[[], str], *, at_once: bool = True
) -> Iterator[None]:
    """Print what `read` returns ('': nothing yet) once a minute until the block ends, from a thread
    of its own, the first time `at_once` or after a minute.
    """
    stop = threading.Event()
    lines = PlainLines(since=-math.inf if at_once else time.monotonic())

    def speak() -> None:
        while not stop.wait(LIVE_EVERY_SECONDS):
            if (line := read()) and (due := lines.due(line, now=time.monotonic())):
                now_doing("")
                console.print(due, soft_wrap=True, highlight=False)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _live(console: Console, read: Callable[[], View | None], stop: threading.Event) -> None:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while not stop.wait(LIVE_EVERY_SECONDS):
            view = read()
            if view is not None:
                now_doing("")
                live.update(_render_view(view), refresh=True)


def _render_view(view: View) -> RenderableType:
    if isinstance(view, PreparationProgress):
        return bars({f"training {name}": steps for name, steps in sorted(view.steps.items())})
    return Group(
        bars({f"trials {view.done}/{view.total}": (view.done, view.total)}),
        Text("  " + " · ".join(status_line(view).split(" · ")[1:])),
        *trial_lines(view),
    )


def trial_lines(view: Snapshot) -> list[Text]:
    """A line for every trial that runs, as many as a screen has room for, and one for those that
    could run.
    """
    lines = [f"running  {label}" for label in view.running[:TRIALS_SHOWN]]
    more = len(view.running) - len(lines)
    lines += [f"running  {more} more"] if more > 0 else []
    lines += [f"ready    {view.n_ready}"] if view.n_ready else []
    return [Text(f"  {line}", style="dim", overflow="ellipsis", no_wrap=True) for line in lines]


def bars(steps: Mapping[str, tuple[int, int]]) -> Table:
    """A bar for each name, with its (done, planned)."""
    grid = Table.grid(padding=(0, 1))
    for name, (done, planned) in steps.items():
        grid.add_row(
            Text(name),
            ProgressBar(total=max(1, planned), completed=done, width=40),
            Text(f"{100 * done // max(1, planned):3d}%"),
        )
    return grid
