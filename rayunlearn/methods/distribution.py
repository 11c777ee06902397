"""Forget losses on the whole next-token distribution. N label positions of the batch, vocabulary V.

All are given as log-probabilities: they differ from the logits by a constant per position, which
softmax and the spread max - mean do not see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayunlearn.lazy import torch
from rayunlearn.ranges import NonNegative, Whole

if TYPE_CHECKING:
    from torch import Tensor


def undial(
    log_probs: Tensor, reference_log_probs: Tensor, labels: Tensor, *, beta: NonNegative = 10.0
) -> Tensor:
    """UNDIAL: mean cross-entropy of the model to the reference's softmax with the true token's
    logit lowered by beta.

    log_probs, reference_log_probs (N, V), labels (N,). Label positions alone count; a known error
    lets prompts and padding count too, and penalises the vocabulary's 100th-last token there (-100
    used as an index).
    """
    lowered = reference_log_probs.scatter_add(
        1, labels[:, None], torch.full_like(reference_log_probs[:, :1], -beta)
    )
    return -(lowered.softmax(-1) * log_probs).sum() / max(1, len(labels))


def ce_u(log_probs: Tensor, labels: Tensor, label_rank: Tensor, *, skipped: Whole = 1) -> Tensor:
    """CE-U: mean cross-entropy of the model to its own distribution without the true token,
    renormalised.

    log_probs (N, V), labels, label_rank (N,). The target has no gradient. The first `skipped`
    tokens of every answer do not count, as in the released code.
    """
    target = log_probs.detach().scatter(1, labels[:, None], -torch.inf).softmax(-1)
    cross_entropy = -(target * log_probs).sum(-1)
    counts = label_rank >= skipped
    return (cross_entropy * counts).sum() / counts.sum().clamp(min=1)


def pdu(log_probs: Tensor) -> Tensor:
    """PDU's forget term: mean over label positions of (max_v z_v - mean_v z_v)^2, zero when all
    tokens are as likely.

    log_probs (N, V). The released code takes the logits of the following position (labels not
    shifted); here they are the ones that predict the label. Its retain weight is a dual variable
    (`dual.*`), which starts at `method.retain_weight`.
    """
    spread = log_probs.max(-1).values - log_probs.mean(-1)
    return spread.square().sum() / max(1, len(spread))
