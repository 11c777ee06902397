"""Measure a model on probes: the passes that the metrics need, each once, and one row per document
and metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rayunlearn.data.documents import Document
from rayunlearn.data.multiple_choice import true_option_index
from rayunlearn.data.tokenize import Encoded, encode_pair
from rayunlearn.errors import unknown_name
from rayunlearn.lazy import torch
from rayunlearn.metrics.forward_passes import (
    EvaluationTask,
    GenerationSettings,
    MetricInputs,
    Probe,
    gather_inputs,
)
from rayunlearn.metrics.table import CHEAP, METRICS, Metric, sources_of
from rayunlearn.models.forward import score
from rayunlearn.models.reference import Reference

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def encode_probes(
    probes: Mapping[str, Sequence[Document]],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    max_tokens: int,
    true_letters: Mapping[str, int] | None = None,
    templates: Mapping[str, str] | None = None,
) -> list[Probe]:
    """Encode every probe of every split. The true option is the paraphrase where there is one, so
    that a right answer is not preferred for its wording alone. `true_letters` (doc_id -> place
    among the letters) keeps the order of options that the data came in; elsewhere the document's
    digest places the truth. `templates` (split -> template) are for splits that are not questions:
    a continuation has `{prompt}` alone."""

    split_templates = templates or {}
    shared: dict[str, Any] = {"tokenizer": tokenizer, "max_tokens": max_tokens}
    return [
        _probe(
            d,
            split,
            partial(encode_pair, d.doc_id, **shared, template=split_templates.get(split, template)),
            true_letters or {},
        )
        for split, documents in probes.items()
        for d in documents
    ]


def _probe(
    d: Document, split: str, encoded: Callable[[str, str], Encoded], true_letters: Mapping[str, int]
) -> Probe:
    """`encoded` makes one sequence of a prompt and an answer."""
    return Probe(
        d.doc_id,
        split,
        encoded(d.prompt, d.answer),
        (
            tuple(encoded(d.prompt, option) for option in (d.paraphrase or d.answer, *d.wrong))
            if d.wrong
            else ()
        ),
        encoded(d.prompt_paraphrase, d.answer) if d.prompt and d.prompt_paraphrase else None,
        d,
        true_letters.get(d.doc_id, true_option_index(d.doc_id, 1 + len(d.wrong))),
    )


def evaluate_probes(
    model: PreTrainedModel,
    probes: Sequence[Probe],
    metrics: Mapping[str, Metric] = CHEAP,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    base: Reference | None = None,
    writing: GenerationSettings = GenerationSettings(),  # noqa: B008 - frozen
    options: Mapping[str, Mapping[str, float]] | None = None,
) -> list[dict[str, object]]:
    """Rows doc_id, split, metric, value: every metric of every probe; value None where the probe
    does not allow it.

    The default metrics come from one forward pass. Others may need the `tokenizer` (texts,
    letters), outputs of the `base` model on the answers, or gradients; `options` are keyword
    arguments by metric. Raises UserError for what is missing.
    """
    task = EvaluationTask(
        model=model, probes=probes, tokenizer=tokenizer, base=base, writing=writing
    )
    gathered = gather_inputs(task, sources_of(metrics.values()))
    sources = {
        name: (row.function, row.inputs, (options or {}).get(name, {}))
        for name, row in metrics.items()
    }
    return [
        {
            "doc_id": probe.doc_id,
            "split": probe.split,
            "metric": name,
            "value": _value(*parts, inputs),
        }
        for probe, inputs in zip(probes, gathered, strict=True)
        for name, parts in sources.items()
    ]


def chosen_metrics(names: str) -> dict[str, Metric]:
    """`cheap`, `all` or names separated by commas (`cheap` may be one) -> rows of the table. Raises
    UserError for a name that it does not have.
    """
    if names == "all":
        return dict(METRICS)
    chosen: dict[str, Metric] = {}
    for name in (name.strip() for name in names.split(",")):
        if name not in METRICS and name != "cheap":
            raise unknown_name("metric", name, METRICS)
        chosen |= CHEAP if name == "cheap" else {name: METRICS[name]}
    return chosen


def mean_probability(
    model: PreTrainedModel,
    probes: Sequence[Probe],
) -> float:
    """Mean answer probability of the probes: the cheap metric that watches
    utility during training.
    """
    scored = score(model, [p.answer for p in probes])
    return float(torch.stack([torch.exp(-s.token_nll.mean()) for s in scored]).mean())


def _value(
    function: Callable[..., float | None],
    names: Sequence[str],
    options: Mapping[str, float],
    inputs: MetricInputs,
) -> float | None:
    return (
        function(**{n: inputs[n] for n in names}, **options)
        if all(n in inputs for n in names)
        else None
    )
