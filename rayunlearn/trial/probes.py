"""Probes of a trial, encoded."""

from __future__ import annotations

from collections.abc import Sequence

from rayunlearn import data as data_code
from rayunlearn import metrics as metric_code
from rayunlearn import models as model_code
from rayunlearn.data.arithmetic import arithmetic_probes
from rayunlearn.data.documents import Document
from rayunlearn.metrics.evaluate import chosen_metrics, encode_probes
from rayunlearn.metrics.forward_passes import FEW_SHOT_SOURCES, Probe
from rayunlearn.metrics.table import sources_of
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.model_state import cached_in_worker

# the code that decides what a model's utility is
UTILITY_CODE = (metric_code, model_code, data_code)


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
    measure = context.trial.measure
    sources = sources_of(chosen_metrics(measure.metrics).values())
    n_solved = measure.shots if sources & FEW_SHOT_SOURCES else 0
    key = ("probes", corpus.digest, data.template, data.max_tokens, data.arithmetic, n_solved)

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
