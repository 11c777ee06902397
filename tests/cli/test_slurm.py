"""The batch script of `rayunlearn submit --slurm`: what it asks for, and how it ends and goes on.
Slurm's commands have stand-ins (tests/slurm_stand_ins.py); with Ray: tests/cluster/test_slurm.py.
"""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayunlearn.cli.main import main
from rayunlearn.cli.slurm import REQUEUES, SlurmJob, batch_script
from rayunlearn.errors import UserError
from tests.slurm_stand_ins import JOB, NAMES, options_of, stand_ins

ROOT = Path(__file__).parents[2]
PRINTED = [
    "submit",
    "experiments/coreset_effect.py",
    "--output",
    "/shared/runs",
    "--slurm",
    "--nodes=2",
    "--gpus=4",
    "--partition=gpu",
    "--account=lab",
    "--hours=8",
]
# six trials, each once; in allocation n it comes to the end of the time before the n-th of the
# trials that it is called with
DRIVER = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
stops = [int(word) for word in sys.argv[1:]][int(os.environ["SLURM_RESTART_COUNT"]):]
for trial in range(len(list(pathlib.Path("ledger").iterdir())), 6):
    if trial in stops[:1]:
        time.sleep(60)
    pathlib.Path(f"ledger/{trial}").touch(exist_ok=False)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an experiment, and Slurm's commands and `ray` as stand-ins."""
    monkeypatch.setenv("PATH", stand_ins(tmp_path / "bin", *NAMES, "ray"))
    (tmp_path / "mine.py").write_text((ROOT / "experiments/hello.py").read_text())
    (tmp_path / "driver.py").write_text(DRIVER)
    (tmp_path / "ledger").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_script(here: Path, command: str, **job: Any) -> tuple[int, int, str]:
    """The job's exit status, how often it was queued again, and what it printed."""
    words = ("python", "-S", *command.split())
    Path("job.sbatch").write_text(batch_script(SlurmJob(name="job", words=words, **job)))
    subprocess.run(["sbatch", "--parsable", "job.sbatch"], check=True, capture_output=True)
    status, restarts = Path(f"status-{JOB}").read_text().split()
    return int(status), int(restarts), Path(f"slurm-job-{JOB}.out").read_text()


def test_the_script_in_deploy_is_what_print_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PRINTED, "--print"]) == 0
    script = (ROOT / "deploy/slurm/sweep.sbatch").read_text()
    assert script == capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_the_directives_say_what_was_asked_for() -> None:
    job = SlurmJob(name="a", words=("true",), partition="gpu", account="lab", nodes=3, hours=1.51)
    whole = options_of(batch_script(replace(job, gpus="a100:4")))
    assert whole["--partition"] == "gpu" and whole["--account"] == "lab"
    assert whole["--nodes"] == "3" and whole["--gpus-per-node"] == "a100:4"
    # 90.6 minutes, rounded up
    assert whole["--time"] == "01:31:00" and "--exclusive" in whole and "--requeue" in whole
    shared = options_of(batch_script(replace(job, cpus=8, extra=("--qos=long",))))
    assert shared["--cpus-per-task"] == "8" and shared["--qos"] == "long"
    assert "--exclusive" not in shared and "--gpus-per-node" not in shared


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"nodes": 0}, "--nodes must be >= 1, got 0"),
        ({"hours": 0.0}, "--hours must be a finite number >= 0.1, got 0.0"),
        ({"hours": float("nan")}, "--hours must be"),
        ({"gpus": "a100"}, "--gpus must be a number >= 1 or TYPE:NUMBER, got 'a100'"),
        ({"partition": "gpu\n#SBATCH --x"}, "must be one line"),
        ({"extra": ("qos",)}, "--sbatch must be an option of sbatch, got 'qos'"),
    ],
)
def test_what_slurm_would_refuse_is_refused_here(wrong: dict[str, Any], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        SlurmJob(name="a", words=("true",), **wrong)


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--slurm", "--detach"], "there is no --detach with --slurm"),
        (["--slurm", "--pass", "HF_TOKEN"], "there is no --pass with --slurm"),
        (["--hours", "3"], "there is no --hours without --slurm"),
        (["--print"], "there is no --print without --slurm"),
    ],
)
def test_options_of_the_other_way_are_refused(
    here: Path, words: list[str], rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "mine.py", *words]) == 2
    assert rule in capsys.readouterr().err


def test_submit_writes_the_script_and_hands_it_over(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`run` in the job meets a corpus that is not there: its exit status is the job's."""
    wrong = ["--set", "data.name=files", "data.path=/nowhere"]
    assert main(["submit", "mine.py", "--slurm", "--tuned-from", "runs/x/1", *wrong]) == 2
    assert "runs/x/1" in capsys.readouterr().err
    assert main(["submit", "mine.py", "--slurm", *wrong]) == 0
    said = capsys.readouterr().out
    assert f"job {JOB} (mine-1.sbatch)" in said and f"scancel --batch --signal=TERM {JOB}" in said
    assert "python -m rayunlearn run mine.py" in Path("mine-1.sbatch").read_text()
    assert "/nowhere" in Path(f"slurm-mine-1-{JOB}.out").read_text()
    assert Path(f"status-{JOB}").read_text() == "2 0"


def test_a_job_at_its_time_limit_is_queued_again_and_its_ledger_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_STAND_IN_LIMIT", "ledger/* 2 5")
    status, restarts, said = run_script(here, "driver.py 2 5")
    assert (status, restarts) == (0, 2) and said.count("the time limit: queued again") == 2
    assert sorted(file.name for file in Path("ledger").iterdir()) == list("012345")


def test_a_driver_that_ends_by_itself_is_not_queued_again(here: Path) -> None:
    assert run_script(here, "-c raise(SystemExit(1))")[:2] == (1, 0)


def test_a_job_is_queued_again_so_often_and_no_more(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayunlearn.cli.slurm.REQUEUES", 1)
    monkeypatch.setenv("SLURM_STAND_IN_LIMIT", "ledger/* 1 2")
    status, restarts, said = run_script(here, "driver.py 1 2")
    assert (status, restarts) == (143, 1) and "submit once more to go on" in said
    assert REQUEUES > 1


def test_ray_that_does_not_start_is_a_failure(here: Path) -> None:
    """symmetric-run of Ray 2.60 returns 0 then."""
    (here / "bin" / "ray").unlink()
    (here / "bin" / "ray").write_text("#!/bin/bash\nexit 0\n")
    (here / "bin" / "ray").chmod(0o755)
    status, restarts, said = run_script(here, "driver.py")
    assert (status, restarts) == (1, 0) and "Ray did not start" in said
    assert not list(Path("ledger").iterdir())


def test_without_sbatch_it_says_what_is_missing(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(here))
    assert main(["submit", "mine.py", "--slurm"]) == 2
    assert "needs Slurm's sbatch on PATH" in capsys.readouterr().err
