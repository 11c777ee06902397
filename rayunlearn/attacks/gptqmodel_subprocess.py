"""What GPTQModel does, in a process of its own: the library patches transformers and torch when
imported, and may have its own environment.

Run as a file, of an interpreter that has `gptqmodel`; nothing of rayunlearn is imported here. The
folder given has `model` (a Hugging Face directory) and `asked.json` (method, bits, group, device,
texts as token ids). Afterwards it has `quantised`, in the library's own file format, and `weights`,
what a kernel that reads those files multiplies with, as plain safetensors.
"""

import json
import os
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Quantise `folder`/model."""
    # its loader wants two, its default on two cores is one
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.utils.model_dequant import dequantize_model

    request = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    method = (
        {"quant_method": "awq", "format": "gemm"}
        if request["method"] == "awq"
        else {"act_group_aware": False}
    )
    config = QuantizeConfig(
        bits=request["bits"],
        group_size=request["group"],
        sym=True,
        desc_act=False,
        device=request["device"],
        **method,
    )
    model = GPTQModel.from_pretrained(str(folder / "model"), config, trust_remote_code=False)
    model.quantize(
        [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in request["texts"]],
        batch_size=8,
        calibration_data_min_length=1,
    )
    model.save(str(folder / "quantised"))
    dequantize_model(folder / "quantised", folder / "weights", target_dtype=torch.float32)
    if request["method"] == "awq":
        _in_the_order_of_gemm(folder, request["bits"], request["group"])


def _in_the_order_of_gemm(folder: Path, bits: int, group: int) -> None:
    """Write the linear weights anew: AWQ's GEMM files hold eight columns in the order 0 2 4 6 1 3 5
    7, which `dequantize_model` of GPTQModel 7.6 does not undo. Its kernels call what is called
    here.
    """
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
    from safetensors.torch import load_file, save_file

    packed = {}
    for file in (folder / "quantised").glob("*.safetensors"):
        packed.update(load_file(file))
    for file in (folder / "weights").glob("*.safetensors"):
        weights = load_file(file)
        for name in weights.keys() & {f"{n.removesuffix('.qweight')}.weight" for n in packed}:
            of = name.removesuffix("weight")
            parts = [packed[of + part] for part in ("qweight", "qzeros", "scales")]
            parts[2] = parts[2].float()
            weights[name] = dequantize_gemm(*parts, bits, group).T.contiguous()
        save_file(weights, file, metadata={"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
