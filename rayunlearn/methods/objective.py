"""From a trial's choice of losses to the loss of one step: which documents, which tensors, which sum."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayunlearn.data.encode import Encoded
from rayunlearn.methods.companions import Choices, drawn
from rayunlearn.methods.tokens import EVERY_TOKEN, TokenRule
from rayunlearn.methods.view import View, control_direction, looks_at_documents, needs, tensor
from rayunlearn.methods.weighting import fixed
from rayunlearn.models.reference import Prefix, Reference
from rayunlearn.train.device import computing
from rayunlearn.train.step import StepLoss

Weighting = Callable[[float | Tensor, Tensor, int], float | Tensor]


@dataclass(frozen=True)
class Companions:
    """The companions of one kind: each document's choices, and what the model said of them before unlearning."""

    choices: Choices
    reference: Reference


@dataclass(frozen=True)
class Side:
    """One of the two sides of an objective: its loss, its documents and all that the loss may ask about them.

    `prefix`: the inputs of the lowest trained block for these documents, where the blocks below are not to run.
    """

    loss: Callable[..., Tensor]
    sequences: Sequence[Encoded]
    reference: Reference
    companions: Mapping[str, Companions] = field(default_factory=dict)
    rule: TokenRule = EVERY_TOKEN
    prefix: Prefix | None = None


def stream(n: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Positions of the documents of a step: consecutive pieces of an endless row of shuffled epochs.

    A function of (n, batch_size, step, seed) alone, so a resumed run draws what an undisturbed one draws. With
    fewer documents than the batch size a document comes more than once in a batch; presentations per step are
    therefore the same at every coreset ratio.
    """
    return [position for position, _ in presentations(n, batch_size, step, seed)]


def presentations(n: int, batch_size: int, step: int, seed: int) -> list[tuple[int, int]]:
    """`stream` with the epoch of each presentation."""
    places = range(step * batch_size, (step + 1) * batch_size)
    epochs = {epoch: _epoch(n, seed, epoch) for epoch in {at // n for at in places}}
    return [(epochs[at // n][at % n], at // n) for at in places]


def _epoch(n: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return list(torch.randperm(n, generator=generator).tolist())


class Objective:
    """The loss of step s: forget loss of a forget batch + retain weight x retain loss of a retain batch.

    The losses come with their hyperparameters bound (functools.partial). A loss that needs no tensor costs no forward.
    `weighting` moves the retain weight after each step in which both terms were asked for.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        forget: Side,
        retain: Side,
        *,
        retain_weight: float,
        layer: int,
        batch_size: int,
        pad_id: int,
        seed: int,
        weighting: Weighting = fixed,
        precision: str = "float32",
    ) -> None:
        self.retain_weight: float | Tensor = retain_weight
        self._model, self._forget, self._retain, self._weighting = model, forget, retain, weighting
        self._layer, self._batch_size, self._pad_id, self._seed, self._precision = layer, batch_size, pad_id, seed, precision
        self._control = control_direction(model.config.hidden_size, seed).to(model.device)

    def __call__(self, step: int) -> StepLoss:
        """Both terms and what was shown. Raises UserError if a side that is asked for has no document."""
        forget_batch, retain_batch = self._batch(self._forget, step, 2 * self._seed), self._batch(self._retain, step, 2 * self._seed + 1)
        forget_term, n_forget = self._term(self._forget, forget_batch)
        retain_term, n_retain = self._term(self._retain, retain_batch)
        weight = self.retain_weight
        terms = [t for t in (forget_term, None if retain_term is None else weight * retain_term) if t is not None]
        if retain_term is not None:
            self.retain_weight = self._weighting(weight, retain_term, step)
        return StepLoss(torch.stack(terms).sum(), forget_term, retain_term, n_forget + n_retain, len(forget_batch), weight)

    def forget_term(self, step: int) -> Tensor | None:
        """The forget term alone, with the model as it stands; the retain weight does not move."""
        return self._term(self._forget, self._batch(self._forget, step, 2 * self._seed))[0]

    def _batch(self, side: Side, step: int, seed: int) -> list[tuple[Encoded, int]]:
        """The sequences of a step, each with its epoch; none where the loss looks at none."""
        if not needs(side.loss):
            return []
        return [(side.sequences[at], epoch) for at, epoch in presentations(len(side.sequences), self._batch_size, step, seed)]

    def _term(self, side: Side, batch: Sequence[tuple[Encoded, int]]) -> tuple[Tensor | None, int]:
        """The side's loss on the batch and the tokens that went through the model for it, padding excluded."""
        if not batch:
            return None, 0
        sequences = [s for s, _ in batch]
        drawn_ones = {kind: [drawn(c.choices, s.doc_id, self._seed, epoch) for s, epoch in batch] for kind, c in side.companions.items()}
        whole = TokenRule(temperature=side.rule.temperature)
        with computing(self._model.device, self._precision):
            views = {kind: self._view(ones, side.companions[kind].reference, whole) for kind, ones in drawn_ones.items()}
            view = self._view(sequences, side.reference, side.rule, views, side.prefix)
            term = side.loss(**{name: tensor(view, name) for name in needs(side.loss)})
        shown = [*(sequences if looks_at_documents(side.loss) else ()), *(s for ones in drawn_ones.values() for s in ones)]
        return term, sum(len(s.ids) for s in shown)

    def _view(
        self,
        sequences: Sequence[Encoded],
        reference: Reference,
        rule: TokenRule,
        companions: Mapping[str, View] | None = None,
        prefix: Prefix | None = None,
    ) -> View:
        return View(
            self._model,
            sequences,
            self._pad_id,
            reference=reference,
            layer=self._layer,
            control=self._control,
            rule=rule,
            companions=companions or {},
            prefix=prefix,
        )
