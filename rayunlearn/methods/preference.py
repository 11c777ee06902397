"""Forget losses that look at another text for the same question: a refusal, an alternate, a random
answer.

Tensors of a companion carry its kind as a prefix; kinds are made in `methods.paired_responses`. A
companion has its own padded width, hence T and T'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayunlearn.lazy import functional
from rayunlearn.ranges import NonNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor


def dpo(
    token_nll: Tensor,
    reference_token_nll: Tensor,
    preferred_token_nll: Tensor,
    reference_preferred_token_nll: Tensor,
    *,
    beta: Positive = 0.1,
) -> Tensor:
    """DPO: -(2/beta) mean_i log sigmoid(beta ((NLL_i - NLL_i,ref) - (NLL_i' - NLL_i',ref))), i' the
    preferred text.

    token_nll, reference_token_nll (B, T), preferred_token_nll, reference_preferred_token_nll (B,
    T'); NLL is the sum over a text's labels. `method.preferred` says which text is preferred. The
    factor 2/beta is open-unlearning's and makes it comparable to `npo`; the paper and legacy TOFU
    have 1. At the reference the value is 2 ln 2 / beta.
    """
    margin = (token_nll - reference_token_nll).sum(1) - (
        preferred_token_nll - reference_preferred_token_nll
    ).sum(1)
    return -(2 / beta) * functional.logsigmoid(beta * margin).mean()


def altpo(
    token_nll: Tensor,
    reference_token_nll: Tensor,
    alternate_token_nll: Tensor,
    reference_alternate_token_nll: Tensor,
    *,
    beta: Positive = 0.1,
) -> Tensor:
    """AltPO: `dpo` whose preferred text is an alternate that the model itself wrote before
    unlearning (`alternate.*`).

    Shapes as `dpo`. The paper prompts an instruction-tuned model for alternates; see
    `paired_responses.alternate` for ours.
    """
    return dpo(
        token_nll,
        reference_token_nll,
        alternate_token_nll,
        reference_alternate_token_nll,
        beta=beta,
    )


def idk(refusal_token_nll: Tensor, refusal_labelled: Tensor) -> Tensor:
    """Fine-tuning on refusals: mean NLL over the label tokens of one refusal per document. (B, T')
    both.
    """
    return refusal_token_nll.sum() / refusal_labelled.sum().clamp(min=1)


def llmu(
    token_nll: Tensor,
    labelled: Tensor,
    mismatch_token_nll: Tensor,
    mismatch_labelled: Tensor,
    *,
    weight: NonNegative = 0.5,
    mismatch_weight: NonNegative = 1.0,
) -> Tensor:
    """LLMU: -weight x mean_i(NLL_i / n_i) + mismatch_weight x mean_i(NLL_i' / n_i'), i' a random
    answer to i's question.

    token_nll, labelled (B, T), mismatch_token_nll, mismatch_labelled (B, T'). With `method.retain`
    kl this is the paper's sum of three terms. The released code draws 5 random answers a step, for
    the whole batch; here every document has its own, one a presentation (the same mean, a third of
    the cost). Answer tokens alone count on both sides.
    """
    return llmu_two_term(token_nll, labelled, weight=weight) - mismatch_weight * _mean_of_means(
        -mismatch_token_nll, mismatch_labelled
    )


def llmu_two_term(token_nll: Tensor, labelled: Tensor, *, weight: NonNegative = 0.07) -> Tensor:
    """LLMU as the black-box study ran it, without random mismatch: -weight x mean_i(NLL_i / n_i);
    retain by `kl`.

    token_nll, labelled (B, T). Default: its weight for Zephyr on biology (0.0036 on WMDP; Llama
    0.09 and 0.0010).
    """
    return weight * _mean_of_means(-token_nll, labelled)


def _mean_of_means(values: Tensor, labelled: Tensor) -> Tensor:
    """Mean over sequences of the mean over each one's label tokens; `values` (B, T) are zero where
    not labelled.
    """
    return (values.sum(1) / labelled.sum(1).clamp(min=1)).mean()
