"""GPTQ and AWQ by GPTQModel: what goes to its process and comes back, with a stand-in that rounds;
the library itself where there is one.
"""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rayunlearn.attacks import gptqmodel
from rayunlearn.attacks.gptqmodel import INTERPRETER, awq_by_library, gptq_by_library
from rayunlearn.attacks.panels import panel_of, restrict_panel
from rayunlearn.attacks.quantization import round_weights
from rayunlearn.data.tokenize import Encoded
from rayunlearn.errors import UserError
from rayunlearn.models.load import load_model
from rayunlearn.models.matrices import model_matrices
from rayunlearn.models.scratch import build_tokenizer
from tests.attacks.test_weight_attacks import weights_of
from tests.families import toy_model
from tests.tiny_models import SEQUENCES

# without torch, which takes longer to load than ten of its processes to run
STANDS_IN = """
import json, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file, save_file

folder, beside = Path(sys.argv[-1]), Path(__file__).parent
asked, fault = json.loads((folder / "asked.json").read_text()), (beside / "fault").read_text()
print(json.dumps(asked))
assert fault != "an error", "the library's own words"
most = 2 ** (asked["bits"] - 1) - 1
weights = load_file(folder / "model" / "model.safetensors")
weights = {name: tensor * 2 if "proj" not in name else tensor for name, tensor in weights.items()}
scales = {}
for name in [name for name in weights if "proj" in name]:
    groups = weights[name].reshape(len(weights[name]), -1, asked["group"])
    scale = (np.abs(groups).max(-1) / most).astype(np.float16)
    steps = (groups / scale[..., None]).round().clip(-most, most)
    if fault == "another group's scale":
        steps = steps * 1.3
    if fault == "a level too many":
        steps[0, 0, 0] = 2 * most + 2
    if fault == "other weights":
        steps = -steps
    weights[name] = (steps * scale[..., None]).reshape(weights[name].shape)
    scales[name.removesuffix("weight") + "scales"] = np.ascontiguousarray(scale.T)
if fault == "a module less":
    weights = {name: tensor for name, tensor in weights.items() if "q_proj" not in name}
if fault == "a tensor more":
    weights["model.layers.0.mlp.act.scales"] = np.ones(3, np.float32)
if fault == "no scales":
    scales = {"none": np.ones(1, np.float32)}
for part, tensors in (("weights", weights), ("quantised", scales)):
    (folder / part).mkdir()
    save_file(tensors, folder / part / "model.safetensors")
save_file(weights, beside / "written.safetensors")
(beside / "asked.json").write_text(json.dumps(asked))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A process instead of the library, which rounds to nearest in groups, with the fault that the
    file `fault` beside it names; what it was asked lies beside it.
    """
    (tmp_path / "stand_in.py").write_text(STANDS_IN)
    (tmp_path / "fault").write_text("none")
    monkeypatch.setattr(gptqmodel.gptqmodel_subprocess, "__file__", str(tmp_path / "stand_in.py"))
    monkeypatch.setenv(INTERPRETER, sys.executable)
    return tmp_path


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_the_tensors_of_the_blocks_come_back_and_the_texts_are_the_first_ones(
    method: str, stand_in: Path, untaught_models: Path
) -> None:
    """The stand-in changes every tensor; what lies outside the blocks stays, norms inside come
    along: AWQ moves scales there.
    """
    model, tokenizer = load_model(str(untaught_models / "base"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gptqmodel._by_library(model, tokenizer, SEQUENCES[:2], method=method, bits=4, group=32)
    written = load_file(stand_in / "written.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (written if "layers" in name else before)[name])
    assert not any(torch.equal(tensor, before[name]) for name, tensor in written.items())
    assert json.loads((stand_in / "asked.json").read_text()) == {
        "method": method,
        "bits": 4,
        "group": 32,
        "device": "cpu",
        "texts": [list(s.ids) for s in SEQUENCES[:2]],
    }


FIRST = r"model\.layers\.0\.[a-z_.]+_proj\.weight"


@pytest.mark.parametrize(
    ("fault", "method", "error", "message"),
    [
        ("an error", "gptq", RuntimeError, r"ended with status 1:[\s\S]*the library's own words"),
        (
            "a module less",
            "gptq",
            RuntimeError,
            r"wrote no weights for 3 modules, such as model\.layers\.0\.self_attn\.q_proj\.weight",
        ),
        ("no scales", "gptq", UserError, rf"a scale for each group of each row of {FIRST}"),
        (
            "another group's scale",
            "gptq",
            UserError,
            rf"{FIRST} must come back from gptqmodel in whole multiples of its scales; off by",
        ),
        (
            "a level too many",
            "awq",
            UserError,
            r"with levels less than 2\^bits = 16 apart, got 2[0-3]",
        ),
        ("other weights", "gptq", UserError, r"moved by less than its own length, got (1.9|2)"),
        ("other weights", "awq", UserError, r"the signs it had, as AWQ keeps them; .* got 0.[5-9]"),
        (
            "a tensor more",
            "awq",
            UserError,
            r"tensors that the model has, .* got '.*mlp.act.scales'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 25 else "",
)
def test_what_the_library_cannot_have_made_is_refused(
    fault: str,
    method: str,
    error: type[Exception],
    message: str,
    stand_in: Path,
    untaught_models: Path,
) -> None:
    (stand_in / "fault").write_text(fault)
    model, tokenizer = load_model(str(untaught_models / "base"))
    with pytest.raises(error, match=message):
        gptqmodel._by_library(model, tokenizer, SEQUENCES, method=method, bits=4, group=32)


def test_bad_settings_and_a_missing_package_are_said_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, untaught_models: Path
) -> None:
    model, tokenizer = load_model(str(untaught_models / "base"))
    with pytest.raises(
        UserError,
        match=r"group must divide the inputs of every linear module, here of, got '\[96\] by 64'",
    ):
        gptq_by_library(model, tokenizer, SEQUENCES, group=64)
    with pytest.raises(
        UserError, match=r"awq_by_library must run where the model is on a GPU, got .*cpu"
    ):
        awq_by_library(model, tokenizer, SEQUENCES)
    monkeypatch.delenv(INTERPRETER, raising=False)
    if find_spec("gptqmodel") is None:
        with pytest.raises(
            UserError,
            match=(
                rf"gptq_by_library needs the package gptqmodel, or {INTERPRETER} naming a Python"
                r" that has it"
            ),
        ):
            restrict_panel(panel_of("quick"), ["gptq_by_library"])
    monkeypatch.setenv(INTERPRETER, sys.executable)
    assert [
        entry.name for entry in restrict_panel(panel_of("quick"), ["gptq_by_library"]).entries
    ] == ["gptq_by_library"]


@pytest.mark.skipif(
    find_spec("gptqmodel") is None and INTERPRETER not in os.environ,
    reason=f"gptqmodel is not installed, {INTERPRETER} not set",
)
def test_gptqmodel_itself_leaves_sixteen_levels_in_a_group_and_is_not_plain_rounding(
    untaught_models: Path,
) -> None:
    model, tokenizer = load_model(str(untaught_models / "base"))
    before = weights_of(model)
    ids = torch.randint(5, 400, (32, 24)).tolist()
    gptq_by_library(
        model,
        tokenizer,
        [Encoded(str(at), tuple(row), 3) for at, row in enumerate(ids)],
        bits=4,
        group=32,
    )
    for old, new in zip(before, weights_of(model), strict=True):
        groups = new.reshape(-1, 32)
        assert max(len(group.unique()) for group in groups) <= 16
        plain = round_weights(old.reshape(-1, 32), 4)
        assert (
            not torch.allclose(groups, plain)
            and float((groups - old.reshape(-1, 32)).norm() / old.norm()) < 0.3
        )


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_a_family_whose_matrices_are_not_in_linear_modules_is_refused_before_the_library_runs(
    family: str, stand_in: Path, tmp_path: Path
) -> None:
    """`Conv1D`, and experts in one tensor. The stand-in writes what it was asked: nothing."""
    model, before = toy_model(family), toy_model(family).state_dict()
    tokenizer = build_tokenizer(["a text"])
    with pytest.raises(UserError, match=r"gptq_by_library must reach 80% of the weights .* '\d+%'"):
        gptq_by_library(model, tokenizer, SEQUENCES, group=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_every_matrix_of_a_family_of_linear_modules_is_given_to_the_library(family: str) -> None:
    model = toy_model(family)
    found = gptqmodel._linear_names(model, "gptq")
    assert sum(m.weight.numel() for m in found.values()) == sum(
        m.weight.numel() for m in model_matrices(model)
    )
