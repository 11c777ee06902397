"""A sweep from its first line to its last: what is finished stays, what is missing runs, and the
folder is closed.

Ray is imported only when something is left to run.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import polars as pl
from rich.console import Console

import rayunlearn
from rayunlearn.config import Trial, flatten
from rayunlearn.errors import require
from rayunlearn.experiment import TRACKER_NAMES, Experiment
from rayunlearn.planning.backend import TrialBackend
from rayunlearn.planning.changed_code import changed_line, changed_trials, remove_trial_folders
from rayunlearn.planning.outcomes import TrialResult, trial_results
from rayunlearn.planning.plan_run import Options, PlanRun
from rayunlearn.planning.planner import Agenda, Planner, PlanSource
from rayunlearn.planning.run_tables import run_folder, write_corpora, write_settings
from rayunlearn.planning.time_budget import (
    ended_for_good,
    hours_note,
    seconds_left,
    seconds_used,
    without_ended_too_early,
)
from rayunlearn.planning.winners import require_same_winners
from rayunlearn.schema import FINISHED, PRUNED, TIMED_OUT
from rayunlearn.storage.lock import create_run_folder, run_lock
from rayunlearn.storage.run import (
    compact,
    read_experiment,
    remove_checkpoints,
    remove_scratch,
    scan_trials,
)
from rayunlearn.trial.narration import ending, now_doing
from rayunlearn.trial.provenance import commit_of
from rayunlearn.trial.workspace import data_model_pair


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """How a sweep ended. `statuses` counts the planned trials that ended; `ran` are those that ran
    in this call.
    """

    run: Path
    total: int
    statuses: Mapping[str, int] = field(default_factory=dict)
    ran: int = 0
    interrupted: bool = False
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """Planned trials that ended and need not run again."""
        ended = (*FINISHED, TIMED_OUT, PRUNED)
        return sum(count for status, count in self.statuses.items() if status in ended)


def sweep(
    experiment: Experiment, output: Path, *, work: TrialBackend, options: Options, console: Console
) -> SweepResult:
    """Run every planned trial that has not finished, each once, and write the run's tables.

    Trials that failed in an earlier call run again. Raises UserError for a bad config, before
    anything is scheduled, for a run that another driver holds, and for a disk that is full.
    """
    started = time.monotonic()
    check_trackers(experiment.track)
    planner = Planner(experiment, work.check, work.identify, work.notes_of)
    # a mistake in the experiment shows here, before a folder is made
    planner.agenda({})
    plan = PlanRun(
        planner=planner,
        run=run_folder(output, experiment).resolve(),
        cache=(output / "cache").resolve(),
        work=work,
        options=options,
        console=console,
    )
    with run_lock(plan.run) as still_ours:
        create_run_folder(plan.run, version=experiment.version)
        require_same_winners(plan.run, experiment)
        before = cached_results(plan.run, experiment)
        agenda = _agenda_with_changed(plan, before)
        refuse_a_changed_corpus(plan.run, agenda, plan.cache, work)
        # `attack`, `studies` and `report` read them while the sweep runs, and after its death
        planner.write_plan(plan.run, agenda)
        used = seconds_used(plan.run, read_experiment(plan.run))
        _write_settings(plan, experiment, agenda, used)
        plan = replace(plan, over_at=started + seconds_left(experiment.budget, used))
        interrupted = _run_missing(plan, before, agenda)
        still_ours()
        agenda, result = _close(plan, before, interrupted=interrupted, started=started)
        used += time.monotonic() - started
        notes = hours_note(experiment.budget, used, result.total - sum(result.statuses.values()))
        agenda = replace(agenda, notes=(*agenda.notes, *notes))
        _write_settings(plan, experiment, agenda, used)
    return replace(result, notes=agenda.notes)


def _agenda_with_changed(plan: PlanRun, before: dict[str, TrialResult]) -> Agenda:
    """The agenda, after a line on finished trials that were made by other code; where these are to
    run again they are taken out of `before`.
    """
    agenda, again = plan.planner.agenda(before), plan.options.rerun_changed
    changed = changed_trials(plan.run, agenda, plan.work.code_of)
    changed = {trial_id: names for trial_id, names in changed.items() if trial_id in before}
    if line := changed_line(changed, again=again):
        plan.console.print(line, highlight=False, soft_wrap=True)
    if not again or not changed:
        return agenda
    remove_trial_folders(plan.run, changed)
    for trial_id in changed:
        del before[trial_id]
    return plan.planner.agenda(before)


def attack_run(
    run: Path,
    planner: PlanSource,
    cache: Path,
    *,
    work: TrialBackend,
    options: Options,
    console: Console,
) -> SweepResult:
    """Run every attack of the plan that has not finished and write its rows beside those of the
    trials.

    Attacks that failed in an earlier call run again. Raises UserError for a run that another driver
    holds.
    """
    started = time.monotonic()
    plan = PlanRun(
        planner=planner,
        run=run.resolve(),
        cache=cache,
        work=work,
        options=options,
        console=console,
    )
    with run_lock(plan.run) as still_ours:
        remove_scratch(plan.run)
        before = cached_results(plan.run, planner.experiment)
        interrupted = _run_missing(plan, before, planner.agenda(before))
        still_ours()
        return _close(plan, before, interrupted=interrupted, started=started)[1]


def trials_by_model(agenda: Agenda) -> tuple[Trial, ...]:
    """One trial of every pair of data and model that the agenda has."""
    return tuple({data_model_pair(row.trial): row.trial for row in agenda.rows}.values())


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker whose package is not installed."""
    for name in names:
        rule = (
            f"track={name} needs the package {TRACKER_NAMES[name]} installed (pip install"
            " 'rayunlearn[trackers]')"
        )
        require(find_spec(name) is not None, rule, "none")


def prepare_all_models(
    experiment: Experiment, output: Path, *, work: TrialBackend, options: Options, console: Console
) -> int:
    """Teach every model that the experiment's trials start from and that is missing; returns how
    many that were.
    """
    now_doing("planning, looking for models that are there")
    cache = (output / "cache").resolve()
    trials = trials_by_model(
        Planner(experiment, work.check, work.identify, work.notes_of).agenda({})
    )
    n_missing = sum(len(work.missing(trial, cache)) for trial in trials)
    if n_missing:
        now_doing("starting Ray")
        from rayunlearn.cluster.session import ray_session

        with ray_session(address=options.address, workers=options.workers):
            from rayunlearn.cluster.tune_runner import prepare_only

            now_doing("starting the workers, which load their libraries")
            prepare_only(
                trials, cache, work=work, gpus_per_trial=options.gpus_per_trial, console=console
            )
    return n_missing


def cached_results(run: Path, experiment: Experiment) -> dict[str, TrialResult]:
    """Results of earlier calls that stand; a failed trial runs again, and one that timed out where
    it may now take longer.
    """
    with_curves = bool(experiment.budget.rung_shares)
    results = trial_results(run, experiment.objective, with_curves=with_curves)
    return ended_for_good(results, experiment.budget)


def refuse_a_changed_corpus(run: Path, agenda: Agenda, cache: Path, work: TrialBackend) -> None:
    """Raise UserError where a file that trials of this run were made from is not what it was: its
    trials would be other ones.
    """
    if not (run / "trials").exists() and not (run / "tables").exists():
        return
    recorded = scan_trials(run)["trials"]
    columns = recorded.collect_schema()
    for trial in {row.trial.data: row.trial for row in agenda.rows if row.trial.data.path}.values():
        same = [
            pl.col(name) == value
            for name, value in flatten(trial).items()
            if name.startswith("data.") and name in columns
        ]
        now = work.workspace(trial, cache).corpus.digest
        changed = (
            recorded.filter(*same, pl.col("corpus_digest") != now)
            .select(pl.col("corpus_digest").unique())
            .collect()["corpus_digest"]
            .to_list()
        )
        rule = (
            f"{trial.data.path} must be what trials of this run were made from"
            f" ({', '.join(sorted(changed))}); put it back, or name a new --version"
        )
        require(not changed, rule, now)


def _run_missing(plan: PlanRun, before: dict[str, TrialResult], agenda: Agenda) -> bool:
    """Run on Ray what the agenda has and `before` lacks; whether it was interrupted.

    Raises UserError for a trial that cannot be divided over the processes asked for.
    """
    _check_divisible(plan, agenda)
    if not agenda.ready or time.monotonic() >= plan.over_at:
        return False
    now_doing("starting Ray")
    from rayunlearn.cluster.session import ray_session

    try:
        with ray_session(
            address=plan.options.address, workers=plan.options.local_cpus
        ) as dashboard:
            from rayunlearn.cluster.tune_runner import run_searcher

            now_doing("starting the workers, which load their libraries")

            if dashboard:
                plan.console.print(
                    f"Ray's dashboard: {dashboard} (from the head's machine: docs/cluster.md)",
                    highlight=False,
                    soft_wrap=True,
                )
            with ending("ending Ray"):
                finished = run_searcher(
                    plan,
                    before,
                    commit=commit_of(Path(rayunlearn.__file__).parent),
                    trials=trials_by_model(agenda),
                    planned=tuple(
                        dict.fromkeys(r.trial for r in (*agenda.ready, *agenda.expected))
                    ),
                )
    except KeyboardInterrupt:
        return True
    return not finished


def _check_divisible(plan: PlanRun, agenda: Agenda) -> None:
    """Raise UserError where several processes are to share a trial and cannot."""
    if plan.options.processes == 1:
        return
    hours = plan.planner.experiment.budget.trial_hours
    rule = "budget.trial_hours must be 0 with --processes-per-trial, whose processes wait for each"
    require(hours == 0, f"{rule} other", hours)
    rungs = plan.planner.experiment.budget.rungs
    has_rungs = bool(plan.planner.experiment.budget.rung_shares)
    rule = "budget.rungs must be none with --processes-per-trial, whose trials have no checkpoints"
    require(not has_rungs, rule, rungs)
    for trial in dict.fromkeys(row.trial for row in agenda.rows):
        plan.work.divide(trial, plan.options.processes)


def _close(
    plan: PlanRun, before: Mapping[str, TrialResult], *, interrupted: bool, started: float
) -> tuple[Agenda, SweepResult]:
    """Join the trials' files and write the plan as it now stands; what came of it."""
    now_doing("joining the tables of the trials")
    compact(plan.run)
    remove_scratch(plan.run)
    goal = plan.planner.experiment
    with_curves = bool(goal.budget.rung_shares)
    results = trial_results(plan.run, goal.objective, with_curves=with_curves)
    results = without_ended_too_early(results, goal.budget)
    has_ended = (*FINISHED, PRUNED)
    finished = {name for name, result in results.items() if result.status in has_ended}
    remove_checkpoints(plan.run, finished)
    agenda = plan.planner.agenda(results)
    plan.planner.write_plan(plan.run, agenda)
    planned = {row.trial_id for row in agenda.rows}
    ended = sorted(planned & results.keys())
    return agenda, SweepResult(
        run=plan.run,
        total=agenda.total,
        statuses=dict(Counter(results[trial_id].status for trial_id in ended)),
        ran=len([trial_id for trial_id in ended if trial_id not in before]),
        interrupted=interrupted,
        notes=agenda.notes,
        seconds=time.monotonic() - started,
    )


def _write_settings(plan: PlanRun, experiment: Experiment, agenda: Agenda, used: float) -> None:
    """Write experiment.json, and what is known of the corpora; `used`: seconds of all calls."""
    workspaces = [plan.work.workspace(trial, plan.cache) for trial in trials_by_model(agenda)]
    notes = dict.fromkeys(note for space in workspaces for note in space.corpus.notes)
    write_settings(
        plan.run,
        experiment,
        agenda,
        plan.work.metrics(),
        corpus_notes=tuple(notes),
        seconds_used=used,
    )
    write_corpora(plan.run, plan.cache, workspaces)
