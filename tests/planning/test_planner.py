"""The plan, without Ray and without torch: a stand-in check and a digest for the trial id."""

import math
from array import array
from dataclasses import replace

import pytest

from rayunlearn.canonical import canonical_trial, control_of
from rayunlearn.config import Method, Objective, Select, Trial, Value, digest, flatten, with_values
from rayunlearn.errors import UserError
from rayunlearn.experiment import Budget, Choice, Experiment, Range, Winner, Winners, grids_of
from rayunlearn.planning.outcomes import DocumentValues, TrialResult
from rayunlearn.planning.planner import (
    Agenda,
    PlannedTrial,
    Planner,
    grid_groups,
    outside_search,
)
from rayunlearn.planning.study import StudyTrial, judged_by_seeds

OPTIONS: dict[str, dict[str, Value]] = {
    "npo": {"npo.beta": 0.1},
    "rmu": {"rmu.steering": 5.0},
    "none": {},
}


def check(trial: Trial) -> Trial:
    """Options of the chosen forget loss, defaults filled in: what families.check does, for two
    methods.
    """
    filled = {
        name: dict(trial.options).get(name, default)
        for name, default in OPTIONS[trial.method.forget].items()
    }
    return replace(trial, options=tuple(sorted(filled.items())))


def identify(trial: Trial) -> str:
    return digest(flatten(trial))


def experiment(
    axes: object,
    *,
    tuning: str = "none",
    trials: int = 5,
    batch: int = 2,
    base: Trial | None = None,
) -> Experiment:
    search = {"train.learning_rate": Range(1e-5, 1e-2, log=True), "npo.beta": Range(0.05, 1.0)}
    budget = Budget(tuning=tuning, trials=trials, batch=batch)
    return Experiment(
        name="test",
        question="?",
        base=base or Trial(),
        grids=grids_of(axes),
        search=search,
        budget=budget,
        objective=Objective(),
    )


def planner(chosen: Experiment) -> Planner:
    return Planner(chosen, check, identify)


def outcome(trial: Trial) -> TrialResult:
    """A made-up world: a higher learning rate forgets more; over 1e-3 it costs too much utility."""
    rate = trial.train.learning_rate
    if trial.stage != "unlearned":
        return measured(0.99 if trial.stage == "base" else 0.0, 1.0)
    return measured(1 / (1 + 1e4 * rate), 0.95 if rate < 1e-3 else 0.5)


def measured(forgetting: float, utility: float) -> TrialResult:
    """A complete trial with one forget document."""
    documents = DocumentValues(("d",), array("d", [forgetting]))
    return TrialResult("complete", forgetting, utility, documents=documents)


def run_out(
    chosen: Experiment, *, results: dict[str, TrialResult] | None = None, at_once: int = 100
) -> tuple[list[str], Agenda]:
    """Run everything that is ready, `at_once` trials between two looks at the agenda."""
    done, order, plan = dict(results or {}), [], planner(chosen)
    while ready := plan.agenda(done).ready:
        for planned in ready[:at_once]:
            done[planned.trial_id] = outcome(planned.trial)
            order.append(planned.trial_id)
    return order, plan.agenda(done)


GRID = {
    "method.forget": ("npo", "rmu"),
    "select.name": ("random", "min_k"),
    "select.ratio": (0.25, 1.0),
    ("select.seed", "train.seed"): (0, 1),
}


def roles(agenda: Agenda) -> dict[str, int]:
    return {
        role: sum(row.role == role for row in agenda.rows)
        for role in dict.fromkeys(row.role for row in agenda.rows)
    }


def test_untuned_cells_controls_base_and_gold_are_all_ready_at_once() -> None:
    """By hand: per method 2 selectors x 2 seeds at 0.25 + 1 full set x 2 train seeds = 6, so 12
    cells. Retain-only: no npo or rmu option is left in it, so both methods share it: 2 seeds, 2
    ids, 4 rows. Base and gold: 1 each."""
    agenda = planner(experiment(GRID)).agenda({})
    assert roles(agenda) == {"base": 1, "gold": 1, "grid": 12, "control": 4}
    assert (agenda.total, len(agenda.ready), agenda.waiting) == (16, 16, 0)


def test_the_full_set_is_one_cell_whatever_the_selector() -> None:
    trials = [
        canonical_trial(Trial(select=Select(name=name, seed=seed)), check=check)
        for name in ("random", "min_k")
        for seed in (0, 1)
    ]
    assert len(set(trials)) == 1
    assert trials[0].select == Select(name="random", ratio=1.0, seed=0)


def test_the_control_ignores_the_coreset_except_where_epochs_make_it_shorter() -> None:
    control = Trial(method=Method(forget="none"), select=Select(name="min_k", ratio=0.25, seed=3))
    assert canonical_trial(control, check=check).select == Select()
    epochs = replace(control, train=replace(control.train, unit="epochs"))
    assert canonical_trial(epochs, check=check).select == Select(ratio=0.25)


def test_base_and_gold_depend_on_data_and_model_only() -> None:
    one = canonical_trial(
        Trial(stage="base", method=Method(forget="rmu"), select=Select(ratio=0.1)), check=check
    )
    assert one == canonical_trial(Trial(stage="base"), check=check)
    chosen = experiment({"data.redundancy": (4, 20), "select.ratio": (0.5, 1.0)})
    assert roles(planner(chosen).agenda({}))["base"] == 2


def test_without_a_gold_model_none_is_planned() -> None:
    base = Trial()
    taken = replace(base, model=replace(base.model, name="folder", teach=False))
    assert "gold" not in roles(planner(experiment(GRID, base=taken)).agenda({}))


def test_options_of_functions_not_chosen_are_dropped_and_not_searched() -> None:
    agenda = planner(experiment(GRID, tuning="shared")).agenda({})
    tuned = {
        row.trial.method.forget: dict(row.trial.options)
        for row in agenda.rows
        if row.role == "tuning"
    }
    assert set(tuned["npo"]) == {"npo.beta"} and set(tuned["rmu"]) == {"rmu.steering"}
    assert tuned["rmu"]["rmu.steering"] == 5.0


def test_a_shared_tuning_starts_with_one_batch_per_group_at_ratio_one() -> None:
    """2 groups x batch of 2, base, gold; then 2 x 3 tuning trials and 2 x (6 cells + 2 controls)
    wait.

    No tuned trial is a cell here: the stand-in shares the first suggestion's values with the
    full-set cell of BASE's seed, so one full-set cell per group is a tuning trial already: 5 + 5
    new cells + 4 controls wait."""
    agenda = planner(experiment(GRID, tuning="shared")).agenda({})
    assert roles(agenda) == {"base": 1, "gold": 1, "tuning": 4}
    assert all(row.trial.select.ratio == 1.0 and row.trial.train.seed == 0 for row in agenda.ready)
    assert agenda.waiting == 6 + 5 + 5 + 4
    assert agenda.total == 26


def test_the_total_said_at_the_start_is_what_runs_in_the_end() -> None:
    """BASE forgets least, so that it wins in no group: groups with one winner share a control."""
    base = with_values(Trial(), {"train.learning_rate": 1e-5})
    for tuning in ("none", "shared", "per_cell"):
        chosen = experiment(GRID, tuning=tuning, base=base)
        order, agenda = run_out(chosen)
        assert len(order) == len(set(order)) == planner(chosen).agenda({}).total == agenda.total
        assert agenda.waiting == 0 and not agenda.ready


def test_per_cell_gives_every_cell_its_own_study_without_the_seeds() -> None:
    """By hand: per method (random, 0.25), (min_k, 0.25), full set = 3 cells,
    6 studies of 5 trials.
    """
    _, agenda = run_out(experiment(GRID, tuning="per_cell"))
    studies = [row.study for row in agenda.rows if row.role == "tuning"]
    assert {studies.count(name) for name in set(studies)} == {5} and len(set(studies)) == 6


def test_the_winner_is_the_feasible_trial_that_forgets_most_and_its_values_reach() -> None:
    """Brute force over the tuning rows with the made-up world."""
    _, agenda = run_out(experiment(GRID, tuning="shared", trials=8))
    tuned = [
        row.trial
        for row in agenda.rows
        if row.role == "tuning" and row.trial.method.forget == "npo"
    ]
    feasible = [trial for trial in tuned if trial.train.learning_rate < 1e-3]
    winner = max(feasible, key=lambda trial: trial.train.learning_rate)
    final = [
        row.trial for row in agenda.rows if row.role in ("grid", "control") and "npo" in row.group
    ]
    assert {trial.train.learning_rate for trial in final} == {winner.train.learning_rate}
    assert {
        dict(trial.options).get("npo.beta") for trial in final if trial.method.forget == "npo"
    } == {dict(winner.options)["npo.beta"]}


def test_an_interrupted_run_asks_for_exactly_the_trials_of_an_undisturbed_one() -> None:
    """Cut after every possible number of trials; each look at the agenda starts from nothing but
    the results. What is done at a cut is what was done at the one before and a trial more.
    """
    chosen = experiment(GRID, tuning="shared")
    whole, _ = run_out(chosen)
    done: dict[str, TrialResult] = {}
    for _ in range(len(whole)):
        rest, _ = run_out(chosen, results=dict(done), at_once=1)
        assert sorted([*done, *rest]) == sorted(whole)
        first = planner(chosen).agenda(done).ready[0]
        done[first.trial_id] = outcome(first.trial)
    assert sorted(done) == sorted(whole)


def test_when_no_trial_is_feasible_the_highest_utility_wins_and_a_note_says_so() -> None:
    chosen = replace(experiment(GRID, tuning="shared"), objective=Objective(utility_floor=0.99))
    _, agenda = run_out(chosen)
    assert roles(agenda)["grid"] == 12
    assert any("kept probability on retain at 0.99 x base" in note for note in agenda.notes)


def test_when_every_tuning_trial_collapses_the_grid_is_not_run_and_a_note_says_so() -> None:
    chosen, done = experiment(GRID, tuning="shared"), {}
    plan = planner(chosen)
    while ready := plan.agenda(done).ready:
        done |= {
            p.trial_id: TrialResult("collapsed", 0.0, 0.01)
            if p.role == "tuning"
            else outcome(p.trial)
            for p in ready
        }
    agenda = plan.agenda(done)
    assert "grid" not in roles(agenda) and agenda.waiting > 0
    assert any("its grid is not run" in note for note in agenda.notes)


def test_a_base_model_that_cannot_be_measured_stops_tuning_with_a_note() -> None:
    plan, done = planner(experiment(GRID, tuning="shared")), {}
    while ready := plan.agenda(done).ready:
        done |= {
            p.trial_id: TrialResult("failed") if p.role == "base" else outcome(p.trial)
            for p in ready
        }
    assert any("base could not be measured" in note for note in plan.agenda(done).notes)


def searched(*, seeds: int = 1, repeats: int = 1) -> Experiment:
    chosen = experiment(GRID, tuning="shared", trials=4)
    return replace(chosen, budget=replace(chosen.budget, seeds=seeds, repeats=repeats))


def tuning_rows(agenda: Agenda) -> list[PlannedTrial]:
    return [row for row in agenda.rows if row.role == "tuning"]


def test_each_setting_is_tried_with_its_seeds_and_a_batch_waits_for_all_of_them() -> None:
    """2 groups x 4 settings x 3 seeds, asked for in batches of 2 settings."""
    first = tuning_rows(planner(searched(seeds=3)).agenda({}))
    assert len(first) == 2 * 2 * 3
    order, agenda = run_out(searched(seeds=3))
    rows = tuning_rows(agenda)
    assert len(rows) == 2 * searched(seeds=3).budget.trials_per_group == 2 * 4 * 3
    assert len(order) == planner(searched(seeds=3)).agenda({}).total
    for study in {row.study for row in rows}:
        for index in range(4):
            trials = [r.trial for r in rows if (r.study, r.study_index) == (study, index)]
            assert [trial.train.seed for trial in trials] == [0, 1, 2]
            assert len({trial.train.learning_rate for trial in trials}) == 1


def test_the_mean_over_seeds_is_minimised_and_every_seed_has_to_keep_the_floor() -> None:
    """Two rates. The first leaves .1 and .5, mean .3, and keeps the floor; the second leaves .2
    with both seeds, but one seed has utility .8 under a floor of .9. By seed 0 alone the order is
    the other way in both respects.
    """
    world = {
        (1e-3, 0): (0.1, 1.0), (1e-3, 1): (0.5, 1.0),
        (1e-2, 0): (0.2, 1.0), (1e-2, 1): (0.2, 0.8),
        (1e-1, 0): (0.2, 1.0), (1e-1, 1): (0.3, 1.0),
    }  # fmt: skip
    chosen = aimed_at("gold")
    for seeds, rate in ((1, 1e-3), (2, 1e-1)):
        budget = replace(chosen.budget, seeds=seeds)
        plan, done = planner(replace(chosen, budget=budget)), {}
        while ready := plan.agenda(done).ready:
            for p in ready:
                stage = {"base": (1.0, 1.0), "gold": (0.0, 1.0)}.get(p.trial.stage)
                key = (p.trial.train.learning_rate, p.trial.train.seed)
                done[p.trial_id] = measured(*(stage or world.get(key, (0.9, 1.0))))
        grid = [row.trial for row in plan.agenda(done).rows if row.role == "grid"]
        assert {trial.train.learning_rate for trial in grid} == {rate}


def test_a_setting_that_one_seed_ruins_is_ruined() -> None:
    values = {"rate": 1.0}
    good = StudyTrial(
        values=values, status="complete", forgetting=0.2, utility=1.0, violation=-0.1, trial_id="a"
    )
    collapsed = replace(good, status="collapsed", forgetting=0.0, utility=0.0, violation=0.9)
    both = judged_by_seeds([good, collapsed, replace(good, status="failed")])
    assert (both.status, both.measured, both.trial_id) == ("failed", False, "a")
    assert judged_by_seeds([good, collapsed]).violation == 0.9
    assert judged_by_seeds([good]) == good


def test_a_search_that_is_repeated_is_another_one_and_the_first_stays_as_it_is() -> None:
    """Each search has seeds, draws and a winner of its own, and each winner its cells."""
    _, once = run_out(searched(seeds=2))
    _, twice = run_out(searched(seeds=2, repeats=2))
    own = [row for row in twice.rows if row.search == 0]
    assert {row.key for row in once.rows} == {row.key for row in own}
    second = [row for row in tuning_rows(twice) if row.search == 1]
    assert len(second) == 2 * 4 * 2 and {row.trial.train.seed for row in second} == {2, 3}
    assert {row.study for row in second} == {
        "method.forget=npo, search 2", "method.forget=rmu, search 2",
    }  # fmt: skip
    drawn = [
        {r.trial.train.learning_rate for r in tuning_rows(twice) if r.search == search}
        for search in (0, 1)
    ]
    # but for BASE's own value, which every search begins with
    assert drawn[0] & drawn[1] == {Trial().train.learning_rate}
    cells = [
        sum(row.role == "grid" and row.search == search for row in twice.rows) for search in (0, 1)
    ]
    assert cells[0] == cells[1] == sum(row.role == "grid" for row in once.rows)


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_plan_of_seeds_and_searches_is_the_same_however_often_it_was_cut_off(
    at_once: int,
) -> None:
    _, undisturbed = run_out(searched(seeds=2, repeats=2))
    order, agenda = run_out(searched(seeds=2, repeats=2), at_once=at_once)
    done = {name: result for name, result in _results_of(order[: len(order) // 2], agenda)}
    _, resumed = run_out(searched(seeds=2, repeats=2), results=done)
    assert {r.key for r in undisturbed.rows} == {r.key for r in agenda.rows}
    assert {r.key for r in undisturbed.rows} == {r.key for r in resumed.rows}


def _results_of(names: list[str], agenda: Agenda) -> list[tuple[str, TrialResult]]:
    trials = {row.trial_id: row.trial for row in agenda.rows}
    return [(name, outcome(trials[name])) for name in names]


def test_cmaes_is_refused_for_a_group_that_has_one_number_to_search() -> None:
    """Optuna would draw it at random. `rmu` here has the learning rate alone."""
    chosen = replace(searched(), budget=Budget(trials=4, batch=2, sampler="cmaes"))
    with pytest.raises(UserError, match="that method.forget=rmu has, got 'train.learning_rate'"):
        planner(chosen).agenda({})


def aimed_at(target: str, *, teach: bool = True) -> Experiment:
    """A search over three learning rates, each of which ends at another place."""
    chosen = experiment({"select.ratio": (1.0,)}, tuning="shared", trials=3)
    return replace(
        chosen,
        base=with_values(
            Trial(),
            {"train.learning_rate": 1e-3, "model.teach": teach}
            | ({} if teach else {"model.name": "some/model"}),
        ),
        search={"train.learning_rate": Choice(1e-3, 1e-2, 1e-1)},
        objective=Objective(target=target),
    )


# rate -> the forget metric of two documents: barely touched, equal to gold's, destroyed
LEFT = {1e-3: (0.9, 0.8), 1e-2: (0.3, 0.1), 1e-1: (0.0, 0.0)}


def winner_and_notes(
    chosen: Experiment, *, gold: tuple[float, float], chance: tuple[float, ...] = ()
) -> tuple[object, tuple[str, ...]]:
    """The learning rate that the grid is given, where the trials leave `LEFT`."""
    plan, done = planner(chosen), {}

    def result(trial: Trial) -> TrialResult:
        values = {"base": (1.0, 1.0), "gold": gold}.get(
            trial.stage, LEFT.get(trial.train.learning_rate, (0.9, 0.9))
        )
        levels = DocumentValues(("a", "b"), array("d", chance)) if chance else DocumentValues()
        documents = DocumentValues(("a", "b"), array("d", values))
        return TrialResult("complete", sum(values) / 2, 1.0, documents=documents, chance=levels)

    while ready := plan.agenda(done).ready:
        done |= {p.trial_id: result(p.trial) for p in ready}
    agenda = plan.agenda(done)
    rates = {r.trial.train.learning_rate for r in agenda.rows if r.role == "grid"}
    return rates.pop() if len(rates) == 1 else None, agenda.notes


def test_a_destroyed_model_does_not_win_where_one_equals_gold() -> None:
    """Gold leaves .1 and .3, mean .2. By hand: the touched trial is |.8 - .1| and |.9 - .3| away,
    .65; the destroyed one .1 and .3, .2; the equal one 0, though documents changed places.
    """
    assert winner_and_notes(aimed_at("gold"), gold=(0.1, 0.3))[0] == 1e-2
    assert winner_and_notes(aimed_at("none"), gold=(0.1, 0.3))[0] == 1e-1


def test_without_gold_the_search_aims_at_chance_and_says_so() -> None:
    """Chance is .25 on both: the means .85, .2 and 0 are .6, .05 and .25 away."""
    rate, notes = winner_and_notes(aimed_at("gold", teach=False), gold=(0, 0), chance=(0.25, 0.25))
    assert (
        rate == 1e-2
        and "all: there is no gold model, so probability was to come to chance" in notes
    )


def test_without_gold_and_chance_the_least_left_wins_and_the_plan_says_so() -> None:
    rate, notes = winner_and_notes(aimed_at("gold", teach=False), gold=(0, 0))
    assert rate == 1e-1 and any("no chance level of probability was measured" in n for n in notes)


def test_a_study_waits_for_gold_and_is_blocked_with_a_note_where_gold_cannot_be_measured() -> None:
    plan, done = planner(experiment(GRID, tuning="shared")), {}
    while ready := plan.agenda(done).ready:
        done |= {
            p.trial_id: TrialResult("failed") if p.role == "gold" else outcome(p.trial)
            for p in ready
        }
    agenda = plan.agenda(done)
    assert "grid" not in roles(agenda) and agenda.waiting > 0
    assert any("gold could not be measured" in note for note in agenda.notes)


def test_trials_whose_values_are_not_numbers_never_win() -> None:
    plan, done = planner(experiment(GRID, tuning="shared")), {}
    while ready := plan.agenda(done).ready:
        for p in ready:
            odd = p.role == "tuning" and p.study_index % 2 == 0
            done[p.trial_id] = TrialResult("complete", math.nan, 1.0) if odd else outcome(p.trial)
    rows = plan.agenda(done).rows
    winners = {row.trial.train.learning_rate for row in rows if row.role == "grid"}
    assert winners <= {
        row.trial.train.learning_rate
        for row in rows
        if row.role == "tuning" and row.study_index % 2 == 1
    }


def test_grids_are_united_and_a_shared_cell_is_planned_once() -> None:
    axes = ({"select.ratio": (0.25, 1.0)}, {"select.ratio": (0.25, 0.5)})
    assert roles(planner(experiment(axes)).agenda({}))["grid"] == 3


def test_a_value_out_of_range_on_an_axis_is_refused_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"select.ratio must be in \(0, 1\], got 1.4"):
        planner(experiment({"select.ratio": (1.4,)})).agenda({})


def test_a_retain_only_control_forgets_the_token_rules_of_the_loss_that_it_lacks() -> None:
    plain, ruled = (
        canonical_trial(
            with_values(Trial(), {"method.forget": "none", "token.keep": keep}), check=check
        )
        for keep in (1.0, 0.5)
    )
    assert plain == ruled
    assert canonical_trial(with_values(Trial(), {"token.keep": 0.5}), check=check).token.keep == 0.5


def test_a_retain_only_control_forgets_the_weight_of_the_loss_that_it_lacks() -> None:
    pair: dict[str, Value] = {"method.forget_weight": 0.125, "method.retain_weight": 2.0}
    control = canonical_trial(control_of(with_values(Trial(), pair)), check=check)
    assert (control.method.forget_weight, control.method.retain_weight) == (1.0, 2.0)
    assert canonical_trial(with_values(Trial(), pair), check=check).method.forget_weight == 0.125


def test_a_study_asks_each_setting_of_a_small_space_once() -> None:
    """Two batch sizes with six trials: both are run, one is chosen, and the plan ends."""
    tuned = replace(
        experiment({"select.ratio": (0.5, 1.0)}, tuning="shared", trials=6, batch=3),
        base=with_values(Trial(), {"train.batch_size": 2}),
        search={"train.batch_size": Choice(2, 4)},
    )
    first = planner(tuned).agenda({})
    assert [row.trial.train.batch_size for row in first.rows if row.role == "tuning"] == [2, 4]
    assert list(first.studies.values()) == [2]
    _, last = run_out(tuned)
    assert roles(last)["tuning"] == 2 and last.waiting == 0 and not last.ready
    assert first.total == last.total
    assert last.notes == (
        "all: SEARCH has 2 different settings, so its tuning takes 2 trials, not 6 (budget.trials)",
    )
    exactly = replace(tuned, budget=replace(tuned.budget, trials=2))
    assert planner(exactly).agenda({}).notes == ()
    fewer = replace(tuned, search={"train.batch_size": Range(1, 64, integer=True)})
    assert list(planner(fewer).agenda({}).studies.values()) == [6]


def ids_of(agenda: Agenda, part: str) -> list[str]:
    """The tuning trials of the studies whose group has these words, in study order."""
    rows = [row for row in agenda.rows if row.role == "tuning" and part in row.group]
    return [row.trial_id for row in sorted(rows, key=lambda row: row.study_index)]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_trial_0_of_every_study_has_the_values_of_base_and_counts_within_the_budget(
    sampler: str,
) -> None:
    chosen = experiment(GRID, tuning="shared")
    chosen = replace(chosen, budget=replace(chosen.budget, sampler=sampler))
    _, agenda = run_out(chosen)
    firsts = [row for row in agenda.rows if row.study_index == 0]
    assert len(firsts) == 2
    for row in firsts:
        own = flatten(check(with_values(Trial(), {"method.forget": row.trial.method.forget})))
        flat = flatten(row.trial)
        assert {name: flat[name] for name in chosen.search if name in flat} == {
            name: own[name] for name in chosen.search if name in own
        }
    assert roles(agenda)["tuning"] == 10


def test_base_outside_search_is_said_runs_as_trial_0_and_may_win() -> None:
    """At 9e-4 the made-up world forgets most of what keeps the floor; SEARCH ends at 1e-4."""
    chosen = replace(
        experiment({"method.forget": ("npo",)}, tuning="shared"),
        base=with_values(Trial(), {"train.learning_rate": 9e-4}),
        search={"train.learning_rate": Range(1e-5, 1e-4, log=True)},
    )
    plan = planner(chosen)
    groups = grid_groups(chosen, check=plan.canonical)
    (note,) = outside_search(chosen, groups, check=plan.canonical)
    assert note.startswith("BASE's train.learning_rate = 0.0009 lies outside SEARCH, 1e-05 to")
    _, agenda = run_out(chosen)
    assert {row.trial.train.learning_rate for row in agenda.rows if row.role == "grid"} == {9e-4}
    inside = replace(chosen, search={"train.learning_rate": Range(1e-5, 1e-2, log=True)})
    assert outside_search(inside, groups, check=plan.canonical) == ()


@pytest.mark.parametrize("tuning", ["shared", "per_cell"])
@pytest.mark.parametrize(
    "added",
    [
        {"method.forget": ("rmu", "npo")},
        {"data.redundancy": (4,)},
        {"data.redundancy": (20, 4)},
        {"data.name": ("people", "domain")},
    ],
)
def test_what_else_is_on_the_axes_changes_no_trial_of_a_study(
    added: dict[str, tuple[Value, ...]], tuning: str
) -> None:
    """A method, an axis of one value (BASE's own), a value before it, a dataset: the trials of NPO
    on BASE's data are those of a run without them, to the end of the study.
    """
    axes = {"method.forget": ("npo",), "select.ratio": (0.25, 1.0)}
    base = with_values(Trial(), {"data.redundancy": 4, "data.name": "domain"})
    few = run_out(experiment(axes, tuning=tuning, base=base))[1]
    many = run_out(experiment(axes | added, tuning=tuning, base=base))[1]

    def trials(agenda: Agenda) -> list[str]:
        rows = [
            row
            for row in agenda.rows
            if row.role == "tuning"
            and row.trial.method.forget == "npo"
            and (row.trial.data.redundancy, row.trial.data.name) == (4, "domain")
        ]
        return sorted(row.trial_id for row in rows)

    assert trials(few) == trials(many)
    assert {r.trial_id for r in few.rows} <= {r.trial_id for r in many.rows}


def test_a_selection_added_before_others_leaves_a_shared_study_as_it_is() -> None:
    """A shared study is at the whole set with BASE's own selection, not with that of the first
    cell: an ablation of the text would be another training.
    """
    axes = {"method.forget": ("npo",), "select.text": ("original",)}
    more = axes | {"select.text": ("shuffled_keywords", "original")}
    studies = [
        ids_of(run_out(experiment(grid, tuning="shared"))[1], "npo") for grid in (axes, more)
    ]
    assert studies[0] == studies[1] and len(studies[0]) == 5


def test_two_methods_are_not_drawn_alike() -> None:
    _, agenda = run_out(experiment(GRID, tuning="shared"))
    drawn = {
        method: [
            row.trial.train.learning_rate
            for row in agenda.rows
            if row.study_index == 1 and row.trial.method.forget == method
        ]
        for method in ("npo", "rmu")
    }
    assert drawn["npo"] != drawn["rmu"]


def with_winner_of_npo(
    chosen: Experiment, values: dict[str, Value], tuning: str = ""
) -> Experiment:
    """The experiment as if `runs/a/1` had a winner for NPO, trial `w1`."""
    groups = grid_groups(chosen, check=planner(chosen).canonical)
    key = next(group.key for group in groups if "npo" in group.key)
    winner = Winner(run="runs/a/1", trial_id="w1", values=values)
    return replace(chosen, winners=Winners(tuning=tuning, by_group={key: winner}))


def test_a_winner_of_another_run_is_tried_after_trial_0_of_its_group_alone() -> None:
    chosen = experiment(GRID, tuning="shared")
    chosen = replace(chosen, budget=replace(chosen.budget, tuned_from="runs/a/1"))
    won: dict[str, Value] = {"train.learning_rate": 9.999e-4, "npo.beta": 0.5}
    warm = with_winner_of_npo(chosen, won)
    _, agenda = run_out(warm)
    second = {row.trial.method.forget: row for row in agenda.rows if row.study_index == 1}
    assert second["npo"].row()["tuned_from"] == "runs/a/1 w1"
    assert second["npo"].trial.train.learning_rate == 9.999e-4
    assert second["rmu"].tuned_from == ""
    # the best that the made-up world allows: it wins here too
    grid = [row.trial for row in agenda.rows if row.role == "grid" and "npo" in row.group]
    assert {dict(trial.options)["npo.beta"] for trial in grid} == {0.5}
    assert ids_of(agenda, "rmu") == ids_of(run_out(experiment(GRID, tuning="shared"))[1], "rmu")


@pytest.mark.parametrize("batch", [1, 2])
def test_a_study_with_a_winner_enqueued_is_the_same_however_often_it_is_cut(batch: int) -> None:
    chosen = experiment(GRID, tuning="shared", batch=batch, trials=3)
    chosen = replace(chosen, budget=replace(chosen.budget, tuned_from="runs/a/1"))
    chosen = with_winner_of_npo(chosen, {"train.learning_rate": 9e-4, "npo.beta": 0.5})
    whole, agenda = run_out(chosen)
    assert [row.tuned_from for row in agenda.rows if row.role == "tuning"].count("") == 5
    for cut in range(0, len(whole), 3):
        done: dict[str, TrialResult] = {}
        while len(done) < cut:
            first = planner(chosen).agenda(done).ready[0]
            done[first.trial_id] = outcome(first.trial)
        rest, _ = run_out(chosen, results=done, at_once=1)
        assert sorted([*done, *rest]) == sorted(whole)


def test_winners_are_taken_without_a_search_and_a_group_without_one_is_named() -> None:
    axes = {"method.forget": ("npo",), "select.ratio": (0.25, 1.0)}
    chosen = experiment(axes)
    chosen = replace(chosen, budget=Budget(tuning="from:runs/a/1"))
    won: dict[str, Value] = {"train.learning_rate": 3e-4, "npo.beta": 0.5}
    agenda = planner(with_winner_of_npo(chosen, won, "shared")).agenda({})
    assert roles(agenda) == {"base": 1, "gold": 1, "grid": 2, "control": 1}
    assert agenda.waiting == 0
    tuned = [row for row in agenda.rows if row.role in ("grid", "control")]
    assert {row.trial.train.learning_rate for row in tuned} == {3e-4}
    assert {(row.tuning, row.tuned_from) for row in tuned} == {("from", "runs/a/1 w1")}
    both = replace(experiment(GRID), budget=Budget(tuning="from:runs/a/1"))
    with pytest.raises(UserError, match=r"runs/a/1 must have .*, got none for method.forget=rmu"):
        planner(with_winner_of_npo(both, won, "shared")).agenda({})
