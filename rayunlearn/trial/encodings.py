"""Encoded training sequences of a trial, made once per tokenizer and corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rayunlearn.config import digest
from rayunlearn.data import tokenize as encode_module
from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import ENCODING_VERSION, Encoded, begin_ids, encode_documents
from rayunlearn.models import tensor_cache as cache_module
from rayunlearn.models.tensor_cache import pack_tensors, tensors_once, unpack_tensors
from rayunlearn.storage.code_identity import code_digest
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.model_state import ModelState, cached, cached_in_worker

if TYPE_CHECKING:
    from torch import Tensor


def training_sequences(context: TrialContext) -> tuple[list[Encoded], list[Encoded]]:
    """Forget and retain documents as the model reads them, whatever `select.text` says; shared by a
    worker's trials.
    """
    corpus = context.corpus
    return (
        cached_encoding(context, "forget", corpus.forget),
        cached_encoding(context, "retain", corpus.retain),
    )


def cached_encoding(
    context: TrialContext, role: str, documents: Sequence[Document]
) -> list[Encoded]:
    """Documents of the corpus as token ids, from the disk cache once one
    process has encoded them.
    """
    data = context.trial.data
    key = {
        "corpus": context.corpus.digest,
        "role": role,
        "tokenizer": tokenizer_digest(context.state),
        "model": context.workspace.base_digest,
        "template": data.template,
        "max": data.max_tokens,
        "code": code_digest(encode_module, cache_module),
    }

    def make() -> dict[str, Tensor]:
        return pack_tensors(
            encode_documents(documents, context.tokenizer, data.template, data.max_tokens)
        )

    def read_or_make(folder: Path, key: Mapping[str, object]) -> list[Encoded]:
        return unpack_tensors(tensors_once(folder, key, make), [d.doc_id for d in documents])

    return cached(context.state, context.cache / "encodings", key, read_or_make)


def tokenizer_digest(state: ModelState) -> str:
    """What identifies how text becomes ids: the rules of `data.tokenize`, the whole of a fast
    tokenizer, its special tokens, what it begins a text with, and its chat template.
    """
    tokenizer = state.tokenizer
    serialized = (
        tokenizer.backend_tokenizer.to_str()
        if tokenizer.is_fast
        else [type(tokenizer).__name__, tokenizer.get_vocab()]
    )
    specials = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template]
    rules = [ENCODING_VERSION, begin_ids(tokenizer)]
    tokenizer_id: str = cached_in_worker(
        state, ("tokenizer",), lambda: digest([serialized, specials, rules])
    )
    return tokenizer_id
