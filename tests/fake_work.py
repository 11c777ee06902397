"""Work without torch for tests of the sweep: trials take a moment, write real rows, and fail when
told to.

What a trial does is said by its own settings, so that nothing has to be handed to the workers:
train.batch_size 2 raises inside the trial (a `failed` row), 3 collapses, 4 kills its worker the
first time, 5 kills it every time, 6 is measured as NaN, 7 kills it the first time when the row is
written; train.warmup_fraction is how long it takes, in seconds.
"""

import os
import signal
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rayunlearn.config import NO_RUNGS, Rungs, Train, Trial, Value, digest, flatten
from rayunlearn.planning.backend import OnPrepared, TrialBackend
from rayunlearn.planning.gpu_memory import GpuMemory
from rayunlearn.planning.outcomes import DocumentValues, TrialResult
from rayunlearn.storage.run import write_trial
from rayunlearn.trial.time_limit import TrialTimeoutError, time_limit

# of a trial
STEPS = int(Train.length)
OPTIONS: dict[str, dict[str, Value]] = {
    "npo": {"npo.beta": 0.1},
    "rmu": {"rmu.steering": 5.0},
    "none": {},
}


@dataclass(frozen=True)
class FakeCorpus:
    """No documents, none rejected."""

    digest: str = "corpus"
    name: str = "fake"
    files: tuple[object, ...] = ()
    rejected: tuple[object, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FakeWorkspace:
    """What the fake trials are given: who it was prepared for."""

    corpus: FakeCorpus
    base_digest: str
    seed: int


@dataclass(frozen=True)
class FakeMetric:
    """A metric row as experiment.json wants it."""

    title: str = "made up"
    unit: str = "fraction"
    low: float = 0.0
    high: float = 1.0
    direction: str = "higher"
    chance: str = ""
    compares: bool = False


def check(trial: Trial) -> Trial:
    """Options of the chosen forget loss, defaults filled in."""
    filled = {
        name: dict(trial.options).get(name, default)
        for name, default in OPTIONS[trial.method.forget].items()
    }
    return replace(trial, options=tuple(sorted(filled.items())))


def identify(trial: Trial) -> str:
    """A digest of the settings; data here has no content."""
    return digest(flatten(trial))


def missing(trial: Trial, cache: Path) -> tuple[str, ...]:
    """Roles whose marker file is not there yet."""
    return tuple(
        role for role in ("base", "gold") if not (cache / f"{role}-{trial.data.seed}").exists()
    )


def prepare(trial: Trial, cache: Path, progress: OnPrepared, roles: tuple[str, ...]) -> None:
    """Leave a marker per role; made twice is an error."""
    cache.mkdir(parents=True, exist_ok=True)
    for role in roles:
        for step in range(3):
            progress(role, step, 3)
        (cache / f"{role}-{trial.data.seed}").open("x").close()


def workspace(trial: Trial, cache: Path) -> FakeWorkspace:
    """The workspace of the trial's data: of a file its content counts."""
    corpus = (
        FakeCorpus(digest(Path(trial.data.path).read_text())) if trial.data.path else FakeCorpus()
    )
    return FakeWorkspace(corpus, "weights", trial.data.seed)


def metrics() -> dict[str, FakeMetric]:
    """One metric."""
    return {"probability": FakeMetric()}


def run(
    trial: Trial,
    space: FakeWorkspace,
    run_dir: Path,
    experiment: str,
    version: str,
    commit: str,
    trial_hours: float = 0.0,
    rungs: Rungs = NO_RUNGS,
) -> str:
    """One made-up trial; every start is noted in `started`, one line per start: trial, process,
    moment, GPUs, machine. `trial_hours` end its sleep, as they end a trial. Where
    `rungs.until` is below 1 it pauses there, and leaves a file in place of a checkpoint.
    """
    identity = identify(trial)
    with (run_dir / "started").open("a") as file:
        file.write(f"{identity} {os.getpid()} {time.time():.3f} {assigned_gpus():g} {machine()}\n")
    begin, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    try:
        with time_limit(trial_hours):
            time.sleep(trial.train.warmup_fraction)
        status = status_of(trial) if rungs.until == 1 else "paused"
    except TrialTimeoutError:
        status = "timed_out"
    if trial.data.seed != space.seed:
        raise RuntimeError("the workspace of another corpus")
    starts = (run_dir / "started").read_text().count(identity)
    if trial.train.batch_size == 5 or (trial.train.batch_size == 4 and starts == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    row = {
        "experiment": experiment,
        "version": version,
        "status": status,
        "commit": commit,
        "started_at": started,
        "seconds": time.monotonic() - begin,
        "corpus_digest": space.corpus.digest,
        "planned_steps": STEPS,
        "rung": rungs.until if status == "paused" else None,
    }
    checkpoint = run_dir / "checkpoints" / f"{identity}.safetensors"
    if status == "paused":
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.touch()
    else:
        checkpoint.unlink(missing_ok=True)
    is_measured = status not in ("failed", "timed_out", "paused")
    tables = {
        "trials": [row],
        "curves": curves(trial, rungs) if trial.stage == "unlearned" else [],
        "evals": evals(trial) if is_measured else [],
        "examples": examples(trial) if is_measured else [],
    }
    write_trial(run_dir, identity, tables, flatten(trial))
    if trial.train.batch_size == 7 and starts == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return status


def status_of(trial: Trial) -> str:
    """How a trial ends that ends."""
    by_batch_size = {2: "failed", 3: "collapsed"} if trial.stage == "unlearned" else {}
    return by_batch_size.get(trial.train.batch_size, "complete")


def machine() -> str:
    """Ray's name of the machine that this process is on, '-' without Ray."""
    ray = sys.modules.get("ray")
    return (
        str(ray.get_runtime_context().get_node_id())
        if ray is not None and ray.is_initialized()
        else "-"
    )


def assigned_gpus() -> float:
    """GPUs that Ray gave this worker, 0 in the test's own process (a driver is given none)."""
    ray = sys.modules.get("ray")
    at_work = (
        ray is not None
        and ray.is_initialized()
        and ray.get_runtime_context().worker.mode == ray.WORKER_MODE
    )
    return (
        float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0))
        if at_work
        else 0.0
    )


def room(trials: Sequence[Trial], run: Path) -> GpuMemory:
    """A GiB for each document of the largest batch."""
    return GpuMemory(
        peak=max(trial.train.batch_size for trial in trials if trial.stage == "unlearned") * 2**30,
        trial="fake",
        source="made up",
    )


def divide(trial: Trial, processes: int) -> None:
    """Any trial goes."""


def gpu_bytes() -> int:
    """A GPU of 8 GiB."""
    return 8 * 2**30


def result_of(trial: Trial) -> TrialResult:
    """What the plan is told of a trial that is measured."""
    forget, retain = (float(str(row["value"])) for row in evals(trial))
    documents = DocumentValues(("d",), array("d", [forget]))
    return TrialResult("complete", forget, retain, documents=documents)


def curves(trial: Trial, rungs: Rungs = NO_RUNGS) -> list[dict[str, object]]:
    """Straight lines from base to what the trial ends with, a point for each look."""
    ends = [float(str(row["value"])) for row in evals(trial)]
    last = rungs.pause_step(STEPS) or STEPS
    looks = {*range(0, STEPS + 1, trial.stop.check_every), *rungs.steps(STEPS)}
    return [
        {"kind": "training", "x": float(step), "metric": "probability", "n": 1}
        | {"split": split, "value": start + (end - start) * step / STEPS}
        for step in sorted(looks)
        if step <= last
        for split, start, end in zip(("forget", "retain"), (0.99, 1.0), ends, strict=True)
    ]


def examples(trial: Trial) -> list[dict[str, object]]:
    """One forget document, with the value of the corpus."""
    row = evals(trial)[0]
    names = ("stage", "attack", "split", "metric", "value")
    return [{"doc_id": "d", **{name: row[name] for name in names}}]


def evals(trial: Trial) -> list[dict[str, object]]:
    """Forgetting falls with the learning rate, utility breaks down above 1e-3; gold knows
    nothing.
    """
    rate = trial.train.learning_rate
    forget, retain = (
        (1 / (1 + 1e4 * rate), 0.95 if rate < 1e-3 else 0.5)
        if trial.stage == "unlearned"
        else (0.0 if trial.stage == "gold" else 0.99, 1.0)
    )
    forget = float("nan") if trial.train.batch_size == 6 and trial.stage == "unlearned" else forget
    fixed = {"stage": trial.stage, "attack": "none", "step": 1, "metric": "probability", "n": 1}
    return [
        fixed | {"split": "forget", "value": forget},
        fixed | {"split": "retain", "value": retain},
    ]


def fake_work() -> TrialBackend:
    """The work that tests inject."""
    return TrialBackend(
        check=check,
        identify=identify,
        missing=missing,
        prepare=prepare,
        workspace=workspace,
        run=run,
        metrics=metrics,
        divide=divide,
        gpu_memory_of=room,
        gpu_bytes=gpu_bytes,
    )
