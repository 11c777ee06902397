"""Asking Optuna, truthfully and without state: a study is rebuilt from finished trials whenever it
is needed.

Trials are asked for in batches. What a batch asks depends on the trials of the earlier batches and
on nothing else, so a plan interrupted anywhere is the same plan afterwards, trial ids included;
there is no sampler state to restore, and no trial that Optuna believes to be running.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from rayunlearn.config import Value, digest
from rayunlearn.experiment import Choice, Domain

if TYPE_CHECKING:
    import optuna


# utilities are at most 1, so no complete trial violates the floor by more
COLLAPSED_VIOLATION = 1.0


@dataclass(frozen=True, kw_only=True)
class StudyTrial:
    """One ended trial of a study. `violation` = floor x base utility - utility: feasible at 0 or
    less.

    `forgetting`, `utility` and `violation` are NaN where the trial was not measured.
    """

    values: Mapping[str, Value]
    status: str
    forgetting: float = math.nan
    utility: float = math.nan
    violation: float = math.nan
    trial_id: str = ""

    @property
    def measured(self) -> bool:
        """Whether it ran to its end and has two finite values:
        only then Optuna calls it COMPLETE.
        """
        return (
            self.status == "complete"
            and math.isfinite(self.forgetting)
            and math.isfinite(self.utility)
        )


def suggest(
    space: Mapping[str, Domain], finished: Sequence[StudyTrial], *, batch: int, seed: int
) -> list[dict[str, Value]]:
    """The next `batch` settings: TPE, forgetting minimised, utility maximised, the utility floor a
    constraint.

    The first call, without finished trials, is random; every later one learns. A pure function of
    its
    arguments: the sampler is seeded here. Numbers keep 4 significant digits, so that a table can
    show the very value that ran.
    """
    study = study_from(space, finished, seed=seed)
    parameters = [study.ask(distributions(space)).params for _ in range(batch)]
    return [
        {name: _rounded(params[name], domain) for name, domain in space.items()}
        for params in parameters
    ]


def n_combinations(space: Mapping[str, Domain]) -> float:
    """Number of different settings in a search space; infinite with a `Range` of real numbers."""
    return math.prod(len(values) if (values := _values(d)) else math.inf for d in space.values())


def combinations(space: Mapping[str, Domain]) -> list[dict[str, Value]]:
    """Every setting of a finite search space once, the last name fastest."""
    return [
        dict(zip(space, values, strict=True)) for values in product(*map(_values, space.values()))
    ]


def best_trial(finished: Sequence[StudyTrial]) -> StudyTrial | None:
    """The feasible trial that forgets most (lowest forgetting; the earlier one of two equals).

    Where none is feasible, the measured trial with the highest utility; None where none was
    measured.
    """
    measured = [trial for trial in finished if trial.measured]
    feasible = [trial for trial in measured if trial.violation <= 0]
    if feasible:
        return min(feasible, key=lambda trial: trial.forgetting)
    return max(measured, key=lambda trial: trial.utility, default=None)


def study_from(
    space: Mapping[str, Domain], finished: Sequence[StudyTrial], *, seed: int
) -> "optuna.Study":
    """An in-memory study that holds the finished trials in order, each in the state that is true of
    it.

    Optuna's own default of 10 random startup trials would be a whole small budget: random only
    until a trial has told something.
    """
    import optuna

    trials = [_frozen(space, trial) for trial in finished]
    has_finished = any(trial.state != optuna.trial.TrialState.FAIL for trial in trials)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            # metric names, multivariate
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            tpe = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=True)
            sampler = tpe if has_finished else optuna.samplers.RandomSampler(seed=seed)
            study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
            study.set_metric_names(["forgetting", "utility"])
    finally:
        optuna.logging.set_verbosity(verbosity)
    study.add_trials(trials)
    return study


def distributions(
    space: Mapping[str, Domain],
) -> dict[str, "optuna.distributions.BaseDistribution"]:
    """Optuna's name for each domain."""
    return {name: _distribution(domain) for name, domain in space.items()}


def sampler_seed(study: str, batch_index: int) -> int:
    """The sampler's seed for one batch of one study, the same on every machine."""
    return int(digest([study, batch_index], 8), 16) % 2**32


def _frozen(space: Mapping[str, Domain], trial: StudyTrial) -> "optuna.trial.FrozenTrial":
    import optuna

    states = {
        "collapsed": optuna.trial.TrialState.PRUNED,
        "diverged": optuna.trial.TrialState.PRUNED,
    }
    state = (
        optuna.trial.TrialState.COMPLETE
        if trial.measured
        else states.get(trial.status, optuna.trial.TrialState.FAIL)
    )
    violation = (
        trial.violation
        if trial.measured and math.isfinite(trial.violation)
        else COLLAPSED_VIOLATION
    )
    return optuna.trial.create_trial(
        state=state,
        values=[trial.forgetting, trial.utility] if trial.measured else None,
        params={name: trial.values[name] for name in space},
        distributions=distributions(space),
        constraints={"utility_floor": violation} if state != optuna.trial.TrialState.FAIL else None,
        user_attrs={"trial_id": trial.trial_id, "status": trial.status},
    )


def _values(domain: Domain) -> Sequence[Value]:
    """The values of a domain; none where it has no end of them."""
    if isinstance(domain, Choice):
        return domain.values
    return range(int(domain.low), int(domain.high) + 1) if domain.integer else ()


def _distribution(domain: Domain) -> "optuna.distributions.BaseDistribution":
    import optuna

    if isinstance(domain, Choice):
        return optuna.distributions.CategoricalDistribution(domain.values)
    if domain.integer:
        return optuna.distributions.IntDistribution(
            int(domain.low), int(domain.high), log=domain.log
        )
    return optuna.distributions.FloatDistribution(domain.low, domain.high, log=domain.log)


def _rounded(value: Value, domain: Domain) -> Value:
    if isinstance(domain, Choice) or domain.integer:
        return value
    return min(max(float(f"{value:.4g}"), float(domain.low)), float(domain.high))
