"""The same short trials three ways: 20 processes, one worker of rayunlearn, `rayunlearn run` with
Ray and all.

The plain side is generous: its processes run rayunlearn's own trial, only that each starts from
nothing (imports, the model from disk, encoding, references, an empty cache), as a script per trial
does.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from rayunlearn.config import Data
from rayunlearn.data.synthetic import generate_dataset
from rayunlearn.models.load import save_model
from rayunlearn.models.scratch import build_model, build_tokenizer
from rayunlearn.storage.run import open_run
from rayunlearn.train.teach import training_texts

ROOT = Path(__file__).parents[1]
VALUES = {
    "model.teach": False,
    "train.length": 20,
    "train.batch_size": 4,
    "method.layer": 1,
    "stop.utility_floor": 0.0,
}
WORKER = """
import json, sys, torch
from pathlib import Path
from rayunlearn.config import Trial, with_values
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.workspace import validate_trial, workspace_of
torch.set_num_threads(1)
for values in json.loads(sys.argv[1]):
    trial, folder = validate_trial(with_values(Trial(), values)), Path(sys.argv[2])
    workspace = workspace_of(trial, folder / "cache")
    print(run_trial(trial, workspace, folder / "run", "benchmark", "1"))
"""
EXPERIMENT = '''"""Twenty short trials."""
from rayunlearn.config import Trial, with_values
from rayunlearn.experiment import Budget
BASE = with_values(Trial(), {values})
AXES = {{"train.learning_rate": {rates}}}
SEARCH = {{}}
BUDGET = Budget(tuning="none")
'''


def trial_rows(n_trials: int, repeats: int) -> list[dict[str, Any]]:
    """One row per way: trials, wall and CPU seconds, and how many times longer processes take per
    trial.

    The processes run once each, one after another; `n_trials` of them are their own repetition, and
    the ratios are taken to the fastest of them. The other ways run `repeats` times. The worker is
    one process like each of them; Ray has as many workers as the machine has cores, so with c cores
    a c-th of its ratio is what is left beside c processes at a time.
    """
    with tempfile.TemporaryDirectory() as folder:
        base = model_folder(Path(folder) / "base")
        trials = [
            VALUES | {"model.name": str(base), "train.learning_rate": rate}
            for rate in _rates(n_trials)
        ]
        processes = [
            _worker([trial], Path(folder) / f"process{at}") for at, trial in enumerate(trials)
        ]
        ours = [_worker(trials, Path(folder) / f"worker{at}") for at in range(repeats)]
        swept = [_sweep(n_trials, str(base), Path(folder) / f"sweep{at}") for at in range(repeats)]
        _same_numbers(Path(folder), n_trials)
    fastest = (min(wall for wall, _ in processes), min(cpu for _, cpu in processes))
    plain = (sum(wall for wall, _ in processes), sum(cpu for _, cpu in processes))
    rows = [
        _row("one process per trial", n_trials, *plain, fastest),
        _row(
            "the fastest of them x their number",
            n_trials,
            n_trials * fastest[0],
            n_trials * fastest[1],
            fastest,
        ),
        _row(
            "one worker of rayunlearn",
            n_trials,
            min(w for w, _ in ours),
            min(c for _, c in ours),
            fastest,
        ),
        _row(
            f"rayunlearn run, {os.cpu_count()} cores, Ray included",
            swept[0][1],
            min(w for w, _ in swept),
            float("nan"),
            fastest,
        ),
    ]
    for row in rows:
        ratios = f"processes / this: wall {row['ratio_wall']:.1f}, CPU {row['ratio_cpu']:.1f}"
        print(
            f"{row['way']:40} {row['trials']} trials {row['wall']:7.1f} s  CPU {row['cpu']:7.1f} s "
            f" {ratios}",
            flush=True,
        )
    return rows


def _row(
    way: str, trials: int, wall: float, cpu: float, process: tuple[float, float]
) -> dict[str, Any]:
    """CPU time is NaN for the sweep: Ray's processes are not ours to wait for, so the system does
    not count them for us.
    """
    ratios = {"ratio_wall": trials * process[0] / wall, "ratio_cpu": trials * process[1] / cpu}
    return {"way": way, "trials": trials, "wall": wall, "cpu": cpu, **ratios}


def _rates(n_trials: int) -> list[float]:
    return [1e-4 * (1 + at) for at in range(n_trials)]


def model_folder(folder: Path) -> Path:
    """The tiny model of the synthetic dataset, untrained: what a trial costs does not depend on
    what the model knows.
    """
    corpus = generate_dataset(Data())
    documents = [
        *corpus.forget,
        *corpus.retain,
        *(d for part in corpus.probes.values() for d in part),
    ]
    tokenizer = build_tokenizer(training_texts(documents, Data().template))
    return save_model(build_model("tiny", len(tokenizer), seed=0), tokenizer, folder)


def _worker(trials: Sequence[dict[str, Any]], folder: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one process that runs the trials one after another."""
    folder.mkdir()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    command = [sys.executable, "-c", WORKER, json.dumps(trials), str(folder)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True)
    wall = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.split() == ["complete"] * len(trials), done.stdout
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _sweep(n_trials: int, base: str, folder: Path) -> tuple[float, int]:
    """Wall seconds of `rayunlearn run`, from the command to the report, and the trials it ran: base
    and controls come on top.
    """
    folder.mkdir()
    experiment = folder / "short.py"
    experiment.write_text(
        EXPERIMENT.format(
            values=repr(VALUES | {"model.name": base}), rates=repr(tuple(_rates(n_trials)))
        )
    )
    begun = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "rayunlearn",
        "run",
        str(experiment),
        "--output",
        str(folder / "runs"),
    ]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}:"
            f" {done.stderr[-2000:]}{done.stdout[-2000:]}"
        )
    wall = time.perf_counter() - begun
    run = next((folder / "runs").rglob("experiment.json")).parent
    statuses = open_run(run).trials.select("status").collect()["status"].to_list()
    if set(statuses) != {"complete"}:
        raise RuntimeError(
            f"every trial of the sweep must be complete, got {sorted(set(statuses))}"
        )
    return wall, len(statuses)


def _same_numbers(folder: Path, n_trials: int) -> None:
    """The worker's trials must be the processes' trials: same ids, same losses."""
    losses = [
        _losses(folder / "worker0"),
        pl.concat([_losses(folder / f"process{at}") for at in range(n_trials)]).sort(
            "trial_id", "step"
        ),
    ]
    assert losses[0].equals(losses[1]), "the ways disagree"


def _losses(folder: Path) -> pl.DataFrame:
    files = sorted((folder / "run" / "trials").glob("*/steps.parquet"))
    return (
        pl.concat([pl.read_parquet(file) for file in files])
        .select("trial_id", "step", "loss")
        .sort("trial_id", "step")
    )


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
