"""What each cell of a run leaves on every split: what was to be forgotten, what is near it, what no
training was shown, and what has nothing to do with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from experiments.findings.verdicts import in_words
from rayunlearn.analysis.hypothesis_tests import difference, paired_p
from rayunlearn.analysis.intervals import bounds_of, mean_interval
from rayunlearn.analysis.labels import format_mean
from rayunlearn.analysis.probe_sets import set_metrics
from rayunlearn.analysis.run_frames import (
    MetricValues,
    objective_of,
    trials_with_roles,
    values_by_trial,
)
from rayunlearn.config import Data, Model
from rayunlearn.storage.run import Run
from rayunlearn.trial.identity import corpus_of

ANSWERED_SPLITS = ("forget", "paraphrased", "near", "untouched", "far", "retain")
# text without a key, shown by the probability of its tokens, of which so little is base's own that
# what changes is said in shares of it
GENERAL = "general"
SPLITS = (*ANSWERED_SPLITS, GENERAL)
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
# arms that ask what the documents ask, drawn at random
COVERING = ("random", "shuffled_answers")
COVERED_SCHEMA = {
    "method": pl.String,
    "arm": pl.String,
    "ratio": pl.Float64,
    "trials": pl.Int64,
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
    documents; of `probability` where the split's documents have no key (general text).
    """
    goal = objective_of(run.experiment).forgetting
    metrics = set_metrics(run, goal)
    rows = []
    for split in SPLITS:
        metric = metrics.get(split, goal)
        bounds = bounds_of(run.experiment, metric)
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
    goal = objective_of(run.experiment).forgetting
    values = values_by_trial(run, split, set_metrics(run, goal).get(split, goal), "")
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


def covered_table(run: Run) -> pl.DataFrame:
    """A row per cell that trained on a part of the forget set: what is left of the documents it
    trained on minus what is left of the others, with an interval over trials. At 0 forgetting
    generalises over the set, whatever was covered.
    """
    probe_of = probes_of_passages(run)
    values = values_by_trial(run, "forget", objective_of(run.experiment).forgetting, "")
    rows = []
    for (role, method, arm, ratio), trials in cells_of(run).items():
        if role != "grid" or arm not in COVERING:
            continue
        gaps = [
            gap
            for trial in trials
            for gap in _covered_gap(
                values, trial, [probe_of.get(d, d) for d in documents_of(run, trial)]
            )
        ]
        if gaps:
            interval = mean_interval(np.array(gaps)[:, None])
            cell = {"method": method, "arm": arm, "ratio": ratio, "trials": len(gaps)}
            ends = {"mean": interval.mean, "low": interval.low, "high": interval.high}
            rows.append(cell | ends)
    return pl.DataFrame(rows, schema=COVERED_SCHEMA)


def documents_of(run: Run, trial_id: str) -> list[str]:
    """The forget documents that a trial trained on, in the order it took them."""
    rows = run.coresets.filter(pl.col("trial_id") == trial_id, pl.col("role") == "forget")
    return rows.sort("rank").collect()["doc_id"].to_list()


def probes_of_passages(run: Run) -> dict[str, str]:
    """Document -> the probe that asks it, of a dataset of files whose passages train whole and are
    asked by their beginnings; their texts are in no run, so it is empty where the files have gone
    or are others by now.
    """
    (row, *_) = run.trials.head(1).collect().to_dicts() or [{}]
    settings = {f.name: row.get(f"data.{f.name}") for f in fields(Data)}
    if settings["name"] != "files" or not Path(str(settings["path"])).is_dir():
        return {}
    corpus = corpus_of(Data(**{name: v for name, v in settings.items() if v is not None}), Model())
    if corpus.digest != row["corpus_digest"]:
        return {}
    # apart from blanks, of which one stands between prompt and answer
    passages = {"".join(d.answer.split()): d.doc_id for d in corpus.forget if not d.prompt}
    asked = {"".join((d.prompt + d.answer).split()): d for d in corpus.probes.get("forget", ())}
    return {passages[text]: asked[text].doc_id for text in passages.keys() & asked.keys()}


def _covered_gap(values: MetricValues, trial: str, covered: Sequence[str]) -> list[float]:
    """Mean of the covered documents minus mean of the others; none where either is empty."""
    if trial not in values.row_of:
        return []
    is_covered = np.isin(values.documents, covered)
    row = values.values[values.row_of[trial]]
    if is_covered.all() or not is_covered.any():
        return []
    return [float(np.nanmean(row[is_covered]) - np.nanmean(row[~is_covered]))]


def covered_sentences(run: Run) -> list[str]:
    """Whether what a part of the forget set covers is forgotten more than the rest of it, and which
    document alone does how much.
    """
    sentences = []
    for row in covered_table(run).iter_rows(named=True):
        verdict = (
            "what is covered is forgotten more"
            if row["high"] < 0
            else "what is covered is forgotten less"
            if row["low"] > 0
            else "that it matters what is covered is not shown"
        )
        sentences.append(
            f"{row['method']}, {row['arm'].replace('_', ' ')} {row['ratio']:.0%}: the documents"
            f" trained on minus the others {in_words(row)}: {verdict}."
        )
    return [*sentences, *_single_document_sentences(run)]


def _single_document_sentences(run: Run) -> list[str]:
    """What each document leaves of the forget set that was a coreset by itself."""
    values = values_by_trial(run, "forget", objective_of(run.experiment).forgetting, "")
    left: dict[str, list[tuple[float, str]]] = {}
    for (role, method, arm, _), trials in cells_of(run).items():
        for trial in trials:
            covered = documents_of(run, trial)
            if role == "grid" and arm == "random" and len(covered) == 1:
                left.setdefault(method, []).append((_mean_left(values, [trial]), covered[0]))
    base = [t for place, trials in cells_of(run).items() if place[0] == "base" for t in trials]
    return [
        f"{method}: one document alone leaves of all: "
        + ", ".join(
            f"{format_mean(mean)} (document {document[:6]}, of which base knows"
            f" {format_mean(_mean_left(values, base, document))})"
            for mean, document in sorted(documents)
        )
        + "."
        for method, documents in left.items()
    ]


def _mean_left(values: MetricValues, trials: Sequence[str], document: str = "") -> float:
    """Mean over the trials of what is left of all documents, or of one."""
    rows = values.rows(trials)
    chosen = [i for i, name in enumerate(values.documents) if document in ("", name)]
    return float(np.nanmean(rows[:, chosen]))


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
                [
                    compared(run, [(place, base)], split)
                    for split in ANSWERED_SPLITS
                    if split != "retain"
                ]
            )
            words = ", ".join(
                f"{row['split']} {in_words(row)}" for row in fallen.iter_rows(named=True)
            )
            sentences.append(f"{method}: all documents change what base knows: {words}.")
    return [*sentences, *_general_sentences(run)]


def _general_sentences(run: Run) -> list[str]:
    """What each cell of a method changes of general text, in shares of base's probability of its
    tokens.
    """
    table = split_table(run).filter(pl.col("split") == GENERAL)
    before = table.filter(pl.col("role") == "base")["mean"].to_list()
    if not before:
        return []
    cells = cells_of(run)
    base = next(place for place in cells if place[0] == "base")
    pairs = [(place, base) for place in cells if place[0] == "grid"]
    changes: dict[str, list[str]] = {}
    for row in compared(run, pairs, GENERAL).iter_rows(named=True):
        mean, low, high = (100 * row[name] / before[0] for name in ("mean", "low", "high"))
        changes.setdefault(row["method"], []).append(
            f"{row['one']} {mean:+.1f}% [{low:+.1f}, {high:+.1f}]"
        )
    return [
        f"{method}: of general text, base's probability of a token {before[0]:.4f}, change:"
        f" {', '.join(words)}."
        for method, words in changes.items()
    ]


def _part_sentence(row: Mapping[str, Any]) -> str:
    verdict = (
        "more is left"
        if row["low"] > 0
        else "less is left"
        if row["high"] < 0
        else "no difference is shown"
    )
    return f"{row['method']}: {row['one']} minus all documents {in_words(row)}: {verdict}."
