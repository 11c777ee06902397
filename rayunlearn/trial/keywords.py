"""Keywords of the forget documents of a trial, and the text variant that it trains on."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from rayunlearn import data as data_code
from rayunlearn import keywords as keyword_code
from rayunlearn import models as model_code
from rayunlearn.config import SUBSTITUTES, Trial
from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import ENCODING_VERSION, Encoded, encode_documents, encode_pair
from rayunlearn.errors import require
from rayunlearn.keywords.ablation import keyword_positions, text_variant, variant_positions
from rayunlearn.keywords.extract import (
    INPUTS_WITH_GOLD,
    INPUTS_WITH_MODEL,
    KeywordInputs,
    ModelWithTokenizer,
    extract,
    weight_keywords,
)
from rayunlearn.keywords.phrases import Keyword
from rayunlearn.keywords.rows import keyword_rows, keywords_from
from rayunlearn.keywords.table import EXTRACTORS
from rayunlearn.keywords.words import words_of
from rayunlearn.models.chat import load_chat
from rayunlearn.models.load import load_model
from rayunlearn.ranges import required_inputs
from rayunlearn.registry import arguments_of
from rayunlearn.selectors import gradients as gradients_module
from rayunlearn.selectors.redundancy import covered_weight
from rayunlearn.storage.artifact_cache import TABLE, cached_file, file_of
from rayunlearn.storage.code_identity import code_digest, library_versions
from rayunlearn.storage.parquet import frame_of, write_table
from rayunlearn.train.device import accelerator
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.encodings import training_sequences
from rayunlearn.trial.identity import cached_model_digest
from rayunlearn.trial.model_state import cached
from rayunlearn.trial.substitutes import substitute_documents
from rayunlearn.trial.workspace import Workspace


def forget_keywords(context: TrialContext) -> list[list[Keyword]]:
    """Keywords of every forget document by `select.extractor`, made once per corpus (and model) and
    kept on disk.
    """
    select = context.trial.select
    ids = [d.doc_id for d in context.corpus.forget]
    key = keyword_settings(context.trial, context.workspace) | {"corpus": context.corpus.digest}
    if set(required_inputs(EXTRACTORS[select.extractor].function)) & set(INPUTS_WITH_MODEL):
        key |= {"weights": context.state.checksum, "place": context.model.device.type}

    def read_or_make(folder: Path, key: Mapping[str, object]) -> list[list[Keyword]]:
        make = partial(_keyword_table, context, file_of(folder, key, TABLE))
        return keywords_from(cached_file(folder, key, make, TABLE), ids)

    return cached(context.state, context.cache / "keywords", key, read_or_make)


def _keyword_table(context: TrialContext, path: Path) -> pl.DataFrame:
    """Rows of the table keywords; what the extractor rejects is written beside `path`."""
    trial, documents = context.trial, context.corpus.forget
    name, judge_model = trial.select.extractor, trial.select.judge_model
    arguments = arguments_of(trial, EXTRACTORS[name].function)
    base = ModelWithTokenizer(
        context.model, context.tokenizer, trial.data.template, trial.data.max_tokens
    )
    inputs = KeywordInputs(
        documents,
        context.corpus.retain,
        arguments=arguments,
        base=lambda: base,
        gold=partial(_load_gold, context) if context.workspace.gold else None,
        chat=partial(load_chat, judge_model, str(accelerator().device)) if judge_model else None,
    )
    keywords = extract(name, inputs, arguments)
    if inputs.rejected:
        write_table(
            path.with_suffix(".quarantine.parquet"),
            "quarantine",
            [vars(r) for r in inputs.rejected],
        )
    ids = [d.doc_id for d in documents]
    return frame_of("keywords", keyword_rows(context.corpus.digest, name, ids, keywords))


def _load_gold(context: TrialContext) -> ModelWithTokenizer:
    model, tokenizer = load_model(context.workspace.gold, device=str(context.model.device))
    data = context.trial.data
    return ModelWithTokenizer(model, tokenizer, data.template, data.max_tokens)


def keyword_settings(trial: Trial, workspace: Workspace) -> dict[str, Any]:
    """What decides the keywords of a corpus: settings, the content of the models that are asked,
    and the code.
    """
    name = trial.select.extractor
    required, judge = {*required_inputs(EXTRACTORS[name].function)}, trial.select.judge_model
    return {
        "extractor": name,
        "arguments": arguments_of(trial, EXTRACTORS[name].function),
        "judge": cached_model_digest(judge) if judge and "judged" in required else "",
        "text": [trial.data.template, trial.data.max_tokens, ENCODING_VERSION],
        "model": workspace.base_digest if required & {*INPUTS_WITH_MODEL} else "",
        "gold": cached_model_digest(workspace.gold)
        if required & {*INPUTS_WITH_GOLD} and workspace.gold
        else "",
        "code": code_digest(*EXTRACTING),
        **(library_versions() if required & {*INPUTS_WITH_MODEL, "judged"} else {}),
    }


def document_texts(context: TrialContext, coreset: Sequence[int]) -> dict[int, str]:
    """The answers that unlearning sees of the kept documents, by position, as `select.text` says.

    A document of which the arm leaves no word is left out. Raises UserError if none is left.
    """
    documents, settings = context.corpus.forget, context.trial.select
    if settings.text == "original":
        return {p: documents[p].answer for p in coreset}
    keywords = forget_keywords(context)
    texts: dict[int, str] = {}
    for p in coreset:
        words = words_of(documents[p].answer)
        chosen = keyword_positions(words, keywords[p], settings.keyword_fraction)
        positions = variant_positions(
            settings.text,
            len(words),
            chosen,
            random.Random(f"{settings.seed} {documents[p].doc_id}"),
        )
        if positions:
            texts[p] = text_variant(documents[p].answer, words, positions)
    require(
        bool(texts) or not coreset,
        "select.text must leave a word of at least one document",
        settings.text,
    )
    return texts


def coreset_sequences(
    context: TrialContext, coreset: Sequence[int]
) -> tuple[list[int], list[Encoded], float]:
    """What unlearning trains on: positions of the kept documents that have words left, their
    sequences, and the share of the kept documents' label tokens that is left. A sequence carries
    the doc_id of the whole document."""
    forget, _ = training_sequences(context)
    whole = [forget[p] for p in coreset]
    if context.trial.select.text == "original":
        return list(coreset), whole, 1.0
    if context.trial.select.text in SUBSTITUTES:
        sequences = substitute_sequences(context, coreset)
        return list(coreset), sequences, _label_share(sequences, whole)
    data, documents = context.trial.data, context.corpus.forget
    texts = document_texts(context, coreset)
    sequences = [
        encode_pair(
            documents[p].doc_id,
            documents[p].prompt,
            t.lstrip() if documents[p].prompt else t,
            context.tokenizer,
            data.template,
            data.max_tokens,
        )
        for p, t in texts.items()
    ]
    return list(texts), sequences, _label_share(sequences, whole)


def coreset_documents(context: TrialContext, coreset: Sequence[int]) -> list[Document]:
    """The documents that unlearning trains on: those at `coreset`, whole whatever words are left of
    them, or what stands in for them.
    """
    if context.trial.select.text in SUBSTITUTES:
        return substitute_documents(context, coreset)
    return [context.corpus.forget[p] for p in coreset]


def substitute_sequences(context: TrialContext, coreset: Sequence[int]) -> list[Encoded]:
    """What stands in for the documents at `coreset`, as the model reads it."""
    data = context.trial.data
    documents = substitute_documents(context, coreset)
    return encode_documents(documents, context.tokenizer, data.template, data.max_tokens)


def _label_share(sequences: Sequence[Encoded], whole: Sequence[Encoded]) -> float:
    before, after = (sum(len(s.ids) - s.start for s in part) for part in (whole, sequences))
    return after / max(1, before)


def keyword_coverage_of(context: TrialContext, coreset: Sequence[int]) -> float | None:
    """Share of the forget set's keyword weight that kept documents name; None where no document has
    a keyword.
    """
    return covered_weight([weight_keywords(k) for k in forget_keywords(context)], coreset)


# the code that decides keywords
EXTRACTING = (keyword_code, data_code, model_code, gradients_module, sys.modules[__name__])
