"""Runs under a URL, on a real S3 server on loopback: what is whole there, what comes back, and who
may write.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

import rayunlearn
from rayunlearn.cli import check
from rayunlearn.cli.main import main
from rayunlearn.cluster.sweep import sweep
from rayunlearn.errors import UserError
from rayunlearn.planning.outcomes import TrialResult, trial_result
from rayunlearn.planning.plan_run import Options
from rayunlearn.planning.planner import Planner
from rayunlearn.schema import PER_TRIAL
from rayunlearn.storage import lease as leases
from rayunlearn.storage import object_store, retry, sync
from rayunlearn.storage.artifact_cache import JSON, cached_file
from rayunlearn.storage.lock import create_run_folder, run_lock
from rayunlearn.storage.run import compact, finished_ids, open_run, write_trial
from rayunlearn.storage.sync import (
    display_path,
    fetch_folder,
    local_run,
    output_place,
    run_place,
    share_folder,
)
from tests import fake_work
from tests.fake_driver import tuned
from tests.s3_server import on_machine, s3_endpoint, s3_url

__all__ = ["s3_endpoint", "s3_url"]
REPOSITORY = Path(__file__).parents[2]


def trial(run: Path, name: str, value: float = 0.5, status: str = "complete") -> Path:
    """A finished trial with one row in `evals`."""
    row = {
        "stage": "unlearned",
        "attack": "none",
        "step": 1,
        "split": "forget",
        "metric": "probability",
        "value": value,
        "n": 1,
    }
    return write_trial(
        run,
        name,
        {"trials": [{"experiment": "e", "version": "1", "status": status}], "evals": [row]},
        {"select.ratio": 0.5},
    )


def values(run: Path | str) -> dict[str, float]:
    rows = rayunlearn.open(run).evals.select("trial_id", "value").collect().iter_rows()
    return {str(name): float(value) for name, value in rows}


def objects(url: str) -> list[str]:
    return sorted(
        name
        for name in object_store.list_names(url)
        if not sync.LEASE.fullmatch(name.rpartition("/")[2])
    )


@pytest.mark.parametrize("text", ["s3://bucket/a b/runs", "gs://bucket/x", "memory://m"])
def test_a_path_of_a_mirror_says_which_url_it_is(text: str) -> None:
    place = output_place(text + "/")
    assert display_path(place) == text and display_path(place / "hello" / "1") == f"{text}/hello/1"
    assert run_place(f"{text}/hello/1/") == place / "hello" / "1"


def test_a_path_and_a_file_url_are_paths() -> None:
    assert output_place("runs") == Path("runs") and output_place("file:///mnt/runs") == Path(
        "/mnt/runs"
    )
    assert (
        display_path(Path("runs/hello/1")) == "runs/hello/1" and sync.origin(Path("runs")) is None
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sftp://host/runs", "must begin with s3"),
        ("s3://", "scheme://bucket/prefix"),
        ("s3://bucket/../other", "scheme://bucket/prefix"),
        ("s3://key:secret@bucket/x", "must not hold a password"),
        ("file://host/runs", "file:///absolute/path"),
        ("s3://b/" + "x" * 200, "at most 200 characters"),
    ],
)
def test_a_url_that_cannot_hold_runs_is_refused_and_a_password_is_not_repeated(
    text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        output_place(text)
    assert "secret" not in str(refused.value)


def test_a_trial_is_one_object_and_another_machine_reads_it(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = output_place(s3_url) / "e" / "1"
    trial(run, "a")
    assert objects(s3_url) == ["e/1/trials/a.zip"]
    on_machine(tmp_path / "there", monkeypatch)
    assert values(f"{s3_url}/e/1") == {"a": 0.5}
    assert open_run(f"{s3_url}/e/1").path != run


def test_compaction_leaves_tables_and_no_trial_twice(s3_url: str) -> None:
    run = output_place(s3_url) / "e" / "1"
    trial(run, "a", 0.1)
    trial(run, "b", 0.2)
    compact(run)
    assert not [
        name for name in objects(s3_url) if "trials/" in name
    ] and "e/1/tables/evals.parquet" in objects(s3_url)
    assert values(f"{s3_url}/e/1") == {"a": 0.1, "b": 0.2}


@pytest.mark.parametrize(
    "n_calls", [0, 1, 4, 7, 2 * len(PER_TRIAL), 2 * len(PER_TRIAL) + 1, 2 * len(PER_TRIAL) + 2]
)
def test_a_compaction_killed_anywhere_loses_and_doubles_nothing(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_calls: int
) -> None:
    """The storage is cut off after each number of calls in turn; another machine reads what is
    there, the same one goes on.
    """
    run = output_place(s3_url) / "e" / "1"
    trial(run, "a", 0.1)
    compact(run)
    trial(run, "b", 0.2)
    left = iter(range(n_calls))

    def cut_off(ask: object) -> object:
        def call(*given: object, **named: object) -> object:
            if next(left, None) is None:
                raise UserError("gone")
            return ask(*given, **named)  # type: ignore[operator]

        return call

    with monkeypatch.context() as patched:
        patched.setattr(sync.object_store, "put_file", cut_off(object_store.put_file))
        patched.setattr(sync.object_store, "remove", cut_off(object_store.remove))
        # every table and the manifest before it, the manifest and the removal
        if n_calls > 2 * len(PER_TRIAL) + 1:
            compact(run)
        else:
            with pytest.raises(UserError, match="gone"):
                compact(run)
    there, here = tmp_path / "there", tmp_path / "here"
    on_machine(there, monkeypatch)
    assert values(f"{s3_url}/e/1") == {"a": 0.1, "b": 0.2}
    on_machine(here, monkeypatch)
    with run_lock(run):
        compact(run)
    assert values(f"{s3_url}/e/1") == {"a": 0.1, "b": 0.2}


def test_what_the_storage_did_not_take_is_put_there_by_the_next_driver_of_the_machine(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = output_place(s3_url) / "e" / "1"

    def refuse(*_given: object, **_named: object) -> bool:
        raise UserError("gone")

    with monkeypatch.context() as patched, pytest.raises(UserError, match="gone"):
        patched.setattr(sync.object_store, "put_file", refuse)
        trial(run, "a")
    assert objects(s3_url) == [] and finished_ids(run) == {"a": "complete"}
    with run_lock(run):
        assert objects(s3_url) == ["e/1/trials/a.zip"] and finished_ids(run) == {"a": "complete"}
    assert sync.unsent(run) == []


@pytest.mark.parametrize("command", ["lock", "repair"])
def test_a_trial_that_was_damaged_before_it_was_sent_is_removed_and_said(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, command: str
) -> None:
    """Under the URL nothing damaged appears; the other trial that was not sent does. Reading the
    run before takes neither away.
    """
    run = output_place(s3_url) / "e" / "1"

    def refuse(*_given: object, **_named: object) -> bool:
        raise UserError("gone")

    for name in ("a", "b"):
        with monkeypatch.context() as patched, pytest.raises(UserError, match="gone"):
            patched.setattr(sync.object_store, "put_file", refuse)
            trial(run, name)
    assert set(values(f"{s3_url}/e/1")) == {"a", "b"}
    file = run / "trials" / "a" / "steps.parquet"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match="steps.parquet is damaged.*removes the trial"):
        values(f"{s3_url}/e/1")
    if command == "lock":
        with run_lock(run):
            pass
    else:
        list(check.repair(run, run.parents[1] / "cache"))
    (line,) = [text for text in caplog.messages if "steps.parquet" in text]
    assert "is damaged" in line and "`rayunlearn run` runs it again" in line
    assert objects(s3_url) == ["e/1/trials/b.zip"] and finished_ids(run) == {"b": "complete"}
    assert not (run / "trials" / "a").exists() and sync.unsent(run) == []


def test_what_is_under_the_url_is_the_truth(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that another machine ran again, and one that it removed, are so here after the next
    lock; an equal one is not brought again.
    """
    run = output_place(s3_url) / "e" / "1"
    for name in "abc":
        trial(run, name, status="failed" if name == "a" else "complete")
    with run_lock(run):
        pass
    on_machine(tmp_path / "there", monkeypatch)
    other = output_place(s3_url) / "e" / "1"
    with run_lock(other):
        trial(other, "a", 0.9)
    object_store.remove([f"{s3_url}/e/1/trials/b.zip"])
    on_machine(tmp_path / "here", monkeypatch)
    asked: list[str] = []
    get = object_store.get_file
    monkeypatch.setattr(
        sync.object_store,
        "get_file",
        lambda url, file: asked.append(url.rpartition("/")[2]) or get(url, file),
    )
    with run_lock(run):
        assert values(run) == {"a": 0.9, "c": 0.5}
    assert asked == ["a.zip"]


def test_version_dev_starts_from_nothing_under_the_url_too(s3_url: str) -> None:
    run = output_place(s3_url) / "e" / "dev"
    trial(run, "a")
    with run_lock(run):
        create_run_folder(run, version="dev")
    assert objects(s3_url) == [] and finished_ids(run) == {}


def test_caches_are_made_on_one_machine_and_read_on_all(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # here, and what needs it: the rest of the file does without
    import torch

    from rayunlearn.models.tensor_cache import tensors_once

    def made(value: float) -> dict[str, torch.Tensor]:
        return {"x": torch.full((3,), value)}

    def never() -> dict[str, torch.Tensor]:
        raise AssertionError("made twice")

    assert tensors_once(output_place(s3_url) / "cache" / "t", {"k": 1}, lambda: made(2.0))[
        "x"
    ].tolist() == [2.0, 2.0, 2.0]
    on_machine(tmp_path / "there", monkeypatch)
    assert tensors_once(output_place(s3_url) / "cache" / "t", {"k": 1}, never)["x"].tolist() == [
        2.0,
        2.0,
        2.0,
    ]


def test_of_two_machines_that_made_one_model_both_go_on_with_the_first_ones(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for machine in ("here", "there"):
        on_machine(tmp_path / machine, monkeypatch)
        folder = output_place(s3_url) / "cache" / "models" / "base"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(machine)
        share_folder(folder)
        assert (folder / "model.safetensors").read_text() == "here"


@pytest.mark.parametrize("name", ["../out", "/out", "a/b"])
def test_an_archive_writes_nowhere_else(s3_url: str, name: str) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.writestr(name, "x")
    object_store.put_bytes(content.getvalue(), f"{s3_url}/e/1/trials/a.zip")
    with pytest.raises(UserError, match="plain names"):
        fetch_folder(output_place(s3_url) / "e" / "1" / "trials" / "a")


def test_names_that_lead_out_of_the_run_are_not_brought(s3_url: str) -> None:
    for name in ("trials/a b.zip", "notes.txt", "tables/x/y.parquet", "trials/..%2f.zip"):
        object_store.put_bytes(b"x", f"{s3_url}/e/1/{name}")
    trial(output_place(s3_url) / "e" / "1", "a")
    run = local_run(f"{s3_url}/e/1")
    assert (
        sorted(
            path.name
            for path in run.rglob("*")
            if path.is_file() and not path.name.startswith(".") and path.parent.name != "a"
        )
        == []
    )


def test_where_there_is_no_run_and_no_bucket_it_is_said(s3_url: str) -> None:
    with pytest.raises(UserError, match="there must be a run at the URL, got 's3://bucket"):
        local_run(f"{s3_url}/e/1")
    with (
        pytest.raises(UserError, match="the bucket must exist"),
        run_lock(output_place("s3://no-such-bucket-here/x") / "e" / "1"),
    ):
        pass


# ---- one driver


def test_one_driver_on_one_machine_and_a_finished_one_leaves_at_once(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.2)
    with run_lock(output_place(s3_url) / "e" / "1"):
        on_machine(tmp_path / "there", monkeypatch)
        with (
            pytest.raises(UserError, match=r"only one driver .* is in use by process \d+ on"),
            run_lock(output_place(s3_url) / "e" / "1"),
        ):
            pass
    with run_lock(output_place(s3_url) / "e" / "1") as still_ours:
        still_ours()


def test_a_silent_driver_is_succeeded_and_stops_when_it_wakes(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 0.1)
    silent = leases.acquire(s3_url, "here")
    successor = leases.acquire(s3_url, "there")
    with pytest.raises(UserError, match="was taken over by process"):
        silent.renew()
    successor.renew()
    assert leases.numbers(s3_url) == [1, 2]


def test_on_its_own_machine_a_dead_driver_is_succeeded_at_once(s3_url: str) -> None:
    leases.acquire(s3_url, "here")
    assert leases.acquire(s3_url, "here").number == 2


def test_of_two_that_want_a_free_run_one_gets_it(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked and seen nobody; the first is faster."""
    first = leases.acquire(s3_url, "here")
    monkeypatch.setattr(leases, "numbers", lambda url: [])
    with pytest.raises(UserError, match="was just taken by process"):
        leases.acquire(s3_url, "there")
    assert (
        json.loads(object_store.get_bytes(leases.lease_file_name(s3_url, 1)) or b"")["token"]
        == first.token
    )


def test_an_answer_lost_on_its_way_is_no_other_driver(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The put succeeds, its answer is lost, the repeated put is told that the object is there: it
    is our own.
    """
    put = object_store.put_bytes

    def twice(content: bytes, url: str, *, create: bool = False) -> bool:
        put(content, url, create=create)
        return put(content, url, create=create)

    monkeypatch.setattr(leases.object_store, "put_bytes", twice)
    assert leases.acquire(s3_url, "here").number == 1


# ---- a storage that fails


class Flaky:
    """A store whose first `n` puts fail as a throttled one does."""

    def __init__(self, n: int) -> None:
        self.n, self.asked = n, 0

    def pipe_file(self, _url: str, _content: bytes, *, mode: str) -> None:
        """Put."""
        self.asked += 1
        if self.asked <= self.n:
            raise OSError(16, "Please reduce your request rate")


def test_a_storage_that_fails_for_a_while_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Flaky(3)
    monkeypatch.setattr(object_store, "_store", lambda _url: store)
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.001)
    assert object_store.put_bytes(b"x", "s3://b/x") and store.asked == 4


def test_a_storage_that_goes_on_failing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_store", lambda _url: Flaky(10**9))
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.001)
    with pytest.raises(
        UserError, match=r"the storage did not do it: s3://b/x: OSError: .*reduce your request rate"
    ):
        object_store.put_bytes(b"x", "s3://b/x", patience=0.01)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError("Access Denied"),
        type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"),
    ],
)
def test_a_refusal_is_not_asked_again(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    asked = []

    def refuse(_url: str) -> object:
        asked.append(1)
        raise error

    monkeypatch.setattr(object_store, "_store", refuse)
    with pytest.raises(UserError, match="the storage did not do it"):
        object_store.get_bytes("s3://b/x")
    assert len(asked) == 1


def test_what_comes_back_is_what_was_written_row_by_row(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk = tmp_path / "disk" / "e" / "1"
    run = output_place(s3_url) / "e" / "1"
    for at, name in enumerate("abc"):
        trial(run, name, at / 3)
        trial(on_disk, name, at / 3)
    compact(run)
    compact(on_disk)
    on_machine(tmp_path / "there", monkeypatch)
    for table in ("trials", "evals"):
        theirs, ours = (
            getattr(open_run(place), table).collect().sort("trial_id")
            for place in (f"{s3_url}/e/1", on_disk)
        )
        assert theirs.equals(ours, null_equal=True) and isinstance(ours, pl.DataFrame)


def test_trials_that_ended_on_other_machines_are_closed_by_a_driver_and_known_to_the_next(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every planned trial runs on a machine of its own kind of disk, no Ray; two drivers in turn,
    each elsewhere, find nothing left to run.
    """
    experiment, results = tuned(0.0), {}
    planner = Planner(experiment, fake_work.check, fake_work.identify)
    on_machine(tmp_path / "worker", monkeypatch)
    run = output_place(s3_url) / "fake" / "1"
    sync.run_ready(run)
    while ready := planner.agenda(results).ready:
        for planned in ready:
            fake_work.run(
                planned.trial, fake_work.workspace(planned.trial, tmp_path), run, "fake", "1", ""
            )
            results[planned.trial_id] = trial_result(
                run, planned.trial_id, experiment.objective
            ) or TrialResult("lost")
    assert {f"fake/1/trials/{name}.zip" for name in results} == set(objects(s3_url))
    for machine in ("first", "second"):
        on_machine(tmp_path / machine, monkeypatch)
        done = sweep(
            experiment,
            output_place(s3_url),
            work=fake_work.fake_work(),
            options=Options(),
            console=Console(file=io.StringIO()),
        )
        assert (done.done, done.total, done.ran) == (len(results), len(results), 0)
        assert set(finished_ids(local_run(f"{s3_url}/fake/1"))) == set(results)
    assert not [
        name for name in objects(s3_url) if "trials/" in name
    ] and "fake/1/experiment.json" in objects(s3_url)


@pytest.mark.slow
def test_a_sweep_under_a_url_is_known_on_another_machine(s3_url: str) -> None:
    """A driver with a Ray of its own; then one whose temporary folder is another and that finds
    nothing left to do.
    """
    said = []
    for _machine in ("here", "there"):
        # short: Ray's sockets are in it
        with tempfile.TemporaryDirectory(dir="/tmp", prefix="m-") as folder:
            environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": folder}
            command = [sys.executable, "-m", "tests.fake_driver", s3_url, "0.0"]
            done = subprocess.run(
                command,
                cwd=REPOSITORY,
                env=environment,
                capture_output=True,
                text=True,
                timeout=500,
            )
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout)
    assert "(0 in this call" not in said[0] and "ray imported: True" in said[0]
    assert "(0 in this call" in said[1] and "ray imported: False" in said[1]
    assert not [name for name in objects(s3_url) if "trials/" in name]
    assert set(finished_ids(local_run(f"{s3_url}/fake/1")).values()) == {"complete"}


def test_a_mirror_that_was_damaged_is_brought_again_by_check(
    s3_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bit flips on this machine, sizes and times stay: reading refuses, --repair takes what is
    under the URL.
    """
    run, url = output_place(s3_url) / "e" / "1", f"{s3_url}/e/1"
    trial(run, "a", 0.1)
    compact(run)
    assert values(url) == {"a": 0.1}
    file = run / "tables" / "steps.parquet"
    times, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert main(["show", url, "a"]) == 2 and "steps.parquet is damaged" in capsys.readouterr().err
    assert main(["check", url]) == 1 and main(["check", url, "--repair"]) == 0
    assert main(["check", url]) == 0 and values(url) == {"a": 0.1}


def test_a_cache_under_a_url_is_checked_whole(
    s3_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An object of the cache that is not what was put there, seen from a machine that has none of
    it.
    """
    output = output_place(s3_url)
    trial(output / "e" / "1", "a", 0.1)
    cached_file(output / "cache" / "scores", {"what": "a"}, lambda: [1, 2], JSON)
    name = next(
        n for n in objects(f"{s3_url}/cache") if n.endswith(JSON.suffix) and "mani" not in n
    )
    object_store.put_bytes(b"[1, 3]", f"{s3_url}/cache/{name}")
    assert main(["check", f"{s3_url}/e/1"]) == 1 and "is damaged" in capsys.readouterr().out
    assert main(["check", f"{s3_url}/e/1", "--repair"]) == 0
    assert cached_file(output / "cache" / "scores", {"what": "a"}, lambda: [1, 2], JSON) == [1, 2]
