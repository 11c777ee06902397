"""What is known of a trial before anything is scheduled: paths in full, models that can be used."""

from pathlib import Path

import pytest

from rayunlearn.config import Trial, with_values
from rayunlearn.errors import UserError
from rayunlearn.trial.identity import identify_trial
from rayunlearn.trial.workspace import validate_trial
from tests.conftest import Bed


def test_a_relative_path_is_the_same_trial_in_full(
    domain_bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers stand in a folder of Ray's: every trial failed there."""
    (tmp_path / "mine").symlink_to(domain_bed.base)
    (tmp_path / "gold").symlink_to(domain_bed.gold)
    monkeypatch.chdir(tmp_path)
    spelt = [("mine", "gold"), ("./mine", "./gold"), (str(domain_bed.base), str(domain_bed.gold))]
    trials = [
        validate_trial(
            with_values(Trial(), {"model.teach": False, "model.name": name, "model.gold": gold})
        )
        for name, gold in spelt
    ]
    assert Path(trials[0].model.name).is_absolute() and Path(trials[0].model.gold).is_absolute()
    assert len({identify_trial(trial) for trial in trials}) == 1


def test_more_tokens_than_positions_are_refused_of_every_model(domain_bed: Bed) -> None:
    values = {"model.teach": False, "model.name": str(domain_bed.base), "data.max_tokens": 2048}
    with pytest.raises(UserError, match=r"data.max_tokens must be <= 1024, the positions of"):
        validate_trial(with_values(Trial(), values))
    with pytest.raises(UserError, match=r"<= 1024, the positions of a model built here, got 2048"):
        validate_trial(with_values(Trial(), {"data.max_tokens": 2048}))
