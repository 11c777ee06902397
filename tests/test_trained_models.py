"""The models that tests share: trained once, whoever wants them,
and never read damaged or stale.
"""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rayunlearn.config import Trial, with_values
from rayunlearn.data.documents import Corpus, Document
from tests import trained_models
from tests.trained_models import CHECKSUMS, UNUSED_SECONDS, model_key, trained_model

QUICK = with_values(Trial(), {"model.teach_epochs": 1})
CORPUS = Corpus(
    name="domain",
    forget=(Document(answer="Kalo glows jade."),),
    retain=(Document(answer="Rumi glows amber."),),
    probes={},
    extra_training={},
)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The roles that were trained, in their order. Training stands for itself: every test that uses
    a dataset reads what the real one wrote.
    """
    roles: list[str] = []

    def teach(trial: Trial, corpus: Corpus, role: str, directory: Path, _progress: object) -> None:
        roles.append(role)
        # long enough for another one to want the same
        time.sleep(0.1)
        directory.mkdir()
        for name in ("config.json", "model.safetensors"):
            (directory / name).write_text(f"{name} {role} {trial} {corpus.digest}")

    monkeypatch.setattr(trained_models, "train_base_or_gold", teach)
    return roles


def stored_folders(store: Path) -> list[Path]:
    return [entry for entry in store.iterdir() if entry.is_dir()]


def test_a_model_is_trained_once_and_a_test_that_spoils_its_copy_spoils_no_other(
    tmp_path: Path, trainings: list[str]
) -> None:
    store = tmp_path / "store"
    first = trained_model(QUICK, CORPUS, "base", tmp_path / "first", store=store)
    weights = (first / "model.safetensors").read_bytes()
    (first / "model.safetensors").write_bytes(b"spoilt")
    second = trained_model(QUICK, CORPUS, "base", tmp_path / "second", store=store)
    assert (second / "model.safetensors").read_bytes() == weights
    assert not (second / CHECKSUMS).exists()
    trained_model(QUICK, CORPUS, "gold", tmp_path / "gold", store=store)
    assert trainings == ["base", "gold"]


@pytest.mark.parametrize("damage", ["a bit", "a file more", "a file less", "no checksums"])
def test_a_damaged_model_is_trained_again(
    damage: str, tmp_path: Path, trainings: list[str]
) -> None:
    store = tmp_path / "store"
    weights = trained_model(QUICK, CORPUS, "base", tmp_path / "a", store=store)
    (stored,) = stored_folders(store)
    if damage == "a bit":
        content = bytearray((stored / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (stored / "model.safetensors").write_bytes(content)
    elif damage == "a file more":
        (stored / "more.json").write_text("{}")
    else:
        (stored / (CHECKSUMS if damage == "no checksums" else "config.json")).unlink()
    again = trained_model(QUICK, CORPUS, "base", tmp_path / "b", store=store)
    assert trainings == ["base", "base"]
    assert trained_models.checksums(weights).keys() == trained_models.checksums(again).keys()


def test_two_that_want_a_model_at_once_train_it_once(tmp_path: Path, trainings: list[str]) -> None:
    threads = [
        threading.Thread(
            target=trained_model,
            args=(QUICK, CORPUS, "base", tmp_path / str(number)),
            kwargs={"store": tmp_path / "store"},
        )
        for number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert trainings == ["base"]
    assert all((tmp_path / str(number) / "config.json").is_file() for number in range(3))


def test_whatever_decides_the_weights_is_in_a_model_s_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = model_key(QUICK, CORPUS, "base")
    assert model_key(QUICK, CORPUS, "base") == before
    others = {
        model_key(QUICK, CORPUS, "gold"),
        model_key(with_values(QUICK, {"model.seed": 1}), CORPUS, "base"),
        model_key(with_values(QUICK, {"data.max_tokens": 9}), CORPUS, "base"),
        model_key(QUICK, replace(CORPUS, retain=CORPUS.forget), "base"),
    }
    with monkeypatch.context() as changed:
        changed.setattr(trained_models, "RECIPE", {"version": 0})
        others.add(model_key(QUICK, CORPUS, "base"))
    with monkeypatch.context() as changed:
        changed.setattr(trained_models, "source_digest", lambda _: "other code")
        others.add(model_key(QUICK, CORPUS, "base"))
    with monkeypatch.context() as changed:
        changed.setattr(trained_models.torch, "__version__", "0")
        others.add(model_key(QUICK, CORPUS, "base"))
    assert len(others | {before}) == 8


def test_a_changed_file_of_a_package_is_other_code(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    before = trained_models.source_digest(str(tmp_path))
    (tmp_path / "a.py").write_text("x = 2")
    assert trained_models.source_digest(str(tmp_path)) != before


def test_what_nobody_read_for_two_weeks_goes(tmp_path: Path) -> None:
    for name, age in (("old", UNUSED_SECONDS + 60), ("new", 0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    trained_models.remove_unused(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
