"""A whole trial on an untrained model: what is written, what is reset, what is recorded when it
goes wrong.
"""

from pathlib import Path

import polars as pl
import pytest
import torch

from rayunlearn.config import Train, Trial, Value, with_values
from rayunlearn.errors import UserError
from rayunlearn.storage.run import Run, open_run
from rayunlearn.trial import model_state
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.coreset import coverage
from rayunlearn.trial.identity import identify_trial
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.unlearn import select_documents
from rayunlearn.trial.workspace import Workspace, validate_trial, workspace_of

QUICK: dict[str, Value] = {
    "train.length": 4,
    "train.batch_size": 2,
    "method.layer": 1,
    "stop.check_every": 2,
}


def trial_of(**values: Value) -> Trial:
    return validate_trial(
        with_values(
            Trial(), QUICK | {name.replace("__", "."): value for name, value in values.items()}
        )
    )


def ran(trial: Trial, workspace: Workspace, run: Path) -> tuple[str, Run]:
    return run_trial(trial, workspace, run, "test", "1"), open_run(run)


def values_of(run: Run) -> list[float]:
    return run.examples.sort("split", "doc_id", "metric").collect()["value"].to_list()


def test_a_trial_writes_one_row_with_its_config_its_cost_and_its_coreset(
    workspace: Workspace, tmp_path: Path
) -> None:
    status, run = ran(trial_of(select__ratio=0.1), workspace, tmp_path)
    row = run.trials.collect().to_dicts()[0]
    assert status == row["status"] == "complete"
    assert row["select.ratio"] == 0.1 and row["npo.beta"] == 0.1 and row["method.forget"] == "npo"
    assert (
        row["optimizer_steps"] == 4
        and row["presentations"] == 8
        and row["epochs"] == pytest.approx(8 / row["n_kept"])
    )
    assert row["n_kept"] == round(0.1 * row["n_forget"]) == run.coresets.collect().height
    assert 0 < row["coverage"] < 1 and row["tokens"] > 0 and row["packages"].startswith("{")
    assert run.steps.collect()["step"].to_list() == [1, 2, 3, 4]


def test_rows_of_examples_have_the_group_of_their_question_and_no_other(
    workspace: Workspace, tmp_path: Path
) -> None:
    _, run = ran(trial_of(select__ratio=0.1), workspace, tmp_path)
    rows = run.examples.select("doc_id", "split", "group").unique().collect()
    asked = {d.doc_id: d for part in workspace.corpus.probes.values() for d in part}
    for doc_id, split, group in rows.iter_rows():
        assert group == (asked[doc_id].facts[0].partition(":")[0] if split != "holdout" else None)
    assert rows.filter(pl.col("split") == "forget")["group"].n_unique() == 8


def test_a_mean_in_evals_is_the_mean_of_its_examples(workspace: Workspace, tmp_path: Path) -> None:
    _, run = ran(trial_of(), workspace, tmp_path)
    means = (
        run.examples.drop_nulls("value")
        .group_by("split", "metric")
        .agg(pl.col("value").mean().alias("mean"))
    )
    joined = run.evals.join(means, on=["split", "metric"]).collect()
    # what no document allows has no mean
    assert joined.height == run.evals.drop_nulls("value").collect().height
    assert joined["value"].to_list() == pytest.approx(joined["mean"].to_list())


def test_the_same_trial_gives_the_same_numbers_whatever_ran_between(
    workspace: Workspace, tmp_path: Path
) -> None:
    _, first = ran(trial_of(), workspace, tmp_path / "a")
    ran(trial_of(method__forget="ga", train__learning_rate=0.1), workspace, tmp_path / "b")
    _, again = ran(trial_of(), workspace, tmp_path / "c")
    assert values_of(first) == values_of(again)
    assert first.steps.collect()["loss"].to_list() == again.steps.collect()["loss"].to_list()


def test_no_trial_can_change_the_weights_the_next_one_starts_from(
    workspace: Workspace, tmp_path: Path
) -> None:
    ran(trial_of(train__learning_rate=0.5), workspace, tmp_path)
    state = model_state.load_model_state(workspace.base)
    assert any(not torch.equal(p, state.pristine[n]) for n, p in state.model.named_parameters())
    model_state.reset_weights(workspace.base)
    assert all(torch.equal(p, state.pristine[n]) for n, p in state.model.named_parameters())


def test_changed_pristine_weights_are_noticed_before_they_spoil_a_trial(
    workspace: Workspace, tmp_path: Path
) -> None:
    state = model_state.load_model_state(workspace.base)
    name = next(iter(state.pristine))
    state.pristine[name].view(-1)[0] += 1.0
    try:
        with pytest.raises(model_state.CorruptWeightsError, match="changed in memory"):
            run_trial(trial_of(), workspace, tmp_path, "test", "1")
        assert not list(tmp_path.iterdir())
    finally:
        state.pristine[name].view(-1)[0] -= 1.0
        model_state.load_model_state.cache_clear()


def test_an_exception_becomes_a_row_with_its_cause(workspace: Workspace, tmp_path: Path) -> None:
    status, run = ran(trial_of(train__parameters="no_such_tensor"), workspace, tmp_path)
    row = run.trials.collect().to_dicts()[0]
    assert status == row["status"] == "failed" and row["error_type"] == "UserError"
    assert "no_such_tensor" in row["error"] and row["error_where"].startswith("loop.py:")
    assert run.examples.collect().height == 0


def test_a_loss_that_explodes_is_recorded_as_diverged_and_not_measured(
    workspace: Workspace, tmp_path: Path
) -> None:
    settings: dict[str, Value] = {
        "method__forget": "ga",
        "method__retain": "none",
        "train__learning_rate": 1e30,
        "train__length": 20,
        "stop__utility_floor": 0.0,
    }
    status, run = ran(trial_of(**settings), workspace, tmp_path)
    assert status == "diverged" and run.evals.collect().height == 0
    assert 0 < run.trials.collect()["optimizer_steps"][0] < 20


def test_a_model_that_loses_its_utility_stops_early_as_collapsed(
    workspace: Workspace, tmp_path: Path
) -> None:
    settings: dict[str, Value] = {
        "method__forget": "ga",
        "method__retain": "none",
        "train__learning_rate": 0.05,
        "train__length": 40,
        "stop__utility_floor": 0.9,
    }
    status, run = ran(trial_of(**settings), workspace, tmp_path)
    assert status == "collapsed" and run.trials.collect()["optimizer_steps"][0] < 40
    assert run.evals.collect().height > 0


def test_the_retain_only_control_touches_no_forget_document(
    workspace: Workspace, tmp_path: Path
) -> None:
    _, run = ran(trial_of(method__forget="none"), workspace, tmp_path)
    row = run.trials.collect().to_dicts()[0]
    assert (row["n_kept"], row["presentations"], row["coverage"]) == (0, 0, 0.0) and row[
        "optimizer_steps"
    ] == 4


@pytest.mark.parametrize("name", ["random", "min_k", "moderate"])
def test_a_small_coreset_is_part_of_a_larger_one_and_scores_are_kept_for_the_next_worker(
    workspace: Workspace, name: str
) -> None:
    state = model_state.reset_weights(workspace.base)
    few, scores = select_documents(
        TrialContext(trial_of(select__name=name, select__ratio=0.05), workspace, state)
    )
    many, again = select_documents(
        TrialContext(trial_of(select__name=name, select__ratio=0.3), workspace, state)
    )
    assert many[: len(few)] == few and torch.equal(scores, again)
    assert len(list((workspace.cache / "scores").rglob("*.parquet"))) > 0 or name == "random"


def test_selection_does_not_depend_on_the_order_of_the_file(workspace: Workspace) -> None:
    from dataclasses import replace

    turned = replace(
        workspace, corpus=replace(workspace.corpus, forget=tuple(reversed(workspace.corpus.forget)))
    )
    state = model_state.reset_weights(workspace.base)
    trial = trial_of(select__ratio=0.1)
    chosen = [
        [w.corpus.forget[p].doc_id for p in select_documents(TrialContext(trial, w, state))[0]]
        for w in (workspace, turned)
    ]
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(
    ("unit", "length", "n_kept", "steps"),
    [("steps", 7, 3, 7), ("epochs", 2, 12, 6), ("presentations", 10, 99, 2), ("epochs", 0.1, 3, 1)],
)
def test_training_length_in_three_units(unit: str, length: float, n_kept: int, steps: int) -> None:
    """Batches of four: 2 epochs of 12 are 24 presentations or 6 steps; 10 presentations are 2.5
    steps, to even 2; never none.
    """
    assert Train(unit=unit, length=length, batch_size=4).n_steps(n_kept) == steps


def test_coverage_is_the_share_of_facts_that_kept_documents_state(workspace: Workspace) -> None:
    facts = {f for d in workspace.corpus.forget for f in d.facts}
    assert coverage(workspace.corpus, range(len(workspace.corpus.forget))) == 1.0
    assert coverage(workspace.corpus, [0]) == pytest.approx(
        len(set(workspace.corpus.forget[0].facts)) / len(facts)
    )


def test_identity_ignores_paths_and_follows_content() -> None:
    plain = identify_trial(validate_trial(Trial()))
    assert plain == identify_trial(validate_trial(Trial())) and plain != identify_trial(
        validate_trial(with_values(Trial(), {"data.seed": 1}))
    )


def test_a_layer_that_the_model_does_not_have_is_refused_before_anything_runs() -> None:
    with pytest.raises(
        UserError, match=r"method\.layer must be < 3, the model's number of blocks, got 7"
    ):
        validate_trial(with_values(Trial(), {"method.forget": "rmu", "method.layer": 7}))


def test_a_workspace_knows_where_models_will_be_before_they_are_made(tmp_path: Path) -> None:
    place = workspace_of(validate_trial(Trial()), tmp_path)
    assert place.base.startswith(str(tmp_path)) and place.gold and not Path(place.base).exists()
