"""Answers read from a layer in the middle, by every metric: the last blocks are replaced by the
best linear map that stands for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from rayunlearn.attacks.base import TOKENS_PER_BATCH, AttackRow
from rayunlearn.attacks.probing import block_states
from rayunlearn.data.tokenize import Encoded, by_length, collate
from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.models.forward import blocks, evaluating
from rayunlearn.ranges import Count, Positive

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def linear_shortcut(
    model: PreTrainedModel,
    retain_sequences: Sequence[Encoded],
    leaving: ExitStack,
    *,
    skipped: Count = 1,
    penalty: Positive = 1.0,
) -> None:
    """Leave the last `skipped` blocks out and put an affine map in their place, fitted on the
    retain documents to the states they give.

    Din et al. 2303.09435, whose map is a plain least-squares one. Ours: a bias, and `penalty` on
    the map's distance from the identity, so that few documents give the logit lens and not noise.
    The final norm, the head and all weights stay as they are. Unlike `logit_lens` it changes what
    the model answers, so that every metric can be taken there. 2406.09179 probes layers too; how is
    not known to us. Raises UserError unless a block is left before the map.
    """
    layers = blocks(model)
    require(
        skipped < len(layers),
        f"linear_shortcut.skipped must be under the model's {len(layers)} blocks",
        skipped,
    )
    last = len(layers) - 1 - skipped
    weight, bias = ridge_fit(*states_of(model, retain_sequences, last), penalty)
    leaving.callback(
        layers[last].register_forward_hook(partial(_mapped, weight=weight, bias=bias)).remove
    )
    for block in layers[last + 1 :]:
        leaving.callback(block.register_forward_hook(_skipped, with_kwargs=True).remove)


def states_of(
    model: PreTrainedModel, sequences: Sequence[Encoded], block: int
) -> tuple[Tensor, Tensor]:
    """Outputs (N, D) of `block` and of the last one at the N positions that predict a label,
    float64 on the CPU.
    """
    early_states, late_states = [], []
    with evaluating(model):
        for positions in by_length(sequences, TOKENS_PER_BATCH):
            batch = collate([sequences[p] for p in positions]).to(model.device)
            states = block_states(model, batch.input_ids, batch.places - 1)
            early_states.append(states[block].double().cpu())
            late_states.append(states[-1].double().cpu())
    require(
        bool(early_states),
        "a linear shortcut needs retain documents to be fitted on, got",
        len(early_states),
    )
    return torch.cat(early_states), torch.cat(late_states)


def ridge_fit(early_states: Tensor, late_states: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """The map (D, D) and bias (D,) that minimise |early A + b - late|^2 + penalty |A - I|^2; ridge
    regression of the difference.
    """
    centre, target = early_states.mean(0), (late_states - early_states).mean(0)
    centred, change = early_states - centre, late_states - early_states - target
    identity = torch.eye(early_states.shape[1], dtype=early_states.dtype)
    weight = identity + torch.linalg.solve(
        centred.T @ centred + penalty * identity, centred.T @ change
    )
    return weight, centre + target - centre @ weight


def _mapped(_module: nn.Module, _inputs: Any, output: Any, *, weight: Tensor, bias: Tensor) -> Any:
    """Some families' blocks return the hidden states alone,
    others a tuple that begins with them.
    """
    hidden = output if isinstance(output, torch.Tensor) else output[0]
    changed = hidden @ weight.to(hidden) + bias.to(hidden)
    return changed if isinstance(output, torch.Tensor) else (changed, *output[1:])


def _skipped(
    _module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any
) -> Any:
    """What came in goes out; the block has run all the same, so that its cache of keys and values
    is as long as the others'.
    """
    hidden = inputs[0] if inputs else named["hidden_states"]
    return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])


EARLY_EXIT = {
    row.function.__name__: row
    for row in (
        AttackRow(
            function=linear_shortcut,
            kind="weights",
            title="the last blocks left out, a linear map in their place",
            source="Din et al. 2303.09435; the penalty is ours",
        ),
    )
}
