"""Blocks compiled by `torch.compile`, where they compute something with a gradient.

A block's `forward` alone is compiled, with its attention left out: hooks, the beginning and the end
of a pass, and sequences of unlike lengths stay outside the graphs, which so serve every batch. The
last block, which runs at label positions in two parts, is not compiled, and neither are passes
without a gradient.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.models.forward import blocks
from rayunlearn.models.logits import replaced_forwards
from rayunlearn.models.packed_attention import attention_outside_graphs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# where torch keeps what it compiled, and for whom
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
COMPILERS = ("g++", "clang++", "c++")


@contextmanager
def compiled_blocks(
    model: PreTrainedModel, cache: Path, *, backend: str = "inductor"
) -> Iterator[None]:
    """The model with all blocks but the last compiled at their first use. What is compiled is kept
    in the folder `cache`, where other processes find it, unless TORCHINDUCTOR_CACHE_DIR says where.

    Raises UserError on a processor without a C++ compiler.
    """
    if backend == "inductor" and model.device.type == "cpu":
        compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), "")
        rule = f"train.compile needs a C++ compiler ({', '.join(COMPILERS)}, or CXX); there is"
        require(bool(compiler), rule, compiler)
    os.environ.setdefault(CACHE_VARIABLE, str(cache))
    with ExitStack() as stack:
        stack.enter_context(attention_outside_graphs())
        for block in blocks(model)[:-1]:
            compiled = torch.compile(block.forward, dynamic=True, backend=backend)
            forward = partial(_with_gradient, compiled, block.forward)
            stack.enter_context(replaced_forwards([block], forward))
        yield


def _with_gradient(
    compiled: Callable[..., Any], forward: Callable[..., Any], *inputs: Any, **options: Any
) -> Any:
    return (compiled if torch.is_grad_enabled() else forward)(*inputs, **options)
