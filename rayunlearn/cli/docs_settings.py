"""docs/settings.md: every setting with its default, generated from the config and the family
tables.
"""

from dataclasses import fields
from inspect import cleandoc


def settings_page() -> str:
    """docs/settings.md: every setting of a trial and every hyperparameter of a function, with
    default and range.
    """
    from rayunlearn.config import SECTIONS, Trial
    from rayunlearn.registry import option_names

    lines = ["# Settings", "", SETTINGS_HEAD, ""]
    for section in SECTIONS:
        part = getattr(Trial(), section)
        lines += [
            f"## {section}",
            "",
            *cleandoc(part.__doc__ or "").splitlines(),
            "",
            "| setting | type | default |",
            "|---|---|---|",
        ]
        lines += [
            f"| `{section}.{f.name}` | {getattr(f.type, '__name__', f.type)} |"
            f" {_code(getattr(part, f.name))} |"
            for f in fields(part)
        ] + [""]
    lines += [
        "## Hyperparameters",
        "",
        OPTIONS_HEAD,
        "",
        "| setting | default | range |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{o.name}` | {_code(o.default)} | {o.rule.words if o.rule else ''} |"
        for o in sorted(option_names().values(), key=lambda o: o.name)
    ]
    return "\n".join(lines) + "\n"


def _code(value: object) -> str:
    return f"`{value!r}`".replace("|", "\\|")


SETTINGS_HEAD = """\
Made from `rayunlearn/config.py` and the family tables by `python -m rayunlearn.cli.listing`.
Every name is the same on the command line (`--set NAME=VALUE`), on an axis, in SEARCH and as a
column of `trials`."""

OPTIONS_HEAD = """\
`<function>.<argument>`: settings of the methods, selectors, extractors, metrics, attacks, wrappers
and adapters that a trial names. What each does is in the docstring of the function and in
`rayunlearn list`."""
