"""What workers share of a model's weights, and that nothing of it can be written by a trial."""

import shutil
from pathlib import Path

import pytest
import torch

from rayunlearn.errors import UserError
from rayunlearn.models.load import load_model
from rayunlearn.models.mapped_weights import (
    is_never_rewritten,
    put_back,
    same_bits,
    starting_weights,
)
from rayunlearn.storage.artifact_cache import cached_folder
from rayunlearn.trial.model_state import load_model_state

MAPS = Path("/proc/self/smaps")
mapped_here = pytest.mark.skipif(not MAPS.exists(), reason="needs Linux's /proc/self/smaps")


def private_pages(file: Path) -> int:
    """Bytes of a mapped file that this process has for itself, by the kernel's own count."""
    total, inside = 0, False
    for line in MAPS.read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(file))
        elif inside and line.startswith("Private_Dirty:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.fixture
def folder(untaught_models: Path, tmp_path: Path) -> Path:
    """A model folder of the cache: with a manifest, written once."""

    def write(directory: Path) -> None:
        shutil.copytree(untaught_models / "base", directory, dirs_exist_ok=True)

    return cached_folder(tmp_path / "model", {"what": "a tiny model"}, write)


@mapped_here
def test_a_model_of_the_cache_takes_no_memory_of_its_own_until_a_trial_changes_it(
    folder: Path,
) -> None:
    file = folder / "model.safetensors"
    model, _ = load_model(str(folder), dtype=torch.float32)
    weights = starting_weights(model, str(folder))
    put_back(model, weights)
    assert private_pages(file) == 0
    changed = model.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        changed += 1
    after = private_pages(file)
    # this matrix and what the kernel copies along with it, and nowhere near the whole model
    assert changed.nbytes <= after < file.stat().st_size / 3
    put_back(model, weights)
    assert same_bits(model.state_dict()["model.layers.0.mlp.down_proj.weight"], changed.data)
    assert private_pages(file) == after
    assert torch.equal(changed, weights["model.layers.0.mlp.down_proj.weight"])


def test_a_trial_that_writes_to_the_model_changes_neither_the_file_nor_what_others_begin_with(
    folder: Path,
) -> None:
    before = (folder / "model.safetensors").read_bytes()
    state = load_model_state.__wrapped__(str(folder))
    with torch.no_grad():
        for tensor in state.model.state_dict().values():
            tensor.zero_()
    other = load_model_state.__wrapped__(str(folder))
    assert (folder / "model.safetensors").read_bytes() == before
    assert state.checksum == other.checksum
    for name, tensor in other.model.state_dict().items():
        assert same_bits(tensor, other.pristine[name]) and same_bits(tensor, state.pristine[name])
    put_back(state.model, state.pristine)
    for name, tensor in state.model.state_dict().items():
        assert same_bits(tensor, other.pristine[name]), name


def test_a_folder_that_somebody_may_write_to_is_copied(
    untaught_models: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(untaught_models / "base", tmp_path / "own")
    assert not is_never_rewritten(str(folder))
    state = load_model_state.__wrapped__(str(folder))
    kept = {name: tensor.clone() for name, tensor in state.pristine.items()}
    file = folder / "model.safetensors"
    # written in place, as `cp` does
    with file.open("r+b") as opened:
        opened.seek(-4096, 2)
        opened.write(bytes(4096))
    for name, tensor in state.model.state_dict().items():
        assert same_bits(tensor, kept[name]) and same_bits(state.pristine[name], kept[name]), name


def test_bits_and_not_values_decide_what_is_put_back() -> None:
    layer = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, float("nan")]]))
    put_back(layer, {"weight": torch.tensor([[-0.0, 1.0]])})
    assert str(layer.weight.tolist()) == "[[-0.0, 1.0]]"
    assert same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    assert not same_bits(torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64))
    with pytest.raises(UserError, match=r"must have the model's names, got \['bias'\]"):
        put_back(layer, {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)})


def test_weights_that_loading_converts_are_copies_in_the_type_of_the_model(folder: Path) -> None:
    model, _ = load_model(str(folder), dtype=torch.float64)
    for name, tensor in starting_weights(model, str(folder)).items():
        assert tensor.dtype == model.state_dict()[name].dtype
        assert same_bits(tensor, model.state_dict()[name])
        assert tensor.data_ptr() != model.state_dict()[name].data_ptr()
