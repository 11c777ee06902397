"""What the model said before unlearning, computed once from the model itself: no second copy is held while training.

A `Reference` holds one row per document. Values are exact, not recomputed: what was not asked for at the start is
not there, and asking for it is an error.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from rayunlearn.data.encode import Batch, Encoded, by_length, collate
from rayunlearn.models.forward import evaluating, hidden_states, label_ids, label_logits, spread


class Reference:
    """Per-document outputs of the frozen model: `kinds` of token_nll, log_probs, hidden and hidden_norm, by doc_id."""

    def __init__(self, rows: dict[str, dict[str, Tensor]]) -> None:
        self._rows = rows

    def token_nll(self, sequences: Sequence[Encoded], batch: Batch) -> Tensor:
        """(B, T) float32 in nats, zero where not labelled."""
        return spread(self._joined("token_nll", sequences, batch), batch.labelled)

    def log_probs(self, sequences: Sequence[Encoded], batch: Batch) -> Tensor:
        """(N, V) float32 at the label positions."""
        return self._joined("log_probs", sequences, batch)

    def hidden(self, sequences: Sequence[Encoded], batch: Batch) -> Tensor:
        """(B, T, D) float32, zero on padding."""
        values = self._joined("hidden", sequences, batch)
        padded = torch.zeros(*batch.present.shape, values.shape[-1], device=values.device)
        padded[batch.present] = values
        return padded

    def hidden_norm(self, sequences: Sequence[Encoded], batch: Batch) -> Tensor:
        """(B, T) float32, Euclidean length of the hidden vector, zero on padding."""
        return spread(self._joined("hidden_norm", sequences, batch), batch.present)

    def _joined(self, kind: str, sequences: Sequence[Encoded], batch: Batch) -> Tensor:
        return torch.cat([self._rows[kind][s.doc_id] for s in sequences]).to(batch.labelled.device)


def reference_of(
    model: PreTrainedModel, sequences: Sequence[Encoded], pad_id: int, kinds: Sequence[str], layer: int, temperature: float = 1.0
) -> Reference:
    """One pass over the sequences with the model as it stands, keeping what `kinds` names (token_nll and log_probs of
    logits / temperature, hidden of block `layer` and its length hidden_norm)."""
    rows: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
    with evaluating(model):
        for positions in by_length(sequences, 8192) if kinds else ():
            chosen = [sequences[p] for p in positions]
            batch = collate(chosen, pad_id).to(model.device)
            for kind in kinds:
                rows[kind] |= dict(zip([s.doc_id for s in chosen], _KINDS[kind](model, batch, layer, temperature), strict=True))
    return Reference(rows)


def _token_nll(model: PreTrainedModel, batch: Batch, _layer: int, temperature: float) -> Sequence[Tensor]:
    values = functional.cross_entropy(label_logits(model, batch) / temperature, label_ids(batch), reduction="none")
    return values.clone().split(batch.labelled.sum(1).tolist())


def _log_probs(model: PreTrainedModel, batch: Batch, _layer: int, temperature: float) -> Sequence[Tensor]:
    return (label_logits(model, batch) / temperature).log_softmax(-1).split(batch.labelled.sum(1).tolist())


def _hidden(model: PreTrainedModel, batch: Batch, layer: int, _temperature: float) -> Sequence[Tensor]:
    return hidden_states(model, batch, layer).float()[batch.present].split(batch.present.sum(1).tolist())


def _hidden_norm(model: PreTrainedModel, batch: Batch, layer: int, temperature: float) -> Sequence[Tensor]:
    return [values.norm(dim=-1) for values in _hidden(model, batch, layer, temperature)]


_KINDS: dict[str, Callable[[PreTrainedModel, Batch, int, float], Sequence[Tensor]]] = {
    "token_nll": _token_nll,
    "log_probs": _log_probs,
    "hidden": _hidden,
    "hidden_norm": _hidden_norm,
}
