"""Weights rebuilt are the trial's own: the rows it wrote come out of them, and they are made
once.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rayunlearn.config import Trial, Value, with_values
from rayunlearn.errors import UserError
from rayunlearn.storage.run import open_run
from rayunlearn.trial import model_state, rebuild
from rayunlearn.trial.evaluate import trial_examples
from rayunlearn.trial.rebuild import rebuild_model
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.workspace import Workspace, validate_trial

QUICK: dict[str, Value] = {
    "train.length": 4,
    "train.batch_size": 2,
    "train.learning_rate": 0.01,
    "method.layer": 1,
    "select.ratio": 0.1,
}


@pytest.fixture
def workspace(workspace: Workspace, tmp_path: Path) -> Workspace:
    """The shared one with a cache of the test's own."""
    return replace(workspace, cache=tmp_path / "cache")


def trial_of(**values: Value) -> Trial:
    return validate_trial(
        with_values(
            Trial(), QUICK | {name.replace("__", "."): value for name, value in values.items()}
        )
    )


def files(workspace: Workspace) -> list[Path]:
    return list((workspace.cache / "unlearned").glob("*.safetensors"))


@pytest.mark.parametrize(
    "settings",
    [{}, {"method__forget": "rmu"}, {"train__adapter": "lora", "train__parameters": "mlp"}],
    ids=str,
)
def test_weights_made_again_give_the_rows_that_the_trial_wrote(
    workspace: Workspace, tmp_path: Path, settings: dict[str, Value]
) -> None:
    trial = trial_of(**settings)
    assert run_trial(trial, workspace, tmp_path / "run", "test", "1") == "complete"
    written = open_run(tmp_path / "run").examples.collect().sort("split", "doc_id", "metric")
    # made, then read
    for _ in range(2):
        rows = trial_examples(rebuild_model(trial, workspace))
        found = {(r["split"], r["doc_id"], r["metric"]): r["value"] for r in rows}
        assert found == {
            (s, d, m): v
            for s, d, m, v in written.select("split", "doc_id", "metric", "value").iter_rows()
        }


def test_they_are_made_once_and_hold_only_what_changed(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trial_of(train__parameters=r"layers\.1\.mlp\.down_proj")
    first = {
        name: tensor.clone()
        for name, tensor in rebuild_model(trial, workspace).model.state_dict().items()
    }
    assert len(files(workspace)) == 1 and files(workspace)[0].stat().st_size < 400_000
    # a second making would fail
    monkeypatch.setattr(rebuild, "unlearn", None)
    again = rebuild_model(trial, workspace).model.state_dict()
    assert all(torch.equal(tensor, first[name]) for name, tensor in again.items())
    changed = [
        name
        for name, tensor in first.items()
        if not torch.equal(tensor, model_state.load_model_state(workspace.base).pristine[name])
    ]
    assert changed == ["model.layers.1.mlp.down_proj.weight"]


def test_weights_that_other_code_trained_are_not_taken(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trial_of()
    rebuild_model(trial, workspace)
    rebuild_model(trial, workspace)
    assert len(files(workspace)) == 1
    monkeypatch.setattr(rebuild, "code_digest", lambda *_modules: "other code")
    rebuild_model(trial, workspace)
    assert len(files(workspace)) == 2


def test_a_damaged_file_is_made_again(workspace: Workspace) -> None:
    trial = trial_of()
    first = rebuild_model(trial, workspace).model.lm_head.weight.clone()
    files(workspace)[0].write_bytes(b"half")
    assert torch.equal(rebuild_model(trial, workspace).model.lm_head.weight, first)


def test_base_is_the_weights_themselves_and_gold_must_exist(workspace: Workspace) -> None:
    context = rebuild_model(trial_of(stage="base"), workspace)
    assert all(
        torch.equal(tensor, context.state.pristine[name])
        for name, tensor in context.model.state_dict().items()
    )
    with pytest.raises(UserError, match="needs a gold model"):
        rebuild_model(trial_of(stage="gold"), workspace)


def test_a_trial_that_diverged_has_no_weights(workspace: Workspace) -> None:
    settings: dict[str, Value] = {
        "method__forget": "ga",
        "method__retain": "none",
        "train__learning_rate": 1e30,
        "stop__utility_floor": 0.0,
    }
    with pytest.raises(UserError, match="must not have diverged"):
        rebuild_model(trial_of(**settings, train__length=20), workspace)
    assert files(workspace) == []
