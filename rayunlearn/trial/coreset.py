"""Which documents a trial trains on: the coreset of the forget set, and the part of the retain set.
No Ray in here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import polars as pl

from rayunlearn import methods as method_code
from rayunlearn import selectors as selector_code
from rayunlearn import train as train_code
from rayunlearn.config import Trial, flatten
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.data.tokenize import ENCODING_VERSION, Encoded
from rayunlearn.keywords.extract import weight_keywords
from rayunlearn.keywords.table import EXTRACTORS
from rayunlearn.keywords.words import words_of
from rayunlearn.lazy import torch
from rayunlearn.models.document_features import DocumentFeatures, document_features, zlib_ratio
from rayunlearn.models.forward import token_nll
from rayunlearn.ranges import required_inputs
from rayunlearn.registry import arguments_of
from rayunlearn.selectors.cost import n_places
from rayunlearn.selectors.gradients import cosines_with
from rayunlearn.selectors.random_projection import head_gradients
from rayunlearn.selectors.retain import RETAIN_SELECTORS
from rayunlearn.selectors.table import SELECTORS, Selector, top_k_documents
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
    `norms_along(order, epochs)`: gradient norms on an unlearning run.
    """
    forget, select = context.corpus.forget, context.trial.select
    order = by_id(forget)
    topics = [forget[p].topic for p in order] if select.stratified else []
    n_ranked = n_places(len(order), select.ratio)
    scores_of = partial(_scores, context, SELECTORS[select.name], order, norms_along)
    ordered = scores_of(n_ranked)
    chosen = top_k_documents(ordered, select.ratio, topics)
    # a greedy selector gives those it did not rank the score -n_ranked: a topic's share is not full
    while n_ranked < len(order) and float(ordered[chosen].min()) == -n_ranked:
        n_ranked = min(2 * n_ranked, len(order))
        ordered = scores_of(n_ranked)
        chosen = top_k_documents(ordered, select.ratio, topics)
    return _in_corpus_order(order, chosen, ordered)


def select_retain(context: TrialContext) -> tuple[list[int], Tensor]:
    """Positions in corpus.retain of the documents that train, best first, and the score of every
    retain document: as `select_coreset`, by `retain.*` and without topics.
    """
    documents, retain = context.corpus.retain, context.trial.retain
    order = by_id(documents)
    n_kept, _ = retain.sizes(len(documents))
    row = RETAIN_SELECTORS[retain.name]
    n_ranked = n_places(len(order), retain.ratio)
    ordered = _scores(context, row, order, None, n_ranked)
    return _in_corpus_order(order, top_k_documents(ordered, 1.0)[:n_kept], ordered)


def by_id(documents: Sequence[Document]) -> list[int]:
    """Positions in the order of the doc_ids."""
    return sorted(range(len(documents)), key=lambda p: documents[p].doc_id)


def _in_corpus_order(
    order: Sequence[int], chosen: Sequence[int], ordered: Tensor
) -> tuple[list[int], Tensor]:
    """Chosen positions and scores of documents in `order`, as those of the corpus."""
    scores = torch.empty(len(order))
    scores[list(order)] = ordered
    return [order[p] for p in chosen], scores


class SelectorInputs:
    """What selectors may ask for, by the names of their parameters, of the documents of one side in
    `order`; made when asked for.

    `side` is forget or retain, whose selectors have no unlearning run and `norms_along` None.
    """

    def __init__(
        self,
        context: TrialContext,
        order: Sequence[int],
        norms_along: Callable[[Sequence[int], int], Tensor] | None,
        n_ranked: int,
        side: str = "forget",
    ) -> None:
        self._context, self._order, self._norms_along = context, order, norms_along
        sequences, self._other = training_sequences(context)
        self._documents = context.corpus.forget
        self.seed = context.trial.select.seed
        if side == "retain":
            sequences, self._other = self._other, sequences
            self._documents = context.corpus.retain
            self.seed = context.trial.retain.seed
        self._sequences = [sequences[p] for p in order]
        self.doc_ids = [self._documents[p].doc_id for p in order]
        self.n_documents, self.n_ranked = len(order), n_ranked

    @cached_property
    def _features(self) -> list[DocumentFeatures]:
        return document_features(self._context.model, self._sequences)

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
        return torch.tensor(
            [
                zlib_ratio(p, self._documents[document].answer)
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
        return head_gradients(self._context.model, self._sequences)

    @cached_property
    def retain_alignment(self) -> Tensor:
        return cosines_with(self._context.model, self._sequences, self._other, token_nll)

    @cached_property
    def document_keywords(self) -> list[dict[str, float]]:
        keywords = forget_keywords(self._context)
        return [weight_keywords(keywords[p]) for p in self._order]

    def norms_along(self, epochs: int) -> Tensor:
        assert self._norms_along is not None
        return self._norms_along(self._order, epochs)


class RetainInputs(SelectorInputs):
    """What retain selectors may ask for, of the retain documents in `order`, and of the forget set
    beside them.
    """

    def __init__(self, context: TrialContext, order: Sequence[int], n_ranked: int) -> None:
        super().__init__(context, order, None, n_ranked, "retain")

    @cached_property
    def forget_embeddings(self) -> Tensor:
        return torch.stack(
            [p.state for p in document_features(self._context.model, self._in_id_order)]
        )

    @cached_property
    def forget_alignment(self) -> Tensor:
        return cosines_with(self._context.model, self._sequences, self._in_id_order, token_nll)

    @property
    def _in_id_order(self) -> list[Encoded]:
        """The other side, whatever the order of its file."""
        return sorted(self._other, key=lambda sequence: sequence.doc_id)

    @cached_property
    def forget_keywords(self) -> list[dict[str, float]]:
        trial = with_retain_extractor(self._context.trial)
        keywords = forget_keywords(replace(self._context, trial=trial))
        return [weight_keywords(keywords[p]) for p in by_id(self._context.corpus.forget)]

    @cached_property
    def document_words(self) -> list[set[str]]:
        texts = (self._documents[p] for p in self._order)
        return [{word.key for word in words_of(f"{d.prompt} {d.answer}")} for d in texts]


def with_retain_extractor(trial: Trial) -> Trial:
    """The trial with the forget set's keywords found as the retain selector has it."""
    return replace(trial, select=replace(trial.select, extractor=trial.retain.extractor))


def _scores(
    context: TrialContext,
    row: Selector,
    order: Sequence[int],
    norms_along: Callable[[Sequence[int], int], Tensor] | None,
    n_ranked: int,
) -> Tensor:
    """Scores in `order`, of the retain set where there is no `norms_along`; those that take a model
    or a pass over the corpus are kept on disk and shared by all trials.
    """
    corpus, side = context.corpus, "retain" if norms_along is None else "forget"
    function = row.function
    arguments, names = arguments_of(context.trial, function), required_inputs(function)
    inputs = _inputs(context, order, norms_along, n_ranked)

    def make() -> Tensor:
        scores: Tensor = function(**{n: getattr(inputs, n) for n in names}, **arguments)
        return scores

    if set(names) <= {"n_documents", "seed"}:
        return make()
    ids = inputs.doc_ids
    columns = {
        "corpus_digest": corpus.digest,
        "model_digest": context.workspace.base_digest,
        "scorer": function.__name__ if side == "forget" else f"retain.{function.__name__}",
    }
    key = columns | _score_key(context, names, n_ranked, side) | {"arguments": arguments}
    modules = [] if norms_along is None else [_module_of(norms_along)]
    key |= {"code": code_digest(*SCORING, *modules)} | plugin_code(context.trial)

    def rows() -> pl.DataFrame:
        scored = zip(ids, make(), strict=True)
        return frame_of("scores", [columns | {"doc_id": i, "value": float(v)} for i, v in scored])

    table = cached_file(context.cache / "scores", key, rows, TABLE)
    values = dict(table.select("doc_id", "value").iter_rows())
    return torch.tensor([values[i] for i in ids])


def _inputs(
    context: TrialContext,
    order: Sequence[int],
    norms_along: Callable[[Sequence[int], int], Tensor] | None,
    n_ranked: int,
) -> SelectorInputs:
    if norms_along is None:
        return RetainInputs(context, order, n_ranked)
    return SelectorInputs(context, order, norms_along, n_ranked)


def _score_key(
    context: TrialContext, names: Sequence[str], n_ranked: int, side: str
) -> dict[str, Any]:
    """What decides scores beside the selector, its arguments and the code; `names`: its inputs."""
    return {
        "weights": context.state.checksum,
        "settings": _decisive_settings(context, names, n_ranked, side),
        "place": context.model.device.type,
        **library_versions(),
    }


def _decisive_settings(
    context: TrialContext, names: Sequence[str], n_ranked: int, side: str
) -> dict[str, Any]:
    """Settings beside the selector's own that change its scores."""
    trial = context.trial
    settings: dict[str, Any] = {
        "template": trial.data.template,
        "max_tokens": trial.data.max_tokens,
        "encoding": ENCODING_VERSION,
    }
    if "seed" in names:
        settings["seed"] = trial.select.seed if side == "forget" else trial.retain.seed
    if "n_ranked" in names:
        settings["n_ranked"] = n_ranked
    if "document_keywords" in names:
        settings["keywords"] = keyword_settings(trial, context.workspace)
    if "forget_keywords" in names:
        settings["keywords"] = keyword_settings(with_retain_extractor(trial), context.workspace)
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
