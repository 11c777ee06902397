"""Weights that a worker only reads: views of the model's own files, which all workers of a machine
share, instead of a copy in each.

A safetensors file is mapped into memory, and a page of it exists once per machine for as long as
nobody writes to it. So what a trial begins with is the file itself, and putting a model back writes
to the tensors alone that a trial has changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from rayunlearn.data.hub import is_local
from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.models.model_files import resolve_model, weight_files
from rayunlearn.storage.artifact_cache import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

# integers of a number's size, to compare numbers by their bits: -0.0 equals 0.0 and no NaN itself
BITS = {1: "int8", 2: "int16", 4: "int32", 8: "int64"}


def starting_weights(model: nn.Module, name: str) -> dict[str, Tensor]:
    """The weights and buffers of a model that was just loaded from `name`, on the CPU, apart from
    the model: what each trial begins with.

    A tensor that the folder's safetensors files hold bit for bit, in the model's own type, is a
    view of its file; every other one (converted, renamed or merged in loading, a buffer) is a copy.
    A folder that somebody may write to while it is in use is copied whole: only one with a
    manifest (of the cache or converted here) and the Hub's cache, which names files by their
    content, are never written to in place.
    """
    mapped = _mapped_tensors(name) if is_never_rewritten(name) else {}
    state = model.state_dict()
    alias = _first_names(state)
    return {key: _view_or_copy(tensor, mapped.get(alias[key])) for key, tensor in state.items()}


def put_back(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give the model these weights: `load_state_dict` that leaves alone what has these bits.

    `weights`: every name of the model's state, in its shapes. Raises UserError for other names.
    """
    state = model.state_dict()
    different = sorted(state.keys() ^ weights.keys())
    require(not different, "weights to put back must have the model's names", different[:5])
    with torch.no_grad():
        for name, tensor in state.items():
            if not same_bits(tensor, weights[name]):
                tensor.copy_(weights[name])


def take_copies(model: nn.Module) -> None:
    """Move the model's weights out of the files that they were loaded from into its own memory."""
    copies: dict[tuple[int, torch.Size], Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        tied = copies.setdefault((tensor.data_ptr(), tensor.shape), tensor.data.clone())
        tensor.data = tied


def same_bits(first: Tensor, other: Tensor) -> bool:
    """Whether both have one type, shape, device and the same bits. False, without a look, off the
    CPU, where a comparison costs what a copy does.
    """
    if (first.dtype, first.shape, first.device) != (other.dtype, other.shape, other.device):
        return False
    if first.device.type != "cpu" or not (first.is_contiguous() and other.is_contiguous()):
        return False
    return bool(torch.equal(as_bits(first), as_bits(other)))


def as_bits(tensor: Tensor) -> Tensor:
    """A contiguous tensor's numbers as integers of their size."""
    return tensor.detach().view(getattr(torch, BITS[tensor.element_size()]))


def is_never_rewritten(name: str) -> bool:
    """Whether the files of a model are replaced, if ever, and never written to in place."""
    return not is_local(name) or (resolve_model(name) / MANIFEST).exists()


def _mapped_tensors(name: str) -> dict[str, Tensor]:
    """Every tensor of the model's safetensors files by its name there, a view of the file."""
    return {
        key: tensor
        for file in weight_files(resolve_model(name))
        for key, tensor in _tensors_of(file).items()
    }


def _tensors_of(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118


def _first_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name the first name of the same memory: a file has a tied weight once."""
    first: dict[tuple[int, torch.Size], str] = {}
    return {
        name: first.setdefault((tensor.data_ptr(), tensor.shape), name)
        for name, tensor in state.items()
    }


def _view_or_copy(tensor: Tensor, stored: Tensor | None) -> Tensor:
    if stored is not None and same_bits(tensor.detach().cpu(), stored):
        return stored
    return tensor.detach().clone().cpu()
