"""A short vector for every document whose inner products are, on average, those of the head's
gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rayunlearn.data.tokenize import Encoded, by_length, collate
from rayunlearn.lazy import torch
from rayunlearn.models.forward import evaluating, final_states_of, label_ids
from rayunlearn.models.logits import head_gradients_of_loss, rows_at_once

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


# of each of the two sides: a gradient becomes 256 numbers
PROJECTION_WIDTH = 16


def head_gradients(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    *,
    width: int = PROJECTION_WIDTH,
    seed: int = 0,
    tokens_per_batch: int = 8192,
) -> Tensor:
    """Projected gradient of each document's mean NLL with respect to the head's weight, (n,
    width^2) float32 on the CPU.

    The gradient is sum_t e_t h_t' / n with e_t = p_t - y_t, times the derivative of what a family
    does to its logits after the head (a cap, a scale); both sides are multiplied by fixed random
    signs, E <a, b> is exact, and no (V, D) matrix is formed: one forward pass.
    """
    embedding = model.get_output_embeddings().weight
    left_factor, right = (
        random_signs(size, width, seed + index).to(embedding.device)
        for index, size in enumerate(embedding.shape)
    )
    rows: dict[int, Tensor] = {}
    with evaluating(model):
        for positions in by_length(sequences, tokens_per_batch):
            batch = collate([sequences[p] for p in positions]).to(model.device)
            final, _ = final_states_of(model, batch)
            # a label is predicted from the position before it
            hidden = final.states_at(batch.places - 1)
            errors = _projected_errors(model, hidden, label_ids(batch), left_factor)
            sizes = batch.labelled.sum(1).tolist()
            projected = _per_document(errors, hidden.float() @ right, sizes)
            rows |= dict(zip(positions, projected, strict=True))
    return torch.stack([rows[p] for p in range(len(sequences))])


def _projected_errors(
    model: PreTrainedModel, hidden: Tensor, labels: Tensor, left_factor: Tensor
) -> Tensor:
    """Gradients (N, V) of the labels' NLL in the head's output, times (V, a), some at a time."""
    size = rows_at_once(model)
    return torch.cat(
        [
            head_gradients_of_loss(model, states, ids) @ left_factor
            for states, ids in zip(hidden.split(size), labels.split(size), strict=True)
        ]
    )


def _per_document(left_factor: Tensor, right: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Mean over each document's labels of left_t right_t', flattened; left (N, a), right (N, b)."""
    pairs = zip(left_factor.split(list(sizes)), right.split(list(sizes)), strict=True)
    return [(error.T @ state / len(error)).flatten().cpu() for error, state in pairs]


def random_signs(size: int, width: int, seed: int) -> Tensor:
    """(size, width) of +-1 / sqrt(width), a function of the arguments alone."""
    signs = torch.randint(0, 2, (size, width), generator=torch.Generator().manual_seed(seed))
    return (2.0 * signs - 1) / width**0.5
