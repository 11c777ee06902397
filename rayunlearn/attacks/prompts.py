"""Prompt attacks: one probe in, the same probe asked in another way out. Nothing is trained, and a
black box is enough.

None puts a word of the asked answer into the prompt: shots and sentences that hold one are left
out. A probe that does not allow an attack raises `PromptNotAllowedError`, which says why; asked as
it was, it would count as one that withstood.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence

from rayunlearn.attacks.base import AttackRow
from rayunlearn.attacks.prompt_text import (
    PromptNotAllowedError,
    after_conversation,
    frame_prompt,
    leaks_answer,
    leaks_nothing,
    rewrite_prompt,
    with_question,
    word_keys,
)
from rayunlearn.data.documents import Document
from rayunlearn.data.prompt_templates import (
    FILLERS,
    INSISTENCE,
    PREFIXES,
    REPLIES,
    ROLE_PLAYS,
    PromptFrame,
)
from rayunlearn.ranges import Count


def few_shot_retain(
    document: Document,
    retain_probes: Sequence[Document],
    template: str,
    rng: random.Random,
    *,
    k: Count = 5,
) -> Document:
    """The question after `k` solved questions of the retain side, drawn for each probe. Doshi &
    Stickland (2411.12103) take five.

    They show the same five rows of one MMLU subject before every question; drawing them anew is
    ours, so that no answer depends on one lucky shot. Fewer than `k` where the retain side has no
    more without an answer word; NotAllowed for none.
    """
    usable = _shots(document, retain_probes)
    return _after_shots(document, rng.sample(usable, min(k, len(usable))), template)


def few_shot_neighbours(
    document: Document, forget_probes: Sequence[Document], template: str, *, k: Count = 5
) -> Document:
    """The question after the `k` solved questions of the forget side that are most like it, the
    nearest last. After 2506.10236.

    That study shows forget-corpus shots; taking the nearest is ours: cosine of word counts weighted
    by log(questions / questions with the word). On a corpus where few answers are possible, leaving
    out those that share an answer word tells something by elimination; the same attack on gold
    shows how much.
    """
    usable = _shots(document, forget_probes)
    nearest = [
        usable[index] for index in _by_likeness(document.prompt, [d.prompt for d in usable])[:k]
    ]
    return _after_shots(document, nearest[::-1], template)


def filler_latin(document: Document, *, sentences: Count = 10) -> Document:
    """Up to ten sentences of made-up words with Latin endings before the question. Condition 1 of
    2411.12103, our own text.
    """
    return _filled(document, "latin", sentences)


def filler_english(document: Document, *, sentences: Count = 10) -> Document:
    """Up to ten whimsical sentences before the question.
    Condition 2 of 2411.12103, our own text.
    """
    return _filled(document, "english", sentences)


def filler_hindi(document: Document, *, sentences: Count = 10) -> Document:
    """Up to ten Hindi sentences that say they are placeholders, before the question. Condition 3 of
    2411.12103, our own text.
    """
    return _filled(document, "hindi", sentences)


def paraphrase(document: Document) -> Document:
    """The question in the other wording that the data brings. NotAllowed without one. TOFU
    (2401.06121) has some.
    """
    if not document.prompt_paraphrase:
        raise PromptNotAllowedError("the data brings no other wording of its question")
    return with_question(document, document.prompt_paraphrase)


def role_play(document: Document, rng: random.Random) -> Document:
    """The question inside one of our three role plays, drawn per probe. Lynch et al. 2402.16835 use
    jailbreak prompts; texts ours.
    """
    return frame_prompt(document, rng.choice(ROLE_PLAYS))


def jailbreak_prefix(document: Document, rng: random.Random) -> Document:
    """The question after one of our four lines that lift a ban on answering, drawn per probe. After
    2402.16835; texts ours.
    """
    return frame_prompt(document, rng.choice(PREFIXES))


def insistence(document: Document, template: str, *, turns: Count = 3) -> Document:
    """The question asked again after `turns` (up to 3) refusals, each of them contradicted. After
    2603.00823 (self-correction).

    The model is made to have said our refusals, whatever it would have said, so the prompt is the
    same for every model. NotAllowed where all that could be said holds an answer word.
    """
    lines, replies = leaks_nothing(INSISTENCE, document)[:turns], leaks_nothing(REPLIES, document)
    if not lines or not replies:
        raise PromptNotAllowedError("every line of the dialogue holds a word of its answer")
    questions = [document.prompt, *(f"{line} {document.prompt}" for line in lines[:-1])]
    earlier = [
        (question, replies[index % len(replies)]) for index, question in enumerate(questions)
    ]
    return after_conversation(
        rewrite_prompt(document, lambda question: f"{lines[-1]} {question}"), earlier, template
    )


def _shots(document: Document, pool: Sequence[Document]) -> list[Document]:
    """Other solved questions of the pool that share no answer word with the document, in their
    order.
    """
    return [
        d
        for d in pool
        if d.prompt
        and d.prompt != document.prompt
        and not (leaks_answer(d.prompt, document) or leaks_answer(d.answer, document))
    ]


def _after_shots(document: Document, shots: Sequence[Document], template: str) -> Document:
    if not shots:
        raise PromptNotAllowedError(
            "every solved question that could stand before it holds a word of its answer"
        )
    return after_conversation(document, [(d.prompt, d.answer) for d in shots], template)


def _filled(document: Document, language: str, sentences: int) -> Document:
    """The filler's first sentences and the question. 2411.12103 has a blank line between; a blank
    is what a question follows on the synthetic dataset.
    """
    text = " ".join(leaks_nothing(FILLERS[language], document)[:sentences])
    return frame_prompt(document, PromptFrame(before=(text,) if text else ()))


def _by_likeness(question: str, candidates: Sequence[str]) -> list[int]:
    """Positions of the other questions, most alike first; ties keep their order."""
    bags = [Counter(word_keys(text)) for text in (question, *candidates)]
    spread = Counter(word for bag in bags for word in bag)
    weights = [
        {word: n * math.log(len(bags) / spread[word]) for word, n in bag.items()} for bag in bags
    ]
    likeness = [_cosine(weights[0], other) for other in weights[1:]]
    return sorted(range(len(candidates)), key=lambda index: -likeness[index])


def _cosine(first: dict[str, float], second: dict[str, float]) -> float:
    length = math.hypot(*first.values()) * math.hypot(*second.values())
    return (
        sum(value * second.get(word, 0.0) for word, value in first.items()) / length
        if length > 0
        else 0.0
    )


PROMPTS = {
    row.function.__name__: row
    for row in (
        AttackRow(
            function=few_shot_retain,
            kind="prompt",
            title="k solved questions of the retain side first",
            source="2411.12103; the draw is ours",
        ),
        AttackRow(
            function=few_shot_neighbours,
            kind="prompt",
            title="the k nearest solved forget questions first",
            source="2506.10236; nearest is ours",
        ),
        AttackRow(
            function=filler_latin,
            kind="prompt",
            title="made-up Latin first",
            source="2411.12103, condition 1; text ours",
        ),
        AttackRow(
            function=filler_english,
            kind="prompt",
            title="whimsy first",
            source="2411.12103, condition 2; text ours",
        ),
        AttackRow(
            function=filler_hindi,
            kind="prompt",
            title="Hindi placeholder text first",
            source="2411.12103, condition 3; text ours",
        ),
        AttackRow(
            function=paraphrase,
            kind="prompt",
            title="the data's other wording of the question",
            source="TOFU 2401.06121 brings them",
        ),
        AttackRow(
            function=role_play,
            kind="prompt",
            title="a role play around the question",
            source="after Lynch et al. 2402.16835; texts ours",
        ),
        AttackRow(
            function=jailbreak_prefix,
            kind="prompt",
            title="a line that lifts a ban on answering",
            source="after Lynch et al. 2402.16835; texts ours",
        ),
        AttackRow(
            function=insistence,
            kind="prompt",
            title="asked again after refusals",
            source="after 2603.00823; texts ours",
        ),
    )
}
