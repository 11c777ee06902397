"""What is left to do and what it will take: the numbers behind `rayunlearn plan`, without Ray."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rayunlearn.config import Data, Model, Trial, rounded_share
from rayunlearn.errors import require
from rayunlearn.planning.outcomes import TrialResult
from rayunlearn.planning.planner import Agenda, PlannedTrial
from rayunlearn.schema import PAUSED, SECONDS_BY_PART

# The rule of thumb, used until this run has a finished trial of its own.
# one CPU thread on small matrices, as measured on the embedded synthetic dataset
FLOP_PER_SECOND = 2e10

# ours: 40% of the 312e12 that an A100's data sheet gives for bfloat16
GPU_FLOP_PER_SECOND = 1.2e14

GPU_RULE = (
    f"a rule of thumb: 6 x parameters x tokens at {GPU_FLOP_PER_SECOND:.1e} FLOP/s; loading and"
    " measuring come on top"
)

# resetting the model, scoring the forget set, the metrics
FIXED_SECONDS = 1.0

# interpreter, torch, transformers and Ray in one worker
FIXED_BYTES = 600 * 2**20

# the driver and a private cluster of Ray beside the workers (measured, shared pages counted once)
DRIVER_BYTES = 1100 * 2**20

# of the weights in float32: model, pristine copy, gradients, two moments of AdamW, a reference or
# activations
COPIES = 6


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """Seconds per trial and bytes per worker, and in `source` where they come from."""

    seconds: float
    bytes: float
    source: str


@dataclass(frozen=True, kw_only=True)
class WorkloadSize:
    """What a trial's cost depends on. A token is taken to be a word, which is short for subword
    models.
    """

    parameters: float
    tokens_per_document: float
    n_forget: int


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """Trials that differ in seed or in tuned values only."""

    role: str
    method: str
    selector: str
    ratio: float
    group: str
    planned: int
    finished: int


def planned_cells(agenda: Agenda, results: Mapping[str, TrialResult]) -> tuple[PlannedCell, ...]:
    """The plan, one row per cell: known trials and, where their settings still depend on tuning,
    expected ones.

    A trial that serves twice (the tuning winner is a cell of the grid) is counted in both cells.
    """
    counted: dict[tuple[str, str, str, float, str], dict[str, bool]] = {}
    lengths: Counter[tuple[str, str, str, float, str]] = Counter()
    for row in (*agenda.rows, *agenda.expected):
        key = _cell_key(row)
        result = results.get(row.trial_id)
        counted.setdefault(key, {})[row.trial_id] = result is not None and result.status != PAUSED
        if row.role == "tuning":
            lengths[key] = max(lengths[key], agenda.studies.get(row.group, 0))
    return tuple(
        _cell(key, list(done.values()), at_least=lengths[key]) for key, done in counted.items()
    )


def estimate(
    run: Path, agenda: Agenda, *, size_of: Callable[[Trial], WorkloadSize]
) -> CostEstimate:
    """From this run's own finished trials where there are any, else 6 x parameters x tokens at a
    stated speed.

    `size_of` may raise UserError for a model that is not on this machine.
    """
    measured = _measured(run)
    if measured is not None:
        return measured
    trials = [
        row.trial for row in (*agenda.rows, *agenda.expected) if row.trial.stage == "unlearned"
    ]
    sizes = [size_of(trial) for trial in trials]
    seconds = [
        FIXED_SECONDS + 6 * size.parameters * tokens_of_trial(trial, size) / FLOP_PER_SECOND
        for trial, size in zip(trials, sizes, strict=True)
    ]
    largest = max(size.parameters for size in sizes)
    rule = (
        f"a rule of thumb: 6 x {largest:.3g} parameters x tokens at {FLOP_PER_SECOND:.0e} FLOP/s"
        f" per worker, + {FIXED_SECONDS:g} s"
    )
    return CostEstimate(
        seconds=sum(seconds) / len(seconds), bytes=FIXED_BYTES + COPIES * 4 * largest, source=rule
    )


def gpu_hours(agenda: Agenda, n_left: int, *, size_of: Callable[[Trial], WorkloadSize]) -> float:
    """Hours of one GPU that training the `left` trials of a plan takes by `GPU_RULE`, each as the
    mean of those whose settings are known.
    """
    trials = {
        row.trial_id: row.trial
        for row in (*agenda.rows, *agenda.expected)
        if row.trial.stage == "unlearned"
    }.values()
    sizes = [(trial, size_of(trial)) for trial in trials]
    seconds = [
        6 * size.parameters * tokens_of_trial(trial, size) / GPU_FLOP_PER_SECOND
        for trial, size in sizes
    ]
    return n_left * sum(seconds) / max(1, len(seconds)) / 3600


def tokens_of_trial(trial: Trial, size: WorkloadSize) -> float:
    """Tokens of all of a trial's forget and retain batches."""
    documents = trial.train.n_presentations(rounded_share(trial.select.ratio, size.n_forget))
    sides = (trial.method.forget != "none") + (trial.method.retain != "none")
    return documents * sides * min(size.tokens_per_document, trial.data.max_tokens)


def size_of(trial: Trial) -> WorkloadSize:
    """The size of a trial's model and documents, without loading weights."""
    return _size_of(trial.data, trial.model)


@lru_cache(maxsize=64)
def _size_of(data: Data, model: Model) -> WorkloadSize:
    from rayunlearn.trial.identity import corpus_of

    forget = corpus_of(data, model).forget
    words = sum(len(f"{document.prompt} {document.answer}".split()) for document in forget)
    return WorkloadSize(
        parameters=parameters_of(model),
        tokens_per_document=words / len(forget),
        n_forget=len(forget),
    )


def parameters_of(model: Model) -> float:
    """Parameters of a model built here (from its shape, with 2,000 words) or in a folder (from its
    safetensors headers).

    Raises UserError for a model that is not on this machine.
    """
    if model.name == "scratch":
        from rayunlearn.models.scratch import SHAPES

        shape = SHAPES[model.size]
        return (
            shape.blocks * (4 * shape.width**2 + 3 * shape.width * shape.inner) + 2000 * shape.width
        )
    files = sorted(Path(model.name).glob("*.safetensors"))
    require(
        bool(files),
        "time and memory can be estimated for a model folder on this machine only",
        model.name,
    )
    return float(sum(_elements(file) for file in files))


def _elements(file: Path) -> int:
    """Numbers in a safetensors file: its header says every tensor's shape. (Format: 8 bytes of
    length, then JSON.)
    """
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return sum(
        math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"
    )


def _cell_key(row: PlannedTrial) -> tuple[str, str, str, float, str]:
    trial = row.trial
    if trial.stage != "unlearned":
        return (row.role, "", "", math.nan, f"data.name={trial.data.name}")
    forget = "retain only" if trial.method.forget == "none" else trial.method.forget
    group = ", ".join(
        f"{name}={value}"
        for name, value in json.loads(row.group).items()
        if not name.startswith(("method.", "select."))
    )
    return (
        row.role,
        f"{forget} + {trial.method.retain}",
        trial.select.name,
        trial.select.ratio,
        group,
    )


def _cell(key: tuple[str, str, str, float, str], done: list[bool], *, at_least: int) -> PlannedCell:
    role, method, selector, ratio, group = key
    return PlannedCell(
        role=role,
        method=method,
        selector=selector,
        ratio=ratio,
        group=group,
        planned=max(len(done), at_least),
        finished=sum(done),
    )


def _measured(run: Path) -> CostEstimate | None:
    import polars as pl

    from rayunlearn.storage.run import finished_ids, open_run

    if not finished_ids(run):
        return None
    seconds = pl.sum_horizontal(SECONDS_BY_PART)
    trained = open_run(run).trials.filter(
        (pl.col("stage") == "unlearned") & (pl.col("status") != "failed")
    )
    row = (
        trained.select(
            seconds.mean().alias("seconds"),
            pl.col("peak_memory_bytes").max().alias("bytes"),
            pl.len().alias("n"),
        )
        .collect()
        .row(0, named=True)
    )
    if not row["n"] or row["seconds"] is None:
        return None
    return CostEstimate(
        seconds=row["seconds"],
        bytes=float(row["bytes"] or FIXED_BYTES),
        source=f"the mean of this run's {row['n']} finished trials",
    )
