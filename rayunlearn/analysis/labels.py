"""How numbers, intervals and settings are written, on every page alike."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rayunlearn.config import FULL_RATIO

# characters of a setting's value in a table
MAX_LABEL_CHARACTERS = 24


def control_label(group: str | None, *, without: Sequence[str] = ()) -> str:
    """What a control controls, in words: the values of its group (`npo, domain`), those of the
    settings in `without` left out.
    """
    values = json.loads(group) if group else {}
    return ", ".join(
        filter(None, (shorten(value) for name, value in values.items() if name not in without))
    )


def shorten(value: Any) -> str:
    """A setting's value as text; a list of words is cut."""
    text = str(value)
    return text if len(text) <= MAX_LABEL_CHARACTERS else f"{text[:MAX_LABEL_CHARACTERS]}..."


UNKNOWN = "–"


def format_number(value: Any) -> str:
    """Three significant digits; integers as they are; `–` for nothing."""
    if value is None:
        return UNKNOWN
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def format_mean(value: float | None) -> str:
    """A mean in [0, 1] with two decimals, three below 0.01; anything else with three significant
    digits.
    """
    if value is None or abs(value) > 1:
        return format_number(value)
    return f"{value:.3f}" if 0 < abs(value) < 0.01 else f"{value:.2f}"


def format_percent(value: float | None) -> str:
    """A fraction as a percentage: whole from 10% on, so that 1% and 0.5% stay apart; what is nearer
    to zero than 0.01% is said to be.
    """
    if value is None:
        return UNKNOWN
    if 0 < abs(value) < 1e-4:
        return "<0.01%" if value > 0 else ">-0.01%"
    return f"{100 * value:.0f}%" if abs(value) >= 0.1 or value == 0 else f"{100 * value:.2g}%"


def format_interval(row: Mapping[str, Any], name: str) -> str:
    """`0.45 [0.43, 0.47]`, `0.45` where there is no interval, or `–`."""
    if row[name] is None:
        return UNKNOWN
    if row[f"{name}_low"] is None:
        return format_mean(row[name])
    mean, low, high = (format_mean(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{mean} [{low}, {high}]"


def format_difference(row: Mapping[str, Any]) -> str:
    """`+0.120 [+0.080, +0.160]`, `+0.120` where there is no interval."""
    if row["low"] is None:
        return f"{row['difference']:+.3f}"
    return f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def format_gap_closed(row: Mapping[str, Any]) -> str:
    """`58% [55, 61]`, `58%` where there is no interval, or `–`."""
    if row["unlearning"] is None:
        return UNKNOWN
    if row["unlearning_low"] is None:
        return f"{round(100 * row['unlearning'])}%"
    mean, low, high = (round(100 * row[f"unlearning{end}"]) for end in ("", "_low", "_high"))
    return f"{mean}% [{low}, {high}]"


def format_coreset_size(selector: str, ratio: float) -> str:
    """`random 25%`, or `full set`."""
    return "full set" if ratio == FULL_RATIO else f"{selector} {format_percent(ratio)}"


def format_cell(row: Mapping[str, Any], settings: list[str]) -> str:
    """`data.redundancy 20, data.name domain`: the varying settings of a row; an empty text says
    nothing.
    """
    return ", ".join(
        f"{name} {shorten(format_number(row[name]))}"
        for name in settings
        if row[name] not in (None, "")
    )
