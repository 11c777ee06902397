"""What is seen of a trial while it trains: at each look, and at the end, how much of the forget set
and of utility the model knows, and what follows from it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rayunlearn.analysis.training_curve import constrained_rank, forget_utility_area
from rayunlearn.config import Stop, digest
from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.metrics.evaluate import chosen_metrics, evaluate_probes
from rayunlearn.metrics.forward_passes import Probe
from rayunlearn.metrics.table import METRICS
from rayunlearn.models.load import load_model
from rayunlearn.registry import arguments_of
from rayunlearn.schema import Rows
from rayunlearn.storage.artifact_cache import JSON, cached_file
from rayunlearn.storage.code_identity import code_digest
from rayunlearn.train.early_stopping import BestLook, RetentionEarlyStopping
from rayunlearn.train.live import tell
from rayunlearn.train.loop import TrainLog
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.identity import cached_model_digest
from rayunlearn.trial.model_state import cached
from rayunlearn.trial.probes import UTILITY_CODE, encoded_probes
from rayunlearn.trial.references import cache_key

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# of each split; used along training only, never reported as what was measured
MAX_PROBES = 64
# split, metric
Series = tuple[str, str]
RETENTION: Series = ("retain", "probability")


@dataclass(frozen=True)
class MeanValue:
    """A mean over probes, how many had a value, and the standard error (NaN where n < 2)."""

    value: float
    n: int
    stderr: float


Means = tuple[MeanValue, ...]


@dataclass(frozen=True)
class MonitoredProbes:
    """What is asked at each look: the probes of every series, and keyword arguments by metric."""

    probes: Mapping[Series, Sequence[Probe]]
    options: Mapping[str, Mapping[str, Any]]

    def means_of(self, model: PreTrainedModel) -> Means:
        """The means of the model as it stands, in the order of `probes`."""
        return tuple(
            _mean_value(
                [
                    row["value"]
                    for row in evaluate_probes(
                        model, probes, {metric: METRICS[metric]}, options=self.options
                    )
                ]
            )
            for (_, metric), probes in self.probes.items()
        )


class TrainingMonitor:
    """The looks of one training: its curve, and what each look decides.

    `start`: the first look, at the weights that training begins with; `stop`: the trial's settings;
    `aim`: the mean that the best look comes nearest to, NaN where it is the one that forgot most.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        questions: MonitoredProbes,
        start: Means,
        stop: Stop,
        aim: float = math.nan,
    ) -> None:
        self._model, self._questions, self._stop, self._aim = model, questions, stop, aim
        self._series = tuple(questions.probes)
        self._evaluations: list[tuple[int, Means]] = [(0, start)]
        share = stop.retention_floor or stop.utility_floor
        watches = bool(share) and RETENTION in self._series
        self._floor = share * self._now(RETENTION) if watches else -math.inf
        self._stopping = (
            RetentionEarlyStopping(model, partial(self._now, RETENTION), self._floor)
            if stop.retention_floor > 0
            else None
        )
        self._best = BestLook(model, self._rank()) if stop.keep == "best" else None
        self._tell()

    def evaluate(self, step: int) -> bool:
        """Look at the model after `step` steps; whether it may train on."""
        self.note(step)
        if self._best is not None:
            self._best.see(step, self._rank())
        if self._stopping is not None:
            return self._stopping.holds(step)
        return self._floor == -math.inf or self._now(RETENTION) >= self._floor

    def note(self, step: int) -> None:
        """Look at the model after `step` steps, for the curve alone: nothing is decided by it."""
        self._evaluations.append((step, self._questions.means_of(self._model)))
        self._tell()

    def ended(self, log: TrainLog) -> TrainLog:
        """The log with the curve, after a look at what a whole training ended with and after the
        weights that are to be kept were put back; neither where it only pauses.
        """
        if log.outcome == "paused":
            return replace(log, curve=self.rows())
        if log.outcome == "complete" and self._evaluations[-1][0] != len(log.rows):
            self.evaluate(len(log.rows))
        if self._stopping is not None:
            log = self._stopping.restore_best(log)
        if self._best is not None:
            log = self._best.restore(log)
        return replace(log, curve=self.rows())

    def curve_at(self, step: int) -> Rows:
        """The curve of a training that ends at `step`, where the model is now: looked at, and not
        noted.
        """
        if self._evaluations[-1][0] == step:
            return self.rows()
        return self._rows([*self._evaluations, (step, self._questions.means_of(self._model))])

    def rows(self) -> Rows:
        """The looks as rows of table `curves`."""
        return self._rows(self._evaluations)

    def _rows(self, evaluations: Sequence[tuple[int, Means]]) -> Rows:
        return [
            {"kind": "training", "x": float(step), "split": split, "metric": metric}
            | {"value": _or_none(mean.value), "n": mean.n, "stderr": _or_none(mean.stderr)}
            for step, means in evaluations
            for (split, metric), mean in zip(self._series, means, strict=True)
        ]

    def state(self) -> dict[str, Tensor]:
        """What the looks found and kept, for a checkpoint."""
        numbers = [
            [(float(step), mean.value, float(mean.n), mean.stderr) for mean in means]
            for step, means in self._evaluations
        ]
        state = {"looks": torch.tensor(numbers, dtype=torch.float64)}
        keeps = self._stopping or self._best
        return state | ({} if keeps is None else keeps.state())

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Go on from this."""
        self._evaluations = [
            (
                int(means[0][0]),
                tuple(MeanValue(value, int(n), error) for _, value, n, error in means),
            )
            for means in state["looks"].tolist()
        ]
        keeps = self._stopping or self._best
        if keeps is not None:
            keeps.take({name: tensor for name, tensor in state.items() if name != "looks"})

    def _tell(self) -> None:
        """Tell who listens to this process of the last look, as trackers name it."""
        step, means = self._evaluations[-1]
        numbers = {
            f"training/{split}/{metric}": mean.value
            for (split, metric), mean in zip(self._series, means, strict=True)
            if math.isfinite(mean.value)
        }
        tell([(step, numbers)])

    def _now(self, series: Series) -> float:
        return self._evaluations[-1][1][self._series.index(series)].value

    def _rank(self) -> tuple[float, float]:
        """The rank of the last look."""
        utility = (self._stop.utility_split, self._stop.utility)
        at_start = self._evaluations[0][1][self._series.index(utility)].value
        violation = self._stop.keep_floor * at_start - self._now(utility)
        forgetting = self._now(("forget", self._stop.forgetting))
        distance = forgetting if math.isnan(self._aim) else abs(forgetting - self._aim)
        return constrained_rank(distance, violation)


def training_monitor(
    context: TrialContext,
    model: PreTrainedModel,
    questions: MonitoredProbes,
    start: Means,
    aim: float = math.nan,
) -> TrainingMonitor | None:
    """What watches a trial's training of `model`, None where there is nothing to ask."""
    if not questions.probes:
        return None
    return TrainingMonitor(model, questions, start, context.trial.stop, aim)


def monitored_probes(context: TrialContext) -> MonitoredProbes:
    """What is asked at the looks of a trial. Raises UserError where a setting needs probes that the
    data does not have.
    """
    trial, stop = context.trial, context.trial.stop
    series_names: list[Series] = [("forget", stop.forgetting), (stop.utility_split, stop.utility)]
    series_names += [RETENTION] if stop.retention_floor or stop.utility_floor else []
    probes = {
        (split, metric): [probe for probe in encoded_probes(context) if probe.split == split][
            :MAX_PROBES
        ]
        for split, metric in dict.fromkeys(series_names)
    }
    present = {series: questions for series, questions in probes.items() if questions}
    rule = "stop.retention_floor needs probes of split retain; there are"
    require(stop.retention_floor == 0 or RETENTION in present, rule, 0)
    rule = f"stop.keep=best needs probes of splits forget and {stop.utility_split}; there are"
    splits = sorted({split for split, _ in present})
    has_both = all(series in present for series in series_names[:2])
    require(stop.keep == "last" or has_both, rule, splits)
    measured = chosen_metrics(trial.measure.metrics)
    options = {
        metric: arguments_of(trial, METRICS[metric].function)
        for _, metric in present
        if metric in measured
    }
    return MonitoredProbes(present, options)


def start_evaluation(context: TrialContext, questions: MonitoredProbes) -> Means:
    """The look at the weights that a trial begins with, which the model must hold; once per model
    and questions.
    """
    return _means_once(
        context,
        questions,
        {"what": "start of the training curve"},
        lambda: questions.means_of(context.model),
    )


def best_look_aim(context: TrialContext, questions: MonitoredProbes) -> float:
    """The mean that the best look of a trial is to come nearest to, on the forget probes that every
    look asks; NaN where there is none: then the best look is the one that forgot most.

    `stop.target` gold: that of the model that never saw the forget set; where the trial has no such
    model, and with `stop.target` chance, the chance level of `stop.forgetting`, which the base
    model says. The context's model must hold the base weights. A look knows a mean and no
    distribution, so that the distance is |mean - aim|, as at a rung; a finished trial is judged by
    all documents (`analysis.targets.target_distance`).
    """
    stop = context.trial.stop
    if stop.keep != "best" or stop.target == "none":
        return math.nan
    gold = context.workspace.gold if stop.target == "gold" else ""
    metric = stop.forgetting if gold else METRICS[stop.forgetting].chance
    if not metric:
        return math.nan
    aim_questions = MonitoredProbes(
        {("forget", metric): questions.probes["forget", stop.forgetting]},
        {metric: arguments_of(context.trial, METRICS[metric].function)},
    )

    def means() -> Means:
        if not gold:
            return aim_questions.means_of(context.model)
        model, _ = load_model(gold, device=str(context.model.device), dtype=torch.float32)
        return aim_questions.means_of(model.eval())

    key = {"what": "aim of the best look", "gold": cached_model_digest(gold) if gold else ""}
    return _means_once(context, aim_questions, key, means)[0].value


def _means_once(
    context: TrialContext,
    questions: MonitoredProbes,
    what: Mapping[str, str],
    means: Callable[[], Means],
) -> Means:
    """Means that are computed once per base model, questions and `what`."""
    # dataclasses.asdict copies every token id of every probe
    content = [[*series, *map(repr, probes)] for series, probes in questions.probes.items()]
    key = cache_key(context, [], "float32") | {
        **what,
        "probes": digest(content),
        "options": {name: dict(values) for name, values in questions.options.items()},
        "code": code_digest(*UTILITY_CODE, sys.modules[__name__]),
    }

    def values() -> list[list[float | None]]:
        return [[_or_none(m.value), m.n, _or_none(m.stderr)] for m in means()]

    make = partial(cached_file, make=values, file_type=JSON)
    rows = cached(context.state, context.cache / "evaluations", key, make)
    return tuple(MeanValue(_or_nan(v), int(n), _or_nan(error)) for v, n, error in rows)


def curve_area(curve: Rows, stop: Stop) -> float | None:
    """`forget_utility_area` of a trial's curve; None where one of the two series is not in it."""
    forget, utility = (
        {
            row["x"]: _or_nan(row["value"])
            for row in curve
            if (row["split"], row["metric"]) == series
        }
        for series in (("forget", stop.forgetting), (stop.utility_split, stop.utility))
    )
    steps = sorted(forget.keys() & utility.keys())
    return forget_utility_area([forget[x] for x in steps], [utility[x] for x in steps])


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _mean_value(values: Sequence[object]) -> MeanValue:
    numbers = torch.tensor([v for v in values if v is not None], dtype=torch.float64)
    n = len(numbers)
    stderr = float(numbers.std()) / math.sqrt(n) if n > 1 else math.nan
    return MeanValue(float(numbers.mean()) if n else math.nan, n, stderr)
