"""Metrics of one document. Positional parameters name what a metric needs.

`token_nll` (n,) float32 nats and `correct` (n,) bool (greedy choice = label, teacher forced) of the n label tokens,
end-of-sequence last; `option_nll` (k,) mean-token NLL of the answer options, the true one first.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def probability(token_nll: Tensor) -> float:
    """exp(-mean token NLL) of the answer, end-of-sequence included: the geometric mean of its token probabilities."""
    return math.exp(-float(token_nll.mean()))


def perplexity(token_nll: Tensor) -> float:
    """exp(mean token NLL) of the answer: 1 / probability. A mean over documents is ruled by its largest values."""
    return math.exp(min(float(token_nll.double().mean()), 700.0))  # exp(709.8) is the largest float64


def exact_memorization(correct: Tensor) -> float:
    """Share of the answer's tokens that are the greedy choice after the true ones before them; end-of-sequence left out."""
    return float(correct[:-1].float().mean()) if len(correct) > 1 else float(correct[0])


def extraction_strength(correct: Tensor) -> float:
    """1 - k*/n: the share of the answer that greedy decoding gives right after the shortest sufficient prefix of it.

    k* = 1 + position of the last teacher-forced mistake, 0 without one (Carlini et al. 2021), because greedy decoding
    from a prefix goes right to the end exactly if no later token is a mistake. End-of-sequence is left out. A wrong
    last token gives 0 (a peer's loop gives 1/n there).
    """
    answer = correct[:-1] if len(correct) > 1 else correct
    mistakes = (~answer).nonzero()
    first_free = 0 if len(mistakes) == 0 else int(mistakes[-1]) + 1
    return 1 - first_free / len(answer)


def multiple_choice(option_nll: Tensor) -> float:
    """1 where the true option has the lowest mean-token NLL, else 0; a tie at the top shares the point.

    Length-normalised option likelihood. Chance is 1 / k.
    """
    best = option_nll == option_nll.min()
    return float(best[0]) / float(best.sum())


@dataclass(frozen=True)
class Metric:
    """A row of the family: function, unit, range and which way is more knowledge."""

    function: Callable[..., float]
    meaning: str
    unit: str
    low: float
    high: float
    direction: str
    source: str


METRICS = {
    row.function.__name__: row
    for row in (
        Metric(probability, "probability of the answer (geometric mean over tokens)", "fraction", 0, 1, "higher", "TOFU 2401.06121"),
        Metric(multiple_choice, "true option is the most likely one", "fraction", 0, 1, "higher", "ours, after WMDP 2403.03218"),
        Metric(exact_memorization, "tokens right under teacher forcing", "fraction", 0, 1, "higher", "Tirumala et al. 2205.10770"),
        Metric(
            extraction_strength, "share of the answer that a prefix of it extracts", "fraction", 0, 1, "higher", "Carlini et al. 2021; 2406.09179"
        ),
        Metric(perplexity, "exp of the mean token NLL", "1", 1, math.inf, "lower", "standard"),
    )
}
