"""What a run is expected to cost, from the trials that it has finished."""

from pathlib import Path

import pytest

from rayunlearn.config import Trial, flatten
from rayunlearn.planning.cost import estimate
from rayunlearn.planning.planner import Agenda
from rayunlearn.schema import SECONDS_BY_PART, column_names
from rayunlearn.storage.run import write_trial

NOTHING_LEFT = Agenda(rows=(), ready=(), waiting=0)


def test_every_column_of_seconds_is_a_part_of_a_trial() -> None:
    columns = [name for name in column_names("trials") if name.startswith("seconds_")]
    assert sorted(columns) == sorted(SECONDS_BY_PART)


def test_a_trial_takes_the_time_of_all_its_parts(tmp_path: Path) -> None:
    """Seven parts of 1 s in one trial, the other has only trained, for 2 s: the mean is 4.5 s."""
    for trial_id, seconds in (
        ("a" * 8, dict.fromkeys(SECONDS_BY_PART, 1.0)),
        ("b" * 8, {"seconds_train": 2.0}),
    ):
        row = {"status": "complete", "peak_memory_bytes": 10, **seconds}
        write_trial(
            tmp_path, trial_id, {"trials": [{"trial_id": trial_id, **row}]}, flatten(Trial())
        )
    found = estimate(tmp_path, NOTHING_LEFT, size_of=lambda _trial: pytest.fail("not asked"))
    assert found.seconds == pytest.approx((7 + 2) / 2)
