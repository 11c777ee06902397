"""Tasks of lm-evaluation-harness (EleutherAI) on a model that is in memory, as rows of `evals` and
`examples`. Needs the extra: `pip install rayunlearn[harness]`.

The numbers and their standard errors are the harness's own: nothing is computed again here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.metadata import version
from math import isclose
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rayunlearn.errors import UserError, unknown_name
from rayunlearn.models.load import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rayunlearn.schema import Rows

PREFIX = "harness."


def ask_harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    include: str = "",
    limit: int = 0,
    shots: str = "",
    batch_size: int = 8,
) -> tuple[Rows, Rows]:
    """(rows of `evals`: split, the task, metric, `harness.acc` or `harness.exact_match@filter`,
    value, n, stderr, n_shot and harness_version; rows of `examples`: `sample_rows`).

    `include`: a folder with your own tasks (YAML); `limit`: the first so many questions of each
    task (0: all); `shots`: solved examples before each question ('': the task's own number). Raises
    UserError where the harness is not installed, for an unknown task, and where a task's data
    cannot be had.
    """
    manager = task_manager(tasks, include)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    # the harness gives a tokenizer the padding token that it lacks
    tokenizer_copy = deepcopy(tokenizer)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer_copy, batch_size=batch_size)
    try:
        with quiet_transformers():
            output = simple_evaluate(
                model=wrapped,
                tasks=list(tasks),
                task_manager=manager,
                num_fewshot=int(shots) if shots else None,
                limit=limit or None,
                log_samples=True,
            )
    except (OSError, ValueError, ConnectionError) as problem:
        raise UserError(
            f"the harness could not run {', '.join(tasks)}: {type(problem).__name__}: {problem}"
        ) from problem
    rows = harness_rows(output, harness_version())
    return rows, sample_rows(output, rows)


def harness_version() -> str:
    """Version of the installed harness."""
    return version("lm_eval")


def task_manager(tasks: Sequence[str], include: str = "") -> Any:
    """The harness's tasks, and those of the folder `include`. Raises UserError where it is not
    installed and for an unknown task.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as problem:
        raise UserError(
            "tasks of lm-evaluation-harness need it installed: pip install 'rayunlearn[harness]'"
            f" ({problem})"
        ) from problem
    manager = TaskManager(include_path=include or None)
    for task in tasks:
        if task not in manager.all_tasks:
            raise unknown_name("task of lm-evaluation-harness", task, manager.all_tasks)
    return manager


def harness_rows(output: Mapping[str, Any], harness: str = "") -> Rows:
    """The harness's results as rows; groups of tasks too, after their tasks. `harness`: its
    version.
    """
    sizes, shots = output.get("n-samples", {}), output.get("n-shot", {})
    rows: Rows = []
    for task, numbers in output["results"].items():
        about = {"n_shot": shots.get(task), "harness_version": harness}
        n = sizes.get(task, {}).get("effective")
        for name, value in numbers.items():
            metric, _, filtered = name.partition(",")
            if not isinstance(value, (int, float)) or metric.endswith("_stderr") or not filtered:
                continue
            stderr = numbers.get(f"{metric}_stderr,{filtered}")
            row: dict[str, Any] = {"split": task, "metric": called(metric, filtered)}
            row |= {"value": float(value), "n": n}
            row["stderr"] = stderr if isinstance(stderr, float) else None
            rows.append(row | about)
    return rows


def sample_rows(output: Mapping[str, Any], evals: Rows) -> Rows:
    """Rows doc_id, split, metric, value of every question, of the metrics whose value is the mean
    over questions (an F1 or a perplexity of a whole task is not).

    doc_id is the beginning of the harness's own digest of the question.
    """
    wanted = {(row["split"], row["metric"]): row["value"] for row in evals}
    values: defaultdict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
    for task, samples in output.get("samples", {}).items():
        for sample in samples:
            filtered = sample.get("filter", "none")
            for name in sample.get("metrics", ()):
                key = (task, called(name, filtered))
                if key in wanted and isinstance(sample.get(name), (int, float)):
                    values[key].append((str(sample["doc_hash"])[:16], float(sample[name])))
    return [
        {"doc_id": doc_id, "split": task, "metric": metric, "value": value}
        for (task, metric), questions in values.items()
        if isclose(fmean(v for _, v in questions), wanted[task, metric], abs_tol=1e-9)
        for doc_id, value in questions
    ]


def called(metric: str, filtered: str) -> str:
    """The name here of a metric of the harness under one of its filters."""
    return PREFIX + metric + ("" if filtered == "none" else f"@{filtered}")
