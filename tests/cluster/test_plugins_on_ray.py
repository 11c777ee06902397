"""A loss of the experiment file and one of a file beside it, from `init` to the report, with real
models on the shared cluster.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

import rayunlearn
from rayunlearn.cli.main import main
from rayunlearn.plugins.load import forget_plugin, plugins
from rayunlearn.trial import code

LOSS = '''
import torch
from torch import Tensor
from rayunlearn.methods.forget import ForgetLoss
from rayunlearn.ranges import Positive


def {name}(token_nll: Tensor, labelled: Tensor, *, margin: Positive = 3.0) -> Tensor:
    """Ascent up to a margin."""
    return torch.relu(margin - {factor} * token_nll)[labelled].mean()


ROWS = (ForgetLoss({name}, "up to a margin", "ours", "mean max(0, m - NLL)", "labels"),)
'''
# the rest of an experiment file, below the sample that `init` writes
TAIL = """
PLUGINS = ("losses.py",)
AXES = {"method.forget": ("hinge", "hinge_beside")}
"""
QUICK = ["model.teach_epochs=1", "train.length=1"]


@pytest.fixture(autouse=True)
def no_plugin_stays() -> Iterator[None]:
    yield
    for plugin in plugins():
        forget_plugin(plugin.origin)


def test_losses_of_an_experiment_and_of_a_file_run_on_ray_and_a_changed_one_runs_again(
    ray_address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Base, gold, the control of both losses (which has no forget loss) and a trial each: five.
    Where the loss of the file changes, its one trial is new. Where a function of the package
    changes, `--rerun-changed` makes the trials that use it again: of one loss alone these are two,
    its own and the control, as base and gold have no retain loss.
    """
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine"]) == 0
    experiment, beside = tmp_path / "experiments/mine.py", tmp_path / "experiments/losses.py"
    sample = experiment.read_text(encoding="utf-8")
    experiment.write_text(sample + LOSS.format(name="hinge", factor=1) + TAIL, encoding="utf-8")
    beside.write_text(LOSS.format(name="hinge_beside", factor=1), encoding="utf-8")

    def output_of(command: str, *options: str) -> str:
        assert main([command, str(experiment), *options, "--set", *QUICK]) == 0
        return capsys.readouterr().out

    assert "5 trials: 0 finished, 5 to run" in output_of("plan")
    assert "5 of 5 trials are done (5 in this call" in output_of("run", "--workers", "1")
    run = rayunlearn.open("runs/mine/1")
    first = run.trials.join(run.plan, on="trial_id").collect()
    losses = dict(first.select("method.forget", "trial_id").iter_rows())
    assert {"hinge", "hinge_beside"} <= set(losses) and set(first["status"]) == {"complete"}

    beside.write_text(LOSS.format(name="hinge_beside", factor=2), encoding="utf-8")
    assert "5 trials: 4 finished, 1 to run" in output_of("plan")
    assert "5 of 5 trials are done (1 in this call" in output_of("run", "--workers", "1")
    planned = rayunlearn.open("runs/mine/1").plan.collect()["trial_id"]
    assert losses["hinge"] in planned and losses["hinge_beside"] not in planned

    digest_of = code._digest_of
    monkeypatch.setattr(
        code, "_digest_of", lambda used: "0" if used.__name__ == "nll" else digest_of(used)
    )
    alone = ("--set", "method.forget=hinge")
    assert "2 finished trials were made by other source code of nll" in output_of("plan", *alone)
    again = output_of("run", "--workers", "1", "--rerun-changed", *alone)
    assert "4 of 4 trials are done (2 in this call" in again

    forget_plugin(str(beside.resolve()))
    forget_plugin(str(experiment.resolve()))
    assert main(["attack", "runs/mine/1", "--trials", losses["hinge"]]) == 2
    said = capsys.readouterr().err
    assert "hinge" in said and "name that file with --plugin FILE" in said and len(said) < 400
