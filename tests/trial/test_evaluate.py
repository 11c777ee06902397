"""What a trial measures beyond the default: chosen metrics, their options, base and gold to compare
with, the holdout.
"""

import math
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from scipy.stats import ks_2samp, mannwhitneyu

from rayunlearn.canonical import canonical_trial
from rayunlearn.config import Trial, Value, with_values
from rayunlearn.errors import UserError
from rayunlearn.metrics.evaluate import chosen_metrics
from rayunlearn.metrics.table import CHANCE_LEVELS
from rayunlearn.storage.run import Run, open_run
from rayunlearn.trial import evaluate as evaluate_code
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.evaluate import (
    examples_frame,
    gold_examples,
    label_examples,
    measured_metrics,
    trial_examples,
)
from rayunlearn.trial.model_state import reset_weights
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.workspace import Workspace, validate_trial

SHORT: dict[str, Value] = {
    "train.length": 6,
    "train.learning_rate": 1e-3,
    "method.layer": 1,
    "stop.check_every": 6,
}


@pytest.fixture(scope="module")
def workspace(domain_workspace: Workspace) -> Workspace:
    return domain_workspace


def trial_of(metrics: str, **values: Value) -> Trial:
    return validate_trial(
        with_values(
            Trial(),
            SHORT
            | {"measure.metrics": metrics}
            | {name.replace("__", "."): v for name, v in values.items()},
        )
    )


def ran(trial: Trial, workspace: Workspace, folder: Path) -> Run:
    assert run_trial(trial, workspace, folder, "test", "1") == "complete"
    return open_run(folder)


def values(run: Run, metric: str, split: str) -> list[float]:
    rows = (
        run.examples.filter(pl.col("metric") == metric, pl.col("split") == split)
        .sort("doc_id")
        .collect()
    )
    return rows["value"].to_list()


def evaluated(run: Run, metric: str) -> float:
    return float(
        run.evals.filter(pl.col("metric") == metric, pl.col("split") == "forget")
        .collect()["value"]
        .item()
    )


def test_membership_and_forget_quality_are_rows_of_evals_and_agree_with_scipy(
    workspace: Workspace, tmp_path: Path
) -> None:
    """AUC = U / (n m) of Mann and Whitney, as holdout against the forget documents themselves;
    forget quality is scipy's KS.
    """
    unlearned = ran(trial_of("min_k_score,truth_ratio"), workspace, tmp_path / "unlearned")
    gold = ran(trial_of("min_k_score,truth_ratio", stage="gold"), workspace, tmp_path / "gold")
    members, holdout = (values(unlearned, "min_k_score", split) for split in ("members", "holdout"))
    area = mannwhitneyu(holdout, members).statistic / (len(holdout) * len(members))
    assert evaluated(unlearned, "min_k_score_auc") == pytest.approx(area)
    assert (
        len(members) == len(workspace.corpus.forget)
        and evaluated(unlearned, "min_k_score_tpr_at_fpr") >= 0
    )
    gold_area = evaluated(gold, "min_k_score_auc")
    assert evaluated(unlearned, "privacy_leakage") == pytest.approx(
        100 * (gold_area - area) / (1 - gold_area)
    )
    found = ks_2samp(
        values(unlearned, "truth_ratio", "forget"), values(gold, "truth_ratio", "forget")
    )
    assert (
        evaluated(unlearned, "forget_quality") == pytest.approx(found.pvalue)
        and evaluated(unlearned, "forget_distance") == found.statistic
    )
    assert (
        not unlearned.examples.filter(
            pl.col("split") == "holdout", pl.col("metric") != "min_k_score"
        )
        .collect()
        .height
    )


def test_gold_knows_forget_and_holdout_alike_and_base_does_not(workspace: Workspace) -> None:
    """Gold saw neither, so its AUC must be within three standard errors of 1/2 (Hanley & McNeil:
    sqrt(1/12 (1/n + 1/m)) at 1/2).
    """
    n = len(workspace.corpus.forget)
    error = math.sqrt((1 / n + 1 / n) / 12)
    areas = {}
    for stage in ("base", "gold"):
        trial = trial_of("loss_score", stage=stage)
        context = TrialContext(trial, workspace, reset_weights(getattr(workspace, stage)))
        rows = label_examples(context, trial_examples(context), stage=stage, step=0)["evals"]
        areas[stage] = next(row["value"] for row in rows if row["metric"] == "loss_score_auc")
    assert abs(areas["gold"] - 0.5) < 3 * error and areas["base"] > 0.95


def test_every_metric_there_is_can_be_measured_in_a_trial(
    workspace: Workspace, tmp_path: Path
) -> None:
    run = ran(trial_of("all", measure__max_new_tokens=4, measure__samples=4), workspace, tmp_path)
    named = set(run.examples.select("metric").unique().collect()["metric"])
    assert named == set(chosen_metrics("all")) - CHANCE_LEVELS
    assert {"privacy_leakage", "forget_quality", "gradient_norm_score_auc"} <= set(
        run.evals.collect()["metric"]
    )


def test_distance_to_base_is_that_of_the_base_weights_whatever_the_model_holds_now(
    workspace: Workspace,
) -> None:
    """The base model is at distance 0 from itself, exactly, and the weights that stood in the model
    stay in it.
    """
    trial = trial_of("base_kl,reference_score")
    state = reset_weights(workspace.base)
    name, first = next(iter(state.model.named_parameters()))
    first.data += 0.05
    moved = examples_frame(trial_examples(TrialContext(trial, workspace, state))).filter(
        pl.col("metric") == "base_kl", pl.col("split") == "forget"
    )
    assert moved["value"].min() > 0 and not (first.data == state.pristine[name]).all()
    state = reset_weights(workspace.base)
    still = examples_frame(trial_examples(TrialContext(trial, workspace, state))).filter(
        pl.col("split") == "forget"
    )
    assert still["value"].abs().max() < 1e-6


def test_a_model_measured_twice_gives_the_same_rows(workspace: Workspace) -> None:
    """Sampled texts included: they are drawn from seeds, not from the state of a generator."""
    trial = trial_of(
        "probability,leak_at_k,rouge_l_recall,min_k_plus_score,letter_written",
        measure__max_new_tokens=4,
        measure__samples=4,
    )
    first, again = (
        trial_examples(TrialContext(trial, workspace, reset_weights(workspace.base)))
        for _ in range(2)
    )
    assert first == again


def test_options_of_metrics_are_settings_of_the_trial(workspace: Workspace) -> None:
    half, all_of_it = (trial_of("min_k_score", min_k_score__share=share) for share in (0.5, 1.0))
    assert dict(half.options)["min_k_score.share"] == 0.5 and "leak_at_k.k" not in dict(
        half.options
    )
    state = reset_weights(workspace.base)
    means = [
        examples_frame(trial_examples(TrialContext(trial, workspace, state)))["value"].mean()
        for trial in (half, all_of_it)
    ]
    assert means[0] > means[1], (
        "the least likely half of the tokens is less likely than all of them"
    )


def test_base_and_gold_keep_the_options_of_their_metrics_and_no_others() -> None:
    stages = [
        canonical_trial(
            trial_of("min_k_score", stage="base", min_k_score__share=0.5, npo__beta=beta),
            check=validate_trial,
        )
        for beta in (0.1, 0.5)
    ]
    assert stages[0] == stages[1] and dict(stages[0].options)["min_k_score.share"] == 0.5


def test_base_has_unlearned_nothing_gold_everything_and_gold_is_patched_once(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own states base loses nothing (0), with gold's all that gold lacks (1). Two trials,
    and each split, share what gold's states gave.
    """
    asked: list[Workspace] = []
    load = evaluate_code._gold_model
    monkeypatch.setattr(
        evaluate_code, "_gold_model", lambda place: [asked.append(place), load(place)][1]
    )
    n_splits = 0
    for stage, depth in (("base", 0.0), ("gold", 1.0)):
        trial = trial_of("unlearning_depth", stage=stage, measure__limit_probes="12")
        context = TrialContext(trial, workspace, reset_weights(getattr(workspace, stage)))
        rows = examples_frame(trial_examples(context))
        forget = rows.filter(pl.col("split") == "forget")["value"].drop_nulls()
        assert len(forget) >= 10
        assert forget.to_list() == pytest.approx([depth] * len(forget), abs=1e-3)
        n_splits = n_splits or len(asked)
        assert len(asked) == n_splits, "the second model found gold's part there"


def test_a_metric_that_needs_gold_is_refused_by_name_and_left_out_of_all_without_it(
    workspace: Workspace,
) -> None:
    without = with_values(Trial(), {"model.teach": False, "model.name": workspace.base})
    named = with_values(without, {"measure.metrics": "probability,unlearning_depth"})
    with pytest.raises(UserError, match="unlearning_depth needs a gold model .model.teach, or mo"):
        validate_trial(named)
    every = validate_trial(with_values(without, {"measure.metrics": "all"}))
    assert "unlearning_depth" in measured_metrics(every, workspace)
    assert "unlearning_depth" not in measured_metrics(every, replace(workspace, gold=""))


def test_gold_is_measured_once_and_not_at_all_where_nothing_is_compared_with_it(
    workspace: Workspace,
) -> None:
    trial = trial_of("truth_ratio")
    first = gold_examples(trial, workspace)
    assert first is not None and first.equals(gold_examples(trial, workspace))
    assert gold_examples(trial_of("probability"), workspace) is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"measure__metrics": "probabilty"},
            r"unknown metric 'probabilty'; did you mean 'probability'\?",
        ),
        (
            {"measure__metrics": "leak_at_k", "measure__samples": 2},
            r"measure\.samples must be >= leak_at_k\.k, here 4, got 2",
        ),
        ({"measure__max_new_tokens": 0}, r"measure\.max_new_tokens must be >= 1, got 0"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(values: dict[str, Value], words: str) -> None:
    with pytest.raises(UserError, match=words):
        trial_of(
            **{"metrics": "cheap"}
            | {name if name != "measure__metrics" else "metrics": v for name, v in values.items()}
        )
