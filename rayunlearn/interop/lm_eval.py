"""Tasks of lm-evaluation-harness on a model directory, as rows of `evals`. Needs the extra: `pip
install rayunlearn[harness]`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayunlearn.config import digest
from rayunlearn.errors import UserError, require, unknown_name
from rayunlearn.lazy import torch
from rayunlearn.models.load import load_model, model_digest, quiet_transformers
from rayunlearn.schema import Rows
from rayunlearn.train.device import accelerator

PREFIX = "harness."


def run_harness(
    model: str,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int = 0,
    batch_size: int = 8,
) -> Rows:
    """Rows trial_id, stage, attack, step, split (the task), metric (`harness.acc`,
    `harness.exact_match@filter`), value, n, stderr.

    The model in float32 on this machine's device. `include`: a folder with your own tasks
    (YAML); `limit`: the first so many questions of each task (0: all). The numbers and standard
    errors are the harness's own. Raises UserError where it is not installed, for an unknown task
    and where a task's data cannot be had.
    """
    require(bool(tasks), "--harness takes names of tasks, separated by commas", ",".join(tasks))
    manager = _task_manager(tasks, include)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    loaded, tokenizer = load_model(model, dtype=torch.float32)
    evaluated = HFLM(
        pretrained=loaded.to(accelerator().device).eval(),
        tokenizer=tokenizer,
        batch_size=batch_size,
    )
    try:
        with quiet_transformers():
            output = simple_evaluate(
                model=evaluated,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit or None,
                log_samples=False,
            )
    except (OSError, ValueError, ConnectionError) as problem:
        raise UserError(
            f"the harness could not run {', '.join(tasks)}: {type(problem).__name__}: {problem}"
        ) from problem
    identity = digest(["harness", model_digest(model), sorted(tasks), limit])
    keys = {"trial_id": identity, "stage": "base", "attack": "none", "step": 0}
    return [keys | row for row in harness_rows(output)]


def _task_manager(tasks: Sequence[str], include: Path | None) -> Any:
    """The harness's tasks. Raises UserError where it is not installed and for an unknown task."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as problem:
        raise UserError(
            f"--harness needs lm-evaluation-harness: pip install 'rayunlearn[harness]' ({problem})"
        ) from problem
    manager = TaskManager(include_path=str(include) if include else None)
    for task in tasks:
        if task not in manager.all_tasks:
            raise unknown_name("task of lm-evaluation-harness", task, manager.all_tasks)
    return manager


def harness_rows(output: Mapping[str, Any]) -> Rows:
    """The harness's results as rows split, metric, value, n, stderr; groups of tasks too, after
    their tasks.
    """
    sizes = output.get("n-samples", {})
    rows: Rows = []
    for task, numbers in output["results"].items():
        n = sizes.get(task, {}).get("effective")
        for name, value in numbers.items():
            metric, _, filtered = name.partition(",")
            if not isinstance(value, (int, float)) or metric.endswith("_stderr") or not filtered:
                continue
            stderr = numbers.get(f"{metric}_stderr,{filtered}")
            called = PREFIX + metric + ("" if filtered == "none" else f"@{filtered}")
            rows.append(
                {
                    "split": task,
                    "metric": called,
                    "value": float(value),
                    "n": n,
                    "stderr": stderr if isinstance(stderr, float) else None,
                }
            )
    return rows
