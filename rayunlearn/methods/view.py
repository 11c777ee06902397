"""The tensors that losses may ask for by name, each computed at most once per batch and only when asked for."""

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from rayunlearn.data.encode import Batch, Encoded, collate
from rayunlearn.models.forward import hidden_states, label_ids, label_logits, spread
from rayunlearn.models.reference import Reference


class View:
    """One batch as a loss sees it. Attribute names are the parameter names of the loss functions.

    token_nll, reference_token_nll (B, T) float32; labelled, present (B, T) bool; log_probs, reference_log_probs
    (N, V) at the N label positions; labels (N,); hidden, reference_hidden (B, T, D) at `layer`; control (D,).
    `reference` is the model before unlearning.
    """

    def __init__(self, model: PreTrainedModel, sequences: Sequence[Encoded], pad_id: int, *, reference: Reference, layer: int, control: Tensor) -> None:
        self.batch: Batch = collate(sequences, pad_id).to(model.device)
        self.labelled, self.present, self.control = self.batch.labelled, self.batch.present, control
        self._model, self._reference, self._layer = model, reference, layer
        self._sequences = sequences

    @cached_property
    def _logits(self) -> Tensor:
        return label_logits(self._model, self.batch)

    @cached_property
    def labels(self) -> Tensor:
        return label_ids(self.batch)

    @cached_property
    def token_nll(self) -> Tensor:
        return spread(functional.cross_entropy(self._logits, self.labels, reduction="none"), self.labelled)

    @cached_property
    def log_probs(self) -> Tensor:
        return self._logits.log_softmax(-1)

    @cached_property
    def hidden(self) -> Tensor:
        return hidden_states(self._model, self.batch, self._layer)

    @cached_property
    def reference_token_nll(self) -> Tensor:
        return self._reference.token_nll(self._sequences, self.batch)

    @cached_property
    def reference_log_probs(self) -> Tensor:
        return self._reference.log_probs(self._sequences, self.batch)

    @cached_property
    def reference_hidden(self) -> Tensor:
        return self._reference.hidden(self._sequences, self.batch)


def needs(function: Callable[..., Tensor]) -> tuple[str, ...]:
    """Names of the tensors a loss asks for: its positional parameters."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def control_direction(width: int, seed: int) -> Tensor:
    """RMU's fixed direction: U[0, 1)^width scaled to unit length, (width,) float32, a function of the seed alone."""
    return functional.normalize(torch.rand(width, generator=torch.Generator().manual_seed(seed)), dim=0)
