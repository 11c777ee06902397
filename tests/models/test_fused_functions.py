"""Fused functions: gradients by finite differences, values and gradients beside the library's."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from rayunlearn.models.fused_functions import (
    causal_attention,
    gated_silu,
    rms_norm,
    rotate,
)

# two sequences of three tokens and one of four, ten in a row
GROUPS = [(2, 3), (1, 4)]
EPSILON = 1e-5
SCALING = 0.3


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64 that take a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def angles(states: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (1, S, D) for states (1, H, S, D), in their type."""
    size = states.shape[-1] // 2
    values = numbers(1, states.shape[2], size, seed=5).detach().to(states).repeat(1, 1, 2)
    return values.cos(), values.sin()


def library_norm(states: Tensor, weight: Tensor) -> Tensor:
    module = LlamaRMSNorm(len(weight), EPSILON)
    return torch.func.functional_call(module, {"weight": weight}, (states,))


def library_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One sequence after the other."""
    sizes = [size for n, size in GROUPS for _ in range(n)]
    parts = zip(*(whole.split(sizes, 2) for whole in (query, key, value)), strict=True)
    attend = functional.scaled_dot_product_attention
    return torch.cat([attend(*part, is_causal=True, scale=SCALING) for part in parts], 2)


def library_rotation(states: Tensor) -> Tensor:
    rotated: Tensor = apply_rotary_pos_emb(states, states, *angles(states))[0]
    return rotated


STATES = (1, 2, 10, 8)
CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "rms_norm": (
        lambda states, weight: rms_norm(states, weight, EPSILON),
        library_norm,
        (numbers(1, 5, 6), numbers(6, seed=1)),
    ),
    # heads normed by themselves, in a tensor that is no row of numbers
    "rms_norm of heads": (
        lambda states, weight: rms_norm(states.transpose(1, 2), weight, EPSILON),
        lambda states, weight: library_norm(states.transpose(1, 2), weight),
        (numbers(1, 3, 2, 4), numbers(4, seed=1)),
    ),
    "gated_silu": (
        gated_silu,
        lambda gate, up: functional.silu(gate) * up,
        (numbers(1, 3, 4), numbers(1, 3, 4, seed=1)),
    ),
    "rotate": (
        lambda states: rotate(states, *angles(states)),
        library_rotation,
        (numbers(*STATES),),
    ),
    "causal_attention": (
        lambda *inputs: causal_attention(*inputs, GROUPS, SCALING),
        library_attention,
        (numbers(*STATES), numbers(*STATES, seed=1), numbers(*STATES, seed=2)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite_differences(name: str) -> None:
    fused, _, inputs = CASES[name]
    assert torch.autograd.gradcheck(fused, inputs)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_librarys(name: str) -> None:
    """In float32, to some roundings."""
    fused, library, inputs = CASES[name]
    results: list[list[Tensor]] = []
    for function in (fused, library):
        given = [values.detach().float().requires_grad_() for values in inputs]
        output = function(*given)
        assert output.dtype == torch.float32
        weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
        grads = torch.autograd.grad((output * weights).sum(), given)
        results.append([output.detach(), *grads])
    for ours, theirs in zip(*results, strict=True):
        most = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * most)


def test_a_frozen_gain_takes_no_gradient_and_the_states_below_still_do() -> None:
    states, weight = numbers(1, 5, 6), numbers(6).detach()
    rms_norm(states, weight, EPSILON).sum().backward()
    assert weight.grad is None and states.grad is not None


def test_a_sequence_has_the_same_bits_whatever_stands_beside_it() -> None:
    query, key, value = (numbers(*STATES, seed=seed).detach().float() for seed in range(3))
    together = causal_attention(query, key, value, GROUPS, None)
    alone = causal_attention(query[:, :, 6:], key[:, :, 6:], value[:, :, 6:], [(1, 4)], None)
    assert torch.equal(together[:, :, 6:], alone)
