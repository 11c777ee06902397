"""A plausible small run, made of numbers instead of training:
what the results layer is tested on.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from rayunlearn.analysis.intervals import summarise_examples
from rayunlearn.config import Trial, Value, digest, flatten, with_values
from rayunlearn.storage.parquet import frame_of
from rayunlearn.storage.run import write_experiment, write_run_table, write_trial

METHODS = ("npo", "rmu")
SELECTORS = ("random", "min_k")
RATIOS = (1.0, 0.25, 0.05, 0.01)
SEEDS = (0, 1, 2)
N_FORGET = 200
METRICS = [
    {
        "name": "probability",
        "unit": "probability",
        "low": 0.0,
        "high": 1.0,
        "direction": "higher",
        "meaning": "mean probability of the answer's tokens",
    },
    {
        "name": "multiple_choice",
        "unit": "fraction",
        "low": 0.0,
        "high": 1.0,
        "direction": "higher",
        "meaning": "the right answer is the likeliest of six",
    },
]
EXPERIMENT: dict[str, Any] = {
    "name": "synthetic",
    "question": (
        "How much of the forget set is needed?\n\nHypothesis: 25% is enough.\nRefuted if: the"
        " curves at 25% and 100% part."
    ),
    "axes": {
        "method.forget": METHODS,
        "select.name": SELECTORS,
        "select.ratio": RATIOS,
        "select.seed, train.seed": SEEDS,
    },
    "search": {"train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
    "budget": {"tuning": "shared", "trials": 4, "batch": 2},
    "objective": {
        "forgetting": "probability",
        "utility": "probability",
        "utility_split": "retain",
        "utility_floor": 0.9,
    },
    "version": "1",
    "planned": 64,
    "metrics": METRICS,
}


def examples(
    values: Mapping[str, float], *, stage: str, seed: int, documents: int = 30
) -> list[dict[str, Any]]:
    """One row per document and metric; `values` maps a split to its mean, documents scatter around
    it in [0, 1].
    """
    rows = []
    for split, mean in values.items():
        noise = np.random.default_rng([seed, len(split)]).normal(0, 0.05, documents)
        for number, value in enumerate(np.clip(mean + noise, 0, 1)):
            common = {
                "stage": stage,
                "attack": "none",
                "doc_id": f"{split}{number}",
                "split": split,
            }
            rows.append({**common, "metric": "probability", "value": float(value)})
            rows.append({**common, "metric": "multiple_choice", "value": float(value > 0.5)})
    return rows


def steps(final: float, *, count: int = 20) -> list[dict[str, Any]]:
    """A loss that falls from 3 to `final`."""
    losses = final + (3 - final) * np.exp(-np.arange(count) / 5)
    return [
        {
            "step": i + 1,
            "loss": x + 0.1,
            "forget_loss": x,
            "retain_loss": 0.1,
            "grad_norm": x,
            "learning_rate": 1e-3,
            "tokens": 64,
            "seconds": 0.01,
        }
        for i, x in enumerate(losses)
    ]


def looks(values: Mapping[str, float]) -> list[dict[str, Any]]:
    """Two looks: 0.97 of everything at the start, `values` after 20 steps."""
    fixed = {"kind": "training", "metric": "probability", "n": 40, "stderr": 0.01}
    return [
        fixed | {"x": x, "split": split, "value": value}
        for split in ("forget", "retain")
        for x, value in ((0.0, 0.97), (20.0, values[split]))
    ]


def add_trial(
    run: Path,
    changes: Mapping[str, Value],
    values: Mapping[str, float] | None,
    *,
    status: str = "complete",
    coverage: float | None = 1.0,
    more: Mapping[str, list[dict[str, Any]]] | None = None,
) -> str:
    """Write one trial whose config is the default with `changes`; `values` None: it was not
    measured. `more`: rows of other tables, or further ones.
    """
    trial = with_values(Trial(), changes)
    flat = flatten(trial)
    trial_id = digest(flat)
    measured = examples(values, stage=trial.stage, seed=trial.train.seed) if values else []
    kept = max(1, round(trial.select.ratio * N_FORGET))
    row = {
        "experiment": "synthetic",
        "version": "1",
        "status": status,
        "corpus_digest": "c",
        "model_digest": "m",
        "n_forget": N_FORGET,
        "n_kept": kept,
        "coverage": coverage,
    }
    row |= {
        "optimizer_steps": 100,
        "presentations": 800,
        "epochs": 800 / kept,
        "tokens": 6400,
        "seconds_train": 2.5,
        "hardware": "processor <x86>",
        "commit": "abc123",
    }
    row |= {
        "packages": json.dumps({"rayunlearn": "0.1", "polars": "2.1"}),
        "started_at": "2026-01-01T00:00:00Z",
        "seconds_measure": 0.5,
    }
    if status == "failed":
        row |= {
            "error_type": "RuntimeError",
            "error": "worker died <script>alert(1)</script>",
            "error_where": "loop.py:10",
        }
    evals = summarise_examples(
        frame_of("examples", [{"trial_id": trial_id, **r} for r in measured])
    ).to_dicts()
    coresets = [
        {"doc_id": f"forget{i}", "rank": i, "score": -float(i)} for i in range(min(kept, 30))
    ]
    tables = {
        "trials": [row],
        "steps": steps(values["forget"]) if values else [],
        "curves": looks(values) if values and trial.stage == "unlearned" else [],
        "evals": evals,
        "examples": measured,
        "coresets": coresets,
    }
    tables |= {name: [*tables.get(name, []), *rows] for name, rows in (more or {}).items()}
    write_trial(run, trial_id, tables, flat)
    return trial_id


def write_run(run: Path) -> Path:
    """2 methods x 2 selectors x 4 ratios x 3 seeds, base, gold, a control per method, tuning; one
    failed, one collapsed.
    """
    folders, files = _contents_of_run()
    for name in folders:
        (run / name).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (run / name).write_bytes(content)
    return run


@cache
def _contents_of_run() -> tuple[list[Path], dict[Path, bytes]]:
    """Folders and files of the run, which many tests ask for and a process writes once."""
    with TemporaryDirectory() as folder:
        run = write_run_anew(Path(folder))
        entries = [run, *run.rglob("*")]
        folders = [entry.relative_to(run) for entry in entries if entry.is_dir()]
        files = {entry.relative_to(run): entry.read_bytes() for entry in entries if entry.is_file()}
    return folders, files


def write_run_anew(run: Path) -> Path:
    """`write_run` through the functions that write a trial, in the environment of this moment."""
    plan: list[dict[str, Any]] = []
    base_id = add_trial(run, {"stage": "base"}, {"forget": 0.97, "retain": 0.96}, coverage=None)
    gold_id = add_trial(run, {"stage": "gold"}, {"forget": 0.08, "retain": 0.96}, coverage=None)
    plan += [plan_row(base_id, "base", "{}"), plan_row(gold_id, "gold", "{}")]
    for method in METHODS:
        group = json.dumps({"method.forget": method})
        plan += [
            plan_row(_tuning(run, method, index), "tuning", group, index) for index in range(4)
        ]
        plan += [plan_row(_control(run, seed), "control", group) for seed in SEEDS]
        cells = [
            (name, ratio) for name in SELECTORS for ratio in RATIOS if ratio < 1 or name == "random"
        ]
        plan += [
            plan_row(_cell(run, method, name, ratio, seed), "grid", group)
            for name, ratio in cells
            for seed in SEEDS
        ]
    write_run_table(run, "plan", plan)
    write_run_table(
        run,
        "quarantine",
        [{"source": "forget.jsonl", "row": 3, "reason": "empty answer", "excerpt": "<b>bold</b>"}],
    )
    write_experiment(run, EXPERIMENT | {"planned": len({row["trial_id"] for row in plan})})
    return run


def plan_row(trial_id: str, role: str, group: str, index: int = -1) -> dict[str, Any]:
    """A row of the plan; `index` >= 0 places it in its group's study."""
    return {
        "trial_id": trial_id,
        "role": role,
        "group": group,
        "tuning": "shared",
        "study": group if index >= 0 else "",
        "study_index": index,
    }


def forget_left(method: str, name: str, ratio: float) -> float:
    """Mean forget probability after unlearning, shaped like the probe in the design page."""
    bare = {1.0: 0.1, 0.25: 0.11, 0.05: 0.45, 0.01: 0.8}[ratio]
    # at 25% far enough for three seeds to tell
    worse = {1.0: 0.0, 0.25: 0.15, 0.05: 0.05, 0.01: 0.05}[ratio]
    return bare + (0.1 if method == "npo" else 0.0) + (worse if name == "min_k" else 0.0)


def _cell(run: Path, method: str, name: str, ratio: float, seed: int) -> str:
    changes: dict[str, Value] = {
        "method.forget": method,
        "select.name": name,
        "select.ratio": ratio,
        "select.seed": seed if ratio < 1 else 0,
        "train.seed": seed,
    }
    changes |= {"train.learning_rate": 1e-3}
    coverage = {1.0: 1.0, 0.25: 0.98, 0.05: 0.6, 0.01: 0.2}[ratio]
    if (method, name, ratio, seed) == ("npo", "min_k", 0.01, 2):
        return add_trial(run, changes, None, status="failed", coverage=None)
    if (method, name, ratio, seed) == ("rmu", "min_k", 0.05, 1):
        return add_trial(
            run, changes, {"forget": 0.02, "retain": 0.05}, status="collapsed", coverage=coverage
        )
    return add_trial(
        run,
        changes,
        {"forget": forget_left(method, name, ratio) + 0.02 * (seed - 1), "retain": 0.95},
        coverage=coverage,
    )


def _control(run: Path, seed: int) -> str:
    return add_trial(
        run, {"method.forget": "none", "train.seed": seed}, {"forget": 0.93, "retain": 0.97}
    )


def _tuning(run: Path, method: str, index: int) -> str:
    left = {"forget": 0.6 - 0.12 * index, "retain": 0.96 - 0.02 * index}
    return add_trial(
        run,
        {"method.forget": method, "train.learning_rate": 10.0 ** (index - 5), "train.seed": 9},
        left,
    )
