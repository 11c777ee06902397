"""Any model on a benchmark: rows of `examples` and of `evals`, as a trial's stage has them. No trial needed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import polars as pl
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayunlearn.config import Data
from rayunlearn.data.documents import Corpus
from rayunlearn.metrics.corpus import corpus_rows
from rayunlearn.metrics.document import CHEAP, Metric
from rayunlearn.metrics.inputs import Writing
from rayunlearn.metrics.measure import encode_probes, measure
from rayunlearn.models.reference import Reference
from rayunlearn.results.analysis import summarise

Rows = list[dict[str, Any]]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    *,
    metrics: Mapping[str, Metric] = CHEAP,
    data: Data = Data(),  # noqa: B008 - frozen
    writing: Writing = Writing(),  # noqa: B008 - frozen
    base: Reference | None = None,
    gold: pl.DataFrame | None = None,
) -> tuple[Rows, Rows]:
    """(examples: doc_id, split, metric, value; evals: split, metric, value, n, stderr) of a model on a benchmark's probes.

    `data` gives template and max_tokens; `gold` are another model's examples, for forget quality and privacy leakage.
    Means of documents and metrics of the whole corpus stand together in the evals; those of the corpus have no stderr.
    """
    probes = encode_probes(corpus.probes, tokenizer, data.template, data.max_tokens, corpus.true_letters, corpus.templates)
    shots = {**corpus.shots, **writing.shots}
    pad_id = int(tokenizer.pad_token_id or 0)
    examples = measure(model, probes, pad_id, metrics, tokenizer=tokenizer, base=base, writing=replace(writing, shots=shots))
    frame = pl.DataFrame(examples, infer_schema_length=None, schema_overrides={"value": pl.Float64})
    means = summarise(frame).to_dicts()
    return examples, [*means, *({"stderr": None, **row} for row in corpus_rows(frame, gold))]
