"""Diagnostics and G-effect of a trial, from its rows."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from rayunlearn.canonical import measured_stage
from rayunlearn.config import Trial, with_values
from rayunlearn.storage.run import Run, open_run
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.workspace import Workspace, validate_trial

ASKED = {
    "train.length": 5,
    "train.learning_rate": 1e-3,
    "train.batch_size": 4,
    "stop.check_every": 2,
    "method.forget": "ga",
    "method.retain": "none",
    "measure.metrics": "probability",
    "measure.limit_probes": "8",
    "explain.diagnostics": True,
    "explain.g_effect": True,
}


@pytest.fixture(scope="module")
def runs(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """Five steps of gradient ascent, and base."""
    folder = tmp_path_factory.mktemp("diagnosed")
    trial = validate_trial(with_values(Trial(), ASKED))
    for name, stage in (("own", trial), ("base", validate_trial(measured_stage(trial, "base")))):
        assert run_trial(stage, workspace, folder / name, "test", "1") == "complete"
    return open_run(folder / "own"), open_run(folder / "base")


def test_blocks_have_moved_in_a_trial_and_not_in_base(runs: tuple[Run, Run]) -> None:
    own, base = (run.diagnostics.sort("layer").collect() for run in runs)
    assert own["layer"].to_list() == base["layer"].to_list() == [0, 1, 2]
    assert base["relative_change"].to_list() == base["spectral_norm"].to_list() == [0.0] * 3
    assert base["stable_rank"].null_count() == 3 and base["separation"].min() > 0
    assert own["relative_change"].min() > 0 and own["stable_rank"].min() >= 1
    assert own["stage"].unique().to_list() == ["unlearned"]


def test_gradient_ascent_points_against_the_gradient_of_what_it_forgets(
    runs: tuple[Run, Run],
) -> None:
    """Looks at 0, 2, 4 and the last step, 5. The forget loss of ascent is the batch's NLL with the
    other sign, so its cosine with that of forget documents is below zero from the start.
    """
    rows = runs[0].curves.filter(pl.col("kind") == "gradients").collect()
    cosines = rows.filter(metric="g_effect_cosine", split="forget").sort("x")
    assert cosines["x"].to_list() == [0.0, 2.0, 4.0, 5.0]
    assert cosines["value"].max() < 0 and cosines["value"].min() >= -1
    assert rows.filter(metric="g_effect", split="forget")["value"].max() < 0
    assert set(rows["split"]) == {"forget", "retain"} and rows["n"].unique().to_list() == [16]
    assert runs[1].curves.filter(pl.col("kind") == "gradients").collect().is_empty()


def test_asking_for_effects_changes_no_weight(
    runs: tuple[Run, Run], workspace: Workspace, tmp_path: Path
) -> None:
    asked = with_values(Trial(), ASKED)
    plain = validate_trial(replace(asked, explain=Trial().explain))
    run_trial(plain, workspace, tmp_path, "test", "1")
    without, own = (
        run.steps.sort("step").select("loss", "grad_norm").collect()
        for run in (open_run(tmp_path), runs[0])
    )
    assert without.equals(own)
    assert open_run(tmp_path).diagnostics.collect().is_empty()
