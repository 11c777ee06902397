"""What a model says of facts: the probability of each fact's key word in three forms, and by how
much its answer is likelier than the wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayunlearn.data.documents import Document
from rayunlearn.data.known import key_places
from rayunlearn.data.tokenize import Encoded, align
from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.models.forward import Scored, score_branches
from rayunlearn.models.load import load_model, model_digest
from rayunlearn.train.device import accelerator, device_type

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# few enough that who waits hears of them, enough that what all begin with alike counts little
FACTS_AT_ONCE = 12


class AskedModel:
    """A model by its name, loaded when it is first asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        # what decides its answers, but for code and libraries
        self.identity = {"model": model_digest(name), "device": device_type()}
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def load_once(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model in float32 and its tokenizer."""
        if self._loaded is None:
            device = str(accelerator().device)
            self._loaded = load_model(self.name, dtype=torch.float32, device=device)
        return self._loaded


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What a model says of one fact: the probability of the key word in the three forms of
    `KnownRule`, in [0, 1], and `margin`, by how many nats the answer is likelier than the
    likeliest wrong one (below 0: it is not).
    """

    key: float
    paraphrase: float
    completion: float
    margin: float


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    template: str,
    on_progress: Callable[[int], None] = lambda _: None,
) -> list[Knowledge]:
    """What the model says of each fact, in order.

    Args:
        documents: facts with a key that stands once in the answer and in the paraphrase, and with
            wrong answers.
        template: of question and answer, `chat` for the tokenizer's own.
        on_progress: called with the number of facts that are done, a few at a time.
    """
    answers: list[Knowledge] = []
    for first in range(0, len(documents), FACTS_AT_ONCE):
        part = documents[first : first + FACTS_AT_ONCE]
        answers += _ask_some(model, tokenizer, part, template)
        on_progress(len(answers))
    return answers


def _ask_some(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    template: str,
) -> list[Knowledge]:
    """`ask` in one batch, which reads what texts begin with alike (system, question) once."""
    texts = [text for document in documents for text in _texts(document)]
    encoded = [_encode(*text, tokenizer, template) for text in texts]
    scored = score_branches(model, [sequence for sequence, _ in encoded])
    rows = list(zip(encoded, scored, strict=True))
    answers = []
    for document in documents:
        n = 3 + len(document.wrong)
        fact_rows, rows = rows[:n], rows[n:]
        key, paraphrase, completion = (_key_probability(*row) for row in fact_rows[:3])
        nll = [float(scores.token_nll.sum()) for _, scores in (fact_rows[0], *fact_rows[3:])]
        margin = min(nll[1:]) - nll[0]
        answers.append(
            Knowledge(key=key, paraphrase=paraphrase, completion=completion, margin=margin)
        )
    return answers


def _texts(document: Document) -> list[tuple[str, str, str, bool]]:
    """Question, answer, key ('': none) and whether all of the answer counts, of every text that is
    scored for a fact: the answer, the paraphrase, the completion, the wrong answers.
    """
    completed = f"{document.completion_prompt} {document.key}"
    return [
        (document.prompt, document.answer, document.key, True),
        (document.prompt_paraphrase, document.paraphrase, document.key, False),
        ("", completed, document.key, False),
        *((document.prompt, wrong, "", True) for wrong in document.wrong),
    ]


def _encode(
    prompt: str,
    answer: str,
    key: str,
    whole: bool,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
) -> tuple[Encoded, range]:
    """The sequence, and which of its labels are the key's: the tokens with a character of it. Not
    `whole`: the sequence ends with the key, and no other token is a label.
    """
    aligned = align(prompt, answer, tokenizer, template)
    require(
        bool(aligned.spans), "known facts need a tokenizer with character offsets; without", key
    )
    start = max(1, aligned.start)
    sequence = Encoded(answer, aligned.ids, start, aligned.n_end)
    if not key:
        return sequence, range(0)
    first = aligned.answer + key_places(key, answer)[-1]
    inside = [
        index
        for index, (begin, end) in enumerate(aligned.spans)
        if index >= start and begin < first + len(key) and end > first
    ]
    if whole:
        return sequence, range(inside[0] - start, inside[-1] + 1 - start)
    until_key = Encoded(answer, aligned.ids[: inside[-1] + 1], inside[0])
    return until_key, range(inside[-1] + 1 - inside[0])


def _key_probability(encoded: tuple[Encoded, range], scores: Scored) -> float:
    return float(torch.exp(-scores.token_nll[list(encoded[1])].sum()))
