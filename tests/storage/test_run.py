"""A run folder: what is written comes back, a killed or failed writer leaves nothing behind that
reads as finished.
"""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as parquet
import pytest

import rayunlearn
from benchmarks.cluster import block
from rayunlearn.errors import UserError
from rayunlearn.schema import LATER_TABLES, PER_TRIAL, VERSION, column_names
from rayunlearn.storage import parquet as parquet_module
from rayunlearn.storage import retry as retry_module
from rayunlearn.storage import run as run_module
from rayunlearn.storage.artifact_cache import MANIFEST
from rayunlearn.storage.run_manifest import manifest_text, read_contents, trial_owner
from tests import synthetic
from tests.manifests import as_written


def put(
    run: Path,
    trial_id: str,
    *,
    status: str = "complete",
    n_kept: int = 5,
    config: dict | None = None,
) -> Path:
    steps = [{"step": i, "loss": float(i)} for i in (1, 2)]
    return run_module.write_trial(
        run,
        trial_id,
        {"trials": [{"status": status, "n_kept": n_kept}], "steps": steps},
        config or {"select.ratio": 0.5},
    )


def kept(run: Path) -> dict[str, int]:
    rows = run_module.open_run(run).trials.select("trial_id", "n_kept").collect()
    assert rows["trial_id"].is_unique().all()
    return dict(rows.iter_rows())


def test_what_is_written_comes_back_with_settings_as_typed_columns(tmp_path: Path) -> None:
    put(
        tmp_path,
        "a",
        config={
            "select.ratio": 0.5,
            "train.batch_size": 8,
            "model.teach": True,
            "method.forget": "npo",
        },
    )
    run = rayunlearn.open(tmp_path)
    row = run.trials.collect().row(0, named=True)
    assert (row["trial_id"], row["status"], row["n_kept"], row["coverage"]) == (
        "a",
        "complete",
        5,
        None,
    )
    assert (
        row["select.ratio"],
        row["train.batch_size"],
        row["model.teach"],
        row["method.forget"],
    ) == (0.5, 8, True, "npo")
    assert run.steps.collect()["loss"].to_list() == [1.0, 2.0]
    assert run.examples.collect().columns == list(column_names("examples"))


def test_any_parquet_reader_finds_the_schema_version(tmp_path: Path) -> None:
    folder = put(tmp_path, "a")
    for table in PER_TRIAL:
        assert (
            parquet.read_metadata(folder / f"{table}.parquet").metadata[
                b"rayunlearn.schema_version"
            ]
            == str(VERSION).encode()
        )


def test_a_trial_from_before_a_later_table_is_read_as_it_was(tmp_path: Path) -> None:
    """Its manifest does not name the table; a file that it names and that is gone is told."""
    folder = put(tmp_path, "a")
    later = {f"{table}.parquet" for table in LATER_TABLES}
    for name in later:
        (folder / name).unlink()
    with pytest.raises(UserError, match="is missing"):
        run_module.open_run(tmp_path)
    contents = read_contents(folder, trial_owner("a"))
    assert not isinstance(contents, str)
    older = {name: content for name, content in contents.items() if name not in later}
    (folder / MANIFEST).write_bytes(manifest_text(trial_owner("a"), older))
    assert run_module.open_run(tmp_path).diagnostics.collect().is_empty()
    run_module.compact(tmp_path)
    opened = run_module.open_run(tmp_path)
    assert opened.trials.collect().height == 1 and opened.diagnostics.collect().is_empty()


def test_numpy_numbers_are_numbers_and_text_is_not(tmp_path: Path) -> None:
    frame = parquet_module.frame_of(
        "steps",
        [
            {"trial_id": "a", "step": np.int64(3), "loss": np.float32(0.5)},
            {"trial_id": "a", "step": 4, "loss": 1},
        ],
    )
    assert frame["step"].to_list() == [3, 4] and frame["loss"].to_list() == [0.5, 1.0]
    for row, word in (
        ({"step": "3"}, "steps.step must be i64, got '3'"),
        ({"step": 1.5}, "got 1.5"),
        ({"loss": True}, "steps.loss must be f64, got True"),
    ):
        with pytest.raises(UserError, match=word):
            parquet_module.frame_of("steps", [row])


def test_a_misspelt_column_or_table_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'los'; did you mean 'loss'"):
        parquet_module.frame_of("steps", [{"los": 1.0}])
    with pytest.raises(UserError, match="'step'; did you mean 'steps'"):
        run_module.write_trial(tmp_path, "a", {"trials": [{}], "step": []}, {})
    with pytest.raises(UserError, match="exactly one row"):
        run_module.write_trial(tmp_path, "a", {}, {})
    with pytest.raises(UserError, match="rows of another trial"):
        run_module.write_trial(tmp_path, "a", {"trials": [{}], "steps": [{"trial_id": "b"}]}, {})
    with pytest.raises(UserError, match="must not be named as a column"):
        put(tmp_path, "a", config={"status": "x"})
    assert run_module.finished_ids(tmp_path) == {}


def test_settings_that_differ_in_name_and_type_unite(tmp_path: Path) -> None:
    put(tmp_path, "a", config={"npo.beta": 1})
    put(tmp_path, "b", config={"npo.beta": 0.5, "rmu.steering": 2.0})
    put(tmp_path, "c", config={"rmu.steering": "auto"})
    for _ in ("folders", "compacted"):
        rows = run_module.open_run(tmp_path).trials.sort("trial_id").collect()
        assert rows["npo.beta"].to_list() == [1.0, 0.5, None]
        assert rows["rmu.steering"].to_list() == [None, "2.0", "auto"]
        run_module.compact(tmp_path)
    put(tmp_path, "d", config={"simnpo.gamma": 0.1})
    assert run_module.open_run(tmp_path).trials.sort("trial_id").collect()[
        "simnpo.gamma"
    ].to_list() == [
        None,
        None,
        None,
        0.1,
    ]


def test_a_trial_that_runs_again_replaces_its_folder(tmp_path: Path) -> None:
    put(tmp_path, "a", status="failed", n_kept=1)
    put(tmp_path, "a", status="complete", n_kept=2)
    assert run_module.finished_ids(tmp_path) == {"a": "complete"} and kept(tmp_path) == {"a": 2}
    assert not list((tmp_path / ".tmp").iterdir())


def test_a_writer_that_dies_between_the_two_renames_leaves_the_trial_unfinished_or_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a", status="failed", n_kept=1)
    real = os.replace

    def fails_into_place(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "trials" / "a" and "-old" not in str(source):
            raise OSError(errno.EIO, "input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", fails_into_place)
    monkeypatch.setattr(retry_module, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(
        UserError,
        match=(
            r"storage keeps failing \(\[Errno 5\] input/output error\): could not write trial"
            r" a of "
        ),
    ):
        put(tmp_path, "a", n_kept=2)
    assert kept(tmp_path) == {"a": 1}


def test_storage_that_fails_for_a_while_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = os.replace, [errno.EIO, errno.ESTALE, errno.ETIMEDOUT]

    def fails_at_first(source: Path, target: Path) -> None:
        if failures:
            raise OSError(failures.pop(), "gone for a moment")
        real(source, target)

    monkeypatch.setattr(os, "replace", fails_at_first)
    monkeypatch.setattr(retry_module, "FIRST_PAUSE_SECONDS", 0.0)
    put(tmp_path, "a", n_kept=2)
    assert kept(tmp_path) == {"a": 2} and not failures and not list((tmp_path / ".tmp").iterdir())


def test_a_half_written_folder_is_not_finished_and_is_cleaned_away(tmp_path: Path) -> None:
    put(tmp_path, "a")
    half = tmp_path / ".tmp" / "b-123"
    half.mkdir()
    shutil.copy(tmp_path / "trials" / "a" / "trials.parquet", half)
    (tmp_path / ".plan.parquet.1234.tmp").write_bytes(b"PAR1")
    assert run_module.finished_ids(tmp_path) == {"a": "complete"}
    run_module.remove_scratch(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["trials"]


def test_a_run_without_trials_opens_empty(tmp_path: Path) -> None:
    run_module.write_run_table(tmp_path, "plan", [{"trial_id": "a", "role": "grid"}])
    run = run_module.open_run(tmp_path)
    assert run.plan.collect().height == 1 and run.experiment == {}
    for table in PER_TRIAL:
        assert getattr(run, table).collect().columns == list(column_names(table))
    assert (
        run_module.finished_ids(tmp_path) == {} and run_module.finished_ids(tmp_path / "none") == {}
    )


def test_no_run_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a run is a folder with"):
        run_module.open_run(tmp_path / "nothing")


@pytest.mark.parametrize(
    "name", ["trials/a/trials.parquet", "tables/steps.parquet", "plan.parquet"]
)
def test_a_newer_schema_is_refused_with_both_versions_and_nothing_is_lost(
    tmp_path: Path, name: str
) -> None:
    put(tmp_path, "b")
    run_module.compact(tmp_path)
    put(tmp_path, "a")
    path = tmp_path / name
    parquet_module.frame_of("plan", []).write_parquet(
        path, metadata={parquet_module.VERSION_KEY: str(VERSION + 1)}
    )
    as_written(tmp_path, name)
    before = path.read_bytes()
    with pytest.raises(
        UserError,
        match=(
            rf"{path.name} was written under schema version {VERSION + 1}, this rayunlearn reads up"
            rf" to {VERSION}"
        ),
    ):
        run_module.open_run(tmp_path)
    if name != "plan.parquet":
        with pytest.raises(UserError, match="schema version"):
            run_module.compact(tmp_path)
    assert path.read_bytes() == before and (tmp_path / "trials" / "a").is_dir()


@pytest.mark.parametrize("version", ["", "two", "3.0", "-1", "\u00b2", "9" * 5000])
@pytest.mark.parametrize(
    "name", ["trials/a/trials.parquet", "tables/steps.parquet", "plan.parquet"]
)
def test_a_schema_version_that_is_no_number_is_one_line(
    tmp_path: Path, name: str, version: str
) -> None:
    """Its writer has written the manifest too: no digest says it."""
    put(tmp_path, "b")
    run_module.compact(tmp_path)
    put(tmp_path, "a")
    parquet_module.frame_of("plan", []).write_parquet(
        tmp_path / name, metadata={parquet_module.VERSION_KEY: version}
    )
    as_written(tmp_path, name)
    with pytest.raises(UserError, match="the schema version of .* must be a number") as told:
        run_module.open_run(tmp_path)
    assert "\n" not in str(told.value) and Path(name).name in str(told.value)


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    torn = put(tmp_path, "a") / "trials.parquet"
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(UserError, match=r"a/trials.parquet is damaged: it has 100 bytes"):
        run_module.finished_ids(tmp_path)


def test_a_full_disk_names_what_was_written_and_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a", n_kept=1)
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        # two of the five files are already there
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"the disk is full: could not write trial a of "):
        put(tmp_path, "a", n_kept=2)
    assert kept(tmp_path) == {"a": 1} and not list((tmp_path / ".tmp").iterdir())


FILLS_A_DISK = """
import sys
from pathlib import Path
from rayunlearn.errors import UserError
from rayunlearn.storage.run import finished_ids, open_run, write_trial
run = Path(sys.argv[1]) / "run"
rows = [{"step": i, "loss": (i * 7919% 10007) / 10007} for i in range(3000)]
n = 0
try:
    for n in range(100):
        write_trial(run, str(n), {"trials": [{"status": "complete"}], "steps": rows}, {})
except UserError as error:
    assert "the disk is full: could not write trial" in str(error), error
    assert sorted(finished_ids(run)) == sorted(str(i) for i in range(n)), (n, finished_ids(run))
    assert open_run(run).steps.collect().height == 3000 * n
    assert n > 0 and not list((run / ".tmp").iterdir())
    print("full after", n)
"""


def test_a_disk_that_is_really_full_keeps_every_finished_trial(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here: cannot mount a small file system")
    mount = f'mount -t tmpfs -o size=256k none "{tmp_path}"'
    if subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine does not allow a small file system to be mounted")
    command = f'{mount} && "{sys.executable}" -c "$0" "{tmp_path}"'
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command, FILLS_A_DISK],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0 and "full after" in done.stdout, done.stderr


def test_compaction_keeps_every_row_once_and_removes_the_folders(tmp_path: Path) -> None:
    for number in range(5):
        put(tmp_path, f"t{number}", n_kept=number)
    run_module.compact(tmp_path)
    run_module.compact(tmp_path)
    assert not list((tmp_path / "trials").iterdir())
    put(tmp_path, "t1", n_kept=10)
    assert kept(tmp_path) == {"t0": 0, "t1": 10, "t2": 2, "t3": 3, "t4": 4}
    assert run_module.open_run(tmp_path).steps.collect().height == 10
    run_module.compact(tmp_path)
    assert kept(tmp_path) == {"t0": 0, "t1": 10, "t2": 2, "t3": 3, "t4": 4}
    assert run_module.open_run(tmp_path).steps.collect().height == 10


# of a compaction of two folders: each table and the manifest before it, the manifest, the folders
RENAMES = 2 * len(PER_TRIAL) + 1 + 2


class Killed(BaseException):
    """Stands for the process ending at this very instruction."""


def test_compaction_may_be_killed_at_any_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two compacted trials, one of them run again, one new: whatever rename is the last, each trial
    is there once, with its newest row.
    """
    real, expected = os.replace, {"old": 1, "again": 20, "new": 3}
    for survivors in range(RENAMES + 1):
        run = tmp_path / str(survivors)
        put(run, "old", n_kept=1)
        put(run, "again", n_kept=2)
        run_module.compact(run)
        put(run, "again", n_kept=20)
        put(run, "new", n_kept=3)
        left = [survivors]

        def dies(source: Path, target: Path, left: list[int] = left) -> None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            real(source, target)

        monkeypatch.setattr(os, "replace", dies)
        if survivors < RENAMES:
            with pytest.raises(Killed):
                run_module.compact(run)
        else:
            run_module.compact(run)
        monkeypatch.setattr(os, "replace", real)
        assert kept(run) == expected
        assert run_module.open_run(run).steps.collect().height == 6
        run_module.remove_scratch(run)
        run_module.compact(run)
        assert kept(run) == expected and not list((run / "trials").iterdir())


def test_what_an_ended_trial_would_have_gone_on_from_is_removed_and_nothing_else(
    tmp_path: Path,
) -> None:
    """Left by a process that was killed after a trial's last row."""
    (tmp_path / "checkpoints").mkdir()
    for trial_id in ("ended", "waits"):
        (tmp_path / "checkpoints" / f"{trial_id}.safetensors").touch()
    run_module.remove_checkpoints(tmp_path, {"ended", "has none"})
    assert [file.stem for file in (tmp_path / "checkpoints").iterdir()] == ["waits"]
    run_module.remove_checkpoints(tmp_path / "without", {"ended"})


def test_reading_a_run_needs_neither_torch_nor_ray() -> None:
    code = (
        "import rayunlearn, sys; before = 'polars' in sys.modules; rayunlearn.open; import"
        " rayunlearn.reporting.html, rayunlearn.reporting.console; "
    )
    code += (
        "assert not before and not {'torch', 'ray', 'optuna', 'transformers'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_five_hundred_trial_folders_open_as_one_table(tmp_path: Path) -> None:
    for number in range(501):
        put(tmp_path, f"t{number}")
    assert run_module.open_run(tmp_path).trials.select(pl.len()).collect().item() == 501


def test_small_tables_are_read_once_and_large_ones_stay_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic.write_run(tmp_path)
    opened = run_module.open_run(tmp_path)
    examples, evals = opened.examples.collect(), opened.evals.collect()
    sizes = {
        name: sum(file.stat().st_size for file in tmp_path.glob(f"trials/*/{name}.parquet"))
        for name in ("trials", "examples")
    }
    assert sizes["examples"] < sizes["trials"]
    monkeypatch.setattr(run_module, "IN_MEMORY_BYTES", sizes["trials"] - 1)
    held = opened.in_memory()
    assert held.path == tmp_path and held.experiment == opened.experiment
    shutil.rmtree(tmp_path / "trials")
    assert held.examples.collect().equals(examples) and held.evals.collect().equals(evals)
    with pytest.raises((FileNotFoundError, pl.exceptions.ComputeError)):
        held.trials.collect()


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o775), (0o027, 0o750), (0o077, 0o700)])
def test_a_trial_s_folder_has_the_permissions_that_the_umask_says(
    tmp_path: Path, umask: int, mode: int
) -> None:
    """A run that a group shares: mkdtemp alone would shut the others out."""
    before = os.umask(umask)
    try:
        run = tmp_path / "run"
        (run / "trials").mkdir(parents=True)
        run_module._put_folder(run_module._scratch(run, "a"), run / "trials" / "a", run)
    finally:
        os.umask(before)
    assert (run / "trials" / "a").stat().st_mode & 0o777 == mode


def test_the_benchmark_of_many_rows_writes_the_columns_of_the_table() -> None:
    """benchmarks/cluster.py makes its rows by hand: a column that the table got since is null."""
    frame = block("a", 0)
    assert frame.columns == list(column_names("examples"))
    assert frame["group"].null_count() == frame.height > 0


def test_a_run_is_shown_in_a_line_of_a_notebook() -> None:
    run = run_module.open_run(Path(__file__).parents[2] / "docs" / "notebooks" / "runs" / "coreset")
    words = repr(run)
    assert words.startswith("<Run ") and "32 of 32 trials" in words
    assert "\n" not in words and len(words) < 300
