"""Weight paths: the models on the straight line between two trials, measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import polars as pl

from rayunlearn.analysis.intervals import summarise_examples
from rayunlearn.config import Attack, Trial
from rayunlearn.metrics.evaluate import chosen_metrics, evaluate_probes
from rayunlearn.metrics.table import METRICS
from rayunlearn.models.interpolation import points_along
from rayunlearn.trial.load import LoadedTrial
from rayunlearn.trial.model_state import ModelState
from rayunlearn.trial.probes import encoded_probes
from rayunlearn.trial.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor


Rows = list[dict[str, Any]]


ON_PATH = {name: METRICS[name] for name in ("probability", "multiple_choice")}


def weight_path_tables(trial: Trial, workspace: Workspace, state: ModelState) -> Rows:
    """Rows of `curves`: the line from the full-set model to the trial's own, and from base to it,
    `explain.path_points` each.

    The full-set model is the trial at ratio 1.0 with everything else the same. Kind
    `mode_connectivity:full` (x 0 is the full-set model) and `mode_connectivity:base` (x 0 is base).
    `state.model` holds the trial's weights before and after.
    """
    points = trial.explain.path_points
    if points == 0 or trial.stage != "unlearned":
        return []
    weights = trial_weights(state)
    starts = {"base": state.pristine}
    twin = full_set_twin(trial)
    if twin != trial:
        starts["full"] = trial_weights(unlearned_state(twin, workspace))
        state.model.load_state_dict(weights)
    return [
        row
        for name, start in starts.items()
        for row in path_rows(
            trial, workspace, state, start, weights, f"mode_connectivity:{name}", points
        )
    ]


def between_trials(first: LoadedTrial, other: LoadedTrial, *, points: int) -> Rows:
    """Rows of `curves` on the straight line from one trial's weights (x 0) to another's (x 1),
    asked the second one's probes.

    Raises UserError where the two are not of one architecture, or `points` is below 3.
    """
    start = trial_weights(unlearned_state(first.trial, first.workspace))
    state = unlearned_state(other.trial, other.workspace)
    return path_rows(
        other.trial,
        other.workspace,
        state,
        start,
        trial_weights(state),
        f"mode_connectivity:{first.trial_id}",
        points,
    )


def unlearned_state(trial: Trial, workspace: Workspace) -> ModelState:
    """`rebuild.rebuild_model`, which imports the trial, which imports this."""
    from rayunlearn.trial.rebuild import rebuild_model

    return rebuild_model(trial, workspace)


def path_rows(
    trial: Trial,
    workspace: Workspace,
    state: ModelState,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    kind: str,
    points: int,
) -> Rows:
    """Rows of `curves` (kind, x, split, metric, value, n, stderr) between two models, on every
    probe. The model ends as `end`. `letter_choice` is one of the metrics where the trial measures
    it.
    """
    probes, letters = encoded_probes(workspace, state, trial.data), "letter_choice"
    asked = chosen_metrics(trial.measure.metrics)
    metrics = ON_PATH | ({letters: asked[letters]} if letters in asked else {})
    measure = partial(evaluate_probes, state.model, probes, metrics, tokenizer=state.tokenizer)
    rows: Rows = []
    for x, examples in points_along(state.model, start, end, measure, points=points):
        means = summarise_examples(pl.DataFrame(examples, infer_schema_length=None))
        rows += [{"kind": kind, "x": x} | row for row in means.to_dicts()]
    return rows


def full_set_twin(trial: Trial) -> Trial:
    """The trial that unlearns the whole forget set with everything else the same."""
    from rayunlearn.canonical import is_full_set

    return replace(trial, select=is_full_set(replace(trial.select, ratio=1.0)), attack=Attack())


def trial_weights(state: ModelState) -> dict[str, Tensor]:
    """A copy of what the model holds now, on the CPU."""
    return {
        name: tensor.detach().cpu().clone() for name, tensor in state.model.state_dict().items()
    }
