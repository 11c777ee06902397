"""A model without its numbers: what config.json alone says of it, on torch's meta device.

The driver asks it what a family can do before anything is scheduled; no weights are read.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING

from rayunlearn.config import Model
from rayunlearn.errors import UserError, require
from rayunlearn.lazy import torch, transformers
from rayunlearn.models.folder_answers import passes_once
from rayunlearn.models.forward import blocks
from rayunlearn.models.model_files import model_config, resolve_model
from rayunlearn.models.scratch import MOST_WORDS, build_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def meta_model(model: Model) -> PreTrainedModel:
    """The trial's model, float32, without numbers. Raises UserError where config.json makes
    none.
    """
    with torch.device("meta"):
        if model.name == "scratch":
            return build_model(model.size, MOST_WORDS, 0)
        folder = resolve_model(model.name)
        config = model_config(folder)
        try:
            outline: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(
                config, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise UserError(
                f"{folder / 'config.json'} describes no model that transformers can build:"
                f" {type(problem).__name__}: {problem}"
            ) from problem
        return outline.float()


@lru_cache(maxsize=16)
def check_family(name: str) -> None:
    """Raise UserError, from config.json alone, unless the family has what every trial needs: a list
    of blocks and a head. Once per folder.
    """
    folder = resolve_model(name)
    passes_once(folder, ["family"], partial(_check_outline, name))


def _check_outline(name: str) -> None:
    model = meta_model(Model(name=name))
    kind = type(model).__name__
    try:
        n_blocks = len(blocks(model))
    except LookupError as problem:
        raise UserError(f"a model must keep its blocks in one list: {problem}") from problem
    require(n_blocks > 0, f"{kind} must have at least one block, has", n_blocks)
    has_head = model.get_output_embeddings() is not None
    require(has_head, f"{kind} must have output embeddings, the head that logits come from", "none")
