"""How much each token or word of a question supports an answer: leave-one-out differences of the
answer's log-probability.

unPact (2509.24675), eq. 1 and 2: C(x_i, y) = LP(x, y) - LP(x without x_i, y), LP the mean
log-probability of the answer's tokens. Departures: a token is left out of the ids, so its
neighbours stay the tokens they were (the authors' code deletes text and tokenizes again); prompt
and answer are joined by the template; the end-of-sequence token counts, as in `probability`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import Encoded, align
from rayunlearn.errors import require
from rayunlearn.keywords.words import words_of
from rayunlearn.lazy import torch
from rayunlearn.models.forward import score

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptUnits:
    """Parts of a prompt that can be left out, in order: their text and their places in
    `Encoded.ids`.
    """

    texts: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]


def token_units(
    sequence: Encoded, document: Document, tokenizer: PreTrainedTokenizerBase, template: str
) -> PromptUnits:
    """Every token of the prompt itself; those of the template stay where they are. Tokens that were
    cut off are not there.
    """
    tokens = _tokens(sequence, document, tokenizer, template)
    return PromptUnits(
        tuple(document.prompt[start:end].strip() for _, start, end in tokens),
        tuple((position,) for position, _, _ in tokens),
    )


def word_units(
    sequence: Encoded, document: Document, tokenizer: PreTrainedTokenizerBase, template: str
) -> PromptUnits:
    """Every word of the prompt (`words_of`) with all tokens that touch it; no places for a word
    that was cut off.
    """
    prompt = document.prompt
    tokens, words = _tokens(sequence, document, tokenizer, template), words_of(prompt)
    places = tuple(
        tuple(position for position, start, end in tokens if start < w.end and w.start < end)
        for w in words
    )
    return PromptUnits(tuple(prompt[w.start : w.end] for w in words), places)


def contributions(
    model: PreTrainedModel,
    questions: Sequence[tuple[Encoded, PromptUnits]],
) -> list[Tensor]:
    """C of every unit of every sequence, (units,) float32 each, in nats: positive where the unit
    supports the answer.

    All sequences, whole and with one unit left out, go through the model in padded batches of
    similar length. A unit without places has C 0. Raises UserError where leaving a unit out leaves
    nothing before the answer.
    """
    versions = [
        [sequence, *(without_unit(sequence, places) for places in units.places)]
        for sequence, units in questions
    ]
    scored = iter(score(model, [version for group in versions for version in group]))
    values = []
    for group in versions:
        log_prob = torch.stack([-next(scored).token_nll.mean() for _ in group])
        values.append(log_prob[0] - log_prob[1:])
    return values


def without_unit(sequence: Encoded, places: Sequence[int]) -> Encoded:
    """The sequence without the ids at `places`, all of them before the answer."""
    shortened = Encoded(
        sequence.doc_id,
        tuple(i for index, i in enumerate(sequence.ids) if index not in places),
        sequence.start - len(places),
        sequence.n_end,
    )
    require(
        shortened.start >= 1,
        "leaving a word out must leave something before the answer, tokens left",
        shortened.start,
    )
    return shortened


def key_tokens(values: Sequence[float], *, alpha: float, beta: int) -> list[bool]:
    """Which units are key: every C > 0 where fewer than `beta` are, else those with C / max C >
    `alpha`.

    unPact, eq. 3 and 4. That N divides by the largest contribution is our reading: the paper's
    normalisation and its values of alpha and beta are not confirmed.
    """
    positive = [value for value in values if value > 0]
    threshold = alpha * max(positive) if len(positive) >= beta else 0.0
    return [value > threshold for value in values]


def _tokens(
    sequence: Encoded, document: Document, tokenizer: PreTrainedTokenizerBase, template: str
) -> list[tuple[int, int, int]]:
    """(place in the ids, first character, character after the last) of the prompt's tokens,
    characters counted in the prompt. `sequence` is the document, encoded with `template`.
    """
    require(
        tokenizer.is_fast,
        "attribution needs a fast tokenizer, which knows the characters of its tokens",
        type(tokenizer).__name__,
    )
    prompt, aligned = document.prompt, align(document.prompt, document.answer, tokenizer, template)
    begin = aligned.text.find(prompt)
    require(begin >= 0, "the template must hold the prompt as it is written", prompt)
    # too long a prompt has lost its beginning, and all of it where the answer was cut as well
    n_answer = len(aligned.ids) - aligned.n_end - aligned.start
    n_before = len(sequence.ids) - sequence.n_end - n_answer
    n_lost = aligned.start - max(aligned.n_begin, n_before)
    inside = [
        (index - n_lost, start - begin, end - begin)
        for index, (start, end) in enumerate(aligned.spans[: aligned.start])
        if index >= aligned.n_begin and start < begin + len(prompt) and begin < end
    ]
    return [
        (position, max(0, start), min(len(prompt), end))
        for position, start, end in inside
        if position >= aligned.n_begin
    ]
