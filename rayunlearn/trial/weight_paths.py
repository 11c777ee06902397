"""Weight paths: the models on the straight line between two trials, measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import polars as pl

from rayunlearn.analysis.intervals import summarise_examples
from rayunlearn.canonical import canonical_full_set
from rayunlearn.config import FULL_RATIO, Attack, Trial
from rayunlearn.metrics.evaluate import chosen_metrics, evaluate_probes
from rayunlearn.metrics.table import METRICS
from rayunlearn.models.interpolation import copy_of, points_along
from rayunlearn.models.mapped_weights import put_back
from rayunlearn.schema import Rows
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.load import LoadedTrial
from rayunlearn.trial.probes import encoded_probes
from rayunlearn.trial.rebuild import rebuild_model

if TYPE_CHECKING:
    from torch import Tensor
ON_PATH = {name: METRICS[name] for name in ("probability", "multiple_choice")}


def weight_path_tables(context: TrialContext) -> Rows:
    """Rows of `curves`: the line from the full-set model to the trial's own, and from base to it,
    `explain.path_points` each.

    The full-set model is the trial at ratio 1.0 with everything else the same: it is trained here
    where no earlier trial has left it in the cache. Kind `mode_connectivity:full` (x 0 is the
    full-set model) and `mode_connectivity:base` (x 0 is base). The model holds the trial's weights
    before and after.
    """
    trial, points = context.trial, context.trial.explain.path_points
    if points == 0 or trial.stage != "unlearned":
        return []
    weights = copy_of(context.model)
    starts = {"base": context.state.pristine}
    full_model = full_set_trial(trial)
    if full_model != trial:
        starts["full"] = copy_of(rebuild_model(full_model, context.workspace).model)
        # the twin was trained in this process's one model of the base folder
        put_back(context.model, weights)
    return [
        row
        for name, start in starts.items()
        for row in path_rows(context, start, weights, f"mode_connectivity:{name}", points)
    ]


def between_trials(first: LoadedTrial, other: LoadedTrial, *, points: int) -> Rows:
    """Rows of `curves` on the straight line from one trial's weights (x 0) to another's (x 1),
    asked the second one's probes.

    Raises UserError where the two are not of one architecture, or `points` is below 3.
    """
    start = copy_of(rebuild_model(first.trial, first.workspace).model)
    context = rebuild_model(other.trial, other.workspace)
    end = copy_of(context.model)
    return path_rows(context, start, end, f"mode_connectivity:{first.trial_id}", points)


def path_rows(
    context: TrialContext,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    kind: str,
    points: int,
) -> Rows:
    """Rows of `curves` (kind, x, split, metric, value, n, stderr) between two models, on every
    probe. The model ends as `end`. `letter_choice` is one of the metrics where the trial measures
    it.
    """
    probes, letters = encoded_probes(context), "letter_choice"
    measured = chosen_metrics(context.trial.measure.metrics)
    metrics = ON_PATH | ({letters: measured[letters]} if letters in measured else {})
    measure = partial(evaluate_probes, context.model, probes, metrics, tokenizer=context.tokenizer)
    rows: Rows = []
    for x, examples in points_along(context.model, start, end, measure, points=points):
        means = summarise_examples(pl.DataFrame(examples, infer_schema_length=None))
        rows += [{"kind": kind, "x": x} | row for row in means.to_dicts()]
    return rows


def full_set_trial(trial: Trial) -> Trial:
    """The trial that unlearns the full forget set with everything else the same."""
    return replace(
        trial, select=canonical_full_set(replace(trial.select, ratio=FULL_RATIO)), attack=Attack()
    )
