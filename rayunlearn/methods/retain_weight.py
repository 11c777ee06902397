"""How the weight of the retain loss moves from step to step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayunlearn.ranges import NonNegative, Whole

if TYPE_CHECKING:
    from torch import Tensor


def fixed_weight(weight: float | Tensor, retain: Tensor, step: int) -> float | Tensor:
    """The weight stays `method.retain_weight`."""
    return weight


def dual(
    weight: float | Tensor,
    retain: Tensor,
    step: int,
    *,
    limit: NonNegative = 0.1,
    rate: NonNegative = 1.0,
    warmup_steps: Whole = 0,
) -> float | Tensor:
    """Dual ascent on "retain loss <= limit": max(0, weight + rate (retain - limit)) after each
    optimizer step from `warmup_steps` on.

    retain: the retain loss of the step's whole batch, a scalar, however many pieces and processes
    it went through; step counts from 0. Source: PDU in open-unlearning (there after each
    micro-step, with that micro-step's loss, after 5 epochs of warm-up). `limit` has no published
    default: 0.1 nats is ours, for datasets whose base model knows its texts; set it to what the
    base model scores on real text.
    """
    if step < warmup_steps:
        return weight
    return (weight + rate * (retain.detach() - limit)).clamp(min=0)
