"""Errors that a person can act on: the rule, the value, the nearest name."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in what the caller asked for. The command line prints it as one line and exits with 2."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Say that `name` is no `kind`, with the nearest known name and the list."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {name!r}{hint} (known: {', '.join(names)})")


def require(condition: bool, rule: str, value: object) -> None:
    """Raise `UserError("<rule>, got <value>")` unless the condition holds."""
    if not condition:
        raise UserError(f"{rule}, got {value!r}")
