"""What a model says of words: its loss and gradient on each, and its hidden states over phrases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import Encoded, align, by_length, collate
from rayunlearn.errors import require
from rayunlearn.keywords.phrases import DocumentWords
from rayunlearn.keywords.words import Word
from rayunlearn.lazy import torch
from rayunlearn.models.document_features import document_features
from rayunlearn.models.forward import evaluating, hidden_states, score

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def words_of_labels(
    document: Document,
    sequence: Encoded,
    words: Sequence[Word],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
) -> list[int]:
    """For every label of `sequence` the position of the answer's word it is a piece of, -1 for none
    (punctuation, end).

    `sequence` and `words` are of `document`, encoded with `template`. Raises UserError for a
    tokenizer that cannot say where its tokens stand.
    """
    require(
        bool(tokenizer.is_fast),
        "a tokenizer must give character offsets (a fast tokenizer) for keywords from a model",
        type(tokenizer).__name__,
    )
    aligned = align(document.prompt, document.answer, tokenizer, template)
    owner = [-1] * (aligned.answer + len(document.answer))
    for index, word in enumerate(words):
        begin, end = aligned.answer + word.start, aligned.answer + word.end
        owner[begin:end] = [index] * (end - begin)
    # the first token of all is no label
    first = max(1, aligned.start)
    n_labels = len(sequence.ids) - sequence.start
    # a text that was cut has lost its last words
    spans = aligned.spans[first : len(aligned.ids) - aligned.n_end][: n_labels - sequence.n_end]
    pieces = [max(owner[start:end], default=-1) for start, end in spans]
    return pieces + [-1] * (n_labels - len(pieces))


@dataclass(frozen=True, kw_only=True)
class EncodedPages:
    """Documents as a model reads them: their tokens, and the words and phrases (`pages`) of their
    answers, encoded by `tokenizer` with `template`.
    """

    documents: Sequence[Document]
    sequences: Sequence[Encoded]
    pages: Sequence[DocumentWords]
    tokenizer: PreTrainedTokenizerBase
    template: str

    def word_of_label(self, index: int) -> list[int]:
        """`words_of_labels` of document `index`."""
        return words_of_labels(
            self.documents[index],
            self.sequences[index],
            self.pages[index].words,
            self.tokenizer,
            self.template,
        )


def word_losses(model: PreTrainedModel, encoded: EncodedPages) -> list[list[float]]:
    """Summed NLL of every word's tokens, in nats, per document; 0 for words that were cut off."""
    tokens = [scored.token_nll for scored in score(model, encoded.sequences)]
    return _by_word(tokens, encoded, "sum")


def word_gradients(model: PreTrainedModel, encoded: EncodedPages) -> list[list[float]]:
    """Norm of the gradient of a token's loss with respect to the logits, in [0, sqrt 2], the
    largest of every word's tokens, per document.

    It is ||p - y||_2; times the length of the last hidden state it is the norm of that loss's
    gradient of the head. 0 for words that were cut off.
    """
    tokens = [features.token_error for features in document_features(model, encoded.sequences)]
    return _by_word(tokens, encoded, "amax")


def _by_word(tokens: Sequence[Tensor], encoded: EncodedPages, reduce: str) -> list[list[float]]:
    """Values of the labels of every document, (n,) each, as one value per word."""
    result = []
    for index, values in enumerate(tokens):
        n_words = len(encoded.pages[index].words)
        pieces = torch.tensor(encoded.word_of_label(index))
        words = torch.zeros(n_words + 1).scatter_reduce(
            0, torch.where(pieces < 0, n_words, pieces), values, reduce
        )
        result.append(words[:-1].tolist())
    return result


def loss_gaps(
    base: Sequence[Sequence[float]], other: Sequence[Sequence[float]]
) -> list[list[float]]:
    """What the other model has minus what base has, per document and word."""
    return [[y - x for x, y in zip(a, b, strict=True)] for a, b in zip(base, other, strict=True)]


def gap_by_word(
    pages: Iterable[DocumentWords], word_gaps: Iterable[Sequence[float]]
) -> dict[str, float]:
    """Mean gap of every word over all places it stands at."""
    sums: defaultdict[str, list[float]] = defaultdict(list)
    for page, values in zip(pages, word_gaps, strict=True):
        for word, value in zip(page.words, values, strict=True):
            sums[word.key].append(value)
    return {key: sum(values) / len(values) for key, values in sums.items()}


def phrase_states(
    model: PreTrainedModel, encoded: EncodedPages, layer: int
) -> list[tuple[Tensor, Tensor]]:
    """Per document: mean state of block `layer` over each candidate's tokens (P, D) and over all
    labels (D,), float32 on the CPU.

    A candidate that was cut off has the mean over all labels.
    """
    sequences = encoded.sequences
    states_by_document: dict[int, tuple[Tensor, Tensor]] = {}
    with evaluating(model):
        for positions in by_length(sequences, 8192):
            batch = collate([sequences[p] for p in positions]).to(model.device)
            states = hidden_states(model, batch, layer).float().cpu()
            for row, p in enumerate(positions):
                label_states = states[row, sequences[p].start : len(sequences[p].ids)]
                phrases = _means(label_states, encoded.word_of_label(p), encoded.pages[p])
                states_by_document[p] = (phrases, label_states.mean(0))
    return [states_by_document[p] for p in range(len(sequences))]


def _means(states: Tensor, pieces: Sequence[int], page: DocumentWords) -> Tensor:
    rows = []
    for phrase in page.phrases:
        words = {index for first, last in phrase.places for index in range(first, last)}
        tokens = [t for t, index in enumerate(pieces) if index in words]
        rows.append(states[tokens].mean(0) if tokens else states.mean(0))
    return torch.stack(rows) if rows else torch.zeros(0, states.shape[1])
