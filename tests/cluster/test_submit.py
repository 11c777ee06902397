"""What travels to a cluster, how large it may be, and what the job is told to run. The way there
and back: test_jobs.py.
"""

import os
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from rayunlearn.cli.main import main
from rayunlearn.cluster import jobs as module
from rayunlearn.cluster.jobs import Submission, pack, packed_files, runtime_environment
from rayunlearn.errors import UserError


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name in (
        "a.py",
        "corpus/notes.jsonl",
        "runs/hello/1/trials.parquet",
        ".venv/lib.py",
        "weights/model.safetensors",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def names(folder: Path, *include: str) -> list[str]:
    return [path.as_posix() for path in packed_files(folder, include)]


def test_runs_environments_and_weights_stay_at_home(project: Path) -> None:
    assert names(project) == ["a.py", "corpus/notes.jsonl"]


def test_in_a_checkout_ignored_files_stay_too_unless_they_are_asked_for(project: Path) -> None:
    subprocess.run(["git", "init", "-q", str(project)], check=True)
    (project / ".gitignore").write_text("corpus/\n")
    assert names(project) == ["a.py"]
    assert names(project, "corpus", "weights/model.safetensors") == [
        "a.py",
        "corpus/notes.jsonl",
        "weights/model.safetensors",
    ]


@pytest.mark.parametrize("name", ["nowhere", "../elsewhere.txt"])
def test_what_is_asked_for_must_be_there_and_inside(project: Path, name: str) -> None:
    (project.parent / "elsewhere.txt").write_text("secret")
    with pytest.raises(UserError, match="--include must name a path inside the folder"):
        names(project, name)


def test_the_archive_holds_the_files_as_they_are(project: Path, tmp_path: Path) -> None:
    size = pack(project, packed_files(project, ()), tmp_path / "project.zip")
    with zipfile.ZipFile(tmp_path / "project.zip") as archive:
        assert {name: archive.read(name).decode() for name in archive.namelist()} == {
            "a.py": "a.py",
            "corpus/notes.jsonl": "corpus/notes.jsonl",
        }
    assert size == (tmp_path / "project.zip").stat().st_size


def test_an_archive_that_the_server_would_refuse_is_refused_here_and_its_largest_files_are_named(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "big.bytes").write_bytes(os.urandom(3000))
    monkeypatch.setattr(module, "LIMIT_BYTES", 2000)
    with pytest.raises(
        UserError, match=r"at most 0 MiB, compressed .*largest: big\.bytes 0\.0 MiB"
    ):
        pack(project, packed_files(project, ()), tmp_path / "project.zip")


def test_a_run_must_go_where_every_machine_sees_it(project: Path) -> None:
    request = Submission(
        words=("true",), experiment="hello", version="1", output="runs", folder=project
    )
    with pytest.raises(UserError, match="--output must be an absolute path or a URL .* got 'runs'"):
        module.submit_job(request, "http://127.0.0.1:1", print)


def test_only_named_variables_travel_and_installing_is_asked_for(project: Path) -> None:
    request = Submission(
        words=("true",),
        experiment="hello",
        version="1",
        output="/s",
        folder=project,
        variables={"HF_TOKEN": "x"},
    )
    assert runtime_environment(request, project / "p.zip") == {
        "working_dir": str(project / "p.zip"),
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120", "HF_TOKEN": "x"},
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--address", "127.0.0.1:8265"], "--address must be the job server's http://HOST:PORT"),
        (
            ["--address", "http://127.0.0.1:9", "--pass", "NO_SUCH_VARIABLE"],
            "--pass must name environment variables that are set",
        ),
        (["--address", "http://127.0.0.1:9", "--set", "npo.bta=1"], "npo.beta"),
    ],
)
def test_a_mistake_shows_before_anything_is_sent(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "experiments/hello.py", "--output", "/shared/runs", *words]) == 2
    assert message in capsys.readouterr().err


def test_an_experiment_outside_the_packed_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        (Path(__file__).parents[2] / "experiments" / "hello.py").read_text()
    )
    assert (
        main(
            [
                "submit",
                str(tmp_path / "mine.py"),
                "--output",
                "/shared/runs",
                "--address",
                "http://127.0.0.1:9",
            ]
        )
        == 2
    )
    assert "must lie in the folder that is packed" in capsys.readouterr().err


def test_jobs_of_others_are_listed_with_their_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray job submit -- rayunlearn run ...` leaves no word of its run; a driver is no job."""

    def job(name: str, start: int, metadata: dict[str, str] | None) -> SimpleNamespace:
        return SimpleNamespace(
            submission_id=name,
            status="RUNNING",
            metadata=metadata,
            entrypoint="rayunlearn run e.py",
            start_time=start,
        )

    every = [job("a", 1, {"run": "/runs/e/1"}), job("b", 2, None), job("", 3, None)]
    monkeypatch.setattr(module, "client_of", lambda _: SimpleNamespace(list_jobs=lambda: every))
    listed = module.list_jobs("http://127.0.0.1:8265")
    assert [(row["job"], row["run"]) for row in listed] == [
        ("b", "rayunlearn run e.py"),
        ("a", "/runs/e/1"),
    ]
