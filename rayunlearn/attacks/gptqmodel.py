"""GPTQ and AWQ by GPTQModel, as those quantise who publish a model: its own code and files, and the
weights read back from them.

`quantization.py` computes both here; this is for the question whether a library does the same to
forgetting. GPTQ runs on a CPU too, AWQ only where the model is on a GPU. The library works in a
process of its own (gptqmodel_subprocess.py). What it hands back is held against its format's
bounds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from rayunlearn.attacks import gptqmodel_subprocess
from rayunlearn.attacks.base import AttackRow
from rayunlearn.attacks.quantization import Bits
from rayunlearn.data.tokenize import Encoded
from rayunlearn.errors import UserError, require
from rayunlearn.lazy import nn, torch
from rayunlearn.models.forward import blocks
from rayunlearn.models.load import save_model
from rayunlearn.models.matrices import model_matrices, require_touched
from rayunlearn.ranges import Count

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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

    `group` must divide the inputs of every linear module; published models take 128, our training
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
    """Save, let the process quantise, and copy the blocks' tensors from its files.

    Raises UserError for a family that keeps its matrices elsewhere than in linear modules, for a
    group that does not divide a module's inputs and for tensors that `method` cannot have made of
    this model; RuntimeError, with its last lines, when the process
    fails.
    """
    linear = _linear_names(model, method)
    narrow = [module.in_features for module in linear.values() if module.in_features % group]
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
        _copy_blocks(model, linear, folder, method=method, bits=bits)


def _linear_names(model: PreTrainedModel, method: str) -> dict[str, nn.Linear]:
    """The blocks' linear modules by the names of their weights in the model. Raises UserError for a
    family whose matrices are, for the most part, in other modules (GPT-2's `Conv1D`, experts in one
    tensor): the library's files have no place for those that this copies back.
    """
    matrices = model_matrices(model)
    parameters = {id(m.parameter) for m in matrices if m.expert is None and not m.is_transposed}
    linear = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) in parameters
    }
    total = sum(matrix.weight.numel() for matrix in matrices)
    reached = sum(module.weight.numel() for module in linear.values())
    require_touched(reached / max(1, total), f"{method}_by_library")
    return linear


def _copy_blocks(
    model: PreTrainedModel, linear: dict[str, nn.Linear], folder: Path, *, method: str, bits: int
) -> None:
    """Copy every tensor of the blocks from the files of the library's process: AWQ moves scales
    from its linear modules to the norms before them. Linear weights are checked first.
    """
    in_blocks = {
        id(t) for block in blocks(model) for t in block.state_dict(keep_vars=True).values()
    }
    tensors = model.state_dict(keep_vars=True)
    scales = {name: t for name, t in _tensors(folder / "quantised") if name.endswith(".scales")}
    missing = set(linear)
    for name, returned in _tensors(folder / "weights"):
        require(
            name in tensors,
            f"{method} by gptqmodel must write tensors that the model has, as the model is computed"
            " without its library",
            name,
        )
        if id(tensors[name]) not in in_blocks:
            continue
        if name in linear:
            scale = scales.get(f"{name.removesuffix('.weight')}.scales")
            require_grid(name, returned, scale, bits=bits)
            require_origin(name, linear[name].weight.data, returned, method=method)
            missing.discard(name)
        with torch.no_grad():
            tensors[name].copy_(returned)
    if missing:
        raise RuntimeError(
            f"gptqmodel wrote no weights for {len(missing)} modules, such as {min(missing)}"
        )


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything in a folder's safetensors files, one at a time."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            # an open file is no dict
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name)


def require_grid(name: str, returned: Tensor, scales: Tensor | None, *, bits: int) -> None:
    """Hold (out, in) weights against the format of GPTQ and AWQ: a group of a row holds whole
    multiples of its scale, of `scales` (groups, out) as in the library's files, at most
    2^bits - 1 apart. Raises UserError.

    A multiple may be off by a hundredth: scales are stored with 11 bits.
    """
    if scales is None or scales.ndim != 2 or scales.shape[1] != len(returned):
        raise UserError(f"gptqmodel must write a scale for each group of each row of {name}")
    grouped = returned.float().view(len(returned), len(scales), -1)
    steps = grouped / scales.float().T[..., None].clamp_min(torch.finfo(torch.float32).tiny)
    rounding_error = float((steps - steps.round()).abs().max())
    require(
        rounding_error <= 0.01,
        f"{name} must come back from gptqmodel in whole multiples of its scales; off by",
        rounding_error,
    )
    width = int((steps.amax(-1) - steps.amin(-1)).round().max())
    require(
        width < 2**bits,
        f"{name} must come back from gptqmodel with levels less than 2^bits = {2**bits} apart",
        width,
    )


def require_origin(name: str, weight: Tensor, returned: Tensor, *, method: str) -> None:
    """Hold the returned weights against those they were made of. Raises UserError.

    AWQ multiplies rows and columns by positive numbers, clips and rounds: no weight changes sign.
    GPTQ makes up for rounding in later columns and may change any weight; but a matrix that moved
    by more than its own length (Frobenius) has nothing left of it.
    """
    if method == "awq":
        flipped = float(((weight * returned.to(weight)) < 0).float().mean())
        require(
            flipped == 0,
            f"{name} must come back from gptqmodel with the signs it had, as AWQ keeps them; share"
            " that changed",
            round(flipped, 3),
        )
        return
    moved = float((returned.to(weight) - weight).norm() / weight.norm())
    require(
        moved < 1,
        f"{name} must come back from gptqmodel moved by less than its own length",
        round(moved, 3),
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
            of_matrices=True,
            title="quantise by GPTQ (GPTQModel)",
            source="Frantar et al. 2210.17323",
            package=REQUIREMENT,
            elsewhere=INTERPRETER,
        ),
        AttackRow(
            function=awq_by_library,
            kind="weights",
            of_matrices=True,
            title="quantise by AWQ (GPTQModel, on a GPU)",
            source="Lin et al. 2306.00978",
            package=REQUIREMENT,
            elsewhere=INTERPRETER,
        ),
    )
}
