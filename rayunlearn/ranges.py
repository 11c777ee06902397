"""Value ranges that a hyperparameter's annotation states: `beta: Positive = 0.1`. The signature is
the contract.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Annotated, Any, get_type_hints

from rayunlearn.config import Value


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


@dataclass(frozen=True)
class Option:
    """One hyperparameter: dotted name, default, type and range in words
    ('' where any value goes).
    """

    name: str
    default: Value
    kind: type
    rule: Rule | None


@lru_cache(maxsize=1024)
def options_of(function: Callable[..., Any]) -> tuple[Option, ...]:
    """The hyperparameters of a family function, read from its signature; once, because every check
    of a trial asks for all of them.
    """
    parameters = [
        p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    hints = _hints_of(function, parameters)
    return tuple(
        Option(f"{function.__name__}.{p.name}", p.default, type(p.default), _rule_of(hints[p.name]))
        for p in parameters
    )


def _hints_of(
    function: Callable[..., Any], parameters: Sequence[inspect.Parameter]
) -> dict[str, Any]:
    """The evaluated annotations of these parameters alone: those of the others name types of
    libraries that are not loaded to read a table.
    """
    annotated = SimpleNamespace(__annotations__={p.name: p.annotation for p in parameters})
    return get_type_hints(annotated, function.__globals__, include_extras=True)


def _rule_of(hint: Any) -> Rule | None:
    return next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Rule)), None)


def required_inputs(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the tensors a loss asks for: its positional parameters."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
