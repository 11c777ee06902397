"""Control before comparison: the unlearned model mixed back until it retains enough, measured again
(`models.interpolation`, 2406.09179).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from rayunlearn.analysis.intervals import summarise_examples
from rayunlearn.config import Trial
from rayunlearn.errors import require
from rayunlearn.metrics.evaluate import chosen_metrics
from rayunlearn.models.interpolation import Calibration, calibrate_mixing, copy_of, mixed
from rayunlearn.trial.evaluate import Rows, examples_frame, label_examples, trial_examples
from rayunlearn.trial.model_state import ModelState
from rayunlearn.trial.probes import encoded_probes
from rayunlearn.trial.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor


def calibrate_trial(
    trial: Trial, workspace: Workspace, state: ModelState, examples: Rows, *, step: int
) -> tuple[dict[str, Any], dict[str, Rows]]:
    """(columns of `trials`, rows of `examples`, `evals` and `curves`) of the mixtures that retain
    calibrate.tau and calibrate.beside x base.

    `state.model` holds the unlearned weights, LoRA added to them, and holds them again afterwards;
    `examples` are theirs. A mixture that two stages share is measured once. Raises UserError where
    base retains nothing.
    """
    path = MixingPath(trial, workspace, state, copy_of(state.model))
    shares = {"calibrated": trial.calibrate.tau, "calibrated_beside": trial.calibrate.beside}
    calibrations = {
        stage: calibrate_mixing(path.retention, share=share)
        for stage, share in shares.items()
        if share > 0
    }
    measured: dict[float, Rows] = {1.0: examples}
    tables: dict[str, Rows] = {"examples": [], "evals": []}
    for stage, calibration in calibrations.items():
        if calibration.alpha not in measured:
            measured[calibration.alpha] = path.inside(
                calibration.alpha, lambda: trial_examples(trial, workspace, state)
            )
        for name, rows in label_examples(
            trial, workspace, measured[calibration.alpha], stage=stage, step=step
        ).items():
            tables[name] += rows
    return calibration_columns(calibrations), tables | {"curves": path.rows()}


def calibration_columns(calibrations: dict[str, Calibration]) -> dict[str, Any]:
    """What calibration found, as columns of `trials`."""
    main, comparison = calibrations["calibrated"], calibrations.get("calibrated_beside")
    row: dict[str, Any] = {
        "calibrated_alpha": main.alpha,
        "calibrated_width": main.width,
        "calibrated_search": main.search,
    }
    return row | {"calibrated_beside_alpha": comparison.alpha if comparison else None}


@dataclass
class MixingPath:
    """The mixtures between base and the unlearned weights; what was measured at an alpha is kept.

    The metric of retention is measured on its split and on `forget`, so that the path shows what
    retaining costs.
    """

    trial: Trial
    workspace: Workspace
    state: ModelState
    unlearned: dict[str, Tensor]
    measured: dict[float, pl.DataFrame] = field(default_factory=dict)

    def retention(self, alpha: float) -> float:
        """Mean of calibrate.retention on calibrate.split at theta(alpha)."""
        if alpha not in self.measured:
            self.measured[alpha] = self.inside(alpha, self._look)
        means = (
            self.measured[alpha]
            .filter(pl.col("split") == self.trial.calibrate.split)["value"]
            .drop_nulls()
        )
        rule = (
            "calibrate.split must be a split of the probes on which calibrate.retention is defined"
        )
        require(len(means) == 1, rule, self.trial.calibrate.split)
        return float(means.item())

    def inside(self, alpha: float, measure: Callable[[], Any]) -> Any:
        """What `look` sees while the model is at theta(alpha)."""
        with mixed(self.state.model, self.state.pristine, self.unlearned, alpha):
            return measure()

    def rows(self) -> Rows:
        """The path as rows of `curves`."""
        return [
            {"kind": "mixing", "x": alpha} | row
            for alpha, means in sorted(self.measured.items())
            for row in means.to_dicts()
        ]

    def _look(self) -> pl.DataFrame:
        splits = (self.trial.calibrate.split, "forget")
        probes = [
            p
            for p in encoded_probes(self.workspace, self.state, self.trial.data)
            if p.split in splits
        ]
        metrics = chosen_metrics(self.trial.calibrate.retention)
        return summarise_examples(
            examples_frame(trial_examples(self.trial, self.workspace, self.state, probes, metrics))
        )
