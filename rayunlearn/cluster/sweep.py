"""A sweep from its first line to its last: what is finished stays, what is missing runs, and the
folder is closed.

Ray is imported only when something is left to run.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import polars as pl
from rich.console import Console

import rayunlearn
from rayunlearn.config import flatten
from rayunlearn.errors import require
from rayunlearn.experiment import TRACKERS, Experiment
from rayunlearn.planning.attack_planner import AttackPlanner
from rayunlearn.planning.backend import TrialBackend
from rayunlearn.planning.outcomes import TrialResult, trial_results
from rayunlearn.planning.planner import Agenda, Planner
from rayunlearn.planning.run_tables import run_folder, write_corpora, write_settings
from rayunlearn.schema import FINISHED
from rayunlearn.storage.lock import create_run_folder, run_lock
from rayunlearn.storage.run import compact, open_run, remove_scratch
from rayunlearn.trial.provenance import commit_of
from rayunlearn.trial.workspace import data_model_pair


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where and how wide trials run. `workers` 0: as many as fit; `gpus_per_trial` None: where
    there are GPUs, what the largest trial needs; `processes`: how many share one trial, each with
    a GPU of its own where there are GPUs; `on`: the resource that a machine must have to be given
    trials ('': any machine)."""

    address: str = "auto"
    workers: int = 0
    gpus_per_trial: float | None = None
    processes: int = 1
    on: str = ""

    def __post_init__(self) -> None:
        require(self.workers >= 0, "--workers must be >= 0", self.workers)
        gpus = self.gpus_per_trial
        rule = (
            "--gpus-per-trial must be in [0, 1], as a process trains on one GPU;"
            " --processes-per-trial gives a trial several"
        )
        require(gpus is None or 0 <= gpus <= 1, rule, gpus)
        require(self.processes >= 1, "--processes-per-trial must be >= 1", self.processes)
        shared = self.processes > 1 and gpus not in (None, 0, 1)
        require(
            not shared,
            "--gpus-per-trial must be 0 or 1 with --processes-per-trial, as each process has a GPU"
            " of its own",
            gpus,
        )


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
        return sum(count for status, count in self.statuses.items() if status in FINISHED)


def sweep(
    experiment: Experiment, output: Path, *, work: TrialBackend, options: Options, console: Console
) -> SweepResult:
    """Run every planned trial that has not finished, each once, and write the run's tables.

    Trials that failed in an earlier call run again. Raises UserError for a bad config, before
    anything is scheduled, for a run that another driver holds, and for a disk that is full.
    """
    started = time.monotonic()
    run, cache = run_folder(output, experiment).resolve(), (output / "cache").resolve()
    check_trackers(experiment.track)
    planner = Planner(experiment, work.check, work.identify)
    # a mistake in the experiment shows here, before a folder is made
    planner.agenda({})
    with run_lock(run) as still_ours:
        create_run_folder(run, version=experiment.version)
        before = cached_results(run, experiment)
        agenda = planner.agenda(before)
        for trial in dict.fromkeys(row.trial for row in agenda.rows if options.processes > 1):
            work.divide(trial, options.processes)
        refuse_a_changed_corpus(run, agenda, cache, work)
        interrupted = bool(agenda.ready) and _run_missing(
            planner,
            before,
            agenda,
            run=run,
            cache=cache,
            work=work,
            options=options,
            console=console,
        )
        still_ours()
        return _close(
            planner,
            before,
            run=run,
            cache=cache,
            work=work,
            interrupted=interrupted,
            seconds=time.monotonic() - started,
        )


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker whose package is not installed."""
    for name in names:
        rule = (
            f"track={name} needs the package {TRACKERS[name]} installed (pip install"
            " 'rayunlearn[trackers]')"
        )
        require(find_spec(name) is not None, rule, "none")


def prepare_all_models(
    experiment: Experiment, output: Path, *, work: TrialBackend, options: Options, console: Console
) -> int:
    """Teach every model that the experiment's trials start from and that is missing; returns how
    many that were.
    """
    cache = (output / "cache").resolve()
    agenda = Planner(experiment, work.check, work.identify).agenda({})
    trials = tuple({data_model_pair(row.trial): row.trial for row in agenda.rows}.values())
    n_missing = sum(len(work.missing(trial, cache)) for trial in trials)
    if n_missing:
        from rayunlearn.cluster.session import ray_session, set_ray_environment

        set_ray_environment(options.address)
        from rayunlearn.cluster.tune_runner import prepare_only

        with ray_session(address=options.address, workers=options.workers):
            prepare_only(
                trials, cache, work=work, gpus_per_trial=options.gpus_per_trial, console=console
            )
    return n_missing


def cached_results(run: Path, experiment: Experiment) -> dict[str, TrialResult]:
    """Results of earlier calls that stand; a failed trial runs again."""
    return {
        trial_id: result
        for trial_id, result in trial_results(run, experiment.objective).items()
        if result.status in FINISHED
    }


def refuse_a_changed_corpus(run: Path, agenda: Agenda, cache: Path, work: TrialBackend) -> None:
    """Raise UserError where a file that trials of this run were made from is not what it was: its
    trials would be other ones.
    """
    if not (run / "trials").exists() and not (run / "tables").exists():
        return
    recorded = open_run(run, own_trials=True).trials
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


def _run_missing(
    planner: Planner,
    before: dict[str, TrialResult],
    agenda: Agenda,
    *,
    run: Path,
    cache: Path,
    work: TrialBackend,
    options: Options,
    console: Console,
) -> bool:
    """Run on Ray; whether it was interrupted."""
    from rayunlearn.cluster.session import ray_session, set_ray_environment

    set_ray_environment(options.address)
    from rayunlearn.cluster.tune_runner import SweepJob, run_searcher

    experiment = planner.experiment
    commit = commit_of(Path(rayunlearn.__file__).parent)
    job = SweepJob(
        work=work,
        run=str(run),
        experiment=experiment.name,
        version=experiment.version,
        commit=commit,
        track=experiment.track,
        processes=options.processes,
    )
    trials = tuple({data_model_pair(row.trial): row.trial for row in agenda.rows}.values())
    planned = tuple(dict.fromkeys(row.trial for row in (*agenda.ready, *agenda.expected)))
    try:
        with ray_session(address=options.address, workers=options.workers) as dashboard:
            if dashboard:
                console.print(
                    f"Ray's dashboard: {dashboard} (from the head's machine: docs/cluster.md)",
                    highlight=False,
                    soft_wrap=True,
                )
            finished = run_searcher(
                planner,
                before,
                job,
                cache=cache,
                trials=trials,
                planned=planned,
                workers=options.workers,
                gpus_per_trial=options.gpus_per_trial,
                console=console,
                on=options.on,
            )
    except KeyboardInterrupt:
        return True
    return not finished


def _close(
    planner: Planner,
    before: Mapping[str, TrialResult],
    *,
    run: Path,
    cache: Path,
    work: TrialBackend,
    interrupted: bool,
    seconds: float,
) -> SweepResult:
    """Compact the trials and write plan, settings and quarantine."""
    compact(run)
    remove_scratch(run)
    results = trial_results(run, planner.experiment.objective)
    agenda = planner.agenda(results)
    planner.write_plan(run, agenda)
    write_settings(run, planner.experiment, agenda, work.metrics())
    write_corpora(
        run,
        cache,
        [
            work.workspace(trial, cache)
            for trial in {data_model_pair(row.trial): row.trial for row in agenda.rows}.values()
        ],
    )
    planned = {row.trial_id for row in agenda.rows}
    statuses = Counter(
        results[trial_id].status for trial_id in sorted(planned) if trial_id in results
    )
    ran = sum(trial_id in results and trial_id not in before for trial_id in planned)
    return SweepResult(
        run=run,
        total=agenda.total,
        statuses=dict(statuses),
        ran=ran,
        interrupted=interrupted,
        notes=agenda.notes,
        seconds=seconds,
    )


def attack_run(
    run: Path,
    planner: AttackPlanner,
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
    started, run = time.monotonic(), run.resolve()
    objective = planner.experiment.objective
    with run_lock(run) as still_ours:
        remove_scratch(run)
        before = {
            trial_id: result
            for trial_id, result in trial_results(run, objective).items()
            if result.status in FINISHED
        }
        interrupted = bool(planner.agenda(before).ready) and _run_missing_attacks(
            planner, before, run=run, cache=cache, work=work, options=options, console=console
        )
        still_ours()
        compact(run)
        results = trial_results(run, objective)
        agenda = planner.agenda(results)
        planner.write_plan(run, agenda)
    planned = {row.trial_id for row in agenda.rows}
    statuses = Counter(
        results[trial_id].status for trial_id in sorted(planned) if trial_id in results
    )
    ran = sum(trial_id in results and trial_id not in before for trial_id in planned)
    seconds = time.monotonic() - started
    return SweepResult(
        run=run,
        total=agenda.total,
        statuses=dict(statuses),
        ran=ran,
        interrupted=interrupted,
        notes=agenda.notes,
        seconds=seconds,
    )


def _run_missing_attacks(
    planner: AttackPlanner,
    before: Mapping[str, TrialResult],
    *,
    run: Path,
    cache: Path,
    work: TrialBackend,
    options: Options,
    console: Console,
) -> bool:
    from rayunlearn.cluster.session import ray_session, set_ray_environment

    set_ray_environment(options.address)
    from rayunlearn.cluster.tune_runner import SweepJob, run_searcher

    experiment = planner.experiment
    job = SweepJob(
        work=work,
        run=str(run),
        experiment=experiment.name,
        version=experiment.version,
        commit=commit_of(Path(rayunlearn.__file__).parent),
    )
    trials = tuple(
        {data_model_pair(target.trial): target.trial for target in planner.targets}.values()
    )
    try:
        with ray_session(address=options.address, workers=options.workers):
            finished = run_searcher(
                planner,
                dict(before),
                job,
                cache=cache,
                trials=trials,
                planned=tuple(dict.fromkeys(row.trial for row in planner.agenda(before).ready)),
                workers=options.workers,
                gpus_per_trial=options.gpus_per_trial,
                console=console,
            )
    except KeyboardInterrupt:
        return True
    return not finished
