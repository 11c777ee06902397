"""Which part of the forget set a trial unlearns, and in which words: selection, keywords and text
ablations. No Ray in here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

import polars as pl

from rayunlearn import methods as method_code
from rayunlearn import selectors as selector_code
from rayunlearn import train as train_code
from rayunlearn.config import flatten
from rayunlearn.data.documents import Corpus
from rayunlearn.data.tokenize import ENCODING_VERSION
from rayunlearn.keywords.extract import weight_keywords
from rayunlearn.keywords.table import EXTRACTORS
from rayunlearn.lazy import torch
from rayunlearn.models.document_features import DocumentFeatures, document_features, zlib_ratio
from rayunlearn.models.forward import token_nll
from rayunlearn.ranges import required_inputs
from rayunlearn.registry import arguments_of
from rayunlearn.selectors.cost import n_places
from rayunlearn.selectors.gradients import cosines_with
from rayunlearn.selectors.random_projection import head_gradients
from rayunlearn.selectors.table import SELECTORS, top_k_documents
from rayunlearn.storage.artifact_cache import TABLE, cached_file
from rayunlearn.storage.code_identity import code_digest, library_versions
from rayunlearn.storage.parquet import frame_of
from rayunlearn.trial import encodings as encodings_module
from rayunlearn.trial import references as references_module
from rayunlearn.trial.code import plugin_code
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.encodings import training_sequences
from rayunlearn.trial.keywords import (
    EXTRACTING,
    forget_keywords,
    keyword_settings,
)

if TYPE_CHECKING:
    from torch import Tensor


# the code that decides scores: a package stands for all its modules, and some selectors train
SCORING = (
    *EXTRACTING,
    method_code,
    train_code,
    selector_code,
    encodings_module,
    references_module,
    sys.modules[__name__],
)


def select_coreset(
    context: TrialContext,
    norms_along: Callable[[Sequence[int], int], Tensor],
) -> tuple[list[int], Tensor]:
    """Positions in corpus.forget of the coreset, best first, and the score of every forget
    document.

    The model must hold the base weights. Documents are scored in the order of their doc_id. With
    `select.stratified` the topics of the documents share the coreset out.
    `gradient_norms_along(order, epochs)`: gradient norms on an unlearning run.
    """
    forget, select = context.corpus.forget, context.trial.select
    order = sorted(range(len(forget)), key=lambda p: forget[p].doc_id)
    topics = [forget[p].topic for p in order] if select.stratified else []
    n_ranked = n_places(len(order), select.ratio)
    ordered = _scores(context, order, norms_along, n_ranked)
    chosen = top_k_documents(ordered, select.ratio, topics)
    # a greedy selector gives those it did not rank the score -n_ranked: a topic's share is not full
    while n_ranked < len(order) and float(ordered[chosen].min()) == -n_ranked:
        n_ranked = min(2 * n_ranked, len(order))
        ordered = _scores(context, order, norms_along, n_ranked)
        chosen = top_k_documents(ordered, select.ratio, topics)
    coreset = [order[p] for p in chosen]
    scores = torch.empty(len(order))
    scores[order] = ordered
    return coreset, scores


class SelectorInputs:
    """What selectors may ask for, by the names of their parameters; made when asked for, in the
    order of the documents.
    """

    def __init__(
        self,
        context: TrialContext,
        order: Sequence[int],
        norms_along: Callable[[Sequence[int], int], Tensor],
        n_ranked: int,
    ) -> None:
        self._context, self._order, self._norms_along = context, order, norms_along
        forget, self._retain = training_sequences(context)
        self._forget = [forget[p] for p in order]
        self.n_documents, self.seed = len(order), context.trial.select.seed
        self.n_ranked = n_ranked

    @cached_property
    def _features(self) -> list[DocumentFeatures]:
        return document_features(self._context.model, self._forget)

    @cached_property
    def token_nll(self) -> list[Tensor]:
        return [p.token_nll for p in self._features]

    @cached_property
    def answer_nll(self) -> list[Tensor]:
        return [p.without_end(p.token_nll) for p in self._features]

    @cached_property
    def answer_surprise(self) -> list[Tensor]:
        return [p.without_end(p.surprise) for p in self._features]

    @cached_property
    def nll_per_byte(self) -> Tensor:
        documents = self._context.corpus.forget
        return torch.tensor(
            [
                zlib_ratio(p, documents[document].answer)
                for p, document in zip(self._features, self._order, strict=True)
            ]
        )

    @cached_property
    def token_error(self) -> list[Tensor]:
        return [p.token_error for p in self._features]

    @cached_property
    def embeddings(self) -> Tensor:
        return torch.stack([p.state for p in self._features])

    @cached_property
    def gradients(self) -> Tensor:
        return head_gradients(self._context.model, self._forget)

    @cached_property
    def retain_alignment(self) -> Tensor:
        return cosines_with(self._context.model, self._forget, self._retain, token_nll)

    @cached_property
    def document_keywords(self) -> list[dict[str, float]]:
        keywords = forget_keywords(self._context)
        return [weight_keywords(keywords[p]) for p in self._order]

    def norms_along(self, epochs: int) -> Tensor:
        return self._norms_along(self._order, epochs)


def _scores(
    context: TrialContext,
    order: Sequence[int],
    norms_along: Callable[[Sequence[int], int], Tensor],
    n_ranked: int,
) -> Tensor:
    """Scores in `order`; those that take a model or a pass over the corpus are kept on disk and
    shared by all trials.
    """
    corpus, name = context.corpus, context.trial.select.name
    function = SELECTORS[name].function
    arguments, names = arguments_of(context.trial, function), required_inputs(function)
    inputs = SelectorInputs(context, order, norms_along, n_ranked)

    def make() -> Tensor:
        scores: Tensor = function(**{n: getattr(inputs, n) for n in names}, **arguments)
        return scores

    if set(names) <= {"n_documents", "seed"}:
        return make()
    ids = [corpus.forget[p].doc_id for p in order]
    columns = {
        "corpus_digest": corpus.digest,
        "model_digest": context.workspace.base_digest,
        "scorer": name,
    }
    key = columns | _score_key(context, names, n_ranked) | {"arguments": arguments}
    key |= {"code": code_digest(*SCORING, _module_of(norms_along))} | plugin_code(context.trial)

    def rows() -> pl.DataFrame:
        scored = zip(ids, make(), strict=True)
        return frame_of("scores", [columns | {"doc_id": i, "value": float(v)} for i, v in scored])

    table = cached_file(context.cache / "scores", key, rows, TABLE)
    values = dict(table.select("doc_id", "value").iter_rows())
    return torch.tensor([values[i] for i in ids])


def _score_key(context: TrialContext, names: Sequence[str], n_ranked: int) -> dict[str, Any]:
    """What decides scores beside the selector, its arguments and the code; `names`: its inputs."""
    return {
        "weights": context.state.checksum,
        "settings": _decisive_settings(context, names, n_ranked),
        "place": context.model.device.type,
        **library_versions(),
    }


def _decisive_settings(
    context: TrialContext, names: Sequence[str], n_ranked: int
) -> dict[str, Any]:
    """Settings beside the selector's own that change its scores."""
    trial = context.trial
    settings: dict[str, Any] = {
        "template": trial.data.template,
        "max_tokens": trial.data.max_tokens,
        "encoding": ENCODING_VERSION,
    }
    if "seed" in names:
        settings["seed"] = trial.select.seed
    if "n_ranked" in names:
        settings["n_ranked"] = n_ranked
    if "document_keywords" in names:
        settings["keywords"] = keyword_settings(trial, context.workspace)
    if "norms_along" in names:
        decisive = tuple(
            f"{name}." for name in ("data", "model", "select", "stop", *SELECTORS, *EXTRACTORS)
        )
        settings["run"] = {
            name: value for name, value in flatten(trial).items() if not name.startswith(decisive)
        }
    return settings


def _module_of(function: Callable[..., Any]) -> ModuleType:
    """Where a function is defined, a partial one being that of its function."""
    return sys.modules[getattr(function, "func", function).__module__]


def coverage(corpus: Corpus, coreset: Sequence[int]) -> float | None:
    """Share of the forget set's facts that at least one kept document states; None where no facts
    are known.
    """
    facts = {fact for d in corpus.forget for fact in d.facts}
    covered = {fact for p in coreset for fact in corpus.forget[p].facts}
    return len(covered) / len(facts) if facts else None
