"""Value ranges that a hyperparameter's annotation states: `beta: Positive = 0.1`. The signature is
the contract.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Rule:
    """A range in words and as a test."""

    words: str
    holds: Callable[[float], bool]


Positive = Annotated[float, Rule("must be > 0", lambda x: x > 0)]
NonNegative = Annotated[float, Rule("must be >= 0", lambda x: x >= 0)]
Fraction = Annotated[float, Rule("must be in (0, 1]", lambda x: 0 < x <= 1)]
UnitInterval = Annotated[float, Rule("must be in [0, 1]", lambda x: 0 <= x <= 1)]
Count = Annotated[int, Rule("must be >= 1", lambda x: x >= 1)]
Whole = Annotated[int, Rule("must be >= 0", lambda x: x >= 0)]
