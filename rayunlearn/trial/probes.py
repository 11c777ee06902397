"""Probes of a trial, encoded, and the retention that is watched while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rayunlearn import data as data_code
from rayunlearn import metrics as metric_code
from rayunlearn import models as model_code
from rayunlearn.data.arithmetic import arithmetic_probes
from rayunlearn.data.documents import Document
from rayunlearn.errors import require
from rayunlearn.metrics.evaluate import chosen_metrics, encode_probes, mean_probability
from rayunlearn.metrics.forward_passes import FEW_SHOT_SOURCES, Probe
from rayunlearn.metrics.table import sources_of
from rayunlearn.storage.artifact_cache import JSON, cached_file
from rayunlearn.storage.code_identity import code_digest
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.model_state import cached, cached_in_worker
from rayunlearn.trial.references import cache_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# the code that decides what a model's utility is
UTILITY_CODE = (metric_code, model_code, data_code)
# retain probes that watch utility during training: used for early stopping only, never reported
UTILITY_PROBES = 64


@dataclass(frozen=True)
class RetentionProbe:
    """The retain probes that are watched while a model trains, and the mean probability that they
    must keep; under it a run collapses, or (`stops_early`) ends with the last weights that held
    it."""

    probes: Sequence[Probe]
    floor: float
    stops_early: bool

    def utility(self, model: PreTrainedModel) -> float:
        """Their mean probability."""
        return mean_probability(model, self.probes)

    def watch(self, model: PreTrainedModel) -> Callable[[int], bool]:
        """Whether the model may train on."""
        return lambda _step: self.utility(model) >= self.floor


def retention_probe(context: TrialContext) -> RetentionProbe | None:
    """What watches a trial, None where nothing does. The model must hold the base weights."""
    probes, stop = _utility_probes(context), context.trial.stop
    require(
        bool(probes) or stop.retention_floor == 0,
        "stop.retention_floor needs probes of split retain; there are",
        len(probes),
    )
    share = stop.retention_floor or stop.utility_floor
    if share == 0 or not probes:
        return None
    return RetentionProbe(probes, share * base_utility(context, probes), stop.retention_floor > 0)


def _utility_probes(context: TrialContext) -> list[Probe]:
    return [p for p in encoded_probes(context) if p.split == "retain"][:UTILITY_PROBES]


def base_utility(context: TrialContext, probes: Sequence[Probe]) -> float:
    """Mean probability of the watched probes' answers before unlearning; evaluated once per model
    and corpus.
    """

    key = cache_key(context, [p.answer for p in probes], "float32") | {
        "what": "mean_probability",
        "code": code_digest(*UTILITY_CODE),
    }
    make = partial(
        cached_file, make=partial(mean_probability, context.model, probes), file_type=JSON
    )
    return cached(context.state, context.cache / "evaluations", key, make)


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
