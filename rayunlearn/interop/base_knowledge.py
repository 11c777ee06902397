"""What a base model knows of each probe split, with intervals, before anything is unlearned."""

from dataclasses import replace

import numpy as np
import polars as pl

from rayunlearn.analysis.intervals import mean_interval
from rayunlearn.config import Objective, Trial, Value, with_values
from rayunlearn.interop.evaluate import measured_rows
from rayunlearn.metrics.table import METRICS, sources_of
from rayunlearn.registry import check_trial
from rayunlearn.trial.evaluate import grouped
from rayunlearn.trial.workspace import Workspace

# asked of every base beside what the objective reads: of the key word where one is marked, and the
# choice among options where there are wrong answers
NEEDS_MORE = {"base", "samples", "gradients", "patching", "judge"}
OF_BASE = ("multiple_choice", "key_probability")


def metrics_of_base(objective: Objective) -> tuple[str, ...]:
    """The metrics of the objective that need no other model, and `OF_BASE`."""
    named = (objective.forgetting, objective.utility)
    usable = [
        name for name in named if name in METRICS and not sources_of([METRICS[name]]) & NEEDS_MORE
    ]
    return tuple(dict.fromkeys((*usable, *OF_BASE)))


def base_knowledge(trial: Trial, workspace: Workspace, metrics: tuple[str, ...]) -> pl.DataFrame:
    """Measure the base model of a workspace whose models are there.

    Args:
        trial: any trial of the (data, model) pair; its data and measuring settings are used.
        metrics: names of `metrics.table.METRICS` that need no other model.

    Returns:
        A row per split and metric: split, metric, n (documents), mean, low, high (95% over
        documents, those of one group together; None where n is 1).
    """
    asked: dict[str, Value] = {"measure.metrics": ",".join(metrics), "judge.answers": ""}
    chosen = with_values(replace(trial, stage="base"), asked)
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
