"""Measure a model on probes: one scoring pass over answers and options, every metric from it, one row per document."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayunlearn.data.documents import Document
from rayunlearn.data.encode import Encoded, encode_pair
from rayunlearn.metrics.document import METRICS, Metric
from rayunlearn.models.forward import Scored, score


@dataclass(frozen=True)
class Probe:
    """One probe as token ids: the answer, and the options with the true one first (empty without wrong answers)."""

    doc_id: str
    split: str
    answer: Encoded
    options: tuple[Encoded, ...]


def encode_probes(probes: Mapping[str, Sequence[Document]], tokenizer: PreTrainedTokenizerBase, template: str, max_tokens: int) -> list[Probe]:
    """Encode every probe of every split. The true option is the paraphrase where there is one, so that a right
    answer is not preferred for its wording alone."""

    def encoded(document: Document, text: str) -> Encoded:
        return encode_pair(document.doc_id, document.prompt, text, tokenizer, template, max_tokens)

    return [
        Probe(d.doc_id, split, encoded(d, d.answer), tuple(encoded(d, o) for o in (d.paraphrase or d.answer, *d.wrong)) if d.wrong else ())
        for split, documents in probes.items()
        for d in documents
    ]


def measure(model: PreTrainedModel, probes: Sequence[Probe], pad_id: int, metrics: Mapping[str, Metric] = METRICS) -> list[dict[str, object]]:
    """Rows doc_id, split, metric, value: every metric of every probe; value None where the probe does not allow it."""
    sequences = [s for probe in probes for s in (probe.answer, *probe.options)]
    scored = iter(score(model, sequences, pad_id))
    rows: list[dict[str, object]] = []
    for probe in probes:
        answer = next(scored)
        options = [next(scored) for _ in probe.options]
        tensors = _tensors(answer, options)
        rows += [{"doc_id": probe.doc_id, "split": probe.split, "metric": name, "value": _value(row, tensors)} for name, row in metrics.items()]
    return rows


def mean_probability(model: PreTrainedModel, probes: Sequence[Probe], pad_id: int) -> float:
    """Mean answer probability of the probes: the cheap metric that watches utility during training."""
    scored = score(model, [p.answer for p in probes], pad_id)
    return float(torch.stack([torch.exp(-s.token_nll.mean()) for s in scored]).mean())


def _tensors(answer: Scored, options: Sequence[Scored]) -> dict[str, Tensor]:
    tensors = {"token_nll": answer.token_nll, "correct": answer.correct}
    return tensors | ({"option_nll": torch.stack([o.token_nll.mean() for o in options])} if options else {})


def _value(metric: Metric, tensors: Mapping[str, Tensor]) -> float | None:
    names = list(inspect.signature(metric.function).parameters)
    return metric.function(**{n: tensors[n] for n in names}) if all(n in tensors for n in names) else None
