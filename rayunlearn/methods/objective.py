"""From a trial's choice of losses to the loss of one step: which documents, which tensors, which
sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from rayunlearn.data.tokenize import Encoded
from rayunlearn.lazy import torch
from rayunlearn.methods.joint_pass import JointPass
from rayunlearn.methods.loss_inputs import (
    LossInputs,
    attributes_of,
    control_direction,
    required_tensor,
    uses_documents,
)
from rayunlearn.methods.paired_responses import Choices, choose_response
from rayunlearn.methods.retain_weight import fixed_weight
from rayunlearn.methods.token_mask import EVERY_TOKEN, TokenRule
from rayunlearn.models.forward import can_pack
from rayunlearn.models.reference import Prefix, Reference
from rayunlearn.ranges import required_inputs
from rayunlearn.train.device import computing
from rayunlearn.train.step import StepLoss

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Weighting = Callable[["float | Tensor", "Tensor", int], "float | Tensor"]


@dataclass(frozen=True)
class PairedResponses:
    """The companions of one kind: each document's choices, and what the model said of them before
    unlearning.
    """

    choices: Choices
    reference: Reference


@dataclass(frozen=True)
class Side:
    """One of the two sides of an objective: its loss, its documents and all that the loss may ask
    about them.

    `prefix`: the inputs of the lowest trained block for these documents, where the blocks below are
    not to run. `mean` is what the loss is one mean over: documents, labels, the labels of a kind of
    companion, or '' where lengths do not tell.
    """

    loss: Callable[..., Tensor]
    sequences: Sequence[Encoded]
    reference: Reference
    companions: Mapping[str, PairedResponses] = field(default_factory=dict)
    rule: TokenRule = EVERY_TOKEN
    prefix: Prefix | None = None
    mean: str = ""


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What decides the loss of a step beside its two sides.

    `layer`: the block (0-based) whose states `hidden` losses read. `batch_size`: documents of a
    step on each side. `weighting` moves `retain_weight` (see `methods.retain_weight`).
    `control_length`: length of the direction `control`, 1 or that of the activations. `one_pass`:
    both sides and their companions go through the model together, where its passes can be packed;
    not where the gradients of the two terms are taken one by one.
    """

    retain_weight: float
    layer: int
    batch_size: int
    seed: int
    forget_weight: float = 1.0
    n_microbatches: int = 1
    weighting: Weighting = fixed_weight
    precision: str = "float32"
    control_length: float = 1.0
    one_pass: bool = True


@dataclass(frozen=True)
class _Shown:
    """A side on a microbatch: what its loss sees, what its term is to be multiplied by, the tokens
    that go through the model for it, padding excluded, and its documents.
    """

    inputs: LossInputs
    share: float
    n_tokens: int
    n_documents: int


@dataclass(frozen=True)
class Presented:
    """One presentation: a document and the companion drawn for it of each kind."""

    document: Encoded
    companions: Mapping[str, Encoded]


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Positions of the documents of a step: consecutive parts of an endless row of shuffled
    epochs.

    A function of (n, batch_size, step, seed) alone, so a resumed run draws what an undisturbed one
    draws. With fewer documents than the batch size a document comes more than once in a batch;
    presentations per step are therefore the same at every coreset ratio.
    """
    return [position for position, _ in presentations(n, batch_size, step, seed)]


def presentations(n: int, batch_size: int, step: int, seed: int) -> list[tuple[int, int]]:
    """`batch_indices` with the epoch of each presentation."""
    places = range(step * batch_size, (step + 1) * batch_size)
    epochs = {epoch: _epoch(n, seed, epoch) for epoch in {index // n for index in places}}
    return [(epochs[index // n][index % n], index // n) for index in places]


def _epoch(n: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return list(torch.randperm(n, generator=generator).tolist())


class UnlearningObjective:
    """The loss of step s: forget weight x forget loss of a forget batch + retain weight x retain
    loss of a retain batch.

    The losses come with their hyperparameters bound (functools.partial). A loss that needs no
    tensor costs no forward. `weighting` moves the retain weight once per optimizer step, in
    `after_step`: computing a loss changes nothing, so all microbatches of a step see one weight.

    With `n_microbatches` > 1 it is the loss of microbatch m that is given, m = step x
    n_microbatches + 0, 1, ...: the mean over a step's microbatches is the loss of its whole batch,
    value and gradient. For that each microbatch counts by its share of what the loss is a mean
    over, and as it then does not matter who is in which one, a step's documents are sorted by
    length first: less padding. A mean that lengths do not tell (`ce_u`; label means where
    `token.keep` or `token.cap` choose by loss) is left as it is: the documents in the order drawn,
    each microbatch with its own mean.
    """

    def __init__(
        self, model: PreTrainedModel, forget: Side, retain: Side, settings: ObjectiveSettings
    ) -> None:
        self.retain_weight: float | Tensor = settings.retain_weight
        self._model, self._forget, self._retain = model, forget, retain
        self._settings = settings
        control = control_direction(model.config.hidden_size, settings.seed)
        self._control = (settings.control_length * control).to(model.device)

    def __call__(self, microbatch: int) -> StepLoss:
        """Both terms and what was shown. Raises UserError if a side that is asked for has no
        document.
        """
        weight = self.retain_weight
        joint = self._joint_pass()
        with computing(self._model.device, self._settings.precision):
            forget = self._shown(self._forget, microbatch, 0, joint)
            retain = self._shown(self._retain, microbatch, 1, joint)
            forget_term = None if forget is None else _term(self._forget, forget)
            retain_term = None if retain is None else _term(self._retain, retain)
        forget_weight = self._settings.forget_weight
        weighted = ((forget_weight, forget_term), (weight, retain_term))
        return StepLoss(
            torch.stack([by * term for by, term in weighted if term is not None]).sum(),
            forget_term,
            retain_term,
            sum(side.n_tokens for side in (forget, retain) if side),
            forget.n_documents if forget else 0,
            weight,
            forget_weight,
        )

    def after_step(self, step: int, retain: Tensor) -> None:
        """Move the retain weight after optimizer step `step`, counted from 0.

        retain: the retain loss of the step's whole batch, a scalar: the mean over its microbatches,
        those of other processes included. Every process must be given the same number.
        """
        weighting = self._settings.weighting
        self.retain_weight = weighting(self.retain_weight, retain.detach(), step)

    def state(self) -> dict[str, Tensor]:
        """The retain weight, which a weighting may have moved: under one name as a number, under
        another as a tensor.
        """
        weight = self.retain_weight
        return (
            {"tensor": weight}
            if isinstance(weight, torch.Tensor)
            else {"number": torch.tensor(weight, dtype=torch.float64)}
        )

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Go on with this retain weight."""
        self.retain_weight = state["tensor"] if "tensor" in state else float(state["number"])

    def forget_term(self, microbatch: int) -> Tensor | None:
        """The forget term alone, before its weight, with the model as it stands; the retain weight
        does not move.
        """
        with computing(self._model.device, self._settings.precision):
            presented = self._shown(self._forget, microbatch, 0, None)
            return None if presented is None else _term(self._forget, presented)

    def _joint_pass(self) -> JointPass | None:
        settings = self._settings
        joins = settings.one_pass and can_pack(self._model)
        return JointPass(self._model, settings.layer) if joins else None

    def _shown(
        self, side: Side, microbatch: int, stream: int, joint: JointPass | None
    ) -> _Shown | None:
        """What the side shows in a microbatch; None where its loss asks for nothing. `stream`: 0
        for forget, 1 for retain documents, which are drawn independently.
        """
        if not required_inputs(side.loss):
            return None
        n_microbatches = self._settings.n_microbatches
        step, number = divmod(microbatch, n_microbatches)
        batch = self._presentations(side, step, 2 * self._settings.seed + stream)
        presented, share = microbatch_of(side, batch, number, n_microbatches)
        companions = {
            kind: self._inputs(
                [presentation.companions[kind] for presentation in presented],
                paired.reference,
                side.rule.of_companions,
            )
            for kind, paired in side.companions.items()
        }
        documents = [presentation.document for presentation in presented]
        inputs = self._inputs(documents, side.reference, side.rule, companions, side.prefix)
        if joint is not None:
            inputs.join(joint, attributes_of(side.loss))
            for kind, companion in companions.items():
                companion.join(joint, attributes_of(side.loss, kind))
        tokens = sum(n_tokens(side, presentation) for presentation in presented)
        return _Shown(inputs, share, tokens, len(presented))

    def _presentations(self, side: Side, step: int, seed: int) -> list[Presented]:
        """The presentations of a step, with their companions."""
        batch, settings = [], self._settings
        for index, epoch in presentations(len(side.sequences), settings.batch_size, step, seed):
            document = side.sequences[index]
            companions = {
                kind: choose_response(paired.choices, document.doc_id, settings.seed, epoch)
                for kind, paired in side.companions.items()
            }
            batch.append(Presented(document, companions))
        return batch

    def _inputs(
        self,
        sequences: Sequence[Encoded],
        reference: Reference,
        rule: TokenRule,
        companions: Mapping[str, LossInputs] | None = None,
        prefix: Prefix | None = None,
    ) -> LossInputs:
        return LossInputs(
            self._model,
            sequences,
            reference=reference,
            layer=self._settings.layer,
            control=self._control,
            rule=rule,
            companions=companions or {},
            prefix=prefix,
        )


def _term(side: Side, presented: _Shown) -> Tensor:
    """The side's loss on what it shows."""
    names = required_inputs(side.loss)
    term = side.loss(**{name: required_tensor(presented.inputs, name) for name in names})
    return term if presented.share == 1 else presented.share * term


def microbatch_of(
    side: Side, presented: Sequence[Presented], number: int, n_microbatches: int
) -> tuple[Sequence[Presented], float]:
    """Microbatch `number`, from 0, of a step's presentations, and what its loss is to be multiplied
    by (see `UnlearningObjective`).
    """
    if n_microbatches == 1:
        return presented, 1.0
    size = len(presented) // n_microbatches
    part = slice(number * size, (number + 1) * size)
    by_value = side.rule.by_loss and side.mean != "documents"
    if not side.mean or by_value:
        return presented[part], 1.0
    ordered = sorted(presented, key=partial(n_tokens, side))
    n_here, n_in_step = (
        sum(n_averaged(side, presentation) for presentation in group)
        for group in (ordered[part], ordered)
    )
    return ordered[part], n_microbatches * n_here / max(1, n_in_step)


def n_tokens(side: Side, presented: Presented) -> int:
    """Tokens that go through the model for a presentation."""
    n_own = len(presented.document.ids) if uses_documents(side.loss) else 0
    return n_own + sum(len(companion.ids) for companion in presented.companions.values())


def n_averaged(side: Side, presented: Presented) -> int:
    """What a presentation adds to the denominator of the side's mean."""
    if side.mean == "documents":
        return 1
    if side.mean == "labels" and side.rule.positions:
        return len(side.rule.positions.get(presented.document.doc_id, ()))
    sequence = presented.document if side.mean == "labels" else presented.companions[side.mean]
    return len(sequence.ids) - sequence.start
