"""One process of trials on two: `python -m tests.sharded_process SETTINGS.json`; ranks come
from the environment, as accelerate reads them.

Takes the steps of `tests.two_processes` with the other one, then trains each trial, notes on the
way how blocks are divided, and saves the weights that its model ends with.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from rayunlearn.config import Trial, Value, with_values
from rayunlearn.data.synthetic import generate_dataset
from rayunlearn.errors import UserError
from rayunlearn.models import cpu_offload
from rayunlearn.train import fsdp, loop
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.model_state import load_model_state, reset_weights
from rayunlearn.trial.unlearn import unlearn
from rayunlearn.trial.workspace import Workspace, validate_trial
from tests.two_processes import dual, parabola

SHARES: list[tuple[int, int]] = []
ROOM_ON = cpu_offload.weight_budget


def noting_shares() -> None:
    """What each clipping sees: numbers of this process's shards, and of the whole."""
    clip = fsdp.clip_gradients

    def noting(parameters: list[torch.nn.Parameter], most: float) -> torch.Tensor:
        SHARES.append(
            (
                sum(p.to_local().numel() for p in parameters if isinstance(p, DTensor)),
                sum(p.numel() for p in parameters),
            )
        )
        return clip(parameters, most)

    loop.clip_gradients = noting  # type: ignore[assignment]


def trained(
    name: str, values: dict[str, Value], base: str, folder: Path, rank: int
) -> dict[str, object]:
    """One trial; its last weights are saved to `<folder>/<rank>.safetensors`. Of a `larger ...` one
    no device holds the model.
    """
    SHARES.clear()
    trial = validate_trial(with_values(Trial(), values))
    workspace = Workspace(generate_dataset(Trial().data), base, base, "taught", folder / "cache")
    # as a trial does: LoRA's first matrices are drawn
    torch.manual_seed(trial.train.seed)
    load_model_state.cache_clear()
    cpu_offload.weight_budget = lambda device: 0.0 if name.startswith("larger") else ROOM_ON(device)
    state = reset_weights(workspace.base)
    assert cpu_offload.is_offloaded(state.model) is name.startswith("larger")
    log = unlearn(TrialContext(trial, workspace, state), list(range(8)), folder / f"adapter-{rank}")
    assert not any(isinstance(p, DTensor) for p in state.model.parameters())
    save_file(
        {name: p.detach().contiguous() for name, p in state.model.named_parameters()},
        folder / f"{rank}.safetensors",
    )
    return {
        "shares": list(SHARES),
        "grad_norms": [row.grad_norm for row in log.rows],
        "retain_weights": [row.retain_weight for row in log.rows],
        "ended": log.outcome,
    }


def trained_all(
    trials: dict[str, dict[str, Value]], base: str, folder: Path, *, rank: int
) -> dict[str, Any]:
    """`trained` for each trial, in a folder of its name, or the mistake that refuses it."""
    results: dict[str, Any] = {}
    for name, values in trials.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        try:
            results[name] = trained(name, values, base, folder / name, rank)
        except UserError as mistake:
            results[name] = {"mistake": str(mistake)}
    return results


def main(settings: Path) -> None:
    """What the process says of the steps of `tests.two_processes` and of every trial."""
    given = json.loads(settings.read_text())
    small = {"parabola": parabola(), "dual": dual()}
    noting_shares()
    rank, folder = int(os.environ["RANK"]), settings.parent
    print(json.dumps(small | trained_all(given["trials"], given["base"], folder, rank=rank)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
