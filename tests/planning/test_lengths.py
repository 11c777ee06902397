"""Which trials of a plan are the beginning of longer ones."""

import pytest

from rayunlearn.config import Rungs, Trial, Value, with_values
from rayunlearn.planning.lengths import begins_longer_ones, by_longest
from rayunlearn.planning.planner import PlannedTrial
from rayunlearn.registry import check_trial

CONSTANT: dict[str, Value] = {
    "train.schedule": "constant",
    "train.warmup_fraction": 0.0,
    "stop.utility_floor": 0.0,
}
# each makes a shorter training another one than the beginning of a longer one
OTHERS: dict[str, dict[str, Value]] = {
    "a falling rate": {"train.schedule": "linear"},
    "a rising rate": {"train.warmup_fraction": 0.1},
    "a look that ends it": {"stop.utility_floor": 0.1},
    "a look that keeps weights": {"stop.keep": "best"},
    "an average at the end": {"method.wrappers": "average"},
    "a task vector at the end": {"method.forget": "task_vector", "method.retain": "none"},
    "an adapter that is added": {"train.adapter": "lora"},
    "weights in fewer bits": {"train.weights": "bfloat16"},
    "an attack on its model": {"measure.attack": "relearning"},
    "an interpolation": {"calibrate.tau": 0.9},
    "an attack": {"attack.name": "relearning"},
    "base": {"stage": "base"},
}


def made(**values: Value) -> Trial:
    return check_trial(with_values(Trial(), CONSTANT | values))


def planned(*trials: Trial) -> list[PlannedTrial]:
    return [
        PlannedTrial(trial_id=str(number), trial=trial, role="grid", group="", tuning="")
        for number, trial in enumerate(trials)
    ]


def test_a_constant_rate_that_nobody_ends_begins_longer_ones_and_nothing_else_does() -> None:
    assert begins_longer_ones(made())
    assert begins_longer_ones(made(**{"method.wrappers": "sam,ball", "train.optimizer": "lion"}))


@pytest.mark.parametrize("why", OTHERS)
def test_what_a_longer_training_would_not_begin_with_trains_by_itself(why: str) -> None:
    assert not begins_longer_ones(made(**OTHERS[why]))


def test_trials_that_differ_in_length_alone_are_one_training_in_the_order_of_the_plan() -> None:
    """Two seeds by three lengths, and a trial at a falling rate that has a shorter brother."""
    rows = planned(
        *(
            made(**{"train.length": length, "train.seed": seed})
            for length in (10.0, 40.0, 20.0)
            for seed in (0, 1)
        ),
        made(**{"train.schedule": "linear", "train.length": 10.0}),
        made(**{"train.schedule": "linear", "train.length": 20.0}),
    )
    found = [(row.trial_id, [s.trial_id for s in shorter]) for row, shorter in by_longest(rows)]
    assert found == [("2", ["0", "4"]), ("3", ["1", "5"]), ("6", []), ("7", [])]


def test_trials_that_pause_at_a_rung_are_not_joined() -> None:
    rows = planned(made(**{"train.length": 10.0}), made(**{"train.length": 20.0}))
    from dataclasses import replace

    paused = [replace(row, rungs=Rungs((0.5,), 0.5)) for row in rows]
    assert [len(shorter) for _, shorter in by_longest(paused)] == [0, 0]


def test_steps_or_data_is_half_as_many_trainings() -> None:
    """310 trials, of which base and gold train nothing; 2 methods x 5 seeds x (4 ratios and a
    control), five lengths each."""
    from pathlib import Path

    from rayunlearn.experiment import load
    from rayunlearn.planning.planner import Planner
    from rayunlearn.trial.identity import identify_trial

    file = Path(__file__).parents[2] / "experiments" / "steps_or_data.py"
    agenda = Planner(load(file), check_trial, identify_trial).agenda({})
    joined = by_longest(agenda.ready)
    trained = [row for row, _ in joined if row.trial.stage == "unlearned"]
    assert len(agenda.ready) - len(joined) == 4 * len(trained)
    assert all(len(shorter) == 4 for row, shorter in joined if row.trial.stage == "unlearned")
    assert all(row.trial.train.length == 160.0 for row in trained)
