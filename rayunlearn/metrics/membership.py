"""Membership inference: one score per document, lower where it looks more like one that was trained
on.

The attack itself compares the scores of forget documents with those of a split `holdout` that no
model saw: AUC, TPR at 1% FPR and PrivLeak are in `corpus`. Which way a score points is the peers'
convention.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from rayunlearn.metrics.likelihood import without_end
from rayunlearn.ranges import Fraction

if TYPE_CHECKING:
    from torch import Tensor


def loss_score(token_nll: Tensor) -> float:
    """Mean token NLL in nats. Yeom et al. 1709.01604."""
    return float(token_nll.mean())


def zlib_score(token_nll: Tensor, answer: str) -> float:
    """Mean token NLL / length of the zlib-compressed answer in bytes: what is simply easy text is
    discounted.

    Carlini et al. 2012.07805, in the form that open-unlearning computes.
    """
    return float(token_nll.mean()) / len(zlib.compress(answer.encode()))


def reference_score(token_nll: Tensor, base_nll: Tensor) -> float:
    """Mean token NLL minus that of the reference model, in nats. Carlini et al. 2012.07805,
    2112.03570.

    The reference is the model that the caller gives as `base`: before unlearning, or one that never
    saw the documents.
    """
    return float(token_nll.mean() - base_nll.mean())


def min_k_score(token_nll: Tensor, n_end: int = 1, *, share: Fraction = 0.4) -> float:
    """Mean NLL of the `share` of tokens that are the least likely, at least one; what closes the
    answer (`n_end` tokens) left out. Shi et al. 2310.16789.

    `share` 0.4 is what MUSE uses.
    """
    return -_lowest(-without_end(token_nll, n_end), share)


def min_k_plus_score(
    token_nll: Tensor,
    log_prob_mean: Tensor,
    log_prob_deviation: Tensor,
    n_end: int = 1,
    *,
    share: Fraction = 0.4,
) -> float:
    """Min-k over (log p - mu) / sigma, with mu and sigma of log p under the next-token
    distribution. Zhang et al. 2404.02936.
    """
    scores = (-token_nll - log_prob_mean) / log_prob_deviation
    return -_lowest(without_end(scores, n_end), share)


def gradient_norm_score(gradient_norm: float) -> float:
    """Mean over the parameter tensors of the L2 norm of the gradient of the mean token NLL (not the
    norm of them together).
    """
    return gradient_norm


def _lowest(values: Tensor, share: float) -> float:
    """Mean of the floor(share * n) lowest values, at least one."""
    return float(values.sort().values[: max(1, int(share * len(values)))].mean())
