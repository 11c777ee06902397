"""What was measured on probe sets beside forget, retain and untouched. Polars and numpy."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from rayunlearn.analysis.coreset_table import extra_settings, table_cells
from rayunlearn.analysis.intervals import bounds_of, mean_interval
from rayunlearn.analysis.run_frames import (
    UNTOUCHED,
    examples_without_attacks,
    measured_of,
    objective_of,
)
from rayunlearn.storage.run import Run

# what any document has
PROBABILITY = "probability"
# splits that have columns or tables of their own
KNOWN_SPLITS = ("forget", "retain", UNTOUCHED, "members", "holdout")


def further_sets(run: Run) -> list[str]:
    """Names of the probe sets that the run's trials were asked beside those of the coreset table,
    in alphabetical order.
    """
    names = examples_without_attacks(run).select("split").unique().collect()["split"]
    in_tables = (*KNOWN_SPLITS, objective_of(run.experiment).utility_split)
    return sorted(name for name in names if name not in in_tables)


def probe_set_table(run: Run) -> pl.DataFrame:
    """One row per cell of the coreset table and further probe set: `split`, `metric` (the
    objective's utility, or what `set_metrics` says), `value` with `value_low` and `value_high` (95%
    t interval over seeds and documents), and `n_documents`.

    Args:
        run: an opened run (`storage.run.open_run`).

    Returns:
        The table; no rows where there are no further sets.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> probe_set_table(open_run("docs/notebooks/runs/coreset")).height
        0
    """
    sets, goal = further_sets(run), objective_of(run.experiment)
    metrics = set_metrics(run, goal.utility)
    cells = table_cells(run)
    columns = ("select.name", "select.ratio", "n_kept")
    settings = ["role", "group", "method", *extra_settings(cells), *columns]
    rows = [
        {name: cell[name] for name in settings} | measures
        for split in sets
        for cell, measures in _measured_cells(run, cells, split, metrics.get(split, goal.utility))
    ]
    schema = {name: cells.schema[name] for name in settings} | {
        "split": pl.String,
        "metric": pl.String,
        "value": pl.Float64,
        "value_low": pl.Float64,
        "value_high": pl.Float64,
        "n_documents": pl.Int64,
    }
    return pl.DataFrame(rows, schema=schema)


def set_metrics(run: Run, metric: str) -> dict[str, str]:
    """Split -> the metric that it is shown by: `metric`, or `probability` where none of the split's
    documents has a value of it, as plain text has no key.

    A split with neither is left out.
    """
    rows = examples_without_attacks(run).filter(
        pl.col("metric").is_in([metric, PROBABILITY]), pl.col("value").is_not_null()
    )
    measured = set(rows.select("split", "metric").unique().collect().iter_rows())
    return {split: metric if (split, metric) in measured else PROBABILITY for split, _ in measured}


def _measured_cells(
    run: Run, cells: pl.DataFrame, split: str, metric: str
) -> list[tuple[Mapping[str, Any], dict[str, Any]]]:
    rows = (
        examples_without_attacks(run)
        .filter(pl.col("split") == split, pl.col("metric") == metric)
        .select("trial_id", "doc_id", "group", "split", "metric", "value")
        .collect()
    )
    values, bounds = measured_of(rows), bounds_of(run.experiment, metric)
    measured: list[tuple[Mapping[str, Any], dict[str, Any]]] = []
    for cell in cells.iter_rows(named=True):
        matrix = values.rows(cell["trial_ids"])
        interval = mean_interval(matrix, groups=values.groups, bounds=bounds)
        columns = {
            "split": split,
            "metric": metric,
            "value": interval.mean,
            "value_low": interval.low,
            "value_high": interval.high,
            "n_documents": rows["doc_id"].n_unique(),
        }
        measured.append((cell, columns))
    return measured
