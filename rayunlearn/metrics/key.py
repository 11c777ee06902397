"""What a model knows and not how it says it: metrics of the key of an answer (`data.key_span`).

`probability` of a whole sentence falls as soon as its first words are refused, whatever the model
would say after them. Here the words before the key are given, as in the cloze statements of LAMA
(Petroni et al. 1909.01066) and CounterFact (Meng et al. 2202.05262), and the key alone is scored.
Inputs as `table.INPUTS` says.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rayunlearn.metrics.multiple_choice import best_share

if TYPE_CHECKING:
    from torch import Tensor


def key_probability(key_nll: Tensor) -> float:
    """exp(-summed NLL) of the key's tokens after the question and the answer's own words before the
    key: how often the model would write the key there.

    The product and not the geometric mean that `probability` takes: only the first token of a name
    says whether it is known, and a mean with the rest, which follow from it, would hide that it is
    not. Null without a key.
    """
    return _probability(key_nll)


def key_rank(key_ranks: Tensor) -> float:
    """The worst rank of the key's tokens, teacher forced: 1 where greedy decoding writes the key
    after the words before it.

    A token's rank is 1 + the number of tokens with a higher logit (LAMA's rank of the object). Of a
    key of several tokens the worst counts, since all must be written; a mean over documents is
    ruled by its largest values. Null without a key.
    """
    return float(key_ranks.max())


def key_multiple_choice(key_nll: Tensor, wrong_key_nll: Tensor) -> float:
    """1 where the key is more probable (summed NLL) than what stands in its place in every wrong
    answer; a tie at the top shares the point. Chance is 1 / k.

    Null unless all wrong answers have the answer's own words before and after the key.
    """
    true = key_nll.double().sum().reshape(1)
    return best_share(-true.new_tensor([*true.tolist(), *wrong_key_nll.double().tolist()]), 0)


def wrong_key_probability(wrong_key_nll: Tensor) -> float:
    """Mean over the wrong answers of the probability of what stands in the key's place: the chance
    level of `key_probability` where base's is taken, as `wrong_option_probability` is of
    `probability`. Null where `key_multiple_choice` is. Ours.
    """
    return float((-wrong_key_nll.double()).exp().mean())


def key_chance(wrong_key_nll: Tensor) -> float:
    """1 / k of the key and the wrong ones: the chance level of `key_multiple_choice`."""
    return 1 / (1 + len(wrong_key_nll))


def completion_probability(completion_nll: Tensor) -> float:
    """`key_probability` after `completion_prompt`, a text without question and template ("The
    capital of France is"): what the model knows where no chat is opened. Null without such a text.
    """
    return _probability(completion_nll)


def completion_rank(completion_ranks: Tensor) -> float:
    """`key_rank` after `completion_prompt`. Null without such a text."""
    return float(completion_ranks.max())


def _probability(nll: Tensor) -> float:
    return math.exp(-float(nll.double().sum()))
