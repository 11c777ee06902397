"""The tables of methods, selectors and metrics as one directory, and the check of a trial against them.

A hyperparameter is a keyword-only argument of a family function; `<function>.<argument>` is its name everywhere.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from rayunlearn.config import Trial, Value, coerce, field_names
from rayunlearn.errors import UserError, unknown_name
from rayunlearn.keywords.extractors import EXTRACTORS
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.retain import RETAIN
from rayunlearn.metrics.document import METRICS
from rayunlearn.ranges import Rule
from rayunlearn.selectors.selectors import SELECTORS


@dataclass(frozen=True)
class Option:
    """One hyperparameter: dotted name, default, type and range in words ('' where any value goes)."""

    name: str
    default: Value
    kind: type
    rule: Rule | None


def options_of(function: Callable[..., Any]) -> tuple[Option, ...]:
    """The hyperparameters of a family function, read from its signature."""
    hints = get_type_hints(function, include_extras=True)
    return tuple(
        Option(f"{function.__name__}.{p.name}", p.default, type(p.default), next((m for m in getattr(hints[p.name], "__metadata__", ()) if isinstance(m, Rule)), None))
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    )


def option_names() -> dict[str, Option]:
    """Every hyperparameter of every family, by dotted name."""
    functions = [row.function for table in (FORGET, RETAIN, SELECTORS, EXTRACTORS, METRICS) for row in table.values()]
    return {option.name: option for function in functions for option in options_of(function)}


def chosen_functions(trial: Trial) -> tuple[Callable[..., Any], ...]:
    """The functions that a trial names, after checking the names."""
    tables: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
        ("method.forget", trial.method.forget, FORGET),
        ("method.retain", trial.method.retain, RETAIN),
        ("select.name", trial.select.name, SELECTORS),
        ("select.extractor", trial.select.extractor, EXTRACTORS),
    )
    for setting, name, table in tables:
        if name not in table:
            raise unknown_name(setting, name, table)
    return tuple(table[name].function for _, name, table in tables)


def check(trial: Trial) -> Trial:
    """The same trial with the options of unchosen functions dropped and defaults filled in.

    Raises UserError for a name that no table has, for an option that no function has, and for a value out of range.
    """
    known = option_names()
    for name, value in trial.options:
        _check_option(name, value, known)
    given = dict(trial.options)
    wanted = [option for function in chosen_functions(trial) for option in options_of(function)]
    filled = {o.name: coerce(o.name, given.get(o.name, o.default), o.kind) for o in wanted}
    return replace(trial, options=tuple(sorted(filled.items())))


def arguments_of(trial: Trial, function: Callable[..., Any]) -> dict[str, Value]:
    """The keyword arguments that a checked trial gives to one of its functions."""
    given = dict(trial.options)
    return {o.name.partition(".")[2]: given[o.name] for o in options_of(function)}


def _check_option(name: str, value: Value, known: Mapping[str, Option]) -> None:
    if name not in known:
        raise unknown_name("setting", name, (*known, *field_names()))
    option = known[name]
    number = coerce(name, value, option.kind)
    if option.rule is not None and not option.rule.holds(float(number)):
        raise UserError(f"{name} {option.rule.words}, got {value!r}")
