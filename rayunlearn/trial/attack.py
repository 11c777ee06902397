"""One attack on one model, or one task of lm-evaluation-harness, start to end: the weights that a
trial ends with, the attack or the task, the measure, the rows. No Ray in here.

An attack is a trial of its own. Its config is that of the attacked trial and the section `attack`;
its rows are in the same tables, `stage` says which model it was and `attack` what was done to it.
So is a task, with the section `harness`; `evaluated` says whose model was asked.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from rayunlearn.attacks.relearning import DivergedError
from rayunlearn.config import NO_RUNGS, Harness, Rungs, Trial
from rayunlearn.config import Attack as AttackSettings
from rayunlearn.errors import UserError
from rayunlearn.lazy import torch
from rayunlearn.metrics.evaluate import Measured
from rayunlearn.models.device_memory import reset_peak_memory
from rayunlearn.registry import check_trial
from rayunlearn.trial.attack_inputs import AttackInputs, labelled_rows, run_attack
from rayunlearn.trial.harness import harness_tables
from rayunlearn.trial.provenance import Clock, failure_row
from rayunlearn.trial.rebuild import rebuild_model
from rayunlearn.trial.run import Outcome, run_and_record, run_trial
from rayunlearn.trial.workspace import Workspace, identity_in, require_same_weights


def run_attack_or_trial(
    trial: Trial,
    workspace: Workspace,
    run_dir: Path,
    experiment: str,
    version: str,
    commit: str = "",
    trial_hours: float = 0.0,
    rungs: Rungs = NO_RUNGS,
) -> str:
    """`run.run_trial`, or, for a trial that names an attack or a task of the harness, that; writes
    its rows and returns the status.
    """
    attempt = _ask_task if trial.harness.task else _attempt
    if trial.attack == AttackSettings() and not trial.harness.task:
        columns = (experiment, version, commit)
        return run_trial(trial, workspace, run_dir, *columns, trial_hours, rungs)
    identity = identity_in(trial, workspace)
    keys = {"experiment": experiment, "version": version, "commit": commit}
    return run_and_record(
        partial(attempt, trial, workspace),
        trial,
        identity,
        workspace,
        run_dir,
        keys,
        trial_hours,
    )


def _ask_task(trial: Trial, workspace: Workspace) -> Outcome:
    reset_peak_memory()
    clock = Clock()
    require_same_weights(trial, workspace)
    evaluated = check_trial(replace(trial, harness=Harness()))
    context = rebuild_model(evaluated, workspace)
    clock.lap("seconds_load")
    tables = harness_tables(context, [trial.harness.task], trial.harness, step=0)
    clock.lap("seconds_measure")
    columns = {"evaluated": identity_in(evaluated, workspace)} | clock.laps
    return Outcome("complete", columns, tables)


def trial_under_attack(trial: Trial) -> Trial:
    """The trial that an attack starts from: the same settings without the
    attack and its options.
    """
    return check_trial(replace(trial, attack=AttackSettings()))


def _attempt(trial: Trial, workspace: Workspace) -> Outcome:
    reset_peak_memory()
    clock = Clock()
    require_same_weights(trial, workspace)
    context = replace(rebuild_model(trial_under_attack(trial), workspace), trial=trial)
    clock.lap("seconds_load")
    with torch.random.fork_rng(), ExitStack() as leaving:
        torch.manual_seed(trial.attack.seed)
        inputs = AttackInputs(context, leaving)
        try:
            probes, tables = run_attack(inputs)
        except DivergedError:
            return Outcome("diverged", dict(clock.laps), {})
        columns = inputs.columns
        try:
            inputs.require_touched()
        except UserError as error:
            return Outcome("failed", columns | clock.laps | failure_row(error), {})
        clock.lap("seconds_train")
        measured = inputs.measure(probes) if probes else Measured(tables["examples"], [])
        clock.lap("seconds_measure")
    keys = {"stage": trial.stage, "attack": trial.attack.name}
    step = max((int(r["x"]) for r in inputs.curve), default=0)
    tables |= labelled_rows(measured, keys, step)
    return Outcome("complete", columns | clock.laps, tables)
