"""The engine beside the plain way: same machine, same run, same losses.

    python -m benchmarks.engine [--parts steps,caches,trials] [--models 12m,thin32] [--methods
    npo,rmu] [--repeats 3] python -m benchmarks.engine --device cuda --models 1b --parts steps

steps   one training step of each method (loss, gradient, clipping, AdamW) beside the peers' way of
`benchmarks.plain` caches  what making a cache costs, what it saves per step, after how many trials
it has paid for itself trials  20 trials through rayunlearn beside 20 processes, one per trial

Every number is the minimum of the repeats, both sides in turn; CPU time stands beside wall time.
One thread on a CPU. On a GPU the weights are bfloat16, times are taken after synchronising, and
peak memory is recorded.
"""

import argparse
import copy
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.plain import PlainObjective
from benchmarks.provenance import provenance
from rayunlearn.data.tokenize import Encoded
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.loss_inputs import paired_response_kinds, reference_kinds
from rayunlearn.methods.objective import (
    ObjectiveSettings,
    PairedResponses,
    Side,
    UnlearningObjective,
)
from rayunlearn.methods.retain import RETAIN
from rayunlearn.models.forward import first_trained_block
from rayunlearn.models.reference import Reference, cached_prefix, cached_reference, frozen_model
from rayunlearn.ranges import required_inputs
from rayunlearn.train.loop import choose_parameters
from rayunlearn.train.optimizers import adamw

LAYER = 7
# the three matrices of the published RMU run
MATRICES = r"layers\.(5|6|7)\.mlp\.down_proj"
SHAPES: dict[str, dict[str, Any]] = {
    "12m": {
        "vocab_size": 8000,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
    },
    "thin32": {
        "vocab_size": 8000,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 32,
        "num_attention_heads": 4,
    },
    # the shape of Llama-3.2-1B, 1.24 B parameters
    "1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A method as it is usually run. `idle_retain`: the peers' default runs a retain term that
    counts for nothing.
    """

    forget: str
    retain: str
    parameters: str = ".*"
    idle_retain: bool = False

    @property
    def name(self) -> str:
        """`rmu + activation, 3 matrices`."""
        return f"{self.forget} + {self.retain}" + (
            ", 3 matrices" if self.parameters == MATRICES else ""
        )


# With the retain term that each has in the peers' default configuration; all methods of the table.
CASES = (
    Case(forget="none", retain="nll"),
    Case(forget="ga", retain="none"),
    Case(forget="ga", retain="nll"),
    Case(forget="ga", retain="kl"),
    Case(forget="npo", retain="nll"),
    Case(forget="npo", retain="kl"),
    Case(forget="simnpo", retain="nll"),
    Case(forget="dpo", retain="nll"),
    Case(forget="altpo", retain="nll"),
    Case(forget="idk", retain="nll"),
    Case(forget="undial", retain="none", idle_retain=True),
    Case(forget="wga", retain="nll"),
    Case(forget="satimp", retain="nll"),
    Case(forget="ce_u", retain="none"),
    Case(forget="pdu", retain="nll"),
    Case(forget="llmu", retain="kl"),
    Case(forget="llmu_two_term", retain="kl"),
    Case(forget="task_vector", retain="none"),
    Case(forget="rmu", retain="activation"),
    Case(forget="rmu", retain="activation", parameters=MATRICES),
    Case(forget="adaptive_rmu", retain="activation", parameters=MATRICES),
)


@dataclass(frozen=True)
class Best:
    """The least wall and CPU seconds of several repeats, the result of the last, on a GPU the peak
    memory, and the CPU seconds of every repeat.
    """

    wall: float
    cpu: float
    result: Any
    peak_bytes: int
    cpu_of_each: tuple[float, ...] = ()


def best(tasks: Sequence[Callable[[], Any]], repeats: int, device: torch.device) -> list[Best]:
    """Each task `repeats` times in turn, after one run of each that is not counted."""
    records: list[list[Best]] = [[] for _ in tasks]
    for repeat in range(repeats + 1):
        for record, task in zip(records, tasks, strict=True):
            once = timed(task, device)
            record += [once] if repeat else []
    return [
        Best(
            min(b.wall for b in r),
            min(b.cpu for b in r),
            r[-1].result,
            max(b.peak_bytes for b in r),
            tuple(b.cpu for b in r),
        )
        for r in records
    ]


def timed(task: Callable[[], Any], device: torch.device) -> Best:
    """One run of the task."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    wall, cpu = time.perf_counter(), time.process_time()
    result = task()
    if device.type == "cuda":
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return Best(time.perf_counter() - wall, time.process_time() - cpu, result, peak)


def build(name: str, device: torch.device) -> PreTrainedModel:
    """A Llama with random weights: float32 on a CPU, bfloat16 on a GPU."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(max_position_embeddings=1024, **SHAPES[name])
    )
    return model.to(
        device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32
    ).eval()


def texts(
    model: PreTrainedModel, name: str, n: int, tokens: tuple[int, int] = (90, 120), answer: int = 40
) -> list[Encoded]:
    """Random sequences as long as TOFU's are with a chat template: about 105 tokens, of which 40
    are the answer.
    """
    rng = random.Random(name)
    lengths = [rng.randint(*tokens) for _ in range(n)]
    return [
        Encoded(
            f"{name}{at}",
            tuple(rng.randrange(model.config.vocab_size) for _ in range(t)),
            t - answer,
        )
        for at, t in enumerate(lengths)
    ]


def sides(case: Case, model: PreTrainedModel, folder: Path, n: int) -> tuple[Side, Side]:
    """Both sides with cached references and, where the lowest blocks are frozen, their cached
    outputs.
    """
    choose_parameters(model, case.parameters)
    return _side(FORGET[case.forget].function, "forget", model, folder, n), _side(
        RETAIN[case.retain].function, "retain", model, folder, n
    )


def _side(
    loss: Callable[..., Tensor], role: str, model: PreTrainedModel, folder: Path, n: int
) -> Side:
    documents = texts(model, role, n)
    key: dict[str, object] = {"role": role, "n": n}
    keep = partial(cached_reference, folder, model=model, layer=LAYER)
    block = first_trained_block(model)
    prefix = (
        cached_prefix(folder, key, model, documents, block)
        if block and required_inputs(loss)
        else None
    )
    companions = {}
    for kind in paired_response_kinds(loss):
        others = texts(model, kind, n, answer=15)
        choices: dict[str, tuple[Encoded, ...]] = {
            d.doc_id: (o,) for d, o in zip(documents, others, strict=True)
        }
        companions[kind] = PairedResponses(
            choices,
            keep({**key, "kind": kind}, sequences=others, kinds=reference_kinds(loss, kind)),
        )
    return Side(
        loss,
        documents,
        keep(key, sequences=documents, kinds=reference_kinds(loss)),
        companions,
        prefix=prefix,
    )


def our_loss(
    case: Case, model: PreTrainedModel, folder: Path, batch_size: int
) -> Callable[[int], Tensor]:
    """The loss of a step by the engine."""
    forget, retain = sides(case, model, folder, batch_size)
    objective = UnlearningObjective(
        model,
        forget,
        retain,
        ObjectiveSettings(retain_weight=1.0, layer=LAYER, batch_size=batch_size, seed=0),
    )
    return lambda step: objective(step).total


def plain_loss(
    case: Case, model: PreTrainedModel, second: PreTrainedModel, batch_size: int
) -> Callable[[int], Tensor]:
    """The loss of a step by two whole models. A retain term that counts for
    nothing is that of NLL.
    """
    retain = "nll" if case.idle_retain else case.retain
    losses = {"forget": FORGET[case.forget].function, "retain": RETAIN[retain].function}
    forget_side, retain_side = (
        Side(function, texts(model, role, batch_size), Reference({}))
        for role, function in losses.items()
    )
    loss = forget_side.loss
    kinds = {
        kind: texts(model, kind, batch_size, answer=15) for kind in paired_response_kinds(loss)
    }
    companions = {
        k: PairedResponses(
            {d.doc_id: (o,) for d, o in zip(forget_side.sequences, os, strict=True)}, Reference({})
        )
        for k, os in kinds.items()
    }
    forget_side = Side(loss, forget_side.sequences, Reference({}), companions)
    return PlainObjective(
        model, second, forget_side, retain_side, LAYER, batch_size, case.idle_retain
    )


def stepping(
    model: PreTrainedModel, loss: Callable[[int], Tensor], parameters: str, plain: bool
) -> Callable[[], float]:
    """One step: loss, gradient, clipping, AdamW. The plain way leaves every parameter its gradient
    and tells every module at every step that it trains, as the peers do.
    """
    chosen = choose_parameters(model, parameters)
    if plain:
        model.requires_grad_(True)
    # both sides have the same; the weights stay, so that every repeat computes the same
    optimizer = adamw(chosen, 0.0)

    def step() -> float:
        if plain or not model.training:
            model.train()
        value = loss(0)
        value.backward()
        torch.nn.utils.clip_grad_norm_(chosen, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(value.detach())

    return step


def step_rows(
    name: str, cases: Sequence[Case], *, repeats: int, batch_size: int, device: torch.device
) -> list[dict[str, Any]]:
    """One row per method: both ways' times, the ratio ours / plain, and the relative difference of
    the losses.
    """
    rows = []
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            model, plain_model = build(name, device), build(name, device)
            second = copy.deepcopy(plain_model).requires_grad_(False)
            ours = stepping(
                model, our_loss(case, model, Path(folder), batch_size), case.parameters, plain=False
            )
            plain = stepping(
                plain_model,
                plain_loss(case, plain_model, second, batch_size),
                case.parameters,
                plain=True,
            )
            slow, fast = best([plain, ours], repeats, device)
        rows.append(
            {
                "model": name,
                "case": case.name,
                **_times(slow, fast),
                "loss_difference": abs(slow.result - fast.result) / max(1e-12, abs(slow.result)),
            }
        )
        _say(
            f"{name:7} {case.name:36} {_shown(rows[-1])}  losses differ by"
            f" {rows[-1]['loss_difference']:.0e}"
        )
    return rows


def _times(slow: Best, fast: Best) -> dict[str, Any]:
    memory = {"plain_peak_bytes": slow.peak_bytes, "ours_peak_bytes": fast.peak_bytes}
    times = {
        "plain_wall": slow.wall,
        "ours_wall": fast.wall,
        "plain_cpu": slow.cpu,
        "ours_cpu": fast.cpu,
    }
    # both ways of a repeat run one after the other, so that what else the machine does meets both
    pairs = [f / s for f, s in zip(fast.cpu_of_each, slow.cpu_of_each, strict=True)]
    ratios = {"ratio_wall": fast.wall / slow.wall, "ratio_cpu": fast.cpu / slow.cpu}
    return times | ratios | {"ratio_of_pairs": statistics.median(pairs)} | memory


def _shown(row: dict[str, Any]) -> str:
    ways = (
        f"{way} {row[f'{way}_wall'] * 1e3:7.0f} ms (CPU {row[f'{way}_cpu'] * 1e3:7.0f})"
        for way in ("plain", "ours")
    )
    return (
        f"{'  '.join(ways)}  ratio {row['ratio_wall']:.2f} (CPU {row['ratio_cpu']:.2f},"
        f" pairs {row['ratio_of_pairs']:.2f})"
    )


def cache_rows(
    name: str,
    *,
    repeats: int,
    device: torch.device,
    n: int = 200,
    steps: int = 100,
    batch_size: int = 4,
) -> list[dict[str, Any]]:
    """What each cache costs to make for `n` documents a side, what it saves per step, and its
    break-even in trials of `steps`.
    """
    cases = {
        "reference of NPO": Case(forget="npo", retain="none"),
        "distributions of UNDIAL": Case(forget="undial", retain="none"),
        "prefix of RMU, 3 matrices": Case(forget="rmu", retain="none", parameters=MATRICES),
        "activations and prefix of the retain side": Case(
            forget="none", retain="activation", parameters=MATRICES
        ),
    }
    return [
        _cache_row(
            name,
            what,
            case,
            repeats=repeats,
            device=device,
            n=n,
            steps=steps,
            batch_size=batch_size,
        )
        for what, case in cases.items()
    ]


def _cache_row(
    name: str,
    what: str,
    case: Case,
    *,
    repeats: int,
    device: torch.device,
    n: int,
    steps: int,
    batch_size: int,
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        model = build(name, device)
        make = partial(sides, case, model, Path(folder), n)
        making, reading = timed(make, device), timed(make, device)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        pairs = _uncached(making.result, model), making.result
        without, cached = best(
            [_step_on(case, model, pair, batch_size) for pair in pairs], repeats, device
        )
    saved = without.cpu - cached.cpu
    row = {
        "model": name,
        "cache": what,
        "documents": n,
        "bytes": size,
        "make_cpu": making.cpu,
        "read_cpu": reading.cpu,
        "make_wall": making.wall,
        "read_wall": reading.wall,
        "saved_cpu_per_step": saved,
        "steps_to_break_even": making.cpu / saved,
        # every trial in a worker of its own
        "trials_to_break_even": (making.cpu - reading.cpu) / (steps * saved - reading.cpu),
    }
    times = (
        f"made in {making.cpu:5.2f} s, read in {reading.cpu:5.2f} s (CPU); saves {saved * 1e3:5.0f}"
        " ms a step"
    )
    even = (
        f"paid after {row['steps_to_break_even']:.0f} steps, {row['trials_to_break_even']:.2f}"
        f" trials of {steps}"
    )
    _say(f"{name:7} {what:42} {size / 1e6:6.1f} MB  {times}: {even}")
    return row


def _uncached(pair: tuple[Side, Side], model: PreTrainedModel) -> tuple[Side, Side]:
    """The same sides with the reference computed by a second model at every step and every block
    run.
    """
    first, second = (
        replace(side, reference=Reference({}, frozen_model(model, LAYER, 1.0)), prefix=None)
        for side in pair
    )
    return first, second


def _step_on(
    case: Case, model: PreTrainedModel, pair: tuple[Side, Side], batch_size: int
) -> Callable[[], float]:
    objective = UnlearningObjective(
        model,
        *pair,
        ObjectiveSettings(retain_weight=1.0, layer=LAYER, batch_size=batch_size, seed=0),
    )
    return stepping(model, lambda step: objective(step).total, case.parameters, plain=False)


def _say(line: str) -> None:
    print(line, flush=True)


def chosen_cases(methods: str) -> list[Case]:
    """The cases whose forget loss is named; '' names all."""
    names = {name for name in methods.split(",") if name}
    return [case for case in CASES if not names or case.forget in names]


def main() -> None:
    """Run the parts asked for, print the ratios and write one Parquet file per part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="steps,caches,trials")
    parser.add_argument("--models", default="12m,thin32")
    parser.add_argument("--methods", default="")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    for part in options.parts.split(","):
        rows = PARTS[part](options)
        rows = [row | provenance() | {"repeats": options.repeats} for row in rows]
        pl.DataFrame(rows).write_parquet(options.output / f"engine-{part}.parquet")
        _say(f"written: {options.output / f'engine-{part}.parquet'}")


def _steps(options: argparse.Namespace) -> list[dict[str, Any]]:
    device, cases = torch.device(options.device), chosen_cases(options.methods)
    run = partial(
        step_rows,
        cases=cases,
        repeats=options.repeats,
        batch_size=options.batch_size,
        device=device,
    )
    return [row for name in options.models.split(",") for row in run(name)]


def _caches(options: argparse.Namespace) -> list[dict[str, Any]]:
    run = partial(
        cache_rows,
        repeats=options.repeats,
        device=torch.device(options.device),
        batch_size=options.batch_size,
    )
    return [row for name in options.models.split(",") for row in run(name)]


def _trials(options: argparse.Namespace) -> list[dict[str, Any]]:
    from benchmarks.trials import trial_rows

    return trial_rows(options.trials, options.repeats)


PARTS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "steps": _steps,
    "caches": _caches,
    "trials": _trials,
}

if __name__ == "__main__":
    main()
