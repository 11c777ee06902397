"""One pass of the model over each document, and everything that a selector may want from it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayunlearn.data.tokenize import Batch, Encoded, by_length, collate
from rayunlearn.lazy import functional, torch
from rayunlearn.models.forward import (
    LEAST_DEVIATION,
    blocks,
    evaluating,
    final_states_of,
    label_ids,
)
from rayunlearn.models.logits import FinalStates, rows_at_once

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class DocumentFeatures:
    """One document after one forward pass.

    token_nll, surprise (n,) float32 over its n labels: nats, and the min-k++ score (log p(label) -
    mean) / standard deviation of log p under the model's own distribution (Zhang et al. 2404.02936,
    equation 3). token_error (n,):
    ||softmax - one-hot||_2, the EL2N of a token. state: (D,) float32, the output of the block
    before the last, averaged over every token. The last `n_end` labels close the text
    (`Encoded.n_end`).
    """

    token_nll: Tensor
    surprise: Tensor
    token_error: Tensor
    state: Tensor
    n_end: int

    def without_end(self, values: Tensor) -> Tensor:
        """Values of the labels (n,) without the last `n_end`; the first always stays."""
        return values[: max(1, len(values) - self.n_end)]


def document_features(
    model: PreTrainedModel, sequences: Sequence[Encoded], tokens_per_batch: int = 8192
) -> list[DocumentFeatures]:
    """Run the model once over every sequence, in batches of similar length; results in the order
    given, on the CPU.
    """
    results: dict[int, DocumentFeatures] = {}
    with evaluating(model):
        for positions in by_length(sequences, tokens_per_batch):
            chosen = [sequences[p] for p in positions]
            batch, n_ends = collate(chosen).to(model.device), [s.n_end for s in chosen]
            results |= dict(zip(positions, _passed(model, batch, n_ends), strict=True))
    return [results[p] for p in range(len(sequences))]


def zlib_ratio(passed: DocumentFeatures, text: str) -> float:
    """Mean NLL over the bytes of the zlib-compressed text (Carlini et al. 2012.07805): low where
    the model knows more than repetition explains. The metric `zlib_score` is the same number.
    """
    return float(passed.token_nll.mean()) / len(zlib.compress(text.encode()))


def _passed(model: PreTrainedModel, batch: Batch, n_ends: Sequence[int]) -> list[DocumentFeatures]:
    final, penultimate = final_states_of(model, batch, max(0, len(blocks(model)) - 2))
    assert penultimate is not None
    sizes = batch.labelled.sum(1).tolist()
    parts = [values.cpu().split(sizes) for values in _label_scores(final, batch)]
    states = _mean(penultimate.float(), batch.present).cpu()
    return [DocumentFeatures(*values) for values in zip(*parts, states, n_ends, strict=True)]


def _label_scores(final: FinalStates, batch: Batch) -> tuple[Tensor, ...]:
    """`token_scores` of the batch's N labels, some at a time: a whole batch of logits (8,192 x V)
    is larger than a processor's caches, and every step of the scores would read it from memory
    again."""
    rows = rows_at_once(final.model)
    # a label is predicted from the position before it
    places, labels = (batch.places - 1).split(rows), label_ids(batch).split(rows)
    parts = [
        token_scores(final.logits_at(places_of_rows), labels_of_rows)
        for places_of_rows, labels_of_rows in zip(places, labels, strict=True)
    ]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def token_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """token_nll, surprise and token_error, each (N,), of logits (N, V) and labels (N,)."""
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    nll = functional.nll_loss(log_probs, labels, reduction="none")
    mean = (probs * log_probs).sum(-1)
    spread = (probs * (log_probs - mean[:, None]).square()).sum(-1).sqrt()
    probability = (-nll).exp()
    error = (
        (probs.square().sum(-1) - probability.square() + (1 - probability).square())
        .clamp_min(0)
        .sqrt()
    )
    # a certain distribution has spread 0 and -nll = mean
    return nll, (-nll - mean) / spread.clamp_min(LEAST_DEVIATION), error


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
