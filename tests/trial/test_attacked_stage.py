"""A trial that attacks its own model at the end: what it leaves is what the same attack as a trial
of its own leaves, and an objective reads it.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from rayunlearn.analysis.coreset_table import coreset_table
from rayunlearn.analysis.run_frames import trial_table, values_by_trial
from rayunlearn.config import (
    LATER_SETTINGS,
    RESULT_NEUTRAL,
    Attack,
    Measure,
    Objective,
    Train,
    Trial,
    digest,
    flatten,
    trial_id,
    with_teaching,
)
from rayunlearn.errors import UserError
from rayunlearn.experiment import Budget, Experiment, grids_of, override, settings
from rayunlearn.planning.backend import can_divide
from rayunlearn.planning.outcomes import study_goal, trial_result, trial_results
from rayunlearn.reporting.tables import coreset_view
from rayunlearn.storage.run import Run, open_run, write_experiment, write_run_table
from rayunlearn.trial import model_state
from rayunlearn.trial.attack import run_attack_or_trial
from rayunlearn.trial.workspace import Workspace, identity_in, validate_trial

STEPS = ("relearning.steps", 6)
AFTER = Objective(stage="attacked", attack="relearning")


def of_attack(name: str, *options: tuple[str, object]) -> Trial:
    """Four steps of unlearning, then the attack."""
    return validate_trial(
        Trial(
            train=Train(length=4, learning_rate=3e-3, seed=1),
            measure=Measure(attack=name),
            options=tuple(options),  # type: ignore[arg-type]
        )
    )


@pytest.fixture
def workspace(domain_workspace: Workspace, tmp_path: Path) -> Iterator[Workspace]:
    """The domain dataset's with a cache of the test's own."""
    yield replace(domain_workspace, cache=tmp_path / "cache")
    model_state.load_model_state.cache_clear()


def ran(trial: Trial, workspace: Workspace, run: Path) -> str:
    """Run it; its id."""
    assert run_attack_or_trial(trial, workspace, run, "test", "1") == "complete"
    return identity_in(trial, workspace)


def values(rows: pl.DataFrame, stage: str, attack: str) -> pl.DataFrame:
    keys = ["doc_id", "split", "metric"]
    matching = rows.filter(stage=stage, attack=attack)
    return matching.select(*keys, "value").sort(keys)


@pytest.mark.parametrize("stage", ["unlearned", "gold"])
def test_what_the_own_attack_leaves_is_what_the_attack_as_a_trial_leaves(
    workspace: Workspace, tmp_path: Path, stage: str
) -> None:
    """The same examples bit by bit; the model before the attack is that of a trial without one."""
    trial = validate_trial(replace(of_attack("relearning", STEPS), stage=stage))
    seed = trial.train.seed
    ran(trial, workspace, tmp_path / "own")
    plain = validate_trial(replace(trial, measure=Measure()))
    ran(plain, workspace, tmp_path / "plain")
    attack = replace(plain, attack=Attack(name="relearning", seed=seed), options=(STEPS,))
    attacking = replace(attack, options=(*plain.options, STEPS))
    ran(validate_trial(attacking), workspace, tmp_path / "attack")
    own, before, after = (
        open_run(tmp_path / name).examples.collect() for name in ("own", "plain", "attack")
    )
    assert values(own, "attacked", "relearning").equals(values(after, stage, "relearning"))
    # an attack asks neither members nor holdout
    asked = pl.col("split").is_in(["forget", "retain", "untouched"])
    assert values(own.filter(asked), stage, "none").equals(
        values(before.filter(asked), stage, "none")
    )
    assert not values(own, "attacked", "relearning").equals(
        values(own.filter(asked), stage, "none")
    )
    assert open_run(tmp_path / "own").trials.collect()["seconds_attack"].item() > 0


def test_the_objective_minimises_what_the_attack_leaves_and_keeps_utility_from_before_it(
    workspace: Workspace, tmp_path: Path
) -> None:
    trial = of_attack("round_to_nearest", ("round_to_nearest.bits", 2))
    gold = validate_trial(replace(trial, stage="gold"))
    run = tmp_path / "run"
    ids = [ran(each, workspace, run) for each in (trial, gold)]
    goal = Objective(stage="attacked", attack="round_to_nearest")
    experiment = experiment_of(trial, goal)
    write_experiment(run, settings(experiment))
    roles = zip(ids, ("grid", "gold"), strict=True)
    write_run_table(
        run, "plan", [{"trial_id": i, "role": role, "group": "{}"} for i, role in roles]
    )
    opened = open_run(run)
    results = trial_results(run, goal)
    table = {row["trial_id"]: row for row in trial_table(opened).iter_rows(named=True)}
    for trial_id_, stage in zip(ids, ("unlearned", "gold"), strict=True):
        after = mean_of(opened, trial_id_, "attacked", "round_to_nearest", "forget")
        before = mean_of(opened, trial_id_, stage, "none", "retain")
        assert after != pytest.approx(mean_of(opened, trial_id_, stage, "none", "forget"), abs=1e-3)
        result, own = results[trial_id_], trial_result(run, trial_id_, goal)
        assert own is not None
        for found in (result, own):
            assert (found.forgetting, found.utility) == pytest.approx((after, before), abs=1e-6)
        row = table[trial_id_]
        assert (row["forgetting"], row["utility"]) == pytest.approx((after, before), abs=1e-6)
    gold_rows = opened.examples.filter(trial_id=ids[1], stage="attacked", split="forget")
    by_document = gold_rows.filter(metric="probability").sort("doc_id").select("value").collect()
    aim = study_goal(goal, base=None, gold=results[ids[1]], with_gold=True).target
    assert aim is not None and aim.kind == "gold"
    assert list(aim.documents.values) == pytest.approx(by_document["value"].to_list(), abs=1e-6)
    cells = coreset_table(opened)
    headers = coreset_view(cells, opened.experiment).headers
    assert "forget probability after round_to_nearest" in headers
    by_role = dict(cells.select("role", "forgetting").iter_rows())
    shown = [by_role[role] for role in ("grid", "gold")]
    assert shown == pytest.approx([results[trial].forgetting for trial in ids], abs=1e-6)
    left = values_by_trial(opened, "forget", "probability", "")
    assert left.rows(ids).mean(1) == pytest.approx([results[i].forgetting for i in ids], abs=1e-6)


def mean_of(run: Run, trial: str, stage: str, attack: str, split: str) -> float:
    """The mean probability, by hand."""
    rows = run.examples.filter(trial_id=trial, stage=stage, attack=attack, split=split)
    return float(rows.filter(metric="probability").select(pl.col("value").mean()).collect().item())


def experiment_of(base: Trial, objective: Objective) -> Experiment:
    return Experiment(
        name="mine",
        question="?",
        base=base,
        grids=grids_of({"train.seed": (0, 1)}),
        search={},
        budget=Budget(tuning="none"),
        objective=objective,
    )


def test_an_objective_after_an_attack_makes_every_trial_attack_with_bases_settings() -> None:
    base = Trial(options=(STEPS,))
    assert experiment_of(base, AFTER).base.measure.attack == "relearning"
    assert experiment_of(base, Objective()).base.measure.attack == "none"
    values_ = {"objective.stage": "attacked", "objective.attack": "round_to_nearest"}
    changed = override(experiment_of(base, Objective()), values_)
    assert changed.base.measure.attack == "round_to_nearest"
    assert AFTER.forgetting_words == "probability on forget after relearning"
    assert Objective().forgetting_words == "probability on forget"
    checked = validate_trial(experiment_of(base, AFTER).base)
    assert dict(checked.options)["relearning.steps"] == 6


def test_a_trial_without_an_own_attack_has_the_id_that_it_had() -> None:
    """Any attack makes another trial."""
    assert LATER_SETTINGS["measure.attack"] == "none" == flatten(Trial())["measure.attack"]
    ids = {
        trial_id(Trial(measure=Measure(attack=name)), "c", "m")
        for name in ("none", "relearning", "gcg")
    }
    assert len(ids) == 3
    with_setting = {"data.path": "c", "model.name": "m", **flat_of_id()}
    assert digest(with_setting) == trial_id(Trial(), "c", "m")


def flat_of_id() -> dict[str, object]:
    """The default trial's settings, as its id has them."""
    trial = replace(Trial(), model=with_teaching(Trial().model))
    left_out = {*RESULT_NEUTRAL, "measure.attack", "data.path", "model.name"}
    return {
        name: value
        for name, value in flatten(trial).items()
        if name not in left_out and LATER_SETTINGS.get(name) != value
    }


def test_an_attack_that_there_is_not_and_one_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(UserError, match="unknown measure.attack 'relerning'"):
        validate_trial(Trial(measure=Measure(attack="relerning")))
    with pytest.raises(UserError, match="measure.attack must be an attack of kind weights, prompt"):
        validate_trial(Trial(measure=Measure(attack="linear_probe")))
    with pytest.raises(UserError, match="measure.attack must be no attack that trains"):
        can_divide(of_attack("relearning"), 2)


def test_an_attack_s_trial_makes_no_further_attack_and_drops_its_options() -> None:
    trial = of_attack("relearning", STEPS)
    attacking = validate_trial(replace(trial, attack=Attack(name="round_to_nearest")))
    assert attacking.measure.attack == "none" and "relearning.steps" not in dict(attacking.options)
