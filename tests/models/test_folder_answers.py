"""What a model's folder was found to be is kept as long as nothing that decides it changes."""

import json
import shutil
from pathlib import Path

import pytest

from rayunlearn.errors import UserError
from rayunlearn.models import folder_answers
from rayunlearn.models.folder import check_model, inspect_model_folder
from rayunlearn.models.folder_answers import answer_of_folder, passes_once
from rayunlearn.models.load import save_model
from rayunlearn.models.scratch import build_model, build_tokenizer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder that counts as written long ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(folder_answers, "is_young", lambda _file: False)
    tokenizer = build_tokenizer(["What is it? It is red."])
    return save_model(build_model("tiny", len(tokenizer), seed=0), tokenizer, tmp_path / "model")


class Counted:
    """Answers with how often it was asked."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self) -> int:
        self.n += 1
        return self.n


def test_an_answer_is_kept_until_a_file_the_question_the_code_or_a_library_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Counted()
    assert [answer_of_folder(folder, ["n"], asked) for _ in range(3)] == [1, 1, 1]
    assert answer_of_folder(folder, ["n", 2], asked) == 2
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert [answer_of_folder(folder, ["n"], asked) for _ in range(2)] == [3, 3]
    with monkeypatch.context() as patched:
        patched.setattr(folder_answers, "package_digest", lambda: "other code")
        assert answer_of_folder(folder, ["n"], asked) == 4
    with monkeypatch.context() as patched:
        patched.setattr(folder_answers, "version_of", lambda name: f"another {name}")
        assert answer_of_folder(folder, ["n"], asked) == 5
    moved = shutil.copytree(folder, folder.with_name("copy"))
    assert answer_of_folder(moved, ["n"], asked) == 6


def test_files_written_just_now_are_looked_at_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Counted()
    monkeypatch.undo()
    assert [answer_of_folder(folder, ["n"], asked) for _ in range(2)] == [1, 2]


def test_a_half_written_or_unwritable_cache_costs_an_answer_and_nothing_else(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Counted()
    assert answer_of_folder(folder, ["n"], asked) == 1
    (kept,) = (tmp_path / "caches").rglob("*.json")
    kept.write_text("")
    assert answer_of_folder(folder, ["n"], asked) == 2
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [answer_of_folder(folder, ["n"], asked) for _ in range(2)] == [3, 4]


def test_a_refusal_is_not_kept(folder: Path) -> None:
    def refuse() -> None:
        raise UserError("no")

    for _ in range(2):
        with pytest.raises(UserError, match="no"):
            passes_once(folder, ["check"], refuse)
    passed = Counted()
    passes_once(folder, ["check"], passed)
    passes_once(folder, ["check"], passed)
    assert passed.n == 1


def test_a_folder_is_described_alike_from_its_files_and_from_what_was_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a file that goes missing or is cut short afterwards is seen."""
    from rayunlearn.models import folder as folder_module

    first = inspect_model_folder(folder)
    folder_module._described.cache_clear()

    def never(_directory: Path) -> None:
        raise AssertionError("the folder was read again")

    with monkeypatch.context() as patched:
        patched.setattr(folder_module, "_inspected", never)
        assert inspect_model_folder(folder) == first
    check_model(str(folder), setting="model.name")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        check_model(str(folder), setting="model.name")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"architectures": ["Nothing"]}))
    with pytest.raises(UserError, match="must be a causal language model"):
        check_model(str(folder), setting="model.name")
