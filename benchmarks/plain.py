"""One training step the way public unlearning code does it, restated here: the other side of
`benchmarks.engine`.

What it does at every step (reference: open-unlearning d3d7cf9 and the released RMU code): labels
are given to the model, so that the library computes its own loss beside the method's; logits at
every position, prompts and padding too; the reference is a second model that runs beside the first;
RMU runs every layer of three passes and gradients go down to the embeddings, whatever the optimizer
holds. The losses themselves are ours, so both sides must give the same number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from rayunlearn.data.tokenize import Encoded, collate
from rayunlearn.methods.loss_inputs import control_direction, required_tensor
from rayunlearn.methods.objective import Side, presentations
from rayunlearn.methods.paired_responses import choose_response
from rayunlearn.models.forward import blocks
from rayunlearn.ranges import required_inputs


class PlainView:
    """One batch with every tensor that a loss may name, from full passes of the model and of the
    second model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        second: PreTrainedModel,
        sequences: Sequence[Encoded],
        layer: int,
        companions: Mapping[str, "PlainView"],
    ) -> None:
        self.batch = collate(sequences).to(model.device)
        self.labelled, self.present, self.companions = (
            self.batch.labelled,
            self.batch.present,
            companions,
        )
        self.labels = self.batch.input_ids[self.labelled]
        self.label_rank = (self.labelled.cumsum(1) - 1)[self.labelled]
        self.control = control_direction(model.config.hidden_size, 0).to(model.device)
        self._model, self._second, self._layer = model, second, layer

    @cached_property
    def _passed(self) -> tuple[Tensor, Tensor]:
        return self._run(self._model)

    @cached_property
    def _passed_before(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self._run(self._second)

    def _run(self, model: PreTrainedModel) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) and the block's output (B, T, D) of one whole pass."""
        caught: list[Tensor] = []
        handle = blocks(model)[self._layer].register_forward_hook(
            lambda _m, _i, output: caught.append(output)
        )
        labels = torch.where(self.labelled, self.batch.input_ids, -100)
        result = model(
            input_ids=self.batch.input_ids,
            attention_mask=self.present.long(),
            labels=labels,
            use_cache=False,
        )
        handle.remove()
        return result.logits, caught[0]

    def _nll(self, logits: Tensor) -> Tensor:
        """Cross-entropy of every position, then masked. (B, T)"""
        shifted = functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1),
            self.batch.input_ids[:, 1:].flatten(),
            reduction="none",
        )
        return functional.pad(shifted.view(len(logits), -1) * self.labelled[:, 1:], (1, 0))

    def _log_probs(self, logits: Tensor) -> Tensor:
        """Log-probabilities of every position, of which the labelled ones are taken. (N, V)"""
        return logits[:, :-1].float().log_softmax(-1)[self.labelled[:, 1:]]

    @cached_property
    def token_nll(self) -> Tensor:
        return self._nll(self._passed[0])

    @cached_property
    def reference_token_nll(self) -> Tensor:
        return self._nll(self._passed_before[0])

    @cached_property
    def log_probs(self) -> Tensor:
        return self._log_probs(self._passed[0])

    @cached_property
    def reference_log_probs(self) -> Tensor:
        return self._log_probs(self._passed_before[0])

    @cached_property
    def hidden(self) -> Tensor:
        return self._passed[1]

    @cached_property
    def reference_hidden(self) -> Tensor:
        return self._passed_before[1].float()

    @cached_property
    def reference_hidden_norm(self) -> Tensor:
        return self.reference_hidden.norm(dim=-1)


@dataclass(frozen=True)
class PlainObjective:
    """The loss of a step as `methods.objective.UnlearningObjective` gives it, from plain views.
    Seed 0; retain weight 1.

    `idle_retain`: the retain term is run and multiplied by zero, as UNDIAL's is by default in the
    peer's code.
    """

    model: PreTrainedModel
    second: PreTrainedModel
    forget: Side
    retain: Side
    layer: int
    batch_size: int
    idle_retain: bool = False

    def __call__(self, step: int) -> Tensor:
        """The loss to differentiate, a scalar."""
        terms = [
            self._term(side, step, seed)
            for seed, side in enumerate((self.forget, self.retain))
            if required_inputs(side.loss)
        ]
        if self.idle_retain:
            terms[1] = 0.0 * terms[1]
        return torch.stack(terms).sum()

    def _term(self, side: Side, step: int, seed: int) -> Tensor:
        shown = [
            (side.sequences[at], epoch)
            for at, epoch in presentations(len(side.sequences), self.batch_size, step, seed)
        ]
        others: dict[str, PlainView] = {}
        for kind, companions in side.companions.items():
            texts = [choose_response(companions.choices, s.doc_id, 0, epoch) for s, epoch in shown]
            others[kind] = PlainView(self.model, self.second, texts, self.layer, {})
        view: Any = PlainView(self.model, self.second, [s for s, _ in shown], self.layer, others)
        loss: Tensor = side.loss(
            **{name: required_tensor(view, name) for name in required_inputs(side.loss)}
        )
        return loss
