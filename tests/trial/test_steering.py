"""Steering in lengths of activations, and trials that say that their loss did not move."""

from pathlib import Path

import pytest
import torch

from rayunlearn.config import Trial, Value, with_values
from rayunlearn.errors import UserError
from rayunlearn.registry import check_trial
from rayunlearn.reporting.sentences import training_notes
from rayunlearn.storage.run import open_run
from rayunlearn.train.loop import TrainLog
from rayunlearn.train.step import StepRow
from rayunlearn.trial import steering
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.encodings import training_sequences
from rayunlearn.trial.model_state import load_model_state
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.steering import activation_length, training_note
from rayunlearn.trial.workspace import Workspace, validate_trial

RMU: dict[str, Value] = {
    "method.forget": "rmu",
    "method.retain": "activation",
    "method.layer": 1,
    "train.length": 3,
    "train.batch_size": 2,
    "select.ratio": 0.05,
    "measure.metrics": "probability",
    "stop.utility_floor": 0.0,
}


def trial_of(**values: Value) -> Trial:
    changed = {name.replace("__", "."): value for name, value in values.items()}
    return validate_trial(with_values(Trial(), RMU | changed))


def row_of(trial: Trial, workspace: Workspace, folder: Path) -> dict[str, object]:
    run_trial(trial, workspace, folder, "test", "1")
    return open_run(folder).trials.collect().to_dicts()[0]


def losses(run: Path) -> list[float]:
    return open_run(run).steps.collect()["forget_loss"].to_list()


def test_the_length_is_the_mean_norm_of_hidden_states_at_the_labels(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One text at a time through the whole model, as transformers gives hidden states; of one layer
    once.
    """
    state = load_model_state(workspace.base)
    context = TrialContext(trial_of(), workspace, state)
    norms = []
    for texts in training_sequences(context):
        for text in texts[:32]:
            with torch.no_grad():
                out = state.model(torch.tensor([text.ids]), output_hidden_states=True)
            norms += out.hidden_states[2][0, text.start :].norm(dim=-1).tolist()
    length = activation_length(context)
    assert length == pytest.approx(sum(norms) / len(norms), rel=1e-5)
    monkeypatch.setattr(steering, "mean_length", lambda *_: 7.0)
    assert activation_length(context) == length, "computed twice"
    another = TrialContext(trial_of(method__layer=0), workspace, state)
    assert activation_length(another) == 7.0
    other = TrialContext(trial_of(method__forget="npo"), workspace, state)
    assert activation_length(other) is None


def test_steering_in_lengths_is_the_absolute_steering_of_that_length(
    workspace: Workspace, tmp_path: Path
) -> None:
    in_lengths = trial_of(method__steering_unit="activation", rmu__steering=2.0)
    row = row_of(in_lengths, workspace, tmp_path / "a")
    length = row["activation_length"]
    assert isinstance(length, float) and length > 0 and row["method.steering_unit"] == "activation"
    row_of(trial_of(rmu__steering=2.0 * length), workspace, tmp_path / "b")
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), rel=1e-6)
    row_of(trial_of(rmu__steering=2.0), workspace, tmp_path / "c")
    assert losses(tmp_path / "a") != pytest.approx(losses(tmp_path / "c"), rel=1e-3)


def test_steering_far_from_the_activations_length_is_said(
    workspace: Workspace, tmp_path: Path
) -> None:
    small = row_of(trial_of(rmu__steering=1e-3), workspace, tmp_path)
    assert "rmu steers to" in str(small["note"]) and "block 1" in str(small["note"])
    assert training_notes(open_run(tmp_path)) == [
        f"note: rmu: {small['note']} (trial {small['trial_id']})"
    ]
    large = trial_of(method__steering_unit="activation", rmu__steering=20.0)
    log = TrainLog((), "complete", 0)
    assert training_note(large, log, 5.0) == (
        "rmu steers to 20 x the length of activations at block 1 (5)"
    )
    adaptive = trial_of(method__forget="adaptive_rmu", adaptive_rmu__scale=50.0)
    assert "adaptive_rmu steers to 50 x" in str(training_note(adaptive, log, 5.0))
    assert training_note(trial_of(rmu__steering=6.5), log, 5.0) is None


def log_of(*values: float | None) -> TrainLog:
    rows = [
        StepRow(
            step=n,
            loss=0.0,
            forget_loss=value,
            retain_loss=0.0,
            retain_weight=1.0,
            grad_norm=1.0,
            learning_rate=1e-3,
            tokens=8,
            seconds=0.1,
        )
        for n, value in enumerate(values, 1)
    ]
    return TrainLog(tuple(rows), "complete", len(rows))


def test_a_loss_that_changes_by_less_than_a_hundredth_has_not_moved() -> None:
    npo = trial_of(method__forget="npo", method__retain="nll")
    still = training_note(npo, log_of(2.0, 1.0, 3.0, 1.99), None)
    assert still == (
        "the forget loss did not move: 2 at the start, 1.99 at the end, less than 1% in 4 steps"
    )
    assert training_note(npo, log_of(2.0, 1.97), None) is None
    assert training_note(npo, log_of(2.0, 2.03), None) is None
    # means over a tenth of the steps at each end: 1.5 and 1.5, though first and last differ
    noisy = [1.0, 2.0, *[9.0] * 16, 2.0, 1.0]
    assert training_note(npo, log_of(*noisy), None) is not None
    # one step, or a control without a forget loss, has nothing to move
    assert training_note(npo, log_of(2.0), None) is None
    assert training_note(npo, log_of(None, None), None) is None


def test_a_unit_that_does_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown method\.steering_unit 'lengths'"):
        trial_of(method__steering_unit="lengths")
    for name in ("npo", "adaptive_rmu"):
        with pytest.raises(UserError, match="must be 'absolute' with a forget loss without"):
            check_trial(trial_of(method__forget=name, method__steering_unit="activation"))
    with pytest.raises(UserError, match="with a selector that follows the loss"):
        trial_of(method__steering_unit="activation", select__name="grand")
