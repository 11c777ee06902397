"""Trackers, read back by their own readers; and that a sweep tells each trial once and outlives a
tracker that fails.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from rayunlearn.cluster import sweep as sweeping
from rayunlearn.cluster.sweep import check_trackers
from rayunlearn.config import Trial
from rayunlearn.errors import UserError
from rayunlearn.experiment import override
from rayunlearn.storage.run import open_run, write_trial
from rayunlearn.train.live import listening
from rayunlearn.train.loop import StepRow
from rayunlearn.trial.unlearn import tell_rows
from tests.cluster.conftest import Tracked, untuned


def one_trial(run: Path) -> str:
    """A trial of two steps and one measurement, with a loss that is NaN in its second step."""
    step = {"forget_loss": 0.5, "grad_norm": 1.0, "tokens": 7, "seconds": 0.25}
    place = {
        "stage": "unlearned",
        "attack": "none",
        "step": 2,
        "split": "forget",
        "metric": "probability",
    }
    rows = {
        "trials": [
            {
                "experiment": "fake",
                "version": "1",
                "status": "complete",
                "n_forget": 8,
                "coverage": 0.5,
            }
        ],
        "steps": [{"step": 2, "loss": float("nan"), **step}, {"step": 1, "loss": 2.5, **step}],
        "evals": [{**place, "value": 0.125, "n": 8}],
        "curves": [
            {"kind": "training", "x": 2.0, "split": "forget", "metric": "probability"}
            | {"value": 0.75, "n": 8, "stderr": 0.0}
        ],
    }
    write_trial(run, "abc", rows, {"npo.beta": 0.1, "method.forget": "npo"})
    return "abc"


def test_what_a_tracker_is_told_is_what_the_files_say(tmp_path: Path) -> None:
    from rayunlearn.cluster.trackers import tracked_trial

    seen = tracked_trial(tmp_path, one_trial(tmp_path))
    assert (seen.trial_id, seen.status, seen.settings) == (
        "abc",
        "complete",
        {"npo.beta": 0.1, "method.forget": "npo"},
    )
    assert seen.measured == {
        "unlearned/forget/probability": 0.125,
        "n_forget": 8.0,
        "coverage": 0.5,
    }
    assert [step for step, _ in seen.steps] == [1, 2]
    assert seen.steps[0][1]["train/loss"] == 2.5 and "train/loss" not in seen.steps[1][1]
    assert seen.steps[1][1]["training/forget/probability"] == 0.75


def test_tensorboard_reads_back_steps_and_measurements(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from rayunlearn.cluster.trackers import RunInfo, TensorBoard, tracked_trial

    TensorBoard(RunInfo(tmp_path, "fake", "1")).log_trial(
        tracked_trial(tmp_path, one_trial(tmp_path))
    )
    read = EventAccumulator(str(next((tmp_path / "tensorboard").glob("npo-*/abc"))))
    read.Reload()
    assert [(point.step, point.value) for point in read.Scalars("train/loss")] == [(1, 2.5)]
    assert [(point.step, point.value) for point in read.Scalars("train/tokens")] == [
        (1, 7.0),
        (2, 7.0),
    ]
    assert read.Scalars("unlearned/forget/probability")[0].value == 0.125


# MLflow's own, of SQLAlchemy
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_reads_back_and_a_second_telling_replaces_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    from rayunlearn.cluster.trackers import MLflow, RunInfo, tracked_trial

    address = f"sqlite:///{tmp_path / 'tracked.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    tracker = MLflow(RunInfo(tmp_path, "fake", "1"))
    for _ in range(2):
        tracker.log_trial(tracked_trial(tmp_path, one_trial(tmp_path)))
    client = MlflowClient(tracking_uri=address)
    found = client.get_experiment_by_name("fake/1")
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    assert run.data.tags["cell"].startswith("npo-")
    assert run.data.params == {"npo.beta": "0.1", "method.forget": "npo"}
    assert run.data.metrics["unlearned/forget/probability"] == 0.125
    assert [
        (m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")
    ] == [(1, 2.5)]


def test_wandb_offline_writes_the_trial_into_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    from rayunlearn.cluster.trackers import RunInfo, WandB, tracked_trial

    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_CONFIG_DIR": str(tmp_path),
        "WANDB_CACHE_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    WandB(RunInfo(tmp_path, "fake", "1")).log_trial(tracked_trial(tmp_path, one_trial(tmp_path)))
    # W&B's own process writes the last block of the file some time after `finish` has returned, at
    # the latest when it ends: with the driver, or here
    wandb.teardown()
    (written,) = tmp_path.glob("wandb/offline-run-*/run-abc.wandb")
    content = written.read_bytes()
    assert (
        b"unlearned/forget/probability" in content
        and b"0.125" in content
        and b"npo.beta" in content
        and tracked_trial(tmp_path, "abc").cell.encode() in content
    )


def test_seeds_of_a_cell_are_a_group_and_other_settings_are_not() -> None:
    from rayunlearn.cluster.trackers import cell_of

    one = {"method.forget": "npo", "select.ratio": 0.1, "train.seed": 0, "select.seed": 0}
    assert cell_of(one) == cell_of(one | {"train.seed": 4, "select.seed": 2})
    assert cell_of(one) != cell_of(one | {"npo.beta": 0.2})


class Page:
    """A tracker that remembers what it was told, and cannot be reached the first time."""

    calls: ClassVar[list[tuple[str, list[tuple[int, dict[str, float]]]]]] = []
    failures: ClassVar[list[str]] = []

    def __init__(self, _run_info: object) -> None:
        pass

    def log_points(self, trial: Any) -> None:
        if self.failures:
            raise ConnectionError(self.failures.pop())
        self.calls.append(("points", [(step, dict(numbers)) for step, numbers in trial.steps]))

    def log_trial(self, trial: Any) -> None:
        self.calls.append(("trial", [(step, dict(numbers)) for step, numbers in trial.steps]))

    def close(self) -> None:
        self.calls.append(("close", []))


def told_live(run: Path, monkeypatch: pytest.MonkeyPatch, failures: list[str]) -> list[Any]:
    """What a tracker hears of a trial of two steps that says its first while it runs."""
    from rayunlearn.cluster import trackers

    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", Page)
    monkeypatch.setattr(Page, "calls", [])
    monkeypatch.setattr(Page, "failures", failures)
    left = [("abc", (1, {"train/loss": 2.5, "train/tokens": 7.0})), ("other", (1, {"x": 1.0}))]
    callback = trackers.TrackerCallback(
        ("tensorboard",),
        trackers.RunInfo(run, "fake", "1"),
        lambda: [left.pop(0) for _ in range(len(left))],
    )
    callback.setup()
    trial = SimpleNamespace(config={"trial": Trial(), "trial_id": one_trial(run)})
    callback.on_trial_start(0, [], trial)
    callback.on_step_end(0, [])
    callback.on_trial_complete(1, [], trial)
    callback.on_experiment_end([])
    assert not callback.failed
    return Page.calls


def test_a_tracker_hears_of_a_trial_while_it_runs_and_of_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, end, close = told_live(tmp_path, monkeypatch, [])
    assert live == ("points", [(1, {"train/loss": 2.5, "train/tokens": 7.0})])
    later = {"train/forget_loss": 0.5, "train/grad_norm": 1.0, "train/seconds": 0.25}
    last = later | {"train/tokens": 7.0, "training/forget/probability": 0.75}
    assert end == ("trial", [(1, later), (2, last)])
    assert close == ("close", [])


def test_what_a_tracker_could_not_be_told_while_a_trial_ran_it_is_told_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, _ = told_live(tmp_path, monkeypatch, ["nobody at that address"])
    assert end[0] == "trial" and end[1][0][1]["train/loss"] == 2.5


def test_training_tells_who_listens_of_its_steps_and_only_inside_the_block() -> None:
    heard: list[Any] = []
    row = StepRow(
        step=3,
        loss=0.5,
        forget_loss=None,
        retain_loss=None,
        retain_weight=None,
        grad_norm=float("inf"),
        learning_rate=1e-3,
        tokens=7,
        seconds=0.25,
    )
    with listening(heard.extend):
        tell_rows([row])
    tell_rows([row])
    numbers = {"loss": 0.5, "learning_rate": 1e-3, "tokens": 7.0, "seconds": 0.25}
    assert heard == [(3, {f"train/{name}": value for name, value in numbers.items()})]


def test_a_sweep_tells_every_trial_once_and_no_pause(tracked: Tracked) -> None:
    done = tracked.result
    assert done.done == done.total
    assert sorted(tracked.told) == sorted(
        open_run(done.run).trials.select("trial_id", "status").collect().iter_rows()
    )


def test_a_tracker_that_fails_is_said_once_and_stops_nothing(tracked: Tracked) -> None:
    done = tracked.result
    assert done.done == done.total
    (warning,) = [said for said in tracked.warnings if "was not told" in said]
    assert (
        warning
        == f"mlflow was not told of {done.total} trials (ConnectionError: nobody at that address);"
        " the run folder has them all"
    )


def test_an_unknown_tracker_and_one_that_is_not_installed_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        override(untuned({"select.seed": (1,)}), {"track": "tensorbord"})
    assert override(untuned({"select.seed": (1,)}), {"track": "tensorboard, mlflow"}).track == (
        "tensorboard",
        "mlflow",
    )
    monkeypatch.setattr(sweeping, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"track=wandb needs the package wandb installed"):
        check_trackers(("wandb",))
