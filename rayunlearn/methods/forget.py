"""Forget losses on the likelihood of the forget documents and on activations, and the table of all
forget losses.

A function's positional parameters name the tensors it needs (see `methods.loss_inputs`); its
keyword-only arguments are its hyperparameters, with the defaults that are used everywhere.

Shapes: B sequences padded to T positions, model width D. `token_nll` is -log p in nats at labelled
positions and zero elsewhere, so a plain sum never counts padding. A batch or sequence left without
a label (`token.*` can do that) gives a constant: its count is taken as 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayunlearn.lazy import functional, torch
from rayunlearn.methods.distribution import ce_u, pdu, undial
from rayunlearn.methods.preference import altpo, dpo, idk, llmu, llmu_two_term
from rayunlearn.methods.retain_weight import dual, fixed_weight
from rayunlearn.methods.task_vector import as_trained, negate
from rayunlearn.ranges import FamilyRow, NonNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor


def none() -> Tensor:
    """No forget loss: with a retain loss this is the retain-only control."""
    return torch.zeros(())


def ga(token_nll: Tensor, labelled: Tensor) -> Tensor:
    """Gradient ascent: minus the mean NLL over the batch's label tokens.

    token_nll (B, T), labelled (B, T) bool. The mean is over tokens, so long answers weigh more.
    """
    return -token_nll.sum() / labelled.sum().clamp(min=1)


def npo(token_nll: Tensor, reference_token_nll: Tensor, *, beta: Positive = 0.1) -> Tensor:
    """Negative preference optimisation: -(2/beta) mean_i log sigmoid(beta (NLL_i - NLL_i of the
    reference)).

    token_nll, reference_token_nll (B, T); NLL_i is the SUM over the answer's tokens. At the
    reference the value is 2 ln 2 / beta. As beta goes to 0 its gradient becomes that of gradient
    ascent on summed NLL.
    """
    excess = (token_nll - reference_token_nll).sum(1)
    return -(2 / beta) * functional.logsigmoid(beta * excess).mean()


def simnpo(
    token_nll: Tensor, labelled: Tensor, *, beta: Positive = 4.5, delta: NonNegative = 0.0
) -> Tensor:
    """SimNPO: -(2/beta) mean_i log sigmoid(beta (NLL_i / n_i - delta)); no reference, normalised by
    length.

    token_nll (B, T), labelled (B, T) bool, n_i label tokens of sequence i. Defaults: the SimNPO
    repository's TOFU forget10 setting (there with `method.forget_weight` 0.125 and
    `method.retain_weight` 1).
    """
    mean_nll = token_nll.sum(1) / labelled.sum(1).clamp(min=1)
    return -(2 / beta) * functional.logsigmoid(beta * (mean_nll - delta)).mean()


def wga(token_nll: Tensor, labelled: Tensor, *, beta: NonNegative = 1.0) -> Tensor:
    """Weighted gradient ascent: -mean over label tokens of p^beta NLL, the weight p^beta without
    gradient.

    token_nll (B, T), labelled (B, T) bool. Tokens that are forgotten already lose their weight.
    beta 0 is `ga`.
    """
    weight = torch.exp(-beta * token_nll.detach())
    return -(weight * token_nll).sum() / labelled.sum().clamp(min=1)


def satimp(
    token_nll: Tensor, labelled: Tensor, *, beta1: NonNegative = 5.0, beta2: NonNegative = 1.0
) -> Tensor:
    """SatImp: -mean over label tokens of p^beta1 (1 - p)^beta2 NLL, the weight without gradient.

    token_nll (B, T), labelled (B, T) bool. beta1 spares saturated tokens, beta2 the ones that are
    certain. The released configuration has `method.forget_weight` 0.1 and `method.retain_weight` 1;
    its read-me says the reverse.
    """
    nll = token_nll.detach()
    weight = torch.exp(-beta1 * nll) * (-torch.expm1(-nll)).pow(beta2)
    return -(weight * token_nll).sum() / labelled.sum().clamp(min=1)


def task_vector(token_nll: Tensor, labelled: Tensor) -> Tensor:
    """What the task vector is trained on: the mean NLL of the forget documents, which it learns
    even better.

    token_nll (B, T), labelled (B, T) bool. Unlearning is the step the other way afterwards
    (`negate.scale`); there is no retain loss, because what it trained would be taken away as well.
    """
    return token_nll.sum() / labelled.sum().clamp(min=1)


def rmu(hidden: Tensor, labelled: Tensor, control: Tensor, *, steering: Positive = 6.5) -> Tensor:
    """RMU: mean squared distance of the activations at `method.layer` to steering x a fixed random
    direction.

    hidden (B, T, D), labelled (B, T) bool, control (D,) of unit length, drawn once from U[0, 1)^D.
    Mean over label tokens and over D, as in the released code (the paper writes the squared norm, D
    times larger). The released code also averages over padding; here padding and prompts are left
    out.
    """
    distance = (hidden.float() - steering * control).square().mean(-1)
    return (distance * labelled).sum() / labelled.sum().clamp(min=1)


def adaptive_rmu(
    hidden: Tensor,
    reference_hidden_norm: Tensor,
    labelled: Tensor,
    control: Tensor,
    *,
    scale: Positive = 5.0,
) -> Tensor:
    """Adaptive RMU: as `rmu`, with scale x the length of the token's own activation before
    unlearning as steering.

    hidden (B, T, D), reference_hidden_norm (B, T), labelled (B, T) bool, control (D,). One length
    per token, as the paper writes it; the released code measures one coefficient per topic on its
    first batch, so that all depends on that batch.
    """
    distance = (
        (hidden.float() - scale * reference_hidden_norm[..., None] * control).square().mean(-1)
    )
    return (distance * labelled).sum() / labelled.sum().clamp(min=1)


@dataclass(frozen=True)
class ForgetLoss(FamilyRow["Tensor"]):
    """A row of the family: the function and where it comes from.

    `mean`: what the loss is one mean over, as in `objective.Side`; '' where it is none. `weighting`
    says how the retain weight moves from step to step, `ending` what the weights become after the
    last one.
    """

    equation: str
    mean: str = ""
    weighting: Callable[..., float | Tensor] = fixed_weight
    ending: Callable[..., Tensor] = as_trained


FORGET = {
    row.function.__name__: row
    for row in (
        ForgetLoss(none, "no forget loss (control)", "ours", "0"),
        ForgetLoss(
            ga, "gradient ascent", "Jang et al. 2210.01504; TOFU 2401.06121", "-mean NLL", "labels"
        ),
        ForgetLoss(
            npo,
            "negative preference optimisation",
            "Zhang et al. 2404.05868",
            "-(2/b) log s(b (NLL - NLL_ref))",
            "documents",
        ),
        ForgetLoss(
            simnpo,
            "simple NPO",
            "Fan et al. 2410.07163",
            "-(2/b) log s(b (NLL/n - delta))",
            "documents",
        ),
        ForgetLoss(
            dpo,
            "direct preference for a refusal",
            "Rafailov et al. 2305.18290; TOFU 2401.06121",
            "-(2/b) log s(b (r_refusal - r_answer))",
            "documents",
        ),
        ForgetLoss(
            altpo,
            "preference for alternates of the model's own",
            "Mekala et al. 2409.13474",
            "-(2/b) log s(b (r_alternate - r_answer))",
            "documents",
        ),
        ForgetLoss(
            idk,
            "fine-tuning on refusals",
            "TOFU 2401.06121 (IDK)",
            "mean NLL of a refusal",
            "refusal",
        ),
        ForgetLoss(
            rmu, "representation misdirection", "Li et al. 2403.03218", "mean (h - c u)^2", "labels"
        ),
        ForgetLoss(
            adaptive_rmu,
            "RMU with a length per token",
            "Dang et al. 2408.06223",
            "mean (h - b |h_ref| u)^2",
            "labels",
        ),
        ForgetLoss(
            undial,
            "self-distillation with adjusted logits",
            "Dong et al. 2402.10052",
            "CE(softmax(z_ref - b 1_y), p)",
            "labels",
        ),
        ForgetLoss(
            wga,
            "gradient ascent weighted by likelihood",
            "Wang et al. 2502.19301",
            "-mean p^b NLL",
            "labels",
        ),
        ForgetLoss(
            satimp,
            "saturation and importance weights",
            "Yang et al. 2505.11953",
            "-mean p^b1 (1-p)^b2 NLL",
            "labels",
        ),
        ForgetLoss(
            ce_u,
            "cross-entropy to the rest of the distribution",
            "CE-U, open-unlearning d3d7cf9",
            "CE(softmax(z without y), p)",
        ),
        ForgetLoss(
            pdu,
            "flat logits, retain loss as constraint",
            "PDU, open-unlearning d3d7cf9",
            "mean (max z - mean z)^2; dual weight",
            "labels",
            dual,
        ),
        ForgetLoss(
            llmu,
            "ascent and random mismatch",
            "Yao et al. 2310.10683",
            "-w1 NLL + w2 NLL of a random answer",
            "documents",
        ),
        ForgetLoss(
            llmu_two_term,
            "LLMU without the mismatch",
            "Doshi and Stickland 2411.12103",
            "-w NLL",
            "documents",
        ),
        ForgetLoss(
            task_vector,
            "negated task vector",
            "Ilharco et al. 2212.04089; MUSE 2407.06460",
            "w0 - a (w_forget - w0)",
            "labels",
            ending=negate,
        ),
    )
}
