"""What a model knows by itself, asked before anything else, and the corpus of what it knows.

The facts are those of `data.known`; which of them a model knows is decided by
`data.known.KnownRule`. What the model answered is kept in the user's cache folder by the model's
digest, so it is asked once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

from rayunlearn.config import Data, digest
from rayunlearn.data import tokenize as tokenize_code
from rayunlearn.data.benchmarks import limit_retain, load_benchmark, parse_options
from rayunlearn.data.documents import Corpus, Document, Rejected
from rayunlearn.data.known import KnownRule, paraphrases_apart, rule_of
from rayunlearn.errors import UserError
from rayunlearn.models import forward as forward_code
from rayunlearn.models import (
    fused_functions,
    fused_layers,
    packed_attention,
    packed_layout,
    packing,
)
from rayunlearn.storage.artifact_cache import JSON, cached_file
from rayunlearn.storage.code_identity import code_digest, library_versions
from rayunlearn.storage.user_cache import user_cache
from rayunlearn.trial import ask as ask_code
from rayunlearn.trial.ask import AskedModel, Knowledge, ask
from rayunlearn.trial.narration import counting

# the code that decides what a model is found to know
ASKING_CODE = (
    ask_code,
    forward_code,
    fused_functions,
    fused_layers,
    packed_attention,
    packed_layout,
    packing,
    tokenize_code,
)


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
    kept_corpus = keep_known(corpus, rule_of(options), knowledge)
    return limit_retain(paraphrases_apart(kept_corpus), data.limit_retain)


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
    each slice of a relation is kept by itself. A command says how far it is.
    """
    by_topic: dict[str, list[Document]] = {}
    for document in documents:
        by_topic.setdefault(document.topic, []).append(document)
    folder = user_cache("known")
    asked_model = AskedModel(model)
    answers: dict[str, Knowledge] = {}
    part_name = f"asking the model which of {len(documents)} facts it knows"
    with counting(part_name, len(documents)) as count:

        def make(topic: str) -> list[dict[str, float]]:
            before = len(answers)
            said = ask(
                *asked_model.load_once(),
                by_topic[topic],
                template,
                lambda n_done: count(before + n_done),
            )
            return [asdict(knowledge) for knowledge in said]

        for topic, part in by_topic.items():
            key = asked_model.identity | {"template": template, "code": code_digest(*ASKING_CODE)}
            key |= {"facts": digest([asdict(document) for document in part]), **library_versions()}
            make_topic = partial(make, topic)
            rows = cached_file(folder, key, make_topic, JSON) if folder else make_topic()
            answers |= {d.doc_id: Knowledge(**row) for d, row in zip(part, rows, strict=True)}
    return answers


def _note(name: str, reasons: Counter[str], n_over: int) -> str:
    """How many facts of a set were asked and kept, and why the others were not; '' is no reason."""
    causes = [f"{n} {reason}" for reason, n in reasons.items() if reason]
    causes += [f"{n_over} over known.limit"] if n_over else []
    counts = f"known, {name}: {reasons.total()} asked, {reasons[''] - n_over} kept"
    return counts + (f" (not kept: {', '.join(causes)})" if causes else "")


def _limited(documents: Sequence[Document], limit: int) -> tuple[Document, ...]:
    order = sorted(digest(["known", d.doc_id]) for d in documents)[: limit or None]
    return tuple(d for d in documents if digest(["known", d.doc_id]) in order)
