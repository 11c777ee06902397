"""Room on a device that several trials share: what a trial needs, which share that is, and what
happens when it is not enough.

A trial that runs out of memory beside others is run once more alone; if that is not enough either,
its row says so.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rayunlearn.errors import require
from rayunlearn.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


T = TypeVar("T")

# fragments of the allocator, the batch that is longer than the one measured
MARGIN = 1.25

# what a CUDA process takes before its first tensor
CONTEXT_BYTES = 600 * 2**20

ADVICE = (
    "lower train.batch_size or data.max_tokens, raise train.accumulation, or train fewer parameters"
)

# shares are rounded up to twentieths, so that equal trials tile a device
SHARES = 20


class DeviceMemoryError(RuntimeError):
    """A trial does not fit on the device, not even alone."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes that one training step holds at once."""

    weights: int
    gradients: int
    moments: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.moments + self.activations


def two_moments(parameter: nn.Parameter) -> int:
    """Bytes of AdamW's two moments of a parameter."""
    return 2 * parameter.numel() * parameter.element_size()


def step_memory(
    model: nn.Module,
    trained: Sequence[nn.Parameter],
    loss: Callable[[], Tensor],
    state_bytes: Callable[[nn.Parameter], int] = two_moments,
) -> StepMemory:
    """Measure a step by running its forward pass on any device, `meta` among them: weights,
    gradients and what the optimizer remembers (`state_bytes` of a parameter) from their sizes,
    activations as the distinct storages that autograd keeps for the backward pass, weights left
    out."""
    model_storage = {_storage(t) for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in model_storage:
            saved[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = loss()
    trainable = sum(p.numel() * p.element_size() for p in trained)
    remembered = sum(map(state_bytes, trained))
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    # until here, so that no storage was freed and another counted under its name
    del value
    return StepMemory(
        weights=weights, gradients=trainable, moments=remembered, activations=sum(saved.values())
    )


def _storage(tensor: Tensor) -> int:
    """What tells storages apart. Their addresses do not: those without numbers (`meta`) all have
    address 0.
    """
    return int(tensor.untyped_storage()._cdata)


def share_of(needed: int, available: int, trial: str = "a trial") -> float:
    """The part of a device of `there` bytes to give to a trial of `needed` bytes
    (`trials.peak_memory_bytes`), in (0, 1].

    Raises UserError when a whole device is too small; `trial` says which.
    """
    needed_bytes = MARGIN * needed + CONTEXT_BYTES
    rule = (
        f"{trial} must fit on the device's {available / 2**30:.1f} GiB ({ADVICE}); GiB beside the"
        " context"
    )
    require(needed + CONTEXT_BYTES <= available, rule, round(needed / 2**30, 2))
    return min(1.0, math.ceil(SHARES * needed_bytes / available) / SHARES)


def retry_alone_on_oom(attempt: Callable[[], T], lock_file: Path | None) -> T:
    """`attempt()` beside other trials of the device; when its memory is not enough once more, with
    no other trial running.

    `lock_file`: the device's lock (`device_lock`), None where memory is not shared. Raises
    DeviceMemoryError when it was not enough alone.
    """
    try:
        with device_slot(lock_file, alone=False):
            try:
                return attempt()
            finally:
                empty_cache(lock_file)
    except torch.OutOfMemoryError as error:
        first = str(error)
    # here and not above: the exception holds the frames that hold the tensors
    release_memory()
    # the actor sets its own share again before its next trial
    limit_share(1.0)
    try:
        with device_slot(lock_file, alone=True):
            return attempt()
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"out of device memory beside other trials and again alone; {ADVICE}. First: {first}"
            f" Alone: {error}"
        ) from None


@contextmanager
def device_slot(lock_file: Path | None, *, alone: bool) -> Iterator[None]:
    """Wait for a turn on the device: with others, or alone. Who waits to be alone lets nobody in
    before.
    """
    if lock_file is None:
        yield
        return
    with open(f"{lock_file}.gate", "w") as gate, open(lock_file, "w") as slot:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(slot, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(slot, fcntl.LOCK_UN)


def device_lock() -> Path | None:
    """Where trials of this process's GPU queue; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    return (
        Path(tempfile.gettempdir())
        / f"rayunlearn-{os.getuid()}-{torch.cuda.get_device_properties(0).uuid}.lock"
    )


def limit_share(share: float) -> None:
    """Let this process take at most this share of its GPU, so that it fails by itself and not its
    neighbour.
    """
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))


def empty_cache(lock_file: Path | None) -> None:
    """Between trials a worker keeps its weights on a shared device and nothing else: another one
    may be waiting to be alone.
    """
    if lock_file is not None:
        release_memory()


def device_bytes() -> int:
    """Memory of this process's GPU, 0 where torch sees none."""
    if not has_gpu_driver() or not torch.cuda.is_available():
        return 0
    return int(torch.cuda.get_device_properties(0).total_memory)


def has_gpu_driver() -> bool:
    """Whether the driver of a GPU is installed, CUDA's or AMD's: without one torch sees no GPU, and
    need not be loaded to say so.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def release_memory() -> None:
    """Give back what no tensor uses."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reset_peak_memory() -> None:
    """Start the device's record of peak memory again, so that it is that of one trial."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
