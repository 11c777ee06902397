"""Forget losses. A function's positional parameters name the tensors it needs (see `methods.view`); its
keyword-only arguments are its hyperparameters, with the defaults that are used everywhere.

Shapes: B sequences padded to T positions, model width D. `token_nll` is -log p in nats at labelled positions and
zero elsewhere, so a plain sum never counts padding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rayunlearn.ranges import NonNegative, Positive


def none() -> Tensor:
    """No forget loss: with a retain loss this is the retain-only control."""
    return torch.zeros(())


def ga(token_nll: Tensor, labelled: Tensor) -> Tensor:
    """Gradient ascent: minus the mean NLL over the batch's label tokens.

    token_nll (B, T), labelled (B, T) bool. The mean is over tokens, so long answers weigh more.
    """
    return -token_nll.sum() / labelled.sum()


def npo(token_nll: Tensor, reference_token_nll: Tensor, *, beta: Positive = 0.1) -> Tensor:
    """Negative preference optimisation: -(2/beta) mean_i log sigmoid(beta (NLL_i - NLL_i of the reference)).

    token_nll, reference_token_nll (B, T); NLL_i is the SUM over the answer's tokens. At the reference the value is
    2 ln 2 / beta. As beta goes to 0 its gradient becomes that of gradient ascent on summed NLL.
    """
    excess = (token_nll - reference_token_nll).sum(1)
    return -(2 / beta) * functional.logsigmoid(beta * excess).mean()


def simnpo(token_nll: Tensor, labelled: Tensor, *, beta: Positive = 4.5, delta: NonNegative = 0.0) -> Tensor:
    """SimNPO: -(2/beta) mean_i log sigmoid(beta (NLL_i / n_i - delta)); no reference, normalised by length.

    token_nll (B, T), labelled (B, T) bool, n_i label tokens of sequence i. Defaults: the SimNPO repository's TOFU
    forget10 setting (its retain weight there is 1 and the forget term is scaled by 0.125).
    """
    mean_nll = token_nll.sum(1) / labelled.sum(1)
    return -(2 / beta) * functional.logsigmoid(beta * (mean_nll - delta)).mean()


def rmu(hidden: Tensor, labelled: Tensor, control: Tensor, *, steering: Positive = 6.5) -> Tensor:
    """RMU: mean squared distance of the activations at `method.layer` to steering x a fixed random direction.

    hidden (B, T, D), labelled (B, T) bool, control (D,) of unit length, drawn once from U[0, 1)^D. Mean over label
    tokens and over D, as in the released code (the paper writes the squared norm, D times larger). The released
    code also averages over padding; here padding and prompts are left out.
    """
    distance = (hidden.float() - steering * control).square().mean(-1)
    return (distance * labelled).sum() / labelled.sum()


@dataclass(frozen=True)
class ForgetLoss:
    """A row of the family: the function and where it comes from."""

    function: Callable[..., Tensor]
    title: str
    source: str
    equation: str


FORGET = {
    row.function.__name__: row
    for row in (
        ForgetLoss(none, "no forget loss (control)", "ours", "0"),
        ForgetLoss(ga, "gradient ascent", "Jang et al. 2210.01504; TOFU 2401.06121", "-mean NLL"),
        ForgetLoss(npo, "negative preference optimisation", "Zhang et al. 2404.05868", "-(2/b) log s(b (NLL - NLL_ref))"),
        ForgetLoss(simnpo, "simple NPO", "Fan et al. 2410.07163", "-(2/b) log s(b (NLL/n - delta))"),
        ForgetLoss(rmu, "representation misdirection", "Li et al. 2403.03218", "mean (h - c u)^2"),
    )
}
