"""The fan-out of a panel of attacks: as a sweep, on a run that is there already."""

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

import rayunlearn
from rayunlearn.attackplan import AttackPlanner
from rayunlearn.cluster.folder import commit_of, locked, pair_of
from rayunlearn.cluster.sweep import Options, SweepResult
from rayunlearn.cluster.work import Work
from rayunlearn.plan import Result, results_of
from rayunlearn.results.store import clean, compact
from rayunlearn.schema import FINISHED


def attack_run(
    run: Path,
    planner: AttackPlanner,
    cache: Path,
    *,
    work: Work,
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
    with locked(run) as still_ours:
        clean(run)
        before = {
            trial_id: result
            for trial_id, result in results_of(run, objective).items()
            if result.status in FINISHED
        }
        interrupted = bool(planner.agenda(before).ready) and _run_missing(
            planner, before, run=run, cache=cache, work=work, options=options, console=console
        )
        still_ours()
        compact(run)
        results = results_of(run, objective)
        agenda = planner.agenda(results)
        planner.keep(run, agenda)
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


def _run_missing(
    planner: AttackPlanner,
    before: Mapping[str, Result],
    *,
    run: Path,
    cache: Path,
    work: Work,
    options: Options,
    console: Console,
) -> bool:
    from rayunlearn.cluster.session import before_ray, connected

    before_ray(options.address)
    from rayunlearn.cluster.runner import Job, execute

    experiment = planner.experiment
    job = Job(
        work=work,
        run=str(run),
        experiment=experiment.name,
        version=experiment.version,
        commit=commit_of(Path(rayunlearn.__file__).parent),
    )
    trials = tuple({pair_of(target.trial): target.trial for target in planner.targets}.values())
    try:
        with connected(address=options.address, workers=options.workers):
            finished = execute(
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
