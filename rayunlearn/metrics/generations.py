"""What a model wrote for its metrics, as rows: prompt, reference and text of every document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rayunlearn.data.multiple_choice import LETTERS
from rayunlearn.metrics.forward_passes import (
    EvaluationTask,
    MetricInputs,
    Probe,
    greedy_text_pass,
    letter_prompt,
    prompt_and_answer,
)
from rayunlearn.metrics.judge import Verdict
from rayunlearn.metrics.table import Metric
from rayunlearn.schema import Rows

# inputs of metrics (`table.INPUTS`) that are texts of the model
TEXT_INPUTS = ("generated", "continuation", "samples", "letter_text")
# what a judge's metrics read is the greedy text
READ_BY_A_JUDGE = "verdict_probabilities"


def generation_rows(
    task: EvaluationTask, gathered: Sequence[MetricInputs], metrics: Mapping[str, Metric]
) -> Rows:
    """Rows of the table `generations` without its trial and stage: every text that a metric of
    `metrics` reads, each once, whatever the number of metrics. `gathered`: what the passes gave to
    each probe. A text that a probe does not allow has no row.
    """
    readers = {name: _readers(name, metrics) for name in TEXT_INPUTS}
    if not any(readers.values()):
        return []
    references = [str(words["truth"]) for words in greedy_text_pass(task, frozenset())]
    return [
        {"doc_id": probe.doc_id, "split": probe.split, "input": name} | row
        for probe, inputs, reference in zip(task.probes, gathered, references, strict=True)
        for name, names in readers.items()
        if names and name in inputs
        for row in _rows(task, probe, inputs, name, reference, ",".join(names))
    ]


def _readers(name: str, metrics: Mapping[str, Metric]) -> list[str]:
    """The metrics that read this text."""
    texts = {name, READ_BY_A_JUDGE} if name == "generated" else {name}
    return [metric for metric, row in metrics.items() if texts & {*row.inputs}]


def _rows(
    task: EvaluationTask,
    probe: Probe,
    inputs: MetricInputs,
    name: str,
    reference: str,
    metrics: str,
) -> Iterator[dict[str, Any]]:
    """One row, or one for each sample."""
    tokenizer, text = task.words(), inputs[name]
    ids = prompt_and_answer(probe)[0]
    if name == "letter_text":
        reference = LETTERS[probe.true_letter]
        ids = letter_prompt(probe, tokenizer, task.writing.shots)
    verdict = inputs.get("verdict") if name == "generated" else None
    shared = {
        "metrics": metrics,
        "prompt": str(tokenizer.decode(ids, skip_special_tokens=True)).strip(),
        "reference": reference,
        "verdict": verdict.words() if isinstance(verdict, Verdict) else None,
    }
    for number, generated in enumerate(text if isinstance(text, tuple) else (text,)):
        yield {"number": number, "generated": str(generated)} | shared
