"""Trials that differ in their length alone: at a constant rate a shorter training is the beginning
of a longer one, so the longest is trained and the others are measured on its way.

Their numbers are those of trainings of their own, to the bit, so their ids are too: a run whose
shorter trials have finished trains the longest alone, and the other way round.
"""

import json
from collections.abc import Iterable, Sequence

from rayunlearn.config import Attack, Trial, flatten
from rayunlearn.planning.planner import PlannedTrial
from rayunlearn.planning.rungs import TO_THE_END
from rayunlearn.registry import changes_after_training


def begins_longer_ones(trial: Trial) -> bool:
    """Whether the trial is the beginning of the same trial with more steps: its rate is constant
    from the first step, what acts around the steps does not know how many there are, no look ends
    it or chooses its weights, and measuring it leaves its weights as they are.
    """
    train, stop = trial.train, trial.stop
    is_constant = train.schedule == "constant" and train.warmup_fraction == 0
    is_plain = train.adapter == "none" and train.weights == "float32"
    is_unwatched = stop.utility_floor == 0 and stop.retention_floor == 0 and stop.keep == "last"
    only_reads = (
        trial.measure.attack == "none"
        and trial.calibrate.tau == 0
        and trial.explain.documents == 0
        and trial.explain.path_points == 0
    )
    return (
        trial.stage == "unlearned"
        and not trial.model.unlearned
        and trial.attack == Attack()
        and is_constant
        and is_plain
        and is_unwatched
        and only_reads
        and not changes_after_training(trial)
    )


def by_longest(rows: Iterable[PlannedTrial]) -> list[tuple[PlannedTrial, tuple[PlannedTrial, ...]]]:
    """The trials to train, in their order, each with the shorter ones that are measured on its way,
    the shortest first.
    """
    groups: dict[str, list[PlannedTrial]] = {}
    for row in rows:
        groups.setdefault(_what_is_shared(row), []).append(row)
    return [_longest_first(group) for group in groups.values()]


def _what_is_shared(row: PlannedTrial) -> str:
    if row.rungs.until != TO_THE_END or not begins_longer_ones(row.trial):
        return row.trial_id
    settings = flatten(row.trial)
    del settings["train.length"]
    return json.dumps(settings, sort_keys=True)


def _longest_first(
    group: Sequence[PlannedTrial],
) -> tuple[PlannedTrial, tuple[PlannedTrial, ...]]:
    *shorter, longest = sorted(group, key=lambda row: row.trial.train.length)
    return longest, tuple(shorter)
