"""What a base model knows of each probe split, with intervals, before anything is unlearned."""

from dataclasses import replace

import numpy as np
import polars as pl

from rayunlearn.analysis.intervals import mean_interval
from rayunlearn.config import Trial, with_values
from rayunlearn.interop.evaluate import measured_rows
from rayunlearn.metrics.table import METRICS
from rayunlearn.registry import check_trial
from rayunlearn.trial.evaluate import grouped
from rayunlearn.trial.workspace import Workspace


def base_knowledge(trial: Trial, workspace: Workspace, metrics: tuple[str, ...]) -> pl.DataFrame:
    """Measure the base model of a workspace whose models are there.

    Args:
        trial: any trial of the (data, model) pair; its data and measuring settings are used.
        metrics: names of `metrics.table.METRICS` that need no other model.

    Returns:
        A row per split and metric: split, metric, n (documents), mean, low, high (95% over
        documents, those of one group together; None where n is 1).
    """
    chosen = with_values(replace(trial, stage="base"), {"measure.metrics": ",".join(metrics)})
    rows = measured_rows(workspace.base, check_trial(chosen), workspace)
    examples = pl.DataFrame(grouped(rows, workspace.corpus)).drop_nulls("value")
    table = []
    for (split, metric), part in examples.group_by("split", "metric", maintain_order=True):
        values = part["value"].to_numpy()[None].astype(float)
        groups = part["group"].fill_null(part["doc_id"]).rank("dense").to_numpy().astype(np.int64)
        bounds = (METRICS[str(metric)].low, METRICS[str(metric)].high)
        interval = mean_interval(values, groups=groups, bounds=bounds)
        table.append(
            {
                "split": split,
                "metric": metric,
                "n": part.height,
                "mean": interval.mean,
                "low": interval.low,
                "high": interval.high,
            }
        )
    return pl.DataFrame(table)
