"""The controls during training, each as a setting of any method: loss cap, ball, early stop that
keeps what held.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rayunlearn.config import Trial, Value, with_values
from rayunlearn.errors import UserError
from rayunlearn.metrics.evaluate import evaluate_probes
from rayunlearn.storage.run import open_run
from rayunlearn.train.early_stopping import RetentionEarlyStopping
from rayunlearn.train.loop import TrainLog
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.model_state import ModelState, reset_weights
from rayunlearn.trial.monitor import MAX_PROBES
from rayunlearn.trial.probes import encoded_probes
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.unlearn import unlearn
from rayunlearn.trial.workspace import Workspace, validate_trial

METHODS: dict[str, dict[str, Value]] = {
    "ga": {"method.retain": "none"},
    "npo": {"method.retain": "nll"},
    "ce_u": {"method.retain": "none"},
    "rmu": {"method.retain": "none"},
    "pdu": {"method.retain": "nll"},
}
FAST: dict[str, Value] = {
    "train.length": 10,
    "train.learning_rate": 1e-2,
    "train.warmup_fraction": 0.0,
    "method.layer": 1,
    "stop.utility_floor": 0.0,
}
KEPT = list(range(8))


@pytest.fixture(scope="module")
def workspace(domain_workspace: Workspace) -> Workspace:
    """The domain dataset's base alone."""
    return replace(domain_workspace, gold="")


def made(method: str, values: Mapping[str, Value]) -> Trial:
    return validate_trial(
        with_values(
            Trial(), FAST | {"method.forget": method} | METHODS.get(method, {}) | dict(values)
        )
    )


def trained(trial: Trial, workspace: Workspace, folder: Path) -> tuple[ModelState, TrainLog]:
    state = reset_weights(workspace.base)
    return state, unlearn(TrialContext(trial, workspace, state), KEPT, folder / "adapter")


def retained(workspace: Workspace, state: ModelState) -> float:
    """Mean answer probability of the retain probes that are watched."""
    watched = [
        p for p in encoded_probes(TrialContext(Trial(), workspace, state)) if p.split == "retain"
    ][:MAX_PROBES]
    rows = evaluate_probes(state.model, watched)
    values = [float(str(row["value"])) for row in rows if row["metric"] == "probability"]
    return sum(values) / len(values)


@pytest.mark.parametrize("method", METHODS)
def test_early_stop_keeps_the_last_weights_over_the_floor_whatever_the_method(
    method: str, workspace: Workspace, tmp_path: Path
) -> None:
    """Without it the same run ends under the floor; with it at or over it, at a step that was
    looked at.
    """
    base = retained(workspace, reset_weights(workspace.base))
    free, _ = trained(made(method, {}), workspace, tmp_path)
    assert retained(workspace, free) < 0.95 * base, "the run must do harm for the control to matter"
    state, log = trained(
        made(method, {"stop.retention_floor": 0.95, "stop.check_every": 2}), workspace, tmp_path
    )
    assert (
        log.outcome == "early_stopped"
        and log.kept_step is not None
        and log.kept_step < len(log.rows)
        and log.kept_step % 2 == 0
    )
    assert retained(workspace, state) >= 0.95 * base


@pytest.mark.parametrize("method", METHODS)
def test_the_ball_holds_every_tensor_whatever_the_method(
    method: str, workspace: Workspace, tmp_path: Path
) -> None:
    state, _ = trained(
        made(method, {"method.wrappers": "ball", "ball.radius": 0.01}), workspace, tmp_path
    )
    for name, tensor in state.model.named_parameters():
        origin = state.pristine[name]
        assert (tensor - origin).abs().sum() <= 0.01 * origin.abs().sum() * (1 + 1e-4), name


@pytest.mark.parametrize("method", ["ga", "ce_u", "rmu"])
def test_a_document_over_the_cap_moves_nothing_whatever_the_method(
    method: str, workspace: Workspace, tmp_path: Path
) -> None:
    """Every document's summed NLL is over a cap of a millionth of a nat: there is no gradient, and
    no weight moves.
    """
    state, log = trained(made(method, {"token.cap": 1e-6}), workspace, tmp_path)
    assert log.outcome == "complete" and all(
        torch.equal(t, state.pristine[n]) for n, t in state.model.named_parameters()
    )


def test_the_cap_ends_ascent_where_documents_reach_it(workspace: Workspace, tmp_path: Path) -> None:
    """Gradient ascent alone goes far beyond 60 nats a document; capped, the step that crosses is
    the last that counts for it.
    """
    free, capped = (
        trained(made("ga", {"token.cap": cap, "train.learning_rate": 3e-3}), workspace, tmp_path)[1]
        for cap in (0.0, 60.0)
    )
    assert capped.rows[-1].forget_loss is not None and free.rows[-1].forget_loss is not None
    assert capped.rows[-1].forget_loss > free.rows[-1].forget_loss


def test_a_run_that_is_held_is_complete_and_its_row_says_which_step_it_ends_with(
    workspace: Workspace, tmp_path: Path
) -> None:
    trial = made("ga", {"stop.retention_floor": 0.95, "stop.check_every": 2})
    assert run_trial(trial, workspace, tmp_path, "test", "1") == "complete"
    row = open_run(tmp_path).trials.collect().row(0, named=True)
    assert row["kept_step"] < row["optimizer_steps"] < 10


def test_a_floor_keeps_and_puts_back_by_hand() -> None:
    """Retention 1.0, 0.8, 0.4 after steps 1, 2, 3 under a floor of 0.5:
    step 2's weight comes back.
    """
    model = torch.nn.Linear(1, 1, bias=False)
    found = iter((1.0, 0.8, 0.4))
    floor = RetentionEarlyStopping(model, lambda: next(found), 0.5)
    for step in (1, 2, 3):
        torch.nn.init.constant_(model.weight, float(step))
        assert floor.holds(step) == (step < 3)
    log = floor.restore_best(TrainLog((), "stopped", 0))
    assert (log.outcome, log.kept_step, model.weight.item()) == ("early_stopped", 2, 2.0)
    diverged = TrainLog((), "diverged", 0)
    assert floor.restore_best(diverged) is diverged


@pytest.mark.parametrize(
    "values", [{"method.forget": "task_vector"}, {"method.wrappers": "average"}], ids=str
)
def test_a_floor_is_refused_where_the_weights_change_after_the_last_step(
    values: dict[str, Value],
) -> None:
    with pytest.raises(
        UserError, match=r"stop\.retention_floor must be 0 where weights change after the last step"
    ):
        validate_trial(
            with_values(
                Trial(),
                {"method.retain": "none", "method.forget": "npo", "stop.retention_floor": 0.9}
                | values,
            )
        )
