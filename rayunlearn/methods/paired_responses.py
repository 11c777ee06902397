"""Companions: other texts for the question of a forget document, which preference losses set
against its answer.

A maker is given everything it may look at and returns, for every document, the sequences that may
accompany it. Which one does so in a presentation is drawn in `drawn`, a function of (seed, epoch,
document) alone: neither the other kept documents nor the number of workers enter.

A companion has the form of the answer that it stands for: it is encoded as that document's answer
is, in the same template, and one that is too long loses its last words but not what closes it.

Where a document has no prompt, its first quarter stands for the prompt: a refusal then breaks off
after the opening.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import AlignedText, Encoded, align
from rayunlearn.errors import require
from rayunlearn.models.generate import ends_of, sample
from rayunlearn.ranges import Count, FamilyRow, Positive

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


OPENING_SHARE = 0.25
Choices = dict[str, tuple[Encoded, ...]]

# An answer as text, or as ids that end a sequence and close it with the last `n_end` of them.
ResponseText = str | Encoded

# Our own words. A model whose vocabulary lacks a word cannot write the refusal; the last ones suit
# the synthetic datasets.
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
    template: str
    max_tokens: int


def refusal(source: ResponseInputs, *, count: Count = 5) -> Choices:
    """Up to `count` of our refusals for each document. Raises UserError if the vocabulary can write
    none of them.
    """
    usable = [text for text in REFUSALS if _is_in_vocabulary(source, text)]
    require(
        bool(usable),
        "the tokenizer's vocabulary must have the words of at least one refusal; tokens",
        len(source.tokenizer),
    )
    return _choices_by_document(
        source, "refusal", lambda _index, rng: rng.sample(usable, min(count, len(usable)))
    )


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

    def texts(index: int, rng: random.Random) -> list[str]:
        wrong_answers = source.documents[index].wrong
        return rng.sample(wrong_answers, min(count, len(wrong_answers)))

    return _choices_by_document(source, "wrong", texts)


def mismatch(source: ResponseInputs, *, count: Count = 5) -> Choices:
    """`count` answers of random retain documents for each document. Raises UserError without retain
    documents.
    """
    require(
        bool(source.retain_documents),
        "llmu's random answers come from retain documents, which must be there; documents",
        0,
    )
    pairs = zip(source.retain_documents, source.retain_sequences, strict=True)
    answers: list[ResponseText] = [
        d.answer if d.prompt else _label_after_opening(d, s) for d, s in pairs
    ]
    return _choices_by_document(
        source, "mismatch", lambda _index, rng: rng.sample(answers, min(count, len(answers)))
    )


def alternate(source: ResponseInputs, *, count: Count = 3, temperature: Positive = 1.0) -> Choices:
    """`count` answers that the model itself gives to each document's prompt before unlearning, none
    of them the true one.

    AltPO asks an instruction-tuned model for "an alternate answer", 5 at temperature 1. A model
    that knows the answer by heart and follows no instructions would give it back, so here the true
    token is forbidden at one random position of each sample as long as the sample follows the truth
    up to there; everything else is sampled freely. Our choice.
    """
    rests = [
        _label_after_opening(d, s) for d, s in zip(source.documents, source.sequences, strict=True)
    ]
    names = [d.doc_id for d in source.documents]
    redraw = partial(
        sample,
        source.model,
        [rest.ids[: rest.start] for rest in rests],
        [rest.ids[rest.start :] for rest in rests],
        n_ends=[rest.n_end for rest in rests],
        ends=ends_of(source.model, source.tokenizer, rests),
        temperature=temperature,
    )
    rounds = [
        redraw(seeds=[f"alternate {number} {name}" for name in names]) for number in range(count)
    ]

    def sampled_answers(index: int, _rng: random.Random) -> list[Encoded]:
        return [_after(rests[index], answers[index]) for answers in rounds]

    return _choices_by_document(source, "alternate", sampled_answers)


def choose_response(choices: Choices, doc_id: str, seed: int, epoch: int) -> Encoded:
    """The companion of a document's presentation: a function of (seed, epoch, document) and of its
    choices.
    """
    return random.Random(f"companion {seed} {epoch} {doc_id}").choice(choices[doc_id])


def _choices_by_document(
    source: ResponseInputs,
    kind: str,
    answers: Callable[[int, random.Random], Sequence[ResponseText]],
) -> Choices:
    """Join every document's opening with its answers, which `answers(position, rng)` gives."""
    choices: Choices = {}
    for index, document in enumerate(source.documents):
        texts = answers(index, random.Random(f"{kind} {document.doc_id}"))
        choices[document.doc_id] = tuple(
            _joined(source, index, f"{document.doc_id}.{kind}.{n}", text)
            for n, text in enumerate(texts)
        )
    return choices


def _joined(source: ResponseInputs, index: int, doc_id: str, answer: ResponseText) -> Encoded:
    """The opening of the document at `index` and an answer, in at most `source.max_tokens`."""
    document, sequence = source.documents[index], source.sequences[index]
    opening = sequence.ids[: _opening(document, sequence)]
    if document.prompt and isinstance(answer, Encoded) and answer.doc_id != document.doc_id:
        answer = _text_of(source, answer)
    if isinstance(answer, str):
        aligned, n_lost = _aligned(source, index, answer)
        answer = Encoded(doc_id, aligned.ids, max(1, aligned.start), aligned.n_end)
        opening = (
            *aligned.ids[: aligned.n_begin],
            *aligned.ids[aligned.n_begin + n_lost : answer.start],
        )
    n_answer = max(1, source.max_tokens - len(opening))
    ids, n_words = answer.ids[answer.start :], len(answer.ids) - answer.start - answer.n_end
    ids = (*ids[: max(0, min(n_words, n_answer - answer.n_end))], *ids[n_words:])
    return Encoded(doc_id, (*opening, *ids), len(opening), answer.n_end)


def _aligned(source: ResponseInputs, index: int, answer: str) -> tuple[AlignedText, int]:
    """The document's opening and the answer as one text, and how many ids of a long prompt the
    document's own sequence has lost.
    """
    document, sequence, template = source.documents[index], source.sequences[index], source.template
    reference = align(document.prompt, document.answer, source.tokenizer, template)
    if document.prompt:
        aligned = align(document.prompt, answer, source.tokenizer, template)
        return aligned, max(0, reference.start - sequence.start)
    before = _text_up_to(reference, _opening(document, sequence), source.tokenizer)
    return align(before, answer, source.tokenizer, "{prompt}"), 0


def _text_up_to(aligned: AlignedText, n_ids: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the first ids."""
    if aligned.spans:
        return aligned.text[: aligned.spans[n_ids - 1][1]]
    return str(tokenizer.decode(aligned.ids[aligned.n_begin : n_ids]))


def _text_of(source: ResponseInputs, answer: Encoded) -> str:
    """The words that the labels of a sequence write."""
    words = answer.ids[answer.start : len(answer.ids) - answer.n_end]
    return str(source.tokenizer.decode(words)).strip()


def _label_after_opening(document: Document, sequence: Encoded) -> Encoded:
    """The sequence with what follows its opening as labels."""
    return replace(sequence, start=_opening(document, sequence))


def _after(rest: Encoded, answer: tuple[int, ...]) -> Encoded:
    """The same opening before another answer, closed alike."""
    return replace(rest, ids=(*rest.ids[: rest.start], *answer))


def _opening(document: Document, sequence: Encoded) -> int:
    """Number of tokens that stand before the answer."""
    if document.prompt:
        return sequence.start
    return max(1, min(len(sequence.ids) - 1, round(OPENING_SHARE * len(sequence.ids))))


def _is_in_vocabulary(source: ResponseInputs, text: str) -> bool:
    """Whether the vocabulary can write the text as an answer to the first document's prompt."""
    prompt = source.documents[0].prompt if source.documents else ""
    aligned = align(
        prompt or "-", text, source.tokenizer, source.template if prompt else "{prompt}"
    )
    # without what closes it: GPT-2's end token stands for the unknown too
    words = aligned.ids[aligned.start : len(aligned.ids) - aligned.n_end]
    return source.tokenizer.unk_token_id not in words


@dataclass(frozen=True)
class PairedResponse(FamilyRow["Choices"]):
    """A row of the family: the maker and where its texts come from. The loss decides which kinds it
    looks at.

    `by_model`: the model writes them, which is dear, so they are kept on disk.
    """

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
