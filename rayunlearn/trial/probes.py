"""Probes of a trial, encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rayunlearn import data as data_code
from rayunlearn import metrics as metric_code
from rayunlearn import models as model_code
from rayunlearn.config import probe_limits
from rayunlearn.data.arithmetic import arithmetic_probes
from rayunlearn.data.documents import Document
from rayunlearn.errors import unknown_name
from rayunlearn.metrics.evaluate import chosen_metrics, encode_probes
from rayunlearn.metrics.forward_passes import FEW_SHOT_SOURCES, Probe
from rayunlearn.metrics.table import sources_of
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.model_state import cached_in_worker

# the code that decides what a model's utility is
UTILITY_CODE = (metric_code, model_code, data_code)


def limit_probes(
    splits: Mapping[str, Sequence[Document]], limits: str
) -> dict[str, Sequence[Document]]:
    """Every split with as many documents as `measure.limit_probes` allows, in their order; those
    with the smallest `doc_id` stay, which is as good as a draw and does not depend on the order of
    a file. Raises UserError for a set that is not there.
    """
    by_name = probe_limits(limits)
    for name in by_name:
        if name and name not in splits:
            raise unknown_name("set in measure.limit_probes", name, splits)
    chosen: dict[str, Sequence[Document]] = {}
    for split, documents in splits.items():
        limit = by_name.get(split, by_name.get("", len(documents)))
        ids = set(sorted(d.doc_id for d in documents)[:limit])
        chosen[split] = [d for d in documents if d.doc_id in ids]
    return chosen


def encoded_probes(context: TrialContext) -> list[Probe]:
    """Every probe of the corpus, encoded once per worker. Where it has a holdout, the forget
    documents themselves are its `members`.

    `data.arithmetic` puts sums beside them.
    """
    corpus, data = context.corpus, context.trial.data
    splits: dict[str, Sequence[Document]] = (
        {"members": corpus.forget} if "holdout" in corpus.probes else {}
    )
    splits |= corpus.probes
    splits |= {"arithmetic": arithmetic_probes(data.arithmetic)} if data.arithmetic else {}
    splits = limit_probes(splits, context.trial.measure.limit_probes)
    measure = context.trial.measure
    sources = sources_of(chosen_metrics(measure.metrics).values())
    n_solved = measure.shots if sources & FEW_SHOT_SOURCES else 0
    probing = (data.arithmetic, n_solved, measure.limit_probes)
    key = ("probes", corpus.digest, data.template, data.max_tokens, *probing)

    def make() -> list[Probe]:
        return encode_probes(
            splits,
            context.tokenizer,
            data.template,
            data.max_tokens,
            corpus.true_letters,
            corpus.templates,
            n_solved,
        )

    probes: list[Probe] = cached_in_worker(context.state, key, make)
    return probes
