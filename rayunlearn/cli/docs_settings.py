"""docs/settings.md: every setting with its meaning, default and allowed values, generated from the
config and the family tables.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from inspect import cleandoc
from typing import Any


def settings_page() -> str:
    """docs/settings.md: every setting of a trial and every hyperparameter of a function."""
    from rayunlearn.config import SECTIONS, Trial
    from rayunlearn.registry import option_names

    lines = ["# Settings", "", SETTINGS_HEAD, ""]
    for section in SECTIONS:
        part = getattr(Trial(), section)
        names = [f"{section}.{f.name}" for f in fields(part)]
        lines += [
            f"## {section}",
            "",
            *("| setting | meaning | default | allowed |", "|---|---|---|---|"),
            *(_row(name, getattr(part, name.partition(".")[2])) for name in names),
            "",
            '??? note "In full"',
            "",
            *(f"    {line}".rstrip() for line in cleandoc(part.__doc__ or "").splitlines()),
            "",
        ]
    lines += ["## Hyperparameters", "", OPTIONS_HEAD, ""]
    lines += ["| setting | of | default | allowed |", "|---|---|---|---|"]
    titles = option_titles()
    lines += [
        f"| `{o.name}` | {_cell(titles.get(o.name.partition('.')[0], ''))} | {_code(o.default)} |"
        f" {o.rule.words.removeprefix('must be ') if o.rule else ''} |"
        for o in sorted(option_names().values(), key=lambda o: o.name)
    ]
    return "\n".join([*lines, "", SETTINGS_FOOT]) + "\n"


def setting_lines() -> Iterator[tuple[str, str, str, str]]:
    """(name, meaning, default, allowed values) of every setting of a trial."""
    from rayunlearn.cli.setting_meanings import MEANINGS
    from rayunlearn.config import Trial, field_names, flatten

    defaults = flatten(Trial())
    for name in field_names():
        meaning = MEANINGS[name]
        yield name, meaning.words, repr(defaults[name]), meaning.allowed_words


def option_titles() -> dict[str, str]:
    """What each function of a family is, by its name."""
    from rayunlearn.attacks.table import ATTACKS
    from rayunlearn.keywords.table import EXTRACTORS
    from rayunlearn.methods.forget import FORGET
    from rayunlearn.methods.paired_responses import PAIRED_RESPONSES
    from rayunlearn.methods.retain import RETAIN
    from rayunlearn.metrics.table import METRICS
    from rayunlearn.selectors.table import SELECTORS
    from rayunlearn.train.adapters import ADAPTERS
    from rayunlearn.train.wrappers import WRAPPERS

    tables: tuple[Mapping[str, Any], ...] = (
        *(ADAPTERS, WRAPPERS, PAIRED_RESPONSES, EXTRACTORS),
        *(METRICS, ATTACKS, SELECTORS, RETAIN, FORGET),
    )
    return {row.function.__name__: row.title for table in tables for row in table.values()}


def _row(name: str, default: object) -> str:
    from rayunlearn.cli.setting_meanings import MEANINGS

    meaning = MEANINGS[name]
    allowed = _cell(meaning.allowed_words)
    return f"| `{name}` | {_cell(meaning.words)} | {_code(default)} | {allowed} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _code(value: object) -> str:
    return f"`{value!r}`".replace("|", "\\|")


SETTINGS_HEAD = """\
Every name is the same on the command line (`--set NAME=VALUE`), on an axis, in SEARCH and as a
column of `trials`. `rayunlearn list settings` prints this page."""

SETTINGS_FOOT = """\
Words: [glossary](glossary.md). Made from `rayunlearn/config.py` and the family tables by
`python -m rayunlearn.cli.listing`."""

OPTIONS_HEAD = """\
`<function>.<argument>`: settings of the methods, selectors, extractors, metrics, attacks, wrappers
and adapters that a trial names. What each does is in the docstring of the function and in
`rayunlearn list`."""
