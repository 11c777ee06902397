"""Shorter trials measured on the way of a longer one: the numbers of trainings of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayunlearn.config import Trial, Value, with_values
from rayunlearn.storage.run import open_run
from rayunlearn.train.checkpoint import Checkpoints
from rayunlearn.trial.run import run_lengths, run_trial
from rayunlearn.trial.workspace import Workspace, identity_in, validate_trial

LENGTHS = (3, 4, 8)
VALUES: dict[str, Value] = {
    "train.schedule": "constant",
    "train.warmup_fraction": 0.0,
    "train.batch_size": 2,
    "train.learning_rate": 1e-3,
    "select.ratio": 0.05,
    "stop.utility_floor": 0.0,
    "stop.check_every": 2,
}
CASES: dict[str, dict[str, Value]] = {
    "npo": {},
    # the weight of its retain loss moves with the steps
    "pdu and a ball": {"method.forget": "pdu", "method.wrappers": "sam,ball"},
    "rmu by lion": {
        "method.forget": "rmu",
        "method.retain": "activation",
        "method.layer": 1,
        "train.optimizer": "lion",
    },
    "the control": {"method.forget": "none"},
}
TABLES = ("trials", "steps", "curves", "evals", "examples", "coresets")
# what a clock or a machine says
UNLIKE = ("seconds", "peak_memory_bytes", "started_at", "measured_within")


def trials_of(values: dict[str, Value]) -> list[Trial]:
    return [
        validate_trial(with_values(Trial(), VALUES | values | {"train.length": float(length)}))
        for length in LENGTHS
    ]


def rows_of(run: Path, trial_id: str) -> dict[str, list[dict[str, Any]]]:
    opened = open_run(run)
    return {
        table: [
            {n: v for n, v in row.items() if not n.startswith(UNLIKE)}
            for row in getattr(opened, table).filter(trial_id=trial_id).collect().to_dicts()
        ]
        for table in TABLES
    }


@pytest.mark.parametrize("case", CASES)
def test_numbers_per_length_are_those_of_separate_trials_to_the_bit(
    case: str, workspace: Workspace, tmp_path: Path
) -> None:
    """Lengths 3 and 4 on the way of 8, with a look every two steps: one of them at no look of the
    longest, one at a look; all tables but clocks, and the longest is undisturbed by them.
    """
    trials = trials_of(CASES[case])
    for trial in trials:
        run_trial(trial, workspace, tmp_path / "apart", "test", "1")
    longest = trials[-1]
    run_lengths(trials, workspace, tmp_path / "joined", "test", "1")
    for trial in trials:
        identity = identity_in(trial, workspace)
        apart, joined = (rows_of(tmp_path / name, identity) for name in ("apart", "joined"))
        assert apart == joined and len(apart["steps"]) == trial.train.length
    within = open_run(tmp_path / "joined").trials.collect()["measured_within"].to_list()
    assert sorted(within, key=str) == sorted(
        [None, *2 * [identity_in(longest, workspace)]], key=str
    )


def test_a_training_that_was_broken_off_past_a_shorter_one_leaves_it_to_be_run(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends after its checkpoint at step 4; 3 was written. The next call, which would
    not come by a length of 2 any more, writes 8 alone.
    """
    values: dict[str, Value] = {"train.checkpoint_every": 2}
    short, _, longest = trials_of(values)
    real: Callable[..., None] = Checkpoints.save

    class Killed(BaseException):
        """Stands for the process ending."""

    def save(self: Checkpoints, tensors: Any, numbers: Any) -> None:
        real(self, tensors, numbers)
        if len(numbers["rows"]) == 4:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", save)
        with pytest.raises(Killed):
            run_lengths([short, longest], workspace, tmp_path, "test", "1")
    assert open_run(tmp_path).trials.collect()["trial_id"].to_list() == [
        identity_in(short, workspace)
    ]
    too_short = validate_trial(with_values(short, {"train.length": 2.0}))
    run_lengths([too_short, longest], workspace, tmp_path, "test", "1")
    finished = set(open_run(tmp_path).trials.collect()["trial_id"])
    assert finished == {identity_in(trial, workspace) for trial in (short, longest)}
