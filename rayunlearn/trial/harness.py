"""What tasks of lm-evaluation-harness give on the model of a trial, as rows. No Ray in here."""

from __future__ import annotations

from collections.abc import Sequence

from rayunlearn.config import Harness, names_in
from rayunlearn.metrics.harness import ask_harness
from rayunlearn.schema import Rows
from rayunlearn.trial.context import TrialContext


def own_harness_tables(context: TrialContext, step: int) -> dict[str, Rows]:
    """Rows of the tasks that `measure.harness` names, on the model as it stands; none without."""
    measure = context.trial.measure
    tasks = names_in(measure.harness)
    if not tasks:
        return {}
    settings = Harness(include=measure.harness_include, limit=measure.harness_limit)
    return harness_tables(context, tasks, settings, step)


def harness_tables(
    context: TrialContext, tasks: Sequence[str], settings: Harness, step: int
) -> dict[str, Rows]:
    """Rows of `evals` and `examples` of the tasks, with their stage. Raises UserError as
    `ask_harness` does.
    """
    evals, examples = ask_harness(
        context.model.eval(),
        context.tokenizer,
        tasks,
        include=settings.include,
        limit=settings.limit,
        shots=settings.shots,
    )
    keys = {"stage": context.trial.stage, "attack": "none"}
    return {
        "evals": [keys | {"step": step} | row for row in evals],
        "examples": [keys | row for row in examples],
    }
