"""What is trained in place of the weights themselves: LoRA adapters, by peft. The model is plain
again afterwards.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rayunlearn.config import Model
from rayunlearn.errors import UserError, require
from rayunlearn.lazy import nn, peft, safetensors
from rayunlearn.models.folder_answers import passes_once
from rayunlearn.models.forward import blocks
from rayunlearn.models.matrices import is_conv1d
from rayunlearn.models.model_files import resolve_model
from rayunlearn.models.outline import meta_model
from rayunlearn.ranges import Count, FamilyRow, Rule
from rayunlearn.storage.artifact_cache import apply_umask
from rayunlearn.storage.sync import send_folder

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

# of the weights that train.parameters names
LEAST_ADAPTED = 0.5

PositiveFraction = Annotated[float, Rule("must be in [0, 1)", lambda x: 0 <= x < 1)]


def none(modules: Sequence[str]) -> LoraConfig | None:
    """No adapter: the weights themselves are trained."""
    return None


def lora(
    modules: Sequence[str], *, rank: Count = 16, alpha: Count = 32, dropout: PositiveFraction = 0.0
) -> LoraConfig | None:
    """LoRA: W + (alpha / rank) B A beside each chosen linear module, B zero at the start. Hu et al.
    2106.09685.

    modules: full names of the linear modules. Which, `train.parameters` says.
    """
    return peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(modules), bias="none"
    )


@contextmanager
def with_adapter(
    model: PreTrainedModel,
    adapter: Callable[[Sequence[str]], LoraConfig | None],
    pattern: str,
    folder: Path,
    layers: Collection[int] = (),
) -> Iterator[str]:
    """The model with the adapter beside the linear modules of its blocks (of `layers` alone, where
    given) whose name matches `pattern`.

    Gives the pattern of the parameters to train. On leaving, the adapter is written to `folder`
    (adapter_model.safetensors and adapter_config.json, nothing else of the model), added to the
    weights and taken off; after an exception it is taken off only. Raises UserError when no module
    matches.
    """
    modules = linear_modules(model, pattern, layers)
    config = adapter(modules)
    if config is None:
        yield pattern
        return
    require_adapted(model, modules, pattern, layers)
    inject_adapter(model, config)
    try:
        yield r"\.lora_"
        _save(model, config, folder)
        _detach(model, merge=True)
    finally:
        _detach(model, merge=False)


def require_adapted(
    model: PreTrainedModel, modules: Sequence[str], pattern: str, layers: Collection[int]
) -> None:
    """Raise UserError where an adapter beside `modules` reaches none or little of what `pattern`
    names: a family may keep its matrices in tensors of all experts, which LoRA passes by.
    """
    rule = "train.parameters must match a linear module of a block when train.adapter is lora"
    require(bool(modules), rule, pattern)
    named = {
        name.removesuffix(".weight"): parameter.numel()
        for block in _chosen_blocks(model, layers)
        for name, parameter in _named_in(model, block)
        if parameter.dim() > 1 and re.search(pattern, name.removesuffix(".weight"))
    }
    share = sum(named.get(module, 0) for module in modules) / max(1, sum(named.values()))
    require(
        share >= LEAST_ADAPTED,
        f"train.adapter lora must reach {LEAST_ADAPTED:.0%} of the weights that train.parameters"
        f" names; {type(model).__name__} keeps the others in tensors that are no linear modules"
        " (name those to adapt, such as self_attn); reached",
        f"{share:.0%}",
    )


@lru_cache(maxsize=64)
def check_adapter(model: Model, adapter: str, pattern: str, layers: tuple[int, ...]) -> None:
    """Raise UserError, from config.json alone, where the adapter cannot be put into the model or
    reaches little of it. Once per folder and setting.
    """
    check = partial(_check_adapter_on_outline, model, adapter, pattern, layers)
    if model.name == "scratch":
        check()
    else:
        passes_once(resolve_model(model.name), ["adapter", adapter, pattern, layers], check)


def _check_adapter_on_outline(
    model: Model, adapter: str, pattern: str, layers: tuple[int, ...]
) -> None:
    outline = meta_model(model)
    modules = linear_modules(outline, pattern, layers)
    config = ADAPTERS[adapter].function(modules)
    if config is None:
        return
    require_adapted(outline, modules, pattern, layers)
    try:
        inject_adapter(outline, config, without_numbers=True)
    # peft's own list of what it cannot do to a family
    except (ValueError, NotImplementedError) as problem:
        raise UserError(
            f"train.adapter {adapter} cannot be put into {type(outline).__name__}: {problem}"
        ) from problem


def inject_adapter(
    model: PreTrainedModel, config: LoraConfig, *, without_numbers: bool = False
) -> None:
    """Put the adapter beside the modules that `config` names; `without_numbers`: meta device."""
    with warnings.catch_warnings():
        # peft's own, when it finds that GPT-2 keeps its matrices on their side and sets it right
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        peft.inject_adapter_in_model(config, model, low_cpu_mem_usage=without_numbers)


def _chosen_blocks(model: PreTrainedModel, layers: Collection[int]) -> list[nn.Module]:
    return [block for number, block in enumerate(blocks(model)) if not layers or number in layers]


def _named_in(model: PreTrainedModel, block: nn.Module) -> list[tuple[str, nn.Parameter]]:
    inside = {id(parameter) for parameter in block.parameters()}
    return [(name, p) for name, p in model.named_parameters() if id(p) in inside]


def linear_modules(model: PreTrainedModel, pattern: str, layers: Collection[int]) -> list[str]:
    """Full names of the linear modules of the blocks (of `layers` alone, where given) whose name
    matches the pattern.
    """
    inside = {
        id(module)
        for block in _chosen_blocks(model, layers)
        for module in block.modules()
        if isinstance(module, nn.Linear) or is_conv1d(module)
    }
    return [
        name
        for name, module in model.named_modules()
        if id(module) in inside and re.search(pattern, name)
    ]


def _save(model: PreTrainedModel, config: LoraConfig, folder: Path) -> None:
    """Write the adapter, named as peft reads it, under a temporary name and
    rename it into place.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    tensors = {
        f"base_model.model.{name}": tensor.detach().cpu().contiguous()
        for name, tensor in peft.get_peft_model_state_dict(model).items()
    }
    safetensors.torch.save_file(tensors, temporary / "adapter_model.safetensors", {"format": "pt"})
    config.save_pretrained(str(temporary))
    apply_umask(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    send_folder(folder)


def _detach(model: PreTrainedModel, *, merge: bool) -> None:
    """Put every adapted module's own layer back in its place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            if merge:
                module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


ADAPTERS: dict[str, FamilyRow[LoraConfig | None]] = {
    row.function.__name__: row
    for row in (
        FamilyRow(none, "the weights themselves", "-"),
        FamilyRow(lora, "low-rank adapters", "Hu et al. 2106.09685; peft"),
    )
}
