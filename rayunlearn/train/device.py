"""Where training runs and how exactly: one GPU, several or a CPU, through accelerate."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from rayunlearn.lazy import accelerate, torch

if TYPE_CHECKING:
    from accelerate import Accelerator


def accelerator() -> Accelerator:
    """The process's place: its device, and how gradients are averaged where there are several
    processes.

    Weights and their updates are float32 always; `computing` lowers the precision of what is
    computed from them.
    """
    return accelerate.Accelerator(mixed_precision="no")


def computing(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context of a forward pass: bfloat16 where `precision` is auto and the device is a GPU
    that has it, else as it is.

    Reference values must be computed in the same context as the model that is compared with them.
    """
    lower = precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=lower)
