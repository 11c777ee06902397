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

from rayunlearn.attacks import gptqmodel
from rayunlearn.attacks.gptqmodel import INTERPRETER, awq_by_library, gptq_by_library
from rayunlearn.attacks.panels import panel_of, restrict_panel
from rayunlearn.attacks.quantization import round_weights
from rayunlearn.data.tokenize import Encoded
from rayunlearn.errors import UserError
from rayunlearn.models.load import load_model
from tests.attacks.test_weight_attacks import weights_of
from tests.conftest import Bed
from tests.tiny_models import SEQUENCES

STANDS_IN = """
import json, sys
from pathlib import Path
from safetensors.torch import load_file, save_file
folder = Path(sys.argv[-1])
asked = json.loads((folder / "asked.json").read_text())
print(json.dumps(asked))
assert asked["bits"] != 2, "two bits are too few"
weights = {name: (tensor * 2).bfloat16() for name, tensor in load_file(folder / "model" / "model.safetensors").items()}
(folder / "weights").mkdir()
save_file({n: t for n, t in weights.items() if asked["bits"] != 3 or "q_proj" not in n}, folder / "weights" / "model.safetensors")
(Path(__file__).parent / "asked.json").write_text(json.dumps(asked))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A process in the library's place, which writes twice every weight, in bfloat16; what it was
    asked lies beside it.
    """
    script = tmp_path / "stand_in.py"
    script.write_text(STANDS_IN)
    monkeypatch.setattr(gptqmodel.gptqmodel_subprocess, "__file__", str(script))
    monkeypatch.setenv(INTERPRETER, sys.executable)
    return tmp_path / "asked.json"


def test_the_weights_of_the_blocks_come_back_and_the_texts_are_the_first_ones(
    stand_in: Path, domain_bed: Bed
) -> None:
    model, tokenizer = load_model(str(domain_bed.base))
    before, embedded = weights_of(model), model.get_input_embeddings().weight.clone()
    gptq_by_library(model, tokenizer, SEQUENCES, texts=2, bits=4, group=32)
    for old, new in zip(before, weights_of(model), strict=True):
        assert torch.equal(new, (old * 2).bfloat16().float())
    assert torch.equal(model.get_input_embeddings().weight, embedded)
    asked = json.loads(stand_in.read_text())
    assert asked == {
        "method": "gptq",
        "bits": 4,
        "group": 32,
        "device": "cpu",
        "texts": [list(s.ids) for s in SEQUENCES[:2]],
    }


def test_a_process_that_fails_is_told_in_its_own_words_and_missing_weights_are_counted(
    stand_in: Path, domain_bed: Bed
) -> None:
    model, tokenizer = load_model(str(domain_bed.base))
    with pytest.raises(
        RuntimeError, match=r"gptqmodel ended with status 1:[\s\S]*two bits are too few"
    ):
        gptq_by_library(model, tokenizer, SEQUENCES, bits=2)
    with pytest.raises(
        RuntimeError,
        match=(
            r"wrote no weights for 3 modules, such as model\.layers\.0\.self_attn\.q_proj\.weight"
        ),
    ):
        gptq_by_library(model, tokenizer, SEQUENCES, bits=3)


def test_bad_settings_and_a_missing_package_are_said_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, domain_bed: Bed
) -> None:
    model, tokenizer = load_model(str(domain_bed.base))
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
    domain_bed: Bed,
) -> None:
    model, tokenizer = load_model(str(domain_bed.base))
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
