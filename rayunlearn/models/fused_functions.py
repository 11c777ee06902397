"""Small parts of a transformer block as functions with a gradient of their own: RMSNorm, the gated
SiLU, rotary positions and causal attention in a packed row.

Each computes what the library's steps compute, in fewer passes over memory and fewer calls: on a
processor the calls of thin layers cost more than their numbers. Gradients can be taken once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rayunlearn.lazy import functional, torch

if TYPE_CHECKING:
    from torch import Tensor

# torch's attention on a processor, which its `scaled_dot_product_attention` calls, and its gradient
ATTENTION_KERNEL = "_scaled_dot_product_flash_attention_for_cpu"


@lru_cache
def _function(forward: Callable[..., Any], backward: Callable[..., Any]) -> Any:
    """One of torch's functions with a gradient, made when torch is used for the first time."""
    parts = {
        "forward": staticmethod(forward),
        "backward": staticmethod(torch.autograd.function.once_differentiable(backward)),
    }
    return type(forward.__name__, (torch.autograd.Function,), parts)


def rms_norm(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """states (..., D) over the root of their mean square, times weight (D,). Zhang and Sennrich
    1910.07467.

    Example:
        >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
        tensor([[0.8485, 2.2627]])
    """
    normed: Tensor = _function(_norm, _norm_gradients).apply(states, weight, epsilon)
    return normed


def _norm(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    norms = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    scale = norms.square_().div_(states.shape[-1]).add_(epsilon).rsqrt_()
    normed = states * scale
    ctx.save_for_backward(normed, scale, weight)
    return normed * weight


def _norm_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
    normed, scale, weight = ctx.saved_tensors
    products = gradient * normed
    of_weight = products.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
    # not a matrix product, whose bits may depend on where a weight lies in memory
    along = products.mul_(weight).sum(-1, keepdim=True).div_(-len(weight))
    # what `products` holds is not needed any more
    of_states = torch.mul(gradient, weight, out=products)
    return of_states.addcmul_(normed, along).mul_(scale), of_weight, None


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of two tensors of one shape. Shazeer 2002.05202 (SwiGLU).

    Example:
        >>> gated_silu(torch.tensor([0.0, 20.0]), torch.tensor([5.0, 2.0]))
        tensor([ 0., 40.])
    """
    product: Tensor = _function(_gated, _gated_gradients).apply(gate, up)
    return product


def _gated(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
    ctx.save_for_backward(gate, up)
    return functional.silu(gate).mul_(up)


def _gated_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = ctx.saved_tensors
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    # the slope of x s(x) is s + x s (1 - s): between x s and 1, at s
    slope = torch.lerp(silu, silu.new_ones(()), sigmoid, out=sigmoid)
    return slope.mul_(gradient).mul_(up), silu.mul_(gradient)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: in states (1, H, S, D) column i turns with column i + D / 2, by the angle
    whose cosine and sine stand in both columns of cos and sin (1, S, D). Su et al. 2104.09864, with
    the columns in the order that transformers has.

    Example:
        >>> cos, sin = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
        >>> rotate(torch.tensor([[[[3.0, 4.0]]]]), cos, sin)
        tensor([[[[-4.,  3.]]]])
    """
    angles = cos.unsqueeze(1), sin.unsqueeze(1)
    rotated: Tensor = _function(_rotation, _rotation_gradients).apply(states, *angles)
    return rotated


def _rotation(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    ctx.save_for_backward(cos, sin)
    return _turned(states, cos, sin, 1)


def _rotation_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    """A rotation's gradient is turned back."""
    cos, sin = ctx.saved_tensors
    return _turned(gradient, cos, sin, -1), None, None


def _turned(states: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    half = states.shape[-1] // 2
    turned = states * cos
    turned[..., :half].addcmul_(states[..., half:], sin[..., :half], value=-sign)
    turned[..., half:].addcmul_(states[..., :half], sin[..., half:], value=sign)
    return turned


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Sequence[tuple[int, int]],
    scaling: float | None,
) -> Tensor:
    """Causal attention within each sequence of a packed row: query, key and value (1, H, S, D) ->
    (1, H, S, D), by torch's kernel of a processor.

    groups: (sequences, tokens of each), neighbours in the row, S tokens together. scaling: of the
    scores; None: 1 / sqrt(D). Raises AttributeError where torch has no such kernel.

    Example:
        >>> values = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 3, 1)
        >>> alike = torch.zeros(1, 1, 3, 1)
        >>> causal_attention(alike, alike, values, [(1, 2), (1, 1)], None).flatten()
        tensor([1.0000, 1.5000, 3.0000])
    """
    function = _function(_attention, _attention_gradients)
    output: Tensor = function.apply(query, key, value, groups, scaling)
    return output


def _attention(
    ctx: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Sequence[tuple[int, int]],
    scaling: float | None,
) -> Tensor:
    kernel = getattr(torch.ops.aten, ATTENTION_KERNEL).default
    parts = zip(*(_by_group(whole, groups) for whole in (query, key, value)), strict=True)
    results = [kernel(*part, 0.0, True, scale=scaling) for part in parts]
    output = _in_row([part for part, _ in results])
    ctx.save_for_backward(query, key, value, output, *(log_sums for _, log_sums in results))
    ctx.groups, ctx.scaling = groups, scaling
    return output


def _attention_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    kernel = getattr(torch.ops.aten, f"{ATTENTION_KERNEL}_backward").default
    query, key, value, output, *log_sums = ctx.saved_tensors
    whole = gradient, query, key, value, output
    parts = zip(*(_by_group(values, ctx.groups) for values in whole), log_sums, strict=True)
    of_groups = [kernel(*part, 0.0, True, scale=ctx.scaling) for part in parts]
    return (*(_in_row(of_one) for of_one in zip(*of_groups, strict=True)), None, None)


def _by_group(whole: Tensor, groups: Sequence[tuple[int, int]]) -> list[Tensor]:
    """(1, H, S, D) as (n, H, size, D) of each group."""
    parts = whole.split([n * size for n, size in groups], 2)
    return [
        part if n == 1 else part.squeeze(0).unflatten(1, (n, size)).transpose(0, 1)
        for part, (n, size) in zip(parts, groups, strict=True)
    ]


def _in_row(parts: Sequence[Tensor]) -> Tensor:
    """(n, H, size, D) of each group as (1, H, S, D), the heads of a token side by side."""
    return torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts])[None].transpose(1, 2)
