"""Errors that a person can act on: the rule, the value, the nearest name."""

import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

# in the name of an environment variable: its value is written nowhere
SECRET_NAMES = ("TOKEN", "SECRET", "PASSWORD", "KEY")
# a shorter value is no secret, and would be found in ordinary words
SECRET_CHARACTERS = 8
LOGIN = re.compile(r"(?<=://)[^/\s@]+@")
TOKEN_PATTERNS = re.compile(r"\b(?:hf_|sk-|gh[pousr]_|AKIA)[A-Za-z0-9_-]{12,}")

# names that are offered for one that is not known
MIN_SIMILARITY = 5
# names up to which all are told
MAX_LISTED_NAMES = 40


class UserError(ValueError):
    """A mistake in what the caller asked for. The command line prints it as one line and exits with
    2.
    """


def unknown_name(kind: str, name: str, valid_names: Iterable[str]) -> UserError:
    """Say that `name` is no `kind`, with the nearest known name and the list; of a list too long to
    read, the nearest and their number.
    """
    names = sorted(valid_names)
    matches = get_close_matches(name, names, n=MIN_SIMILARITY)
    hint = f"; did you mean {matches[0]!r}?" if matches else ""
    if len(names) > MAX_LISTED_NAMES:
        nearest = f"the nearest of {len(names)}: {', '.join(matches)}"
        return UserError(
            f"unknown {kind} {name!r}{hint}"
            f" ({nearest if matches else f'none of the {len(names)} is like it'})"
        )
    return UserError(f"unknown {kind} {name!r}{hint} (known: {', '.join(names)})")


def require(condition: bool, rule: str, value: object) -> None:
    """Raise `UserError("<rule>, got <value>")` unless the condition holds."""
    if not condition:
        raise UserError(f"{rule}, got {value!r}")


def rejections_in_words(counts: Mapping[str, int]) -> str:
    """Reason -> number of documents as a line, the commonest first; '' where nothing was
    rejected.
    """
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    reasons = ", ".join(f"{count} x {reason}" for reason, count in ordered)
    return f"documents rejected: {sum(counts.values())} ({reasons})" if counts else ""


def one_line(text: str) -> str:
    """The first line of a message that has something in it, its blanks run together."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return next(filter(None, lines), "")


def without_secrets(text: str) -> str:
    """`text` with the values of secret environment variables, logins in URLs and what looks like a
    token taken out.
    """
    for name, value in os.environ.items():
        if len(value) >= SECRET_CHARACTERS and any(word in name.upper() for word in SECRET_NAMES):
            text = text.replace(value, f"<{name}>")
    return TOKEN_PATTERNS.sub("<token>", LOGIN.sub("<login>@", text))


def require_no_login(name: str, url: str) -> None:
    """Raise `UserError` for a URL with a user name or password in it: settings are written to every
    row.
    """
    require(
        LOGIN.search(url) is None,
        f"{name} must hold no login (give it by the environment)",
        without_secrets(url),
    )
