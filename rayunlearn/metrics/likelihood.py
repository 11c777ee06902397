"""What a model finds likely: metrics of one document from one teacher-forced pass. Inputs as
`table.INPUTS` says.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rayunlearn.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

# exp(709.8) is the largest float64
EXPONENT = 700.0


def probability(token_nll: Tensor) -> float:
    """exp(-mean token NLL) of the answer, end-of-sequence included: the geometric mean of its token
    probabilities.
    """
    return math.exp(-float(token_nll.mean()))


def probability_few_shot(few_shot_nll: Tensor) -> float:
    """`probability` after solved questions of the same split, as `multiple_choice_few_shot` has
    them.
    """
    return probability(few_shot_nll)


def sequence_probability(token_nll: Tensor) -> float:
    """exp(-summed token NLL): the probability of the whole answer, end-of-sequence included. Long
    answers have less of it.
    """
    return math.exp(-float(token_nll.double().sum()))


def perplexity(token_nll: Tensor) -> float:
    """exp(mean token NLL) of the answer: 1 / probability. A mean over documents is ruled by its
    largest values.
    """
    return math.exp(min(float(token_nll.double().mean()), EXPONENT))


def option_probability(option_nll: Tensor) -> float:
    """Share of the true option in the options' mean-token probabilities: p_true / (p_true + sum of
    p_wrong).

    TOFU's normalised probability (its real authors and world facts, whose true option is the answer
    itself). TOFU adds 1e-10 below the line; the softmax needs none.
    """
    return float((-option_nll.double()).softmax(0)[0])


def exact_memorization(correct: Tensor, n_end: int = 1) -> float:
    """Share of the answer's tokens that are the greedy choice after the true ones before them; what
    closes the answer (`n_end` tokens) left out.
    """
    return float(without_end(correct, n_end).float().mean())


def extraction_strength(correct: Tensor, n_end: int = 1) -> float:
    """1 - k*/n: the share of the answer that greedy decoding gives right after the shortest
    sufficient prefix of it.

    k* = 1 + position of the last teacher-forced mistake, 0 without one (Carlini et al. 2021),
    because greedy decoding from a prefix goes right to the end exactly if no later token is a
    mistake. What closes the answer (`n_end` tokens) is left out. A wrong last token gives 0 (a
    peer's loop gives 1/n there).
    """
    answer = without_end(correct, n_end)
    mistakes = (~answer).nonzero()
    first_free = 0 if len(mistakes) == 0 else int(mistakes[-1]) + 1
    return 1 - first_free / len(answer)


def extraction_strength_paraphrase(paraphrase_correct: Tensor, n_end: int = 1) -> float:
    """Extraction strength of the same answer after the question in other words ("ES-perturb"). Null
    without such a question.
    """
    return extraction_strength(paraphrase_correct, n_end)


def wrong_option_probability(option_nll: Tensor) -> float:
    """Mean over the wrong options of exp(-mean token NLL): what `probability` is of an answer that
    is of the right kind and not true. Null without wrong options.

    A model that cannot know gives the true answer what it gives another of its kind, so base's
    value is the chance level of `probability` where there is no gold. Base, sure of the truth,
    leaves less for the others than such a model would: the level is rather too low. Ours.
    """
    return float((-option_nll[1:].double()).exp().mean())


def truth_ratio(option_nll: Tensor) -> float:
    """R = geometric mean of the wrong options' mean-token probabilities / that of the true one:
    exp(nll_true - mean nll_wrong).

    0 where the model is sure of the truth, 1 where it cannot tell, above 1 where it prefers
    falsehood. TOFU's R over the paraphrased answer and its perturbations
    (`aggregate_eval_stat.py`), without the 1e-10 below the line.
    """
    return _ratio(option_nll[0] - option_nll[1:].double().mean())


def truth_ratio_arithmetic(option_nll: Tensor) -> float:
    """R with the arithmetic mean of the wrong options' probabilities, as TOFU's paper writes it and
    its `utils.py` computes it.
    """
    wrong = -option_nll[1:].double()
    return _ratio(option_nll[0] + wrong.logsumexp(0) - math.log(len(wrong)))


def truth_ratio_even(option_nll: Tensor) -> float:
    """min(R, 1/R) of `truth_ratio`: 1 where truth and falsehood are equally likely. TOFU's
    forget-set truth ratio is its mean.
    """
    ratio = truth_ratio(option_nll)
    return min(ratio, 1 / ratio) if ratio > 0 else 0.0


def truth_ratio_right(option_nll: Tensor) -> float:
    """max(0, 1 - R) of `truth_ratio`: 1 where the truth alone is likely. TOFU's truth ratio of the
    other sets is its mean.
    """
    return max(0.0, 1 - truth_ratio(option_nll))


def base_kl(kl: Tensor) -> float:
    """Mean over the answer's tokens of KL(base || model) of the next-token distributions, in nats:
    how far the model moved.
    """
    return max(0.0, float(kl.double().mean()))


def without_end(values: Tensor, n_end: int) -> Tensor:
    """Values of an answer's tokens (n,) without the last `n_end`, which close it; the first always
    stays.
    """
    return values[: max(1, len(values) - n_end)]


def _ratio(log_ratio: Tensor) -> float:
    return float(torch.exp(log_ratio.double().clamp(max=EXPONENT)))
