"""A worker's memory: the base weights once, copied for every trial, and what the trials of one
worker share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rayunlearn.lazy import torch
from rayunlearn.models.cpu_offload import to_device_or_offload
from rayunlearn.models.load import load_model
from rayunlearn.models.mapped_weights import (
    as_bits,
    is_never_rewritten,
    put_back,
    starting_weights,
    take_copies,
)
from rayunlearn.models.model_files import file_stamps
from rayunlearn.storage.artifact_cache import canonical
from rayunlearn.train.device import accelerator

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
T = TypeVar("T")


class CorruptWeightsError(RuntimeError):
    """This process's base weights are not what they were; no trial may start from them."""


@dataclass
class ModelState:
    """A model with its pristine weights. `model` is trained and reset; `pristine` is only ever
    read. `stamps`: what the files it was loaded from were like (`models.load.file_stamps`).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pristine: dict[str, Tensor]
    checksum: int
    cache: dict[Any, Any] = field(default_factory=dict)
    stamps: tuple[object, ...] = ()


@lru_cache(maxsize=2)
def load_model_state(path: str) -> ModelState:
    """The model of a folder, loaded once per process as float32, with its weights to reset from."""
    stamps = file_stamps(path)
    # updates smaller than half a bfloat16 step would be lost
    model, tokenizer = load_model(path, dtype=torch.float32)
    to_device_or_offload(model, accelerator().device).eval()
    pristine = starting_weights(model, path)
    if not is_never_rewritten(path):
        # the model itself would be a view of its file too
        take_copies(model)
    return ModelState(model, tokenizer, pristine, checksum(pristine), stamps=stamps)


def checksum(weights: Mapping[str, Tensor]) -> int:
    """A sum over the bit patterns of all weights: changes when any of them does (barring a balanced
    change).
    """
    return sum(
        (1 + number) * int(as_bits(t.contiguous()).sum(dtype=torch.int64))
        for number, t in enumerate(weights.values())
    )


def reset_weights(path: str) -> ModelState:
    """The model of a folder with its original weights, whatever the last trial did to it; loaded
    anew where the folder's files have changed since.

    Raises CorruptWeightsError if the pristine copy itself has changed, which would spoil every
    later trial.
    """
    state = load_model_state(path)
    if state.stamps != file_stamps(path):
        load_model_state.cache_clear()
        state = load_model_state(path)
    if checksum(state.pristine) != state.checksum:
        raise CorruptWeightsError(
            f"the pristine weights of {path} changed in memory; this worker must not go on"
        )
    put_back(state.model, state.pristine)
    state.model.requires_grad_(True)
    # a trial that failed in a backward pass leaves half a gradient
    state.model.zero_grad(set_to_none=True)
    return state


def cached_in_worker(state: ModelState, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """A value of the base model that trials of one worker share (encodings, references)."""
    if key not in state.cache:
        state.cache[key] = make()
    return state.cache[key]


def cached(
    state: ModelState,
    folder: Path,
    key: Mapping[str, object],
    make: Callable[[Path, Mapping[str, object]], T],
) -> T:
    """`make(folder, key)`, once per worker: memory over what `make` keeps on disk there by `key`
    (`artifact_cache.cached_file`, `models.tensor_cache.tensors_once`, ...).

    `key` must hold everything that decides the value, the model included.
    """
    value: T = cached_in_worker(state, (str(folder), canonical(key)), lambda: make(folder, key))
    return value
