"""The sweep on a real two-CPU Ray, with made-up trials: who runs, how often, and what becomes of
accidents.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
import polars as pl
import psutil
import pytest
from rich.console import Console

from rayunlearn.cluster import sweep as sweep_module
from rayunlearn.cluster.sweep import SweepResult, attack_run
from rayunlearn.config import Objective, Trial, with_values
from rayunlearn.errors import UserError
from rayunlearn.experiment import Budget, Choice, Experiment, grids_of
from rayunlearn.planning.attack_planner import attack_experiment, attack_targets
from rayunlearn.planning.outcomes import TrialResult
from rayunlearn.planning.plan_run import Options, PlanRun
from rayunlearn.planning.planner import Agenda, Planner
from rayunlearn.planning.progress import PreparationProgress, Snapshot, status_line
from rayunlearn.planning.study_export import study_of_run, write_studies
from rayunlearn.reporting.html import write_report
from rayunlearn.storage.lock import create_run_folder, run_lock
from rayunlearn.storage.run import finished_ids, open_run, write_run_table
from tests import fake_work
from tests.cluster.conftest import REPOSITORY, Tracked, run_sweep, untuned
from tests.fake_driver import tuned


def starts(run: Path) -> Counter[str]:
    """How often each trial was begun."""
    return Counter(text.split()[0] for text in (run / "started").read_text().splitlines())


def of_every_end() -> Experiment:
    """Four tuning trials, as many as there are settings, whose batch size says how they end, then
    a cell and its control.
    """
    return replace(
        tuned(0.0),
        base=with_values(tuned(0.0).base, {"train.batch_size": 1}),
        search={"train.batch_size": Choice(1, 2, 3, 6)},
        budget=Budget(trials=4, batch=2),
        grids=grids_of({"select.ratio": (1.0,)}),
    )


def undisturbed(experiment: Experiment) -> set[str]:
    """Ids that a run without accidents has: the plan and the fake's own numbers, no Ray."""
    planner = Planner(experiment, fake_work.check, fake_work.identify)
    results: dict[str, TrialResult] = {}
    while ready := planner.agenda(results).ready:
        for planned in ready:
            results[planned.trial_id] = fake_result(planned.trial)
    return set(results)


def fake_result(trial: Trial) -> TrialResult:
    """What the plan is told of a fake trial."""
    status = fake_work.status_of(trial)
    if status == "failed":
        return TrialResult(status)
    return replace(fake_work.result_of(trial), status=status)


def driver(output: Path, seconds: float, address: str) -> subprocess.Popen[str]:
    """A driver in a process of its own, on the shared cluster; '' for an address: it would have to
    start its own.
    """
    environment = (
        os.environ | {"PYTHONPATH": str(REPOSITORY)} | ({"RAY_ADDRESS": address} if address else {})
    )
    command = [sys.executable, "-m", "tests.fake_driver", str(output), str(seconds)]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_trials(run: Path, n: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while len(list(run.glob("trials/*"))) < n:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)


@dataclass(frozen=True)
class Interrupted:
    """A driver with a cluster of its own that a signal ended: its run, exit status and words, the
    addresses that its processes listened on, and which of these and what temporary files it left.
    """

    run: Path
    status: int
    said: str
    listened_on: tuple[str, ...]
    processes_left: list[str]
    files_left: list[str]


def interrupt(
    output: Path, monkeypatch: pytest.MonkeyPatch, send: Callable[[list[psutil.Process]], None]
) -> Interrupted:
    """`send` a signal to a driver on a private cluster, as `rayunlearn run` has one, after four
    trials; it is given the driver and all its descendants.
    """
    # short, so that Ray's sockets fit into it
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as temporary:
        monkeypatch.setenv("TMPDIR", temporary)
        process = driver(output, 0.5, "local")
        wait_for_trials(output / "fake" / "1", 4, process)
        family = [psutil.Process(process.pid)]
        family += family[0].children(recursive=True)
        addresses = tuple(
            c.laddr.ip.removeprefix("::ffff:")
            for member in family
            for c in member.net_connections("inet")
            if c.status == psutil.CONN_LISTEN
        )
        send(family)
        said, _ = process.communicate(timeout=120)
        _, alive = psutil.wait_procs(family[1:], timeout=20)
        files = [file.name for file in Path(temporary).iterdir()]
    run = output / "fake" / "1"
    names = [member.name() for member in alive]
    return Interrupted(run, process.returncode, said, addresses, names, files)


@pytest.fixture(scope="module")
def whole(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """An undisturbed tuned sweep, in which batch size 1 is complete, 2 fails, 3 collapses and 6 is
    measured as NaN.
    """
    return run_sweep(of_every_end(), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def killed(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """The output folder of a driver that was killed in the middle and started again, and the trials
    that had ended before.
    """
    output = tmp_path_factory.mktemp("killed")
    process = driver(output, 0.3, ray_address)
    run = output / "fake" / "1"
    wait_for_trials(run, 7, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = {folder.name for folder in run.glob("trials/*")}
    again = driver(output, 0.3, ray_address)
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0, said
    return output, finished


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """Ctrl-C."""

    def send(family: list[psutil.Process]) -> None:
        family[0].send_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as monkeypatch:
        return interrupt(tmp_path_factory.mktemp("interrupted"), monkeypatch, send)


@pytest.fixture(scope="module")
def terminated(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """SIGTERM to every process, as a batch system sends it at a job's time limit."""

    def send(family: list[psutil.Process]) -> None:
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.send_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as monkeypatch:
        return interrupt(tmp_path_factory.mktemp("terminated"), monkeypatch, send)


@pytest.fixture(scope="module")
def accidents(
    ray_address: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, SweepResult]:
    """One sweep over trials that succeed (batch size 1), raise (2), lose their worker once (4),
    always (5) and after the row is written (7).
    """
    output = tmp_path_factory.mktemp("accidents")
    return output, run_sweep(of_batch_sizes(1, 2, 4, 5, 7), output)


def of_batch_sizes(*sizes: int) -> Experiment:
    """A cell of each size, base and gold; without a retain loss there are no controls."""
    return untuned({"train.batch_size": sizes, "method.retain": ("none",)})


def test_every_planned_trial_runs_exactly_once(whole: SweepResult) -> None:
    planned = undisturbed(of_every_end())
    assert starts(whole.run) == Counter(planned)
    assert (whole.total, whole.ran) == (len(planned), len(planned))
    failed = open_run(whole.run).trials.filter(pl.col("status") == "failed").collect().height
    assert failed > 0 and whole.done == len(planned) - failed


def test_a_driver_killed_in_the_middle_and_started_again_gives_the_trials_of_an_undisturbed_run(
    killed: tuple[Path, set[str]],
) -> None:
    output, finished = killed
    run = output / "fake" / "1"
    assert set(open_run(run).trials.collect()["trial_id"]) == undisturbed(tuned(0.3))
    assert all(starts(run)[trial_id] == 1 for trial_id in finished)


def test_a_finished_run_runs_nothing_and_never_imports_ray(killed: tuple[Path, set[str]]) -> None:
    output, _ = killed
    before = starts(output / "fake" / "1")
    process = driver(output, 0.3, "")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "ray imported: False" in said and "(0 in this call" in said
    assert starts(output / "fake" / "1") == before


def test_a_private_cluster_listens_on_this_machine_only(interrupted: Interrupted) -> None:
    assert len(interrupted.listened_on) > 3, interrupted.said
    assert set(interrupted.listened_on) == {"127.0.0.1"}


def test_sigterm_to_every_process_closes_the_run_as_ctrl_c_does(terminated: Interrupted) -> None:
    assert terminated.status == 143, terminated.said
    assert "resume with: python -m tests.fake_driver" in terminated.said
    tables = {table.name for table in (terminated.run / "tables").iterdir()}
    assert {"trials.parquet", "evals.parquet", "steps.parquet"} <= tables
    assert (terminated.run / "experiment.json").exists()
    statuses = open_run(terminated.run).trials.collect()["status"].to_list()
    assert len(statuses) >= 4 and set(statuses) == {"complete"}


@pytest.mark.parametrize("ending", ["interrupted", "terminated"])
def test_a_signal_leaves_no_process_and_no_temporary_folder(
    ending: str, request: pytest.FixtureRequest
) -> None:
    left = request.getfixturevalue(ending)
    assert (left.processes_left, left.files_left) == ([], [])


def test_ctrl_c_says_what_is_done_what_is_not_and_how_to_go_on(interrupted: Interrupted) -> None:
    assert interrupted.status == 130, interrupted.said
    assert "stopped before the end; every trial that had finished is kept" in interrupted.said
    assert "resume with: python -m tests.fake_driver" in interrupted.said
    done = open_run(interrupted.run).trials.collect().height
    assert f"{done} of " in interrupted.said and done >= 4


def test_a_worker_killed_once_is_replaced_and_its_trial_runs_again(
    accidents: tuple[Path, SweepResult],
) -> None:
    _, result = accidents
    unlucky = open_run(result.run).trials.filter(pl.col("train.batch_size") == 4).collect()
    assert set(unlucky["status"]) == {"complete"}
    assert [starts(result.run)[trial_id] for trial_id in unlucky["trial_id"]] == [2]


def test_a_trial_whose_worker_always_dies_leaves_a_failed_row_after_three_starts(
    accidents: tuple[Path, SweepResult],
) -> None:
    _, result = accidents
    lost = (
        open_run(result.run)
        .trials.filter(pl.col("train.batch_size") == 5, pl.col("stage") == "unlearned")
        .collect()
    )
    assert (
        lost.height == 1
        and set(lost["status"]) == {"failed"}
        and set(lost["error_type"]) == {"WorkerDied"}
    )
    assert all(starts(result.run)[trial_id] == 3 for trial_id in lost["trial_id"])


def test_a_trial_whose_worker_was_lost_after_it_wrote_the_row_does_not_run_again(
    accidents: tuple[Path, SweepResult],
) -> None:
    _, result = accidents
    untold = (
        open_run(result.run)
        .trials.filter(pl.col("train.batch_size") == 7, pl.col("stage") == "unlearned")
        .collect()
    )
    assert untold.height == 1 and set(untold["status"]) == {"complete"}
    assert all(starts(result.run)[trial_id] == 1 for trial_id in untold["trial_id"])


def test_failed_trials_and_no_others_run_again_on_the_next_call(
    accidents: tuple[Path, SweepResult],
) -> None:
    """Batch sizes 2 and 5 failed; with 5 left out, 2 is tried again."""
    output, first = accidents
    assert dict(first.statuses) == {"complete": 5, "failed": 2} and first.done == 5
    before = starts(first.run)
    again = run_sweep(of_batch_sizes(1, 2, 4), output)
    assert sorted((starts(first.run) - before).values()) == [1]
    assert dict(again.statuses) == {"complete": 4, "failed": 1}


def test_the_rebuilt_study_never_calls_an_accident_complete(
    whole: SweepResult, tmp_path: Path
) -> None:
    states = optuna.trial.TrialState
    wanted = {1: states.COMPLETE, 2: states.FAIL, 3: states.PRUNED, 6: states.FAIL}
    study = study_of_run(whole.run, "all")
    assert len(study.trials) == 4
    assert {trial.params["train.batch_size"] for trial in study.trials} == set(wanted)
    assert all(trial.state == wanted[trial.params["train.batch_size"]] for trial in study.trials)
    assert all(trial.constraints["utility_floor"] <= 0 for trial in study.best_trials)
    assert write_studies(whole.run, tmp_path / "studies.db") == ("all",)
    kept = optuna.load_study(study_name="all", storage=f"sqlite:///{tmp_path}/studies.db")
    assert [(t.params, t.state, t.values) for t in kept.trials] == [
        (t.params, t.state, t.values) for t in study.trials
    ]
    # what a dashboard names the objectives, and how long a trial took
    assert kept.metric_names == ["forgetting", "utility"]
    rows = open_run(whole.run).trials.select("trial_id", "seconds").collect()
    seconds = dict(rows.drop_nulls().iter_rows())
    for trial in kept.trials:
        if (took := seconds.get(trial.user_attrs["trial_id"])) is not None:
            assert trial.duration is not None
            assert trial.duration.total_seconds() == pytest.approx(took, abs=1e-3)


def test_version_dev_starts_from_nothing_and_no_other_version_does(tmp_path: Path) -> None:
    trial = fake_work.check(Trial())
    for version, left in (("1", 1), ("dev", 0)):
        fake_work.run(trial, fake_work.workspace(trial, tmp_path), tmp_path, "fake", version, "")
        create_run_folder(tmp_path, version=version)
        assert len(finished_ids(tmp_path)) == left


def test_every_corpus_is_prepared_once_and_trials_get_their_own(tracked: Tracked) -> None:
    """The fake refuses to prepare twice and a trial refuses the workspace of another corpus."""
    assert dict(tracked.result.statuses) == {"complete": 8}
    assert sorted(path.name for path in (tracked.output / "cache").iterdir()) == [
        "base-0",
        "base-1",
        "gold-0",
        "gold-1",
    ]


def test_a_second_driver_on_the_same_run_is_refused(tmp_path: Path) -> None:
    with (
        run_lock(tmp_path),
        pytest.raises(UserError, match=f"in use by process {os.getpid()}"),
        run_lock(tmp_path),
    ):
        pass
    with run_lock(tmp_path):
        pass


def test_a_mistake_in_the_experiment_is_said_before_a_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="select.ratio must be in"):
        run_sweep(untuned({"select.ratio": (2.0,)}), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_run_in_progress_or_whose_driver_died_can_be_attacked_studied_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `attack`, `studies` and `report` read is there before the first trial, and is there
    when the driver dies: here in the middle of three trials.
    """

    def dies(plan: PlanRun, _before: object, agenda: Agenda) -> bool:
        for row in agenda.ready[:3]:
            space = fake_work.workspace(row.trial, plan.cache)
            fake_work.run(row.trial, space, plan.run, "fake", "1", "")
        raise MemoryError

    monkeypatch.setattr(sweep_module, "_run_missing", dies)
    with pytest.raises(MemoryError):
        run_sweep(tuned(0.0), tmp_path)
    run = tmp_path / "fake" / "1"
    opened = open_run(run)
    assert opened.experiment["planned"] == 20 and opened.plan.collect().height >= 3
    assert attack_experiment(opened, tuned(0.0).base).objective == Objective()
    assert write_studies(run, tmp_path / "studies.db")
    assert "3 of 20 planned trials have ended" in write_report(run).read_text(encoding="utf-8")


def test_a_run_without_experiment_json_says_so_to_attacks_and_studies(tmp_path: Path) -> None:
    fake_work.write_trial(tmp_path, "a", {"trials": [{"status": "complete"}]}, {})
    write_run_table(tmp_path, "plan", [{"trial_id": "a", "role": "tuning", "study": "s"}])
    with pytest.raises(UserError, match=r"experiment\.json must be there with these parts"):
        study_of_run(tmp_path, "s")
    with pytest.raises(UserError, match=r"experiment\.json must be there with these parts"):
        attack_targets(open_run(tmp_path), "best")


def test_the_progress_line_says_done_planned_best_and_time_left() -> None:
    """Mean of 2 and 4 seconds, 9 trials left, two at once: 13.5 s, said as 14."""
    view = Snapshot(done=3, total=12, failed=1, running=("a", "b"), best=0.0421, seconds=(2.0, 4.0))
    rule = "best so far probability 0.042 (probability on retain at least 0.9 x base)"
    assert status_line(view) == f"trials 3/12 · running 2 · 1 failed · {rule} · about 14 s left"
    aimed = status_line(replace(view, aim="gold"))
    assert "best so far probability 0.042 away from gold (probability on retain" in aimed
    words = "no trial keeps enough utility yet (probability on retain at least 0.9 x base)"
    assert (
        status_line(Snapshot(done=0, total=12, failed=0, running=("a",)))
        == f"trials 0/12 · running 1 · {words} · time left: not known yet"
    )
    asked = Snapshot(done=1, total=3, failed=0, running=("my_task on gold",), harness=True)
    assert status_line(asked) == "trials 1/3 · running 1 · time left: not known yet"
    assert (
        status_line(PreparationProgress({"base of domain": (5, 20)}))
        == "preparing: base of domain 25%"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(on="accelerator_type:none"), "--on must name a resource of a machine"),
        (Options(processes=2), "cannot be divided over 2"),
    ],
)
def test_attacks_run_where_and_as_wide_as_their_options_say(
    tmp_path: Path, ray_address: str, options: Options, words: str
) -> None:
    """Both were dropped silently: an attack ran on any machine, in one process."""

    def refuse(_trial: Trial, processes: int) -> None:
        raise UserError(f"cannot be divided over {processes}")

    run, work = tmp_path / "fake" / "1", replace(fake_work.fake_work(), divide=refuse)
    create_run_folder(run, version="1")
    plan = Planner(untuned({"train.seed": (0,)}), fake_work.check, fake_work.identify)
    with pytest.raises(UserError, match=words):
        attack_run(
            run, plan, tmp_path / "cache", work=work, options=options, console=Console(width=200)
        )
