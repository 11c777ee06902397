"""What the functions of all families share: the signature is the contract.

- A positional parameter names an input that the function asks for (`required_inputs`).
- A keyword-only parameter is a hyperparameter with its default (`options_of`); its annotation
  states the range: `beta: Positive = 0.1`.
- A row of a family's table is a function, its title and its source (`FamilyRow`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Annotated, Any, Generic, TypeVar, get_type_hints

from rayunlearn.config import Value, coerce_value
from rayunlearn.errors import require, unknown_name

Result = TypeVar("Result")


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

    @property
    def argument(self) -> str:
        """The name without its function: `beta` of `npo.beta`."""
        return self.name.partition(".")[2]


@dataclass(frozen=True)
class FamilyRow(Generic[Result]):
    """A row of a family's table: the function, what it is in a few words, and where it comes from
    (paper and equation, or ours).
    """

    function: Callable[..., Result]
    title: str
    source: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """`required_inputs` of the function."""
        return required_inputs(self.function)


@lru_cache(maxsize=1024)
def options_of(function: Callable[..., Any]) -> tuple[Option, ...]:
    """The hyperparameters of a family function, read from its signature; once, because every check
    of a trial asks for all of them.

    Args:
        function: a loss, selector, metric, attack, ... of a family's table.

    Returns:
        Name, default, type and range of every keyword-only argument.

    Example:
        >>> from rayunlearn.methods.forget import npo
        >>> [(option.name, option.default) for option in options_of(npo)]
        [('npo.beta', 0.1)]
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


@lru_cache(maxsize=1024)
def required_inputs(function: Callable[..., Any]) -> tuple[str, ...]:
    """What a family function asks for by name (tensors, documents, passes): its positional
    parameters.
    """
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def checked_value(option: Option, value: Value) -> Value:
    """The value as the option's type. Raises UserError for another type and outside the range."""
    number = coerce_value(option.name, value, option.kind)
    if option.rule is not None:
        require(option.rule.holds(float(number)), f"{option.name} {option.rule.words}", value)
    return number


def checked_arguments(
    functions: Sequence[Callable[..., Any]], options: Mapping[str, Value], *, kind: str
) -> list[dict[str, Value]]:
    """The keyword arguments of each function: its defaults, and what `options` (`tfidf.earliness`)
    changes.

    Raises UserError, as a trial would, for an option that none of the functions has (`kind` says
    what it is no name of) and for a value of another type or out of range.
    """
    known_options = {option.name: option for f in functions for option in options_of(f)}
    for name in options:
        if name not in known_options:
            raise unknown_name(kind, name, known_options)
    return [
        {o.argument: checked_value(o, options.get(o.name, o.default)) for o in options_of(f)}
        for f in functions
    ]
