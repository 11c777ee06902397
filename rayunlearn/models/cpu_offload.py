"""Where a model's weights are: on the device, or, where they are larger than it, in main memory,
each block there only while it computes.

A placed model is asked as any other: its embeddings, last norm and head are on the device, and what
a forward pass returns is too. It can be measured; to be trained it must be divided
(`train/fsdp.py`), as gradients would need all blocks at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from rayunlearn.lazy import torch
from rayunlearn.models.forward import blocks

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel


# of a device's memory that weights may take; activations, logits and other contexts need the rest
LARGEST_SHARE = 0.8
_OFFLOAD_HOOKS: WeakKeyDictionary[nn.Module, list[RemovableHandle]] = WeakKeyDictionary()


def weight_budget(device: torch.device) -> float:
    """Bytes that weights may take there; main memory counts as endless."""
    return (
        LARGEST_SHARE * torch.cuda.mem_get_info(device)[1]
        if device.type == "cuda"
        else float("inf")
    )


def to_device_or_offload(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on `device`, with its blocks as visitors where the weights are larger than
    `weight_budget` it.
    """
    if _bytes(model) <= weight_budget(device):
        model.to(device)
        return model
    model.to("cpu")
    layers = blocks(model)
    inside = {id(tensor) for tensor in (*layers.parameters(), *layers.buffers())}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in inside:
            tensor.data = tensor.data.to(device)
    _OFFLOAD_HOOKS[model] = [handle for block in layers for handle in _offload_hooks(block, device)]
    return model


def is_offloaded(model: nn.Module) -> bool:
    """Whether the model is larger than its device, so that its blocks only visit it."""
    return model in _OFFLOAD_HOOKS


def to_cpu(model: PreTrainedModel) -> None:
    """All weights in main memory, and no block visits a device any more."""
    for handle in _OFFLOAD_HOOKS.pop(model, ()):
        handle.remove()
    model.to("cpu")


def _bytes(model: nn.Module) -> int:
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    )


def _offload_hooks(block: nn.Module, device: torch.device) -> list[RemovableHandle]:
    """The hooks that bring the block's weights to the device before it computes and put them back
    afterwards, after an exception too.
    """
    home: list[tuple[Tensor, Tensor]] = []

    def arrive(visitor: nn.Module, _inputs: tuple[object, ...]) -> None:
        for tensor in (*visitor.parameters(), *visitor.buffers()):
            home.append((tensor, tensor.data))
            tensor.data = move_tensors(tensor.data, device)

    def leave(_visitor: nn.Module, _inputs: tuple[object, ...], _output: object) -> None:
        while home:
            tensor, data = home.pop()
            tensor.data = data

    return [
        block.register_forward_pre_hook(arrive),
        block.register_forward_hook(leave, always_call=True),
    ]


def move_tensors(data: Tensor, device: torch.device) -> Tensor:
    """A copy on the device."""
    return data.to(device, non_blocking=True)
