"""Which part of the forget set a trial unlearns, and in which words: selection, keywords and text
arms. No Ray in here.
"""

import random
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import polars as pl
import torch
from filelock import FileLock
from torch import Tensor

from rayunlearn.config import Trial, digest, flatten
from rayunlearn.data.documents import Document
from rayunlearn.data.encode import Encoded, encode, encode_pair
from rayunlearn.errors import require
from rayunlearn.families import arguments_of
from rayunlearn.keywords.arms import arm_positions, keyword_positions, rewritten
from rayunlearn.keywords.corpus import Known, Lender, extract, weighted
from rayunlearn.keywords.extractors import EXTRACTORS
from rayunlearn.keywords.judge import Chat, chat_with
from rayunlearn.keywords.phrases import Keyword
from rayunlearn.keywords.words import words_of
from rayunlearn.methods.view import needs
from rayunlearn.models.cache import packed, tensors_once, unpacked
from rayunlearn.models.forward import token_nll
from rayunlearn.models.load import load_model
from rayunlearn.results.mirror import fetch
from rayunlearn.results.store import write_table
from rayunlearn.scores.forward import Passed, passes, zlib_ratio
from rayunlearn.scores.gradients import cosines_with
from rayunlearn.scores.redundancy import (
    covered_weight,
    effective_rank,
    expected_coverage,
    near_duplicate_share,
    nearest_similarity,
)
from rayunlearn.scores.sketch import head_gradients
from rayunlearn.selectors.selectors import SELECTORS, keep
from rayunlearn.worker import Loaded, remembered
from rayunlearn.workspace import Workspace

# per cent of the documents at which the keyword coverage curve is kept
CURVE = (1, 5, 10, 25)
WITH_MODEL = (
    "phrase_states",
    "page_state",
    "word_gap",
    "corpus_gap",
    "word_gradient_gap",
    "corpus_gradient_gap",
)


def sequences_of(
    trial: Trial, workspace: Workspace, state: Loaded
) -> tuple[list[Encoded], list[Encoded]]:
    """Forget and retain documents as the model reads them, whatever `select.text` says; shared by a
    worker's trials.
    """
    data, corpus = trial.data, workspace.corpus
    key = ("train", corpus.digest, data.template, data.max_tokens)

    def make() -> tuple[list[Encoded], list[Encoded]]:
        forget, retain = (
            encoded_once(trial, workspace, state, role, side)
            for role, side in (("forget", corpus.forget), ("retain", corpus.retain))
        )
        return forget, retain

    pair: tuple[list[Encoded], list[Encoded]] = remembered(state, key, make)
    return pair


def encoded_once(
    trial: Trial, workspace: Workspace, state: Loaded, role: str, documents: Sequence[Document]
) -> list[Encoded]:
    """Documents of the corpus as token ids, from the disk cache once one process has encoded them."""
    data = trial.data
    key = {
        "corpus": workspace.corpus.digest,
        "role": role,
        "tokenizer": tokenizer_digest(state),
        "template": data.template,
        "max": data.max_tokens,
    }
    make = partial(encode, documents, state.tokenizer, data.template, data.max_tokens)
    return unpacked(
        tensors_once(workspace.cache / "encodings", key, lambda: packed(make())),
        [d.doc_id for d in documents],
    )


def tokenizer_digest(state: Loaded) -> str:
    """What identifies how text becomes ids: the whole of a fast tokenizer, its special tokens and
    its chat template.
    """
    tokenizer = state.tokenizer
    whole = (
        tokenizer.backend_tokenizer.to_str()
        if tokenizer.is_fast
        else [type(tokenizer).__name__, tokenizer.get_vocab()]
    )
    specials = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template]
    found: str = remembered(state, ("tokenizer",), lambda: digest([whole, specials]))
    return found


def pick(
    trial: Trial,
    workspace: Workspace,
    state: Loaded,
    norms_along: Callable[[Sequence[int], int], Tensor],
) -> tuple[list[int], Tensor]:
    """Positions in corpus.forget of the coreset, best first, and the score of every forget
    document.

    `state` must hold the base weights. Documents are scored in the order of their doc_id. With
    `select.stratified` the topics of the documents share the coreset out. `norms_along(order,
    epochs)`: gradient norms on an unlearning run.
    """
    forget = workspace.corpus.forget
    order = sorted(range(len(forget)), key=lambda p: forget[p].doc_id)
    ordered = _scores(trial, workspace, state, order, norms_along)
    topics = [forget[p].topic for p in order] if trial.select.stratified else []
    kept = [order[p] for p in keep(ordered, trial.select.ratio, topics)]
    scores = torch.empty(len(order))
    scores[order] = ordered
    return kept, scores


class Given:
    """What selectors may ask for, by the names of their parameters; made when asked for, in the
    order of the documents.
    """

    def __init__(
        self,
        trial: Trial,
        workspace: Workspace,
        state: Loaded,
        order: Sequence[int],
        norms_along: Callable[[Sequence[int], int], Tensor],
    ) -> None:
        self._trial, self._workspace, self._state, self._order, self._norms_along = (
            trial,
            workspace,
            state,
            order,
            norms_along,
        )
        forget, self._retain = sequences_of(trial, workspace, state)
        self._forget = [forget[p] for p in order]
        self.n_documents, self.seed = len(order), trial.select.seed

    @cached_property
    def _passed(self) -> list[Passed]:
        return passes(self._state.model, self._forget)

    @cached_property
    def token_nll(self) -> list[Tensor]:
        return [p.token_nll for p in self._passed]

    @cached_property
    def token_surprise(self) -> list[Tensor]:
        return [p.surprise for p in self._passed]

    @cached_property
    def nll_per_byte(self) -> Tensor:
        documents = self._workspace.corpus.forget
        return torch.tensor(
            [
                zlib_ratio(p, documents[at].answer)
                for p, at in zip(self._passed, self._order, strict=True)
            ]
        )

    @cached_property
    def token_error(self) -> list[Tensor]:
        return [p.token_error for p in self._passed]

    @cached_property
    def embeddings(self) -> Tensor:
        return torch.stack([p.states["penultimate.all"] for p in self._passed])

    @cached_property
    def gradients(self) -> Tensor:
        return head_gradients(self._state.model, self._forget)

    @cached_property
    def retain_alignment(self) -> Tensor:
        return cosines_with(self._state.model, self._forget, self._retain, token_nll)

    @cached_property
    def document_keywords(self) -> list[dict[str, float]]:
        found = forget_keywords(self._trial, self._workspace, self._state)
        return [weighted(found[p]) for p in self._order]

    def norms_along(self, epochs: int) -> Tensor:
        return self._norms_along(self._order, epochs)


def _scores(
    trial: Trial,
    workspace: Workspace,
    state: Loaded,
    order: Sequence[int],
    norms_along: Callable[[Sequence[int], int], Tensor],
) -> Tensor:
    """Scores in `order`; those that take a model or a pass over the corpus are kept on disk and
    shared by all trials.
    """
    function = SELECTORS[trial.select.name].function
    arguments, names = arguments_of(trial, function), needs(function)
    given = Given(trial, workspace, state, order, norms_along)

    def make() -> Tensor:
        scores: Tensor = function(**{n: getattr(given, n) for n in names}, **arguments)
        return scores

    if set(names) <= {"n_documents", "seed"}:
        return make()
    path = (
        workspace.cache
        / "scores"
        / f"{digest([workspace.corpus.digest, workspace.base_digest, trial.select.name, _decisive(trial, names), arguments])}.parquet"
    )
    ids = [workspace.corpus.forget[p].doc_id for p in order]
    fixed = {
        "corpus_digest": workspace.corpus.digest,
        "model_digest": workspace.base_digest,
        "scorer": trial.select.name,
    }
    _once(
        path,
        "scores",
        lambda: [
            fixed | {"doc_id": i, "value": float(v)} for i, v in zip(ids, make(), strict=True)
        ],
    )
    values = dict(pl.read_parquet(path).select("doc_id", "value").iter_rows())
    return torch.tensor([values[i] for i in ids])


def _decisive(trial: Trial, names: Sequence[str]) -> dict[str, Any]:
    """Settings beside the selector's own that change its scores."""
    settings: dict[str, Any] = {
        "template": trial.data.template,
        "max_tokens": trial.data.max_tokens,
    }
    if "seed" in names:
        settings["seed"] = trial.select.seed
    if "document_keywords" in names:
        settings["keywords"] = _keyword_settings(trial)
    if "norms_along" in names:
        mine = tuple(
            f"{name}." for name in ("data", "model", "select", "stop", *SELECTORS, *EXTRACTORS)
        )
        settings["run"] = {
            name: value for name, value in flatten(trial).items() if not name.startswith(mine)
        }
    return settings


def forget_keywords(trial: Trial, workspace: Workspace, state: Loaded) -> list[list[Keyword]]:
    """Keywords of every forget document by `select.extractor`, made once per corpus (and model) and
    kept on disk.
    """
    key = (
        "keywords",
        workspace.corpus.digest,
        workspace.base_digest,
        repr(_keyword_settings(trial)),
    )
    found: list[list[Keyword]] = remembered(
        state, key, lambda: _forget_keywords(trial, workspace, state)
    )
    return found


def _forget_keywords(trial: Trial, workspace: Workspace, state: Loaded) -> list[list[Keyword]]:
    name, documents = trial.select.extractor, workspace.corpus.forget
    arguments = arguments_of(trial, EXTRACTORS[name].function)
    base = Lender(state.model, state.tokenizer, trial.data.template, trial.data.max_tokens)
    known = Known(
        documents,
        workspace.corpus.retain,
        arguments=arguments,
        base=lambda: base,
        gold=(lambda: _gold(trial, workspace, state)) if workspace.gold else None,
        chat=(lambda: _chat(trial.select.judge_model)) if trial.select.judge_model else None,
    )
    model = workspace.base_digest if set(needs(EXTRACTORS[name].function)) & set(WITH_MODEL) else ""
    path = (
        workspace.cache
        / "keywords"
        / f"{digest([workspace.corpus.digest, model, _keyword_settings(trial)])}.parquet"
    )
    ids = [d.doc_id for d in documents]
    _once(
        path,
        "keywords",
        lambda: keyword_rows(workspace.corpus.digest, name, ids, extract(name, known, arguments)),
    )
    if known.rejected:
        write_table(
            path.with_suffix(".quarantine.parquet"), "quarantine", [vars(r) for r in known.rejected]
        )
    return keywords_from(pl.read_parquet(path), ids)


def _gold(trial: Trial, workspace: Workspace, state: Loaded) -> Lender:
    model, tokenizer = load_model(workspace.gold, device=str(state.model.device))
    return Lender(model, tokenizer, trial.data.template, trial.data.max_tokens)


def _chat(name: str) -> Chat:
    model, tokenizer = load_model(name, device="cuda" if torch.cuda.is_available() else "cpu")
    return chat_with(model, tokenizer)


def _keyword_settings(trial: Trial) -> dict[str, Any]:
    name = trial.select.extractor
    arguments = arguments_of(trial, EXTRACTORS[name].function)
    return {
        "extractor": name,
        "arguments": arguments,
        "judge": trial.select.judge_model,
        "text": [trial.data.template, trial.data.max_tokens],
    }


def keyword_rows(
    corpus_digest: str, extractor: str, ids: Sequence[str], found: Sequence[Sequence[Keyword]]
) -> list[dict[str, Any]]:
    """Rows of the `keywords` table: one per place a keyword stands at, documents in order and
    keywords best first.
    """
    fixed = {"corpus_digest": corpus_digest, "extractor": extractor}
    return [
        fixed | {"doc_id": doc_id, "keyword": k.text, "score": k.score, "start": start, "end": end}
        for doc_id, keywords in zip(ids, found, strict=True)
        for k in keywords
        for start, end in k.spans
    ]


def keywords_from(table: pl.DataFrame, ids: Sequence[str]) -> list[list[Keyword]]:
    """Rows of the `keywords` table as keywords of each document."""
    spans: dict[str, dict[tuple[str, float], list[tuple[int, int]]]] = {
        doc_id: {} for doc_id in ids
    }
    for doc_id, text, score, start, end in table.select(
        "doc_id", "keyword", "score", "start", "end"
    ).iter_rows():
        # copies of a document share an id
        if (start, end) not in (places := spans[doc_id].setdefault((text, score), [])):
            places.append((start, end))
    return [
        [Keyword(text, score, tuple(places)) for (text, score), places in spans[doc_id].items()]
        for doc_id in ids
    ]


def texts_of(
    trial: Trial, workspace: Workspace, state: Loaded, kept: Sequence[int]
) -> dict[int, str]:
    """The answers that unlearning sees of the kept documents, by position, as `select.text` says.

    A document of which the arm leaves no word is left out. Raises UserError if none is left.
    """
    documents, settings = workspace.corpus.forget, trial.select
    if settings.text == "original":
        return {p: documents[p].answer for p in kept}
    found = forget_keywords(trial, workspace, state)
    texts: dict[int, str] = {}
    for p in kept:
        words = words_of(documents[p].answer)
        chosen = keyword_positions(words, found[p], settings.keyword_fraction)
        left = arm_positions(
            settings.text,
            len(words),
            chosen,
            random.Random(f"{settings.seed} {documents[p].doc_id}"),
        )
        if left:
            texts[p] = rewritten(documents[p].answer, words, left)
    require(
        bool(texts) or not kept,
        "select.text must leave a word of at least one document",
        settings.text,
    )
    return texts


def written(
    trial: Trial, workspace: Workspace, state: Loaded, kept: Sequence[int]
) -> tuple[list[int], list[Encoded], float]:
    """What unlearning trains on: positions of the kept documents that have words left, their
    sequences, and the share of the kept documents' label tokens that is left. A sequence carries
    the doc_id of the whole document."""
    forget, _ = sequences_of(trial, workspace, state)
    if trial.select.text == "original":
        return list(kept), [forget[p] for p in kept], 1.0
    data, documents = trial.data, workspace.corpus.forget
    texts = texts_of(trial, workspace, state, kept)
    sequences = [
        encode_pair(
            documents[p].doc_id,
            documents[p].prompt,
            t.lstrip() if documents[p].prompt else t,
            state.tokenizer,
            data.template,
            data.max_tokens,
        )
        for p, t in texts.items()
    ]
    before, after = (
        sum(len(s.ids) - s.start for s in part) for part in ([forget[p] for p in kept], sequences)
    )
    return list(texts), sequences, after / max(1, before)


def keyword_coverage_of(
    trial: Trial, workspace: Workspace, state: Loaded, kept: Sequence[int]
) -> float | None:
    """Share of the forget set's keyword weight that kept documents name; None where no document has
    a keyword.
    """
    return covered_weight([weighted(k) for k in forget_keywords(trial, workspace, state)], kept)


def redundancy(trial: Trial, workspace: Workspace, state: Loaded) -> dict[str, float | None]:
    """The redundancy columns of the base trial: near-duplicates, effective rank, nearest
    similarity, keyword coverage curve.
    """
    forget, _ = sequences_of(trial, workspace, state)
    states = torch.stack([p.states["penultimate.all"] for p in passes(state.model, forget)])
    keywords = [weighted(k) for k in forget_keywords(trial, workspace, state)]
    curve = {
        f"keyword_curve_{per_cent:02d}": expected_coverage(
            keywords, max(1, round(per_cent / 100 * len(forget)))
        )
        for per_cent in CURVE
    }
    return {
        "near_duplicate_share": near_duplicate_share([d.answer for d in workspace.corpus.forget]),
        "effective_rank": effective_rank(states),
        "nearest_similarity": nearest_similarity(states),
        **curve,
    }


def _once(path: Path, table: str, make: Callable[[], list[dict[str, Any]]]) -> None:
    """Write a table of the cache if it is not there yet; one process makes it, the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not fetch(path):
            write_table(path, table, make())
