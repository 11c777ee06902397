"""Attacks that change weights without training: pruning, noise, removal of a direction."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from rayunlearn.data.tokenize import Encoded, by_length, collate
from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.metrics.forward_passes import Probe
from rayunlearn.models.forward import blocks, evaluating, hidden_states
from rayunlearn.models.matrices import model_matrices
from rayunlearn.ranges import UnitInterval

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def magnitude_pruning(model: PreTrainedModel, *, share: UnitInterval = 0.3) -> None:
    """Set the `share` of smallest |w| of every weight matrix of the blocks to zero. Han et al.
    1506.02626, without training after it.

    Lucki et al. 2409.18025 prune by gradient scores on forget and utility data; magnitude alone
    needs no data and is weaker.
    """
    for matrix in model_matrices(model):
        weights = matrix.weight.flatten()
        n = int(share * len(weights))
        weights = weights.index_fill(0, weights.abs().topk(n, largest=False).indices, 0.0)
        matrix.weight.copy_(weights.view(matrix.weight.shape))


def weight_noise(model: PreTrainedModel, seed: int, *, relative: UnitInterval = 0.1) -> None:
    """Add Gaussian noise to every weight matrix of the blocks, of `relative` times the standard
    deviation of that weight. Ours.
    """
    generator = torch.Generator().manual_seed(seed)
    for matrix in model_matrices(model):
        weight = matrix.weight
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        weight.add_(noise * (relative * weight.std()))


def direction_ablation(
    model: PreTrainedModel,
    base: PreTrainedModel,
    held_in: Sequence[Probe],
    leaving: ExitStack,
) -> None:
    """Take out of every block's output its mean difference from the base model's on forget
    questions: h - (h.v) v.

    Lucki et al. 2409.18025, "orthogonalisation", variant unlearned - base at all layers, after the
    refusal direction of Arditi et al. 2406.11717. One v per block, over the positions that predict
    the answers of `held_in`; the papers' filter for outlier tokens and their choice of questions
    are left out. On base itself there is no difference and nothing is taken out.
    """
    sequences = [probe.answer for probe in held_in]
    differences = [
        after - theirs
        for after, theirs in zip(
            mean_outputs(model, sequences),
            mean_outputs(base, sequences),
            strict=True,
        )
    ]
    _take_out(model, differences, leaving)


def direction_ablation_retain(
    model: PreTrainedModel,
    held_in: Sequence[Probe],
    retain_sequences: Sequence[Encoded],
    leaving: ExitStack,
) -> None:
    """The same with the difference of forget questions from retain documents inside the model
    itself, which needs no base model.

    The variants "vs MMLU" and "vs wikitext" of 2409.18025, with the retain side in their place.
    Base and gold lose what tells the sides apart too.
    """
    forget = mean_outputs(model, [probe.answer for probe in held_in])
    retain = mean_outputs(model, retain_sequences[: len(held_in)])
    _take_out(
        model,
        [forget_mean - theirs for forget_mean, theirs in zip(forget, retain, strict=True)],
        leaving,
    )


def mean_outputs(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
) -> list[Tensor]:
    """Mean output (D,) of each block over the positions that predict a label, float32 on the
    model's device.
    """
    sums = [torch.zeros(model.config.hidden_size, device=model.device) for _ in blocks(model)]
    n_labels = 0
    with evaluating(model):
        for positions in by_length(sequences, 8192):
            batch = collate([sequences[p] for p in positions]).to(model.device)
            n_labels += len(batch.places)
            for layer, total in enumerate(sums):
                total += (
                    hidden_states(model, batch, layer)
                    .float()
                    .flatten(0, 1)
                    .index_select(0, batch.places - 1)
                    .sum(0)
                )
    require(n_labels > 0, "ablating a direction needs questions to find it from; labels", n_labels)
    return [total / n_labels for total in sums]


def remove_direction(hidden: Tensor, direction: Tensor) -> Tensor:
    """(..., D) less its part along `direction` (D,) of any length; unchanged where the direction is
    zero.
    """
    length = direction.norm()
    if length == 0:
        return hidden
    unit = (direction / length).to(hidden)
    return hidden - (hidden @ unit)[..., None] * unit


def _take_out(model: PreTrainedModel, directions: Sequence[Tensor], leaving: ExitStack) -> None:
    for block, direction in zip(blocks(model), directions, strict=True):
        leaving.callback(block.register_forward_hook(partial(_ablated, direction=direction)).remove)


def _ablated(_module: nn.Module, _inputs: Any, output: Any, *, direction: Tensor) -> Any:
    """Some families' blocks return the hidden states alone,
    others a tuple that begins with them.
    """
    if isinstance(output, torch.Tensor):
        return remove_direction(output, direction)
    return (remove_direction(output[0], direction), *output[1:])
