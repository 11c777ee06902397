"""Keywords of a whole corpus: what an extractor asks for is made once, and only when it asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rayunlearn.data.documents import Document, Rejected
from rayunlearn.data.tokenize import Encoded, encode_documents
from rayunlearn.errors import UserError, require
from rayunlearn.keywords.llm_judge import UnusableAnswerError, ask_judge
from rayunlearn.keywords.model_scores import (
    EncodedPages,
    gap_by_word,
    loss_gaps,
    phrase_states,
    word_gradients,
    word_losses,
)
from rayunlearn.keywords.phrases import DocumentWords, Keyword, common_words, document_words
from rayunlearn.keywords.statistics import (
    Frame,
    Statistics,
    cooccurrences_of,
    frames_of,
    link_z,
    statistics_of,
    word_z,
)
from rayunlearn.keywords.table import EXTRACTORS
from rayunlearn.keywords.tokens import blocks_of
from rayunlearn.keywords.vectorized import VECTORIZED, KeywordArrays, has_vectorized
from rayunlearn.models.chat import Chat
from rayunlearn.ranges import required_inputs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


MAX_PER_DOCUMENT = (
    "page",
    "phrase_states",
    "page_state",
    "word_gap",
    "word_gradient_gap",
    "judged",
)

# what only a base model can say of a document
INPUTS_WITH_MODEL = (
    "phrase_states",
    "page_state",
    "word_gap",
    "corpus_gap",
    "word_gradient_gap",
    "corpus_gradient_gap",
)

# what compares it with a model that never saw the forget set
INPUTS_WITH_GOLD = ("word_gap", "corpus_gap", "word_gradient_gap", "corpus_gradient_gap")

WHOLE_CORPUS = (
    "corpus_gap",
    "word_gap",
    "corpus_gradient_gap",
    "word_gradient_gap",
    "links",
    "frames",
    # what takes all documents, or all of a model's losses, together
)

# words whose company is counted; the strongest
MOST_ANCHORS = 500


@dataclass(frozen=True)
class ModelWithTokenizer:
    """A model on loan: with its tokenizer, and how text is put to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: str = "{prompt}"
    max_tokens: int = 1024

    def encode(self, documents: Sequence[Document]) -> list[Encoded]:
        """The documents as this model reads them."""
        return encode_documents(documents, self.tokenizer, self.template, self.max_tokens)


class KeywordInputs:
    """What extractors may ask for, by the names of their parameters: lists with one entry per
    document, or one value for the corpus. `base`, `gold` and `chat` are called when something needs
    them; None where there is none.

    Keywords are looked for in a document's answer; a prompt is only what stands before it. Answers
    that the judge could not use are in `rejected`. `statistics` and `retain_statistics` are those
    of a larger corpus that the documents are part of.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        retain: Sequence[Document] = (),
        *,
        arguments: Mapping[str, Any] | None = None,
        base: Callable[[], ModelWithTokenizer] | None = None,
        gold: Callable[[], ModelWithTokenizer] | None = None,
        chat: Callable[[], Chat] | None = None,
        statistics: Statistics | None = None,
        retain_statistics: Statistics | None = None,
    ) -> None:
        self.documents, self.retain, self.rejected = documents, retain, list[Rejected]()
        self._statistics, self._retain_statistics = statistics, retain_statistics
        self._arguments, self._base, self._gold, self._chat = arguments or {}, base, gold, chat

    @cached_property
    def page(self) -> list[DocumentWords]:
        return [document_words(d.answer, self.common) for d in self.documents]

    @cached_property
    def common(self) -> frozenset[str]:
        return common_words(self.statistics)

    @cached_property
    def statistics(self) -> Statistics:
        return self._statistics or statistics_of(d.answer for d in self.documents)

    @cached_property
    def retain_statistics(self) -> Statistics:
        if self._retain_statistics is not None:
            return self._retain_statistics
        require(
            bool(self.retain),
            "this extractor compares with a retain corpus, which must have a document; documents",
            len(self.retain),
        )
        return statistics_of(d.answer for d in self.retain)

    @cached_property
    def links(self) -> dict[str, float]:
        prior = self._arguments["prior_words"]
        z = word_z(self.statistics, self.retain_statistics, prior)
        anchors = sorted(
            (w for w in z if z[w] > self._arguments["least_z"]), key=lambda w: (-z[w], w)
        )[:MOST_ANCHORS]
        return link_z(cooccurrences_of((d.answer for d in self.documents), anchors), prior)

    @cached_property
    def frames(self) -> Counter[Frame]:
        return frames_of(
            (d.answer for side in (self.documents, self.retain) for d in side),
            self._arguments["changing"],
        )

    @cached_property
    def word_gap(self) -> list[list[float]]:
        return self._gap(word_losses)

    @cached_property
    def corpus_gap(self) -> dict[str, float]:
        return gap_by_word(self.page, self.word_gap)

    @cached_property
    def word_gradient_gap(self) -> list[list[float]]:
        return self._gap(word_gradients)

    @cached_property
    def corpus_gradient_gap(self) -> dict[str, float]:
        return gap_by_word(self.page, self.word_gradient_gap)

    def _gap(
        self, of_words: Callable[[PreTrainedModel, EncodedPages], list[list[float]]]
    ) -> list[list[float]]:
        models = (
            load_with_tokenizer(self._base, "a base model"),
            load_with_tokenizer(self._gold, "a model that never saw the forget set (model.gold)"),
        )
        return loss_gaps(*(of_words(lent.model, self._read_by(lent)) for lent in models))

    def _read_by(self, lent: ModelWithTokenizer) -> EncodedPages:
        return EncodedPages(
            documents=self.documents,
            sequences=lent.encode(self.documents),
            pages=self.page,
            tokenizer=lent.tokenizer,
            template=lent.template,
        )

    @cached_property
    def _states(self) -> list[tuple[Tensor, Tensor]]:
        lent = load_with_tokenizer(self._base, "a base model")
        layer = max(0, lent.model.config.num_hidden_layers - 2)
        return phrase_states(lent.model, self._read_by(lent), layer)

    @cached_property
    def phrase_states(self) -> list[Tensor]:
        return [phrases for phrases, _ in self._states]

    @cached_property
    def page_state(self) -> list[Tensor]:
        return [state for _, state in self._states]

    @cached_property
    def judged(self) -> list[list[str]]:
        if self._chat is None:
            raise UserError(
                "extractor 'judge' needs a chat model: set select.judge_model (or --judge) to a"
                " directory or Hub name"
            )
        chat = self._chat()
        return [self._answer(chat, row, document) for row, document in enumerate(self.documents)]

    def _answer(self, chat: Chat, row: int, document: Document) -> list[str]:
        try:
            return ask_judge(chat, document.answer)
        except UnusableAnswerError as reason:
            self.rejected.append(
                Rejected(
                    source="judge",
                    row=row,
                    reason=f"no usable answer: {reason}",
                    excerpt=document.answer[:200],
                )
            )
            return []


def extract(name: str, inputs: KeywordInputs, arguments: Mapping[str, Any]) -> list[list[Keyword]]:
    """Keywords of every document, best first, by the extractor `name` with its keyword-only
    `arguments`.
    """
    if name in VECTORIZED:
        texts = [d.answer for d in inputs.documents]
        extracted = has_vectorized(
            name,
            inputs.statistics,
            inputs.retain_statistics if name == "log_odds" else None,
            arguments,
        )
        return [
            keywords
            for block in blocks_of(texts)
            for keywords in keywords_of(extracted(block), len(block))
        ]
    function = EXTRACTORS[name].function
    input_names = required_inputs(function)
    values = {n: getattr(inputs, n) for n in input_names}
    return [
        function(
            **{n: values[n][index] if n in MAX_PER_DOCUMENT else values[n] for n in input_names},
            **arguments,
        )
        for index in range(len(inputs.documents))
    ]


def keywords_of(arrays: KeywordArrays, n_documents: int) -> list[list[Keyword]]:
    """The rows of a block as keywords of each of its documents."""
    lists: list[list[tuple[str, float, list[tuple[int, int]]]]] = [[] for _ in range(n_documents)]
    columns = (
        arrays.document.tolist(),
        arrays.keyword.to_pylist(),
        arrays.score.tolist(),
        arrays.start.tolist(),
        arrays.end.tolist(),
        arrays.new.tolist(),
    )
    for document, text, score, start, end, new in zip(*columns, strict=True):
        if new:
            lists[document].append((text, score, []))
        lists[document][-1][2].append((start, end))
    return [
        [Keyword(text, score, tuple(spans)) for text, score, spans in keywords]
        for keywords in lists
    ]


def weight_keywords(keywords: Sequence[Keyword]) -> dict[str, float]:
    """Keyword (lower case) to weight: its score, none below zero."""
    return {k.text.lower(): max(0.0, k.score) for k in keywords}


def load_with_tokenizer(
    lender: Callable[[], ModelWithTokenizer] | None, purpose: str
) -> ModelWithTokenizer:
    if lender is None:
        raise UserError(f"this extractor needs {purpose}, and there is none")
    return lender()
