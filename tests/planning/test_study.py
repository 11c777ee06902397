"""Optuna is told the truth, and its suggestions are a pure function of what has finished."""

import math
from pathlib import Path

import optuna
import pytest

from rayunlearn.experiment import Choice, Range
from rayunlearn.planning.study import (
    Sampler,
    StudyTrial,
    best_trial,
    combinations,
    n_combinations,
    optuna_sampler,
    study_from,
    suggest,
)
from rayunlearn.planning.study_export import write_studies
from rayunlearn.storage.run import open_run

SPACE = {
    "rate": Range(1e-5, 1e-2, log=True),
    "layers": Range(1, 4, integer=True),
    "kind": Choice("a", "b"),
}
STATES = optuna.trial.TrialState


def finished(
    status: str = "complete",
    forgetting: float = 0.5,
    utility: float = 0.9,
    violation: float = 0.0,
    rate: float = 1e-3,
) -> StudyTrial:
    return StudyTrial(
        values={"rate": rate, "layers": 2, "kind": "a"},
        status=status,
        forgetting=forgetting,
        utility=utility,
        violation=violation,
    )


def test_optuna_is_told_of_a_pruned_trial_what_was_seen_and_can_still_be_asked() -> None:
    """PRUNED, over the floor, with what is minimised after 20 steps."""
    values = {"rate": 1e-3, "layers": 2, "kind": "a"}
    pruned = StudyTrial(values=values, status="pruned", violation=-0.05, seen={20: 0.3})
    past = [finished(forgetting=0.1), pruned, finished(rate=1e-4)]
    told = study_from(SPACE, past, seed=0).trials[1]
    assert (told.state, told.intermediate_values) == (STATES.PRUNED, {20: 0.3})
    assert told.constraints == {"utility_floor": -0.05}
    assert best_trial([pruned]) is None
    for name in ("tpe", "gp", "random"):
        asked = suggest(SPACE, past, batch=2, seed=1, sampler=Sampler(name, 4))
        assert len(asked) == 2


def test_a_finite_space_is_counted_and_listed_once() -> None:
    finite = {name: SPACE[name] for name in ("layers", "kind")}
    assert n_combinations(finite) == len(combinations(finite)) == 8
    assert combinations(finite)[:3] == [
        {"layers": 1, "kind": "a"},
        {"layers": 1, "kind": "b"},
        {"layers": 2, "kind": "a"},
    ]
    assert n_combinations(SPACE) == math.inf


def test_suggestions_lie_in_their_ranges_and_have_their_types() -> None:
    for values in suggest(SPACE, (), batch=20, seed=1):
        assert 1e-5 <= values["rate"] <= 1e-2 and isinstance(values["rate"], float)
        assert values["layers"] in (1, 2, 3, 4) and isinstance(values["layers"], int)
        assert values["kind"] in ("a", "b")


def test_the_same_past_gives_the_same_suggestions_and_another_seed_others() -> None:
    past = [finished(rate=10.0**-k, forgetting=0.1 * k) for k in (2, 3, 4, 5)]
    assert suggest(SPACE, past, batch=4, seed=1) == suggest(SPACE, past, batch=4, seed=1)
    assert suggest(SPACE, past, batch=4, seed=1) != suggest(SPACE, past, batch=4, seed=2)


def test_a_batch_is_not_the_same_point_again_and_again() -> None:
    past = [finished(rate=10.0**-k, forgetting=0.1 * k) for k in (2, 3, 4, 5)]
    rates = [values["rate"] for values in suggest(SPACE, past, batch=4, seed=1)]
    assert len(set(rates)) == 4


def test_numbers_keep_four_digits_and_never_leave_a_range_by_rounding() -> None:
    narrow = {"rate": Range(0.123456, 0.123457)}
    for values in suggest(narrow, (), batch=5, seed=0):
        assert 0.123456 <= values["rate"] <= 0.123457
    for values in suggest({"rate": Range(0.0, 1.0)}, (), batch=5, seed=0):
        assert values["rate"] == float(f"{values['rate']:.4g}")


def test_only_a_trial_measured_to_its_end_is_complete() -> None:
    unmeasured = (math.nan, math.nan, math.nan)
    past = [
        finished(),
        finished("collapsed"),
        finished("diverged", *unmeasured),
        finished("failed", *unmeasured),
        finished(forgetting=math.nan),
    ]
    states = [trial.state for trial in study_from(SPACE, past, seed=0).trials]
    assert states == [STATES.COMPLETE, STATES.PRUNED, STATES.PRUNED, STATES.FAIL, STATES.FAIL]


def test_a_trial_under_the_floor_is_complete_but_not_among_the_best() -> None:
    """Three trials by hand: the one that forgets most violates the floor,
    the other two trade off.
    """
    past = [
        finished(forgetting=0.0, utility=0.1, violation=0.8),
        finished(forgetting=0.3, utility=0.90),
        finished(forgetting=0.4, utility=0.95),
    ]
    study = study_from(SPACE, past, seed=0)
    assert [trial.state for trial in study.trials] == [STATES.COMPLETE] * 3
    assert sorted(trial.number for trial in study.best_trials) == [1, 2]


def test_best_is_the_feasible_trial_that_forgets_most_else_the_one_with_the_most_utility() -> None:
    low, high = (
        finished(forgetting=0.1, utility=0.2, violation=0.7),
        finished(forgetting=0.6, utility=0.8, violation=0.1),
    )
    feasible = finished(forgetting=0.7, utility=0.95, violation=-0.05)
    assert best_trial([low, high, feasible]) is feasible
    assert best_trial([low, high]) is high
    assert best_trial([finished("collapsed", 0.0, 0.0), finished(forgetting=math.nan)]) is None


def test_tuning_learns_more_often_than_not_better_than_its_own_random_start() -> None:
    """A made-up problem whose best feasible rate is known (1e-3): over 20 seeds the last batches of
    the study must ask closer to it, in decades, than the first random batch does on average."""

    def outcome(values: dict[str, object]) -> StudyTrial:
        rate = float(str(values["rate"]))
        utility = 1.0 if rate <= 1e-3 else 0.5
        return StudyTrial(
            values=values,
            status="complete",
            forgetting=abs(math.log10(rate / 1e-3)),
            utility=utility,
            violation=0.9 - utility,
        )  # type: ignore[arg-type]

    def distance(batch: list[StudyTrial]) -> float:
        return sum(abs(math.log10(float(str(f.values["rate"])) / 1e-3)) for f in batch) / len(batch)

    first, last = [], []
    for seed in range(20):
        past: list[StudyTrial] = []
        for index in range(5):
            past += [
                outcome(values)
                for values in suggest(
                    {"rate": SPACE["rate"]}, past, batch=4, seed=100 * seed + index
                )
            ]
        first.append(distance(past[:4]))
        last.append(distance(past[-4:]))
    assert sum(last) < 0.75 * sum(first)


def test_asking_warns_of_nothing_and_leaves_no_running_trial_behind() -> None:
    study = study_from(SPACE, [finished()], seed=0)
    assert all(trial.state.is_finished() for trial in study.trials)


def test_a_choice_with_equal_values_is_refused() -> None:
    with pytest.raises(ValueError, match="must differ"):
        Choice("a", "a")


NUMBERS = {"rate": SPACE["rate"], "layers": SPACE["layers"]}
LEARNING = ("tpe", "nsga2", "cmaes")


def skip_without_package(sampler: str) -> None:
    if sampler == "cmaes":
        pytest.importorskip("cmaes")


def told_of(values: dict[str, object]) -> StudyTrial:
    """A made-up world: 1e-3 is the best rate that keeps the floor."""
    rate = float(str(values["rate"]))
    utility = 1.0 if rate <= 1e-3 else 0.5
    forgetting = abs(math.log10(rate / 1e-3)) + 0.01 * float(str(values["layers"]))
    return StudyTrial(
        values=values,  # type: ignore[arg-type]
        status="complete",
        forgetting=forgetting,
        utility=utility,
        violation=0.9 - utility,
    )


def test_what_is_enqueued_comes_first_as_it_is_and_only_as_often_as_the_batch_has_room() -> None:
    own, won = ({"rate": rate, "layers": 2, "kind": "a"} for rate in (0.00123456, 2e-3))
    first = suggest(SPACE, (), batch=4, seed=1, enqueued=[own, won])
    assert first[:2] == [own, won] and len(first) == 4
    assert len({values["rate"] for values in first}) == 4
    assert suggest(SPACE, (), batch=1, seed=1, enqueued=[own, won]) == [own]


def test_a_trial_outside_the_space_runs_but_optuna_is_not_told_of_it() -> None:
    outside = {"rate": 0.5, "layers": 2, "kind": "a"}
    first = suggest(SPACE, (), batch=3, seed=1, enqueued=[outside])
    assert first[0] == outside and all(values["rate"] <= 1e-2 for values in first[1:])
    past = [finished(rate=0.5), finished(rate=1e-3)]
    assert [trial.params["rate"] for trial in study_from(SPACE, past, seed=0).trials] == [1e-3]
    assert suggest(SPACE, past, batch=2, seed=3) == suggest(SPACE, past[1:], batch=2, seed=3)


def test_tpe_alone_asked_by_hand_with_the_same_trials_says_the_same() -> None:
    """Nothing of ours in between but the rounding to four digits."""
    past = [told_of({"rate": 10.0**-k, "layers": k - 1}) for k in (2, 3, 4, 5)]
    sampler = optuna.samplers.TPESampler(seed=7, n_startup_trials=1, multivariate=True)
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    domains = {
        "rate": optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True),
        "layers": optuna.distributions.IntDistribution(1, 4),
    }
    for trial in past:
        study.add_trial(
            optuna.trial.create_trial(
                values=[trial.forgetting, trial.utility],
                params=dict(trial.values),
                distributions=domains,
                constraints={"utility_floor": trial.violation},
            )
        )
    by_hand = [study.ask(domains).params for _ in range(3)]
    for asked, ours in zip(by_hand, suggest(NUMBERS, past, batch=3, seed=7), strict=True):
        assert ours == {"rate": float(f"{asked['rate']:.4g}"), "layers": asked["layers"]}


@pytest.mark.parametrize("name", ["nsga2", "cmaes"])
def test_a_sampler_with_generations_goes_on_as_in_a_study_that_was_never_shut(name: str) -> None:
    """One study of Optuna's own is asked and told to its end; ours is made anew for every batch,
    from the trials alone. Five batches, each with a seed of its own, and a trial that failed.
    """
    skip_without_package(name)
    sampler = Sampler(name, population=4)
    directions = ["minimize"] if name == "cmaes" else ["minimize", "maximize"]
    with_constraint = name == "nsga2"
    open_study = optuna.create_study(directions=directions)
    space = {"rate": NUMBERS["rate"], "weight": Range(0.5, 8.0)}
    past: list[StudyTrial] = []
    for batch in range(5):
        ours = suggest(space, past, batch=4, seed=batch, sampler=sampler)
        first = Sampler("random") if batch == 0 else sampler
        open_study.sampler = optuna_sampler(first, seed=batch)
        asked = [
            open_study.ask(
                {
                    "rate": optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True),
                    "weight": optuna.distributions.FloatDistribution(0.5, 8.0),
                }
            )
            for _ in range(4)
        ]
        for trial, values in zip(asked, ours, strict=True):
            # ours are told with four digits
            assert values == pytest.approx(trial.params, rel=2e-3)
            result = told_of({"rate": trial.params["rate"], "layers": 0})
            failed = trial.number == 5
            past.append(
                StudyTrial(values=values, status="failed")
                if failed
                else StudyTrial(
                    values=values,
                    status="complete",
                    forgetting=result.forgetting,
                    utility=result.utility,
                    violation=result.violation,
                )
            )
            if failed:
                open_study.tell(trial, state=STATES.FAIL)
                continue
            if with_constraint:
                trial.set_constraint("utility_floor", result.violation)
                open_study.tell(trial, [result.forgetting, result.utility])
            else:
                # any number above every forgetting puts what violates the floor last
                penalty = 100 + result.violation
                open_study.tell(trial, penalty if result.violation > 0 else result.forgetting)


@pytest.mark.parametrize("name", LEARNING)
def test_every_sampler_that_learns_asks_closer_to_the_best_than_at_random(name: str) -> None:
    """Decades from the best rate, the first batch against the fifth, over 20 seeds."""
    skip_without_package(name)
    first, last = 0.0, 0.0
    for seed in range(20):
        past: list[StudyTrial] = []
        for batch in range(5):
            asked = suggest(
                NUMBERS, past, batch=4, seed=100 * seed + batch, sampler=Sampler(name, 4)
            )
            past += [told_of(values) for values in asked]  # type: ignore[arg-type]
        first += sum(abs(math.log10(float(str(t.values["rate"])) / 1e-3)) for t in past[:4])
        last += sum(abs(math.log10(float(str(t.values["rate"])) / 1e-3)) for t in past[-4:])
    assert last < 0.85 * first


@pytest.mark.parametrize("name", ["gp", "random", *LEARNING])
def test_every_sampler_says_the_same_of_the_same_past_and_stays_in_range(name: str) -> None:
    skip_without_package(name)
    past = [told_of({"rate": 10.0**-k, "layers": k - 1}) for k in (2, 3, 4, 5)]
    asked = [
        suggest(NUMBERS, past, batch=2, seed=1, sampler=Sampler(name, population=4))
        for _ in range(2)
    ]
    assert asked[0] == asked[1]
    assert all(1e-5 <= v["rate"] <= 1e-2 and v["layers"] in (1, 2, 3, 4) for v in asked[0])
    assert asked[0][0] != asked[0][1]


@pytest.mark.parametrize("batch", [2, 3])
def test_a_generation_of_two_or_three_warns_of_nothing_and_has_finite_numbers(batch: int) -> None:
    skip_without_package("cmaes")
    past = [told_of({"rate": 10.0**-k, "layers": k - 1}) for k in (2, 3, 4, 5, 2, 3)]
    asked = suggest(NUMBERS, past, batch=batch, seed=1, sampler=Sampler("cmaes", batch))
    assert all(math.isfinite(float(str(value))) for one in asked for value in one.values())


def test_a_study_as_a_file_marks_the_chosen_setting_and_says_when_each_ran(tmp_path: Path) -> None:
    """A run of an earlier version has no `seconds`: the parts stand for it."""
    run = Path(__file__).parents[2] / "docs" / "notebooks" / "runs" / "coreset"
    names = write_studies(run, tmp_path / "studies.db")
    grid = open_run(run).trials.collect()
    for name in names:
        study = optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path}/studies.db")
        marked = [trial for trial in study.trials if trial.user_attrs.get("chosen")]
        assert [trial.user_attrs["trial_id"] for trial in marked] == [study.user_attrs["chosen"]]
        rate = marked[0].params["train.learning_rate"]
        assert (grid["train.learning_rate"] == rate).sum() > 3
        assert all(trial.duration.total_seconds() > 1 for trial in study.trials)
