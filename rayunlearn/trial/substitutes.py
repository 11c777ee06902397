"""Controls of a coreset: what a trial trains on instead of its forget documents, so that an
effect of the coreset can be told from one of any few documents. No Ray in here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from rayunlearn.data.documents import Document
from rayunlearn.errors import require
from rayunlearn.keywords.words import words_of
from rayunlearn.lazy import transformers
from rayunlearn.trial.context import TrialContext


def substitute_documents(context: TrialContext, coreset: Sequence[int]) -> list[Document]:
    """What stands in for the documents at `coreset`, in their order, as `select.text` says.

    other_documents: documents of the split `select.other_split`, each once, drawn by `select.seed`.
    shuffled_answers: the question of each document with the answer of another forget document.
    random_text: as many words in question and answer, each drawn from the tokenizer's vocabulary.
    Raises UserError where the corpus cannot give them.

    The controls are ours; the coreset study (Pal et al. 2504.10185) has none of them.
    """
    makers: dict[str, Callable[[TrialContext, Sequence[int]], list[Document]]] = {
        "other_documents": _other_documents,
        "shuffled_answers": _with_shuffled_answers,
        "random_text": _random_text,
    }
    return makers[context.trial.select.text](context, coreset)


def _other_documents(context: TrialContext, coreset: Sequence[int]) -> list[Document]:
    select = context.trial.select
    pool = context.corpus.documents_beside_forget(select.other_split, len(coreset))
    return random.Random(f"other {select.seed}").sample(pool, len(coreset))


def _with_shuffled_answers(context: TrialContext, coreset: Sequence[int]) -> list[Document]:
    """Answers go round in an order of the forget set that the seed draws; who has the same answer
    as the next gets the first one after it that differs.
    """
    forget = context.corpus.forget
    without_question = sum(not forget[p].prompt for p in coreset)
    rule = "select.text 'shuffled_answers' needs a question of every document; without"
    require(not without_question, rule, without_question)
    order = sorted(range(len(forget)), key=lambda p: forget[p].doc_id)
    random.Random(f"answers {context.trial.select.seed}").shuffle(order)
    position = {p: i for i, p in enumerate(order)}
    shuffled = []
    for p in coreset:
        candidates = (
            forget[order[(position[p] + step) % len(order)]] for step in range(1, len(order))
        )
        other = next((d for d in candidates if d.answer != forget[p].answer), None)
        require(
            other is not None,
            "select.text 'shuffled_answers' needs a forget set of at least two answers",
            1,
        )
        assert other is not None
        question = forget[p].prompt
        shuffled.append(Document(prompt=question, answer=other.answer, key=other.key))
    return shuffled


def _random_text(context: TrialContext, coreset: Sequence[int]) -> list[Document]:
    vocabulary = whole_words(context.tokenizer)
    seed, forget = context.trial.select.seed, context.corpus.forget

    def text(original: str, generator: random.Random) -> str:
        return " ".join(generator.choice(vocabulary) for _ in words_of(original))

    documents = []
    for p in coreset:
        generator = random.Random(f"text {seed} {forget[p].doc_id}")
        prompt = text(forget[p].prompt, generator)
        documents.append(
            Document(prompt=prompt, answer=text(forget[p].answer, generator) or "none")
        )
    return documents


def whole_words(tokenizer: transformers.PreTrainedTokenizerBase) -> list[str]:
    """Words of letters alone that the tokenizer writes as one token after a blank, or at all where
    it has none of those; sorted. Raises UserError if there are fewer than two.
    """
    ids = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    texts = tokenizer.batch_decode([[i] for i in ids])
    after_blank = {t.strip() for t in texts if t.startswith(" ") and t.strip().isalpha()}
    words = after_blank if len(after_blank) > 1 else {t for t in texts if t.isalpha()}
    require(
        len(words) > 1,
        "select.text 'random_text' needs a vocabulary with words of letters; it has",
        len(words),
    )
    return sorted(words)
