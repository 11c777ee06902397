"""One trial, start to end: reset the model, choose the coreset, unlearn, measure, write. No Ray in
here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn.config import NO_RUNGS, Explain, Rungs, Trial, flatten
from rayunlearn.lazy import torch
from rayunlearn.models.device_memory import device_lock, reset_peak_memory, retry_alone_on_oom
from rayunlearn.models.forward import can_pack
from rayunlearn.schema import FINISHED, PAUSED, TIMED_OUT, Rows
from rayunlearn.storage.run import write_trial
from rayunlearn.train.checkpoint import remove_checkpoint
from rayunlearn.train.loop import TrainLog
from rayunlearn.trial.attack_inputs import attacked_rows
from rayunlearn.trial.calibrate import calibrate_trial
from rayunlearn.trial.code import code_of
from rayunlearn.trial.context import TrialContext, base_context, start_context
from rayunlearn.trial.coreset import coverage
from rayunlearn.trial.diagnostics import diagnostic_rows
from rayunlearn.trial.evaluate import grouped, label_measured, measure_start, measure_trial
from rayunlearn.trial.explain import EmphasisWords, emphasis_words, explanation_rows
from rayunlearn.trial.harness import own_harness_tables
from rayunlearn.trial.identity import trains_weights
from rayunlearn.trial.keywords import coreset_sequences, keyword_coverage_of
from rayunlearn.trial.model_state import CorruptWeightsError
from rayunlearn.trial.monitor import curve_area
from rayunlearn.trial.provenance import Clock, failure_row, machine
from rayunlearn.trial.redundancy import redundancy_columns
from rayunlearn.trial.references import products_of
from rayunlearn.trial.retained import retained_rows
from rayunlearn.trial.steering import activation_length, training_note
from rayunlearn.trial.time_limit import TrialTimeoutError, time_limit
from rayunlearn.trial.unlearn import select_documents, unlearn
from rayunlearn.trial.workspace import Workspace, identity_in, require_same_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

STATUS = {
    "complete": "complete",
    "stopped": "collapsed",
    "diverged": "diverged",
    "early_stopped": "complete",
    "paused": PAUSED,
}


@dataclass(frozen=True)
class Outcome:
    """What became of a trial: its status, its row so far and the rows of the other tables."""

    status: str
    row: dict[str, Any]
    tables: dict[str, Rows]


def run_trial(
    trial: Trial,
    workspace: Workspace,
    run_dir: Path,
    experiment: str,
    version: str,
    commit: str = "",
    trial_hours: float = 0.0,
    rungs: Rungs = NO_RUNGS,
) -> str:
    """Run one trial and write its rows; returns the status. An exception becomes a row with status
    `failed`, more than `trial_hours` (0: no limit) one with status `timed_out`. Where `rungs` let
    it train to a share of its steps only, it pauses there: its row has status `paused`, and another
    call goes on from there.

    Raises CorruptWeightsError, and writes nothing, when this process can no longer be trusted:
    another one must run it.
    """
    columns = {"experiment": experiment, "version": version, "commit": commit}
    return _run_training([trial], workspace, run_dir, columns, trial_hours, rungs)


def run_lengths(
    trials: Sequence[Trial],
    workspace: Workspace,
    run_dir: Path,
    experiment: str,
    version: str,
    commit: str = "",
    trial_hours: float = 0.0,
) -> str:
    """`run_trial` of the last, on whose way the others are measured, each the beginning of it
    (`planning.lengths`): their rows are written when training comes by. One that it did not come by
    is left as it was. Returns the status of the last.
    """
    columns = {"experiment": experiment, "version": version, "commit": commit}
    return _run_training(trials, workspace, run_dir, columns, trial_hours, NO_RUNGS)


def _run_training(
    trials: Sequence[Trial],
    workspace: Workspace,
    run_dir: Path,
    columns: Mapping[str, str],
    trial_hours: float,
    rungs: Rungs,
) -> str:
    *shorter, trial = trials
    identity = identity_in(trial, workspace)
    checkpoint = run_dir / "checkpoints" / f"{identity}.safetensors"
    way = Way(tuple(shorter), run_dir, {**columns, "measured_within": identity})
    adapter_folder = run_dir / "adapters" / identity
    attempt = partial(_seeded_attempt, trial, workspace, adapter_folder, checkpoint, rungs, way)
    status = run_and_record(attempt, trial, identity, workspace, run_dir, columns, trial_hours)
    # a failed trial runs again, and goes on from there
    if status in FINISHED:
        remove_checkpoint(checkpoint)
    return status


def run_and_record(
    attempt: Callable[[], Outcome],
    trial: Trial,
    identity: str,
    workspace: Workspace,
    run_dir: Path,
    run_columns: Mapping[str, str],
    trial_hours: float = 0.0,
) -> str:
    """Make the attempt and write what came of it as the trial `identity`, whose rows begin with
    `run_columns`; returns the status.
    """
    started, begin = _now(), time.monotonic()
    outcome = _outcome(attempt, trial_hours)
    seconds = time.monotonic() - begin
    columns = {**run_columns, "started_at": started, "seconds": seconds}
    _record(outcome, trial, identity, workspace, run_dir, columns)
    return outcome.status


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _record(
    outcome: Outcome,
    trial: Trial,
    identity: str,
    workspace: Workspace,
    run_dir: Path,
    columns: Mapping[str, Any],
) -> None:
    """Write what came of a trial, its row beginning with `columns`."""
    row: dict[str, Any] = {**columns, "status": outcome.status}
    row |= {
        "corpus_digest": workspace.corpus.digest,
        "model_digest": workspace.base_digest,
        "n_forget": len(workspace.corpus.forget),
        "code": json.dumps(code_of(trial), sort_keys=True),
    }
    tables = outcome.tables | {"trials": [row | machine() | outcome.row]}
    tables |= {"examples": grouped(tables.get("examples", ()), workspace.corpus)}
    write_trial(
        run_dir,
        identity,
        {name: [{"trial_id": identity} | r for r in rows] for name, rows in tables.items()},
        flatten(trial),
    )


def _outcome(attempt: Callable[[], Outcome], trial_hours: float) -> Outcome:
    """What the attempt came to. Raises CorruptWeightsError."""
    try:
        with time_limit(trial_hours):
            return retry_alone_on_oom(attempt, device_lock())
    except CorruptWeightsError:
        raise
    except TrialTimeoutError as error:
        return Outcome(TIMED_OUT, failure_row(error), {})
    # a failure is a row, with its cause
    except Exception as error:
        return Outcome("failed", failure_row(error), {})


def _seeded_attempt(
    trial: Trial,
    workspace: Workspace,
    adapter_folder: Path,
    checkpoint: Path,
    rungs: Rungs,
    way: Way,
) -> Outcome:
    reset_peak_memory()
    with torch.random.fork_rng():
        torch.manual_seed(trial.train.seed)
        return _attempt(trial, workspace, adapter_folder, checkpoint, rungs, way)


def _attempt(
    trial: Trial,
    workspace: Workspace,
    adapter_folder: Path,
    checkpoint: Path,
    rungs: Rungs,
    way: Way,
) -> Outcome:
    clock = Clock()
    require_same_weights(trial, workspace)
    emphasis, context = _base_words_then_start(trial, workspace, clock)
    log, row, tables = _train(context, adapter_folder, checkpoint, clock, rungs, way)
    return _ended(context, emphasis, clock, rungs, row, tables, log)


def _ended(
    context: TrialContext,
    emphasis: Mapping[str, EmphasisWords],
    clock: Clock,
    rungs: Rungs,
    row: dict[str, Any],
    tables: dict[str, Rows],
    log: TrainLog,
) -> Outcome:
    """What a training came to, measured; `row` and `tables` are what is known of it already."""
    trial = context.trial
    row = row | _cost_row(log, context.model, max(1, row.get("n_kept", 1)))
    row["forget_utility_area"] = curve_area(log.curve, trial.stop)
    tables = tables | {"steps": [asdict(r) for r in log.rows], "curves": log.curve}
    status = STATUS[log.outcome]
    row["rung"] = rungs.until if status == PAUSED else None
    if status not in ("diverged", PAUSED):
        columns, measured = _measure(context, emphasis, len(log.rows), clock)
        row, tables = row | columns, merge_rows(tables, measured)
        if trial.measure.attack != "none":
            tables = merge_rows(tables, attacked_rows(context, step=len(log.rows)))
            clock.lap("seconds_attack")
    return Outcome(status, row | clock.laps, tables)


@dataclass(frozen=True)
class Way:
    """The shorter trials that a training comes by, and where their rows go: they begin with
    `columns`.
    """

    shorter: tuple[Trial, ...]
    run_dir: Path
    columns: Mapping[str, Any]

    def measures(
        self, context: TrialContext, clock: Clock, row: dict[str, Any], tables: dict[str, Rows]
    ) -> dict[int, Callable[[TrainLog], None]]:
        """What is to be done after which step; `row` and `tables` as of the longest."""
        by_step: dict[int, list[Trial]] = {}
        for trial in self.shorter:
            by_step.setdefault(trial.train.n_steps(row["n_kept"]), []).append(trial)
        return {
            step: partial(self._measure, context, clock, row, tables, trials)
            for step, trials in by_step.items()
        }

    def _measure(
        self,
        context: TrialContext,
        clock: Clock,
        row: dict[str, Any],
        tables: dict[str, Rows],
        trials: Sequence[Trial],
        log: TrainLog,
    ) -> None:
        begin = time.perf_counter()
        for trial in trials:
            # a training of its own would end here, and draw nothing more
            with torch.random.fork_rng():
                laps = clock.as_of("seconds_train", begin)
                note = training_note(trial, log, row["activation_length"])
                changed = row | {"note": note, "planned_steps": len(log.rows)}
                shorter = replace(context, trial=trial)
                outcome = _ended(shorter, {}, laps, NO_RUNGS, changed, tables, log)
            identity = identity_in(trial, context.workspace)
            columns = {**self.columns, "started_at": _now(), "seconds": sum(laps.laps.values())}
            _record(outcome, trial, identity, context.workspace, self.run_dir, columns)
        clock.leave_out(time.perf_counter() - begin)


def _base_words_then_start(
    trial: Trial, workspace: Workspace, clock: Clock
) -> tuple[dict[str, EmphasisWords], TrialContext]:
    """What the base model goes by in each question, then the model that the trial starts from.

    In this order: a process has one model per folder, so asking base resets the very model that an
    unlearning trial trains. Asked later, it would take the training back.
    """
    emphasis: dict[str, EmphasisWords] = {}
    if trial.explain.documents > 0:
        base = base_context(trial, workspace)
        clock.lap("seconds_load")
        emphasis = emphasis_words(base)
        clock.lap("seconds_explain")
    context = start_context(trial, workspace)
    clock.lap("seconds_load")
    return emphasis, context


def _train(
    context: TrialContext,
    adapter_folder: Path,
    checkpoint: Path,
    clock: Clock,
    rungs: Rungs,
    way: Way,
) -> tuple[TrainLog, dict[str, Any], dict[str, Rows]]:
    """(what training did, columns of `trials`, rows by table); nothing is trained where the trial
    is of a model as it is.
    """
    trial = context.trial
    if trains_weights(trial):
        coreset, scores = select_documents(context)
        clock.lap("seconds_select")
        row, tables = _coreset_rows(context, coreset, scores)
        row["computed_in"] = products_of(context)
        # of the model as it is before it trains
        row["activation_length"] = activation_length(context)
        row["planned_steps"] = trial.train.n_steps(len(coreset))
        log = unlearn(
            context,
            coreset,
            adapter_folder,
            checkpoint=checkpoint,
            rungs=rungs,
            measured_at=way.measures(context, clock, row, tables),
        )
        row["note"] = training_note(trial, log, row["activation_length"])
        clock.lap("seconds_train")
        return log, row, tables
    is_base = trial.stage == "base" and bool(context.corpus.forget)
    return TrainLog((), "complete", 0), redundancy_columns(context) if is_base else {}, {}


def _measure(
    context: TrialContext, emphasis: Mapping[str, EmphasisWords], step: int, clock: Clock
) -> tuple[dict[str, Any], dict[str, Rows]]:
    """(columns of `trials`, rows by table) of the model as training left it: metrics, explanations
    and calibration.
    """
    trial, is_unlearned = context.trial, context.trial.stage == "unlearned"
    measured = measure_trial(context) if is_unlearned else measure_start(context)
    tables = label_measured(context, measured, stage=trial.stage, step=step)
    tables = merge_rows(tables, own_harness_tables(context, step))
    clock.lap("seconds_measure")
    # of the weights as training left them: a path ends with them, and looks at others before
    tables = merge_rows(tables, {"diagnostics": diagnostic_rows(context)})
    tables = merge_rows(tables, explanation_rows(context, emphasis, step=step))
    if trial.explain != Explain():
        clock.lap("seconds_explain")
    if not is_unlearned or trial.calibrate.tau == 0:
        return {}, tables
    columns, mixtures = calibrate_trial(context, measured, step=step)
    clock.lap("seconds_calibrate")
    return columns, merge_rows(tables, mixtures)


def merge_rows(tables: Mapping[str, Rows], more: Mapping[str, Rows]) -> dict[str, Rows]:
    """The rows of both, table by table."""
    return {name: [*tables.get(name, ()), *more.get(name, ())] for name in {**tables, **more}}


def _coreset_rows(
    context: TrialContext, coreset: Sequence[int], scores: Tensor
) -> tuple[dict[str, Any], dict[str, Rows]]:
    rows = [
        {
            "doc_id": context.corpus.forget[p].doc_id,
            "role": "forget",
            "rank": rank,
            "score": float(scores[p]),
        }
        for rank, p in enumerate(coreset)
    ]
    n_retained, retained = retained_rows(context)
    row = {"n_kept": len(coreset), "coverage": coverage(context.corpus, coreset)}
    row["n_retained"] = n_retained
    if coreset:
        row |= {
            "keyword_coverage": keyword_coverage_of(context, coreset),
            "text_kept": coreset_sequences(context, coreset)[2],
        }
    return row, {"coresets": [*rows, *retained]}


def _cost_row(log: TrainLog, model: PreTrainedModel, n_kept: int) -> dict[str, Any]:
    total = sum(p.numel() for p in model.parameters())
    tokens = sum(r.tokens for r in log.rows)
    return {
        "optimizer_steps": len(log.rows),
        "kept_step": len(log.rows) if log.kept_step is None else log.kept_step,
        "presentations": log.presentations,
        "epochs": log.presentations / n_kept,
        "tokens": tokens,
        "flops": 6.0 * total * tokens,
        "parameters_total": total,
        "parameters_trained": log.parameters_trained,
        "packed": can_pack(model),
    }
