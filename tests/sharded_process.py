"""One process of a trial on several: `python -m tests.sharded_process SETTINGS.json`; ranks come from the environment, as accelerate reads them.

Trains the trial, checks on the way that blocks are divided, and saves the weights that its model ends with as `<out>/<rank>.safetensors`.
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from rayunlearn.config import Trial, with_values
from rayunlearn.data.testbed import generate
from rayunlearn.models.forward import blocks
from rayunlearn.train import sharded
from rayunlearn.train.device import accelerator
from rayunlearn.unlearning import unlearn
from rayunlearn.worker import reset
from rayunlearn.workspace import Workspace, validate

SHARES: list[tuple[int, int]] = []


def noting_shares() -> None:
    """What each clipping sees: numbers of this process's shards, and of the whole."""
    clip = sharded.clip_gradients

    def noting(parameters: list[torch.nn.Parameter], most: float) -> torch.Tensor:
        SHARES.append((sum(p.to_local().numel() for p in parameters if isinstance(p, DTensor)), sum(p.numel() for p in parameters)))
        return clip(parameters, most)

    from rayunlearn.train import loop

    loop.clip_gradients = noting  # type: ignore[assignment]


def main(settings: Path) -> None:
    given = json.loads(settings.read_text())
    trial = validate(with_values(Trial(), given["values"]))
    workspace = Workspace(generate(Trial().data), given["base"], given["base"], "taught", Path(given["cache"]))
    noting_shares()
    torch.manual_seed(trial.train.seed)  # as a trial does: LoRA's first matrices are drawn
    state = reset(workspace.base)
    log = unlearn(trial, workspace, state, list(range(8)), Path(given["out"]) / f"adapter-{os.environ.get('RANK', '0')}")
    rank = accelerator().process_index
    names = {id(p): name for name, p in state.model.named_parameters()}
    assert not any(isinstance(p, DTensor) for p in state.model.parameters()) and len(blocks(state.model)) > 1
    save_file({names[id(p)]: p.detach().contiguous() for p in state.model.parameters()}, f"{given['out']}/{rank}.safetensors")
    print(
        json.dumps(
            {"shares": SHARES, "grad_norms": [row.grad_norm for row in log.rows], "losses": [row.loss for row in log.rows], "ended": log.ended}
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
