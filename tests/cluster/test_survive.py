"""What happens to a sweep when something breaks: on a head and four simulated machines, with
made-up trials.

After each accident the run must be the one that nothing happened to, row by row. The head is the
exception to surviving in place: no GCS fault tolerance is used, a lost head ends the driver, and
the same command goes on when there is a head again.
"""

import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from rayunlearn.storage.run import open_run
from tests import cluster_of_nodes
from tests.cluster_of_nodes import (
    ACCIDENTS,
    Machines,
    Sweep,
    machines,
    name_of,
    starts,
    sweep_on,
    until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
# of a trial
SECONDS = 0.6
# columns of `trials` that are not the trial's own
OTHER_EACH_TIME = ("started_at", "commit")
N_RANDOM = 20
# pytest's record_property; conftest.py adds up what was survived
Survived = Callable[[str, object], None]


@pytest.fixture(scope="module")
def four() -> Iterator[Machines]:
    with machines(4) as there:
        yield there


@pytest.fixture(scope="module")
def quiet(four: Machines, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    """The tables of a run that nothing happened to."""
    with sweep_on(four, tmp_path_factory.mktemp("quiet"), SECONDS) as sweep:
        assert sweep.start().ended() == 0, sweep.driver.said
        return tables(sweep.run)


@pytest.fixture
def sweep(four: Machines, tmp_path: Path) -> Iterator[Sweep]:
    with sweep_on(four, tmp_path / "runs", SECONDS) as sweep:
        yield sweep


def tables(run: Path) -> dict[str, pl.DataFrame]:
    """The run's rows in an order of their own; every file is read to its end."""
    for file in run.rglob("*.parquet"):
        pl.read_parquet(file)
    opened = open_run(run)
    frames = {
        "trials": opened.trials.drop(OTHER_EACH_TIME).collect(),
        "evals": opened.evals.collect(),
        "plan": opened.plan.collect(),
    }
    return {
        name: frame.select(sorted(frame.columns)).sort(pl.all()) for name, frame in frames.items()
    }


def check_that_nothing_shows(sweep: Sweep, quiet: dict[str, pl.DataFrame]) -> None:
    """Every planned trial once, its rows those of the quiet run, nothing half-written, and no
    process of the sweep left.
    """
    found = tables(sweep.run)
    assert found["trials"]["trial_id"].is_unique().all()
    assert set(found["trials"]["trial_id"]) == set(found["plan"]["trial_id"])
    for name, frame in quiet.items():
        assert found[name].equals(frame, null_equal=True), name
    assert not [
        path for path in sweep.run.rglob("*") if ".tmp" in path.name or ".tmp" in path.parts
    ]
    until(lambda: not sweep.machines.workers(), lambda: f"left behind: {sweep.machines.workers()}")


@pytest.mark.parametrize("accident", ACCIDENTS, ids=lambda accident: accident.__name__)
def test_nothing_of_an_accident_shows_in_the_run(
    accident: Callable[[Sweep], None],
    sweep: Sweep,
    quiet: dict[str, pl.DataFrame],
    record_property: Survived,
) -> None:
    sweep.start()
    sweep.until_done(3)
    finished = sweep.finished()
    accident(sweep)
    sweep.to_the_end()
    check_that_nothing_shows(sweep, quiet)
    assert begun_once(sweep, finished)
    record_property("survived", {accident.__name__: 1})


def begun_once(sweep: Sweep, trials: set[str]) -> bool:
    """Whether each of these trials was begun by one worker, once."""
    times = Counter(line[0] for line in starts(sweep.run))
    return all(times[trial_id] == 1 for trial_id in trials)


def test_four_machines_lose_one_and_use_another_that_joins(
    four: Machines, sweep: Sweep, quiet: dict[str, pl.DataFrame], record_property: Survived
) -> None:
    sweep.start()
    sweep.until_done(3)
    lost = four.at_work(sweep.run)
    four.kill(lost)
    joined = four.join()
    sweep.to_the_end()
    check_that_nothing_shows(sweep, quiet)
    assert len(sweep.drivers) == 1
    places = Counter(line[4] for line in starts(sweep.run))
    assert places[name_of(lost)] > 0 and places[name_of(joined)] > 0, places
    record_property("survived", {"machine_killed": 1})


def test_a_machine_that_joins_a_full_cluster_is_used(four: Machines, tmp_path: Path) -> None:
    """With eight seeds there is work left when it has joined, however long that takes."""
    with (
        sweep_on(four, tmp_path / "quiet", SECONDS, 8) as undisturbed,
        sweep_on(four, tmp_path / "runs", SECONDS, 8) as sweep,
    ):
        assert undisturbed.start().ended() == 0, undisturbed.driver.said
        sweep.start()
        sweep.until_done(1)
        joined = four.join()
        sweep.to_the_end()
        used = name_of(joined) in {line[4] for line in starts(sweep.run)}
        four.kill(joined)
        check_that_nothing_shows(sweep, tables(undisturbed.run))
        assert used


def test_a_second_driver_is_refused_and_the_first_goes_on(
    sweep: Sweep, quiet: dict[str, pl.DataFrame], record_property: Survived
) -> None:
    first = sweep.start()
    sweep.until_done(1)
    second = sweep.start()
    assert second.ended() == 2 and f"in use by process {first.process.pid} on " in second.said
    assert first.ended() == 0, first.said
    check_that_nothing_shows(sweep, quiet)
    assert begun_once(sweep, {line[0] for line in starts(sweep.run)})
    record_property("survived", {"second_driver": 1})


def test_clocks_that_disagree_change_nothing(
    sweep: Sweep, quiet: dict[str, pl.DataFrame], record_property: Survived
) -> None:
    """Folders of finished trials, dated years before and after; then the driver is killed and has
    to tell what is finished.
    """
    sweep.start()
    sweep.until_done(4)
    finished = sweep.finished()
    for at, trial_id in enumerate(sorted(finished)):
        moment = time.time() + (1 if at % 2 else -1) * 3e8
        for path in (sweep.run / "trials" / trial_id, *(sweep.run / "trials" / trial_id).iterdir()):
            os.utime(path, (moment, moment))
    cluster_of_nodes.driver_killed(sweep)
    sweep.to_the_end()
    check_that_nothing_shows(sweep, quiet)
    assert begun_once(sweep, finished)
    record_property("survived", {"clocks_that_disagree": 1, "driver_killed": 1})


def test_a_full_disk_ends_the_sweep_with_words_and_room_lets_it_go_on(
    four: Machines, quiet: dict[str, pl.DataFrame], tmp_path: Path, record_property: Survived
) -> None:
    """A file system of 500 KiB in memory, which a run of two dozen trials does not fit into; then
    it is made larger.
    """
    output = tmp_path / "runs"
    output.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=500k", "none", str(output)],
            capture_output=True,
            check=False,
        ).returncode
    ):
        pytest.skip("this machine does not allow a small file system to be mounted")
    try:
        with sweep_on(four, output, SECONDS) as sweep:
            assert sweep.start().ended() == 2, sweep.driver.said
            assert "the disk is full: could not write" in sweep.driver.said
            assert 0 < len(sweep.finished()) < quiet["trials"].height
            subprocess.run([mount, "-o", "remount,size=64m", str(output)], check=True)
            sweep.start()
            sweep.to_the_end()
            check_that_nothing_shows(sweep, quiet)
        record_property("survived", {"full_disk": 1})
    finally:
        subprocess.run(["umount", "-l", str(output)], check=False)


def test_a_lost_head_ends_the_driver_and_the_same_command_goes_on_with_another(
    quiet: dict[str, pl.DataFrame], tmp_path: Path, record_property: Survived
) -> None:
    output = tmp_path / "runs"
    with machines(2) as first, sweep_on(first, output, SECONDS) as before:
        before.start()
        before.until_done(3)
        finished = before.finished()
        first.kill(first.cluster.head_node)
        assert before.driver.ended() != 0
    with machines(2) as second, sweep_on(second, output, SECONDS) as after:
        after.start()
        after.to_the_end()
        check_that_nothing_shows(after, quiet)
        assert begun_once(after, finished)
    record_property("survived", {"head_lost": 1})


def test_random_accidents_round_after_round(
    four: Machines, quiet: dict[str, pl.DataFrame], tmp_path: Path, record_property: Survived
) -> None:
    """Sweeps with accidents at random moments, as many as it takes; the same seed draws the same
    ones, at moments that differ.
    """
    rng = random.Random(20261121)
    happened: Counter[str] = Counter()
    n_rounds = 0
    while happened.total() < N_RANDOM:
        with sweep_on(four, tmp_path / f"round{n_rounds}", SECONDS) as sweep:
            happened += troubled(sweep, rng)
            check_that_nothing_shows(sweep, quiet)
        n_rounds += 1
    record_property("survived", dict(happened))


def troubled(sweep: Sweep, rng: random.Random) -> Counter[str]:
    """A sweep with accidents at random moments, to its end, and how many of which kind it was."""
    happened: Counter[str] = Counter()
    sweep.start()
    while sweep.driver.process.poll() != 0:
        time.sleep(rng.uniform(0.0, 2.0))
        if sweep.driver.process.poll() is None and starts(sweep.run):
            accident = rng.choice(ACCIDENTS)
            accident(sweep)
            happened[accident.__name__] += 1
        elif sweep.driver.process.poll():
            sweep.start()
    return happened
