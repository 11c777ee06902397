"""Where training runs and how exactly: one GPU, several or a CPU, through accelerate."""

from __future__ import annotations

import socket
import sys
import time
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from rayunlearn.lazy import accelerate, functional, torch
from rayunlearn.models.device_memory import has_gpu_driver
from rayunlearn.models.forward import blocks
from rayunlearn.storage.artifact_cache import JSON, cached_file
from rayunlearn.storage.code_identity import version_of

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from transformers import PreTrainedModel

# where Linux shows accelerators that are no CUDA's or AMD's
OTHER_DEVICES = ("/dev/dri", "/dev/accel", "/dev/davinci_manager")
FLOAT32, BFLOAT16 = "float32", "bfloat16"
# rows of the batch that a processor is tried with, and how often; as many tokens as a few documents
TRIED_ROWS = 256
TRIED_TIMES = 3
# what bfloat16 must take of float32's time to be chosen: casting and losses come on top
WORTH_IT = 0.8


def accelerator() -> Accelerator:
    """The process's place: its device, and how gradients are averaged where there are several
    processes.

    Weights and their updates are float32 always; `computing` lowers the precision of what is
    computed from them.
    """
    return accelerate.Accelerator(mixed_precision="no")


def device_type() -> str:
    """The kind of the process's device (`cpu`, `cuda`, ...). Where the machine shows nothing that
    could be another one, torch is not loaded to say so.
    """
    shows_none = not has_gpu_driver() and not any(Path(node).exists() for node in OTHER_DEVICES)
    return "cpu" if sys.platform == "linux" and shows_none else str(accelerator().device.type)


def computing(device: torch.device, products: str) -> AbstractContextManager[object]:
    """The context of a forward pass whose products are computed in `float32` or `bfloat16`
    (`precision_of_products`).

    Reference values must be computed in the same context as the model that is compared with them.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=products == BFLOAT16)


def precision_of_products(model: PreTrainedModel, precision: str, cache: Path | None) -> str:
    """What `train.precision` means for this model on this machine: float32 or bfloat16.

    auto: bfloat16 on a GPU that has it, float32 on a processor. fastest: on a processor too, where
    the model's own matrices are multiplied faster in it; tried once per machine and kept in the
    folder `cache`, so that all its workers compute alike (None: kept nowhere).
    """
    if precision in (FLOAT32, BFLOAT16):
        return precision
    if model.device.type == "cuda":
        return BFLOAT16 if torch.cuda.is_bf16_supported() else FLOAT32
    if precision == "auto":
        return FLOAT32
    shapes = sorted(tuple(p.shape) for p in blocks(model)[0].parameters() if p.dim() == 2)
    if cache is None:
        return _fastest(tuple(shapes))
    key: dict[str, object] = {
        "host": socket.gethostname(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "shapes": shapes,
        "torch": version_of("torch"),
    }
    return str(cached_file(cache / "precision", key, partial(_fastest, tuple(shapes)), JSON))


@lru_cache(maxsize=16)
def _fastest(shapes: tuple[tuple[int, int], ...]) -> str:
    """The faster of the two on this processor, for matrices (out, in) of these shapes: their
    products and gradients, in turn, the least of a few tries. Takes well under a second.
    """
    seconds = {
        products: min(_seconds_of_block(shapes, products) for _ in range(TRIED_TIMES))
        for products in (FLOAT32, BFLOAT16)
    }
    return BFLOAT16 if seconds[BFLOAT16] < WORTH_IT * seconds[FLOAT32] else FLOAT32


def _seconds_of_block(shapes: tuple[tuple[int, int], ...], products: str) -> float:
    """CPU seconds of this thread, which do not count the time that others take."""
    pairs = [
        (torch.ones(TRIED_ROWS, n_in), torch.ones(n_out, n_in, requires_grad=True))
        for n_out, n_in in shapes
    ]
    started = time.process_time()
    with computing(torch.device("cpu"), products):
        sums: list[Tensor] = [functional.linear(x, weight).float().sum() for x, weight in pairs]
    torch.stack(sums).sum().backward()
    return time.process_time() - started
