"""`rayunlearn run`, `plan` and `prepare`: an experiment, what it would take, and its models."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn.cli.arguments import DONE, add_experiment_options, experiment_of, sweep_options
from rayunlearn.cli.attack import run_attacks
from rayunlearn.cli.output import (
    console_for_output,
    print_conclusion,
    print_table,
    print_what_now,
)
from rayunlearn.errors import UserError
from rayunlearn.storage.sync import display_path, refresh
from rayunlearn.trial.narration import now_doing

# a longer plan is printed as a summary
CELLS_SHOWN = 60
# of a larger plan what a trial needs of a GPU is not worked out: that loads the model's classes,
# 250 MB, and takes a step of every kind of trial without weights
MEASURED_TRIALS = 5_000

RERUN_HELP = (
    "run finished trials again whose loss, selector, metrics or attack have other source code by"
    " now (default: say how many there are)"
)

if TYPE_CHECKING:
    from rich.console import Console

    from rayunlearn.data.documents import Corpus
    from rayunlearn.experiment import Attacks, Experiment
    from rayunlearn.planning.outcomes import TrialResult
    from rayunlearn.planning.planner import Agenda


def add_run_command(commands: Any) -> None:
    """`run EXPERIMENT.py`."""
    added = add_experiment_options(
        commands,
        "run",
        run,
        "run an experiment: what has finished is skipped, the rest runs on Ray",
        on_cluster=True,
    )
    added.add_argument("--rerun-changed", action="store_true", help=RERUN_HELP)


def add_plan_command(commands: Any) -> None:
    """`plan EXPERIMENT.py`."""
    added = add_experiment_options(
        commands,
        "plan",
        plan,
        "say what `run` would do, how long it takes and what it needs, without Ray",
    )
    added.add_argument(
        "--all", action="store_true", help="print every cell, also of a plan with many"
    )


def add_prepare_command(commands: Any) -> None:
    """`prepare EXPERIMENT.py`."""
    add_experiment_options(
        commands,
        "prepare",
        prepare,
        "build the corpora and train the base and gold models, nothing else",
        on_cluster=True,
    )


def run(chosen: argparse.Namespace) -> int:
    """Sweep, print the table, write the report; where the experiment asks for attacks,
    those then.
    """
    experiment = experiment_of(chosen)
    # late, so that a mistake in the request is answered before more is loaded
    from rayunlearn.cluster.sweep import sweep
    from rayunlearn.planning.backend import unlearning_backend

    console = console_for_output()
    now_doing("planning the trials, looking for finished ones")
    result = sweep(
        experiment,
        chosen.output,
        work=unlearning_backend(),
        options=sweep_options(chosen),
        console=console,
    )
    if result.statuses:
        now_doing("drawing the report")
        print_table(result.run, console)
    now_doing("")
    status = print_conclusion(result, chosen.words, console)
    if status == DONE:
        print_what_now(result.run, console)
    return (
        status
        if status != DONE or not experiment.attacks.panel
        else _attacked(result.run, experiment.attacks, chosen, console)
    )


def _attacked(
    folder: Path, attacks: "Attacks", chosen: argparse.Namespace, console: "Console"
) -> int:
    from rayunlearn.attacks.panels import chosen_panel
    from rayunlearn.planning.attack_planner import AttackFiles, attack_planner
    from rayunlearn.planning.backend import unlearning_backend

    work = unlearning_backend()
    # those that train cannot be divided (`backend.can_divide`)
    chosen.processes_per_trial = 1
    planner = attack_planner(
        folder,
        trials=attacks.trials,
        panel=chosen_panel(attacks.panel, utility_loss=attacks.utility_loss),
        reads=AttackFiles(),
        check=work.check,
        identify=work.identify,
    )
    return run_attacks(planner, folder, chosen, console)


def plan(chosen: argparse.Namespace) -> int:
    """Number of trials, per role and per cell, what is finished, and what the rest will take."""
    experiment = experiment_of(chosen)
    # late, so that a mistake in the request is answered before more is loaded
    from rayunlearn.cluster.sweep import cached_results
    from rayunlearn.planning.backend import unlearning_backend
    from rayunlearn.planning.changed_code import changed_line, changed_trials
    from rayunlearn.planning.planner import Planner
    from rayunlearn.planning.run_tables import run_folder
    from rayunlearn.trial.identity import corpus_of
    from rayunlearn.trial.workspace import data_model_pair

    work = unlearning_backend()
    folder = run_folder(chosen.output, experiment)
    refresh(folder)
    now_doing("planning the trials, looking for finished ones")
    results = {} if experiment.version == "dev" else cached_results(folder, experiment)
    agenda = Planner(experiment, work.check, work.identify, work.notes_of).agenda(results)
    pairs = {data_model_pair(row.trial): row.trial for row in agenda.rows}
    missing = [
        f"{role} of {trial.data.name}"
        for trial in pairs.values()
        for role in work.missing(trial, chosen.output / "cache")
    ]
    _print_cells(agenda, results, whole=chosen.all)
    _print_totals(agenda, results, experiment, folder, missing=missing, workers=chosen.workers)
    corpora = [corpus_of(trial.data, trial.model) for trial in pairs.values()]
    changed = changed_line(changed_trials(folder, agenda, work.code_of), again=False)
    _print_notes((*corpus_lines(corpora), *agenda.notes, *([changed] if changed else [])))
    return DONE


def prepare(chosen: argparse.Namespace) -> int:
    """Make what trials start from, and say what base knows of each probe split."""
    experiment = experiment_of(chosen)
    # late, so that a mistake in the request is answered before more is loaded
    from rayunlearn.cluster.sweep import prepare_all_models
    from rayunlearn.planning.backend import unlearning_backend

    console = console_for_output()
    prepared = prepare_all_models(
        experiment,
        chosen.output,
        work=unlearning_backend(),
        options=sweep_options(chosen),
        console=console,
    )
    print(
        f"{prepared} models were trained, the others were there already"
        if prepared
        else "nothing to do: every model is there"
    )
    now_doing("measuring what base knows")
    _print_base(experiment, chosen.output, console)
    return DONE


def _print_base(experiment: "Experiment", output: Path, console: "Console") -> None:
    """What every base model of the experiment knows before anything is unlearned."""
    from rayunlearn.cli.listing import print_base
    from rayunlearn.cluster.sweep import trials_by_model
    from rayunlearn.interop.base_knowledge import base_knowledge, metrics_of_base
    from rayunlearn.planning.backend import unlearning_backend
    from rayunlearn.planning.planner import Planner
    from rayunlearn.trial.workspace import workspace_of

    work = unlearning_backend()
    agenda = Planner(experiment, work.check, work.identify, work.notes_of).agenda({})
    for trial in trials_by_model(agenda):
        workspace = workspace_of(trial, (output / "cache").resolve())
        table = base_knowledge(trial, workspace, metrics_of_base(experiment.objective))
        title = f"what base knows: {workspace.corpus.name}, {trial.model.name}"
        print_base(title, table.to_dicts(), console)
        _print_notes(corpus_lines([workspace.corpus]))


def _print_cells(agenda: "Agenda", results: "dict[str, TrialResult]", *, whole: bool) -> None:
    from rayunlearn.cli.listing import print_cell_summary, print_cells
    from rayunlearn.planning.cost import planned_cells

    console = console_for_output()
    cells = planned_cells(agenda, results)
    if whole or len(cells) <= CELLS_SHOWN:
        print_cells(cells, console)
    else:
        print_cell_summary(cells, console)
        console.print(f"{len(cells)} cells; --all prints each", highlight=False)


def _print_totals(
    agenda: "Agenda",
    results: "dict[str, TrialResult]",
    experiment: "Experiment",
    folder: Path,
    *,
    missing: Sequence[str],
    workers: int,
) -> None:
    from rayunlearn.planning.cost import trainings_left

    console = console_for_output()
    remaining, trainings = agenda.remaining(results), trainings_left(agenda, results)
    lines = [
        f"{agenda.total} trials: {agenda.total - remaining} finished, {remaining} to run in"
        f" {display_path(folder)}"
    ]
    lines += _joined_lines(remaining - trainings, remaining)
    if agenda.waiting:
        lines.append(
            f"{agenda.waiting} of them wait for the tuning ({experiment.budget.tuning},"
            f" at most {experiment.budget.trials_per_group} trials per group)"
        )
    lines.append(_models_line(missing))
    if experiment.attacks.panel:
        lines.append(
            f"then the attacks of panel {experiment.attacks.panel} on {experiment.attacks.trials},"
            " which are not in these numbers"
        )
    n_workers = workers or len(os.sched_getaffinity(0))
    lines += _cost_lines(agenda, folder, trainings, n_workers)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _models_line(missing: Sequence[str]) -> str:
    if not missing:
        return "every model is there already"
    return f"models to train first: {', '.join(missing)}"


def _joined_lines(n_joined: int, remaining: int) -> list[str]:
    """How many trials are measured on the way of a longer one, and how many trainings are left."""
    if not n_joined:
        return []
    return [
        f"{n_joined} of them are the beginning of longer ones, and measured on their way:"
        f" {remaining - n_joined} trainings"
    ]


def corpus_lines(corpora: "Sequence[Corpus]") -> tuple[str, ...]:
    """What of the data is ignored, cut, left out or rejected, each line once."""
    notes = (note for corpus in corpora for note in (*corpus.notes, corpus.rejections) if note)
    return tuple(dict.fromkeys(notes))


def _print_notes(notes: Sequence[str]) -> None:
    console = console_for_output()
    for note in notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)


def _cost_lines(agenda: "Agenda", folder: Path, remaining: int, workers: int) -> list[str]:
    from rayunlearn.planning.cost import DRIVER_BYTES, GPU_RULE, estimate, gpu_hours, size_of
    from rayunlearn.planning.progress import format_duration

    try:
        guess = estimate(folder, agenda, size_of=size_of)
        memory_line = (
            _memory_line(agenda, folder)
            if agenda.total <= MEASURED_TRIALS
            else f"GPU memory is estimated for plans of at most {MEASURED_TRIALS} trials"
        )
    except UserError as error:
        return [f"no estimate: {error}"]
    hours = gpu_hours(agenda, remaining, size_of=size_of)
    memory = f"about {(workers * guess.bytes + DRIVER_BYTES) / 2**30:.1f} GiB"
    duration = format_duration(remaining * guess.seconds / workers)
    time = (
        f"with {workers} workers {duration} and {memory}"
        f" ({guess.seconds:.1f} s per trial, from {guess.source})"
    )
    return [time, f"on GPUs about {hours:.2g} GPU-hours of training ({GPU_RULE})", memory_line]


def _memory_line(agenda: "Agenda", folder: Path) -> str:
    """What a trial takes of this machine's GPU; without one, what it would need of any."""
    from rayunlearn.models.device_memory import device_bytes
    from rayunlearn.planning.gpu_memory import (
        estimate_gpu_memory,
        format_gpu_memory,
        gpu_share,
    )
    from rayunlearn.storage.user_cache import user_cache

    trials = [row.trial for row in (*agenda.rows, *agenda.expected)]
    # a plan is read before there is an output folder, and makes none
    memory = estimate_gpu_memory(trials, folder, user_cache("gpu_memory"))
    available = device_bytes()
    return (
        gpu_share(memory, available)[1]
        if available
        else f"on a GPU a trial needs {format_gpu_memory(memory)}"
    )
