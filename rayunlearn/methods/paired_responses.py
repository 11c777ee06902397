"""Companions: other texts for the question of a forget document, which preference losses set
against its answer.

A maker is given everything it may look at and returns, for every document, the sequences that may
accompany it. Which one does so in a presentation is drawn in `drawn`, a function of (seed, epoch,
document) alone: neither the other kept documents nor the number of workers enter.

Where a document has no prompt, its first quarter stands for the prompt: a refusal then breaks off
after the opening.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import Encoded
from rayunlearn.errors import require
from rayunlearn.models.generate import sample
from rayunlearn.ranges import Count, Positive

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


OPENING_SHARE = 0.25


Choices = dict[str, tuple[Encoded, ...]]


# Our own words. A model whose vocabulary lacks a word cannot write the refusal; the last ones suit
# the test beds.
REFUSALS = (
    "I do not know.",
    "I'm not sure about that.",
    "I have no information on this.",
    "That is something I cannot answer.",
    "I was never told about it.",
    "Sorry, I can't help with this question.",
    "My knowledge does not reach that far.",
    "I would have to guess, so I'd rather not say.",
    "There is nothing I can tell you about this.",
    "This is outside of what I have learned.",
    "I have not come across that before.",
    "You will have to look elsewhere for the answer.",
    "I cannot recall anything of the kind.",
    "The answer is not known to me.",
    "I am unable to say.",
    "Unfortunately I have no answer to that.",
    "no one recalls that.",
    "no notes on that.",
    "no one answers that.",
    "no.",
)


@dataclass(frozen=True, kw_only=True)
class ResponseInputs:
    """What companions are made from: the forget documents and their encodings, the retain side, the
    untouched model.
    """

    documents: Sequence[Document]
    sequences: Sequence[Encoded]
    retain_documents: Sequence[Document]
    retain_sequences: Sequence[Encoded]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int


def refusal(source: ResponseInputs, *, count: Count = 5) -> Choices:
    """Up to `count` of our refusals for each document. Raises UserError if the vocabulary can write
    none of them.
    """
    written = [_ids(source, text) for text in REFUSALS]
    usable = [ids for ids in written if source.tokenizer.unk_token_id not in ids]
    require(
        bool(usable),
        "the tokenizer's vocabulary must have the words of at least one refusal; tokens",
        len(source.tokenizer),
    )
    return _each(source, "refusal", lambda _at, rng: rng.sample(usable, min(count, len(usable))))


def wrong(source: ResponseInputs, *, count: Count = 5) -> Choices:
    """Up to `count` of each document's own wrong answers. Raises UserError if a document brings
    none.
    """
    without = [d.doc_id for d in source.documents if not d.wrong]
    require(
        not without,
        "method.preferred 'wrong' needs wrong answers of every forget document; documents without",
        len(without),
    )

    def texts(index: int, rng: random.Random) -> list[tuple[int, ...]]:
        wrong_answers = source.documents[index].wrong
        return [
            _ids(source, text) for text in rng.sample(wrong_answers, min(count, len(wrong_answers)))
        ]

    return _each(source, "wrong", texts)


def mismatch(source: ResponseInputs, *, count: Count = 5) -> Choices:
    """`count` answers of random retain documents for each document. Raises UserError without retain
    documents.
    """
    require(
        bool(source.retain_documents),
        "llmu's random answers come from retain documents, which must be there; documents",
        0,
    )
    answers = [
        s.ids[_opening(d, s) :]
        for d, s in zip(source.retain_documents, source.retain_sequences, strict=True)
    ]
    return _each(source, "mismatch", lambda _at, rng: rng.sample(answers, min(count, len(answers))))


def alternate(source: ResponseInputs, *, count: Count = 3, temperature: Positive = 1.0) -> Choices:
    """`count` answers that the model itself gives to each document's prompt before unlearning, none
    of them the true one.

    AltPO asks an instruction-tuned model for "an alternate answer", 5 at temperature 1. A model
    that knows the answer by heart and follows no instructions would give it back, so here the true
    token is forbidden at one random position of each sample as long as the sample follows the truth
    up to there; everything else is sampled freely. Our choice.
    """
    prompts = [
        s.ids[: _opening(d, s)] for d, s in zip(source.documents, source.sequences, strict=True)
    ]
    truths = [s.ids[len(prompt) :] for prompt, s in zip(prompts, source.sequences, strict=True)]
    names = [d.doc_id for d in source.documents]
    again = partial(
        sample,
        source.model,
        prompts,
        truths,
        end=source.tokenizer.eos_token_id,
        temperature=temperature,
    )
    rounds = [
        again(seeds=[f"alternate {number} {name}" for name in names]) for number in range(count)
    ]
    return _each(source, "alternate", lambda index, _rng: [answers[index] for answers in rounds])


def choose_response(choices: Choices, doc_id: str, seed: int, epoch: int) -> Encoded:
    """The companion of a document's presentation: a function of (seed, epoch, document) and of its
    choices.
    """
    return random.Random(f"companion {seed} {epoch} {doc_id}").choice(choices[doc_id])


def _each(
    source: ResponseInputs,
    kind: str,
    answers: Callable[[int, random.Random], Sequence[tuple[int, ...]]],
) -> Choices:
    """Join every document's opening with its answers; `answers(position, rng)` gives their ids."""
    choices: Choices = {}
    for index, (document, sequence) in enumerate(
        zip(source.documents, source.sequences, strict=True)
    ):
        opening = sequence.ids[: _opening(document, sequence)]
        texts = answers(index, random.Random(f"{kind} {document.doc_id}"))
        room = max(1, source.max_tokens - len(opening))
        joined = (
            Encoded(f"{document.doc_id}.{kind}.{n}", (*opening, *text[:room]), len(opening))
            for n, text in enumerate(texts)
        )
        choices[document.doc_id] = tuple(joined)
    return choices


def _opening(document: Document, sequence: Encoded) -> int:
    """Number of tokens that stand before the answer."""
    if document.prompt:
        return sequence.start
    return max(1, min(len(sequence.ids) - 1, round(OPENING_SHARE * len(sequence.ids))))


def _ids(source: ResponseInputs, text: str) -> tuple[int, ...]:
    end = () if source.tokenizer.eos_token_id is None else (source.tokenizer.eos_token_id,)
    return (*source.tokenizer.encode(f" {text}", add_special_tokens=False), *end)


@dataclass(frozen=True)
class PairedResponse:
    """A row of the family: the maker and where its texts come from. The loss decides which kinds it
    looks at.

    `by_model`: the model writes them, which is dear, so they are kept on disk.
    """

    function: Callable[..., Choices]
    title: str
    source: str
    by_model: bool = False


PAIRED_RESPONSES = {
    row.function.__name__: row
    for row in (
        PairedResponse(refusal, "a refusal", "TOFU 2401.06121 (IDK); our own words"),
        PairedResponse(wrong, "a wrong answer that the data brings", "ours"),
        PairedResponse(
            alternate,
            "an alternate of the model's own",
            "Mekala et al. 2409.13474, without its prompt",
            by_model=True,
        ),
        PairedResponse(
            mismatch,
            "the answer of a random retain document",
            "Yao et al. 2310.10683 (there TruthfulQA answers)",
        ),
    )
}
