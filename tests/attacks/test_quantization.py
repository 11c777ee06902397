"""GPTQ and AWQ against closed forms, and against the rounding that they are to beat."""

import copy

import pytest
import torch
from torch import nn

from rayunlearn.attacks.quantization import (
    LayerInputs,
    awq,
    awq_weights,
    gptq,
    gptq_weights,
    output_error,
    round_to_nearest,
    round_weights,
)
from rayunlearn.models.forward import blocks
from tests.tiny_models import SEQUENCES, tiny_model


def drawn_inputs(n: int, width: int) -> tuple[torch.Tensor, LayerInputs]:
    """Correlated inputs (n, width), the first channel ten times as large,
    and what is kept of them.
    """
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, width, generator=generator) @ (
        torch.eye(width) + 0.5 * torch.randn(width, width, generator=generator)
    )
    x[:, 0] *= 10
    return x, LayerInputs(x.T @ x, x.abs().sum(0), n)


def test_without_correlation_there_is_nothing_to_make_up_for() -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        gptq_weights(weight, torch.eye(7) * 3, 4, 0.01), round_weights(weight, 4), atol=1e-6
    )


def test_of_two_columns_the_second_makes_up_for_the_first_by_least_squares() -> None:
    """With q1 fixed, |(w1 - q1) x1 + (w2 - u) x2|^2 is least at u = w2 + (w1 - q1) <x1, x2> / <x2,
    x2>; u is then rounded.
    """
    weight = torch.tensor([[0.90, -1.00], [0.33, 1.00], [0.62, 1.00]])
    gram = torch.tensor([[2.0, 0.9], [0.9, 1.5]])
    most, step = 3, torch.tensor([1.0, 1.0, 1.0]) / 3
    first = (weight[:, 0] / step).round() * step
    moved = weight[:, 1] + (weight[:, 0] - first) * 0.9 / 1.5
    second = (moved / step).round().clamp(-most, most) * step
    assert torch.allclose(
        gptq_weights(weight, gram, 3, 1e-9), torch.stack([first, second], 1), atol=1e-6
    )


@pytest.mark.parametrize("bits", [3, 4])
def test_both_lose_less_on_their_inputs_than_rounding_does(bits: int) -> None:
    """The error from the Gram matrix is the plain sum over inputs."""
    weight = torch.randn(12, 16, generator=torch.Generator().manual_seed(2))
    x, inputs = drawn_inputs(200, 16)
    lost = {
        name: float(((weight - q) @ x.T).square().sum())
        for name, q in {
            "plain": round_weights(weight, bits),
            "awq": awq_weights(weight, inputs, bits),
        }.items()
    }
    lost["gptq"] = float(
        ((weight - gptq_weights(weight, inputs.gram, bits, 0.01)) @ x.T).square().sum()
    )
    assert lost["gptq"] < lost["plain"] and lost["awq"] < lost["plain"]
    assert float(output_error(weight - round_weights(weight, bits), inputs.gram)) == pytest.approx(
        lost["plain"], rel=1e-4
    )


@pytest.mark.parametrize("attack", [gptq, awq])
@pytest.mark.parametrize("family", ["llama", "phi"])
def test_a_model_s_blocks_are_quantised_and_nothing_else(attack: object, family: str) -> None:
    """GPTQ leaves at most 2^bits - 1 values in a row; what padding holds does not count."""
    model, plain = tiny_model(family), tiny_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert callable(attack)
    attack(model, SEQUENCES)
    inside = {
        f"{name}.weight" for name, m in model.base_model.named_modules() if isinstance(m, nn.Linear)
    }
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed and all(any(name.endswith(one) for one in inside) for name in changed)
    if attack is gptq:
        rows = [
            row
            for block in blocks(model)
            for m in block.modules()
            if isinstance(m, nn.Linear)
            for row in m.weight.data
        ]
        assert max(len(row.unique()) for row in rows) <= 15
    again = copy.deepcopy(plain)
    attack(again, SEQUENCES)
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True)
    )
    round_to_nearest(plain)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(plain.state_dict().values(), model.state_dict().values(), strict=True)
    )
