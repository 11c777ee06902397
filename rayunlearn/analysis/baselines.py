"""What was chosen, compared with random choice: selectors with random, texts with the same number
of random words and the whole. Polars and numpy.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.analysis.hypothesis_tests import difference, holm, paired_p
from rayunlearn.analysis.intervals import LEVEL, Numbers
from rayunlearn.analysis.labels import format_number
from rayunlearn.analysis.run_frames import (
    CELL_SETTINGS,
    CONTEXT_SECTIONS,
    lower_is_forgotten,
    objective_of,
    trials_with_roles,
    values_by_trial,
    varying_settings,
)
from rayunlearn.analysis.two_way import Groups
from rayunlearn.config import Value
from rayunlearn.storage.run import Run

REFERENCES: dict[str, tuple[Value, ...]] = {
    "select.name": ("random",),
    "select.text": ("random_words", "original"),
    "retain.name": ("random",),
    "retain.general": (0.0,),
}

# say nothing of a whole text
OF_PARTS = ("select.extractor", "select.keyword_fraction", "select.other_split")

# p after Holm's correction at which a difference is called shown
SIGNIFICANCE = 0.05

BASELINE_SCHEMA = {
    "place": pl.String,
    "name": pl.String,
    "arm": pl.String,
    "reference": pl.String,
    "reference_name": pl.String,
    "ratio": pl.Float64,
    "left": pl.Float64,
    "left_reference": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "stderr": pl.Float64,
    "p": pl.Float64,
    "p_holm": pl.Float64,
    "verdict": pl.String,
    "retained": pl.Float64,
    "useful": pl.Boolean,
    "unmeasured": pl.Int64,
}


@dataclass(frozen=True, kw_only=True)
class SelectorArm:
    """One cell of the grid, (seeds, documents) of what is left and of what is retained."""

    dataset: str
    name: str
    settings: Mapping[str, Any]
    forgetting: Numbers
    retained: Numbers
    unmeasured: int
    # of the documents of `left`, where some belong together
    groups: Groups | None = None

    def matches(self, reference: "SelectorArm", changed: str) -> bool:
        """Whether the two differ in `changed` alone. A whole text is the same whatever finds
        keywords, and however many.
        """
        is_full_text = changed == "select.text" and "original" in (
            self.settings[changed],
            reference.settings[changed],
        )
        free = (changed, *OF_PARTS) if is_full_text else (changed,)
        return self.dataset == reference.dataset and all(
            value == reference.settings[name]
            for name, value in self.settings.items()
            if name not in free
        )


def baseline_table(run: Run) -> pl.DataFrame:
    """Columns BASELINE_SCHEMA: cells that differ from a reference cell in the selector alone, or in
    the text alone, the smallest p of a place first.

    `left` is the mean of the objective's forgetting metric, `difference` arm - reference with its
    95% interval `low` to `high`, p paired over documents (`hypothesis_tests.difference`, which
    counts seeds too), Holm-corrected over all rows of the same data and model. `useful`: the arm's
    mean utility is at least the objective's floor times base's. `reference_name`: what else tells
    the reference from the arm. `unmeasured` counts trials of both cells that ended without rows.
    `verdict`: "forgets more" or "forgets less" than the reference where p after Holm is at most
    SIGNIFICANCE, else "not shown", which is no proof that there is no difference.

    Args:
        run: an opened run (`storage.run.open_run`).

    Returns:
        The table; no rows where only one selector and one text ran.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> table = baseline_table(open_run("runs/selectors/1"))
        >>> table.select("name", "arm", "reference", "ratio", "verdict").row(0)
        ('npo + nll', 'min_k', 'random', 0.25, 'forgets less')
    """
    lower, base = lower_is_forgotten(run.experiment), _base_utility(run)
    floor = objective_of(run.experiment).utility_floor
    rows: list[dict[str, Any]] = []
    for dataset, pairs in groupby(
        sorted(_pairs(list(selector_arms(run))), key=lambda pair: pair[1].dataset),
        key=lambda pair: pair[1].dataset,
    ):
        compared = [_row(*pair, floor * base.get(dataset, np.nan)) for pair in pairs]
        adjusted = holm([row["p"] for row in compared])
        rows += [
            row | {"p_holm": p, "verdict": _verdict(row["difference"] * (1 if lower else -1), p)}
            for row, p in zip(compared, adjusted, strict=True)
        ]
    return pl.DataFrame(rows, schema=BASELINE_SCHEMA).sort(
        "place", "p", "reference", "name", "arm", "ratio", maintain_order=True
    )


def selector_arms(run: Run) -> Iterator[SelectorArm]:
    """Every cell of the grid that was measured."""
    placed = (
        trials_with_roles(run)
        .filter(pl.col("role") == "grid")
        .unique("trial_id", keep="first", maintain_order=True)
    )
    settings = varying_settings(run, placed)
    goal = objective_of(run.experiment)
    sides = [
        values_by_trial(run, split, metric, "")
        for split, metric in (("forget", goal.forgetting), (goal.utility_split, goal.utility))
    ]
    for _, rows in placed.group_by([*CELL_SETTINGS, *settings], maintain_order=True):
        trials = rows["trial_id"].to_list()
        forgetting, retained = (side.rows(trials) for side in sides)
        if len(forgetting) and len(retained):
            first = rows.select([*CELL_SETTINGS, *settings]).row(0, named=True)
            unmeasured = len(trials) - min(side.n_measured(trials) for side in sides)
            yield SelectorArm(
                **_place_and_name(first, placed, settings),
                settings=first,
                forgetting=forgetting,
                retained=retained,
                unmeasured=unmeasured,
                groups=sides[0].groups,
            )


def _pairs(arms: Sequence[SelectorArm]) -> Iterator[tuple[str, SelectorArm, SelectorArm]]:
    """(setting that differs, arm, its reference); two references of one
    setting are compared once.
    """
    for changed, references in REFERENCES.items():
        for index, reference in enumerate(references):
            matching_arms = [arm for arm in arms if arm.settings.get(changed) == reference]
            for arm in arms:
                if changed in arm.settings and arm.settings[changed] not in references[: index + 1]:
                    yield from (
                        (changed, arm, other)
                        for other in matching_arms
                        if arm.matches(other, changed)
                    )


def _row(
    changed: str, arm: SelectorArm, reference: SelectorArm, least_useful: float
) -> dict[str, Any]:
    estimate = difference(arm.forgetting, reference.forgetting, groups=arm.groups)
    low, high = estimate.ends(LEVEL)
    retained = float(np.nanmean(arm.retained))
    return {
        "place": arm.dataset,
        "name": arm.name,
        "arm": _called(changed, arm),
        "reference": _called(changed, reference),
        "reference_name": _parts(reference, but=arm),
        "ratio": float(arm.settings["select.ratio"]),
        "left": float(np.nanmean(arm.forgetting)),
        "left_reference": float(np.nanmean(reference.forgetting)),
        "difference": estimate.mean,
        "low": low,
        "high": high,
        "stderr": None if low is None else estimate.stderr,
        "p": paired_p(estimate),
        "retained": retained,
        "useful": bool(retained >= least_useful),
        "unmeasured": arm.unmeasured + reference.unmeasured,
    }


def _called(changed: str, arm: SelectorArm) -> str:
    """The arm's value; of the retain set with the setting's name, as values are those of both."""
    value = format_number(arm.settings[changed])
    return f"{changed} {value}" if changed.startswith("retain.") else value


def _parts(reference: SelectorArm, *, but: SelectorArm) -> str:
    """How a reference that is no whole text was cut, where the arm was not cut so."""
    is_cut = reference.settings.get("select.text", "original") != "original"
    return ", ".join(
        f"{name} {format_number(v)}"
        for name, v in reference.settings.items()
        if is_cut and name in OF_PARTS and but.settings[name] != v
    )


def _verdict(more_is_left: float, p: float) -> str:
    if p > SIGNIFICANCE:
        return "not shown"
    return "forgets less" if more_is_left > 0 else "forgets more"


def _place_and_name(
    first: Mapping[str, Any], placed: pl.DataFrame, settings: Sequence[str]
) -> dict[str, str]:
    """`place`: what tells it from other data and models; `name`: the method, and what else tells
    its cells there apart, but for selector and text.
    """
    context_settings = _context_settings(settings)
    matching = placed.filter(
        *(
            pl.col(name).eq_missing(first[name])
            for name in (*context_settings, "method.forget", "method.retain")
        )
    )
    silent = (*REFERENCES, *(OF_PARTS if first.get("select.text") == "original" else ()))
    other_settings = [
        name
        for name in settings
        if not name.startswith(CONTEXT_SECTIONS)
        and name not in silent
        and matching[name].n_unique() > 1
    ]
    method = (
        str(first["method.forget"])
        if first["method.retain"] == "none"
        else f"{first['method.forget']} + {first['method.retain']}"
    )
    return {
        "dataset": ", ".join(f"{name} {first[name]}" for name in context_settings),
        "name": ", ".join([method, *(f"{n} {first[n]}" for n in other_settings)]),
    }


def _context_settings(settings: Sequence[str]) -> list[str]:
    """The data and model settings among them."""
    return [name for name in settings if name.startswith(CONTEXT_SECTIONS)]


def _base_utility(run: Run) -> dict[str, float]:
    """Base's mean utility by place."""
    placed = trials_with_roles(run)
    context_settings = _context_settings(varying_settings(run, placed))
    goal = objective_of(run.experiment)
    measured = values_by_trial(run, goal.utility_split, goal.utility, "")
    bases = placed.filter(
        pl.col("role") == "base", pl.col("trial_id").is_in(list(measured.row_of))
    ).iter_rows(named=True)
    return {
        ", ".join(f"{name} {row[name]}" for name in context_settings): float(
            np.nanmean(measured.rows([row["trial_id"]]))
        )
        for row in bases
    }
