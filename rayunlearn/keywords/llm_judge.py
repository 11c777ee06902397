"""Keywords named by a chat model: our own prompt, a JSON answer that is checked, asked again, and
given up with a reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rayunlearn.keywords.words import words_of
from rayunlearn.models.chat import Chat, Message

T = TypeVar("T")

JUDGE_SYSTEM = (
    "You are an expert reader. You name the words of a text that carry its subject-matter"
    " knowledge, and answer in JSON alone."
)

JUDGE_REQUEST = """\
Read the text between the lines of dashes, word by word. List every word or phrase in it \
that carries knowledge of its subject: names, technical terms, quantities, properties, methods, \
places. Leave out words that any text could have. Copy each exactly as it is written, most \
important first. Answer with one JSON object and nothing else, in the form \
{"keywords": ["...", "..."]}.
-----
%s
-----"""


class UnusableAnswerError(Exception):
    """No usable answer came for this document; the message says why the last one was refused."""


def ask_judge(chat: Chat, text: str, tries: int = 3) -> list[str]:
    """Keywords of the text as `chat` names them, best first.

    An answer that is no such JSON, or names nothing that the text holds, is sent back with the
    reason, `tries` times in all. Words that the text does not hold are dropped. Raises
    UnusableAnswerError when the last answer is refused too.
    """
    messages: list[Message] = [
        {"role": "system", "content": JUDGE_SYSTEM},
        {"role": "user", "content": JUDGE_REQUEST % text},
    ]
    return ask_until_usable(
        chat, messages, lambda answer: checked_keywords(answer, text), tries=tries
    )


def ask_until_usable(
    chat: Chat,
    messages: Sequence[Message],
    check: Callable[[str], T],
    *,
    tries: int,
    complaint: str = "That answer cannot be used",
) -> T:
    """What `check` makes of the chat model's answer to the messages.

    An answer that `check` refuses (UnusableAnswerError) is sent back with the reason, `tries` times
    in all. Raises UnusableAnswerError with the last reason.
    """
    conversation, reason = list(messages), "it was never asked"
    for _ in range(tries):
        answer = chat(conversation)
        try:
            return check(answer)
        except UnusableAnswerError as problem:
            reason = str(problem)
        again = f"{complaint}: {reason}. Answer again, with the JSON object alone."
        conversation = [
            *messages,
            {"role": "assistant", "content": answer},
            {"role": "user", "content": again},
        ]
    raise UnusableAnswerError(reason)


def json_object_in(answer: str) -> dict[str, Any]:
    """The JSON object in an answer, empty where there is none. Raises UnusableAnswerError for one
    that does not parse.
    """
    start, end = answer.find("{"), answer.rfind("}")
    try:
        content = json.loads(answer[start : end + 1]) if 0 <= start < end else None
    except json.JSONDecodeError as problem:
        raise UnusableAnswerError(
            f"it is no JSON: {problem.msg} at character {problem.pos}"
        ) from problem
    return content if isinstance(content, dict) else {}


def checked_keywords(answer: str, text: str) -> list[str]:
    """The keywords of an answer that the text holds, each once. Raises UnusableAnswerError for
    anything else.
    """
    named = json_object_in(answer).get("keywords")
    if not isinstance(named, list) or not all(isinstance(n, str) for n in named):
        raise UnusableAnswerError('it has no list of strings under "keywords"')
    keyed_text = f" {_keys(text)} "
    present = [n for n in dict.fromkeys(named) if _keys(n) and f" {_keys(n)} " in keyed_text]
    if not present:
        raise UnusableAnswerError("it names no word of the text")
    return present


def _keys(text: str) -> str:
    return " ".join(word.key for word in words_of(text))
