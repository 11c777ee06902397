"""The winners of another run's tuning, for the groups of this experiment: `--tuned-from RUN` tries
them, `budget.tuning=from:RUN` takes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rayunlearn.canonical import CheckTrial, canonical_trial
from rayunlearn.config import Value, flatten
from rayunlearn.errors import UserError, require
from rayunlearn.experiment import Experiment, Winner, Winners, axis_names
from rayunlearn.planning.planner import (
    GridGroup,
    grid_groups,
    group_winner,
    study_name,
    tuning_base,
)
from rayunlearn.planning.study import StudyTrial, best_trial
from rayunlearn.planning.study_export import RecordedStudy, studies_of_run


@dataclass(frozen=True, kw_only=True)
class TunedGroup:
    """What a run tuned: the axis values of the group, the trial that won, all its settings and the
    names that were searched.
    """

    values: Mapping[str, Value]
    trial_id: str
    settings: Mapping[str, Value]
    searched: tuple[str, ...]


def with_winners(experiment: Experiment, *, check: CheckTrial) -> Experiment:
    """The experiment with the winners of the run that `budget.source` names.

    A group takes the winner of the one that has the same values, on every axis of either run.
    Raises UserError for a run that tuned nothing or whose tuning has not ended; where winners are
    taken without a search, for a group that it did not tune; where they are tried first, for a run
    that tuned none of the groups.
    """
    source = experiment.budget.source
    tuning, tuned = tuned_groups(source)
    # the groups are those of the other run's tuning
    experiment = replace(experiment, winners=Winners(tuning=tuning))
    canonical = partial(canonical_trial, check=check)
    groups = grid_groups(experiment, check=canonical)
    by_group: dict[str, Winner] = {}
    for group in groups:
        base = flatten(tuning_base(experiment, group, check=canonical))
        for other in tuned:
            if _agree(group.values, other.settings) and _agree(other.values, base):
                values = _tuned_values(experiment, other, base)
                by_group[group.key] = Winner(run=source, trial_id=other.trial_id, values=values)
    experiment = replace(experiment, winners=Winners(tuning=tuning, by_group=by_group))
    if experiment.budget.takes_winners:
        for group in groups:
            group_winner(experiment, group)
    rule = f"{source} must have tuned a group of this experiment"
    require(bool(by_group), f"{rule} ({_words(groups)})", [dict(other.values) for other in tuned])
    return experiment


def tuned_groups(source: str) -> tuple[str, tuple[TunedGroup, ...]]:
    """How a run was tuned (`shared` or `per_cell`), and its groups that have a winner. Raises
    UserError for a run that tuned nothing and for one whose tuning has not ended.
    """
    from rayunlearn.storage.run import read_experiment
    from rayunlearn.storage.sync import local_run

    run = local_run(source)
    studies = studies_of_run(run)
    rule = "a run whose winners are taken must have tuned something (budget.tuning)"
    require(bool(studies), rule, source)
    tuning = str(read_experiment(run).get("budget", {}).get("tuning", ""))
    by_group: dict[str, list[RecordedStudy]] = {}
    for study in studies:
        by_group.setdefault(repr(sorted(study.group.items())), []).append(study)
    return tuning, tuple(_tuned_group(searches, source) for searches in by_group.values())


def require_same_winners(run: Path, experiment: Experiment) -> None:
    """Raise UserError where the run was begun with other winners of the same run: the tuning there
    has changed since, and going on would mix two plans.
    """
    from rayunlearn.storage.run import read_experiment

    content = read_experiment(run)
    before, now = content.get("winners", {}), asdict(experiment.winners)
    budget = content.get("budget", {})
    same_source = (budget.get("tuning"), budget.get("tuned_from")) == (
        experiment.budget.tuning,
        experiment.budget.tuned_from,
    )
    if not experiment.budget.source or not same_source or before == now:
        return
    before_ids = sorted(winner["trial_id"] for winner in before.get("by_group", {}).values())
    ids = sorted(winner.trial_id for winner in experiment.winners.by_group.values())
    raise UserError(
        f"the winners of {experiment.budget.source} must be those that this run was begun with"
        f" ({', '.join(before_ids)}), got {', '.join(ids)}: run it under a new --version"
    )


def _tuned_group(searches: Sequence[RecordedStudy], source: str) -> TunedGroup:
    """The winner of a group: of several searches the best of theirs."""
    winners = [_winner(study, source) for study in searches]
    best = best_trial(winners)
    study, winner = next(pair for pair in zip(searches, winners, strict=True) if pair[1] is best)
    return TunedGroup(
        values=study.group,
        trial_id=winner.trial_id,
        settings=study.rows[study.finished.index(winner)],
        searched=tuple(study.space),
    )


def _winner(study: RecordedStudy, source: str) -> StudyTrial:
    winner = best_trial(study.finished)
    if winner is None or not study.is_complete:
        raise UserError(
            f"a run whose winners are taken must have ended its tuning, got {source} with"
            f" {len(study.finished)} trials of the study {study.name!r} ended and no winner chosen"
        )
    return winner


def _tuned_values(
    experiment: Experiment, tuned: TunedGroup, base: Mapping[str, Value]
) -> dict[str, Value]:
    """The winner's values of what is searched here; of what was searched there, where nothing is
    here.
    """
    on_axes = axis_names(experiment)
    names = [*experiment.search] or [name for name in tuned.searched if name not in on_axes]
    values = {name: tuned.settings.get(name) for name in names if name in base}
    return {name: value for name, value in values.items() if value is not None}


def _agree(values: Mapping[str, Value], settings: Mapping[str, Value]) -> bool:
    return all(settings.get(name) == value for name, value in values.items())


def _words(groups: tuple[GridGroup, ...]) -> str:
    return "; ".join(study_name(group) for group in groups)
