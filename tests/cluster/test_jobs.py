"""`ray job submit` and `ray://` for real, against a head on loopback with a home and a token of its
own.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rayunlearn.storage.run import finished_ids

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
# Two untrained-looking models and three trials: what is tested here is the way to the cluster and
# back.
SMALL = [
    "model.teach_epochs=1",
    "train.length=2",
    "method.forget=npo",
    "method.retain=nll",
    "select.name=random",
    "select.ratio=0.05",
]
FIXED = ["budget.tuning=none", "select.seed=0", "train.seed=0"]


@dataclass(frozen=True)
class Head:
    """Where the head answers and what a client must have in its environment."""

    dashboard: str
    client: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head --block` on loopback; ended by its process id."""
    home = tmp_path_factory.mktemp("home")
    # short: socket paths are limited to 107 bytes
    temporary = Path("/tmp") / f"ray-test-{os.getpid()}"
    gcs, dashboard, client, agent = (free_port() for _ in range(4))
    token = secrets.token_hex(32)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    options = {
        "node-ip-address": "127.0.0.1",
        "port": gcs,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "ray-client-server-port": client,
        # jobs are started by it; its usual port is another head's, where there is one
        "dashboard-agent-listen-port": agent,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [
        "ray",
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        f"--temp-dir={temporary}",
        *flags,
    ]
    with (home / "head.log").open("w") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=home,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until_it_answers(
                f"http://127.0.0.1:{dashboard}/api/version", token, process, home / "head.log"
            )
            yield Head(f"http://127.0.0.1:{dashboard}", f"ray://127.0.0.1:{client}", environment)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
            shutil.rmtree(temporary, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_it_answers(
    address: str, token: str, process: subprocess.Popen[bytes], log: Path
) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(
                urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"}),
                timeout=5,
            ).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"the head did not come up:\n{log.read_text()}")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The package and the experiments as a job's working directory."""
    for name in ("rayunlearn", "experiments"):
        shutil.copytree(
            REPOSITORY / name,
            tmp_path / "checkout" / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    return tmp_path / "checkout"


def called(command: list[str], head: Head, where: Path) -> str:
    """Output of a command that must succeed. A head that has just begun answers before its job
    agent is up: it says so, and is asked again.
    """
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(
            command,
            env=head.environment,
            cwd=where,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        if (
            done.returncode == 0
            or "No available agent" not in done.stdout
            or time.monotonic() > deadline
        ):
            break
        time.sleep(2)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_submitted_job_runs_an_experiment_and_leaves_its_run(
    head: Head, checkout: Path, tmp_path: Path
) -> None:
    output = tmp_path / "runs"
    job = [
        "python",
        "-m",
        "rayunlearn",
        "run",
        "experiments/hello.py",
        "--output",
        str(output),
        "--set",
        *SMALL,
        *FIXED,
    ]
    said = called(
        ["ray", "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *job],
        head,
        checkout,
    )
    assert "4 of 4 trials are done" in said and "succeeded" in said
    assert set(finished_ids(output / "hello" / "1").values()) == {"complete"}


def test_submit_packs_follows_and_finds_the_run_again(
    head: Head, checkout: Path, tmp_path: Path
) -> None:
    output = tmp_path / "runs"
    command = [
        sys.executable,
        "-m",
        "rayunlearn",
        "submit",
        "experiments/hello.py",
        "--address",
        head.dashboard,
        "--output",
        str(output),
    ]
    said = called([*command, "--set", *SMALL, *FIXED], head, checkout)
    assert "packed" in said and "4 of 4 trials are done" in said
    assert set(finished_ids(output / "hello" / "1").values()) == {"complete"}
    listed = called(
        [sys.executable, "-m", "rayunlearn", "jobs", "--address", head.dashboard], head, checkout
    )
    assert f"SUCCEEDED  {output}/hello/1" in listed
    # as after a lost head: nothing runs twice
    again = called([*command, "--set", *SMALL, *FIXED], head, checkout)
    assert "4 of 4 trials are done (0 in this call" in again


def test_a_job_that_is_stopped_closes_its_run_first(
    head: Head, checkout: Path, tmp_path: Path
) -> None:
    """Ray gives a job three seconds unless told otherwise; a submitted one has two minutes."""
    rayunlearn, address = [sys.executable, "-m", "rayunlearn"], ["--address", head.dashboard]
    run = tmp_path / "runs" / "hello" / "1"
    slow = [*SMALL, "budget.tuning=none", "train.length=300"]
    words = ["submit", "experiments/hello.py", *address, "--output", str(run.parents[1])]
    said = called([*rayunlearn, *words, "--detach", "--set", *slow], head, checkout)
    job = said.split("job ")[1].split(";")[0]
    deadline = time.monotonic() + 300
    while len(list(run.glob("trials/*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "asked to stop" in called([*rayunlearn, "jobs", *address, job, "--stop"], head, checkout)
    while f"STOPPED    {run}" not in called([*rayunlearn, "jobs", *address], head, checkout):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert (run / "tables" / "trials.parquet").exists() and (run / "experiment.json").exists()
    # those that were still to come when it was stopped
    assert 2 <= len(finished_ids(run)) < 8


def test_a_job_that_fails_gives_its_exit_status_and_a_client_without_the_token_is_told(
    head: Head, checkout: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "rayunlearn",
        "submit",
        "experiments/hello.py",
        "--address",
        head.dashboard,
        "--output",
        str(tmp_path / "runs"),
    ]
    wrong = subprocess.run(
        [*command, "--set", "data.name=files", "data.path=/nowhere"],
        env=head.environment,
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    assert wrong.returncode == 2 and "/nowhere" in wrong.stdout
    stranger = {name: value for name, value in head.environment.items() if name != "RAY_AUTH_TOKEN"}
    refused = subprocess.run(
        [*command, "--detach"], env=stranger, cwd=checkout, capture_output=True, text=True
    )
    assert refused.returncode == 2 and "RAY_AUTH_TOKEN" in refused.stderr


def test_a_client_of_a_cluster_far_away_runs_an_experiment_there(
    head: Head, checkout: Path, tmp_path: Path
) -> None:
    output = tmp_path / "runs"
    command = [
        sys.executable,
        "-m",
        "rayunlearn",
        "run",
        "experiments/hello.py",
        "--output",
        str(output),
        "--address",
        head.client,
    ]
    said = called([*command, "--set", *SMALL, *FIXED], head, checkout)
    assert "4 of 4 trials are done" in said
    assert set(finished_ids(output / "hello" / "1").values()) == {"complete"}
