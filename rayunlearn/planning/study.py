"""Asking Optuna, truthfully and without state: a study is rebuilt from finished trials whenever it
is needed.

Trials are asked for in batches. What a batch asks depends on the trials of the earlier batches and
on nothing else, so a plan interrupted anywhere is the same plan afterwards, trial ids included;
there is no sampler state to restore, and no trial that Optuna believes to be running.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rayunlearn.config import Value, digest
from rayunlearn.errors import unknown_name
from rayunlearn.experiment import SAMPLERS, Choice, Domain
from rayunlearn.schema import PRUNED

if TYPE_CHECKING:
    import optuna


# samplers that write on a trial which generation it is of
BY_GENERATIONS = ("nsga2", "cmaes")
# utilities are at most 1, so no complete trial violates the floor by more
COLLAPSED_VIOLATION = 1.0


@dataclass(frozen=True)
class Sampler:
    """Which of Optuna's samplers asks (`budget.sampler`); `population`: trials of a batch, which is
    a generation of `nsga2` and `cmaes`.
    """

    name: str = "tpe"
    population: int = 4


@dataclass(frozen=True, kw_only=True)
class StudyTrial:
    """One ended trial of a study. `forgetting` is what is minimised: the distance of the forgetting
    metric from its target, or the metric itself (`objective.target`). `violation` = floor x base
    utility - utility: feasible at 0 or less.

    `forgetting`, `utility` and `violation` are NaN where the trial was not measured. Of a pruned
    one `violation` is what its last look saw, and `seen` has what is minimised by step.
    """

    values: Mapping[str, Value]
    status: str
    forgetting: float = math.nan
    utility: float = math.nan
    violation: float = math.nan
    trial_id: str = ""
    seen: Mapping[int, float] = field(default_factory=dict)

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


# a setting whose trials ended differently ended like the first of these
WORST_FIRST = ("failed", "timed_out", "diverged", "collapsed", "pruned")


def judged_by_seeds(trials: Sequence[StudyTrial]) -> StudyTrial:
    """One setting from its trials, which differ in their seeds: the mean of what is minimised, the
    mean utility and the largest violation, so that a setting is feasible if all its seeds are.

    Where a trial was not measured the setting was not, and ended as the worst of them did.

    Args:
        trials: at least one, all with the same values.

    Returns:
        The setting as its study knows it, under the id of its first trial.

    Example:
        >>> seeds = [(0.1, 0.0), (0.3, 0.2)]
        >>> both = [
        ...     StudyTrial(values={}, status="complete", forgetting=f, utility=0.9, violation=v)
        ...     for f, v in seeds
        ... ]
        >>> judged_by_seeds(both).forgetting, judged_by_seeds(both).violation
        (0.2, 0.2)
    """
    statuses = {trial.status for trial in trials}
    worst = next((status for status in WORST_FIRST if status in statuses), "complete")
    return replace(
        trials[0],
        status=worst,
        forgetting=fmean(trial.forgetting for trial in trials),
        utility=fmean(trial.utility for trial in trials),
        violation=_largest([trial.violation for trial in trials]),
    )


def _largest(values: Sequence[float]) -> float:
    """The largest, NaN where one is."""
    return math.nan if any(map(math.isnan, values)) else max(values)


def suggest(
    space: Mapping[str, Domain],
    finished: Sequence[StudyTrial],
    *,
    batch: int,
    seed: int,
    sampler: Sampler = Sampler(),
    enqueued: Sequence[Mapping[str, Value]] = (),
) -> list[dict[str, Value]]:
    """The next `batch` settings: forgetting minimised, utility maximised, the utility floor a
    constraint.

    What is `enqueued` comes first and as it is; Optuna is told of it (`Study.enqueue_trial`) where
    it lies in the space. Without finished trials the rest is random; every later call learns. A
    pure function of its arguments: the sampler is seeded here. Numbers that are drawn keep 4
    significant digits, so that a table can show the very value that ran.
    """
    # TPE ranks pruned trials by what they saw in the one direction of a study, and two objectives
    # have none (Optuna 5.0 raises)
    told = [replace(trial, seen={}) for trial in finished]
    study = study_from(space, told, seed=seed, sampler=sampler)
    first = [dict(values) for values in enqueued[:batch]]
    inside_space = [values for values in first if not values_outside(space, values)]
    for values in inside_space:
        study.enqueue_trial(values)
    n_asked = len(inside_space) + batch - len(first)
    with quiet_optuna():
        parameters = [study.ask(distributions(space)).params for _ in range(n_asked)]
    sampled = [
        {name: _rounded(params[name], domain) for name, domain in space.items()}
        for params in parameters[len(inside_space) :]
    ]
    return [*first, *sampled]


def values_outside(space: Mapping[str, Domain], values: Mapping[str, Value]) -> tuple[str, ...]:
    """The names whose value is no point of its domain; Optuna cannot be told of such a trial."""
    return tuple(name for name, domain in space.items() if not _contains(domain, values[name]))


def n_combinations(space: Mapping[str, Domain]) -> float:
    """Number of different settings in a search space; infinite with a `Range` of real numbers."""
    return math.prod(len(values) if (values := _values(d)) else math.inf for d in space.values())


def combinations(space: Mapping[str, Domain]) -> list[dict[str, Value]]:
    """Every setting of a finite search space once, the last name fastest."""
    return [
        dict(zip(space, values, strict=True)) for values in product(*map(_values, space.values()))
    ]


def best_trial(finished: Sequence[StudyTrial]) -> StudyTrial | None:
    """The feasible trial that is nearest to the target (lowest `forgetting`; the earlier one of two
    equals).

    Where none is feasible, the measured trial with the highest utility; None where none was
    measured.
    """
    measured = [trial for trial in finished if trial.measured]
    feasible = [trial for trial in measured if trial.violation <= 0]
    if feasible:
        return min(feasible, key=lambda trial: trial.forgetting)
    return max(measured, key=lambda trial: trial.utility, default=None)


def study_from(
    space: Mapping[str, Domain],
    finished: Sequence[StudyTrial],
    *,
    seed: int,
    sampler: Sampler = Sampler(),
) -> "optuna.Study":
    """An in-memory study that holds the finished trials in order, each in the state that is true of
    it.

    Left out are those whose values lie outside the space (BASE's own values may). A pruned one has
    its intermediate values, what is minimised by step. Until a trial has told something the sampler
    is random: Optuna's own default of 10 random startup trials would be a whole small budget.
    """
    with quiet_optuna():
        return _study_of(_told(space, finished, sampler, seed), sampler, seed)


def optuna_sampler(sampler: Sampler, *, seed: int) -> "optuna.samplers.BaseSampler":
    """Optuna's own sampler of that name, seeded; what it needs to learn from its first trial on is
    set.
    """
    from optuna import samplers

    if sampler.name == "tpe":
        return samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=True)
    if sampler.name == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=1)
    if sampler.name == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=sampler.population)
    if sampler.name == "cmaes":
        return samplers.CmaEsSampler(seed=seed, n_startup_trials=1, popsize=sampler.population)
    if sampler.name == "random":
        return samplers.RandomSampler(seed=seed)
    raise unknown_name("budget.sampler", sampler.name, SAMPLERS)


def distributions(
    space: Mapping[str, Domain],
) -> dict[str, "optuna.distributions.BaseDistribution"]:
    """Optuna's name for each domain."""
    return {name: _distribution(domain) for name, domain in space.items()}


def lowest_value(domain: Domain) -> Value:
    """A range's lower end, a choice's first value."""
    if isinstance(domain, Choice):
        return domain.values[0]
    return int(domain.low) if domain.integer else float(domain.low)


def sampler_seed(study: str, batch_index: int, *, search: int = 0) -> int:
    """The sampler's seed for one batch of one search of a study, the same on every machine."""
    return int(digest([study, batch_index, *([search] if search else [])], 8), 16) % 2**32


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's log lines, its warnings that a part of it is experimental, and the division
    by zero of CMA-ES with two or three trials a batch.
    """
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            # metric names, multivariate, the Gaussian process
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # one parent of three: an infinite bound, which drops out of the minimum of three
            warnings.filterwarnings("ignore", "divide by zero", RuntimeWarning, r"cmaes\b")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _told(
    space: Mapping[str, Domain], finished: Sequence[StudyTrial], sampler: Sampler, seed: int
) -> list["optuna.trial.FrozenTrial"]:
    """The finished trials as Optuna is told of them.

    Samplers that go by generations write marks on a trial when they ask it, which Optuna keeps in
    its storage. Here each batch is asked once more, after those before it. The marks depend on what
    was told (the seed only moves what is drawn), so they are those of a study that was never shut.
    """
    told_trials: list[optuna.trial.FrozenTrial] = []
    objectives = _objectives(finished, sampler)
    for start in range(0, len(finished), sampler.population):
        batch = [
            index
            for index in range(start, min(start + sampler.population, len(finished)))
            if not values_outside(space, finished[index].values)
        ]
        marks: list[dict[str, Any]] = [{} for _ in batch]
        if sampler.name in BY_GENERATIONS:
            study = _study_of(told_trials, sampler, seed)
            numbers = [study.ask(distributions(space)).number for _ in batch]
            marks = [study.trials[number].system_attrs for number in numbers]
        told_trials += [
            _frozen(space, finished[index], objectives[index], mark)
            for index, mark in zip(batch, marks, strict=True)
        ]
    return told_trials


def _study_of(
    told_trials: Sequence["optuna.trial.FrozenTrial"], sampler: Sampler, seed: int
) -> "optuna.Study":
    import optuna

    learns = any(trial.state != optuna.trial.TrialState.FAIL for trial in told_trials)
    names = ["objective"] if sampler.name == "cmaes" else ["forgetting", "utility"]
    study = optuna.create_study(
        directions=["minimize", "maximize"][: len(names)],
        sampler=optuna_sampler(sampler if learns else Sampler("random"), seed=seed),
    )
    study.set_metric_names(names)
    study.add_trials(told_trials)
    return study


def _objectives(finished: Sequence[StudyTrial], sampler: Sampler) -> list[list[float] | None]:
    """What Optuna is told of each trial; None where it was not measured.

    CMA-ES takes one objective and no constraint, and looks at its order alone: feasible trials by
    forgetting, after them the others by how much they violate the floor (Deb 2000, "An efficient
    constraint handling method for genetic algorithms", equation 4).
    """
    measured = [trial for trial in finished if trial.measured]
    worst = max((trial.forgetting for trial in measured), default=0.0)
    values: list[list[float] | None] = []
    for trial in finished:
        if not trial.measured:
            values.append(None)
        elif sampler.name != "cmaes":
            values.append([trial.forgetting, trial.utility])
        else:
            violation = _told_violation(trial)
            values.append([worst + violation if violation > 0 else trial.forgetting])
    return values


def _told_violation(trial: StudyTrial) -> float:
    is_known = trial.measured or trial.status == PRUNED
    return trial.violation if is_known and math.isfinite(trial.violation) else COLLAPSED_VIOLATION


def _frozen(
    space: Mapping[str, Domain],
    trial: StudyTrial,
    values: list[float] | None,
    marks: dict[str, Any],
) -> "optuna.trial.FrozenTrial":
    import optuna

    states = {
        "collapsed": optuna.trial.TrialState.PRUNED,
        "diverged": optuna.trial.TrialState.PRUNED,
        PRUNED: optuna.trial.TrialState.PRUNED,
    }
    state = (
        optuna.trial.TrialState.COMPLETE
        if trial.measured
        else states.get(trial.status, optuna.trial.TrialState.FAIL)
    )
    constraints = {"utility_floor": _told_violation(trial)}
    return optuna.trial.create_trial(
        state=state,
        values=values,
        intermediate_values=dict(trial.seen),
        params={name: trial.values[name] for name in space},
        distributions=distributions(space),
        constraints=constraints if state != optuna.trial.TrialState.FAIL else None,
        user_attrs={"trial_id": trial.trial_id, "status": trial.status},
        system_attrs=marks,
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


def _contains(domain: Domain, value: Value) -> bool:
    if isinstance(domain, Choice):
        # True == 1, but a choice of numbers has no True
        return any(type(value) is type(choice) and value == choice for choice in domain.values)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    whole = not domain.integer or float(value).is_integer()
    return whole and domain.low <= value <= domain.high


def _rounded(value: Value, domain: Domain) -> Value:
    if isinstance(domain, Choice) or domain.integer:
        return value
    return min(max(float(f"{value:.4g}"), float(domain.low)), float(domain.high))
