"""How like the full-set model a coreset model is: barrier on the line between them, agreement by
question, shared key tokens, attacks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.results.analysis import bootstrap_interval, placed_trials
from rayunlearn.results.attacks import recovery_table
from rayunlearn.results.explaining import (
    RIGHT,
    attribution_frames,
    matrix,
    rank_correlation,
    share,
    spread,
    view_of,
)
from rayunlearn.results.store import Run
from rayunlearn.results.words import UNKNOWN, Section, kept_words, mean_of, number, with_interval

# what a trial shares with its full-set model
SAME = ("method.forget", "method.retain", "train.seed", "corpus_digest", "model_digest")
CELL = ("method.forget", "method.retain", "select.name", "select.ratio")
# a path from base or from the full-set model to the trial's own, see `explanation.paths`
KIND = "mode_connectivity"
AREA = ", area under its curve"
SPLITS = ("forget", "retain", "untouched")
# (trial, start, split) -> mean answer probability at equal steps
Paths = dict[tuple[str, str, str], list[float]]
# a trial and its full-set model; of that itself, twice the same
Pair = tuple[str, str]


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


def path_section(rows: Sequence[Mapping[str, Any]], start: str, end: str) -> Section:
    """A path between two trials for reading: answer probability at every point, and in the last row
    the barrier, split by split.
    """
    splits = [split for split in SPLITS if any(row["split"] == split for row in rows)]
    known = {
        (row["split"], row["x"]): row["value"] for row in rows if row["metric"] == "probability"
    }
    places = sorted({x for _, x in known})
    cells = [(f"{x:.2f}", *(mean_of(known[split, x]) for split in splits)) for x in places]
    heights = [
        barrier([known[split, x] for x in places], higher_is_better=split != "forget")
        for split in splits
    ]
    caption = (
        f"Mean answer probability; 0 is {start}, 1 is {end}. Barrier: how far the path falls behind"
        " the straight line between its ends."
    )
    headers = {
        "share of the second": "x of (1 - x) first + x second",
        **dict.fromkeys(splits, "mean answer probability"),
    }
    view = view_of(headers, [*cells, ("barrier", *(mean_of(height) for height in heights))])
    return Section(anchor="path", title="On the straight line", caption=caption, view=view)


def faithfulness_table(run: Run) -> pl.DataFrame:
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
    with_path = {trial for trial, _, _ in paths}
    rows = []
    for (forget, retain, selector, ratio), pairs in cells_of(run).items():
        if not any(t in with_path for t, _ in pairs):
            continue
        method = forget if retain == "none" else f"{forget} + {retain}"
        row: dict[str, Any] = {
            "method": method,
            "select.name": selector,
            "select.ratio": ratio,
            "seeds": len(pairs),
        }
        apart = [pair for pair in pairs if pair[0] != pair[1]]
        rows.append(
            row
            | _barriers(pairs, paths)
            | (_agreement(apart, right) | _words(apart, frames) if apart else {})
        )
    return pl.DataFrame(rows, infer_schema_length=None)


def cells_of(run: Run) -> dict[tuple[Any, ...], list[Pair]]:
    """(forget loss, retain loss, selector, ratio) -> its trials with their full-set models; the
    ratio 1.0, with itself, first.
    """
    placed = (
        placed_trials(run).filter(pl.col("role") == "grid").unique("trial_id", maintain_order=True)
    )
    full = {
        tuple(r[n] for n in SAME): r["trial_id"]
        for r in placed.filter(pl.col("select.ratio") == 1.0).iter_rows(named=True)
    }
    cells: dict[tuple[Any, ...], list[Pair]] = {}
    order = ["method.forget", "method.retain", "select.ratio", "select.name"]
    for row in placed.sort(
        order, descending=[False, False, True, False], maintain_order=True
    ).iter_rows(named=True):
        twin = full.get(tuple(row[n] for n in SAME))
        if twin is not None:
            cells.setdefault(tuple(row[n] for n in CELL), []).append((row["trial_id"], twin))
    return cells


def paths_of(run: Run) -> Paths:
    """Mean answer probability along every path of the run, by trial, start (`full` or `base`) and
    split.
    """
    rows = (
        run.curves.filter(pl.col("kind").str.starts_with(KIND), pl.col("metric") == "probability")
        .sort("x")
        .collect()
    )
    found: Paths = {}
    for trial, kind, split, value in rows.select("trial_id", "kind", "split", "value").iter_rows():
        found.setdefault((trial, kind.partition(":")[2], split), []).append(value)
    return found


# ---- for reading

BESIDE_FULL = {
    "barrier_forget": (
        "how far forgetting falls behind the straight line between the two models, in answer"
        " probability"
    ),
    "barrier_retain": "the same of retain, where a fall is a loss",
    "barrier_untouched": "the same of what base and gold know and no unlearning is shown",
    "agreement": "share of forget questions that both answer right, or both wrong",
    "agreement_retain": "the same of the retain questions",
    "overlap": "Jaccard of their key tokens, forget questions",
    "rank": "Spearman correlation of their contributions, forget questions",
}
FROM_BASE = {
    "base_barrier_forget": (
        "how far forgetting falls behind the straight line from base to this model, in answer"
        " probability"
    ),
    "base_barrier_retain": "the same of retain",
    "base_barrier_untouched": "the same of untouched",
}


def faithfulness_sections(run: Run) -> list[Section]:
    """The table for reading, the paths from base and, where trials were attacked, the attacks; none
    where no trial has a path.
    """
    table = faithfulness_table(run)
    if not table.height:
        return []
    twins = (
        "Each coreset model against the model of the same seed that unlearned the whole forget set."
        " A barrier of 0: forgetting and utility nowhere on the straight line between the weights"
        " are worse than between their ends. Square brackets: 95 % bootstrap intervals."
    )
    base = (
        "From base to each model, all in one start's neighbourhood. Square brackets: 95 % bootstrap"
        " intervals over seeds."
    )
    return [
        *_section("faithfulness", "Like the full-set model?", twins, table, BESIDE_FULL),
        *_section("from-base", "On the line from base", base, table, FROM_BASE),
        *attack_sections(run),
    ]


def _section(
    anchor: str, title: str, caption: str, table: pl.DataFrame, meanings: Mapping[str, str]
) -> list[Section]:
    """The rows and columns that have a value."""
    names = [n for n in meanings if n in table.columns and table[n].null_count() < table.height]
    known = [r for r in table.iter_rows(named=True) if any(r[n] is not None for n in names)]
    rows = [
        (
            r["method"],
            kept_words(r["select.name"], r["select.ratio"]),
            number(r["seeds"]),
            *(with_interval(r, n) for n in names),
        )
        for r in known
    ]
    headers = {
        "method": "forget loss + retain loss",
        "kept": "part of the forget set",
        "seeds": "trials",
    }
    view = view_of(headers | {n.replace("_", " "): meanings[n] for n in names}, rows, n_texts=2)
    return [Section(anchor=anchor, title=title, caption=caption, view=view)] if rows else []


def attack_sections(run: Run) -> list[Section]:
    """Attacks down, cells across: mean recovered fraction of the attacked trials of each cell, with
    intervals over them.
    """
    recovered = recovered_by_cell(run)
    if not recovered:
        return []
    cells = [
        cell for cell in cells_of(run) if any(cell in by_cell for by_cell in recovered.values())
    ]
    names = [
        f"{forget} + {retain}, {kept_words(selector, ratio)}"
        for forget, retain, selector, ratio in cells
    ]
    rows = [
        (setting, *(by_cell.get(cell, UNKNOWN) for cell in cells))
        for setting, by_cell in recovered.items()
    ]
    caption = (
        "Recovered fraction, 0: as unlearned, 1: as base; mean over the attacked trials of a cell"
        " and 95 % bootstrap interval over them. One trial alone has no interval. Area: the mean"
        " over the steps, which still tells models apart where in the end all of it is back. The"
        " controls are in the table of attacks."
    )
    view = view_of(
        {"attack": "attack and its settings", **dict.fromkeys(names, "recovered fraction")}, rows
    )
    return [
        Section(
            anchor="attacks-by-ratio",
            title="Attacks, coresets beside the full set",
            caption=caption,
            view=view,
        )
    ]


def recovered_by_cell(run: Run) -> dict[str, dict[tuple[Any, ...], str]]:
    """Attack setting -> cell -> its recovered fraction in words; under a training attack, in a line
    of its own, the area of its curve.
    """
    table = recovery_table(run)
    found: dict[str, dict[tuple[Any, ...], str]] = {}
    place = {trial: cell for cell, pairs in cells_of(run).items() for trial, _ in pairs}
    for (setting,), rows in table.group_by("setting", maintain_order=True):
        for column, shown in (("recovered", str(setting)), ("area", f"{setting}{AREA}")):
            values: dict[tuple[Any, ...], list[float]] = {}
            for attacked, value in (
                rows.drop_nulls(column)
                .filter(pl.col("attacked").is_in(list(place)))
                .select("attacked", column)
                .iter_rows()
            ):
                values.setdefault(place[attacked], []).append(value)
            found[shown] = {cell: _recovered(numbers) for cell, numbers in values.items()}
    return {shown: by_cell for shown, by_cell in found.items() if by_cell}


# ---- inside


def _recovered(values: Sequence[float]) -> str:
    if len(values) == 1:
        # no minus before a zero
        return f"{round(values[0], 2) + 0.0:.2f}"
    return with_interval(
        spread("recovered", bootstrap_interval(np.array(values).reshape(-1, 1))), "recovered"
    )


def _right(run: Run) -> dict[tuple[str, str, str], float]:
    rows = (
        run.examples.filter(
            pl.col("metric") == RIGHT, pl.col("attack") == "none", pl.col("stage") == "unlearned"
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


def _barriers(pairs: Sequence[Pair], paths: Paths) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for start, prefix in (("full", "barrier"), ("base", "base_barrier")):
        for split in SPLITS:
            known = [paths[t, start, split] for t, _ in pairs if (t, start, split) in paths]
            heights = np.array(
                [barrier(path, higher_is_better=split != "forget") for path in known]
            ).reshape(-1, 1)
            row |= spread(f"{prefix}_{split}", bootstrap_interval(heights)) if known else {}
    return row


def _agreement(
    pairs: Sequence[Pair], right: Mapping[tuple[str, str, str], float]
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for split, name in (("forget", "agreement"), ("retain", "agreement_retain")):
        documents = sorted({d for s, _, d in right if s == split})
        asked = [
            (t, twin, d)
            for t, twin in pairs
            for d in documents
            if {(split, t, d), (split, twin, d)} <= right.keys()
        ]
        same = {(t, d): float(right[split, t, d] == right[split, twin, d]) for t, twin, d in asked}
        row |= spread(name, bootstrap_interval(matrix([t for t, _ in pairs], documents, same)))
    return row


def _words(
    pairs: Sequence[Pair], frames: Mapping[str, Mapping[str, pl.DataFrame]]
) -> dict[str, Any]:
    shared = {
        (t, d): (a, frames[twin][d])
        for t, twin in pairs
        for d, a in frames.get(t, {}).items()
        if d in frames.get(twin, {})
    }
    if not shared:
        return {}
    key = {k: (a["is_key"].to_numpy(), b["is_key"].to_numpy()) for k, (a, b) in shared.items()}
    overlap = {k: share(a & b, a | b) for k, (a, b) in key.items()}
    rank = {
        k: rank_correlation(a["contribution"].to_numpy(), b["contribution"].to_numpy())
        for k, (a, b) in shared.items()
    }
    documents, trials = sorted({d for _, d in shared}), [t for t, _ in pairs]
    return spread("overlap", bootstrap_interval(matrix(trials, documents, overlap))) | spread(
        "rank", bootstrap_interval(matrix(trials, documents, rank))
    )
