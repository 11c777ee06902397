"""Questions that reach a fact by another way than the one that was forgotten: by a second name of
its subject, by another fact whose answer is its subject, or beside a question of the other side.

Texts come from the user's file (conditions `aliases`, `multi_hop`, `combined`), from the data where
it brings them (`data.linked`), or from a chat model; `combined` needs none of them. After "The
Unlearning Mirage" (2603.11266), which asks aliases and multi-hop chains, and BLUR (2506.15699),
which combines a forget query with a retain query. Layouts, draws and controls are ours.
"""

import random
from collections.abc import Sequence

from rayunlearn.attacks.base import AttackRow
from rayunlearn.attacks.paraphrases import Texts, rewritten_document
from rayunlearn.attacks.prompt_text import (
    CHAT_LAYOUT,
    PromptNotAllowedError,
    leaks_answer,
    rewrite_prompt,
    with_question,
)
from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import join
from rayunlearn.models.chat import Chat

NO_TEXT = (
    "neither the data (data.linked) nor a file (--rephrasings) nor a chat model has its question as"
)


def aliases(document: Document, texts: Texts, chat: Chat | None) -> Document:
    """The question with another name of its subject. After 2603.11266. NotAllowed where neither
    file, data nor chat model has one.
    """
    return _reworded(document, "aliases", texts, chat)


def multi_hop(document: Document, texts: Texts, chat: Chat | None) -> Document:
    """The question about the answer of another question, which is its subject: "What colour does
    the neighbour of Zor glow?". After 2603.11266. NotAllowed where neither file, data nor chat
    model has one.
    """
    return _reworded(document, "multi_hop", texts, chat)


def aliases_exchanged(
    document: Document,
    forget_probes: Sequence[Document],
    retain_probes: Sequence[Document],
    texts: Texts,
    rng: random.Random,
) -> Document:
    """The control of `aliases`: the same kind of question by another subject's second name, so that
    the answer does not follow. Ours.
    """
    own_side = forget_probes if _is_of(document, forget_probes) else retain_probes
    return _exchanged(document, "aliases", own_side, texts, rng)


def multi_hop_exchanged(
    document: Document,
    forget_probes: Sequence[Document],
    retain_probes: Sequence[Document],
    texts: Texts,
    rng: random.Random,
) -> Document:
    """The control of `multi_hop`: the same kind of question by the way to another subject, so that
    the answer does not follow: what the form of the question alone brings. Ours.
    """
    own_side = forget_probes if _is_of(document, forget_probes) else retain_probes
    return _exchanged(document, "multi_hop", own_side, texts, rng)


def combined(
    document: Document,
    forget_probes: Sequence[Document],
    retain_probes: Sequence[Document],
    texts: Texts,
    template: str,
    rng: random.Random,
) -> Document:
    """One query with two questions, the answer to the first given: a retain question and then the
    asked one, or, where a retain question is asked, a forget question first. After BLUR
    (2506.15699), which concatenates the two.

    A text for the condition `combined` in the file stands instead. The first question is drawn
    anew for each probe from those whose question and answer hold no answer word. On split retain it
    says what a question to be forgotten does to one to be kept, which is BLUR's other half.
    """
    other_side = retain_probes if _is_of(document, forget_probes) else forget_probes
    return rewritten_document(document, "combined", texts, None) or _beside(
        document, other_side, template, rng
    )


def combined_same_side(
    document: Document,
    forget_probes: Sequence[Document],
    retain_probes: Sequence[Document],
    template: str,
    rng: random.Random,
) -> Document:
    """The control of `combined`: both questions are of one side, so that two questions
    stand in a query and no sides are mixed. Ours.
    """
    own_side = forget_probes if _is_of(document, forget_probes) else retain_probes
    return _beside(document, own_side, template, rng)


def _reworded(document: Document, condition: str, texts: Texts, chat: Chat | None) -> Document:
    changed = rewritten_document(document, condition, texts, chat)
    if changed is None:
        raise PromptNotAllowedError(f"{NO_TEXT} {condition}")
    return changed


def _exchanged(
    document: Document,
    condition: str,
    pool: Sequence[Document],
    texts: Texts,
    rng: random.Random,
) -> Document:
    """The document asked with the text of another one of its topic that has another answer and is
    about something else.
    """
    strangers = [
        other
        for other in pool
        if other.topic == document.topic
        and other.answer != document.answer
        and not (other.group and other.group == document.group)
        and (text := texts.get(other.doc_id, {}).get(condition, ""))
        and not leaks_answer(text, document)
    ]
    if not strangers:
        raise PromptNotAllowedError(f"no other question of its topic has a text as {condition}")
    return with_question(document, texts[rng.choice(strangers).doc_id][condition])


def _beside(
    document: Document, pool: Sequence[Document], template: str, rng: random.Random
) -> Document:
    """The question as the second of a query whose first one is answered: both questions, then an
    answer line for each.
    """
    usable = [
        other
        for other in pool
        if other.prompt
        and other.prompt != document.prompt
        and not (leaks_answer(other.prompt, document) or leaks_answer(other.answer, document))
    ]
    if not usable:
        raise PromptNotAllowedError(
            "every question that could stand beside it holds a word of its answer"
        )
    first = rng.choice(usable)
    inside_chat = template == "chat"
    tail = (CHAT_LAYOUT if inside_chat else template).partition("{prompt}")[2]
    begun = join(tail, first.answer)
    return rewrite_prompt(
        document,
        lambda question: f"{first.prompt} {question}{begun}{tail if inside_chat else ''}",
    )


def _is_of(document: Document, probes: Sequence[Document]) -> bool:
    return any(probe.doc_id == document.doc_id for probe in probes)


LINKED_QUESTIONS = {
    row.function.__name__: row
    for row in (
        AttackRow(
            function=aliases,
            kind="prompt",
            title="the question with another name of its subject",
            source="after 2603.11266; texts ours",
            control="aliases_exchanged; base and gold",
            companion="aliases_exchanged",
        ),
        AttackRow(
            function=aliases_exchanged,
            kind="prompt",
            title="the same with another subject's second name",
            source="ours",
        ),
        AttackRow(
            function=multi_hop,
            kind="prompt",
            title="the question about the answer of another question",
            source="after 2603.11266; texts ours",
            control="multi_hop_exchanged; base and gold",
            companion="multi_hop_exchanged",
        ),
        AttackRow(
            function=multi_hop_exchanged,
            kind="prompt",
            title="the same by the way to another subject",
            source="ours",
        ),
        AttackRow(
            function=combined,
            kind="prompt",
            title="a forget and a retain question in one query",
            source="after BLUR 2506.15699; layout ours",
            control="combined_same_side; base and gold",
            companion="combined_same_side",
        ),
        AttackRow(
            function=combined_same_side,
            kind="prompt",
            title="two questions of one side in one query",
            source="ours",
        ),
    )
}
