"""GPTQ and AWQ by GPTQModel, as those quantise who publish a model: its own code and files, and the
weights read back from them.

`calibrated.py` computes both here; this is for the question whether a library does the same to
forgetting. GPTQ runs on a CPU too, AWQ only where the model is on a GPU. The library works in a
process of its own (gptqmodel_subprocess.py).
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayunlearn.attacks import gptqmodel_subprocess
from rayunlearn.attacks.base import AttackRow
from rayunlearn.attacks.quantization import Bits
from rayunlearn.data.tokenize import Encoded
from rayunlearn.errors import require
from rayunlearn.models.forward import blocks
from rayunlearn.models.load import save_model
from rayunlearn.ranges import Count

REQUIREMENT = "gptqmodel"


# a Python that has it, where its fixed versions of numpy or torch are not ours; else this one
INTERPRETER = "RAYUNLEARN_GPTQMODEL_PYTHON"


# of what the library's process wrote, told when it fails
LAST_LINES = 12


def gptq_by_library(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    retain_sequences: Sequence[Encoded],
    *,
    bits: Bits = 4,
    group: Count = 32,
    texts: Count = 64,
) -> None:
    """Quantise the linear weights of the blocks with GPTQModel's GPTQ, a scale for each `group` of
    a row. Frantar et al. 2210.17323.

    `group` must divide the inputs of every linear module; published models take 128, our teaching
    models are narrower.
    """
    _by_library(model, tokenizer, retain_sequences[:texts], method="gptq", bits=bits, group=group)


def awq_by_library(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    retain_sequences: Sequence[Encoded],
    *,
    bits: Bits = 4,
    group: Count = 32,
    texts: Count = 64,
) -> None:
    """Quantise the linear weights of the blocks with GPTQModel's AWQ, on a GPU. Lin et al.
    2306.00978.

    Settings as of `gptq_by_library`. Raises UserError where the model is not on a GPU: the library
    has no AWQ for a CPU.
    """
    require(
        model.device.type == "cuda",
        "awq_by_library must run where the model is on a GPU",
        model.device,
    )
    _by_library(model, tokenizer, retain_sequences[:texts], method="awq", bits=bits, group=group)


def _by_library(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[Encoded],
    *,
    method: str,
    bits: int,
    group: int,
) -> None:
    """Save, let the process quantise, and copy the weights of the blocks' linear modules from its
    files.

    Raises UserError for a group that does not divide a module's inputs, RuntimeError with its last
    lines when the process fails.
    """
    linear = {
        id(m): m for block in blocks(model) for m in block.modules() if isinstance(m, nn.Linear)
    }
    names = {
        f"{name}.weight": linear[id(module)]
        for name, module in model.named_modules()
        if id(module) in linear
    }
    narrow = [module.in_features for module in names.values() if module.in_features % group]
    require(
        not narrow,
        "group must divide the inputs of every linear module, here of",
        f"{narrow[:1]} by {group}",
    )
    with tempfile.TemporaryDirectory(prefix="rayunlearn-gptqmodel-") as name:
        folder = Path(name)
        save_model(model, tokenizer, folder / "model")
        request = {
            "method": method,
            "bits": bits,
            "group": group,
            "device": str(model.device),
            "texts": [list(s.ids) for s in sequences],
        }
        (folder / "asked.json").write_text(json.dumps(request), encoding="utf-8")
        _run(_interpreter(), folder)
        for file in sorted((folder / "weights").glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                for key in names.keys() & set(opened.keys()):
                    with torch.no_grad():
                        names.pop(key).weight.copy_(opened.get_tensor(key))
    if names:
        raise RuntimeError(
            f"gptqmodel wrote no weights for {len(names)} modules, such as {min(names)}"
        )


def _interpreter() -> str:
    """The one the variable names, a path from where this process is; else this process's own."""
    named = os.environ.get(INTERPRETER)
    return str(Path(named).absolute()) if named else sys.executable


def _run(interpreter: str, folder: Path) -> None:
    """The process, with its own words where it fails. `-P`: the modules beside the file are not on
    its path. Its logs go with the folder.
    """
    command = [interpreter, "-P", gptqmodel_subprocess.__file__, str(folder)]
    log = folder / "log.txt"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(
            command,
            cwd=folder,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
    if done.returncode:
        output = "\n".join(
            log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        )
        raise RuntimeError(f"gptqmodel ended with status {done.returncode}:\n{output}")


GPTQMODEL = {
    row.function.__name__: row
    for row in (
        AttackRow(
            function=gptq_by_library,
            kind="weights",
            title="quantise by GPTQ (GPTQModel)",
            source="Frantar et al. 2210.17323",
            package=REQUIREMENT,
            elsewhere=INTERPRETER,
        ),
        AttackRow(
            function=awq_by_library,
            kind="weights",
            title="quantise by AWQ (GPTQModel, on a GPU)",
            source="Lin et al. 2306.00978",
            package=REQUIREMENT,
            elsewhere=INTERPRETER,
        ),
    )
}
