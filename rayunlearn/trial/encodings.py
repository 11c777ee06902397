"""Encoded training sequences of a trial, made once per tokenizer and corpus."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rayunlearn.config import Trial, digest
from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import ENCODING_VERSION, Encoded, begin_ids, encode_documents
from rayunlearn.models.tensor_cache import pack_tensors, tensors_once, unpack_tensors
from rayunlearn.trial.model_state import ModelState, cached_in_worker
from rayunlearn.trial.workspace import Workspace


def training_sequences(
    trial: Trial, workspace: Workspace, state: ModelState
) -> tuple[list[Encoded], list[Encoded]]:
    """Forget and retain documents as the model reads them, whatever `select.text` says; shared by a
    worker's trials.
    """
    data, corpus = trial.data, workspace.corpus
    key = ("train", corpus.digest, data.template, data.max_tokens)

    def make() -> tuple[list[Encoded], list[Encoded]]:
        forget, retain = (
            cached_encoding(trial, workspace, state, role, side)
            for role, side in (("forget", corpus.forget), ("retain", corpus.retain))
        )
        return forget, retain

    pair: tuple[list[Encoded], list[Encoded]] = cached_in_worker(state, key, make)
    return pair


def cached_encoding(
    trial: Trial, workspace: Workspace, state: ModelState, role: str, documents: Sequence[Document]
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
    make = partial(encode_documents, documents, state.tokenizer, data.template, data.max_tokens)
    return unpack_tensors(
        tensors_once(workspace.cache / "encodings", key, lambda: pack_tensors(make())),
        [d.doc_id for d in documents],
    )


def tokenizer_digest(state: ModelState) -> str:
    """What identifies how text becomes ids: the rules of `data.encode`, the whole of a fast
    tokenizer, its special tokens, what it begins a text with, and its chat template.
    """
    tokenizer = state.tokenizer
    whole = (
        tokenizer.backend_tokenizer.to_str()
        if tokenizer.is_fast
        else [type(tokenizer).__name__, tokenizer.get_vocab()]
    )
    specials = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template]
    rules = [ENCODING_VERSION, begin_ids(tokenizer)]
    tokenizer_id: str = cached_in_worker(
        state, ("tokenizer",), lambda: digest([whole, specials, rules])
    )
    return tokenizer_id
