"""Benchmark cards side by side: first what differs in how they were made, then the numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from rayunlearn.analysis.intervals import LEVEL
from rayunlearn.analysis.run_frames import CONTEXT_SECTIONS
from rayunlearn.errors import require
from rayunlearn.interop.card import Card, cell_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

# facts beside the settings that decide whether two numbers mean the same
COMPARED_FACTS = ("corpora", "models", "objective", "budget", "varying", "searched", "seeds")
MADE_WITH = ("commit", "hardware", "packages")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Cards held against the first of them.

    Args:
        names: of the cards, in the order given, each different.
        settings: a row per setting or fact that differs: `name` and one column per card.
        cells: a row per cell and measure that the first card has: its keys, `split`, `metric`, per
            card `mean`, `low`, `high`, and per later card the `difference` to the first one.
        unmatched: how many cells of each later card the first one does not have.
        same_corpus: whether all cards say the same digests of their corpora.
    """

    names: tuple[str, ...]
    settings: pl.DataFrame
    cells: pl.DataFrame
    unmatched: tuple[int, ...]
    same_corpus: bool


def compare_cards(cards: Sequence[Card], *, metrics: Sequence[str] = ()) -> Comparison:
    """Two or more cards side by side.

    A cell is the same in two cards where role, method, selector, ratio and every other setting that
    varies in either are equal; one that a card does not vary is what the card says of it. Compared
    are the measures of the first card's objective, or `metrics` on every split that has them. A
    difference is that of the means over seeds, with Welch's interval (Welch 1947): the documents
    are the same, so seeds alone are drawn. With fewer than two seeds on either side there is no
    interval, with other documents no difference. Nothing is corrected for the number of
    comparisons.

    Raises UserError for fewer than two cards and for a metric that the first card does not have.
    """
    require(len(cards) >= 2, "a comparison needs two cards or more", len(cards))
    names = _names(cards)
    pairs = _pairs(cards[0], metrics)
    same_corpus = len({json.dumps(card.facts["corpora"]) for card in cards}) == 1
    keys = list(dict.fromkeys(key for card in cards for key in cell_keys(card)))
    first = _cells(cards[0], keys)
    table = first.join(pairs, how="cross")
    for name, card in zip(names, cards, strict=True):
        numbers = _numbers(card, keys).rename({c: f"{c} {name}" for c in ("mean", "low", "high")})
        table = table.join(
            numbers.drop("values"), on=[*keys, "split", "metric"], how="left", nulls_equal=True
        )
    for name, card in zip(names[1:], cards[1:], strict=True):
        differences = _differences(cards[0], card, keys)
        differences = differences if same_corpus else differences.clear()
        ends = {c: f"{c} {name}" for c in ("difference", "difference_low", "difference_high")}
        table = table.join(
            differences.rename(ends), on=[*keys, "split", "metric"], how="left", nulls_equal=True
        )
    measured = pl.any_horizontal(pl.col(f"mean {name}").is_not_null() for name in names)
    return Comparison(
        names=names,
        settings=different_facts(cards, names),
        cells=table.filter(measured).drop("cell"),
        unmatched=tuple(
            _cells(card, keys).join(first, on=keys, how="anti", nulls_equal=True).height
            for card in cards[1:]
        ),
        same_corpus=same_corpus,
    )


def different_facts(cards: Sequence[Card], names: Sequence[str]) -> pl.DataFrame:
    """A row per setting, fact or library that is not the same in all cards, as text."""
    described = [_facts(card) for card in cards]
    names_of_facts = dict.fromkeys(name for facts in described for name in facts)
    facts_by_name = {fact: [facts.get(fact, "-") for facts in described] for fact in names_of_facts}
    rows = [
        {"name": fact} | dict(zip(names, texts, strict=True))
        for fact, texts in facts_by_name.items()
        if len(set(texts)) > 1
    ]
    return pl.DataFrame(rows, schema=dict.fromkeys(("name", *names), pl.String))


def welch_interval(
    first: NDArray[np.float64], other: NDArray[np.float64], *, level: float = LEVEL
) -> tuple[float, float] | None:
    """Ends of Welch's interval of mean(other) - mean(first); None with fewer than two values on
    either side. Two sides without any spread give the difference itself at both ends.

    Example:
        >>> low, high = welch_interval(np.array([0.0, 2.0]), np.array([1.0, 3.0]))
        >>> round(low, 3), round(high, 3)
        (-5.085, 7.085)
    """
    from scipy import stats

    if min(len(first), len(other)) < 2:
        return None
    difference = float(other.mean() - first.mean())
    parts = [float(values.var(ddof=1)) / len(values) for values in (first, other)]
    if sum(parts) == 0:
        return difference, difference
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (first, other), strict=True)
    )
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(sum(parts))
    return difference - half, difference + half


def _names(cards: Sequence[Card]) -> tuple[str, ...]:
    """`name version`, or the folder where two cards would be called the same."""
    names = [f"{card.facts['name']} {card.facts['version']}".strip() for card in cards]
    if len(set(names)) == len(names):
        return tuple(names)
    return tuple(f"{number} {card.path.name}" for number, card in enumerate(cards, start=1))


def _pairs(card: Card, metrics: Sequence[str]) -> pl.DataFrame:
    """(split, metric) that are compared."""
    measured = card.tables["means"].select("split", "metric").unique(maintain_order=True)
    if metrics:
        unknown = sorted(set(metrics) - set(measured["metric"]))
        require(not unknown, "--metric must be a metric of the first card", unknown)
        return measured.filter(pl.col("metric").is_in(list(metrics)))
    goal = card.facts["objective"]
    measures = [
        ("forget", goal.get("forgetting")),
        (goal.get("utility_split"), goal.get("utility")),
    ]
    measures.append(("untouched", goal.get("utility")))
    named = pl.DataFrame(measures, schema={"split": pl.String, "metric": pl.String}, orient="row")
    return named.unique(maintain_order=True).join(
        measured, on=["split", "metric"], how="semi", maintain_order="left"
    )


def _cells(card: Card, keys: Sequence[str]) -> pl.DataFrame:
    """`cell` and the keys of every cell; a setting that this card does not vary is its constant
    (null for base and gold, unless it is of data or model).
    """
    cells = card.tables["cells"]
    trained = pl.col("role").is_in(["grid", "control"])
    constants = [
        pl.when(trained | name.startswith(CONTEXT_SECTIONS))
        .then(pl.lit(card.facts["settings"].get(name)))
        .alias(name)
        for name in keys
        if name not in cells.columns
    ]
    return cells.with_columns(constants).select("cell", *keys)


def _numbers(card: Card, keys: Sequence[str]) -> pl.DataFrame:
    """Mean, interval and `values` (of each seed) by cell, split and metric."""
    cells = _cells(card, keys)
    trials = card.tables["trials"].filter(
        pl.col("stage").is_in(["unlearned", "base", "gold"]), pl.col("attack") == "none"
    )
    values = trials.group_by("cell", "split", "metric").agg(pl.col("value").alias("values"))
    means = card.tables["means"].rename({"mean_low": "low", "mean_high": "high"})
    return (
        cells.join(means, on="cell")
        .join(values, on=["cell", "split", "metric"], how="left")
        .select(*keys, "split", "metric", "mean", "low", "high", "values")
    )


def _differences(first: Card, other: Card, keys: Sequence[str]) -> pl.DataFrame:
    """The other card minus the first, by cell, split and metric."""
    on = [*keys, "split", "metric"]
    both = _numbers(first, keys).join(_numbers(other, keys), on=on, nulls_equal=True)
    rows = [_difference(row) for row in both.iter_rows(named=True)]
    ends = ("difference", "difference_low", "difference_high")
    return pl.concat(
        [both.select(on), pl.DataFrame(rows, schema=dict.fromkeys(ends, pl.Float64))],
        how="horizontal",
    )


def _difference(row: dict[str, Any]) -> dict[str, float | None]:
    first, other = (
        np.array([v for v in row[name] or () if v is not None], dtype=np.float64)
        for name in ("values", "values_right")
    )
    if not len(first) or not len(other):
        return dict.fromkeys(("difference", "difference_low", "difference_high"))
    low, high = welch_interval(first, other) or (None, None)
    return {
        "difference": float(other.mean() - first.mean()),
        "difference_low": low,
        "difference_high": high,
    }


def _facts(card: Card) -> dict[str, str]:
    """What a card says of how it was made, by name, as text; libraries one by one."""
    facts = card.facts
    facts_by_name = {name: facts[name] for name in COMPARED_FACTS} | dict(facts["settings"])
    libraries: dict[str, set[str]] = {}
    for packages in facts["made_with"]["packages"]:
        for library, number in json.loads(packages).items():
            libraries.setdefault(library, set()).add(str(number))
    facts_by_name |= {f"package {name}": sorted(numbers) for name, numbers in libraries.items()}
    facts_by_name |= {name: facts["made_with"][name] for name in MADE_WITH if name != "packages"}
    return {name: _text(value) for name, value in facts_by_name.items()}


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return ", ".join(value) or "none"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
