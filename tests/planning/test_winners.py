"""The winners of a run that lies in Parquet files, for the groups of another experiment."""

from dataclasses import replace
from pathlib import Path

import pytest

from rayunlearn.config import Value, flatten, with_values
from rayunlearn.errors import UserError
from rayunlearn.experiment import Budget, Experiment, grids_of
from rayunlearn.planning.outcomes import trial_results
from rayunlearn.planning.planner import Agenda, Planner
from rayunlearn.planning.run_tables import write_settings
from rayunlearn.planning.study_export import studies_of_run, study_of_run
from rayunlearn.planning.winners import require_same_winners, with_winners
from rayunlearn.storage.run import open_run, write_trial
from tests import fake_work
from tests.fake_driver import tuned

AXES: dict[str, tuple[Value, ...]] = {"method.forget": ("npo", "rmu")}


def experiment(axes: dict[str, tuple[Value, ...]], budget: Budget) -> Experiment:
    return replace(tuned(0.0), grids=grids_of(axes), budget=budget)


def carried_out(run: Path, chosen: Experiment, *, at_most: int = 1000) -> Agenda:
    """The experiment as a run without Ray: the fake's numbers, the plan, the settings."""
    planner = Planner(chosen, fake_work.check, fake_work.identify)
    agenda = planner.agenda({})
    n_run = 0
    while agenda.ready and n_run < at_most:
        for planned in agenda.ready[: at_most - n_run]:
            tables = {
                "trials": [{"status": fake_work.status_of(planned.trial)}],
                "evals": fake_work.evals(planned.trial),
                "examples": fake_work.examples(planned.trial),
            }
            write_trial(run, planned.trial_id, tables, flatten(planned.trial))
            n_run += 1
        agenda = planner.agenda(trial_results(run, chosen.objective))
    planner.write_plan(run, agenda)
    write_settings(run, chosen, agenda, fake_work.metrics())
    return agenda


def winning_rates(agenda: Agenda) -> dict[str, set[float]]:
    """The learning rates of the grid by method."""
    grid = [row.trial for row in agenda.rows if row.role == "grid"]
    return {
        method: {t.train.learning_rate for t in grid if t.method.forget == method}
        for method in ("npo", "rmu")
    }


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Agenda]:
    run = tmp_path_factory.mktemp("earlier")
    return run, carried_out(run, experiment(AXES, Budget(trials=6, batch=3)))


def test_taken_winners_are_those_of_the_other_run_and_nothing_is_searched(
    earlier: tuple[Path, Agenda], tmp_path: Path
) -> None:
    source, before = earlier
    budget = Budget(tuning=f"from:{source}")
    chosen = with_winners(experiment(AXES, budget), check=fake_work.check)
    agenda = carried_out(tmp_path, chosen)
    assert winning_rates(agenda) == winning_rates(before)
    assert not [row for row in agenda.rows if row.role == "tuning"]
    plan = open_run(tmp_path).plan.collect()
    won = {row["tuned_from"] for row in plan.iter_rows(named=True) if row["role"] == "grid"}
    tuning_ids = {row.trial_id for row in before.rows if row.role == "tuning"}
    assert len(won) == 2 and {text.split()[-1] for text in won} <= tuning_ids
    assert all(text.startswith(f"{source} ") for text in won)
    recorded = open_run(tmp_path).experiment["winners"]["by_group"]
    assert {winner["trial_id"] for winner in recorded.values()} <= tuning_ids


def test_the_winner_of_several_searches_with_seeds_is_the_best_of_theirs(tmp_path: Path) -> None:
    """The fake leaves less the higher the rate, up to 1e-3: the higher of two winners is taken. The
    studies in the files have each setting once, with the status and values of all its seeds.
    """
    source = tmp_path / "source"
    before = carried_out(source, experiment(AXES, Budget(trials=3, batch=3, seeds=2, repeats=2)))
    chosen = experiment(AXES, Budget(tuning=f"from:{source}"))
    agenda = Planner(
        with_winners(chosen, check=fake_work.check), fake_work.check, fake_work.identify
    ).agenda({})
    best = {method: {max(rates)} for method, rates in winning_rates(before).items()}
    assert winning_rates(agenda) == best
    studies = studies_of_run(source)
    assert len(studies) == 4 and all(len(study.finished) == 3 for study in studies)
    assert all(study.is_complete for study in studies)
    assert len(study_of_run(source, studies[1].name).trials) == 3
    plan = open_run(source).plan.collect()
    assert set(plan["search"]) == {0, 1}


def test_without_search_of_its_own_an_experiment_takes_what_the_run_searched(
    earlier: tuple[Path, Agenda],
) -> None:
    source, before = earlier
    chosen = replace(experiment(AXES, Budget(tuning=f"from:{source}")), search={})
    taken = with_winners(chosen, check=fake_work.check)
    plan = Planner(taken, fake_work.check, fake_work.identify).agenda({})
    assert winning_rates(plan) == winning_rates(before)


def test_groups_are_matched_by_the_values_of_every_axis_of_either_run(
    earlier: tuple[Path, Agenda],
) -> None:
    """One method, not on an axis; an axis of one value more; another value of it has no winner."""
    source, before = earlier
    budget = Budget(tuning=f"from:{source}")
    rates = winning_rates(before)
    redundancy = tuned(0.0).base.data.redundancy
    rmu_alone = replace(
        experiment({"data.redundancy": (redundancy,)}, budget),
        base=with_values(tuned(0.0).base, {"method.forget": "rmu"}),
    )
    taken = with_winners(rmu_alone, check=fake_work.check)
    plan = Planner(taken, fake_work.check, fake_work.identify).agenda({})
    assert winning_rates(plan)["rmu"] == rates["rmu"]
    more = experiment(AXES | {"data.redundancy": (redundancy, 7)}, budget)
    with pytest.raises(UserError, match="got none for method.forget=npo, data.redundancy=7"):
        with_winners(more, check=fake_work.check)


def test_a_group_that_the_run_has_not_is_searched_as_usual_where_winners_are_only_tried(
    earlier: tuple[Path, Agenda],
) -> None:
    source, _ = earlier
    redundancy = tuned(0.0).base.data.redundancy
    axes = AXES | {"data.redundancy": (redundancy, 7)}
    budget = Budget(trials=3, batch=3, tuned_from=str(source))
    chosen = with_winners(experiment(axes, budget), check=fake_work.check)
    rows = Planner(chosen, fake_work.check, fake_work.identify).agenda({}).rows
    tried = {row.trial.data.redundancy for row in rows if row.tuned_from}
    assert tried == {redundancy}
    elsewhere = experiment({"data.redundancy": (7,)}, budget)
    with pytest.raises(UserError, match="must have tuned a group of this experiment"):
        with_winners(elsewhere, check=fake_work.check)


def test_a_run_that_tuned_nothing_or_has_not_ended_its_tuning_is_refused(tmp_path: Path) -> None:
    carried_out(tmp_path / "none", experiment(AXES, Budget(tuning="none")))
    carried_out(tmp_path / "half", experiment(AXES, Budget(trials=6, batch=3)), at_most=5)
    for name, rule in (("none", "must have tuned something"), ("half", "must have ended its")):
        chosen = experiment(AXES, Budget(tuned_from=str(tmp_path / name)))
        with pytest.raises(UserError, match=rule):
            with_winners(chosen, check=fake_work.check)


def test_a_run_does_not_go_on_with_other_winners_than_it_was_begun_with(
    earlier: tuple[Path, Agenda], tmp_path: Path
) -> None:
    source, _ = earlier
    budget = Budget(tuning=f"from:{source}")
    chosen = with_winners(experiment(AXES, budget), check=fake_work.check)
    require_same_winners(tmp_path, chosen)
    carried_out(tmp_path, chosen)
    require_same_winners(tmp_path, chosen)
    key, winner = next(iter(chosen.winners.by_group.items()))
    by_group = {**chosen.winners.by_group, key: replace(winner, trial_id="another")}
    changed = replace(chosen, winners=replace(chosen.winners, by_group=by_group))
    with pytest.raises(UserError, match="must be those that this run was begun with"):
        require_same_winners(tmp_path, changed)
    # another source is another plan, as any other setting is
    require_same_winners(tmp_path, replace(changed, budget=Budget(tuned_from="runs/other/1")))
