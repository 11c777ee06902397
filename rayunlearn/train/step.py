"""What one step is: its loss, and the row it becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Backward = Callable[["Tensor"], None]


@dataclass(frozen=True)
class StepLoss:
    """The loss of one step: `total` is what is differentiated; its two terms are kept for the
    record.

    total = forget_weight x forget + retain_weight x retain, where the terms are there.
    """

    total: Tensor
    forget: Tensor | None = None
    retain: Tensor | None = None
    n_tokens: int = 0
    n_documents: int = 0
    retain_weight: float | Tensor = 1.0
    forget_weight: float = 1.0


@dataclass(frozen=True)
class StepRow:
    """One optimizer step as it is written to the `steps` table; `retain_weight` is the weight in
    force.
    """

    step: int
    loss: float
    forget_loss: float | None
    retain_loss: float | None
    retain_weight: float | None
    grad_norm: float
    learning_rate: float
    tokens: int
    seconds: float
