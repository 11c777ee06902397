"""Probes of a trial, encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rayunlearn import data as data_code
from rayunlearn import metrics as metric_code
from rayunlearn import models as model_code
from rayunlearn.config import Measure, Trial, probe_limits
from rayunlearn.data.arithmetic import arithmetic_probes
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.errors import unknown_name
from rayunlearn.metrics.evaluate import chosen_metrics, encode_probes
from rayunlearn.metrics.forward_passes import FEW_SHOT_SOURCES, Probe
from rayunlearn.metrics.table import sources_of
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.model_state import cached_in_worker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    """`probes_of_trial`, once per worker."""
    trial, data = context.trial, context.trial.data
    probing = (data.arithmetic, _n_solved(trial.measure), trial.measure.limit_probes)
    key = ("probes", context.corpus.digest, data.template, data.max_tokens, *probing)

    def make() -> list[Probe]:
        return probes_of_trial(trial, context.corpus, context.tokenizer)

    probes: list[Probe] = cached_in_worker(context.state, key, make)
    return probes


def probes_of_trial(
    trial: Trial, corpus: Corpus, tokenizer: PreTrainedTokenizerBase
) -> list[Probe]:
    """Every probe of the corpus that a trial asks, encoded. Where it has a holdout, the forget
    documents themselves are its `members`.

    `data.arithmetic` puts sums beside them.
    """
    data = trial.data
    splits: dict[str, Sequence[Document]] = (
        {"members": corpus.forget} if "holdout" in corpus.probes else {}
    )
    splits |= corpus.probes
    splits |= {"arithmetic": arithmetic_probes(data.arithmetic)} if data.arithmetic else {}
    return encode_probes(
        limit_probes(splits, trial.measure.limit_probes),
        tokenizer,
        data.template,
        data.max_tokens,
        corpus.true_letters,
        corpus.templates,
        _n_solved(trial.measure),
    )


def _n_solved(measure: Measure) -> int:
    """How many solved questions stand before a probe, 0 where no metric reads such sequences."""
    sources = sources_of(chosen_metrics(measure.metrics).values())
    return measure.shots if sources & FEW_SHOT_SOURCES else 0
