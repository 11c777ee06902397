"""The tensors that losses may ask for by name, each computed at most once per batch and only when
asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

from rayunlearn.data.tokenize import Batch, Encoded, collate
from rayunlearn.lazy import functional, torch
from rayunlearn.methods.joint_pass import LOGITS, OUTPUT_OF, JointPass, PassRequest
from rayunlearn.methods.token_mask import EVERY_TOKEN, TokenRule, allowed_positions, token_mask
from rayunlearn.models.forward import (
    PrefixStart,
    hidden_states,
    label_ids,
    label_logits,
    scatter_to_labels,
)
from rayunlearn.models.reference import Prefix, Reference
from rayunlearn.ranges import required_inputs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


PAIRED_RESPONSE_KINDS = ("refusal", "alternate", "wrong", "mismatch", "preferred")


class LossInputs:
    """One batch as a loss sees it. Attribute names are the parameter names of the loss functions.

    token_nll, reference_token_nll (B, T) float32, zero where not labelled; labelled, present (B, T)
    bool; log_probs, reference_log_probs (N, V) at the N labelled positions; labels (N,) their token
    ids; label_rank (N,) their place in the answer, from 0; hidden, reference_hidden (B, T, D) at
    `layer`; reference_hidden_norm (B, T); control (D,). `reference` is the model before unlearning;
    `rule` decides which labels count (`labelled`) and at which temperature; `companions` are views
    of other texts for the same documents, by kind; `prefix` knows what the frozen lower blocks say.
    The batch has passes of its own, unless it is told to `join` others.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sequences: Sequence[Encoded],
        *,
        reference: Reference,
        layer: int,
        control: Tensor,
        rule: TokenRule = EVERY_TOKEN,
        companions: Mapping[str, LossInputs] = MappingProxyType({}),
        prefix: Prefix | None = None,
    ) -> None:
        self._on_host = collate(sequences)
        self.batch: Batch = self._on_host.to(model.device)
        self.present, self.control = self.batch.present, control
        self.companions = companions
        self._model, self._reference, self._layer, self._rule = model, reference, layer, rule
        self._sequences, self._prefix = sequences, prefix
        self._joint: tuple[JointPass, PassRequest] | None = None

    def join(self, joint: JointPass, names: Collection[str]) -> None:
        """Let the batch go through the model together with the others of `joint`; `names` are the
        attributes that will be asked for.
        """
        outputs = {OUTPUT_OF[name] for name in names if name in OUTPUT_OF}
        # which tokens count is read off their losses
        outputs |= {LOGITS} if self._rule.by_loss and names else set()
        if outputs:
            self._joint = joint, joint.add(self._labelled_batch, outputs, self._start)

    @cached_property
    def _start(self) -> PrefixStart | None:
        return None if self._prefix is None else self._prefix.start(self._sequences, self.batch)

    @cached_property
    def _labelled_batch(self) -> Batch:
        """The batch with the labels that the rule's positions leave: the head runs nowhere else."""
        if not self._rule.positions:
            return self.batch
        batch = self._on_host
        labelled = batch.labelled & allowed_positions(
            self._sequences, self._rule.positions, batch.labelled
        )
        return Batch(batch.input_ids, batch.present, labelled).to(self.present.device)

    @cached_property
    def _logits(self) -> Tensor:
        logits = (
            self._joint[0].logits(self._joint[1])
            if self._joint
            else label_logits(self._model, self._labelled_batch, self._start)
        )
        return logits if self._rule.temperature == 1 else logits / self._rule.temperature

    @cached_property
    def _labelled_nll(self) -> Tensor:
        return scatter_to_labels(
            functional.cross_entropy(
                self._logits, label_ids(self._labelled_batch), reduction="none"
            ),
            self._labelled_batch.labelled,
        )

    @cached_property
    def labelled(self) -> Tensor:
        if self._rule.by_loss:
            return token_mask(
                self._labelled_nll.detach(), self._labelled_batch.labelled, self._rule
            )
        return self._labelled_batch.labelled

    @cached_property
    def labels(self) -> Tensor:
        return (
            self.batch.input_ids[self.labelled]
            if self._rule.by_loss
            else label_ids(self._labelled_batch)
        )

    @cached_property
    def label_rank(self) -> Tensor:
        ranks = self.batch.labelled.cumsum(1) - 1
        return (
            ranks[self.labelled]
            if self._rule.by_loss
            else ranks.flatten().index_select(0, self._labelled_batch.places)
        )

    @cached_property
    def token_nll(self) -> Tensor:
        return self._labelled_nll * self.labelled if self._rule.by_loss else self._labelled_nll

    @cached_property
    def log_probs(self) -> Tensor:
        log_probs = self._logits.log_softmax(-1)
        return (
            log_probs[self.labelled[self._labelled_batch.labelled]]
            if self._rule.by_loss
            else log_probs
        )

    @cached_property
    def hidden(self) -> Tensor:
        return (
            self._joint[0].hidden(self._joint[1])
            if self._joint
            else hidden_states(self._model, self.batch, self._layer, self._start)
        )

    @cached_property
    def reference_token_nll(self) -> Tensor:
        values = self._reference.token_nll(self._sequences, self.batch)
        return values if self._rule.keeps_every_token else values * self.labelled

    @cached_property
    def reference_log_probs(self) -> Tensor:
        values = self._reference.log_probs(self._sequences, self.batch)
        return (
            values if self._rule.keeps_every_token else values[self.labelled[self.batch.labelled]]
        )

    @cached_property
    def reference_hidden(self) -> Tensor:
        return self._reference.hidden(self._sequences, self.batch)

    @cached_property
    def reference_hidden_norm(self) -> Tensor:
        return self._reference.hidden_norm(self._sequences, self.batch)


def required_tensor(view: LossInputs, name: str) -> Tensor:
    """The tensor that a loss calls `name`: of the view, or of a companion of it.

    `refusal_token_nll` is the companion `refusal`'s token_nll, `reference_refusal_token_nll` its
    reference_token_nll.
    """
    prefix, kind, rest = parts_of_input(name)
    value: Tensor = (
        getattr(view.companions[kind], prefix + rest) if kind else getattr(view, prefix + rest)
    )
    return value


def attributes_of(function: Callable[..., Tensor], companion: str = "") -> tuple[str, ...]:
    """What a loss asks of its own documents, or of one kind of companion."""
    parts = map(parts_of_input, required_inputs(function))
    return tuple(prefix + rest for prefix, kind, rest in parts if kind == companion)


def paired_response_kinds(function: Callable[..., Tensor]) -> tuple[str, ...]:
    """Kinds of companions a loss looks at, in the order of its parameters."""
    return tuple(
        dict.fromkeys(kind for _, kind, _ in map(parts_of_input, required_inputs(function)) if kind)
    )


def uses_documents(function: Callable[..., Tensor]) -> bool:
    """Whether a loss runs the model on the documents themselves and not on companions alone."""
    return any(not kind for _, kind, _ in map(parts_of_input, required_inputs(function)))


def reference_kinds(function: Callable[..., Tensor], companion: str = "") -> tuple[str, ...]:
    """What a loss wants to know of the model before unlearning, on its own documents or on one kind
    of companion.
    """
    return tuple(
        rest
        for prefix, kind, rest in map(parts_of_input, required_inputs(function))
        if prefix and kind == companion
    )


def parts_of_input(name: str) -> tuple[str, str, str]:
    """`reference_refusal_token_nll` -> ("reference_", "refusal", "token_nll"); parts that a name
    lacks are ''.
    """
    prefix = "reference_" if name.startswith("reference_") else ""
    suffix = name.removeprefix(prefix)
    kind, _, rest = suffix.partition("_")
    return (prefix, kind, rest) if kind in PAIRED_RESPONSE_KINDS else (prefix, "", suffix)


def control_direction(width: int, seed: int) -> Tensor:
    """RMU's fixed direction: U[0, 1)^width scaled to unit length, (width,) float32, a function of
    the seed alone.
    """
    return functional.normalize(
        torch.rand(width, generator=torch.Generator().manual_seed(seed)), dim=0
    )
