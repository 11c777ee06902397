"""Blocks that keep their inputs alone for the gradient and compute the rest once more.

transformers has its own (`gradient_checkpointing_enable`), whose second computation would run the
hooks of a pass again and without the pass's own attention; here a block's `forward` alone is run
twice, with the attention of its pass. Chen et al. 1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from rayunlearn.lazy import torch
from rayunlearn.models.forward import blocks
from rayunlearn.models.logits import replaced_forwards
from rayunlearn.models.packed_attention import attention_of, running_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def checkpointed_blocks(model: PreTrainedModel) -> Iterator[None]:
    """The model with all blocks but the last keeping their inputs alone.

    The last one's activations are needed first, when all others are not there: keeping them costs
    no more memory than computing any block's again.
    """
    with ExitStack() as stack:
        for block in blocks(model)[:-1]:
            forward = partial(_recomputed, model, block.forward)
            stack.enter_context(replaced_forwards([block], forward))
        yield


def _recomputed(
    model: PreTrainedModel, forward: Callable[..., Any], *inputs: Any, **options: Any
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    attention = running_attention()

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        again = nullcontext() if attention is None else attention_of(model, attention)
        return nullcontext(), again

    return torch.utils.checkpoint.checkpoint(
        forward, *inputs, use_reentrant=False, context_fn=contexts, **options
    )
