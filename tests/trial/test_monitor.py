"""What a trial records of its training, and the weights of the best look."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from rayunlearn.analysis.training_curve import constrained_rank
from rayunlearn.config import Objective, Trial, Value, with_values
from rayunlearn.errors import UserError
from rayunlearn.experiment import Budget, Experiment, grids_of
from rayunlearn.storage.run import Run, open_run
from rayunlearn.train.early_stopping import BestLook
from rayunlearn.train.live import LivePoint, listening
from rayunlearn.train.loop import TrainLog
from rayunlearn.trial.context import base_context
from rayunlearn.trial.monitor import MAX_PROBES, best_look_aim, monitored_probes
from rayunlearn.trial.probes import encoded_probes
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.workspace import Workspace, validate_trial

# Gradient ascent alone: at each look less is known of both.
FALLING: dict[str, Value] = {
    "method.forget": "ga",
    "method.retain": "none",
    "train.length": 7,
    "train.batch_size": 4,
    "train.learning_rate": 1e-3,
    "train.warmup_fraction": 0.0,
    "stop.check_every": 2,
    "stop.utility_floor": 0.0,
}


def ran(values: Mapping[str, Value], workspace: Workspace, folder: Path) -> Run:
    trial = validate_trial(with_values(Trial(), FALLING | dict(values)))
    assert run_trial(trial, workspace, folder, "test", "1") == "complete"
    return open_run(folder)


def curve(run: Run, split: str, metric: str) -> dict[float, float]:
    rows = run.curves.filter(
        pl.col("kind") == "training", pl.col("split") == split, pl.col("metric") == metric
    )
    return dict(rows.sort("x").select("x", "value").collect().iter_rows())


def watched_mean(run: Run, workspace: Workspace, trial: Trial, split: str, metric: str) -> float:
    """The mean over the watched documents of what the run measured of every document."""
    watched = [p.doc_id for p in encoded_probes(base_context(trial, workspace)) if p.split == split]
    rows = run.examples.filter(pl.col("split") == split, pl.col("metric") == metric).collect()
    values = dict(rows.select("doc_id", "value").iter_rows())
    return sum(values[name] for name in watched[:MAX_PROBES]) / len(watched[:MAX_PROBES])


def test_the_curve_begins_at_base_and_ends_at_what_is_measured(
    domain_workspace: Workspace, tmp_path: Path
) -> None:
    """Looks after 2, 4 and 6 of 7 steps and at the end; both ends against the whole measurement of
    base and of the trial, document by document.
    """
    values = {"stop.utility": "extraction_strength", "stop.utility_split": "untouched"}
    heard: list[LivePoint] = []
    with listening(heard.extend):
        run = ran(values, domain_workspace, tmp_path / "trial")
    trial = Trial()
    base = validate_trial(with_values(trial, {"stage": "base"}))
    run_trial(base, domain_workspace, tmp_path / "base", "test", "1")
    runs = (open_run(tmp_path / "base"), run)
    for split, metric in (("forget", "probability"), ("untouched", "extraction_strength")):
        points = curve(run, split, metric)
        assert list(points) == [0, 2, 4, 6, 7]
        ends = [watched_mean(ended, domain_workspace, trial, split, metric) for ended in runs]
        assert [points[0], points[7]] == pytest.approx(ends, abs=1e-5)
        # who listens heard the same, in the order of the steps
        name = f"training/{split}/{metric}"
        assert {step: v[name] for step, v in heard if name in v} == pytest.approx(points)
    losses = dict(run.steps.sort("step").select("step", "loss").collect().iter_rows())
    assert {step: v["train/loss"] for step, v in heard if "train/loss" in v} == losses
    assert [step for step, _ in heard] == sorted(step for step, _ in heard)
    assert not curve(run, "retain", "probability")
    area = run.trials.collect()["forget_utility_area"].item()
    assert 0 < area < 1


def test_the_weights_of_the_best_look_over_the_floor_come_back(
    domain_workspace: Workspace, tmp_path: Path
) -> None:
    """A floor between what two looks found: the trial ends with the weights of the earlier one, and
    what is measured of it is what that look saw.
    """
    free = ran({}, domain_workspace, tmp_path / "free")
    utility = curve(free, "retain", "probability")
    assert utility[0] > utility[2] > utility[4] > utility[6]
    values = {"stop.keep": "best", "stop.keep_floor": (utility[4] + utility[6]) / 2 / utility[0]}
    kept = ran(values, domain_workspace, tmp_path / "kept")
    row = kept.trials.collect().row(0, named=True)
    assert (row["kept_step"], row["optimizer_steps"]) == (4, 7)
    assert curve(kept, "forget", "probability") == curve(free, "forget", "probability")
    measured = watched_mean(kept, domain_workspace, Trial(), "forget", "probability")
    assert measured == pytest.approx(curve(free, "forget", "probability")[4], abs=1e-5)


def test_the_best_look_is_the_one_nearest_to_gold_and_not_the_one_that_forgot_most(
    domain_workspace: Workspace, tmp_path: Path
) -> None:
    """Gold's mean over the watched documents is that of a trial of gold's own, chance is base's."""
    values: dict[str, Value] = {"stop.keep": "best", "stop.keep_floor": 0.0, "stop.target": "gold"}
    values |= {"train.learning_rate": 3e-2, "stop.check_every": 1}
    run = ran(values, domain_workspace, tmp_path / "run")
    for stage in ("base", "gold"):
        trial = validate_trial(with_values(Trial(), {"stage": stage}))
        run_trial(trial, domain_workspace, tmp_path / stage, "test", "1")
    base, gold = (open_run(tmp_path / stage) for stage in ("base", "gold"))
    aim = watched_mean(gold, domain_workspace, Trial(), "forget", "probability")
    seen = curve(run, "forget", "probability")
    nearest = min(seen, key=lambda step: abs(seen[step] - aim))
    row = run.trials.collect().row(0, named=True)
    assert row["kept_step"] == nearest != min(seen, key=lambda step: seen[step])
    chance = watched_mean(base, domain_workspace, Trial(), "forget", "wrong_option_probability")
    without_gold = replace(domain_workspace, gold="")
    for target, workspace, expected in (
        ("gold", domain_workspace, aim),
        ("gold", without_gold, chance),
        ("chance", domain_workspace, chance),
    ):
        aimed = with_values(Trial(), values | {"stop.target": target})
        context = base_context(aimed, workspace)
        aim_of_trial = best_look_aim(context, monitored_probes(context))
        assert aim_of_trial == pytest.approx(expected, abs=1e-5)


def test_the_best_look_is_kept_by_hand() -> None:
    """Weights 1, 2, 3, 4 after as many steps; forgetting falls, the floor is broken after 3 and 4,
    and 2 forgets as much as 1: that of 1 comes back.
    """
    model = torch.nn.Linear(1, 1, bias=False)
    best = BestLook(model, constrained_rank(0.9, -0.1))
    looks = ((0.5, -0.1), (0.5, -0.2), (0.1, 0.1), (0.0, 0.4))
    for step, (forgetting, violation) in enumerate(looks, start=1):
        torch.nn.init.constant_(model.weight, float(step))
        best.see(step, constrained_rank(forgetting, violation))
    log = best.restore(TrainLog((), "stopped", 0))
    assert (log.outcome, log.kept_step, model.weight.item()) == ("early_stopped", 1, 1.0)
    diverged = TrainLog((), "diverged", 0)
    assert best.restore(diverged) is diverged


def test_an_experiment_that_keeps_the_best_look_says_by_its_objective_which_that_is() -> None:
    goal = Objective(forgetting="extraction_strength", utility_split="untouched", utility_floor=0.8)
    experiment = Experiment(
        name="mine",
        question="?",
        base=Trial(),
        grids=grids_of({"stop.keep": ("last", "best")}),
        search={},
        budget=Budget(tuning="none"),
        objective=goal,
    )
    stop = experiment.base.stop
    assert (stop.forgetting, stop.utility_split, stop.keep_floor, stop.target) == (
        "extraction_strength",
        "untouched",
        0.8,
        "gold",
    )
    rule = r"objective\.stage must be 'unlearned' with stop\.keep=best"
    with pytest.raises(UserError, match=rule):
        replace(experiment, objective=replace(goal, stage="attacked"))


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"stop.keep": "first"}, r"stop\.keep"),
        ({"stop.target": "base"}, r"stop\.target"),
        ({"stop.keep": "best", "stop.retention_floor": 0.5}, r"stop\.keep must be 'last'"),
        ({"stop.keep": "best", "method.wrappers": "average"}, r"weights change after the last"),
        ({"stop.forgetting": "rouge_l"}, r"stop\.forgetting must be a cheap metric"),
        ({"stop.keep_floor": 1.5}, r"stop\.keep_floor must be in \[0, 1\], got 1\.5"),
    ],
    ids=str,
)
def test_looks_that_contradict_other_settings_are_refused(
    values: dict[str, Value], rule: str
) -> None:
    with pytest.raises(UserError, match=rule):
        validate_trial(with_values(Trial(), values))
