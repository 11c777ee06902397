"""Tasks of lm-evaluation-harness on a model directory, as rows of `evals`. Needs the extra: `pip
install rayunlearn[harness]`.
"""

from collections.abc import Sequence
from pathlib import Path

from rayunlearn.config import digest
from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.metrics.harness import ask_harness
from rayunlearn.models.load import load_model, model_digest
from rayunlearn.schema import Rows
from rayunlearn.train.device import accelerator


def run_harness(
    model: str,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int = 0,
    batch_size: int = 8,
) -> Rows:
    """Rows trial_id, stage, attack, step and those of `metrics.harness.ask_harness`, of the model
    in float32 on this machine's device. Raises UserError as that does.
    """
    require(bool(tasks), "--harness takes names of tasks, separated by commas", ",".join(tasks))
    loaded, tokenizer = load_model(model, dtype=torch.float32)
    rows, _ = ask_harness(
        loaded.to(accelerator().device).eval(),
        tokenizer,
        tasks,
        include=str(include) if include else "",
        limit=limit,
        batch_size=batch_size,
    )
    identity = digest(["harness", model_digest(model), sorted(tasks), limit])
    keys = {"trial_id": identity, "stage": "base", "attack": "none", "step": 0}
    return [keys | row for row in rows]
