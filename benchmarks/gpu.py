"""What only a GPU can tell: is a trial's memory as estimated, do two trials side by side gain, what
happens when memory ends, what bfloat16 changes.

    python -m benchmarks.gpu {step|memory|together|out_of_memory|bfloat16} OUT [--tiny]

Called by `benchmarks/gpu.sh`, part by part. A Llama of 1.24 billion random parameters, built from
its config in OUT/model; with `--tiny` one of a few thousand, which any processor runs: the script
is then tried and nothing is measured. Each part leaves OUT/<part>.parquet.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks import engine
from benchmarks.engine import SHAPES, Case, step_rows
from rayunlearn.config import Data, Measure, Method, Model, Stop, Train, Trial, Value, with_values
from rayunlearn.data.load import load_corpus
from rayunlearn.models.device_memory import device_lock, limit_share, retry_alone_on_oom
from rayunlearn.models.load import model_digest, save_model
from rayunlearn.models.scratch import build_tokenizer
from rayunlearn.planning.gpu_memory import peak_bytes
from rayunlearn.registry import check_trial
from rayunlearn.storage.run import open_run
from rayunlearn.train.teach import training_texts
from rayunlearn.trial.model_state import load_model_state
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.workspace import Workspace

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 4096,
}
DATA = Data(name="domain", size="tiny")
# what takes memory apart: optimizers, storages, adapters, activations
MEMORY: dict[str, dict[str, Value]] = {
    "float32, adamw": {},
    "float32, adamw_8bit": {"train.optimizer": "adamw_8bit"},
    "float32, lion": {"train.optimizer": "lion"},
    "float32, sign": {"train.optimizer": "sign"},
    "float32, checkpointed activations": {"train.checkpoint_activations": True},
    "bfloat16, float32 copies": {"train.weights": "bfloat16"},
    "bfloat16 alone": {"train.weights": "bfloat16", "train.master_weights": False},
    "bfloat16, adapters": {"train.weights": "bfloat16", "train.adapter": "lora"},
    "four bits, adapters": {"train.weights": "nf4", "train.adapter": "lora"},
}


def model_folder(out: Path, *, tiny: bool) -> Path:
    """The model, written once: random weights, a tokenizer of the dataset's words."""
    folder = out / "model"
    if not folder.exists():
        corpus = load_corpus(DATA)
        probes = [document for split in corpus.probes.values() for document in split]
        documents = [*corpus.forget, *corpus.retain, *probes]
        tokenizer = build_tokenizer(training_texts(documents, DATA.template))
        torch.manual_seed(0)
        shape = TINY if tiny else SHAPES["1b"]
        model = AutoModelForCausalLM.from_config(LlamaConfig(**shape, max_position_embeddings=512))
        save_model(model.to(torch.bfloat16), tokenizer, folder)
    return folder


def trial_of(out: Path, values: dict[str, Value], *, tiny: bool) -> Trial:
    """A few steps of NPO with the values, measured on a few probes."""
    base = Trial(
        data=DATA,
        model=Model(name=str(model_folder(out, tiny=tiny)), teach=False),
        method=Method(forget="npo", retain="nll", layer=1),
        train=Train(length=3, batch_size=4, learning_rate=1e-5, warmup_fraction=0.0),
        stop=Stop(utility_floor=0.0),
        measure=Measure(limit_probes="8"),
    )
    return check_trial(with_values(base, values))


def ran(out: Path, trial: Trial, name: str) -> dict[str, Any]:
    """The row of the trial, run in this process."""
    model = trial.model.name
    workspace = Workspace(load_corpus(DATA), model, "", model_digest(model), out / "cache")
    run = out / "runs" / name.replace(" ", "-")
    run_trial(trial, workspace, run, "gpu", "1")
    return open_run(run).trials.collect().row(0, named=True)


def step(out: Path, *, tiny: bool) -> list[dict[str, Any]]:
    """One step beside the plain way."""
    if tiny:
        SHAPES["tiny"] = TINY
        # it has no block 7
        engine.LAYER = 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = [Case(forget="npo", retain="nll"), Case(forget="rmu", retain="activation")]
    name = "tiny" if tiny else "1b"
    return step_rows(name, cases, repeats=1 if tiny else 3, batch_size=4, device=device)


def memory(out: Path, *, tiny: bool) -> list[dict[str, Any]]:
    """Estimate and peak of every way to take memory."""
    rows = []
    for name, values in MEMORY.items():
        trial = trial_of(out, values, tiny=tiny)
        row, estimate = ran(out, trial, name), peak_bytes(trial)
        rows.append(
            {
                "case": name,
                "status": row["status"],
                "error": row.get("error"),
                "estimate_bytes": estimate,
                "peak_bytes": row["peak_memory_bytes"],
                "peak_over_estimate": row["peak_memory_bytes"] / estimate,
                "seconds_train": row["seconds_train"],
            }
        )
        said = f"{rows[-1]['peak_over_estimate']:6.2f} of the estimate"
        print(f"{name:36} {row['status']:9} {said} {row.get('error') or ''}", flush=True)
    return rows


def together(out: Path, *, tiny: bool) -> list[dict[str, Any]]:
    """Wall seconds of two trials one after the other, and side by side in two processes."""
    model_folder(out, tiny=tiny)
    command = [sys.executable, "-m", "benchmarks.gpu", "one", str(out), *(["--tiny"] * tiny)]
    started = time.perf_counter()
    for seed in ("1", "2"):
        subprocess.run([*command, "--seed", seed], check=True)
    apart = time.perf_counter() - started
    started = time.perf_counter()
    processes = [subprocess.Popen([*command, "--seed", seed]) for seed in ("3", "4")]
    if any(process.wait() for process in processes):
        raise SystemExit("a trial beside another one failed")
    beside = time.perf_counter() - started
    return [{"apart_seconds": apart, "beside_seconds": beside, "ratio": beside / apart}]


def one(out: Path, *, tiny: bool, seed: int) -> list[dict[str, Any]]:
    """A trial of `together`, of more steps than the others."""
    values: dict[str, Value] = {"train.adapter": "lora", "train.weights": "bfloat16"}
    values |= {"train.length": 5 if tiny else 60, "train.seed": seed}
    return [ran(out, trial_of(out, values, tiny=tiny), f"beside {seed}")]


def out_of_memory(out: Path, *, tiny: bool) -> list[dict[str, Any]]:
    """A trial with a twentieth of the GPU, which is not enough: it is to run again alone, with all
    of it. Without a GPU the error is raised by hand.
    """
    trial = trial_of(out, {}, tiny=tiny)
    if not torch.cuda.is_available():
        return [_raised_by_hand(out, trial)]
    load_model_state.cache_clear()
    limit_share(0.05)
    row = ran(out, trial, "memory")
    n_errors = torch.cuda.memory_stats().get("num_ooms", 0)
    return [{"status": row["status"], "error": row.get("error"), "out_of_memory": n_errors}]


def _raised_by_hand(out: Path, trial: Trial) -> dict[str, Any]:
    attempts = []

    def attempt() -> dict[str, Any]:
        attempts.append(time.perf_counter())
        if len(attempts) == 1:
            raise torch.OutOfMemoryError("raised by hand")
        return ran(out, trial, "memory")

    row = retry_alone_on_oom(attempt, device_lock())
    return {"status": row["status"], "error": row.get("error"), "out_of_memory": 1}


def bfloat16(out: Path, *, tiny: bool) -> list[dict[str, Any]]:
    """Losses of three steps by precision of products and storage of weights, beside float32."""
    rows = []
    for name, values in {
        "float32": {"train.precision": "float32"},
        "products": {"train.precision": "bfloat16"},
        "weights": {"train.weights": "bfloat16"},
    }.items():
        trial = trial_of(out, dict[str, Value](values), tiny=tiny)
        row = ran(out, trial, f"precision {name}")
        run = out / "runs" / f"precision-{name}"
        losses = open_run(run).steps.sort("step").collect()["loss"].to_list()
        rows.append(
            {"case": name, "computed_in": row["computed_in"], "loss": losses[-1]}
            | {"seconds_train": row["seconds_train"]}
        )
    for row in rows:
        row["difference"] = abs(row["loss"] - rows[0]["loss"]) / abs(rows[0]["loss"])
    return rows


PARTS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    function.__name__: function
    for function in (step, memory, together, one, out_of_memory, bfloat16)
}


def main() -> None:
    """One part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seed", type=int)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    more = {} if chosen.seed is None else {"seed": chosen.seed}
    rows = PARTS[chosen.part](chosen.out, tiny=chosen.tiny, **more)
    if chosen.part != "one":
        table = pl.DataFrame(rows, infer_schema_length=None)
        table.write_parquet(chosen.out / f"{chosen.part}.parquet")
        print(table)
    if any(row.get("status") == "failed" for row in rows):
        raise SystemExit("a trial failed")


if __name__ == "__main__":
    main()
