"""Documents that were chosen: how often, and retain documents compared with as many drawn at
random. Polars and numpy.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.analysis.hypothesis_tests import holm, paired_p
from rayunlearn.analysis.intervals import LEVEL
from rayunlearn.analysis.run_frames import (
    CELL_SETTINGS,
    UNTOUCHED,
    MetricValues,
    objective_of,
    trials_with_roles,
    values_by_trial,
    varying_settings,
)
from rayunlearn.analysis.two_way import combined_estimate
from rayunlearn.config import SEED_SETTINGS, Retain
from rayunlearn.storage.run import Run

# what an arm may differ in from its reference: which documents train, not how many
CHOICE = ("retain.name", "retain.general", "retain.extractor", "retain.file")

RETAIN_SCHEMA = {
    "role": pl.String,
    "setting": pl.String,
    "arm": pl.String,
    "ratio": pl.Float64,
    "measure": pl.String,
    "value": pl.Float64,
    "value_random": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "p_holm": pl.Float64,
    "seeds": pl.Int64,
}


def retain_table(run: Run) -> pl.DataFrame:
    """A row per arm of `retain.*` and measure: forgetting, utility and untouched, each with the
    arm's mean, that of as many retain documents drawn at random, and their difference.

    Trials are paired by their seeds, and documents by themselves: `difference` is the mean of arm -
    random over the pairs, with a 95% interval over seeds and documents (analysis/two_way.py), p by
    Student's t, and p_holm after Holm's correction over all rows of a role. `role` is grid, or
    control for the retain loss alone. `setting`: what else varies, of both the same.

    Args:
        run: an opened run (`storage.run.open_run`).

    Returns:
        The table; no rows where no retain documents were chosen.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> retain_table(open_run("docs/notebooks/runs/coreset")).height
        0
    """
    goal, placed = objective_of(run.experiment), trials_with_roles(run)
    if "retain.name" not in placed.columns:
        return pl.DataFrame(schema=RETAIN_SCHEMA)
    measures = {
        "forgetting": values_by_trial(run, "forget", goal.forgetting, ""),
        "utility": values_by_trial(run, goal.utility_split, goal.utility, ""),
        "untouched": values_by_trial(run, UNTOUCHED, goal.utility, ""),
    }
    settings = [n for n in varying_settings(run, placed) if n not in CHOICE]
    rows: list[dict[str, Any]] = []
    for role in ("grid", "control"):
        trials = placed.filter(role=role).unique("trial_id", keep="first", maintain_order=True)
        compared = list(_compared(trials, settings, measures))
        adjusted = holm([row["p"] for row in compared])
        rows += [
            row | {"role": role, "p_holm": p} for row, p in zip(compared, adjusted, strict=True)
        ]
    return pl.DataFrame(rows, schema=RETAIN_SCHEMA)


def selection_frequency(run: Run, role: str = "retain") -> pl.DataFrame:
    """A row per document that was chosen: method.forget, selector, ratio, doc_id, trials (of the
    selector at that ratio) and share (of them that chose it), the most chosen first.

    A selector that does not depend on a seed has shares of 1 alone; `random` has shares near its
    ratio. In an older run all documents are of the forget set.

    Args:
        run: an opened run (`storage.run.open_run`).
        role: forget, retain or general (`schema.CORESET_ROLES`).

    Returns:
        The table; no rows where nothing was chosen in that role.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> table = selection_frequency(open_run("runs/selectors/1"), "forget")
        >>> table.columns
        ['method.forget', 'selector', 'ratio', 'doc_id', 'trials', 'share']
    """
    section = "select" if role == "forget" else "retain"
    names = {"selector": f"{section}.name", "ratio": f"{section}.ratio"}
    trials = run.trials.collect()
    if not {*names.values()} <= {*trials.columns}:
        trials = trials.with_columns(pl.lit(None).alias(name) for name in names.values())
    chosen = run.coresets.filter(pl.col("role").fill_null("forget") == role).collect()
    cells = trials.select(
        "trial_id", "method.forget", *(pl.col(n).alias(called) for called, n in names.items())
    ).filter(pl.col("trial_id").is_in(chosen["trial_id"].unique().to_list()))
    cell = ["method.forget", *names]
    counts = cells.group_by(cell).agg(pl.len().cast(pl.Int64).alias("trials"))
    times = chosen.join(cells, on="trial_id").group_by([*cell, "doc_id"]).len("times")
    return (
        times.join(counts, on=cell, nulls_equal=True)
        .with_columns((pl.col("times") / pl.col("trials")).alias("share"))
        .select(*cell, "doc_id", "trials", "share")
        .sort(*cell, "share", "doc_id", descending=[False] * len(cell) + [True, False])
    )


def _compared(
    trials: pl.DataFrame, settings: Sequence[str], measures: Mapping[str, MetricValues]
) -> Iterator[dict[str, Any]]:
    """A row per arm that has a reference, and measure."""
    same = list(dict.fromkeys([*CELL_SETTINGS, *settings, "retain.ratio"]))
    named = [name for name in settings if name not in ("retain.ratio", *SEED_SETTINGS)]
    for _, cells in trials.group_by(same, maintain_order=True):
        arms = {
            arm_name(part.row(0, named=True)): part
            for _, part in cells.group_by(CHOICE, maintain_order=True)
        }
        reference = arms.pop("random", None)
        if reference is None:
            continue
        first = reference.row(0, named=True)
        about = {
            "setting": ", ".join(f"{name} {first[name]}" for name in named),
            "ratio": first["retain.ratio"],
        }
        for arm, part in arms.items():
            pairs = part.join(reference, on=SEED_SETTINGS, suffix="_random")
            for measure, values in measures.items():
                row = _paired(pairs, values)
                if row:
                    yield about | {"arm": arm, "measure": measure} | row


def arm_name(row: Mapping[str, Any]) -> str:
    """`nearest`, or `random, general 0.5`: what was chosen instead of random documents."""
    general, extractor = row["retain.general"] or 0.0, row["retain.extractor"]
    parts = [row["retain.name"], f"general {general:g}" if general else ""]
    parts.append(extractor if extractor not in (None, Retain.extractor) else "")
    return ", ".join(filter(None, [*parts, row["retain.file"]]))


def _paired(pairs: pl.DataFrame, values: MetricValues) -> dict[str, Any]:
    """Means and their paired difference; nothing where no pair was measured."""
    measured = [
        (arm, other)
        for arm, other in pairs.select("trial_id", "trial_id_random").iter_rows()
        if arm in values.row_of and other in values.row_of
    ]
    if not measured:
        return {}
    arm, random = (values.rows([pair[side] for pair in measured]) for side in (0, 1))
    difference = arm - random
    measured_columns = np.isfinite(difference).all(0)
    if not measured_columns.any():
        return {}
    groups = None if values.groups is None else values.groups[measured_columns]
    estimate = combined_estimate([difference[:, measured_columns]], groups=groups)
    low, high = estimate.ends(LEVEL)
    return {
        "value": float(arm[:, measured_columns].mean()),
        "value_random": float(random[:, measured_columns].mean()),
        "difference": estimate.mean,
        "low": low,
        "high": high,
        "p": paired_p(estimate),
        "seeds": len(measured),
    }
