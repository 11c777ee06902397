"""Control before comparison: the unlearned model interpolated towards the base model until the
retention target is met, measured again (`models.interpolation`, 2406.09179).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import polars as pl

from rayunlearn.analysis.intervals import summarise_examples
from rayunlearn.config import digest
from rayunlearn.errors import require
from rayunlearn.metrics.evaluate import Measured, chosen_metrics
from rayunlearn.models.interpolation import Calibration, calibrate_mixing, copy_of, mixed
from rayunlearn.schema import Rows
from rayunlearn.storage.artifact_cache import canonical
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.evaluate import (
    examples_frame,
    label_measured,
    measure_trial,
    metric_options,
    trial_examples,
)
from rayunlearn.trial.model_state import cached_in_worker
from rayunlearn.trial.probes import encoded_probes

if TYPE_CHECKING:
    from torch import Tensor


def calibrate_trial(
    context: TrialContext, unlearned: Measured, *, step: int
) -> tuple[dict[str, Any], dict[str, Rows]]:
    """(columns of `trials`, rows of `examples`, `evals`, `generations` and `curves`) of the
    mixtures that retain calibrate.tau and calibrate.beside x base.

    The model holds the unlearned weights, LoRA added to them, and holds them again afterwards;
    `unlearned` was measured of them. A mixture that two stages share is measured once. Raises
    UserError where base retains nothing.
    """
    calibrate = context.trial.calibrate
    path = MixingPath(context, copy_of(context.model), unlearned.examples)
    shares = {"calibrated": calibrate.tau, "calibrated_beside": calibrate.beside}
    calibrations = {
        stage: calibrate_mixing(path.retention, share=share)
        for stage, share in shares.items()
        if share > 0
    }
    measured: dict[float, Measured] = {1.0: unlearned}
    tables: dict[str, Rows] = {"examples": [], "evals": [], "generations": []}
    for stage, calibration in calibrations.items():
        if calibration.alpha not in measured:
            measured[calibration.alpha] = path.measure_at(
                calibration.alpha, partial(measure_trial, context)
            )
        for name, rows in label_measured(
            context, measured[calibration.alpha], stage=stage, step=step
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
    retaining costs. The ends are not measured again: base once for all trials of a worker, and the
    unlearned model's rows are `examples`.
    """

    context: TrialContext
    unlearned: dict[str, Tensor]
    examples: Rows
    measured: dict[float, pl.DataFrame] = field(default_factory=dict)

    def retention(self, alpha: float) -> float:
        """Mean of calibrate.retention on calibrate.split at theta(alpha)."""
        if alpha not in self.measured:
            self.measured[alpha] = summarise_examples(examples_frame(self._examples_at(alpha)))
        means = (
            self.measured[alpha]
            .filter(pl.col("split") == self.context.trial.calibrate.split)["value"]
            .drop_nulls()
        )
        rule = (
            "calibrate.split must be a split of the probes on which calibrate.retention is defined"
        )
        require(len(means) == 1, rule, self.context.trial.calibrate.split)
        return float(means.item())

    def measure_at(self, alpha: float, measure: Callable[[], Any]) -> Any:
        """What `measure` returns while the model is at theta(alpha)."""
        with mixed(self.context.model, self.context.state.pristine, self.unlearned, alpha):
            return measure()

    def rows(self) -> Rows:
        """The path as rows of `curves`."""
        return [
            {"kind": "mixing", "x": alpha} | row
            for alpha, means in sorted(self.measured.items())
            for row in means.to_dicts()
        ]

    def _examples_at(self, alpha: float) -> Rows:
        """Rows of the metric of retention on the two splits at theta(alpha)."""
        trial = self.context.trial
        splits = (trial.calibrate.split, "forget")
        metrics = chosen_metrics(trial.calibrate.retention)
        final_rows = [
            {name: row[name] for name in ("doc_id", "split", "metric", "value")}
            for row in self.examples
            if row["split"] in splits and row["metric"] in metrics
        ]
        if alpha == 1 and {row["split"] for row in final_rows} == set(splits):
            return final_rows
        probes = [p for p in encoded_probes(self.context) if p.split in splits]

        def measure() -> Rows:
            return self.measure_at(alpha, partial(trial_examples, self.context, probes, metrics))

        if alpha > 0:
            return measure()
        options = metric_options(trial, metrics)
        shots = dict(self.context.corpus.shots)
        texts = digest([shots, *(asdict(probe) for probe in probes)])
        key = ("retention of base", texts, canonical(options))
        return cached_in_worker(self.context.state, (*key, trial.measure, *metrics), measure)
