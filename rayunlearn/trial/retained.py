"""What the retain loss of a trial trains on: the chosen part of the retain set, and general text.
No Ray in here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayunlearn.data.documents import Document
from rayunlearn.data.general_text import general_documents
from rayunlearn.data.tokenize import Encoded, encode_documents
from rayunlearn.methods.retain import RETAIN
from rayunlearn.ranges import required_inputs
from rayunlearn.schema import Rows
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.coreset import select_retain
from rayunlearn.trial.encodings import training_sequences

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Retained:
    """The retain side: positions in corpus.retain, best first, the score (n,) of every retain
    document (None where all of them train), and general texts.
    """

    positions: tuple[int, ...]
    scores: Tensor | None = None
    general: tuple[Document, ...] = ()


def select_retained(context: TrialContext) -> Retained:
    """What trains, by `retain.*`: all retain documents where nothing is said. The model must hold
    the base weights.
    """
    corpus, retain = context.corpus, context.trial.retain
    if retain.is_full:
        return Retained(tuple(range(len(corpus.retain))))
    n_chosen, n_general = retain.sizes(len(corpus.retain))
    positions, scores = select_retain(context) if n_chosen else ([], None)
    general = general_documents(corpus, n_general, retain.file, retain.seed) if n_general else ()
    return Retained(tuple(positions), scores, general)


def retained_sequences(context: TrialContext) -> list[Encoded]:
    """What trains as the model reads it, in the corpus' order, general texts last: how a selector
    ranks documents changes no batch.
    """
    retained, data = select_retained(context), context.trial.data
    _, retain = training_sequences(context)
    general = encode_documents(retained.general, context.tokenizer, data.template, data.max_tokens)
    return [*(retain[p] for p in sorted(retained.positions)), *general]


def retained_rows(context: TrialContext) -> tuple[int | None, Rows]:
    """(documents that the retain loss trains on, None without a retain loss; rows of `coresets`
    where they were chosen).
    """
    if not required_inputs(RETAIN[context.trial.method.retain].function):
        return None, []
    retained, documents = select_retained(context), context.corpus.retain
    n_retained = len(retained.positions) + len(retained.general)
    if context.trial.retain.is_full:
        return n_retained, []
    rows: Rows = [
        {"doc_id": document.doc_id, "role": "general", "rank": rank, "score": None}
        for rank, document in enumerate(retained.general)
    ]
    if retained.scores is not None:
        rows = [
            {
                "doc_id": documents[p].doc_id,
                "role": "retain",
                "rank": rank,
                "score": float(retained.scores[p]),
            }
            for rank, p in enumerate(retained.positions)
        ] + rows
    return n_retained, rows
