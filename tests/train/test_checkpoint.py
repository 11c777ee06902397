"""A trial that lost its process goes on from its checkpoint and ends with the bits of an
undisturbed one.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import Tensor

from rayunlearn.config import Rungs, Trial, Value, trial_id, with_values
from rayunlearn.data.load import load_corpus
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.retain_weight import fixed_weight
from rayunlearn.storage.run import finished_ids, open_run
from rayunlearn.train.checkpoint import Checkpoints
from rayunlearn.train.optimizers import OPTIMIZERS
from rayunlearn.trial import model_state
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.workspace import Workspace, validate_trial

REPOSITORY = Path(__file__).parents[2]
SHORT: dict[str, Value] = {
    "train.length": 8,
    "train.batch_size": 2,
    "train.checkpoint_every": 2,
    "stop.check_every": 2,
    "stop.utility_floor": 0.0,
    "train.learning_rate": 1e-3,
    "select.ratio": 0.05,
}
# Retention at the looks of this run, as a share of the start's: 0.95 after 2 steps, 0.88 after 4,
# 0.85 after 6, where the floor ends it.
FALLING: dict[str, Value] = {
    "stop.retention_floor": 0.865,
    "method.forget": "ga",
    "method.retain": "none",
    "train.learning_rate": 3e-4,
}
CASES: dict[str, dict[str, Value]] = {
    "the model's own weights": {},
    "wrappers that remember": {
        "method.wrappers": "sam,average,ball",
        "average.start": 0.2,
        "average.every": 1,
        "ball.radius": 0.001,
    },
    **{
        f"the moments of {name}": {"train.optimizer": name}
        for name in OPTIMIZERS
        if name != "adamw"
    },
    "a velocity": {"train.optimizer": "sgd", "sgd.momentum": 0.9, "train.learning_rate": 1e-2},
    "float32 copies of weights in bfloat16": {
        "train.weights": "bfloat16",
        "method.wrappers": "ball",
        "ball.radius": 0.001,
        "train.checkpoint_activations": True,
    },
    "an adapter with dropout": {
        "train.adapter": "lora",
        "lora.dropout": 0.3,
        "train.parameters": "q_proj",
    },
    **{
        f"the state of {name} in {n} pieces": {"method.forget": name, "train.accumulation": n}
        for name, row in FORGET.items()
        if row.weighting is not fixed_weight
        for n in (1, 2)
    },
    "the last weights that held retention": FALLING,
    "the weights of the best look": {"stop.keep": "best", "train.learning_rate": 3e-3},
}


class Killed(BaseException):
    """Stands for the process ending at this very instruction."""


def untaught(base: Path, cache: Path) -> Workspace:
    """The domain corpus with a model that knows nothing."""
    return Workspace(load_corpus(Trial().data), str(base), "", "untaught", cache)


def made(values: Mapping[str, Value]) -> Trial:
    return validate_trial(with_values(Trial(), {**SHORT, **values}))


def ran(
    trial: Trial, workspace: Workspace, run: Path
) -> tuple[dict[str, Tensor], list[dict[str, object]], list[float]]:
    """The weights that the trial ends with, its steps without their durations and its looks, and
    what was measured.
    """
    run_trial(trial, workspace, run, "test", "1")
    weights = {
        name: tensor.clone()
        for name, tensor in model_state.load_model_state(workspace.base).model.state_dict().items()
    }
    opened = open_run(run)
    steps = opened.steps.drop("seconds").sort("step").collect().to_dicts()
    steps += opened.curves.sort("x", "split").collect().to_dicts()
    return (
        weights,
        steps,
        opened.examples.sort("split", "doc_id", "metric").collect()["value"].to_list(),
    )


@pytest.mark.parametrize("values", CASES.values(), ids=CASES.keys())
def test_a_trial_broken_off_twice_ends_bit_for_bit_as_an_undisturbed_one(
    values: dict[str, Value], workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight steps, a checkpoint after 2, 4 and 6 (where a floor ends it, none after 6); the process
    ends right after those of 2 and of 4.
    """
    trial = made(values)
    saved: list[int] = []
    real = Checkpoints.save

    def save(
        self: Checkpoints, tensors: Mapping[str, Tensor], numbers: Mapping[str, object]
    ) -> None:
        real(self, tensors, numbers)
        saved.append(len(numbers["rows"]))  # type: ignore[arg-type]
        if dies and saved[-1] == dies[0]:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", save)
    dies = [0]
    quiet = ran(trial, workspace, tmp_path / "quiet")
    undisturbed = list(saved)
    assert undisturbed == ([2, 4] if values == FALLING else [2, 4, 6])
    saved.clear()
    for dies[0] in (2, 4):
        with pytest.raises(Killed):
            run_trial(trial, workspace, tmp_path / "broken", "test", "1")
    dies[0] = 0
    weights, steps, measured = ran(trial, workspace, tmp_path / "broken")
    # nothing that was kept was done again
    assert saved == undisturbed
    assert all(torch.equal(weights[name], quiet[0][name]) for name in quiet[0])
    assert steps == quiet[1] and len(steps) > 2
    assert measured == quiet[2]
    assert not list((tmp_path / "broken" / "checkpoints").iterdir())


SHARES = (0.25, 0.3, 0.4, 0.75)


@pytest.mark.parametrize("name", ["wrappers that remember", "the weights of the best look"])
def test_a_trial_that_pauses_at_two_rungs_ends_bit_for_bit_as_one_that_does_not(
    name: str, workspace: Workspace, tmp_path: Path
) -> None:
    """Eight steps and a look after every second; rungs after 2, 3 and 6. Two shares name the same
    step: the second call has nothing to train. But for the look after 3, which decides nothing, all
    is as without rungs; the curve is that of one that passed its rungs without a pause.
    """
    values = CASES[name] | {"train.checkpoint_every": 0}
    # an average is made after the last step, and no rung can see it
    trial = made(values | ({"method.wrappers": "sam,ball"} if "method.wrappers" in values else {}))
    quiet = ran(trial, workspace, tmp_path / "quiet")
    run = tmp_path / "paused"
    for until, steps in zip(SHARES, (2, 2, 3, 6), strict=True):
        assert run_trial(trial, workspace, run, "test", "1", rungs=Rungs(SHARES, until)) == "paused"
        row = open_run(run).trials.collect().row(0, named=True)
        assert (row["rung"], row["optimizer_steps"], row["planned_steps"]) == (until, steps, 8)
        assert not open_run(run).evals.collect().height
        assert open_run(run).curves.collect()["x"].max() == steps
    weights, steps_rows, measured = ran(trial, workspace, run)
    assert all(torch.equal(weights[key], quiet[0][key]) for key in quiet[0])
    assert ([row for row in steps_rows if row.get("x") != 3], measured) == quiet[1:]
    assert not list((run / "checkpoints").iterdir())
    straight = tmp_path / "straight"
    run_trial(trial, workspace, straight, "test", "1", rungs=Rungs(SHARES))
    curve = looks_of(run)
    assert curve.equals(looks_of(straight)) and 3.0 in curve["x"].to_list()


def looks_of(run: Path) -> pl.DataFrame:
    curves = open_run(run).curves.filter(pl.col("kind") == "training")
    return curves.select("x", "split", "metric", "value").sort("x", "split", "metric").collect()


def test_the_checkpoint_of_another_trial_or_a_damaged_one_is_as_none(
    workspace: Workspace, tmp_path: Path
) -> None:
    about = {"trial": "a"}
    kept = Checkpoints(tmp_path / "c.safetensors", about, every_steps=2)
    kept.save({"weight": torch.arange(3.0)}, {"rows": [0.1 + 0.2, float("inf")]})
    found = kept.read()
    assert (
        found is not None
        and torch.equal(found[0]["weight"], torch.arange(3.0))
        and found[1] == {"rows": [0.1 + 0.2, float("inf")]}
    )
    assert Checkpoints(kept.path, {"trial": "b"}, every_steps=2).read() is None
    content = bytearray(kept.path.read_bytes())
    content[-1] ^= 1
    kept.path.write_bytes(content)
    assert kept.read() is None
    kept.path.write_bytes(content[:40])
    assert kept.read() is None


def test_how_often_a_trial_is_kept_makes_no_other_trial() -> None:
    ids = {
        trial_id(made({"train.checkpoint_every": every}), "corpus", "model") for every in (0, 2, 50)
    }
    assert len(ids) == 1


KILLED = """
import sys
from pathlib import Path
from tests.train.test_checkpoint import made, untaught, torch
from rayunlearn.trial.run import run_trial
torch.set_num_threads(1)
base, cache, run = map(Path, sys.argv[1:])
run_trial(made({"train.length": 40}), untaught(base, cache), run, "test", "1")
"""


@pytest.mark.slow
def test_a_process_really_killed_in_the_middle_leaves_a_checkpoint_that_the_next_one_goes_on_from(
    workspace: Workspace, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """SIGKILL at whatever instruction, three times; then it is left alone."""
    run = tmp_path / "run"
    for kept_before in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, workspace.base, str(workspace.cache), str(run)],
            cwd=REPOSITORY,
        )
        deadline = time.monotonic() + 300
        seen: set[int] = set()
        # several checkpoints further each time
        while len(seen) < 3 + kept_before:
            assert process.poll() is None and time.monotonic() < deadline
            seen.update(path.stat().st_mtime_ns for path in run.glob("checkpoints/*.safetensors"))
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not finished_ids(run)
    trial = made({"train.length": 40})
    weights, steps, measured = ran(trial, workspace, tmp_path / "quiet")
    broken = ran(trial, workspace, run)
    assert broken[1] == steps and broken[2] == measured
    assert all(torch.equal(broken[0][name], weights[name]) for name in weights)
    record_property("survived", {"training_killed": 3})
