"""What each cell of a run leaves on every split: what was to be forgotten, what is near it, what no
training was shown, and what has nothing to do with it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from experiments.findings.verdicts import in_words
from rayunlearn.analysis.hypothesis_tests import difference, paired_p
from rayunlearn.analysis.intervals import bounds_of, mean_interval
from rayunlearn.analysis.run_frames import objective_of, trials_with_roles, values_by_trial
from rayunlearn.storage.run import Run

SPLITS = ("forget", "paraphrased", "near", "untouched", "far", "retain")
CELL = ("role", "method", "arm", "ratio")
SPLIT_SCHEMA = {
    "role": pl.String,
    "method": pl.String,
    "arm": pl.String,
    "ratio": pl.Float64,
    "split": pl.String,
    "seeds": pl.Int64,
    "mean": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
}
COMPARED_SCHEMA = {
    "method": pl.String,
    "split": pl.String,
    "one": pl.String,
    "other": pl.String,
    "mean": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
}
Place = tuple[str, str, str, float]


def cells_of(run: Run) -> dict[Place, list[str]]:
    """(role, method, arm, ratio) -> its trials. The arm is the selector, or what was trained on
    instead of whole documents; base has neither method nor arm.
    """
    placed = trials_with_roles(run).filter(
        pl.col("role").is_in(["base", "gold", "control", "grid"])
    )
    cells: dict[Place, list[str]] = {}
    for row in placed.unique(["trial_id", "role"], maintain_order=True).iter_rows(named=True):
        cells.setdefault(_place(row), []).append(row["trial_id"])
    return {place: cells[place] for place in sorted(cells, key=_order)}


def _place(row: Mapping[str, Any]) -> Place:
    if row["role"] in ("base", "gold"):
        return row["role"], "", "", 1.0
    method = f"{row['method.forget']} + {row['method.retain']}".replace("none + ", "retain only, ")
    text = row.get("select.text") or "original"
    arm = row["select.name"] if text == "original" else text
    is_full = row["select.ratio"] == 1.0 and text == "original"
    return row["role"], method, "all" if is_full else arm, row["select.ratio"]


def _order(place: Place) -> tuple[object, ...]:
    roles = ("base", "gold", "control", "grid")
    role, method, arm, ratio = place
    return roles.index(role), method, arm not in ("all", "random"), arm, -ratio


def split_table(run: Run) -> pl.DataFrame:
    """A row per cell and split: the mean of the forgetting metric with its interval over seeds and
    documents.
    """
    metric = objective_of(run.experiment).forgetting
    bounds = bounds_of(run.experiment, metric)
    rows = []
    for split in SPLITS:
        values = values_by_trial(run, split, metric, "")
        for place, trials in cells_of(run).items():
            measured = [trial for trial in trials if trial in values.row_of]
            if measured:
                interval = mean_interval(values.rows(measured), groups=values.groups, bounds=bounds)
                cell = dict(zip(CELL, place, strict=True))
                rows.append(
                    cell
                    | {"split": split, "seeds": len(measured)}
                    | {"mean": interval.mean, "low": interval.low, "high": interval.high}
                )
    return pl.DataFrame(rows, schema=SPLIT_SCHEMA)


def compared(run: Run, pairs: Sequence[tuple[Place, Place]], split: str) -> pl.DataFrame:
    """The first cell minus the second on a split, paired by seed and document: above 0 more is
    left.
    """
    values = values_by_trial(run, split, objective_of(run.experiment).forgetting, "")
    cells, rows = cells_of(run), []
    for one, other in pairs:
        blocks = [
            values.rows([trial for trial in cells[place] if trial in values.row_of])
            for place in (one, other)
        ]
        if not all(len(block) for block in blocks):
            continue
        gap = difference(*blocks, groups=values.groups)
        low, high = gap.ends(0.95)
        rows.append(
            {"method": one[1], "split": split, "one": _named(one), "other": _named(other)}
            | {"mean": gap.mean, "low": low, "high": high, "p": paired_p(gap)}
        )
    return pl.DataFrame(rows, schema=COMPARED_SCHEMA)


def arm_label(row: Mapping[str, Any]) -> str:
    """`random 25%`, `base`."""
    return _named(tuple(row[name] for name in CELL))


def _named(place: tuple[Any, ...]) -> str:
    role, _, arm, ratio = place
    return role if role != "grid" else f"{arm.replace('_', ' ')} {ratio:.0%}"


def split_sentences(run: Run) -> list[str]:
    """Whether a part forgets as the full set does, what falls near it and beside it, and what the
    controls do.
    """
    cells = cells_of(run)
    base = next((place for place in cells if place[0] == "base"), None)
    full = [place for place in cells if place[0] == "grid" and place[2] == "all"]
    sentences = []
    for place in full:
        method = place[1]
        parts = [p for p in cells if p[:2] == place[:2] and p[2] == "random"]
        table = compared(run, [(part, place) for part in parts], "forget")
        sentences += [_part_sentence(row) for row in table.iter_rows(named=True)]
        if base is not None:
            fallen = pl.concat(
                [compared(run, [(place, base)], split) for split in SPLITS if split != "retain"]
            )
            words = ", ".join(
                f"{row['split']} {in_words(row)}" for row in fallen.iter_rows(named=True)
            )
            sentences.append(f"{method}: all documents change what base knows: {words}.")
    return sentences


def _part_sentence(row: Mapping[str, Any]) -> str:
    verdict = (
        "more is left"
        if row["low"] > 0
        else "less is left"
        if row["high"] < 0
        else "no difference is shown"
    )
    return f"{row['method']}: {row['one']} minus all documents {in_words(row)}: {verdict}."
