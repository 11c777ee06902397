"""One trial, start to end: reset the model, choose the coreset, unlearn, measure, write. No Ray in here."""

import json
import os
import platform
import resource
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import polars as pl
import torch
from filelock import FileLock
from torch import Tensor
from transformers import PreTrainedModel

from rayunlearn.config import Data, Trial, digest, flatten, trial_id
from rayunlearn.data.documents import Corpus
from rayunlearn.data.encode import Encoded, encode
from rayunlearn.errors import require
from rayunlearn.families import arguments_of
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.objective import objective
from rayunlearn.methods.retain import RETAIN
from rayunlearn.methods.view import needs
from rayunlearn.metrics.measure import Probe, encode_probes, mean_probability, measure
from rayunlearn.models.forward import pooled_states, score
from rayunlearn.models.reference import Reference, reference_of
from rayunlearn.results.analysis import summarise
from rayunlearn.results.store import write_table, write_trial
from rayunlearn.selectors.selectors import SELECTORS, keep
from rayunlearn.train.loop import TrainLog, optimise
from rayunlearn.worker import Loaded, remembered, reset
from rayunlearn.workspace import Workspace

Rows = list[dict[str, Any]]
UTILITY_PROBES = 64  # retain probes that watch utility during training; a rung, not a result
PACKAGES = ("rayunlearn", "torch", "transformers", "ray", "optuna", "polars", "pyarrow")
STATUS = {"complete": "complete", "stopped": "collapsed", "diverged": "diverged"}


@dataclass(frozen=True)
class Outcome:
    """What became of a trial: its status, its row so far and the rows of the other tables."""

    status: str
    row: dict[str, Any]
    tables: dict[str, Rows]


def run_trial(trial: Trial, workspace: Workspace, run_dir: Path, experiment: str, version: str, commit: str = "") -> str:
    """Run one trial and write its rows; returns the status. An exception becomes a row with status `failed`."""
    identity = trial_id(trial, workspace.corpus.digest, workspace.base_digest)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        with torch.random.fork_rng():
            torch.manual_seed(trial.train.seed)
            outcome = _attempt(trial, workspace)
    except Exception as error:  # a failure is a row, with its cause
        outcome = Outcome("failed", failure_row(error), {})
    row = {"experiment": experiment, "version": version, "status": outcome.status, "started_at": started, "commit": commit}
    row |= {"corpus_digest": workspace.corpus.digest, "model_digest": workspace.base_digest, "n_forget": len(workspace.corpus.forget)}
    tables = outcome.tables | {"trials": [row | _machine() | outcome.row]}
    write_trial(run_dir, identity, {name: [{"trial_id": identity} | r for r in rows] for name, rows in tables.items()}, flatten(trial))
    return outcome.status


def _attempt(trial: Trial, workspace: Workspace) -> Outcome:
    clock = _Clock()
    path = workspace.gold if trial.stage == "gold" else workspace.base
    require(bool(path), "stage 'gold' needs a gold model (model.teach, or model.gold)", path)
    state = reset(path)
    clock.lap("seconds_load")
    log, row, tables = TrainLog((), "complete", 0), {}, {}
    if trial.stage == "unlearned":
        kept, scores = select(trial, workspace, state)
        clock.lap("seconds_select")
        log = unlearn(trial, workspace, state, kept)
        clock.lap("seconds_train")
        row, tables = _coreset_rows(workspace.corpus, kept, scores)
    row |= _cost_row(log, state.model, max(1, row.get("n_kept", 1)))
    tables["steps"] = [asdict(r) for r in log.rows]
    status = STATUS[log.ended]
    if status != "diverged":
        examples = measure(state.model, _probes(workspace, state, trial.data), state.pad_id)
        tables["examples"] = [{"stage": trial.stage, "attack": "none"} | e for e in examples]
        tables["evals"] = [{"step": len(log.rows)} | e for e in summarise(pl.DataFrame(tables["examples"], infer_schema_length=None)).to_dicts()]
        clock.lap("seconds_measure")
    return Outcome(status, row | clock.laps, tables)


def select(trial: Trial, workspace: Workspace, state: Loaded) -> tuple[list[int], Tensor]:
    """Positions in corpus.forget of the coreset, best first, and the score of every forget document.

    `state` must hold the base weights. Documents are scored in the order of their doc_id. A trial whose forget loss
    looks at no document (the retain-only control) keeps none.
    """
    if not needs(FORGET[trial.method.forget].function):
        return [], torch.zeros(len(workspace.corpus.forget))
    ids = [d.doc_id for d in workspace.corpus.forget]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    ordered = _scores(trial, workspace, state, order)
    kept = [order[p] for p in keep(ordered, trial.select.ratio)]
    scores = torch.empty(len(order))
    scores[order] = ordered
    return kept, scores


def _scores(trial: Trial, workspace: Workspace, state: Loaded, order: Sequence[int]) -> Tensor:
    function = SELECTORS[trial.select.name].function
    arguments = arguments_of(trial, function)
    given = {name: _selector_input(name, trial, workspace, state, order) for name in needs(function)}
    if set(given) <= {"n_documents", "seed"}:
        return function(**given, **arguments)
    settings = {**arguments, **({"seed": trial.select.seed} if "seed" in given else {}), "template": trial.data.template, "max_tokens": trial.data.max_tokens}
    path = workspace.cache / "scores" / f"{digest([workspace.corpus.digest, workspace.base_digest, trial.select.name, settings])}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            values = function(**{n: v() if callable(v) else v for n, v in given.items()}, **arguments)
            _write_scores(path, trial, workspace, [workspace.corpus.forget[p].doc_id for p in order], values)
    values_by_id = dict(pl.read_parquet(path).select("doc_id", "value").iter_rows())
    return torch.tensor([values_by_id[workspace.corpus.forget[p].doc_id] for p in order])


def _selector_input(name: str, trial: Trial, workspace: Workspace, state: Loaded, order: Sequence[int]) -> Any:
    """The value of a cheap input; for one that takes a pass over the corpus, the function that makes it."""
    forget, _ = _training_sequences(workspace, state, trial.data)
    ordered = [forget[p] for p in order]
    penultimate = max(0, state.model.config.num_hidden_layers - 2)
    inputs: dict[str, Any] = {
        "n_documents": len(order),
        "seed": trial.select.seed,
        "token_nll": lambda: [s.token_nll for s in score(state.model, ordered, state.pad_id)],
        "embeddings": lambda: pooled_states(state.model, ordered, state.pad_id, penultimate),
    }
    return inputs[name]


def _write_scores(path: Path, trial: Trial, workspace: Workspace, ids: Sequence[str], values: Tensor) -> None:
    fixed = {"corpus_digest": workspace.corpus.digest, "model_digest": workspace.base_digest, "scorer": trial.select.name}
    write_table(path, "scores", [fixed | {"doc_id": i, "value": float(v)} for i, v in zip(ids, values, strict=True)])


def unlearn(trial: Trial, workspace: Workspace, state: Loaded, kept: Sequence[int]) -> TrainLog:
    """Train `state.model` away from the kept documents, as the trial says."""
    forget, retain = _training_sequences(workspace, state, trial.data)
    forget_loss, retain_loss = (_bound(trial, table[name].function) for table, name in ((FORGET, trial.method.forget), (RETAIN, trial.method.retain)))
    layer = trial.method.layer
    references = [_reference(workspace, state, role, sequences, loss, layer) for role, sequences, loss in (("forget", forget, forget_loss), ("retain", retain, retain_loss))]
    loss_of_step = objective(
        state.model,
        [forget[p] for p in kept],
        retain,
        forget_loss=forget_loss,
        retain_loss=retain_loss,
        retain_weight=trial.method.retain_weight,
        forget_reference=references[0],
        retain_reference=references[1],
        layer=layer,
        batch_size=trial.train.batch_size,
        pad_id=state.pad_id,
        seed=trial.train.seed,
    )
    settings = {name: getattr(trial.train, name) for name in ("learning_rate", "schedule", "warmup_fraction", "weight_decay", "max_grad_norm", "parameters")}
    steps = n_steps(trial, len(kept))
    return optimise(state.model, loss_of_step, steps=steps, check_every=trial.stop.check_every, keep_going=_utility_watch(trial, workspace, state), **settings)


def n_steps(trial: Trial, n_kept: int) -> int:
    """Optimizer steps of a trial: `train.length` in steps, epochs of the coreset or presentations of a document."""
    length, unit = trial.train.length, trial.train.unit
    presentations = {"steps": length * trial.train.batch_size, "epochs": length * n_kept, "presentations": length}[unit]
    return max(1, round(presentations / trial.train.batch_size)) if length > 0 else 0


def _utility_watch(trial: Trial, workspace: Workspace, state: Loaded) -> Callable[[int], bool] | None:
    watched = [p for p in _probes(workspace, state, trial.data) if p.split == "retain"][:UTILITY_PROBES]
    if trial.stop.utility_floor == 0 or not watched:
        return None
    floor = trial.stop.utility_floor * remembered(state, ("utility", workspace.corpus.digest), lambda: mean_probability(state.model, watched, state.pad_id))
    return lambda _step: mean_probability(state.model, watched, state.pad_id) >= floor


def _bound(trial: Trial, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return partial(function, **arguments_of(trial, function))


def _reference(workspace: Workspace, state: Loaded, role: str, sequences: Sequence[Encoded], loss: Callable[..., Tensor], layer: int) -> Reference:
    kinds = tuple(name.removeprefix("reference_") for name in needs(loss) if name.startswith("reference_"))
    key = ("reference", workspace.corpus.digest, role, kinds, layer if "hidden" in kinds else 0)
    reference: Reference = remembered(state, key, lambda: reference_of(state.model, sequences, state.pad_id, kinds, layer))
    return reference


def _training_sequences(workspace: Workspace, state: Loaded, data: Data) -> tuple[list[Encoded], list[Encoded]]:
    encoder = partial(encode, tokenizer=state.tokenizer, template=data.template, max_tokens=data.max_tokens)
    key = ("train", workspace.corpus.digest, data.template, data.max_tokens)
    pair: tuple[list[Encoded], list[Encoded]] = remembered(state, key, lambda: (encoder(workspace.corpus.forget), encoder(workspace.corpus.retain)))
    return pair


def _probes(workspace: Workspace, state: Loaded, data: Data) -> list[Probe]:
    key = ("probes", workspace.corpus.digest, data.template, data.max_tokens)
    probes: list[Probe] = remembered(state, key, lambda: encode_probes(workspace.corpus.probes, state.tokenizer, data.template, data.max_tokens))
    return probes


def coverage(corpus: Corpus, kept: Sequence[int]) -> float | None:
    """Share of the forget set's facts that at least one kept document states; None where no facts are known."""
    facts = {fact for d in corpus.forget for fact in d.facts}
    covered = {fact for p in kept for fact in corpus.forget[p].facts}
    return len(covered) / len(facts) if facts else None


def _coreset_rows(corpus: Corpus, kept: Sequence[int], scores: Tensor) -> tuple[dict[str, Any], dict[str, Rows]]:
    rows = [{"doc_id": corpus.forget[p].doc_id, "rank": rank, "score": float(scores[p])} for rank, p in enumerate(kept)]
    return {"n_kept": len(kept), "coverage": coverage(corpus, kept)}, {"coresets": rows}


def _cost_row(log: TrainLog, model: PreTrainedModel, n_kept: int) -> dict[str, Any]:
    total = sum(p.numel() for p in model.parameters())
    tokens = sum(r.tokens for r in log.rows)
    return {
        "optimizer_steps": len(log.rows),
        "presentations": log.presentations,
        "epochs": log.presentations / n_kept,
        "tokens": tokens,
        "flops": 6.0 * total * tokens,
        "parameters_total": total,
        "parameters_trained": sum(p.numel() for p in model.parameters() if p.requires_grad) if log.rows else 0,
    }


def failure_row(error: BaseException) -> dict[str, Any]:
    """error_type, error and error_where of an exception; `where` is the deepest frame."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return {"error_type": type(error).__name__, "error": str(error)[:2000], "error_where": where}


def _machine() -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    hardware = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU, {os.cpu_count()} cores"
    return {"packages": json.dumps(installed_versions()), "hardware": hardware, "host": socket.gethostname(), "peak_memory_bytes": peak}


def installed_versions() -> dict[str, str]:
    """Versions of the packages that could change a number; 'absent' where one is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return package_version(name)
    except PackageNotFoundError:
        return "absent"


class _Clock:
    """Seconds since the last lap, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now
