"""A trial read back from its run: the same config value, the same id, and a refusal where another
model would come out.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayunlearn.config import Trial, with_values
from rayunlearn.errors import UserError
from rayunlearn.models.load import save_model
from rayunlearn.models.scratch import build_model
from rayunlearn.trial import model_state
from rayunlearn.trial.identity import identify_trial
from rayunlearn.trial.load import load_trial
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.workspace import validate_trial, workspace_of


@pytest.fixture
def ended(untaught_models: Path, tmp_path: Path) -> Iterator[tuple[Trial, Path]]:
    """(trial, run) of four steps on an untrained model that is taken as it is."""
    shutil.copytree(untaught_models / "base", tmp_path / "model")
    values = {
        "model.teach": False,
        "model.name": str(tmp_path / "model"),
        "train.length": 4,
        "train.batch_size": 2,
        "method.forget": "simnpo",
    }
    trial, run = validate_trial(with_values(Trial(), values)), tmp_path / "runs" / "test" / "1"
    assert (
        run_trial(trial, workspace_of(trial, tmp_path / "runs" / "cache"), run, "test", "1")
        == "complete"
    )
    yield trial, run
    model_state.load_model_state.cache_clear()


def test_a_trial_comes_back_from_its_row_by_the_beginning_of_its_id(
    ended: tuple[Trial, Path],
) -> None:
    trial, run = ended
    found = load_trial(run, identify_trial(trial)[:5])
    assert (found.trial, found.trial_id) == (trial, identify_trial(trial))
    assert found.workspace.cache == run.parents[1] / "cache" and found.row["optimizer_steps"] == 4


def test_a_trial_whose_weights_changed_since_is_refused(
    ended: tuple[Trial, Path], tmp_path: Path
) -> None:
    trial, run = ended
    trial_id, tokenizer = (
        identify_trial(trial),
        model_state.load_model_state(trial.model.name).tokenizer,
    )
    (tmp_path / "model").rename(tmp_path / "old")
    save_model(build_model("tiny", len(tokenizer), seed=1), tokenizer, tmp_path / "model")
    with pytest.raises(
        UserError,
        match="can no longer be repeated: its data or the weights it started from changed",
    ):
        load_trial(run, trial_id)


def test_an_unknown_trial_is_told_with_the_number_there_are(ended: tuple[Trial, Path]) -> None:
    with pytest.raises(UserError, match="no trial 'zzz' among 1 in this run"):
        load_trial(ended[1], "zzz")
