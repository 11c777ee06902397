"""One trial, start to end: reset the model, choose the coreset, unlearn, measure, write. No Ray in
here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayunlearn.calibration import calibrated
from rayunlearn.config import Trial, flatten, trial_id
from rayunlearn.coreset import keyword_coverage_of, pick, redundancy, written
from rayunlearn.data.documents import Corpus
from rayunlearn.explanation import explained, focus_of
from rayunlearn.measuring import examples_at_start, examples_of, labelled
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.view import needs
from rayunlearn.models.memory import device_lock, forget_peak, with_room
from rayunlearn.provenance import Clock, failure_row, machine
from rayunlearn.results.store import write_trial
from rayunlearn.schema import FINISHED
from rayunlearn.train.checkpoint import removed
from rayunlearn.train.loop import TrainLog
from rayunlearn.unlearning import norms_along, unlearn
from rayunlearn.worker import Loaded, SpoiltWorkerError, reset
from rayunlearn.workspace import Workspace, measured_digest, start_of, trains

Rows = list[dict[str, Any]]
STATUS = {
    "complete": "complete",
    "stopped": "collapsed",
    "diverged": "diverged",
    "held": "complete",
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
) -> str:
    """Run one trial and write its rows; returns the status. An exception becomes a row with status
    `failed`.

    Raises SpoiltWorkerError, and writes nothing, when this process can no longer be trusted:
    another one must run it.
    """
    identity = trial_id(
        trial, workspace.corpus.digest, measured_digest(trial, workspace.base_digest)
    )
    checkpoint = run_dir / "checkpoints" / f"{identity}.safetensors"
    attempt = partial(
        _seeded_attempt, trial, workspace, run_dir / "adapters" / identity, checkpoint
    )
    status = recorded(
        attempt,
        trial,
        identity,
        workspace,
        run_dir,
        {"experiment": experiment, "version": version, "commit": commit},
    )
    # a failed trial runs again, and goes on from there
    if status in FINISHED:
        removed(checkpoint)
    return status


def recorded(
    attempt: Callable[[], Outcome],
    trial: Trial,
    identity: str,
    workspace: Workspace,
    run_dir: Path,
    place: Mapping[str, str],
) -> str:
    """Make the attempt and write what came of it as the trial `identity`, whose rows begin with
    `place`; returns the status.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        outcome = with_room(attempt, device_lock())
    except SpoiltWorkerError:
        raise
    # a failure is a row, with its cause
    except Exception as error:
        outcome = Outcome("failed", failure_row(error), {})
    row: dict[str, Any] = {**place, "status": outcome.status, "started_at": started}
    row |= {
        "corpus_digest": workspace.corpus.digest,
        "model_digest": workspace.base_digest,
        "n_forget": len(workspace.corpus.forget),
    }
    tables = outcome.tables | {"trials": [row | machine() | outcome.row]}
    write_trial(
        run_dir,
        identity,
        {name: [{"trial_id": identity} | r for r in rows] for name, rows in tables.items()},
        flatten(trial),
    )
    return outcome.status


def _seeded_attempt(
    trial: Trial, workspace: Workspace, adapter_folder: Path, checkpoint: Path
) -> Outcome:
    forget_peak()
    with torch.random.fork_rng():
        torch.manual_seed(trial.train.seed)
        return _attempt(trial, workspace, adapter_folder, checkpoint)


def _attempt(trial: Trial, workspace: Workspace, adapter_folder: Path, checkpoint: Path) -> Outcome:
    clock = Clock()
    path = start_of(trial, workspace)
    focus = focus_of(trial, workspace)
    state = reset(path)
    clock.lap("seconds_load")
    log = TrainLog((), "complete", 0)
    row: dict[str, Any] = {}
    tables: dict[str, Rows] = {}
    if trains(trial):
        kept, scores = select(trial, workspace, state)
        clock.lap("seconds_select")
        row, tables = _coreset_rows(trial, workspace, state, kept, scores)
        log = unlearn(trial, workspace, state, kept, adapter_folder, checkpoint=checkpoint)
        clock.lap("seconds_train")
    elif trial.stage == "base" and workspace.corpus.forget:
        row = redundancy(trial, workspace, state)
    row |= _cost_row(log, state.model, max(1, row.get("n_kept", 1)))
    tables["steps"] = [asdict(r) for r in log.rows]
    status = STATUS[log.ended]
    if status != "diverged":
        examples = (examples_of if trial.stage == "unlearned" else examples_at_start)(
            trial, workspace, state
        )
        measured = labelled(trial, workspace, examples, stage=trial.stage, step=len(log.rows))
        tables = joined(
            tables | measured, explained(trial, workspace, state, focus, step=len(log.rows))
        )
        clock.lap("seconds_measure")
        if trial.stage == "unlearned" and trial.calibrate.tau > 0:
            more, mixtures = calibrated(
                trial, workspace, state, measured["examples"], step=len(log.rows)
            )
            row, tables = row | more, joined(tables, mixtures)
            clock.lap("seconds_calibrate")
    return Outcome(status, row | clock.laps, tables)


def joined(tables: Mapping[str, Rows], more: Mapping[str, Rows]) -> dict[str, Rows]:
    """The rows of both, table by table."""
    return {name: [*tables.get(name, ()), *more.get(name, ())] for name in {**tables, **more}}


def select(trial: Trial, workspace: Workspace, state: Loaded) -> tuple[list[int], Tensor]:
    """`coreset.pick`; a trial whose forget loss looks at no document (the retain-only control)
    keeps none.
    """
    if not needs(FORGET[trial.method.forget].function):
        return [], torch.zeros(len(workspace.corpus.forget))
    return pick(trial, workspace, state, partial(norms_along, trial, workspace, state))


def coverage(corpus: Corpus, kept: Sequence[int]) -> float | None:
    """Share of the forget set's facts that at least one kept document states; None where no facts
    are known.
    """
    facts = {fact for d in corpus.forget for fact in d.facts}
    covered = {fact for p in kept for fact in corpus.forget[p].facts}
    return len(covered) / len(facts) if facts else None


def _coreset_rows(
    trial: Trial, workspace: Workspace, state: Loaded, kept: Sequence[int], scores: Tensor
) -> tuple[dict[str, Any], dict[str, Rows]]:
    rows = [
        {"doc_id": workspace.corpus.forget[p].doc_id, "rank": rank, "score": float(scores[p])}
        for rank, p in enumerate(kept)
    ]
    row = {"n_kept": len(kept), "coverage": coverage(workspace.corpus, kept)}
    if kept:
        row |= {
            "keyword_coverage": keyword_coverage_of(trial, workspace, state, kept),
            "text_kept": written(trial, workspace, state, kept)[2],
        }
    return row, {"coresets": rows}


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
    }
