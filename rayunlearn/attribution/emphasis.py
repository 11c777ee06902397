"""Emphasis: a question asked again with some of its words pointed out, and the words that a control
points out instead.

The paper (unPact, 2509.24675) names such a device and reports that it brings forgotten answers
back; its wording is not known to us. The forms here are ours. A form changes the question's text
and nothing else: no weight, no word of the answer.
"""

import random
from collections.abc import Sequence

from rayunlearn.keywords.stopwords import ENGLISH
from rayunlearn.keywords.words import Word, words_of
from rayunlearn.ranges import FamilyRow


def named_first(prompt: str, words: Sequence[Word], wording: str) -> str:
    """`Focus on a, b. PROMPT`, where `wording` is `Focus on {words}.`"""
    return f"{_named(prompt, words, wording)} {prompt}"


def quoted(prompt: str, words: Sequence[Word], wording: str) -> str:
    """Each word between quotation marks where it stands: `" a "`. The space keeps the word the
    token that it was. No wording.
    """
    for word in sorted(words, key=lambda w: w.start, reverse=True):
        prompt = f'{prompt[: word.start]}" {prompt[word.start : word.end]} "{prompt[word.end :]}'
    return prompt


def repeated_last(prompt: str, words: Sequence[Word], wording: str) -> str:
    """`PROMPT Focus on a, b.`"""
    return f"{prompt} {_named(prompt, words, wording)}"


def named_and_repeated(prompt: str, words: Sequence[Word], wording: str) -> str:
    """`Focus on a, b. PROMPT Focus on a, b.`"""
    named = _named(prompt, words, wording)
    return f"{named} {prompt} {named}"


def chosen_words(
    prompt: str, scores: Sequence[float], key: Sequence[bool], answer: str
) -> list[Word]:
    """The key words to point out: the ones that help most, at most half of the prompt's words, none
    that the answer holds.

    scores, key: one per word of `words_of(prompt)`. Half, so that the control finds as many words
    that are no key words. A word that occurs twice is pointed out once, where it helps most. In the
    order of the prompt.
    """
    words = words_of(prompt)
    forbidden = words_of_answer(answer)
    order = sorted(
        (index for index in range(len(words)) if key[index] and words[index].key not in forbidden),
        key=lambda index: (-scores[index], index),
    )
    first = {words[index].key: index for index in reversed(order)}
    chosen = [index for index in order if first[words[index].key] == index][: len(words) // 2]
    return [words[index] for index in sorted(chosen)]


def random_words(
    prompt: str, chosen: Sequence[Word], key: Sequence[bool], answer: str, seed: str
) -> list[Word]:
    """As many words as `chosen`, drawn from those that are no key words; from the key words that
    were not chosen where they do not suffice.

    Fewer only where the prompt has no more. A function of its arguments; `seed` is a text, such as
    the document's id.
    """
    words, rng = words_of(prompt), random.Random(f"emphasis {seed}")
    excluded = {w.key for w in chosen} | words_of_answer(answer)
    pool = list(
        {
            w.key: index for index, w in reversed(list(enumerate(words))) if w.key not in excluded
        }.values()
    )
    order = sorted(rng.sample(pool, len(pool)), key=lambda index: key[index])
    return [words[index] for index in sorted(order[: len(chosen)])]


def words_of_answer(answer: str) -> frozenset[str]:
    """Words that would give the answer away: all of its words but function words; all of them where
    it has no others.
    """
    keys = frozenset(word.key for word in words_of(answer))
    return (keys - ENGLISH) or keys


def added_words(before: str, after: str) -> list[str]:
    """Keys of the words of `after` that are not left over once each word of `before` is crossed off
    once.
    """
    new_words = [word.key for word in words_of(after)]
    for word in words_of(before):
        if word.key in new_words:
            new_words.remove(word.key)
    return new_words


def _named(prompt: str, words: Sequence[Word], wording: str) -> str:
    return wording.replace("{words}", ", ".join(prompt[word.start : word.end] for word in words))


SOURCE = "ours, after unPact 2509.24675"

EMPHASIS_FORMS: dict[str, FamilyRow[str]] = {
    row.function.__name__: row
    for row in (
        FamilyRow(named_first, "the words named before the question", SOURCE),
        FamilyRow(quoted, "each word in quotation marks where it stands", SOURCE),
        FamilyRow(repeated_last, "the words repeated after the question", SOURCE),
        FamilyRow(named_and_repeated, "named before and repeated after", SOURCE),
    )
}
