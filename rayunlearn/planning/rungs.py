"""Successive halving inside a batch of a study (`budget.rungs`): which trials go on from a rung.

A trial of a batch trains to the first rung and waits there. When all of its batch have come so far,
or ended before, the best go on, 1 of `budget.eta` of the batch at each rung (Jamieson and Talwalkar
1502.07943, Algorithm 1, which halves once a rung; that trials wait for their batch, not for the
whole study, is our choice). What is decided depends on the curves of the batch alone: never on when
a trial came to its rung, so a plan that is interrupted anywhere is the same plan afterwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rayunlearn.analysis.training_curve import constrained_rank
from rayunlearn.config import NO_RUNGS, Rungs, rung_step
from rayunlearn.planning.outcomes import StudyGoal, TrialResult
from rayunlearn.schema import PAUSED, PRUNED

# 12 / 2.4 is five, however it is rounded
SHARE_ROUNDING = 1e-9
# a trial that is to train to its end
TO_THE_END = 1.0


@dataclass(frozen=True)
class RungRule:
    """Where trials are compared (`shares` of their steps, rising), how many go on (1 of `eta`), and
    `floor`, the share of base's utility that a trial keeps.
    """

    shares: tuple[float, ...]
    eta: float
    floor: float


@dataclass(frozen=True)
class RungValue:
    """What a look saw at a rung: the step, what is minimised there, and by how much the floor is
    violated (kept at 0 or less).
    """

    step: int
    forgetting: float
    violation: float


@dataclass(frozen=True)
class BatchMember:
    """What a batch says of one of its trials: `rungs`, how far it may train; `pruned`, what was
    seen at the rung at which it ended.
    """

    rungs: Rungs = NO_RUNGS
    pruned: RungValue | None = None


def batch_members(
    results: Sequence[TrialResult | None],
    goal: StudyGoal,
    rule: RungRule,
) -> list[BatchMember]:
    """How far each trial of a batch may train, given what has finished (None: not that far yet).

    A trial that ended before a rung (collapsed, diverged, failed) is not compared there, and counts
    among those that were cut. Of two equals the earlier one goes on.
    """
    members = [BatchMember(Rungs(rule.shares, rule.shares[0])) for _ in results]
    on = list(range(len(results)))
    for number, share in enumerate(rule.shares):
        for index in on:
            members[index] = BatchMember(Rungs(rule.shares, share))
        reached = [results[index] for index in on if has_reached(results[index], share)]
        if len(reached) < len(on) or not goal.is_known:
            return members
        values = {
            index: value
            for index in on
            if (value := rung_value(results[index], goal, rule, share)) is not None
        }
        ranked = sorted(values, key=lambda i: (*_rank(values[i]), i))
        n_on = max(1, math.ceil(len(results) / rule.eta ** (number + 1) - SHARE_ROUNDING))
        for index in ranked[n_on:]:
            members[index] = BatchMember(Rungs(rule.shares, share), values[index])
        on = sorted(ranked[:n_on])
    for index in on:
        members[index] = BatchMember(Rungs(rule.shares))
    return members


def has_reached(result: TrialResult | None, share: float) -> bool:
    """Whether a trial has come to that share of its steps, or has ended."""
    return result is not None and not waits_below(result, share)


def waits_below(result: TrialResult, share: float) -> bool:
    """Whether a trial stopped at a rung below that share of its steps: to come there it must run
    again.
    """
    # where curves are not read a rung is NaN, below every share
    return result.status in (PAUSED, PRUNED) and not result.rung >= share


def rung_value(
    result: TrialResult | None, goal: StudyGoal, rule: RungRule, share: float
) -> RungValue | None:
    """What the look at a rung saw, or the one nearest to it, where a trial ran before there were
    rungs; None where it ended before. Utility is held against what the trial's own first look saw
    of base, on the same probes.
    """
    if result is None or goal.target is None or not result.curve:
        return None
    rung, (_, *looks) = rung_step(share, result.planned_steps), result.curve
    if not looks or looks[-1][0] < rung:
        return None
    step, forgetting, utility = min(looks, key=lambda look: abs(look[0] - rung))
    violation = rule.floor * result.curve[0][2] - utility
    return RungValue(step, goal.target.of_mean(forgetting), violation)


def _rank(value: RungValue) -> tuple[float, float]:
    return constrained_rank(value.forgetting, value.violation)
