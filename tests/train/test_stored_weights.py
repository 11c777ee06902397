"""Weights stored in fewer bits while a model trains, and what comes back."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rayunlearn.config import Trial, Value, with_values
from rayunlearn.data.tokenize import collate
from rayunlearn.errors import UserError
from rayunlearn.models.activation_checkpointing import checkpointed_blocks
from rayunlearn.models.forward import blocks, can_pack, hidden_states, token_nll
from rayunlearn.models.packing import padded_passes
from rayunlearn.storage.run import open_run
from rayunlearn.train.loop import OptimizerSettings, TrainedParameters, optimise
from rayunlearn.train.step import StepLoss
from rayunlearn.train.stored_weights import (
    MasterWeights,
    frozen_matrices,
    stored_as,
    stored_weights,
)
from rayunlearn.trial import model_state
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.workspace import Workspace, validate_trial
from tests.tiny_models import CONFIGS, SEQUENCES, tiny_model

BATCH = collate(SEQUENCES)


def of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_in_bfloat16_a_small_update_is_lost_without_a_float32_copy_and_not_with_one() -> None:
    """1 and a hundred updates of 0.001: a step of bfloat16 above 1 is 0.0078, half of it 0.0039."""
    ends = []
    for copied in (False, True):
        model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
        nn.init.constant_(model.weight, 1.0)
        masters = MasterWeights([model.weight] if copied else [])
        optimise(
            model,
            lambda _s, weight=model.weight: StepLoss(-weight.float().sum()),
            steps=100,
            optimizer=OptimizerSettings(
                learning_rate=1e-3, schedule="constant", warmup_fraction=0.0, name="sign"
            ),
            trained=TrainedParameters(masters=masters),
        )
        ends.append(float(masters.value_of(model.weight)))
        assert model.weight.dtype == torch.bfloat16
    assert ends == [1.0, pytest.approx(1.1, abs=1e-5)]


def test_what_changes_a_parameter_beside_the_optimizer_changes_its_copy() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    masters = MasterWeights([weight])
    optimizer = torch.optim.SGD([masters.copy_of(weight)], lr=1e-3)
    masters.trained_by(optimizer)
    for gradient in ([1.0, 1.0], [1.0, 1.0]):
        weight.grad = torch.tensor(gradient, dtype=torch.bfloat16)
        optimizer.step()
        with torch.no_grad():
            # as a wrapper does that draws one weight back
            weight[1] = 4.0
    # drawn back to 4 and then moved by a step, which 4 is the rounding of
    assert masters.value_of(weight).tolist() == pytest.approx([0.998, 3.999])
    assert weight.grad is None


@pytest.mark.parametrize("storage", ["bfloat16", "nf4"])
def test_frozen_weights_come_back_to_the_bit_and_are_few_bits_until_then(storage: str) -> None:
    model = tiny_model()
    before, nll = of(model), token_nll(model, BATCH).detach()
    model.requires_grad_(False)
    with stored_weights(model, storage, before, adapted=True):
        assert stored_as(model) == storage and model.dtype == torch.bfloat16
        kinds = {module.weight.dtype for module in frozen_matrices(model)}
        assert kinds == {torch.uint8 if storage == "nf4" else torch.bfloat16}
        lower = token_nll(model, BATCH).detach()
    assert stored_as(model) == "float32"
    assert all(torch.equal(before[name], tensor) for name, tensor in of(model).items())
    assert torch.equal(token_nll(model, BATCH), nll)
    # logits of a random model are small
    assert 0 < float((lower - nll).abs().max()) < (0.2 if storage == "nf4" else 0.05)


def test_four_bits_compute_what_the_rounded_weights_compute_with_its_gradient() -> None:
    """Against the same model with its matrices rounded to NF4 and back, in bfloat16."""
    from bitsandbytes import functional

    from rayunlearn.models.nf4 import nf4_rounded

    rounded = tiny_model()
    with torch.no_grad():
        for module in blocks(rounded).modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(nf4_rounded(module.weight, functional))
    rounded.to(torch.bfloat16)
    model = tiny_model()
    model.requires_grad_(False)
    slopes = []
    with stored_weights(model, "nf4", of(model), adapted=True):
        for each in (rounded, model):
            states = torch.randn(
                1, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float32
            )
            given = states.to(torch.bfloat16).requires_grad_()
            layer = blocks(each)[0].mlp
            layer(given).float().square().sum().backward()
            slopes.append((layer(given).detach(), given.grad))
    assert torch.equal(slopes[0][0], slopes[1][0])
    assert torch.equal(slopes[0][1], slopes[1][1])


def test_a_failure_while_weights_are_stored_leaves_them_as_they_were() -> None:
    model = tiny_model()
    before = of(model)
    model.requires_grad_(False)
    with pytest.raises(ZeroDivisionError), stored_weights(model, "nf4", before, adapted=True):
        raise ZeroDivisionError
    assert all(torch.equal(before[name], tensor) for name, tensor in of(model).items())


STORED: dict[str, dict[str, Value]] = {
    "bfloat16": {"train.weights": "bfloat16"},
    "bfloat16 alone": {"train.weights": "bfloat16", "train.master_weights": False},
    "rmu in bfloat16": {
        "train.weights": "bfloat16",
        "method.forget": "rmu",
        "method.retain": "activation",
        "method.layer": 1,
    },
    "an adapter on bfloat16": {"train.weights": "bfloat16", "train.adapter": "lora"},
    "an adapter on four bits": {
        "train.weights": "nf4",
        "train.adapter": "lora",
        "train.layers": "1,2",
        "train.checkpoint_activations": True,
    },
}


@pytest.mark.parametrize("case", STORED)
def test_a_trial_trains_in_fewer_bits_and_is_measured_in_float32(
    case: str, workspace: Workspace, tmp_path: Path
) -> None:
    values: dict[str, Value] = {
        "train.length": 3,
        "train.batch_size": 2,
        "train.learning_rate": 1e-3,
        "train.warmup_fraction": 0.0,
        "select.ratio": 0.05,
        "stop.utility_floor": 0.0,
    }
    trial = validate_trial(with_values(Trial(), values | STORED[case]))
    assert run_trial(trial, workspace, tmp_path, "test", "1") == "complete"
    state = model_state.load_model_state(workspace.base)
    after, before = state.model.state_dict(), state.pristine
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    adapted = "adapter" in case
    assert changed and all(("layers" in name) >= adapted for name in changed)
    row = open_run(tmp_path).trials.collect().row(0, named=True)
    assert row["computed_in"] == "bfloat16"
    # at its first step the model is its own reference
    losses = open_run(tmp_path).steps.sort("step").collect()["forget_loss"].to_list()
    if "rmu" not in case:
        assert losses[0] == pytest.approx(2 / 0.1 * 0.6931, rel=1e-2)


REFUSED = (
    ({"train.weights": "nf4"}, r"train\.adapter must be an adapter when train\.weights is 'nf4'"),
    ({"train.weights": "half"}, r"train\.weights .*'half'"),
    ({"train.master_weights": False}, r"train\.master_weights must be true unless"),
    (
        {"train.weights": "bfloat16", "train.precision": "float32"},
        r"train\.precision must not be 'float32'",
    ),
)


@pytest.mark.parametrize(("values", "rule"), REFUSED)
def test_storages_that_contradict_another_setting_are_refused(
    values: dict[str, Value], rule: str
) -> None:
    with pytest.raises(UserError, match=rule):
        with_values(Trial(), values)


def gradients(family: str, loss: Callable[..., Tensor], *, checkpointed: bool) -> list[Tensor]:
    model = tiny_model(family).train()
    if checkpointed:
        with checkpointed_blocks(model):
            value = loss(model)
    else:
        value = loss(model)
    value.backward()
    return [value.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_gradients_with_checkpointed_activations_are_those_without(
    family: str, padded: bool
) -> None:
    """Of a loss of labels and of one of hidden states, which ends the pass at block 1; packed and
    padded.
    """
    losses = (
        lambda model: token_nll(model, BATCH).sum(),
        lambda model: (hidden_states(model, BATCH, 1) * BATCH.present[..., None]).square().sum(),
    )
    for loss in losses:
        can_pack(tiny_model(family))
        if padded:
            with padded_passes():
                pair = [gradients(family, loss, checkpointed=way) for way in (False, True)]
        else:
            pair = [gradients(family, loss, checkpointed=way) for way in (False, True)]
        assert len(pair[0]) == len(pair[1]) > 5
        for plain, checkpointed in zip(*pair, strict=True):
            assert torch.allclose(plain, checkpointed, rtol=1e-6, atol=1e-6)


def test_checkpointed_blocks_keep_their_inputs_alone() -> None:
    """Bytes that autograd keeps of twelve blocks: at most a third of those without."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from rayunlearn.models.device_memory import step_memory

    shape = {"vocab_size": 37, "hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 12}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape, num_attention_heads=2)).train()
    can_pack(model)

    def kept() -> int:
        parameters = list(model.parameters())
        return step_memory(model, parameters, lambda: token_nll(model, BATCH).sum()).activations

    plain = kept()
    with checkpointed_blocks(model):
        assert kept() < plain / 3
