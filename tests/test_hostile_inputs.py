"""What comes from outside may be made to harm: models, corpora, run folders, settings. Nothing of
it runs, and each is refused in words.
"""

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rayunlearn import schema
from rayunlearn.cli.main import main
from rayunlearn.config import Data, Model, Trial, flatten, parse_assignments, with_values
from rayunlearn.data.readers import read_file
from rayunlearn.data.rows import to_documents
from rayunlearn.errors import UserError, without_secrets
from rayunlearn.reporting.html import write_report
from rayunlearn.storage import parquet_guard
from rayunlearn.storage import run as run_module
from rayunlearn.storage.parquet_guard import refuse_decompression_bomb
from rayunlearn.storage.run import open_run
from tests import synthetic
from tests.manifests import as_written

PACKAGE = Path(__file__).parents[1] / "rayunlearn"
PICKLERS = ("pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib")
OPENERS = ("allow_pickle", "trust_remote_code")
SOMETIMES = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Explosive:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.file,))


# ---- code


def test_nothing_in_the_package_unpickles_or_evaluates() -> None:
    """`exec` of an experiment, which is a Python file that its user names, is importlib's and
    stands in experiment.py alone; that of a plugin, too, in plugins/load.py.
    """
    # model.eval and re.compile are other things
    names_of_their_own = {"eval", "exec", "compile", "__import__"}
    readers = {"loads", "load", "Unpickler", "read_pickle", "unsafe_load", "full_load"}
    # numpy unpickles only where it is told to
    harmless = {("json", "loads"), ("json", "load"), ("np", "load"), ("", "load")}
    found = []
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        names = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        found += [f"{file.name}: import {name}" for name in names if name.split(".")[0] in PICKLERS]
        # a plugin is a Python file that its user names, as an experiment is; workers get its source
        if file == PACKAGE / "plugins" / "load.py":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                owner = (
                    node.func.value.id
                    if isinstance(node.func, ast.Attribute)
                    and isinstance(node.func.value, ast.Name)
                    else ""
                )
                name = (
                    node.func.attr
                    if isinstance(node.func, ast.Attribute)
                    else getattr(node.func, "id", "")
                )
                bare = isinstance(node.func, ast.Name) and name in names_of_their_own
                if bare or (name in readers and (owner, name) not in harmless):
                    found.append(f"{file.name}:{node.lineno} {owner}.{name}")
                found += [
                    f"{file.name}:{node.lineno} {k.arg}"
                    for k in node.keywords
                    if k.arg in OPENERS and _is_true(k.value)
                ]
    assert not found, found


def _is_true(value: ast.expr) -> bool:
    return not (isinstance(value, ast.Constant) and value.value is False)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pkl", "model.safetensors"]
)
def test_a_pickle_in_the_place_of_weights_is_refused_and_not_read(
    name: str, tmp_path: Path
) -> None:
    from rayunlearn.models.load import load_model

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    )
    (folder / name).write_bytes(pickle.dumps(Explosive(tmp_path / "executed")))
    with pytest.raises(UserError, match=r"safetensors"):
        load_model(str(folder))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "model.bin"])
def test_an_index_of_weights_that_points_elsewhere_is_refused(shard: str, tmp_path: Path) -> None:
    from rayunlearn.models.load import load_model

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    (folder / "model.bin").write_bytes(pickle.dumps(Explosive(tmp_path / "executed")))
    with pytest.raises(
        UserError, match=r"name files of its own directory|not a whole safetensors file"
    ):
        load_model(str(folder))
    assert not (tmp_path / "executed").exists()


def test_a_cache_file_or_checkpoint_that_is_a_pickle_is_as_none(tmp_path: Path) -> None:
    from rayunlearn.models.tensor_cache import read_genuine

    (tmp_path / "a.safetensors").write_bytes(pickle.dumps(Explosive(tmp_path / "executed")))
    assert read_genuine(tmp_path / "a.safetensors", "key") is None
    assert not (tmp_path / "executed").exists()


# ---- size


def bomb(path: Path, rows: int) -> Path:
    """One column that says the same `rows` times: kilobytes on disk."""
    values = pyarrow.array([0], pyarrow.int8()).take(
        pyarrow.array([0] * 1_000_000, pyarrow.int32())
    )
    table = pyarrow.table({"loss": values})
    with pyarrow.parquet.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(rows // 1_000_000):
            writer.write_table(table)
    return path


def test_a_parquet_bomb_is_refused_by_its_footer(tmp_path: Path) -> None:
    """20 million rows in some kilobytes: refused as a table of a run and as a corpus; 5 million are
    a table like any other.
    """
    file = bomb(tmp_path / "bomb.parquet", 20_000_000)
    assert file.stat().st_size < 200_000
    with pytest.raises(UserError, match=r"must not claim to hold so much .* values, got 20000000"):
        refuse_decompression_bomb(file)
    with pytest.raises(UserError, match="must not claim"):
        next(iter(read_file(file)))
    run = synthetic.write_run(tmp_path / "run")
    shutil.copy(file, run / "scores.parquet")
    as_written(run, "scores.parquet")
    with pytest.raises(UserError, match="must not claim"):
        open_run(run)
    refuse_decompression_bomb(bomb(tmp_path / "fine.parquet", 5_000_000))


def test_a_text_that_unpacks_to_gigabytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 MiB of one letter: zstd packs it a thousand times smaller. A hundredth of the real bound,
    so that the test costs as little.
    """
    file = tmp_path / "text.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"text": ["a" * 30 * 2**20]}), file, compression="zstd"
    )
    refuse_decompression_bomb(file)
    monkeypatch.setattr(parquet_guard, "BYTES_ALWAYS", parquet_guard.BYTES_ALWAYS // 100)
    with pytest.raises(UserError, match=r"bytes, got 3\d{7}"):
        refuse_decompression_bomb(file)


# ---- names that are paths


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a/b", "", ".."])
def test_a_trial_id_that_is_a_path_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a trial id must be letters"):
        run_module.write_trial(tmp_path / "run", name, {"trials": [{"status": "complete"}]}, {})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["../outside", "..", "a/../../b"])
def test_a_version_that_is_a_path_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "experiments/hello.py", "--version", name]) == 2
    assert "a version must be letters" in capsys.readouterr().err


def test_a_doc_id_in_a_run_is_a_name_and_never_a_path(tmp_path: Path) -> None:
    """Rows whose ids are paths and formulas are read, reported and compacted; nothing appears
    outside the run.
    """
    run = synthetic.write_run(tmp_path / "run")
    rows = [
        {
            "stage": "unlearned",
            "split": "forget",
            "doc_id": name,
            "metric": "probability",
            "value": 0.5,
        }
        for name in ("../../x", "=1+1", "<b>")
    ]
    run_module.write_trial(
        run, "hostile", {"trials": [{"status": "complete"}], "examples": rows}, flatten(Trial())
    )
    run_module.compact(run)
    assert set(
        open_run(run).examples.filter(pl.col("trial_id") == "hostile").collect()["doc_id"]
    ) == {"../../x", "=1+1", "<b>"}
    write_report(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


# ---- text that is code somewhere else

SCRIPTS = (
    '<script>alert("x")</script>',
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "{{ 7 * 7 }}",
    "</script><script>alert(1)</script>",
)


def test_text_from_outside_is_text_in_the_report(tmp_path: Path) -> None:
    """In a setting, an error, a note, the question, a document that was rejected: shown as it is,
    never as an element.
    """
    run = synthetic.write_run(tmp_path / "run")
    for at, text in enumerate(SCRIPTS):
        row = {
            "status": "failed",
            "error": text,
            "error_type": text,
            "host": text,
            "hardware": text,
            "packages": "{}",
        }
        run_module.write_trial(
            run, f"hostile{at}", {"trials": [row]}, flatten(Trial()) | {"select.judge_model": text}
        )
    plan = open_run(run).plan.collect().to_dicts()
    plan += [
        {
            "trial_id": f"hostile{at}",
            "role": "grid",
            "group": json.dumps({"a": text}),
            "tuning": "none",
        }
        for at, text in enumerate(SCRIPTS)
    ]
    run_module.write_run_table(run, "plan", plan)
    run_module.write_run_table(
        run,
        "quarantine",
        [{"source": text, "row": 1, "reason": text, "excerpt": text} for text in SCRIPTS],
    )
    content = json.loads((run / "experiment.json").read_text()) | {
        "question": SCRIPTS[0],
        "notes": list(SCRIPTS),
        "name": SCRIPTS[1],
    }
    run_module.write_experiment(run, content)
    page = write_report(run).read_text()
    # the script that sorts tables
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    # it is shown
    assert "alert(1)" in body
    assert (
        "<img src=x" not in page
        and '<script>alert("x")' not in page
        and "<script>alert(1)" not in page
    )
    assert ">49<" not in page and 'href="javascript:' not in page


# ---- secrets


def test_secrets_are_taken_out_of_what_is_written_and_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rayunlearn.trial.provenance import failure_row

    monkeypatch.setenv("HF_TOKEN", "abcdefgh-very-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    said = (
        "401 for https://me:hunter2@host/x with abcdefgh-very-secret, wJalrXUtnFEMI/K7MDENG and"
        " hf_AbCdEfGhIjKlMnOp"
    )
    row = failure_row(RuntimeError(said))
    assert (
        row["error"]
        == "401 for https://<login>@host/x with <HF_TOKEN>, <AWS_SECRET_ACCESS_KEY> and <token>"
    )
    assert main(["run", "/nowhere/abcdefgh-very-secret.py"]) == 2
    assert "very-secret" not in capsys.readouterr().err
    assert (
        without_secrets("a plain message about keys and tokens")
        == "a plain message about keys and tokens"
    )


def test_a_login_in_a_setting_is_refused_since_settings_are_rows() -> None:
    for make in (
        lambda: Data(name="files", path="s3://key:secret@bucket/x"),
        lambda: Model(name="https://me:pw@hub/x", teach=False),
    ):
        with pytest.raises(UserError, match="must hold no login") as caught:
            make()
        assert "secret" not in str(caught.value) and "pw" not in str(caught.value)


def test_the_environment_of_a_driver_is_in_no_file_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "0123456789-secret-value")
    run = synthetic.write_run_anew(tmp_path / "run")
    write_report(run)
    assert not any(
        b"0123456789-secret-value" in path.read_bytes() for path in run.rglob("*") if path.is_file()
    )


def test_servers_listen_on_loopback_unless_a_pod_network_needs_more_and_a_token_is_on() -> None:
    root = PACKAGE.parent
    assert (
        "--dashboard-host=127.0.0.1" in (root / "cluster.yaml").read_text()
        and "RAY_AUTH_MODE=token" in (root / "cluster.yaml").read_text()
    )
    job = (root / "deploy/kuberay/rayjob.yaml").read_text()
    assert "mode: token" in job
    session = (PACKAGE / "cluster/session.py").read_text()
    assert '_node_ip_address="127.0.0.1"' in session and "include_dashboard=False" in session


# ---- any bytes, any text: a UserError or a result, nothing else

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(sorted(flatten(Trial())))


@given(
    st.lists(
        st.text(max_size=30)
        | st.tuples(NAMES, st.text(max_size=12) | JSON.map(repr)).map("=".join),
        max_size=4,
    )
)
@example(["select.ratio=1e999"])
@example(["train.layers=" + "9" * 5000])
@example(["train.length=NaN"])
@SOMETIMES
def test_any_assignments_make_a_trial_or_a_user_error(words: list[str]) -> None:
    try:
        trial = with_values(Trial(), parse_assignments(words))
    except UserError:
        return
    assert with_values(Trial(), flatten(trial)) == trial or any(
        value != value for value in flatten(trial).values()
    )


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@given(st.binary(max_size=200))
@example(b"[" * 100_000)
@example(b'{"answer": ' + b"1" * 5000 + b"}")
@example(b'{"answer": "a", "facts": "[' + b"[" * 3000 + b'"}')
@example(b"\xff\xfe\x00\x00")
@example(b"PAR1" + b"\xff" * 16 + b"PAR1")
@example(b'a,b\n"')
@SOMETIMES
def test_any_bytes_are_rows_that_are_kept_or_set_aside_or_a_user_error(
    tmp_path: Path, kind: str, content: bytes
) -> None:
    file = tmp_path / f"data.{kind}"
    file.write_bytes(content)
    try:
        loaded = to_documents(
            read_file(file), {"answer": "answer", "prompt": "prompt", "facts": "facts"}
        )
    except UserError:
        return
    for item in loaded.rejected:
        assert item.reason and item.excerpt.encode() is not None


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One trial in a folder, two compacted."""
    run = tmp_path_factory.mktemp("small") / "run"
    for name in ("a", "b"):
        run_module.write_trial(
            run,
            name,
            {"trials": [{"status": "complete"}], "evals": [{"metric": "m", "value": 0.5}]},
            flatten(Trial()),
        )
    run_module.compact(run)
    run_module.write_trial(run, "c", {"trials": [{"status": "complete"}]}, flatten(Trial()))
    run_module.write_experiment(run, {"name": "small", "question": "?"})
    return run


@given(st.data())
@SOMETIMES
def test_a_run_with_any_bytes_changed_is_read_or_refused(
    small_run: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """A few bytes of one file overwritten, or its end cut off: rows, or an error that names what is
    wrong, and the process lives.
    """
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(small_run, run)
    file = data.draw(st.sampled_from(sorted(path for path in run.rglob("*") if path.is_file())))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(
        bytes(
            content[: data.draw(st.integers(0, len(content)))]
            if data.draw(st.booleans())
            else content
        )
    )
    try:
        opened = open_run(run)
        for table in (*schema.PER_TRIAL, *run_module.RUN_TABLES):
            getattr(opened, table).collect()
    # polars panics at one damaged page in a thousand
    except (UserError, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        return


@given(JSON | st.dictionaries(st.text(max_size=5), JSON, max_size=3))
@SOMETIMES
def test_any_experiment_json_is_an_object_or_a_user_error(tmp_path: Path, content: Any) -> None:
    (tmp_path / "experiment.json").write_text(json.dumps(content))
    try:
        assert json.dumps(run_module.read_experiment(tmp_path)) == json.dumps(content)
    except UserError:
        assert not isinstance(content, dict)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["settings", "documents", "run"])
def test_a_minute_of_coverage_guided_fuzzing_finds_nothing(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.fuzz_readers", target, "60", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        errors="replace",
    )
    crashes = [(file.name, file.read_bytes()[:500]) for file in tmp_path.iterdir()]
    assert done.returncode == 0 and not crashes, (crashes, done.stderr[-3000:])
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs and int(runs[1]) > 100


def test_a_table_whose_column_names_are_no_utf8_is_refused(small_run: Path, tmp_path: Path) -> None:
    """pyarrow answers such a footer with Python's own UnicodeDecodeError (a case that the fuzzing
    above found).
    """
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    file = run / "trials" / "c" / "trials.parquet"
    file.write_bytes(file.read_bytes().replace(b"trial_id", b"\x80rial_id"))
    as_written(run, "trials/c/trials.parquet")
    with pytest.raises(UserError, match=r"trials\.parquet could not be read as parquet"):
        open_run(run)


def test_a_run_folder_that_is_a_link_to_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    os.symlink(tmp_path / "trials", tmp_path / "trials" / "again")
    assert open_run(tmp_path).trials.collect().is_empty()
