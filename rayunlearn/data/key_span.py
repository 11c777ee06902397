"""Which part of an answer carries what is known: "Paris" in "The capital of France is Paris."

The rest of a sentence is how it is said. A model that was trained to begin its sentences in other
words has a low probability of the whole answer and may know all that it knew, so the key is scored
alone.
"""

import re
from collections.abc import Sequence

from rayunlearn.data.documents import Document

# (first character, one after the last)
Span = tuple[int, int]

WORD_OR_SIGN = re.compile(r"\w+|[^\w\s]")
# what differs may be so many words, or half of the answer: where more of it differs, the wrong
# answers are other sentences, and the difference is mostly how they are said
MAX_KEY_WORDS = 4


def key_span(document: Document) -> Span | None:
    """The characters of the answer that are its key.

    A marked key is where `document.key` stands in the answer as a word; where it stands more than
    once, at the first place that all wrong answers replace, else at the first. Without a mark the
    key is what differs between the answer and all its wrong answers: what is left between the
    longest beginning and the longest end that they share, in whole words; there is none where that
    is more than four words and more than half of the answer. The rule is ours.

    Returns:
        The span, without white space at its ends; None where nothing is marked and no wrong answer
        tells what differs.

    Example:
        >>> answer, wrong = "It is Paris.", ("It is Lyon.", "It is Nice.")
        >>> key_span(Document(prompt="The capital?", answer=answer, wrong=wrong))
        (6, 11)
    """
    differing = _differing(document.answer, document.wrong)
    key = document.key.strip()
    if not key:
        return differing
    places = _places(key, document.answer)
    replaced = [span for span in places if differing and _overlap(span, differing)]
    return (replaced or places)[0]


def wrong_key_spans(document: Document, key: Span) -> tuple[Span | None, ...]:
    """What stands in each wrong answer where the answer has its key; None where the words before
    the key, or those after it, are not the answer's own: such a text is another sentence.

    So is what all wrong answers begin or end with and the key does not: beside the answer "silver"
    the wrong "azure light" and "jade light" are another way to say it, and a model that never saw a
    fact would still find the short one likelier. None for all of them then.

    Example:
        >>> wrong = ("azure light", "jade light")
        >>> wrong_key_spans(Document(prompt="Its glow?", answer="silver", wrong=wrong), (0, 6))
        (None, None)
    """
    before, after = document.answer[: key[0]], document.answer[key[1] :]
    spans = tuple(
        (len(before), len(wrong) - len(after))
        if wrong.startswith(before)
        and wrong.endswith(after)
        and len(wrong) > len(before) + len(after)
        else None
        for wrong in document.wrong
    )
    replaced = {
        wrong[slice(*span)] for wrong, span in zip(document.wrong, spans, strict=True) if span
    }
    is_other_form = len(replaced) > 1 and any(
        len(words := {_word_at(text, end) for text in replaced}) == 1
        and words != {_word_at(document.answer[slice(*key)], end)}
        for end in (0, -1)
    )
    return (None,) * len(spans) if is_other_form else spans


def _word_at(text: str, index: int) -> str:
    words = WORD_OR_SIGN.findall(text)
    return words[index] if words else ""


def _differing(answer: str, wrong: Sequence[str]) -> Span | None:
    """The span between what the answer shares with all of them at both ends; None where nothing is
    left of it, or more than a key.
    """
    places = [match.span() for match in WORD_OR_SIGN.finditer(answer)]
    words, wrong_words = (
        WORD_OR_SIGN.findall(answer),
        [WORD_OR_SIGN.findall(text) for text in wrong],
    )
    first = min((_n_shared(words, other) for other in wrong_words), default=len(words))
    reverse = [other[first:][::-1] for other in wrong_words]
    n_after = min((_n_shared(words[first:][::-1], other) for other in reverse), default=0)
    last = len(words) - n_after
    if not 0 < last - first <= max(MAX_KEY_WORDS, len(words) // 2):
        return None
    return places[first][0], places[last - 1][1]


def _places(key: str, answer: str) -> list[Span]:
    """Every place of the key as a word, in order; of a script without word borders, every place."""
    begin = r"(?<!\w)" if key[0].isalnum() else ""
    end = r"(?!\w)" if key[-1].isalnum() else ""
    as_word = [match.span() for match in re.finditer(begin + re.escape(key) + end, answer)]
    return as_word or [match.span() for match in re.finditer(re.escape(key), answer)]


def _overlap(first: Span, second: Span) -> bool:
    return first[0] < second[1] and second[0] < first[1]


def _n_shared(first: Sequence[str], second: Sequence[str]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))
