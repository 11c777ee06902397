"""What the cluster is to do, as plain functions of the trial layer: the sweep knows no torch of its
own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rayunlearn.canonical import CheckTrial
from rayunlearn.config import NO_RUNGS, Rungs, Trial
from rayunlearn.errors import require
from rayunlearn.planning.changed_code import CodeOf, no_code
from rayunlearn.planning.gpu_memory import GpuMemory
from rayunlearn.planning.planner import Identify, NotesOf, no_notes
from rayunlearn.trial import identity

OnPrepared = Callable[[str, int, int], None]


def load_nothing() -> None:
    """Load no library."""


@dataclass(frozen=True, kw_only=True)
class TrialBackend:
    """Functions must be importable on the workers, by name.

    check: a trial with its options filled in, or UserError; identify: its id; missing: roles
    (`base`, `gold`) that `prepare(trial, cache, progress, roles)` still has to make; workspace:
    what `run` takes, cheap once prepared; run(trial, workspace, run_dir, experiment, version,
    commit, trial_hours, rungs): runs a trial as far as its rungs let it, writes its folder, returns
    its status; run_lengths(trials, ...): trains the last and measures the others on its way, None
    where each is to be trained by itself; divide(trial, n):
    UserError where n processes cannot share the trial; gpu_memory_of(trials, run): what the
    largest of the trials needs of a GPU; gpu_bytes: the size of the GPU of the process that asks,
    0 where it sees none; metrics: the metric table, for experiment.json; preload: loads the
    libraries that every trial uses, which a worker does once, before its first trial; notes_of: a
    line on the texts that data.max_tokens cuts; code_of: digest of the source of each function
    that a trial uses, by name.
    """

    check: CheckTrial
    identify: Identify
    missing: Callable[[Trial, Path], tuple[str, ...]]
    prepare: Callable[[Trial, Path, OnPrepared, tuple[str, ...]], Any]
    workspace: Callable[[Trial, Path], Any]
    run: Callable[[Trial, Any, Path, str, str, str, float, Rungs], str]
    metrics: Callable[[], Mapping[str, Any]]
    divide: Callable[[Trial, int], None]
    gpu_memory_of: Callable[[Sequence[Trial], Path], GpuMemory]
    gpu_bytes: Callable[[], int]
    run_lengths: Callable[[Sequence[Trial], Any, Path, str, str, str, float], str] | None = None
    preload: Callable[[], None] = load_nothing
    notes_of: NotesOf = no_notes
    code_of: CodeOf = no_code


def unlearning_backend() -> TrialBackend:
    """The real work. What only a worker needs is loaded there."""
    from rayunlearn.models.device_memory import device_bytes
    from rayunlearn.planning import gpu_memory
    from rayunlearn.plugins import load as plugins
    from rayunlearn.trial import workspace as workspace_module
    from rayunlearn.trial.code import code_of

    return TrialBackend(
        check=workspace_module.validate_trial,
        identify=identity.identify_trial,
        missing=missing_models,
        prepare=workspace_module.prepare_models,
        workspace=workspace_module.workspace_of,
        run=run_trial_or_attack,
        run_lengths=run_joined_lengths,
        metrics=metric_table,
        divide=can_divide,
        gpu_memory_of=gpu_memory.estimate_gpu_memory,
        gpu_bytes=device_bytes,
        preload=partial(plugins.preload, plugins.plugins(), load_libraries),
        code_of=code_of,
        notes_of=workspace_module.cut_texts,
    )


def run_trial_or_attack(
    trial: Trial,
    workspace: Any,
    run: Path,
    experiment: str,
    version: str,
    commit: str,
    trial_hours: float = 0.0,
    rungs: Rungs = NO_RUNGS,
) -> str:
    """`attack.run_attack_or_trial`, which a driver does without."""
    from rayunlearn.trial.attack import run_attack_or_trial

    columns = (experiment, version, commit)
    return run_attack_or_trial(trial, workspace, run, *columns, trial_hours, rungs)


def run_joined_lengths(
    trials: Sequence[Trial],
    workspace: Any,
    run: Path,
    experiment: str,
    version: str,
    commit: str,
    trial_hours: float = 0.0,
) -> str:
    """`run.run_lengths`, which a driver does without."""
    from rayunlearn.trial.run import run_lengths

    return run_lengths(trials, workspace, run, experiment, version, commit, trial_hours)


def load_libraries() -> None:
    """Load what every trial uses, so that no trial's seconds count it and all workers do it at
    once, beside the driver.
    """
    # the modules of a trial, and by these names of theirs the libraries
    from rayunlearn.lazy import accelerate, torch, transformers
    from rayunlearn.trial import attack  # noqa: F401

    _ = (torch.Tensor, transformers.PreTrainedModel, accelerate.Accelerator)


def can_divide(trial: Trial, processes: int) -> None:
    """Raise UserError for a trial that cannot be divided over as many processes
    (`train/fsdp.py`). An attack that trains gives other numbers there than in one process.
    """
    train, shares = trial.train, trial.train.accumulation * processes
    require(
        train.batch_size % shares == 0,
        f"train.batch_size must be a multiple of train.accumulation x processes, {shares}",
        train.batch_size,
    )
    require(
        train.checkpoint_every == 0,
        "train.checkpoint_every must be 0 where a trial has several processes",
        train.checkpoint_every,
    )
    require(
        not trial.method.wrappers,
        "method.wrappers must be '' where a trial has several processes",
        trial.method.wrappers,
    )
    _functions_can_divide(trial)


def _functions_can_divide(trial: Trial) -> None:
    """Raise UserError where the trial's method, selector or attack needs one process."""
    from rayunlearn.attacks.table import ATTACKS
    from rayunlearn.methods.forget import FORGET
    from rayunlearn.methods.task_vector import as_trained
    from rayunlearn.ranges import required_inputs
    from rayunlearn.registry import own_attack
    from rayunlearn.selectors.table import SELECTORS

    plain = FORGET[trial.method.forget].ending is as_trained
    require(
        plain,
        "method.forget must be one that ends as trained where a trial has several processes",
        trial.method.forget,
    )
    for name, attack in (("attack.name", trial.attack.name), ("measure.attack", own_attack(trial))):
        require(
            attack == "none" or not ATTACKS[attack].trains,
            f"{name} must be no attack that trains where a trial has several processes",
            attack,
        )
    trains = "norms_along" in required_inputs(SELECTORS[trial.select.name].function)
    require(
        not trains,
        "select.name must be no selector that trains a model where a trial has several processes",
        trial.select.name,
    )


def metric_table() -> Mapping[str, Any]:
    """The metrics with unit, range, direction and meaning."""
    from rayunlearn.metrics.table import METRICS

    return METRICS


def missing_models(trial: Trial, cache: Path) -> tuple[str, ...]:
    """Models of the trial's (data, model) pair that are not there whole."""
    from rayunlearn.trial.workspace import missing_roles

    return missing_roles(trial, cache)
