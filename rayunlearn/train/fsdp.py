"""One trial on several processes: while it trains, every block of the model is divided over them
(fully sharded data parallelism).

A process holds its share of a block's weights, gradients and AdamW moments, and the whole block
only while it computes. What is outside the blocks (embeddings, last norm, head) stands whole on
each. Before and after training the model is whole on every process: references, prefixes and
metrics are computed as in a run of one process. Gradients are the mean over processes.

Where the whole model is larger than a device, it stays in main memory and its blocks visit the
device while they compute (`models/cpu_offload.py`), so that only the training step has to fit,
divided.

The process group is accelerate's; the sharding is torch's `fully_shard` on the blocks rather than
accelerate's own wrapping, which takes the whole model as one unit and only gathers it when that is
called: here losses stop at a block or start at one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard

from rayunlearn.lazy import torch
from rayunlearn.models.cpu_offload import to_cpu, to_device_or_offload
from rayunlearn.models.forward import blocks
from rayunlearn.models.fused_layers import try_fused_forms
from rayunlearn.train.device import accelerator

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed.tensor import DTensor
    from transformers import PreTrainedModel


@contextmanager
def shard_model(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """What is to be trained: `model` itself on one process, else a copy with its blocks divided
    over the processes.

    At the end of the block `model` has the trained weights, on every process. Until then it is in
    main memory, so that a device holds the copy alone.
    """
    processes = accelerator().num_processes
    if processes == 1:
        yield model
        return
    # parts of torch that it loads by itself only when they are used
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = model.device
    to_cpu(model)
    trained = copy.deepcopy(model)
    try_fused_forms(trained)
    mesh = init_device_mesh(device.type, (processes,))
    for block in blocks(trained):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    for tensor in (*trained.parameters(), *trained.buffers()):
        if not is_shard(tensor):
            tensor.data = tensor.data.to(device)
    try:
        yield trained
        with torch.no_grad():
            for original, part in zip(model.parameters(), trained.parameters(), strict=True):
                original.copy_(part.full_tensor() if is_shard(part) else part)
        del trained
    finally:
        to_device_or_offload(model, device)


def is_shard(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether it is one process's part of a tensor that several share."""
    # a part of torch that it loads by itself only when it is used
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def is_sharded(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether any of them is a shard."""
    return any(map(is_shard, parameters))


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients down to the global L2 norm `most`, as torch's clip_grad_norm_ does;
    returns the norm before.

    Shards count on the process that has them, whole gradients once.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [g.to_local() for g in gradients if is_shard(g)]
    wholes = [g for g in gradients if not is_shard(g)]
    accelerate = accelerator()
    squares = (
        torch.stack([g.double().square().sum() for g in parts]).sum()
        if parts
        else torch.zeros((), dtype=torch.float64, device=accelerate.device)
    )
    squares = accelerate.reduce(squares, "sum")
    norm = (squares + sum(g.double().square().sum() for g in wholes)).sqrt().float()
    share = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*parts, *wholes):
        gradient.mul_(share)
    return norm


def full_and_sharded(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters that stand whole here and those that are shards, each list if it has any: one
    optimizer step takes one kind.
    """
    kinds = ([p for p in parameters if is_sharded([p]) is divided] for divided in (False, True))
    return [kind for kind in kinds if kind]
