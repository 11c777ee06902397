"""How hard one document pulls at the model when it is unlearned: the norm of its own unlearning
gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from rayunlearn.data.tokenize import by_length
from rayunlearn.lazy import torch
from rayunlearn.methods.loss_inputs import LossInputs, control_direction, required_tensor
from rayunlearn.methods.objective import Side
from rayunlearn.methods.paired_responses import choose_response
from rayunlearn.ranges import required_inputs
from rayunlearn.selectors.gradients import gradient_norms

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


# one row per label; the others have one per document
PER_LABEL = ("log_probs", "reference_log_probs", "labels", "label_rank")


def unlearning_norms(
    model: PreTrainedModel,
    forget: Side,
    retain: Side,
    *,
    retain_weight: float,
    layer: int,
    seed: int,
    forget_weight: float = 1.0,
    tokens_per_batch: int = 4096,
) -> Tensor:
    """||grad (forget_weight l_f(z_i) + retain_weight l_r(r_i))||_2 of every forget document z_i
    with its retain document r_i, (n,) on the CPU.

    The gradient is that of the parameters that require one. `retain` has a sequence for each of
    `forget`, or its loss is `none`. Each loss is taken as of a batch of that one document. A loss
    that looks at other texts of a document, or at chosen words alone, is done one document at a
    time; all others in batches.
    """
    model.eval()
    norms = torch.zeros(len(forget.sequences))
    single = any(side.companions or side.rule.positions for side in (forget, retain))
    control = control_direction(model.config.hidden_size, seed).to(model.device)
    for positions in by_length(forget.sequences, 1 if single else tokens_per_batch):
        views = [
            (weight, side, _view(model, side, positions, layer, control, seed))
            for weight, side in ((forget_weight, forget), (retain_weight, retain))
            if required_inputs(side.loss)
        ]
        if single:
            norms[positions] = _by_backward(model, views)
        else:
            norms[positions] = gradient_norms(
                model,
                [
                    (view.batch, partial(_weighted_losses, weight, view, side.loss))
                    for weight, side, view in views
                ],
            ).cpu()
    return norms


def losses_of_documents(view: LossInputs, loss: Callable[..., Tensor]) -> Tensor:
    """The loss of every document of a view, each as if it were a batch of its own, (B,)."""
    tensors = {name: required_tensor(view, name) for name in required_inputs(loss)}
    ends = view.labelled.sum(1).cumsum(0).tolist()
    starts = [0, *ends[:-1]]

    def part(name: str, row: int) -> Tensor:
        if name == "control":
            return tensors[name]
        return (
            tensors[name][starts[row] : ends[row]]
            if name in PER_LABEL
            else tensors[name][row : row + 1]
        )

    return torch.stack(
        [loss(**{name: part(name, row) for name in tensors}) for row in range(len(ends))]
    )


def _weighted_losses(weight: float, view: LossInputs, loss: Callable[..., Tensor]) -> Tensor:
    return weight * losses_of_documents(view, loss)


def _view(
    model: PreTrainedModel,
    side: Side,
    positions: list[int],
    layer: int,
    control: Tensor,
    seed: int,
) -> LossInputs:
    """The documents at `positions` as the side's loss sees them, with the companions of the first
    epoch.
    """
    view = partial(LossInputs, model, layer=layer, control=control)
    chosen, of_full = [side.sequences[p] for p in positions], side.rule.of_companions
    companions = {
        kind: view(
            [choose_response(c.choices, s.doc_id, seed, 0) for s in chosen],
            reference=c.reference,
            rule=of_full,
        )
        for kind, c in side.companions.items()
    }
    return view(chosen, reference=side.reference, rule=side.rule, companions=companions)


def _by_backward(model: PreTrainedModel, views: list[tuple[float, Side, LossInputs]]) -> Tensor:
    """The norm for views of one document, by an ordinary backward pass. (1,)"""
    terms = [
        weight
        * side.loss(**{name: required_tensor(view, name) for name in required_inputs(side.loss)})
        for weight, side, view in views
    ]
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(torch.stack(terms).sum(), trained, allow_unused=True)
    return (
        torch.stack([g.float().square().sum() for g in gradients if g is not None])
        .sum()
        .sqrt()
        .cpu()[None]
    )
