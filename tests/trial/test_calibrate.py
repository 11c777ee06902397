"""Calibration inside a trial: what is written, that it is the mixture it says, and that an adapter
is scaled.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from rayunlearn.config import Trial, Value, with_values
from rayunlearn.errors import UserError
from rayunlearn.storage.run import Run, open_run
from rayunlearn.trial import calibrate
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.evaluate import examples_frame, trial_examples
from rayunlearn.trial.identity import identify_trial
from rayunlearn.trial.model_state import reset_weights
from rayunlearn.trial.rebuild import rebuild_model
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.workspace import Workspace, validate_trial

# gradient ascent alone, fast enough to harm what is to be kept
HARSH: dict[str, Value] = {
    "method.forget": "ga",
    "method.retain": "none",
    "train.length": 12,
    "train.learning_rate": 3e-3,
    "stop.utility_floor": 0.0,
    "measure.metrics": "extraction_strength",
    "calibrate.tau": 0.95,
}


@pytest.fixture(scope="module")
def workspace(domain_workspace: Workspace) -> Workspace:
    """The domain dataset's base alone."""
    return replace(domain_workspace, gold="")


def trial_of(**values: Value) -> Trial:
    return validate_trial(
        with_values(
            Trial(), HARSH | {name.replace("__", "."): value for name, value in values.items()}
        )
    )


def ran(trial: Trial, workspace: Workspace, folder: Path) -> Run:
    assert run_trial(trial, workspace, folder, "test", "1") == "complete"
    return open_run(folder)


def mean(run: Run, stage: str, split: str) -> float:
    return float(
        run.evals.filter(pl.col("stage") == stage, pl.col("split") == split)
        .collect()["value"]
        .item()
    )


def means_at(
    trial: Trial, workspace: Workspace, weights: dict[str, torch.Tensor]
) -> dict[str, float]:
    """Mean of the trial's one metric by split with these weights in the model."""
    state = reset_weights(workspace.base)
    state.model.load_state_dict(weights)
    rows = (
        examples_frame(trial_examples(TrialContext(trial, workspace, state)))
        .group_by("split")
        .agg(pl.col("value").mean())
    )
    return dict(rows.iter_rows())


def test_a_harmed_model_is_mixed_back_and_measured_at_the_weights_that_the_row_names(
    workspace: Workspace, tmp_path: Path
) -> None:
    """The mixture is put together here from base and the remade weights, and measured again."""
    trial = trial_of()
    run = ran(trial, workspace, tmp_path)
    row = run.trials.collect().row(0, named=True)
    base, after = (
        dict(reset_weights(workspace.base).pristine),
        {n: t.clone() for n, t in rebuild_model(trial, workspace).model.state_dict().items()},
    )
    kept = means_at(trial, workspace, base)["retain"]
    assert mean(run, "unlearned", "retain") < 0.9 * kept, "the trial must have harmed something"
    assert 0 < row["calibrated_alpha"] <= row["calibrated_beside_alpha"] < 1
    for stage, share, alpha in (
        ("calibrated", 0.95, row["calibrated_alpha"]),
        ("calibrated_beside", 0.9, row["calibrated_beside_alpha"]),
    ):
        found = means_at(
            trial, workspace, {n: base[n] + alpha * (after[n] - base[n]) for n in base}
        )
        assert (
            mean(run, stage, "retain") == pytest.approx(found["retain"], abs=0.01)
            and mean(run, stage, "retain") >= share * kept
        )
        assert mean(run, stage, "forget") == pytest.approx(found["forget"], abs=0.01)
    assert mean(run, "unlearned", "forget") <= mean(run, "calibrated_beside", "forget") + 0.02


def test_the_path_is_in_curves_with_its_ends_at_base_and_at_the_unlearned_model(
    workspace: Workspace, tmp_path: Path
) -> None:
    trial = trial_of()
    run = ran(trial, workspace, tmp_path)
    path = (
        run.curves.filter(pl.col("split") == "retain", pl.col("kind") != "training")
        .sort("x")
        .collect()
    )
    assert (
        path["kind"].unique().to_list() == ["mixing"] and path["x"][0] == 0 and path["x"][-1] == 1
    )
    assert path["value"][-1] == mean(run, "unlearned", "retain")
    assert path["value"][0] == pytest.approx(
        means_at(trial, workspace, reset_weights(workspace.base).pristine)["retain"]
    )
    assert (
        set(run.curves.collect()["split"]) == {"retain", "forget"} and path["x"].is_unique().all()
    )


def test_the_ends_of_the_path_are_not_measured_again(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base once for two trials of one worker, and the unlearned model by the trial's own rows."""
    calls: list[float] = []
    measure_at = calibrate.MixingPath.measure_at

    def counted(path: calibrate.MixingPath, alpha: float, measure: Callable[[], Any]) -> Any:
        calls.append(alpha)
        return measure_at(path, alpha, measure)

    monkeypatch.setattr(calibrate.MixingPath, "measure_at", counted)
    reset_weights(workspace.base).cache.clear()
    for number in (1, 2):
        ran(trial_of(train__seed=number, stop__check_every=50), workspace, tmp_path / str(number))
    assert calls.count(0) == 1 and calls.count(1) == 0 and len(calls) > 6
    base = {
        value
        for number in (1, 2)
        for value in open_run(tmp_path / str(number))
        .curves.filter(pl.col("x") == 0, pl.col("split") == "retain", pl.col("kind") == "mixing")
        .collect()["value"]
    }
    assert len(base) == 1


def test_a_calibrated_adapter_is_the_adapter_scaled(workspace: Workspace, tmp_path: Path) -> None:
    """W + alpha (lora alpha / rank) B A by hand, from the adapter that the trial left, against the
    row of stage calibrated.
    """
    trial = trial_of(
        train__adapter="lora",
        train__parameters="mlp|attn",
        train__learning_rate=3e-2,
        lora__rank=4,
        lora__alpha=8,
    )
    run = ran(trial, workspace, tmp_path)
    alpha = run.trials.collect()["calibrated_alpha"].item()
    assert 0 < alpha < 1, "the trial must have harmed something"
    factors = load_file(
        tmp_path
        / "adapters"
        / str(run.trials.collect()["trial_id"].item())
        / "adapter_model.safetensors"
    )
    weights = {
        name: tensor.clone() for name, tensor in reset_weights(workspace.base).pristine.items()
    }
    for name, down in factors.items():
        if ".lora_A." in name:
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            weights[f"{module}.weight"] += (
                alpha * (8 / 4) * factors[name.replace("lora_A", "lora_B")] @ down
            )
    found = means_at(trial, workspace, weights)
    assert mean(run, "calibrated", "retain") == pytest.approx(found["retain"], abs=0.01)
    assert mean(run, "calibrated", "forget") == pytest.approx(found["forget"], abs=0.01)


def test_a_model_that_retains_enough_is_its_own_calibration(
    workspace: Workspace, tmp_path: Path
) -> None:
    run = ran(trial_of(train__learning_rate=1e-6), workspace, tmp_path)
    row = run.trials.collect().row(0, named=True)
    assert (row["calibrated_alpha"], row["calibrated_search"], row["calibrated_beside_alpha"]) == (
        1.0,
        "whole",
        1.0,
    )
    assert mean(run, "calibrated", "forget") == mean(run, "unlearned", "forget")


def test_without_a_share_nothing_is_calibrated_and_its_settings_make_no_other_trial(
    workspace: Workspace, tmp_path: Path
) -> None:
    off = [
        trial_of(calibrate__tau=0.0, calibrate__split=split) for split in ("retain", "untouched")
    ]
    assert identify_trial(off[0]) == identify_trial(off[1]) != identify_trial(trial_of())
    run = ran(off[0], workspace, tmp_path)
    assert set(run.curves.collect()["kind"]) <= {"training"} and set(
        run.evals.collect()["stage"]
    ) == {"unlearned"}


def test_mistakes_are_told(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"calibrate\.retention must be one metric where higher is more knowledge, got"
            r" 'perplexity'"
        ),
    ):
        trial_of(calibrate__retention="perplexity")
    run_trial(trial_of(calibrate__split="nowhere"), workspace, tmp_path, "test", "1")
    assert (
        "calibrate.split must be a split of the probes"
        in open_run(tmp_path).trials.collect()["error"].item()
    )
