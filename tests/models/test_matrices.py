"""The weight matrices of the blocks, family by family, and what is said where few are reached."""

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from rayunlearn.attacks.perturbation import magnitude_pruning, weight_noise
from rayunlearn.attacks.quantization import awq, gptq, gptq_weights, round_to_nearest
from rayunlearn.errors import UserError
from rayunlearn.models.forward import blocks
from rayunlearn.models.matrices import (
    LEAST_TOUCHED,
    block_matrices,
    collect_inputs,
    experts_one_by_one,
    model_matrices,
    require_touched,
    share_touched,
    tensor_states,
)
from tests.families import FAMILIES, toy_model
from tests.tiny_models import SEQUENCES

ATTACKS = {
    "round_to_nearest": round_to_nearest,
    "magnitude_pruning": magnitude_pruning,
    "weight_noise": lambda model: weight_noise(model, 0),
    "gptq": lambda model: gptq(model, SEQUENCES),
    "awq": lambda model: awq(model, SEQUENCES),
}
# state-space models keep convolutions and decay rates in tensors that are no matrices
WHOLE = {family: 1.0 if family != "mamba" else LEAST_TOUCHED for family in FAMILIES}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_attack_on_weights_reaches_every_matrix(family: str, attack: str) -> None:
    model = toy_model(family)
    before = tensor_states(model)
    with torch.no_grad():
        ATTACKS[attack](model)
    assert share_touched(before, tensor_states(model)) >= WHOLE[family]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "qwen2_moe", "bloom"])
def test_matrices_are_all_weights_of_two_or_more_dimensions(family: str) -> None:
    model = toy_model(family)
    inside = [p for block in blocks(model) for p in block.parameters() if p.dim() > 1]
    assert sum(m.weight.numel() for m in model_matrices(model)) == sum(p.numel() for p in inside)


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_rounding_has_few_levels_in_each_output_channel(family: str) -> None:
    """4 bits: 15 levels at most of each row (out, in), wherever a family keeps its rows."""
    model = toy_model(family)
    with torch.no_grad():
        round_to_nearest(model, bits=2)
    for matrix in model_matrices(model):
        assert all(len(row.unique()) <= 3 for row in matrix.weight)
    gpt2 = dict(model.named_parameters()).get("transformer.h.0.mlp.c_fc.weight")
    assert gpt2 is None or all(len(column.unique()) <= 3 for column in gpt2.T)


def expert_inputs(model: PreTrainedModel) -> dict[int, torch.Tensor]:
    """What the first block's experts are given, worked out from the router by hand."""
    block = model.model.layers[0]
    given: list[torch.Tensor] = []
    handle = block.mlp.experts.register_forward_pre_hook(
        lambda _module, inputs: given.extend(inputs)
    )
    model(input_ids=torch.tensor([SEQUENCES[0].ids]))
    handle.remove()
    hidden, chosen, _ = given
    return {e: hidden[(chosen == e).any(1)] for e in range(4)}


def test_each_expert_s_inputs_are_the_tokens_that_are_sent_to_it() -> None:
    model = toy_model("mixtral")
    experts = model.model.layers[0].mlp.experts
    matrices = block_matrices(model.model.layers[0])
    seen: dict[int, torch.Tensor] = {}
    with torch.no_grad(), experts_one_by_one(model):
        ids = torch.tensor([SEQUENCES[0].ids])
        collect_inputs(lambda: model(input_ids=ids), matrices, seen.__setitem__)
        expected = expert_inputs(model)
    for index, matrix in enumerate(matrices):
        if matrix.parameter is experts.gate_up_proj and matrix.expert is not None:
            tokens = expected[matrix.expert]
            found = seen.get(index, tokens[:0])
            torch.testing.assert_close(found.sort(0).values, tokens.sort(0).values)


def test_gptq_of_a_transposed_matrix_is_that_of_the_matrix() -> None:
    """GPT-2's first Conv1D (in, out) beside the same numbers as (out, in) and their Gram matrix."""
    model = toy_model("gpt2")
    layer = model.transformer.h[0].attn.c_attn
    weight, given = layer.weight.detach().clone(), []
    handle = layer.register_forward_pre_hook(lambda _m, inputs: given.append(inputs[0][0]))
    with torch.no_grad():
        for sequence in SEQUENCES:
            model(input_ids=torch.tensor([sequence.ids]))
        handle.remove()
        x = torch.cat(given)
        gptq(model, SEQUENCES)
    expected = gptq_weights(weight.T, x.T @ x, 4, 0.01)
    torch.testing.assert_close(layer.weight.T, expected)


def test_an_attack_that_reaches_little_is_named_with_its_share() -> None:
    model = toy_model("mixtral")
    before = tensor_states(model)
    with torch.no_grad():
        for block in blocks(model):
            block.self_attn.q_proj.weight.mul_(2)
    share = share_touched(before, tensor_states(model))
    sizes = [p.numel() for b in blocks(model) for p in b.parameters() if p.dim() > 1]
    assert share == pytest.approx(2 * 16 * 16 / sum(sizes))
    with pytest.raises(UserError, match="round_to_nearest must reach 80% of the weights"):
        require_touched(share, "round_to_nearest")


@pytest.mark.parametrize(
    "attack",
    [
        lambda model: magnitude_pruning(model, share=0.0),
        lambda model: weight_noise(model, 0, relative=0.0),
        lambda model: [round_to_nearest(model) for _ in range(2)],
    ],
    ids=["pruning of 0", "noise of 0", "rounding of what is rounded"],
)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_strength_that_changes_no_value_has_reached_every_matrix(
    family: str, attack: Callable[[PreTrainedModel], object]
) -> None:
    """A strength axis may begin with 0. The second rounding finds the levels of the first."""
    model = toy_model(family)
    with torch.no_grad():
        round_to_nearest(model)
        before, weights = tensor_states(model), copy.deepcopy(model.state_dict())
        attack(model)
    assert share_touched(before, tensor_states(model)) == 1.0
    assert all(torch.equal(w, weights[name]) for name, w in model.state_dict().items())


def test_a_fingerprint_sees_two_numbers_that_change_places() -> None:
    model = toy_model("llama")
    other = copy.deepcopy(model)
    weight = other.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight[0, :2] = weight[0, :2].flip(0).clone()
    assert share_touched(tensor_states(model), tensor_states(model)) == 0
    assert share_touched(tensor_states(model), tensor_states(other)) > 0
