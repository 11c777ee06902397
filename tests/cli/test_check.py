"""`rayunlearn check`: what is wrong with a run and its cache in words, and what --repair does."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import polars as pl
import pytest

from rayunlearn.cli.check import same_report
from rayunlearn.cli.main import main
from rayunlearn.storage import artifact_cache
from rayunlearn.storage.artifact_cache import JSON, MANIFEST, cached_file
from rayunlearn.storage.parquet import parquet_bytes
from rayunlearn.storage.run import compact, open_run
from rayunlearn.storage.run_manifest import write_run_file
from tests import synthetic

KEY = {"what": "a"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`runs/synthetic/1`, compacted, with a report, and a cache of one entry."""
    output = tmp_path_factory.mktemp("runs")
    run = synthetic.write_run(output / "synthetic" / "1")
    compact(run)
    cached_file(output / "cache" / "evaluations", KEY, lambda: [1, 2], JSON)
    assert main(["report", str(run), "--format", "md"]) == 0
    return output


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(written, tmp_path / "runs") / "synthetic" / "1"


def check(run: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["check", str(run), *options])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return status, said.out + said.err


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def test_a_whole_run_is_said_to_be_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, words = check(run, capsys)
    assert status == 0 and words.endswith("1 cache entries, all as written\n")


def test_no_run_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path / "none", capsys)[0] == 2


def test_evals_come_back_from_examples_to_the_last_bit(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gone, so that the report ends with a line that says which file; then repaired, and the rows
    are those that were written.
    """
    before = open_run(run).evals.collect()
    (run / "tables" / "evals.parquet").unlink()
    assert main(["report", str(run)]) == 2
    said = capsys.readouterr().err
    assert "tables/evals.parquet is missing" in said and "from examples" in said
    status, words = check(run, capsys)
    assert status == 1 and f"({before.height} rows were written)" in words
    status, words = check(run, capsys, "--repair")
    assert status == 0 and "repaired: tables/evals.parquet was rebuilt" in words, words
    keys = ["trial_id", "stage", "attack", "split", "metric"]
    after = open_run(run).evals.collect()
    columns = [*keys, "value", "n", "stderr"]
    assert after.select(columns).sort(keys).equals(before.select(columns).sort(keys))


@pytest.mark.parametrize("name", ["tables/examples.parquet", "tables/trials.parquet"])
def test_what_cannot_be_repaired_is_said_and_left(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip_bit(run / name)
    content = (run / name).read_bytes()
    for options in ((), ("--repair",)):
        status, words = check(run, capsys, *options)
        assert status == 1 and f"{name} is damaged" in words and "from a copy" in words
    assert (run / name).read_bytes() == content


def test_half_of_the_rows_gone_is_an_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "tables" / "examples.parquet"
    frame = pl.read_parquet(file)
    file.write_bytes(parquet_bytes(frame.head(frame.height // 2)))
    for command in ("report", "frontier", "check"):
        assert main([command, str(run)]) != 0
        said = capsys.readouterr()
        assert "examples.parquet is damaged" in said.err + said.out
        assert f"({frame.height} rows were written)" in said.err + said.out


@pytest.mark.parametrize("table", ["examples", "evals"])
def test_a_column_of_the_wrong_type_is_one_line(
    table: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where its writer has written the manifest too."""
    name = f"tables/{table}.parquet"
    frame = pl.read_parquet(run / name).with_columns(pl.col("value").cast(pl.String))
    write_run_file(run, name, parquet_bytes(frame), frame.height)
    assert main(["report", str(run)]) == 2
    said = capsys.readouterr().err
    assert "column value of" in said and "must be there, of type f64" in said
    assert said.count("\n") == 1


def test_evals_that_are_not_the_means_of_examples_are_found(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No digest says it: whoever wrote the file wrote the manifest."""
    name = "tables/evals.parquet"
    frame = pl.read_parquet(run / name)
    other = frame.with_columns(
        pl.col("value") + pl.int_range(pl.len()).eq(3).cast(pl.Float64) * 1e-9
    )
    write_run_file(run, name, parquet_bytes(other), other.height)
    status, words = check(run, capsys)
    assert status == 1 and "1 rows of evals that are not the mean of their examples" in words


def test_a_damaged_trial_is_removed_and_runs_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = synthetic.write_run(tmp_path / "runs" / "synthetic" / "1")
    folder = sorted((run / "trials").iterdir())[0]
    flip_bit(folder / "steps.parquet")
    status, words = check(run, capsys)
    assert status == 1 and f"{folder.name}/steps.parquet is damaged" in words
    n_trials = len(list((run / "trials").iterdir()))
    status, words = check(run, capsys, "--repair")
    assert status == 0 and f"repaired: trials/{folder.name} was removed" in words
    assert open_run(run).trials.select(pl.len()).collect().item() == n_trials - 1


def test_a_trial_under_another_name_is_no_trial(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path / "run")
    folder = sorted((run / "trials").iterdir())[0]
    shutil.copytree(folder, folder.with_name("copy"))
    with pytest.raises(ValueError, match=f"is of 'trial {folder.name}' and not of 'trial copy'"):
        open_run(run)


def test_a_run_without_manifests_is_refused_and_can_be_adopted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = open_run(run).examples.collect()
    (run / MANIFEST).unlink()
    assert main(["report", str(run)]) == 2
    assert "manifest.json is missing" in capsys.readouterr().err
    status, words = check(run, capsys, "--repair")
    assert status == 0 and "nothing says any more that they are what was written" in words
    assert open_run(run).examples.collect().equals(before)


def test_a_report_that_is_not_of_the_tables_is_written_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip_bit(run / "report.md")
    status, words = check(run, capsys)
    assert status == 1 and "report.md is not what the tables give now" in words
    assert check(run, capsys, "--repair")[0] == 0


def test_a_damaged_cache_is_said_and_removed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = run.parents[1] / "cache"
    file = artifact_cache.entries(cache)[0]
    flip_bit(file)
    status, words = check(run, capsys)
    assert status == 1 and f"{file.name} is damaged" in words
    assert check(run, capsys, "--repair")[0] == 0 and not file.exists()
    assert cached_file(file.parent, KEY, lambda: [1, 2], JSON) == [1, 2]


@pytest.mark.parametrize(
    "part", [{"metrics": [1, 2]}, {"objective": {"forgetting": 3, "other": 1}}, {"notes": "x"}]
)
def test_an_experiment_that_does_not_fit_is_one_line(
    part: dict[str, object], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rayunlearn.storage.run import write_experiment

    write_experiment(run, synthetic.EXPERIMENT | part)
    assert main(["report", str(run)]) == 2
    said = capsys.readouterr().err
    assert "experiment.json does not fit" in said and said.count("\n") == 1


def test_a_panic_of_a_reader_is_one_line(
    monkeypatch: pytest.MonkeyPatch, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def panics(_: Path) -> None:
        raise pl.exceptions.PanicException("index out of bounds\n at column.rs")

    monkeypatch.setattr("rayunlearn.reporting.console.open_run", panics)
    assert main(["show", str(run), "a"]) == 2
    said = capsys.readouterr().err
    assert said == ("rayunlearn: a table could not be read (PanicException: index out of bounds)\n")


def test_a_read_only_run_is_reported_elsewhere_and_says_so_at_once(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under a bind mount that is read-only, where this machine allows one."""
    command = (
        f'mount --bind "{run}" "{run}" && mount -o remount,ro,bind "{run}" &&'
        f' "$0" -m rayunlearn report "{run}" --format md;'
        f' echo "ended $?"; "$0" -m rayunlearn report "{run}" --format md --output "{tmp_path}/o"'
        f' && touch "{run}/x" || echo read-only'
    )
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here: cannot mount a folder read-only")
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow a mount")
    started = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    import sys

    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command, sys.executable],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert "ended 2" in done.stdout and "read-only" in done.stdout, done.stderr
    assert "must be writable (--output names another place" in done.stderr
    assert (tmp_path / "o" / "report.md").read_bytes() == (run / "report.md").read_bytes()
    assert time.monotonic() - started < 55


def test_the_last_digit_of_a_mean_makes_no_report_stale() -> None:
    written = b'{"y": [0.30000000000000004, 1.5e-07], "title": "a 0.30"}'
    assert same_report(written, written.replace(b"0.30000000000000004", b"0.3000000000000001"))
    assert not same_report(written, written.replace(b"0.30000000000000004", b"0.3000001"))
    assert not same_report(written, written.replace(b"a 0.30", b"a 0.31"))
