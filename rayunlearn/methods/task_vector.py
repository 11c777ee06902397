"""What the weights become after the last step: a function of a tensor before and after training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayunlearn.ranges import Positive

if TYPE_CHECKING:
    from torch import Tensor


def as_trained(start: Tensor, end: Tensor) -> Tensor:
    """The trained weights."""
    return end


def negate(start: Tensor, end: Tensor, *, scale: Positive = 1.0) -> Tensor:
    """start - scale x (end - start): as far the other way. Source: Ilharco et al. 2212.04089;
    MUSE's scripts use 1 to 16.
    """
    return start - scale * (end - start)
