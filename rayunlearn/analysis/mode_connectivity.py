"""How like the full-set model a coreset model is: barrier on the line between them, agreement by
question, shared key tokens, attacks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.analysis.attribution import (
    CORRELATION,
    FRACTION,
    attribution_frames,
    fraction,
    interval_of,
    rank_correlation,
)
from rayunlearn.analysis.intervals import interval_columns, mean_interval
from rayunlearn.analysis.run_frames import FULL_SET, groups_of, trials_with_roles
from rayunlearn.schema import RIGHT_METRIC
from rayunlearn.storage.run import Run

# what a trial shares with its full-set model
SAME_ENDPOINTS = ("method.forget", "method.retain", "train.seed", "corpus_digest", "model_digest")
PATH_CELL = ("method.forget", "method.retain", "select.name", "select.ratio")

# a path from base or from the full-set model to the trial's own, see
# `weight_paths.weight_path_tables`
PATH_KIND = "mode_connectivity"
PATH_SPLITS = ("forget", "retain", "untouched")

# (trial, start, split) -> mean answer probability at equal steps
Paths = dict[tuple[str, str, str], list[float]]

# a trial and its full-set model; of that itself, twice the same
PathPair = tuple[str, str]


def barrier(values: Sequence[float], *, higher_is_better: bool) -> float:
    """How far the path falls behind the straight line between its ends, at its worst point; never
    below 0, which the ends give.

    values: a metric at equal steps from one model to the other. max over x of [(1-x) v(0) + x v(1)
    - v(x)] where higher is better, of the negative where lower is. The usual barrier of linear mode
    connectivity (Entezari et al. 2110.06296), there for a loss; the coreset paper draws paths and
    defines no number.
    """
    path = np.asarray(values, dtype=np.float64)
    x = np.linspace(0, 1, len(path))
    behind = (1 - x) * path[0] + x * path[-1] - path
    return float(max(0.0, (behind if higher_is_better else -behind).max()))


def connectivity_table(run: Run) -> pl.DataFrame:
    """One row per method, selector and ratio, against the full-set model of the same seed, with
    intervals over seeds (and questions).

    barrier_forget: of mean answer probability on forget, where lower is better; barrier_retain (and
    barrier_untouched): where higher is;
    agreement: share of forget questions with the same outcome, right or wrong; agreement_retain;
    overlap: Jaccard of their key tokens; rank: Spearman correlation of their contributions.
    `base_*`: the barrier from base to the same model, all that the full-set model itself has. Empty
    where no trial was measured along a path.
    """
    paths = paths_of(run)
    if not paths:
        return pl.DataFrame()
    right, frames = _right(run), attribution_frames(run, "forget")
    group_of = groups_of(run)
    with_path = {trial for trial, _, _ in paths}
    rows = []
    for (forget, retain, selector, ratio), pairs in path_cells(run).items():
        if not any(t in with_path for t, _ in pairs):
            continue
        method = forget if retain == "none" else f"{forget} + {retain}"
        row: dict[str, Any] = {
            "method": method,
            "select.name": selector,
            "select.ratio": ratio,
            "seeds": len(pairs),
        }
        distinct_pairs = [pair for pair in pairs if pair[0] != pair[1]]
        rows.append(
            row
            | _barriers(pairs, paths)
            | (
                _agreement(distinct_pairs, right, group_of)
                | _format_settings(distinct_pairs, frames, group_of)
                if distinct_pairs
                else {}
            )
        )
    return pl.DataFrame(rows, infer_schema_length=None)


def path_cells(run: Run) -> dict[tuple[Any, ...], list[PathPair]]:
    """(forget loss, retain loss, selector, ratio) -> its trials with their full-set models; the
    ratio 1.0, with itself, first.
    """
    placed = (
        trials_with_roles(run)
        .filter(pl.col("role") == "grid")
        .unique("trial_id", maintain_order=True)
    )
    full = {
        tuple(r[n] for n in SAME_ENDPOINTS): r["trial_id"]
        for r in placed.filter(FULL_SET).iter_rows(named=True)
    }
    cells: dict[tuple[Any, ...], list[PathPair]] = {}
    order = ["method.forget", "method.retain", "select.ratio", "select.name"]
    for row in placed.sort(
        order, descending=[False, False, True, False], maintain_order=True
    ).iter_rows(named=True):
        full_model = full.get(tuple(row[n] for n in SAME_ENDPOINTS))
        if full_model is not None:
            cells.setdefault(tuple(row[n] for n in PATH_CELL), []).append(
                (row["trial_id"], full_model)
            )
    return cells


def paths_of(run: Run) -> Paths:
    """Mean answer probability along every path of the run, by trial, start (`full` or `base`) and
    split.
    """
    rows = (
        run.curves.filter(
            pl.col("kind").str.starts_with(PATH_KIND), pl.col("metric") == "probability"
        )
        .sort("x")
        .collect()
    )
    paths: Paths = {}
    for trial, kind, split, value in rows.select("trial_id", "kind", "split", "value").iter_rows():
        paths.setdefault((trial, kind.partition(":")[2], split), []).append(value)
    return paths


def _right(run: Run) -> dict[tuple[str, str, str], float]:
    rows = (
        run.examples.filter(
            pl.col("metric") == RIGHT_METRIC,
            pl.col("attack") == "none",
            pl.col("stage") == "unlearned",
        )
        .drop_nulls("value")
        .collect()
    )
    return {
        (split, trial, doc): float(value == 1)
        for split, trial, doc, value in rows.select(
            "split", "trial_id", "doc_id", "value"
        ).iter_rows()
    }


def _barriers(pairs: Sequence[PathPair], paths: Paths) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for start, prefix in (("full", "barrier"), ("base", "base_barrier")):
        for split in PATH_SPLITS:
            available = [paths[t, start, split] for t, _ in pairs if (t, start, split) in paths]
            heights = np.array(
                [barrier(path, higher_is_better=split != "forget") for path in available]
            ).reshape(-1, 1)
            row |= (
                interval_columns(f"{prefix}_{split}", mean_interval(heights)) if available else {}
            )
    return row


def _agreement(
    pairs: Sequence[PathPair],
    right: Mapping[tuple[str, str, str], float],
    group_of: Mapping[str, str],
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for split, name in (("forget", "agreement"), ("retain", "agreement_retain")):
        documents = sorted({d for s, _, d in right if s == split})
        shared_documents = [
            (t, full_model, d)
            for t, full_model in pairs
            for d in documents
            if {(split, t, d), (split, full_model, d)} <= right.keys()
        ]
        same = {
            (t, d): float(right[split, t, d] == right[split, full_model, d])
            for t, full_model, d in shared_documents
        }
        trials = [t for t, _ in pairs]
        row |= interval_columns(
            name, interval_of(trials, documents, same, group_of, bounds=FRACTION)
        )
    return row


def _format_settings(
    pairs: Sequence[PathPair],
    frames: Mapping[str, Mapping[str, pl.DataFrame]],
    group_of: Mapping[str, str],
) -> dict[str, Any]:
    shared = {
        (t, d): (a, frames[full_model][d])
        for t, full_model in pairs
        for d, a in frames.get(t, {}).items()
        if d in frames.get(full_model, {})
    }
    if not shared:
        return {}
    key = {k: (a["is_key"].to_numpy(), b["is_key"].to_numpy()) for k, (a, b) in shared.items()}
    overlap = {k: fraction(a & b, a | b) for k, (a, b) in key.items()}
    rank = {
        k: rank_correlation(a["contribution"].to_numpy(), b["contribution"].to_numpy())
        for k, (a, b) in shared.items()
    }
    documents, trials = sorted({d for _, d in shared}), [t for t, _ in pairs]
    return interval_columns(
        "overlap", interval_of(trials, documents, overlap, group_of, bounds=FRACTION)
    ) | interval_columns("rank", interval_of(trials, documents, rank, group_of, bounds=CORRELATION))
