"""What a panel asks for and when, with made-up results: no model is attacked here."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from rayunlearn.attacks.panels import (
    PANELS,
    Panel,
    PanelEntry,
    chosen_panel,
    panel_of,
    restrict_panel,
)
from rayunlearn.attacks.table import ATTACKS
from rayunlearn.config import Attack, Measure, Trial, trial_id
from rayunlearn.config import Objective as Goal
from rayunlearn.errors import UserError
from rayunlearn.experiment import Budget, Experiment
from rayunlearn.planning.attack_planner import (
    AttackFiles,
    AttackPlanner,
    AttackTarget,
    attack_seeds,
    own_strength,
    strength_of,
)
from rayunlearn.planning.outcomes import TrialResult
from rayunlearn.planning.planner import Agenda
from rayunlearn.ranges import options_of
from rayunlearn.registry import check_trial

BASE = check_trial(Trial())
EXPERIMENT = Experiment(
    name="x",
    question="",
    base=BASE,
    grids=((),),
    search={},
    budget=Budget(tuning="none"),
    objective=Goal(),
    version="1",
)


def identify(trial: Trial) -> str:
    return trial_id(trial, "c", "m")


NO_FILES = AttackFiles()


def planner(
    *entries: PanelEntry, reads: AttackFiles = NO_FILES, utility_loss: float = 1.0
) -> AttackPlanner:
    target = AttackTarget(trial_id=identify(BASE), trial=BASE)
    return AttackPlanner(
        EXPERIMENT,
        check_trial,
        identify,
        (target,),
        Panel(entries=entries, seeds=(0, 1, 2), budget=4, batch=2, utility_loss=utility_loss),
        reads,
    )


def test_an_attack_runs_with_every_seed_beside_base_gold_and_its_companion() -> None:
    rows = planner(PanelEntry("relearning", (("documents", 5),))).agenda({}).ready
    kinds = {(r.trial.stage, r.trial.attack.name, r.trial.attack.seed) for r in rows}
    stages = {
        (stage, "relearning", seed) for stage in ("unlearned", "base", "gold") for seed in (0, 1, 2)
    }
    assert kinds == stages | {("unlearned", "unrelated_training", seed) for seed in (0, 1, 2)}
    assert {
        dict(r.trial.options)["relearning.documents"]
        for r in rows
        if r.trial.attack.name == "relearning"
    } == {5}
    assert len({r.trial_id for r in rows}) == len(rows) == 12


def test_an_attack_that_draws_nothing_runs_once() -> None:
    assert attack_seeds("round_to_nearest", (0, 1, 2)) == (0,)
    assert attack_seeds("few_shot_retain", (0, 1, 2)) == (0, 1, 2)
    assert len(planner(PanelEntry("round_to_nearest")).agenda({}).ready) == 3


def test_the_strength_that_gets_most_back_is_repeated_and_a_resumed_panel_is_the_same_panel() -> (
    None
):
    plan = planner(PanelEntry("unrelated_training", tuned=True))
    results: dict[str, TrialResult] = {}
    asked = []
    while (agenda := plan.agenda(results)).waiting:
        assert all(r.role == "tuning" for r in agenda.ready)
        asked += agenda.ready
        # the attack gets the more back the closer its rate is to 1e-3
        rates = {
            r.trial_id: float(dict(r.trial.options)["unrelated_training.learning_rate"])
            for r in agenda.ready
        }
        results |= {
            t: TrialResult("complete", 1 / (1 + abs(rate - 1e-3)), 0.5) for t, rate in rates.items()
        }
    assert len(asked) == 4
    # the first with the attack's own strength, which the panel may have fixed
    entry = PanelEntry("unrelated_training", tuned=True)
    first = dict(asked[0].trial.options)
    assert {name: first[f"unrelated_training.{name}"] for name in own_strength(entry)} == {
        option.argument: option.default
        for option in options_of(ATTACKS["unrelated_training"].function)
        if option.argument in ("learning_rate", "steps")
    }
    assert own_strength(replace(entry, values=(("steps", 7),)))["steps"] == 7
    closest = min(
        (dict(r.trial.options)["unrelated_training.learning_rate"] for r in asked),
        key=lambda rate: abs(float(rate) - 1e-3),
    )
    final = [r for r in plan.agenda(results).rows if r.role != "tuning"]
    assert {dict(r.trial.options)["unrelated_training.learning_rate"] for r in final} == {closest}
    assert len(final) == 9
    fresh = planner(PanelEntry("unrelated_training", tuned=True))
    assert [r.trial_id for r in fresh.agenda(results).rows] == [
        r.trial_id for r in plan.agenda(results).rows
    ]


def searched(plan: AttackPlanner, cost: float) -> tuple[list[float], Agenda]:
    """The rates asked for and the panel's end, where a rate gets the more back the higher it is and
    costs `cost` times itself of a utility of 0.8.
    """
    own = TrialResult("complete", 0.1, 0.8)
    results: dict[str, TrialResult] = {identify(BASE): own}
    rates: list[float] = []
    while (agenda := plan.agenda(results)).waiting:
        for row in agenda.ready:
            rates.append(float(dict(row.trial.options)["unrelated_training.learning_rate"]))
            left = 0.8 * (1 - cost * rates[-1])
            results[row.trial_id] = TrialResult("complete", rates[-1], left)
    return rates, plan.agenda(results)


def repeated_rate(agenda: Agenda) -> float:
    rows = [row for row in agenda.rows if row.role == "attack"]
    (rate,) = {dict(row.trial.options)["unrelated_training.learning_rate"] for row in rows}
    return float(rate)


def test_a_strength_may_cost_no_more_utility_than_the_panel_allows() -> None:
    """A rate of 1e-3 costs 4.8% of utility, the highest rates cost more."""
    entry = PanelEntry("unrelated_training", tuned=True)
    rates, free = searched(planner(entry), 48.0)
    assert repeated_rate(free) == max(rates) > 1e-3
    rates, bounded = searched(planner(entry, utility_loss=0.05), 48.0)
    allowed = [rate for rate in rates if 48 * rate <= 0.05]
    assert allowed and repeated_rate(bounded) == max(allowed) < max(rates) and not bounded.notes
    rates, costly = searched(planner(entry, utility_loss=0.05), 1e4)
    assert repeated_rate(costly) == min(rates)
    assert "no strength cost at most 0.05 of utility" in costly.notes[0]


def test_a_bound_needs_the_utility_of_the_attacked_model_and_lies_in_0_to_1() -> None:
    entry = PanelEntry("unrelated_training", tuned=True)
    plan = planner(entry, utility_loss=0.05)
    results = {row.trial_id: TrialResult("complete", 0.5, 0.5) for row in plan.agenda({}).ready}
    with pytest.raises(UserError, match="needs the utility of the attacked model"):
        plan.agenda(results)
    with pytest.raises(UserError, match=r"utility_loss must be in \[0, 1\], got 1.5"):
        chosen_panel("quick", utility_loss=1.5)


def test_an_attack_that_a_trial_made_itself_is_no_setting_of_the_panel_s() -> None:
    """Its steps are not the panel's, and the attack's trial makes no further attack."""
    own = check_trial(
        replace(BASE, measure=Measure(attack="relearning"), options=(("relearning.steps", 7),))
    )
    target = AttackTarget(trial_id=identify(own), trial=own)
    plan = replace(planner(PanelEntry("relearning")), targets=(target,))
    rows = plan.agenda({}).ready
    assert {row.trial.measure.attack for row in rows} == {"none"}
    relearned = [row for row in rows if row.trial.attack.name == "relearning"]
    assert {dict(row.trial.options)["relearning.steps"] for row in relearned} == {50}


def test_a_study_in_which_every_attack_diverged_says_so() -> None:
    plan = planner(PanelEntry("unrelated_training", tuned=True))
    results: dict[str, TrialResult] = {}
    while (agenda := plan.agenda(results)).waiting:
        results |= {r.trial_id: TrialResult("diverged") for r in agenda.ready}
    assert "no strength was measured" in agenda.notes[0]


def test_only_what_an_attack_reads_is_in_its_identity() -> None:
    reads = AttackFiles(text="scenes.txt", rephrasings="asked.jsonl", chat_model="chat")
    rows = (
        planner(
            PanelEntry("unrelated_training"),
            PanelEntry("poem"),
            PanelEntry("weight_noise"),
            reads=reads,
        )
        .agenda({})
        .rows
    )
    found = {r.trial.attack.name: (r.trial.attack.file, r.trial.attack.chat_model) for r in rows}
    assert found == {
        "unrelated_training": ("scenes.txt", ""),
        "poem": ("asked.jsonl", "chat"),
        "weight_noise": ("", ""),
    }


@pytest.mark.parametrize("metric", ["multiple_choice", "letter_choice"])
def test_a_curve_is_of_the_metric_that_is_forgotten_by_and_says_nothing_of_other_attacks(
    metric: str,
) -> None:
    """Another metric or number of points is another trial."""
    plan = planner(PanelEntry("relearning"), PanelEntry("weight_noise"))
    plan.experiment = replace(EXPERIMENT, objective=Goal(forgetting=metric))
    curves = {r.trial.attack.name: r.trial.attack.curve_metric for r in plan.agenda({}).rows}
    assert curves == {
        "relearning": metric,
        "unrelated_training": metric,
        "weight_noise": "probability",
    }
    ids = [
        trial_id(replace(BASE, attack=Attack(name="relearning", curve_points=n)), "", "")
        for n in (100, 7)
    ]
    assert ids[0] != ids[1] and ids[0] == trial_id(
        replace(BASE, attack=Attack(name="relearning")), "", ""
    )
    with pytest.raises(UserError, match="attack.curve_metric must be a cheap metric"):
        check_trial(replace(BASE, attack=Attack(name="relearning", curve_metric="rouge_l_f1")))


def test_the_panel_of_faithfulness_asks_four_attacks_of_a_model_and_shares() -> None:
    rows = planner(*PANELS["coresets"].entries).agenda({}).rows
    one_seed = {
        r.trial_id: r.trial.attack.name
        for r in rows
        if r.trial.stage == "unlearned" and r.trial.attack.seed == 0
    }
    assert sorted(one_seed.values()) == [
        "few_shot_retain",
        "relearning",
        "round_to_nearest",
        "unrelated_training",
    ]
    assert PANELS["coresets"].seeds == (0,)


def test_attacks_parquet_keeps_the_rows_of_other_panels(tmp_path: Path) -> None:
    first, second = planner(PanelEntry("weight_noise")), planner(PanelEntry("magnitude_pruning"))
    for plan in (first, second, second):
        plan.write_plan(tmp_path, plan.agenda({}))
    table = pl.read_parquet(tmp_path / "attacks.parquet")
    assert table["setting"].n_unique() == 2
    assert table.height == 9 + 3


def test_every_panel_names_attacks_and_options_that_exist() -> None:
    for panel in PANELS.values():
        for entry in panel.entries:
            assert entry.name in ATTACKS
            options: Mapping[str, object] = ATTACKS[entry.name].function.__kwdefaults__ or {}
            assert {name for name, _ in entry.values} <= set(options)
            assert set(strength_of(entry.name)) <= set(options) or not entry.tuned


def test_gcg_and_soft_prompts_are_searched_each_in_its_own_strength() -> None:
    tuned = {entry.name: entry for entry in PANELS["full"].entries if entry.tuned}
    assert {"gcg", "soft_prompt"} < set(tuned)
    for name, searched in (
        ("gcg", {"gcg.steps", "gcg.candidates"}),
        ("soft_prompt", {"soft_prompt.steps", "soft_prompt.learning_rate"}),
    ):
        rows = planner(tuned[name]).agenda({}).ready
        asked = [dict(r.trial.options) for r in rows]
        assert [r.role for r in rows] == ["tuning", "tuning"]
        # two draws of a whole number may be equal, two draws of all of them are not
        assert {f"{name}.{key}" for key in strength_of(name)} == searched
        assert asked[0] != asked[1]


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="quick"):
        panel_of("quik")
    with pytest.raises(UserError, match="weight_noise"):
        restrict_panel(PANELS["quick"], ["weight_noize"])
    with pytest.raises(UserError, match="relearning"):
        check_trial(replace(BASE, attack=Attack(name="relearnin")))
