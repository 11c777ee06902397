"""Who goes on from a rung: by hand, and never by when a trial came there."""

import math
import random
from array import array
from collections.abc import Sequence

import pytest

from benchmarks.rungs import Case, PoolStudy, halved
from rayunlearn.config import Rungs
from rayunlearn.errors import UserError
from rayunlearn.experiment import Budget
from rayunlearn.planning.outcomes import DocumentValues, SearchTarget, StudyGoal, TrialResult
from rayunlearn.planning.planner import study_trial
from rayunlearn.planning.rungs import BatchMember, RungRule, batch_members, rung_value

# gold knows 0.1 of the forget set, and a trial must keep 0.9 of base's utility
GOAL = StudyGoal(floor=0.9, target=SearchTarget("gold", DocumentValues(("d",), array("d", [0.1]))))
RULE = RungRule((0.25, 0.5), 2, 0.9)


def at(share: float, *looks: tuple[float, float], status: str = "paused") -> TrialResult:
    """A trial of 80 steps with looks after 20, 40, ...: (forgetting, utility); base has (1, 1)."""
    points = ((1.0, 1.0), *looks)
    curve = tuple((20 * number, *point) for number, point in enumerate(points))
    return TrialResult(status, curve=curve, planned_steps=80, rung=share)


def decided(*results: TrialResult | None, goal: StudyGoal = GOAL) -> list[BatchMember]:
    return batch_members(results, goal, RULE)


def untils(members: Sequence[BatchMember]) -> list[float]:
    return [member.rungs.until for member in members]


def test_utility_under_the_floor_comes_after_all_that_keep_it_however_much_is_forgotten() -> None:
    """At the first rung: far from gold but over the floor; near it; at it, but under the floor
    (destroyed); below gold by more than the second. Two of four go on, 0.3 and 0.25 - 0.1 away.
    """
    members = decided(
        at(0.25, (0.4, 0.95)), at(0.25, (0.25, 0.92)), at(0.25, (0.1, 0.85)), at(0.25, (0.9, 0.99))
    )
    assert untils(members) == [0.5, 0.5, 0.25, 0.25]
    destroyed = members[2].pruned
    assert destroyed is not None and destroyed.step == 20
    assert (destroyed.forgetting, destroyed.violation) == pytest.approx((0.0, 0.05))
    assert members[0].pruned is None


def test_the_second_rung_keeps_one_of_four_and_that_one_goes_to_its_end() -> None:
    """Below gold counts as far as above: 0.02 is 0.08 away, 0.15 is 0.05 away."""
    members = decided(
        at(0.5, (0.4, 0.95), (0.02, 0.95)),
        at(0.5, (0.3, 0.92), (0.15, 0.91)),
        at(0.25, (0.1, 0.85)),
        at(0.25, (0.9, 0.99)),
    )
    assert untils(members) == [0.5, 1.0, 0.25, 0.25]
    assert members[0].pruned is not None and members[0].pruned.step == 40


def test_nothing_is_decided_before_the_whole_batch_has_come_and_the_goal_is_known() -> None:
    there = at(0.25, (0.4, 0.95))
    assert untils(decided(there, None, there, there)) == [0.25] * 4
    unknown = StudyGoal(floor=math.nan, target=None)
    assert untils(decided(there, there, there, there, goal=unknown)) == [0.25] * 4


def test_what_collapsed_before_a_rung_is_among_those_that_were_cut() -> None:
    """Two of four collapsed: the two that are left are the two that go on, and at the next rung one
    of them does. One that collapsed later was compared at the first rung and had its place.
    """
    gone = TrialResult("collapsed", 0.0, 0.0, curve=((0, 1.0, 1.0),), planned_steps=80)
    first, second = at(0.25, (0.8, 0.95)), at(0.25, (0.5, 0.92))
    assert untils(decided(gone, first, gone, second))[1::2] == [0.5, 0.5]
    later = at(math.nan, (0.2, 0.95), status="collapsed")
    members = decided(later, first, second, at(0.25, (0.9, 0.95)))
    assert untils(members) == [0.5, 0.25, 0.5, 0.25]
    failed = TrialResult("failed")
    assert untils(decided(failed, failed, failed, first))[3] == 0.5


@pytest.mark.parametrize(("eta", "on"), [(2, 6), (2.4, 5), (2.5, 5), (3, 4), (5, 3), (100, 1)])
def test_one_of_eta_goes_on_rounded_up(eta: float, on: int) -> None:
    """12 / 2.4 is five, and not six by a last digit."""
    batch = [at(0.25, (0.4 + number / 100, 0.95)) for number in range(12)]
    members = batch_members(batch, GOAL, RungRule((0.25,), eta, 0.9))
    assert untils(members) == [1.0] * on + [0.25] * (12 - on)


def test_of_two_equals_the_earlier_one_goes_on() -> None:
    same = at(0.25, (0.4, 0.95))
    members = decided(same, same, same, same)
    assert [member.pruned is None for member in members] == [True, True, False, False]


@pytest.mark.parametrize(
    ("share", "steps", "step", "pause"),
    [(0.17, 60, 10, 10), (0.01, 60, 1, 1), (0.7, 60, 42, 42), (0.999, 60, 60, 0), (0.5, 1, 1, 0)],
)
def test_a_rung_is_at_its_share_of_the_steps(
    share: float, steps: int, step: int, pause: int
) -> None:
    """It is nowhere near a look of the trial's own, and a trial does not pause at its end."""
    rungs = Rungs((share,), until=share)
    assert (rungs.steps(steps), rungs.pause_step(steps)) == ({step}, pause)
    assert Rungs((share,)).pause_step(steps) == 0


def test_a_trial_that_ran_without_rungs_is_compared_by_its_nearest_look() -> None:
    """Rungs after 22 and 38 of 80 steps; looks after 20 and 40."""
    rule = RungRule((0.28, 0.48), 2, 0.9)
    whole = finished((0.4, 0.95), (0.02, 0.95), (0.1, 0.95), (0.1, 0.95))
    early = TrialResult("collapsed", 0.0, 0.0, curve=at(0.0, (0.3, 0.8)).curve, planned_steps=80)
    first, second = (rung_value(whole, GOAL, rule, share) for share in rule.shares)
    assert first is not None and second is not None
    assert (first.step, first.forgetting) == (20, pytest.approx(0.3))
    assert (second.step, second.forgetting) == (40, pytest.approx(0.08))
    assert rung_value(early, GOAL, rule, 0.28) is None


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"rungs": "0.5,0.25"}, r"budget\.rungs must be rising shares in \(0, 1\)"),
        ({"rungs": "half"}, r"budget\.rungs must be rising shares.*got 'half'"),
        ({"rungs": "1.0"}, r"budget\.rungs must be rising shares"),
        ({"eta": 1}, r"budget\.eta must be >= 2 and finite, got 1"),
        ({"eta": math.nan}, r"budget\.eta must be >= 2 and finite, got nan"),
        (
            {"rungs": "0.5", "sampler": "nsga2"},
            r"budget\.rungs needs a sampler without generations",
        ),
    ],
    ids=str,
)
def test_rungs_that_cannot_be_are_refused(values: dict[str, object], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        Budget(**values)  # type: ignore[arg-type]


def test_the_benchmark_of_rungs_plays_a_study_twice() -> None:
    """Four trials of 80 steps, gold at 0.1. At step 20 the first two are nearest and keep the
    floor, at step 40 the first is; in the end the third has come to 0.1 and wins without rungs.
    With them the first is left, 0.1 further away, and 80 + 40 + 20 + 20 of 320 steps are trained.
    """
    looks = (
        ((0.3, 0.95), (0.25, 0.95), (0.2, 0.95), (0.2, 0.95)),
        ((0.4, 0.95), (0.35, 0.95), (0.3, 0.95), (0.3, 0.95)),
        ((0.6, 0.95), (0.4, 0.95), (0.2, 0.95), (0.1, 0.95)),
        ((0.1, 0.5), (0.1, 0.5), (0.1, 0.5), (0.1, 0.5)),
    )
    results = tuple(finished(*points) for points in looks)
    study = PoolStudy(
        name="by hand",
        results=results,
        trials=tuple(
            study_trial({}, result, GOAL, trial_id=str(index))
            for index, result in enumerate(results)
        ),
        goal=GOAL,
        floor=0.9,
        spread=0.05,
    )
    case = Case(shares=(0.25, 0.5), eta=2, batch=4)
    outcome = halved(study, [0, 1, 2, 3], case, random.Random(0))
    assert outcome.is_cut and outcome.saved == 0.5
    assert outcome.regret == pytest.approx(0.1)
    kept = halved(study, [0, 1, 3], Case(shares=(0.5,), eta=2, batch=4), random.Random(0))
    assert not kept.is_cut and kept.regret == 0


def finished(*looks: tuple[float, float]) -> TrialResult:
    """A trial that ran to its end, where it is measured as its last look saw it."""
    forgetting, utility = looks[-1]
    documents = DocumentValues(("d",), array("d", [forgetting]))
    curve = at(math.nan, *looks).curve
    return TrialResult(
        "complete", forgetting, utility, documents=documents, curve=curve, planned_steps=80
    )
