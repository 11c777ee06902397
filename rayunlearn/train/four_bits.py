"""A linear module with a frozen matrix in NF4: loaded when a model is stored so, as its gradient is
one of torch's functions.
"""

from typing import Any

import torch
from bitsandbytes import functional as nf4
from torch import Tensor
from torch.nn import functional

from rayunlearn.models.nf4 import nf4_packed, nf4_unpacked


class NormalFloatWeight:
    """A matrix (out, in) in NF4, unpacked for each product and not kept for the gradient. `packed`:
    its codes.
    """

    def __init__(self, weight: Tensor) -> None:
        self.packed, self._state = nf4_packed(weight, nf4)
        self._shape = weight.shape

    def applied(self, bias: Tensor | None, states: Tensor) -> Tensor:
        """states (..., in) -> (..., out), in their type or that of an open autocast."""
        device = states.device.type
        lowers = torch.is_autocast_enabled(device)
        given = states.to(torch.get_autocast_dtype(device)) if lowers else states
        product: Tensor = _FrozenProduct.apply(given, self)
        return product if bias is None else product + bias.to(product.dtype)

    def unpacked(self, kind: torch.dtype) -> Tensor:
        """The matrix (out, in)."""
        return nf4_unpacked(self.packed, self._state, self._shape, nf4).to(kind)


class _FrozenProduct(torch.autograd.Function):
    """x W^T with a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: NormalFloatWeight) -> Tensor:
        ctx.weight = weight
        return functional.linear(states, weight.unpacked(states.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.weight.unpacked(gradient.dtype), None
