"""From a trial's choice of losses to the loss of one step: which documents, which tensors, which sum."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayunlearn.data.encode import Encoded
from rayunlearn.methods.view import View, control_direction, needs
from rayunlearn.models.reference import Reference
from rayunlearn.train.loop import StepLoss


def stream(n: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Positions of the documents of a step: consecutive pieces of an endless row of shuffled epochs.

    A function of (n, batch_size, step, seed) alone, so a resumed run draws what an undisturbed one draws. With
    fewer documents than the batch size a document comes more than once in a batch; presentations per step are
    therefore the same at every coreset ratio.
    """
    places = range(step * batch_size, (step + 1) * batch_size)
    epochs = {epoch: _epoch(n, seed, epoch) for epoch in {at // n for at in places}}
    return [epochs[at // n][at % n] for at in places]


def _epoch(n: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return list(torch.randperm(n, generator=generator).tolist())


def objective(
    model: PreTrainedModel,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    *,
    forget_loss: Callable[..., Tensor],
    retain_loss: Callable[..., Tensor],
    retain_weight: float,
    forget_reference: Reference,
    retain_reference: Reference,
    layer: int,
    batch_size: int,
    pad_id: int,
    seed: int,
) -> Callable[[int], StepLoss]:
    """The loss of step s: forget_loss(batch of forget) + retain_weight x retain_loss(batch of retain).

    The losses come with their hyperparameters bound (functools.partial). A loss that needs no tensor costs no forward.
    """
    control = control_direction(model.config.hidden_size, seed).to(model.device)
    view = partial(View, model, pad_id=pad_id, layer=layer, control=control)

    def loss_of_step(step: int) -> StepLoss:
        forget_batch = _batch(forget, batch_size, step, 2 * seed) if needs(forget_loss) else []
        retain_batch = _batch(retain, batch_size, step, 2 * seed + 1) if needs(retain_loss) else []
        forget_term = _apply(forget_loss, view(forget_batch, reference=forget_reference)) if forget_batch else None
        retain_term = _apply(retain_loss, view(retain_batch, reference=retain_reference)) if retain_batch else None
        terms = [t for t in (forget_term, None if retain_term is None else retain_weight * retain_term) if t is not None]
        n_tokens = sum(len(s.ids) for s in (*forget_batch, *retain_batch))
        return StepLoss(torch.stack(terms).sum(), forget_term, retain_term, n_tokens, len(forget_batch))

    return loss_of_step


def _batch(sequences: Sequence[Encoded], batch_size: int, step: int, seed: int) -> list[Encoded]:
    return [sequences[p] for p in stream(len(sequences), batch_size, step, seed)]


def _apply(loss: Callable[..., Tensor], view: View) -> Tensor:
    return loss(**{name: getattr(view, name) for name in needs(loss)})
