"""Retain losses: what keeps the rest of the model. Added to the forget loss with
`method.retain_weight`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayunlearn.lazy import torch
from rayunlearn.ranges import FamilyRow

if TYPE_CHECKING:
    from torch import Tensor


def none() -> Tensor:
    """No retain loss."""
    return torch.zeros(())


def nll(token_nll: Tensor, labelled: Tensor) -> Tensor:
    """Mean NLL over the retain batch's label tokens. token_nll (B, T), labelled (B, T) bool."""
    return token_nll.sum() / labelled.sum()


def kl(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """KL(reference || model), in nats, averaged over label positions alone.

    log_probs, reference_log_probs (N, V) at the N label positions. The peers average over prompts
    and padding too; on those positions nothing is to be kept in particular.
    """
    return (reference_log_probs.exp() * (reference_log_probs - log_probs)).sum(-1).mean()


def activation(hidden: Tensor, reference_hidden: Tensor, labelled: Tensor) -> Tensor:
    """Mean squared change of the activations at `method.layer` over label tokens and width.

    hidden, reference_hidden (B, T, D), labelled (B, T) bool. RMU's retain term; padding and prompts
    are left out.
    """
    distance = (hidden.float() - reference_hidden).square().mean(-1)
    return (distance * labelled).sum() / labelled.sum()


@dataclass(frozen=True)
class RetainLoss(FamilyRow["Tensor"]):
    """A row of the family: the function, where it comes from, and what it is one mean over, as in
    `objective.Side`.
    """

    equation: str
    mean: str = ""


RETAIN = {
    row.function.__name__: row
    for row in (
        RetainLoss(none, "no retain loss", "ours", "0"),
        RetainLoss(
            nll,
            "next-token loss",
            "GradDiff: Liu et al. 2203.12817; TOFU 2401.06121",
            "mean NLL",
            "labels",
        ),
        RetainLoss(
            kl,
            "KL to the reference",
            "TOFU 2401.06121 (KL minimisation)",
            "KL(p_ref || p)",
            "labels",
        ),
        RetainLoss(
            activation,
            "activations kept",
            "RMU: Li et al. 2403.03218",
            "mean (h - h_ref)^2",
            "labels",
        ),
    )
}
