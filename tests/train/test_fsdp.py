"""A trial whose blocks are divided over two processes (gloo) ends with the weights of the same
trial in one.
"""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from safetensors.torch import load_file

from rayunlearn.config import Attack, Trial, Value
from rayunlearn.errors import UserError
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.retain_weight import dual, fixed_weight
from rayunlearn.models import cpu_offload
from rayunlearn.planning.backend import can_divide
from rayunlearn.planning.plan_run import Options
from rayunlearn.storage.run import Run, open_run
from tests.conftest import Bed
from tests.sharded_process import trained_all

COMMON: dict[str, Value] = {
    "train.length": 5,
    "train.batch_size": 4,
    "train.learning_rate": 1e-3,
    "train.schedule": "constant",
    "train.warmup_fraction": 0.0,
    "method.layer": 1,
    "stop.check_every": 2,
    # retain probes are asked on the way, while the blocks are divided
    "stop.utility_floor": 0.01,
    "measure.limit_probes": "8",
}
TRIALS: dict[str, dict[str, Value]] = {
    "npo, everything": {"method.forget": "npo", "method.retain": "nll"},
    "npo + kl, a reference": {
        "method.forget": "npo",
        "method.retain": "kl",
        "train.max_grad_norm": 0.1,
    },
    "rmu, three matrices over a prefix": {
        "method.forget": "rmu",
        "method.retain": "activation",
        "train.parameters": "down_proj",
        "train.layers": "1",
    },
    "lora, adapters in every block": {
        "method.forget": "npo",
        "method.retain": "nll",
        "train.adapter": "lora",
        "train.parameters": "q_proj",
    },
}
TRIALS["larger than a device: kl over a prefix"] = {
    "method.forget": "npo",
    "method.retain": "kl",
    "train.layers": "1,2",
}
# every loss that keeps a state from step to step; base's retain loss is far under dual's own limit
STATEFUL = {
    f"{name}, a state that moves": {
        "method.forget": name,
        "method.retain": "nll",
        **({"dual.limit": 0.01} if row.weighting is dual else {}),
    }
    for name, row in FORGET.items()
    if row.weighting is not fixed_weight
}
TRIALS |= STATEFUL
REFUSED: dict[str, dict[str, Value]] = {"sam": {"method.forget": "npo", "method.wrappers": "sam"}}
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def two_processes(
    base: Path, trials: dict[str, dict[str, Value]], folder: Path
) -> list[dict[str, Any]]:
    """Run the trials on two processes; what each process said of each trial."""
    folder.mkdir()
    file = folder / "settings.json"
    file.write_text(json.dumps({"base": str(base), "trials": trials}))
    common = {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    command = [sys.executable, "-W", "ignore", "-m", "tests.sharded_process", str(file)]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | common | rank,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]
    ended = [process.communicate(timeout=500) for process in started]
    assert all(process.returncode == 0 for process in started), [
        error[-2000:] for _, error in ended
    ]
    return [json.loads(said.splitlines()[-1]) for said, _ in ended]


@pytest.fixture(scope="module")
def both(
    domain_bed: Bed, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]], dict[str, Any]]:
    """Every trial on two processes, and in this one, which accumulates the same pieces, so that
    only the order of sums differs.
    """
    folder = tmp_path_factory.mktemp("both")
    two = two_processes(
        domain_bed.base,
        {name: COMMON | values for name, values in (TRIALS | REFUSED).items()},
        folder / "two",
    )
    plain = {
        name.replace("larger", "as large"): COMMON | values | {"train.accumulation": 2}
        for name, values in TRIALS.items()
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ACCELERATE_USE_CPU", "true")
        # `trained` sets it for each trial
        patched.setattr(cpu_offload, "weight_budget", cpu_offload.weight_budget)
        one = trained_all(plain, str(domain_bed.base), folder / "one", rank=0)
    return folder, two, one


@pytest.mark.parametrize("name", TRIALS)
def test_two_processes_end_with_the_weights_of_one(
    name: str, both: tuple[Path, list[dict[str, Any]], dict[str, Any]], domain_bed: Bed
) -> None:
    folder, (first, second), one = both
    plain = name.replace("larger", "as large")
    assert first[name]["ended"] == second[name]["ended"] == one[plain]["ended"] == "complete"
    expected, start = (
        load_file(folder / "one" / plain / "0.safetensors"),
        load_file(domain_bed.base / "model.safetensors"),
    )
    moved = max(float((expected[k] - start[k]).abs().max()) for k in expected.keys() & start.keys())
    assert moved > 1e-4
    for rank in (0, 1):
        found = load_file(folder / "two" / name / f"{rank}.safetensors")
        assert found.keys() == expected.keys()
        apart = max(float((found[key] - weight).abs().max()) for key, weight in expected.items())
        assert apart < 2e-5, (rank, apart)
    assert first[name]["grad_norms"] == pytest.approx(one[plain]["grad_norms"], rel=1e-4)
    assert first[name]["grad_norms"] == second[name]["grad_norms"]
    (mine, whole), (others, _) = first[name]["shares"][0], second[name]["shares"][0]
    # each holds a part of what it trains
    assert 0 < mine < whole and mine + others <= whole


def test_two_processes_share_the_pieces_of_a_step_and_the_gradient(
    both: tuple[Path, list[dict[str, Any]], dict[str, Any]],
) -> None:
    """Loss (w - piece)^2 from w = 5, Adam's steps of about 0.5. First step: slopes 10 and 8, mean
    9; then pieces 2 and 3: 5 and 3, mean 4.
    """
    first, second = (said["parabola"] for said in both[1])
    assert first["seen"] == [0, 2, 4] and second["seen"] == [1, 3, 5]
    assert first["grad_norms"][:2] == [9.0, 4.0]
    # both end at the same weight with the same gradients
    assert first["weight"] == second["weight"] and first["grad_norms"] == second["grad_norms"]


def test_over_two_processes_pdu_s_weight_moves_from_1_to_8_41_as_well(
    both: tuple[Path, list[dict[str, Any]], dict[str, Any]],
) -> None:
    """In 2, 4 and 8 pieces, each process with half of them: 1 + (ln 1826 - 0.1), as in one process
    (tests/methods/test_microbatches.py).
    """
    first, second = (said["dual"] for said in both[1])
    assert first == second == pytest.approx([0.9 + math.log(1826)] * 3, rel=1e-6)


@pytest.mark.parametrize("name", STATEFUL)
def test_the_state_of_a_loss_moves_with_the_whole_batch_of_both_processes(
    name: str, both: tuple[Path, list[dict[str, Any]], dict[str, Any]]
) -> None:
    """Each process sees half of a step's documents; both have the weight of the whole step."""
    _, (first, second), one = both
    weights = one[name]["retain_weights"]
    assert len(set(weights)) == len(weights) == 5
    assert first[name]["retain_weights"] == pytest.approx(weights, rel=1e-4)
    assert first[name]["retain_weights"] == second[name]["retain_weights"]


def test_wrappers_are_refused_on_several_processes(
    both: tuple[Path, list[dict[str, Any]], dict[str, Any]],
) -> None:
    assert all(
        "a trial on several processes must have no wrapper" in said["sam"]["mistake"]
        for said in both[1]
    )


SHORT: dict[str, Any] = {
    "train.length": 4,
    "train.batch_size": 4,
    "method.layer": 1,
    "model.teach_epochs": 1,
    "stop.utility_floor": 0.0,
}


@pytest.fixture(scope="module")
def both_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same two trials on a Ray of two CPUs, each in one process with accumulation, then each on
    two processes; one dataset for both.
    """
    output = tmp_path_factory.mktemp("runs")
    file = output / "shared.py"
    lines = [
        '"""Do two processes give what one gives?"""',
        "from rayunlearn.config import Trial, with_values",
        "from rayunlearn.experiment import Budget",
        f"BASE = with_values(Trial(), {SHORT!r})",
        'AXES = {("method.forget", "method.retain"): (("npo", "nll"), ("rmu", "activation"))}',
        'BUDGET = Budget(tuning="none")',
    ]
    file.write_text("\n".join(lines) + "\n")
    for version, more in (
        ("one", ["--set", "train.accumulation=2"]),
        ("two", ["--processes-per-trial", "2"]),
    ):
        words = [
            "run",
            str(file),
            "--output",
            str(output),
            "--version",
            version,
            "--workers",
            "2",
            "--address",
            "local",
            *more,
        ]
        done = subprocess.run(
            [sys.executable, "-m", "rayunlearn", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return output / "shared/one", output / "shared/two"


@pytest.mark.slow
def test_ray_places_two_processes_on_one_trial_and_the_rows_are_those_of_one(
    both_runs: tuple[Path, Path],
) -> None:
    one, two = (open_run(folder) for folder in both_runs)
    ended = [
        run.trials.filter(pl.col("stage") == "unlearned")
        .select("method.forget", "status", "optimizer_steps", "trial_id")
        .collect()
        for run in (one, two)
    ]
    assert [frame.drop("trial_id").sort("method.forget").rows() for frame in ended] == [
        [("none", "complete", 4)] * 2 + [("npo", "complete", 4), ("rmu", "complete", 4)]
    ] * 2
    by = ["method.forget", "method.retain", "doc_id", "split", "metric"]

    def values(run: Run) -> pl.DataFrame:
        rows = run.examples.filter(
            pl.col("stage") == "unlearned", pl.col("metric") == "probability"
        )
        return (
            rows.join(
                run.trials.select("trial_id", "method.forget", "method.retain"), on="trial_id"
            )
            .select(*by, "value")
            .sort(by)
            .collect()
        )

    left, right = values(one), values(two)
    assert left.select(by).equals(right.select(by)) and left.height > 100
    # sums in another order
    assert (left["value"] - right["value"]).abs().max() < 1e-4
    seconds = two.steps.collect()
    # the rows of one process, not of both
    assert seconds.height == 4 * 4


def test_what_cannot_be_divided_is_refused_before_anything_is_scheduled(tmp_path: Path) -> None:
    words = [
        "run",
        "experiments/hello.py",
        "--output",
        str(tmp_path),
        "--processes-per-trial",
        "3",
        "--address",
        "local",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "rayunlearn", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (
        done.returncode == 2
        and "train.batch_size must be a multiple of train.accumulation x processes, 3, got 8"
        in done.stderr
    )
    with pytest.raises(UserError, match="--processes-per-trial must be >= 1, got 0"):
        Options(processes=0)
    with pytest.raises(UserError, match="each process has a GPU of its own"):
        Options(processes=2, gpus_per_trial=0.5)


def test_a_private_cluster_has_a_cpu_for_every_process() -> None:
    """A trial of two processes never starts on a cluster of one CPU."""
    assert Options(workers=1, processes=2).local_cpus == 2
    assert Options(workers=3, processes=2).local_cpus == 6 and Options(workers=3).local_cpus == 3
    assert Options().local_cpus == 0 and Options(processes=999).local_cpus == 999


def test_an_attack_that_trains_is_not_divided() -> None:
    """Relearning on two processes ended elsewhere than on one; rounding trains nothing."""
    can_divide(Trial(attack=Attack(name="round_to_nearest")), 2)
    with pytest.raises(UserError, match="no attack that trains where a trial has several"):
        can_divide(Trial(attack=Attack(name="relearning")), 2)
