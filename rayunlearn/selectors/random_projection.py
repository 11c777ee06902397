"""A short vector for every document whose inner products are, on average, those of the head's
gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rayunlearn.data.tokenize import Encoded, by_length, collate
from rayunlearn.lazy import torch
from rayunlearn.models.forward import evaluating, label_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def head_gradients(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    *,
    width: int = 16,
    seed: int = 0,
    tokens_per_batch: int = 8192,
) -> Tensor:
    """Projected gradient of each document's mean NLL with respect to the head's weight, (n,
    width^2) float32 on the CPU.

    The gradient is sum_t (p_t - y_t) h_t' / n; both sides are multiplied by fixed random signs, E
    <a, b> is exact, and no (V, D) matrix is formed: one forward pass.
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
            hidden = model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state[
                :, :-1
            ][batch.labelled[:, 1:]]
            logits = model.get_output_embeddings()(hidden).float()
            sizes = batch.labelled.sum(1).tolist()
            rows |= dict(
                zip(
                    positions,
                    project(logits, label_ids(batch), hidden.float(), left_factor, right, sizes),
                    strict=True,
                )
            )
    return torch.stack([rows[p] for p in range(len(sequences))])


def project(
    logits: Tensor,
    labels: Tensor,
    hidden: Tensor,
    left_factor: Tensor,
    right: Tensor,
    sizes: Sequence[int],
) -> list[Tensor]:
    """left' G right of each document's head gradient G (V, D), flattened. logits (N, V), labels
    (N,), hidden (N, D), left_factor (V, a), right (D, b).
    """
    errors = logits.softmax(-1) @ left_factor - left_factor[labels]
    pairs = zip(errors.split(list(sizes)), (hidden @ right).split(list(sizes)), strict=True)
    return [(error.T @ state / len(error)).flatten().cpu() for error, state in pairs]


def random_signs(size: int, width: int, seed: int) -> Tensor:
    """(size, width) of +-1 / sqrt(width), a function of the arguments alone."""
    signs = torch.randint(0, 2, (size, width), generator=torch.Generator().manual_seed(seed))
    return (2.0 * signs - 1) / width**0.5
