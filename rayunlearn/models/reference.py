"""What the model said before unlearning, computed once from the model itself: no second copy is
held while training.

A `Reference` holds one row per document. Values are exact, not recomputed: what was not asked for
at the start is not there, and asking for it is an error. Only where the rows would be too large to
keep does a frozen copy of the model say them again at every step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rayunlearn.data.tokenize import Batch, Encoded, by_length, collate, to_device
from rayunlearn.lazy import functional, torch
from rayunlearn.models.forward import (
    PrefixStart,
    evaluating,
    hidden_states,
    label_ids,
    label_logits,
    scatter_to_labels,
    tokens_per_pass,
)
from rayunlearn.models.packed_layout import opening_of, share_opening
from rayunlearn.models.tensor_cache import tensors_once

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Whole next-token distributions, label tokens x vocabulary x 4 bytes. Below this a file stays in
# the page cache of a small
# machine, one copy for all its workers, and a step reads a few hundred kilobytes of it: 16,384
# labels x 32,000 words are
# 2.1 GB. Above, the file comes from the disk again and again and soon outgrows the model itself:
# TOFU's 3,600 retain
# answers of 40 tokens x 128,256 words are 74 GB, a copy of that model of 1.2 B parameters in
# float32 is 5 GB.
DISTRIBUTION_BYTES = 2**31
# Hidden states, tokens x width x 4 bytes, and inputs of a block. They are smaller for what they
# save (a token's row is 16 kB
# at width 4096): 75 batches of 4 x 512 tokens, the published RMU run on 7 B, are 2.5 GB. 16 GiB is
# 1 M such tokens.
ACTIVATION_BYTES = 2**34
LIMITS = {"log_probs": DISTRIBUTION_BYTES, "hidden": ACTIVATION_BYTES}


class Reference:
    """Per-document outputs of the frozen model: `kinds` of token_nll, log_probs, hidden and
    hidden_norm, by doc_id.

    `compute(kind, batch)` gives the rows of the kinds that are not kept.
    """

    def __init__(
        self,
        rows: Mapping[str, Mapping[str, Tensor]],
        compute: Callable[[str, Batch], Sequence[Tensor]] | None = None,
    ) -> None:
        self._rows, self._compute = rows, compute

    def token_nll(self, sequences: Sequence[Encoded], batch: Batch) -> Tensor:
        """(B, T) float32 in nats, zero where not labelled."""
        return scatter_to_labels(self._joined("token_nll", sequences, batch), batch.labelled)

    def log_probs(self, sequences: Sequence[Encoded], batch: Batch) -> Tensor:
        """(N, V) float32 at the label positions."""
        return self._joined("log_probs", sequences, batch)

    def hidden(self, sequences: Sequence[Encoded], batch: Batch) -> Tensor:
        """(B, T, D) float32, zero on padding."""
        values = self._joined("hidden", sequences, batch)
        padded = torch.zeros(*batch.present.shape, values.shape[-1], device=values.device)
        return padded.masked_scatter(batch.present[..., None], values)

    def hidden_norm(self, sequences: Sequence[Encoded], batch: Batch) -> Tensor:
        """(B, T) float32, Euclidean length of the hidden vector, zero on padding."""
        return scatter_to_labels(self._joined("hidden_norm", sequences, batch), batch.present)

    def _joined(self, kind: str, sequences: Sequence[Encoded], batch: Batch) -> Tensor:
        if self._compute is not None and kind not in self._rows:
            return torch.cat(list(self._compute(kind, batch)))
        return to_device(
            torch.cat([self._rows[kind][s.doc_id] for s in sequences]), batch.labelled.device
        )


class Prefix:
    """The input of block `block` for every document: what a model whose lower blocks never change
    need not compute again.
    """

    def __init__(self, block: int, rows: Mapping[str, Tensor]) -> None:
        self.block, self._rows = block, rows

    def start(self, sequences: Sequence[Encoded], batch: Batch) -> PrefixStart:
        """Where the batch's pass begins. Padding is zero, which no other position sees (causal
        attention).
        """
        rows = [self._rows[s.doc_id] for s in sequences]
        padded = torch.zeros(*batch.present.shape, rows[0].shape[-1], dtype=rows[0].dtype)
        for index, row in enumerate(rows):
            padded[index, : len(row)] = row
        return PrefixStart(self.block, to_device(padded, batch.present.device))


def cached_reference(
    folder: Path,
    key: Mapping[str, object],
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    kinds: Sequence[str],
    layer: int,
    temperature: float = 1.0,
    limits: Mapping[str, int] = LIMITS,
) -> Reference:
    """`reference_of` through the disk cache in `folder`; kinds over their limit (bytes) come from a
    frozen copy of the model.

    `key`: what identifies the model, the sequences and how they are computed; kinds, layer and
    temperature are added here.
    """
    unique = list({s.doc_id: s for s in sequences}.values())
    cached = [
        kind
        for kind in kinds
        if cached_bytes(model, unique, kind) <= limits.get(kind, ACTIVATION_BYTES)
    ]
    rows: dict[str, dict[str, Tensor]] = {}
    for kind in cached:
        settings = {"what": kind} | (
            {"layer": layer} if "hidden" in kind else {"temperature": temperature}
        )
        make = partial(_joined_rows, model, unique, kind, layer, temperature)
        joined = tensors_once(folder, {**key, **settings}, make)[kind]
        rows[kind] = dict(
            zip([s.doc_id for s in unique], joined.split(_sizes(unique, kind)), strict=True)
        )
    return Reference(
        rows, frozen_model(model, layer, temperature) if len(cached) < len(kinds) else None
    )


def cached_prefix(
    folder: Path,
    key: Mapping[str, object],
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    block: int,
) -> Prefix:
    """The inputs of `block` through the disk cache in `folder`: the outputs of the block before."""
    reference = {**key, "what": "prefix", "block": block}
    unique = list({s.doc_id: s for s in sequences}.values())
    joined = tensors_once(
        folder, reference, partial(_joined_rows, model, unique, "hidden", block - 1, 1.0)
    )["hidden"]
    return Prefix(
        block,
        dict(zip([s.doc_id for s in unique], joined.split(_sizes(unique, "hidden")), strict=True)),
    )


def cached_bytes(model: PreTrainedModel, sequences: Sequence[Encoded], kind: str) -> int:
    """Size of a kind's rows in float32."""
    width = {"log_probs": model.config.vocab_size, "hidden": model.config.hidden_size}.get(kind, 1)
    return 4 * width * sum(_sizes(sequences, kind))


def frozen_model(
    model: PreTrainedModel, layer: int, temperature: float
) -> Callable[[str, Batch], Sequence[Tensor]]:
    """A copy of the model as it stands, that goes on saying what the model says now."""
    copied = copy.deepcopy(model).requires_grad_(False).eval()
    share_opening(copied, opening_of(model))

    def compute(kind: str, batch: Batch) -> Sequence[Tensor]:
        with torch.no_grad():
            return _KINDS[kind](copied, batch, layer, temperature)

    return compute


def _sizes(sequences: Sequence[Encoded], kind: str) -> list[int]:
    """Rows of each sequence: one per token for hidden states, one per label otherwise."""
    return [len(s.ids) if "hidden" in kind else len(s.ids) - s.start for s in sequences]


def _joined_rows(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    kind: str,
    layer: int,
    temperature: float,
) -> dict[str, Tensor]:
    rows = reference_rows(model, sequences, [kind], layer, temperature)[kind]
    return {kind: torch.cat([rows[s.doc_id] for s in sequences])}


def reference_of(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    kinds: Sequence[str],
    layer: int,
    temperature: float = 1.0,
) -> Reference:
    """One pass over the sequences with the model as it stands, keeping what `kinds` names
    (token_nll and log_probs of logits / temperature, hidden of block `layer` and its length
    hidden_norm)."""
    return Reference(reference_rows(model, sequences, kinds, layer, temperature))


def reference_rows(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    kinds: Sequence[str],
    layer: int,
    temperature: float,
) -> dict[str, dict[str, Tensor]]:
    """The rows of `kinds`, by kind and doc_id, on the CPU."""
    rows: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
    with evaluating(model):
        for positions in by_length(sequences, tokens_per_pass(model)) if kinds else ():
            chosen = [sequences[p] for p in positions]
            batch = collate(chosen).to(model.device)
            for kind in kinds:
                values = [v.cpu() for v in _KINDS[kind](model, batch, layer, temperature)]
                rows[kind] |= dict(zip([s.doc_id for s in chosen], values, strict=True))
    return rows


def _token_nll(
    model: PreTrainedModel, batch: Batch, _layer: int, temperature: float
) -> Sequence[Tensor]:
    values = functional.cross_entropy(
        label_logits(model, batch) / temperature, label_ids(batch), reduction="none"
    )
    return values.clone().split(batch.labelled.sum(1).tolist())


def _log_probs(
    model: PreTrainedModel, batch: Batch, _layer: int, temperature: float
) -> Sequence[Tensor]:
    return (
        (label_logits(model, batch) / temperature)
        .log_softmax(-1)
        .split(batch.labelled.sum(1).tolist())
    )


def _hidden(
    model: PreTrainedModel, batch: Batch, layer: int, _temperature: float
) -> Sequence[Tensor]:
    return (
        hidden_states(model, batch, layer)
        .float()[batch.present]
        .split(batch.present.sum(1).tolist())
    )


def _hidden_norm(
    model: PreTrainedModel, batch: Batch, layer: int, temperature: float
) -> Sequence[Tensor]:
    return [values.norm(dim=-1) for values in _hidden(model, batch, layer, temperature)]


_KINDS: dict[str, Callable[[PreTrainedModel, Batch, int, float], Sequence[Tensor]]] = {
    "token_nll": _token_nll,
    "log_probs": _log_probs,
    "hidden": _hidden,
    "hidden_norm": _hidden_norm,
}
