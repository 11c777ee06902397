"""Probes that need no data: small sums whose answers a model may lose although nobody asked it to
forget them.

The coreset paper's figures show NPO destroying arithmetic that MMLU hides; a split `arithmetic` of
a trial's probes shows it.
"""

import random

from rayunlearn.data.documents import Document
from rayunlearn.errors import require

SIGNS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def arithmetic_probes(
    n: int, *, seed: int = 0, largest: int = 20, n_wrong: int = 3
) -> tuple[Document, ...]:
    """`n` different questions "What is 7 + 5?" with the number as answer and `n_wrong` near misses;
    sums, differences, products in turn.

    Operands are 1 to `largest`; a difference is never negative. Raises UserError when there are not
    that many questions.
    """
    require(n >= 1, "n must be >= 1", n)
    require(n_wrong >= 1, "n_wrong must be >= 1", n_wrong)
    require(
        n <= largest * (largest - 1) // 2,
        f"n must be <= {largest * (largest - 1) // 2}, the differences of numbers to {largest}",
        n,
    )
    rng, probes = random.Random(f"arithmetic {seed}"), dict[str, Document]()
    while len(probes) < n:
        sign = tuple(SIGNS)[len(probes) % len(SIGNS)]
        first, second = rng.randint(1, largest), rng.randint(1, largest)
        question, answer = f"What is {first} {sign} {second}?", SIGNS[sign](first, second)
        if answer >= 0 and question not in probes:
            wrong = rng.sample(
                [a for a in range(max(0, answer - 10), answer + 11) if a != answer], n_wrong
            )
            probes[question] = Document(
                prompt=question, answer=str(answer), wrong=tuple(map(str, wrong)), topic=sign
            )
    return tuple(probes.values())
