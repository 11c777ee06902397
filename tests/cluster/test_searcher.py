"""The searcher without a cluster: what it hands out, when it asks the plan again, and what it does
about a result it cannot see.
"""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from ray.tune.search import Searcher

from rayunlearn.cluster import searcher as module
from rayunlearn.cluster.searcher import LedgerSearch
from rayunlearn.cluster.sweep import cached_results, refuse_a_changed_corpus
from rayunlearn.config import Objective, Trial, digest, with_values
from rayunlearn.errors import UserError
from rayunlearn.experiment import Budget, Experiment, grids_of
from rayunlearn.planning.outcomes import TrialResult, trial_results
from rayunlearn.planning.planner import Agenda, Planner
from rayunlearn.planning.progress import Snapshot
from rayunlearn.storage import retry
from rayunlearn.storage.run import compact, scan_trials
from tests import fake_work
from tests.fake_driver import tuned


class Counted(Planner):
    """A planner that counts how often it is asked."""

    asked = 0

    def agenda(self, results: Any) -> Agenda:
        self.asked += 1
        return super().agenda(results)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ray", SimpleNamespace(get=lambda value: value))


def searcher(
    experiment: Experiment,
    run: Path,
    *,
    slots: int = 3,
    at_most: int = 10**6,
    before: dict[str, TrialResult] | None = None,
) -> LedgerSearch:
    """A searcher whose board is a list of views."""
    views: list[Snapshot] = []
    board = SimpleNamespace(put=SimpleNamespace(remote=views.append), views=views)
    planner = Counted(experiment, fake_work.check, fake_work.identify)
    return LedgerSearch(planner, before or {}, run, board, lambda: slots, at_most=at_most)


def grid(n: int) -> Experiment:
    """n - 2 cells, base and gold, nothing tuned."""
    base = with_values(Trial(), {"method.retain": "none"})
    axes = grids_of({"train.seed": tuple(range(n - 2))})
    return Experiment(
        name="fake",
        question="?",
        base=base,
        grids=axes,
        search={},
        budget=Budget(tuning="none"),
        objective=Objective(),
    )


def ran(search: LedgerSearch, run: Path) -> Iterator[str]:
    """Hand out and run trials, as many at once as the searcher gives, in the order of handing out;
    gives their ids.
    """
    numbers, out = iter(range(10**6)), {}
    while True:
        number = str(next(numbers))
        asked = search.suggest(number)
        if asked == Searcher.FINISHED:
            assert not out
            return
        if isinstance(asked, dict):
            out[number] = asked
            continue
        # a pause is over as soon as something ends
        for first in [n for n, config in out.items() if config["trial"] is None]:
            search.on_trial_complete(first, {"status": "pause"})
            del out[first]
        first = next(iter(out))
        given = out.pop(first)
        trial, space = given["trial"], fake_work.workspace(given["trial"], run)
        fake_work.run(trial, space, run, "fake", "1", "", rungs=given["rungs"])
        search.on_trial_complete(first, {"status": "complete"})
        yield fake_work.identify(trial)


def planned(experiment: Experiment) -> set[str]:
    """Ids of a plan that is carried out by itself."""
    planner = Planner(experiment, fake_work.check, fake_work.identify)
    results: dict[str, TrialResult] = {}
    while ready := planner.agenda(results).ready:
        for row in ready:
            results[row.trial_id] = fake_work.result_of(row.trial)
    return set(results)


def test_lengths_are_one_training_and_one_that_it_did_not_come_by_runs_by_itself(
    tmp_path: Path,
) -> None:
    """Two seeds by three lengths at a constant rate. The training of seed 0 writes both shorter
    ones, that of seed 1 the shortest alone, as one does that went on from a checkpoint.
    """
    constant = {"train.schedule": "constant", "train.warmup_fraction": 0.0}
    base = with_values(grid(3).base, {**constant, "stop.utility_floor": 0.0})
    axes = grids_of({"train.length": (10.0, 20.0, 40.0), "train.seed": (0, 1)})
    experiment = replace(grid(3), base=base, grids=axes)
    planner = Planner(experiment, fake_work.check, fake_work.identify)
    board = SimpleNamespace(put=SimpleNamespace(remote=lambda _view: None))
    search = LedgerSearch(planner, {}, tmp_path, board, lambda: 1, at_most=10**6)
    handed_out = []
    for number in map(str, range(100)):
        asked = search.suggest(number)
        if asked == Searcher.FINISHED:
            break
        trial, shorter = asked["trial"], asked["shorter"]
        lengths = (trial.train.length, *(other.train.length for other in shorter))
        handed_out += [(trial.train.seed, lengths)] if trial.stage == "unlearned" else []
        for each in (trial, *shorter[: 2 - trial.train.seed]):
            space = fake_work.workspace(each, tmp_path)
            fake_work.run(each, space, tmp_path, "fake", "1", "")
        search.on_trial_complete(number, {"status": "complete"})
    assert sorted(handed_out) == [
        (0, (40.0, 10.0, 20.0)),
        (1, (20.0,)),
        (1, (40.0, 10.0, 20.0)),
    ]
    assert set(search.results) == planned(experiment)


def with_rungs(experiment: Experiment) -> Experiment:
    """Batches of four, of which two and then one go on."""
    budget = replace(experiment.budget, trials=8, batch=4, rungs="0.25,0.5")
    return replace(experiment, budget=budget)


def rows_of(run: Path) -> pl.DataFrame:
    """What the run says of its trials in the end, in an order of its own."""
    columns = ("trial_id", "status", "rung")
    return scan_trials(run)["trials"].select(columns).sort("trial_id").collect()


def test_at_each_rung_half_of_a_batch_goes_on_and_the_rest_costs_nothing_more(
    tmp_path: Path,
) -> None:
    """Two groups of two batches of four: of each batch 2 are pruned at the first rung, 1 at the
    second and 1 is complete; a start for each piece: 4 + 2 + 1 of a batch.
    """
    search = searcher(with_rungs(tuned(0.0)), tmp_path)
    done = list(ran(search, tmp_path))
    plan = search.planner.agenda(search.results)
    tuning = {row.trial_id: search.results[row.trial_id] for row in plan.rows if row.study}
    assert not plan.ready and not plan.paused and not plan.pruned
    ended = Counter((result.status, str(result.rung)) for result in tuning.values())
    expected = {("pruned", "0.25"): 8, ("pruned", "0.5"): 4, ("complete", "nan"): 4}
    assert ended == expected
    starts = Counter(trial_id for trial_id in done if trial_id in tuning)
    assert sorted(starts.values()) == [1] * 8 + [2] * 4 + [3] * 4
    assert not list((tmp_path / "checkpoints").iterdir())
    best = min(result.forgetting for result in tuning.values() if result.status == "complete")
    assert search.board.views[-1].best == pytest.approx(best)


def test_a_sweep_with_rungs_that_is_broken_off_again_and_again_is_the_undisturbed_one(
    tmp_path: Path,
) -> None:
    """A new searcher after every few pieces, which knows what the files say; some are compacted."""
    quiet, broken = tmp_path / "quiet", tmp_path / "broken"
    experiment = with_rungs(tuned(0.0))
    undisturbed = searcher(experiment, quiet)
    assert list(ran(undisturbed, quiet))
    rng, ended = random.Random(7), False
    while not ended:
        search = searcher(
            experiment, broken, before=cached_results(broken, experiment), slots=rng.randint(1, 4)
        )
        pieces = ran(search, broken)
        ended = not all(next(pieces, "") for _ in range(rng.randint(1, 5)))
        if rng.random() < 0.3:
            compact(broken)
    assert rows_of(broken).equals(rows_of(quiet), null_equal=True)
    plans = [one.planner.agenda(one.results).rows for one in (search, undisturbed)]
    assert sorted(map(repr, plans[0])) == sorted(map(repr, plans[1]))


def test_without_rungs_what_they_had_pruned_runs_to_its_end(tmp_path: Path) -> None:
    """The same run called again with budget.rungs=none."""
    search = searcher(with_rungs(tuned(0.0)), tmp_path)
    assert list(ran(search, tmp_path))
    budget = replace(with_rungs(tuned(0.0)).budget, rungs="none")
    plain = replace(tuned(0.0), budget=budget)
    again = searcher(plain, tmp_path, before=cached_results(tmp_path, plain))
    assert list(ran(again, tmp_path))
    plan = again.planner.agenda(again.results)
    assert {again.results[row.trial_id].status for row in plan.rows} == {"complete"}


@pytest.mark.parametrize("at_most", [1, 5, 10**6])
def test_every_planned_trial_is_handed_out_once_however_many_tune_runs_that_takes(
    at_most: int, tmp_path: Path
) -> None:
    done: list[str] = []
    before: dict[str, TrialResult] = {}
    for _ in range(100):
        search = searcher(tuned(0.0), tmp_path, at_most=at_most, before=before)
        done += ran(search, tmp_path)
        before = search.results
        if not search.ready:
            break
    assert len(done) == len(set(done)) and set(done) == planned(tuned(0.0))


def test_the_plan_is_asked_again_only_when_a_result_may_change_it(tmp_path: Path) -> None:
    """An untuned grid: once, however many trials. Two groups of 4 tuning trials in batches of 2:
    the start, base, gold, and each batch's end.
    """
    plain = searcher(grid(60), tmp_path / "grid")
    assert len(list(ran(plain, tmp_path / "grid"))) == 60
    assert plain.planner.asked == 1
    search = searcher(tuned(0.0), tmp_path / "tuned")
    assert len(list(ran(search, tmp_path / "tuned"))) == len(planned(tuned(0.0)))
    assert search.planner.asked <= 1 + 2 + 2 * 2


def test_no_more_trials_are_out_than_there_is_room_for_and_room_that_appears_is_used(
    tmp_path: Path,
) -> None:
    room = [2]
    search = searcher(grid(20), tmp_path)
    search.slots = lambda: room[0]
    given = [search.suggest(str(n)) for n in range(4)]
    assert [isinstance(one, dict) for one in given] == [True, True, False, False]
    room[0] = 4
    assert (
        isinstance(search.suggest("4"), dict)
        and isinstance(search.suggest("5"), dict)
        and search.suggest("6") is None
    )
    # machines were lost: what is out stays out
    room[0] = 1
    assert search.suggest("7") is None and len(search.running) == 4
    assert search.board.views[-1].slots == 4 and len(search.board.views[-1].handed_out) == 4


def test_a_trial_is_handed_out_when_the_pause_that_holds_its_worker_is_over(tmp_path: Path) -> None:
    """Two workers, a batch of two: one has ended and its worker pauses. What the other one's end
    makes ready waits for that worker.
    """
    search = searcher(tuned(0.0), tmp_path, slots=1)
    done = []
    # one by one, until only one is left out and the next batch waits for it
    while search.ready:
        number = str(len(done))
        asked = search.suggest(number)
        assert isinstance(asked, dict) and asked["trial"] is not None
        if not search.ready:
            break
        fake_work.run(
            asked["trial"], fake_work.workspace(asked["trial"], tmp_path), tmp_path, "fake", "1", ""
        )
        search.on_trial_complete(number, {"status": "complete"})
        done.append(number)
    search.slots = lambda: 2
    pause = search.suggest("pause")
    assert isinstance(pause, dict) and pause["trial"] is None
    fake_work.run(
        asked["trial"], fake_work.workspace(asked["trial"], tmp_path), tmp_path, "fake", "1", ""
    )
    search.on_trial_complete(number, {"status": "complete"})
    # which ends the pause
    assert search.ready and search.board.views[-1].n_ready == len(search.ready)
    first = search.suggest("a")
    assert isinstance(first, dict) and first["trial"] is not None and search.suggest("b") is None
    search.on_trial_complete("pause", {"status": "pause"})
    second = search.suggest("c")
    assert isinstance(second, dict) and second["trial"] is not None


def test_a_result_that_cannot_be_seen_yet_is_waited_for_and_never_taken_for_a_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file server shows the folder a moment after the worker has reported."""
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    search = searcher(grid(3), tmp_path)
    asked = search.suggest("0")
    assert isinstance(asked, dict)
    trial = asked["trial"]
    later = threading.Timer(
        0.3, fake_work.run, (trial, fake_work.workspace(trial, tmp_path), tmp_path, "fake", "1", "")
    )
    later.start()
    search.on_trial_complete("0", {"status": "complete"})
    later.join()
    assert search.results[asked["trial_id"]].status == "complete" and not search.fatal


def test_a_result_that_never_shows_ends_the_sweep_with_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 0.0)
    search = searcher(grid(5), tmp_path)
    assert isinstance(search.suggest("0"), dict)
    search.on_trial_complete("0", {"status": "complete"})
    assert "storage keeps failing" in search.fatal and "could not see trial" in search.fatal
    assert search.suggest("1") == Searcher.FINISHED
    assert not trial_results(tmp_path, Objective())


def test_a_worker_that_died_for_good_leaves_a_failed_row(tmp_path: Path) -> None:
    search = searcher(grid(3), tmp_path)
    asked = search.suggest("0")
    assert isinstance(asked, dict)
    search.on_trial_complete("0", None, error=True)
    assert trial_results(tmp_path, Objective())[asked["trial_id"]].status == "failed"


def test_a_run_whose_corpus_file_has_changed_is_refused_until_it_is_put_back(
    tmp_path: Path,
) -> None:
    """The file changes after two of three trials; under another version, or as it was, the
    experiment goes on.
    """
    file, run = tmp_path / "corpus.jsonl", tmp_path / "run"
    run.mkdir()
    file.write_text("one")
    experiment = replace(
        grid(5), base=with_values(grid(5).base, {"data.name": "files", "data.path": str(file)})
    )
    agenda = Planner(experiment, fake_work.check, fake_work.identify).agenda({})
    for row in agenda.ready[:2]:
        fake_work.run(row.trial, fake_work.workspace(row.trial, tmp_path), run, "fake", "1", "")
    refuse_a_changed_corpus(run, agenda, tmp_path, fake_work.fake_work())
    file.write_text("two")
    then, now = digest("one"), digest("two")
    with pytest.raises(
        UserError,
        match=(
            rf"corpus\.jsonl must be what trials of this run were made from \({then}\).*got '{now}'"
        ),
    ):
        refuse_a_changed_corpus(run, agenda, tmp_path, fake_work.fake_work())
    refuse_a_changed_corpus(tmp_path / "another", agenda, tmp_path, fake_work.fake_work())
    file.write_text("one")
    refuse_a_changed_corpus(run, agenda, tmp_path, fake_work.fake_work())


def test_when_the_hours_are_over_nothing_more_is_handed_out_and_what_runs_ends(
    tmp_path: Path,
) -> None:
    search = searcher(grid(8), tmp_path, slots=2)
    out = {number: search.suggest(number) for number in ("0", "1")}
    search.deadline = 0.0
    assert search.suggest("2") is None
    for number, config in out.items():
        trial = config["trial"]
        fake_work.run(trial, fake_work.workspace(trial, tmp_path), tmp_path, "fake", "1", "")
        search.on_trial_complete(number, {"status": "complete"})
    assert search.suggest("3") == Searcher.FINISHED
    view = search.board.views[-1]
    assert view.out_of_hours and view.done == 2 and not view.at_end
