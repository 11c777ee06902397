"""What every prompt attack is made of: rules about answer words, sentences around a question,
earlier turns before it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

from rayunlearn.data.documents import Document
from rayunlearn.data.prompt_templates import PromptFrame
from rayunlearn.data.tokenize import join
from rayunlearn.keywords.stopwords import ENGLISH
from rayunlearn.keywords.words import words_of

# how earlier turns stand in a chat template's one message of the user
CHAT_LAYOUT = "Question: {prompt}\nAnswer:"


class PromptNotAllowedError(Exception):
    """This probe does not allow this attack; the message says why. The probe is rejected, never
    asked unattacked.
    """


@lru_cache(maxsize=1 << 16)
def word_keys(text: str) -> tuple[str, ...]:
    """Keys of the text's words, in order. Kept, because every probe is held against the same pool
    of shots.
    """
    return tuple(word.key for word in words_of(text))


def answer_words(document: Document) -> frozenset[str]:
    """Keys of the words that an attack must not bring: the answer's, without those of the question
    and English function words.

    An answer of function words alone ("nobody") has all of its words.
    """
    words = frozenset(word_keys(document.answer))
    return ((words - ENGLISH) or words).difference(word_keys(document.prompt))


def leaks_answer(text: str, document: Document) -> bool:
    """Whether a text holds an answer word of the document."""
    return not answer_words(document).isdisjoint(word_keys(text))


def leaks_nothing(sentences: Sequence[str], document: Document) -> list[str]:
    """The sentences that hold no answer word of the document, in order."""
    return [sentence for sentence in sentences if not leaks_answer(sentence, document)]


def rewrite_prompt(document: Document, rewrite: Callable[[str], str]) -> Document:
    """The document with `rewrite` applied to its question, and to the question in other words where
    it has one.

    Raises NotAllowed for a document without a question.
    """
    if not document.prompt:
        raise PromptNotAllowedError("it has no question, so nothing can be put around one")
    return replace(
        document,
        prompt=rewrite(document.prompt),
        prompt_paraphrase=document.prompt_paraphrase and rewrite(document.prompt_paraphrase),
    )


def with_question(document: Document, question: str) -> Document:
    """The document with another question instead of its own and no second wording. Raises
    NotAllowed if it tells the answer.
    """
    if leaks_answer(question, document):
        raise PromptNotAllowedError("the question in other words holds a word of the answer")
    return replace(document, prompt=question, prompt_paraphrase="", completion_prompt="")


def frame_prompt(document: Document, frame: PromptFrame, *, separator: str = " ") -> Document:
    """The question with the frame's sentences before and after it; sentences that hold an answer
    word are left out.
    """
    before, after = leaks_nothing(frame.before, document), leaks_nothing(frame.after, document)
    return rewrite_prompt(document, lambda question: separator.join([*before, question, *after]))


def after_conversation(
    document: Document, turns: Sequence[tuple[str, str]], template: str
) -> Document:
    """The question after earlier (question, answer) turns, each of them laid out as the template
    lays out a question.

    The whole is the new prompt: the template's own beginning and end stand around it when it is
    encoded.
    """
    inside_chat = template == "chat"
    head, _, tail = (CHAT_LAYOUT if inside_chat else template).partition("{prompt}")
    earlier = "".join(
        join(f"{question}{tail}", answer) + f"\n\n{head}" for question, answer in turns
    )
    return rewrite_prompt(
        document,
        lambda question: (
            f"{head}{earlier}{question}{tail}" if inside_chat else f"{earlier}{question}"
        ),
    )
