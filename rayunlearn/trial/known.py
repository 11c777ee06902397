"""What a model knows by itself, asked before anything else, and the corpus of what it knows.

The facts are those of `data.known`; which of them a model knows is decided by
`data.known.KnownRule`. What the model answered is kept in the user's cache folder by the model's
digest, so it is asked once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from rayunlearn import models as model_code
from rayunlearn.config import Data, digest
from rayunlearn.data import known as known_code
from rayunlearn.data import tokenize as tokenize_code
from rayunlearn.data.benchmarks import limit_retain, load_benchmark, parse_options
from rayunlearn.data.documents import Corpus, Document, Rejected
from rayunlearn.data.known import KnownRule, key_places, rule_of
from rayunlearn.data.tokenize import Encoded, align
from rayunlearn.errors import UserError, require
from rayunlearn.lazy import torch
from rayunlearn.models.forward import Scored, score
from rayunlearn.models.load import load_model, model_digest
from rayunlearn.storage.artifact_cache import JSON, cached_file
from rayunlearn.storage.code_identity import code_digest, library_versions
from rayunlearn.storage.user_cache import user_cache
from rayunlearn.train.device import accelerator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# the code that decides what a model is found to know
ASKING_CODE = (model_code, known_code, tokenize_code)
# small batches: a model of 135 million parameters gains nothing from larger ones on a processor
ASKED_TOKENS = 2048
ASKING_LOG = logging.getLogger("rayunlearn.known")


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


def known_corpus(data: Data, model: str) -> Corpus:
    """The corpus of what `model` knows, by the rule in `data.options`; what it does not know is
    rejected with the reason, and notes count it by set.

    Raises:
        UserError: as `load_benchmark`; where the model knows nothing of the forget or the retain
            set; and where the tokenizer cannot say which characters a token stands for.
    """
    options = parse_options(data.name, data.options)
    corpus = load_benchmark(data.name, data.path, options=options)
    facts = {d.doc_id: d for part in corpus.probes.values() for d in part}
    knowledge = ask_once(model, tuple(facts.values()), data.template)
    return limit_retain(keep_known(corpus, rule_of(options), knowledge), data.limit_retain)


def keep_known(corpus: Corpus, rule: KnownRule, knowledge: Mapping[str, Knowledge]) -> Corpus:
    """The corpus without the facts that the rule does not count as known (`knowledge` by doc_id),
    and with at most `rule.limit` in each set.
    """
    probes: dict[str, tuple[Document, ...]] = {}
    rejected: list[Rejected] = []
    notes: list[str] = []
    for name, documents in corpus.probes.items():
        reasons = {d.doc_id: unknown_because(rule, knowledge[d.doc_id]) for d in documents}
        known_documents = [d for d in documents if not reasons[d.doc_id]]
        probes[name] = _limited(known_documents, rule.limit)
        rejected += [
            Rejected(source=d.topic, row=row, reason=reasons[d.doc_id], excerpt=d.answer)
            for row, d in enumerate(documents)
            if reasons[d.doc_id]
        ]
        n_over = len(known_documents) - len(probes[name])
        notes.append(_note(name, Counter(reasons.values()), n_over))
    for side in ("forget", "retain"):
        if not probes.get(side):
            raise UserError(f"the model must know a fact of {side}: {'; '.join(notes)}")
    return replace(
        corpus,
        forget=probes["forget"],
        retain=probes["retain"],
        probes={name: documents for name, documents in probes.items() if documents},
        rejected=(*corpus.rejected, *rejected),
        notes=(*corpus.notes, *notes),
    )


def unknown_because(rule: KnownRule, answer: Knowledge) -> str:
    """The first part of the rule that what the model said does not meet, '' where it knows the
    fact.
    """
    checks = (
        (answer.key >= rule.key_probability, "key_probability"),
        (answer.paraphrase >= rule.paraphrase_probability, "paraphrase_probability"),
        (answer.completion >= rule.completion_probability, "completion_probability"),
    )
    below = next((f"below known.{name}" for met, name in checks if not met), "")
    return below or ("a wrong answer is likelier" if rule.choice and answer.margin <= 0 else "")


def ask_once(model: str, documents: Sequence[Document], template: str) -> dict[str, Knowledge]:
    """What the model says of every fact, by doc_id: asked here, or found in the user's cache, where
    each slice of a relation is kept by itself.
    """
    by_topic: dict[str, list[Document]] = {}
    for document in documents:
        by_topic.setdefault(document.topic, []).append(document)
    folder = user_cache("known")
    loaded: list[tuple[PreTrainedModel, PreTrainedTokenizerBase]] = []
    start = {
        "model": model_digest(model),
        "template": template,
        "device": accelerator().device.type,
    }
    answers: dict[str, Knowledge] = {}

    def make(topic: str) -> list[dict[str, float]]:
        if not loaded:
            ASKING_LOG.warning("asking %s what it knows of %d facts", model, len(documents))
            loaded.append(load_model(model, dtype=torch.float32, device=str(accelerator().device)))
        return [asdict(answer) for answer in ask(*loaded[0], by_topic[topic], template)]

    for topic, part in by_topic.items():
        key = start | {"facts": digest([asdict(document) for document in part])}
        key |= {"code": code_digest(*ASKING_CODE), **library_versions()}
        make_topic = partial(make, topic)
        rows = cached_file(folder, key, make_topic, JSON) if folder else make_topic()
        answers |= {d.doc_id: Knowledge(**row) for d, row in zip(part, rows, strict=True)}
    return answers


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    template: str,
) -> list[Knowledge]:
    """What the model says of each fact, in order.

    Args:
        documents: facts with a key that stands once in the answer and in the paraphrase, and with
            wrong answers.
        template: of question and answer, `chat` for the tokenizer's own.
    """
    texts = [text for document in documents for text in _texts(document)]
    encoded = [_encode(*text, tokenizer, template) for text in texts]
    scored = score(model, [sequence for sequence, _ in encoded], ASKED_TOKENS)
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


def _texts(document: Document) -> list[tuple[str, str, str]]:
    """Question, answer and key ('': none) of every text that is scored for a fact: the answer, the
    paraphrase, the completion, the wrong answers.
    """
    completed = f"{document.completion_prompt} {document.key}"
    return [
        (document.prompt, document.answer, document.key),
        (document.prompt_paraphrase, document.paraphrase, document.key),
        ("", completed, document.key),
        *((document.prompt, wrong, "") for wrong in document.wrong),
    ]


def _encode(
    prompt: str, answer: str, key: str, tokenizer: PreTrainedTokenizerBase, template: str
) -> tuple[Encoded, range]:
    """The sequence, and which of its labels are the key's: the tokens with a character of it."""
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
        index - start
        for index, (begin, end) in enumerate(aligned.spans)
        if index >= start and begin < first + len(key) and end > first
    ]
    return sequence, range(inside[0], inside[-1] + 1)


def _key_probability(encoded: tuple[Encoded, range], scores: Scored) -> float:
    return float(torch.exp(-scores.token_nll[list(encoded[1])].sum()))


def _note(name: str, reasons: Counter[str], n_over: int) -> str:
    """How many facts of a set were asked and kept, and why the others were not; '' is no reason."""
    causes = [f"{n} {reason}" for reason, n in reasons.items() if reason]
    causes += [f"{n_over} over known.limit"] if n_over else []
    counts = f"known, {name}: {reasons.total()} asked, {reasons[''] - n_over} kept"
    return counts + (f" (not kept: {', '.join(causes)})" if causes else "")


def _limited(documents: Sequence[Document], limit: int) -> tuple[Document, ...]:
    order = sorted(digest(["known", d.doc_id]) for d in documents)[: limit or None]
    return tuple(d for d in documents if digest(["known", d.doc_id]) in order)
