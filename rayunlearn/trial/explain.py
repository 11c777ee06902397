"""What a trial says of words: contributions at base and at its own weights, questions asked again
with emphasis, weight paths.

`explain.*` asks for it. Words are chosen by what the model before unlearning goes by, so that every
model is asked the same emphasised questions, base and gold too: they are its controls, and so is
emphasis of as many words drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import polars as pl

from rayunlearn.analysis.intervals import summarise_examples
from rayunlearn.attribution.emphasis import (
    EMPHASIS_FORMS,
    added_words,
    chosen_words,
    random_words,
    words_of_answer,
)
from rayunlearn.attribution.integrated_gradients import integrated_gradients
from rayunlearn.attribution.leave_one_out import (
    PromptUnits,
    contributions,
    key_tokens,
    token_units,
    word_units,
)
from rayunlearn.config import Explain, Select, names_in
from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import Encoded, encode_pair
from rayunlearn.errors import require
from rayunlearn.keywords.ablation import keyword_positions
from rayunlearn.keywords.extract import KeywordInputs, extract
from rayunlearn.keywords.statistics import Statistics, statistics_of
from rayunlearn.keywords.stopwords import ENGLISH
from rayunlearn.keywords.table import tfidf
from rayunlearn.keywords.words import Word, words_of
from rayunlearn.methods.token_mask import tokens_overlapping
from rayunlearn.metrics.evaluate import chosen_metrics, encode_probes, evaluate_probes
from rayunlearn.metrics.table import METRICS, Metric
from rayunlearn.models.forward import score
from rayunlearn.ranges import options_of
from rayunlearn.schema import KEY_METRIC, RIGHT_METRIC, WORD_KINDS, Rows
from rayunlearn.trial.context import TrialContext, base_context
from rayunlearn.trial.load import LoadedTrial
from rayunlearn.trial.model_state import cached_in_worker
from rayunlearn.trial.rebuild import rebuild_model
from rayunlearn.trial.weight_paths import weight_path_tables

if TYPE_CHECKING:
    from torch import Tensor


EMPHASIS_METRICS = (
    "probability",
    KEY_METRIC,
    "multiple_choice",
    RIGHT_METRIC,
    "extraction_strength",
)

# `emphasis:quoted` is the value of column `attack`
KEY, RANDOM = "emphasis", "emphasis_random"


@dataclass(frozen=True)
class AttributionQuestion:
    """One question that is looked into: its document, its split, its ids, and the parts of it that
    can be left out.
    """

    document: Document
    split: str
    sequence: Encoded
    tokens: PromptUnits
    words: PromptUnits


@dataclass(frozen=True)
class EmphasisWords:
    """The words of one question that are pointed out, and as many others. A function of the base
    model.
    """

    key: tuple[Word, ...]
    random: tuple[Word, ...]


def select_questions(context: TrialContext) -> list[AttributionQuestion]:
    """The first `explain.documents` questions of every split (of those that `explain.splits` names)
    in the order of their ids, which is as good as drawn.
    """
    splits = names_in(context.trial.explain.splits)
    chosen = [
        (d, split)
        for split, part in context.corpus.probes.items()
        if not splits or split in splits
        for d in first_by_id(part, context.trial.explain.documents)
        if d.prompt
    ]
    return [select_question(context, document, split) for document, split in chosen]


def select_question(context: TrialContext, document: Document, split: str) -> AttributionQuestion:
    """A question with its ids and its parts."""
    tokenizer, data = context.tokenizer, context.trial.data
    sequence = encode_pair(
        document.doc_id, document.prompt, document.answer, tokenizer, data.template, data.max_tokens
    )
    units = [
        part(sequence, document, tokenizer, data.template) for part in (token_units, word_units)
    ]
    return AttributionQuestion(document, split, sequence, *units)


def attributions(context: TrialContext, questions: Sequence[AttributionQuestion]) -> Rows:
    """Rows of `attributions` of the weights that the model holds: every token and every word of
    every question.
    """
    rows: Rows = []
    for unit in ("token", "word"):
        units_by_question = [getattr(question, f"{unit}s") for question in questions]
        pairs = zip(questions, units_by_question, strict=True)
        contribution_lists = contributions(
            context.model, [(question.sequence, units) for question, units in pairs]
        )
        for question, units, values in zip(
            questions, units_by_question, contribution_lists, strict=True
        ):
            no_gradients: list[float | None] = [None] * len(units.texts)
            gradients = _token_gradients(context, question) if unit == "token" else no_gradients
            rows += _attribution_rows(context, question, unit, units, values, gradients)
    return rows


def emphasis_words(context: TrialContext) -> dict[str, EmphasisWords]:
    """What is pointed out in each question, by doc_id; empty where nothing is explained. The model
    must hold the base weights, whatever the trial is measured with.
    """
    if context.trial.explain.documents == 0:
        return {}
    questions = select_questions(context)
    contribution_lists = contributions(
        context.model, [(question.sequence, question.words) for question in questions]
    )
    return {
        question.document.doc_id: _choose_emphasis(
            context.trial.explain, question.document, values.tolist()
        )
        for question, values in zip(questions, contribution_lists, strict=True)
    }


def explanation_rows(
    context: TrialContext, emphasis: Mapping[str, EmphasisWords], *, step: int
) -> dict[str, Rows]:
    """Rows by table of what `explain.*` asks of the model as it is now, which it is afterwards."""
    trial, curves = context.trial, weight_path_tables(context)
    if trial.explain.documents == 0:
        return {"curves": curves}
    questions = select_questions(context)
    measured = [*emphasise(context, questions, emphasis), *word_log_probs(context)]
    examples = [{"stage": trial.stage} | row for row in measured]
    # a model that goes by no word of a question has nothing to emphasise
    frame = pl.DataFrame(examples, infer_schema_length=None)
    means = summarise_examples(frame).to_dicts() if examples else []
    return {
        "attributions": [{"stage": trial.stage} | row for row in attributions(context, questions)],
        "examples": examples,
        "evals": [{"step": step} | row for row in means],
        "curves": curves,
    }


def emphasise(
    context: TrialContext,
    questions: Sequence[AttributionQuestion],
    emphasis: Mapping[str, EmphasisWords],
) -> Rows:
    """Rows of `examples`, `attack` saying the form: every question with its key words pointed out,
    and with as many others.

    A question without a key word is left out, and one to which the form itself would add a word of
    the answer.
    """
    wording = context.trial.explain.wording
    askable = [question for question in questions if _has_both(emphasis, question)]
    rows: Rows = []
    for kind, words in ((KEY, "key"), (RANDOM, "random")):
        for name, form in EMPHASIS_FORMS.items():
            prompts = [
                form.function(
                    question.document.prompt,
                    getattr(emphasis[question.document.doc_id], words),
                    wording,
                )
                for question in askable
            ]
            emphasised = [
                (question, prompt)
                for question, prompt in zip(askable, prompts, strict=True)
                if not _adds_answer_word(question.document, prompt)
            ]
            rows += [{"attack": f"{kind}:{name}"} | row for row in _measure(context, emphasised)]
    return rows


def word_log_probs(context: TrialContext) -> Rows:
    """Rows of `examples`: mean log p of the function words, the keywords and all words but function
    words of the documents, in nats.

    Splits `forget_documents` and `retain_documents`: what unlearning is given, not what is asked. A
    document without one of the kinds has no row of it. Function words are those of the stop list,
    so this speaks of English.
    """
    corpus = context.corpus
    sides = (("forget_documents", corpus.forget), ("retain_documents", corpus.retain))
    return [
        row for split, documents in sides for row in _side_word_log_probs(context, split, documents)
    ]


def _side_word_log_probs(
    context: TrialContext, split: str, documents: Sequence[Document]
) -> Iterator[dict[str, Any]]:
    """The rows of `word_log_probs` of one side of the corpus."""
    data, tokenizer = context.trial.data, context.tokenizer
    chosen = first_by_id(documents, context.trial.explain.documents)
    sequences = [
        encode_pair(d.doc_id, d.prompt, d.answer, tokenizer, data.template, data.max_tokens)
        for d in chosen
    ]
    key = ("word statistics", context.corpus.digest, split)
    statistics = cached_in_worker(context.state, key, partial(_answer_statistics, documents))
    scores = score(context.model, sequences)
    kinds_by_document = kinds_of_words(chosen, statistics)
    for sequence, scored, kinds in zip(sequences, scores, kinds_by_document, strict=True):
        common = {"attack": "none", "doc_id": sequence.doc_id, "split": split}
        for metric, words in kinds.items():
            positions = sorted(tokens_overlapping(sequence, tokenizer, sorted(words)))
            labels = [position - sequence.start for position in positions]
            if labels:
                value = -float(scored.token_nll[labels].mean())
                yield {**common, "metric": metric, "value": value}


def kinds_of_words(
    documents: Sequence[Document], statistics: Statistics
) -> list[dict[str, frozenset[str]]]:
    """Metric -> keys of the words that it is the mean of, for each document; `statistics` are those
    of its side of the corpus.

    Keywords are the best of `tfidf` that make up at most three tenths of the words
    (`select.keyword_fraction`'s default), function words left out, whatever the trial's own
    extractor is: base and whole-set trials have none, and all must be asked the same words.
    """
    fraction = Select().keyword_fraction
    defaults = {option.argument: option.default for option in options_of(tfidf)}
    extracted = extract(tfidf.__name__, KeywordInputs(documents, statistics=statistics), defaults)
    kinds = []
    for document, keywords in zip(documents, extracted, strict=True):
        words = words_of(document.answer)
        keys = frozenset(w.key for w in words)
        chosen = frozenset(
            words[index].key for index in keyword_positions(words, keywords, fraction)
        )
        kinds.append(
            dict(zip(WORD_KINDS, (keys & ENGLISH, chosen - ENGLISH, keys - ENGLISH), strict=True))
        )
    return kinds


def _answer_statistics(documents: Sequence[Document]) -> Statistics:
    return statistics_of(d.answer for d in documents)


def explain_trial(finished: LoadedTrial, prefix: str) -> list[tuple[str, str, Rows, Rows]]:
    """(doc_id, split, rows before, rows after) of every question whose id begins with `prefix`: of
    base, and of the trial's own weights.

    For a trial that was not told to explain: its weights are rebuilt. Raises UserError where no
    question fits.
    """
    trial, workspace = finished.trial, finished.workspace
    documents = [
        (d, split)
        for split, part in workspace.corpus.probes.items()
        for d in part
        if d.prompt and d.doc_id.startswith(prefix)
    ]
    require(
        bool(documents),
        "--doc must be a question of the trial's probes, or the beginning of one's id",
        prefix,
    )
    base = base_context(trial, workspace)
    questions = [select_question(base, document, split) for document, split in documents]
    before = attributions(base, questions)
    # the same model with other weights, so base had to answer first
    after = attributions(rebuild_model(trial, workspace), questions)
    return [
        (q.document.doc_id, q.split, _rows_of_question(q, before), _rows_of_question(q, after))
        for q in questions
    ]


def _rows_of_question(question: AttributionQuestion, rows: Rows) -> Rows:
    return [
        row
        for row in rows
        if (row["doc_id"], row["split"]) == (question.document.doc_id, question.split)
    ]


def first_by_id(documents: Sequence[Document], n: int) -> list[Document]:
    """The documents that are taken apart: an id says nothing of its document."""
    return sorted(documents, key=lambda d: d.doc_id)[:n]


def _choose_emphasis(
    explain: Explain, document: Document, scores: Sequence[float]
) -> EmphasisWords:
    key = key_tokens(scores, alpha=explain.alpha, beta=explain.beta)
    answers = _answer_wordings(document)
    chosen = chosen_words(document.prompt, scores, key, answers)
    return EmphasisWords(
        tuple(chosen),
        tuple(random_words(document.prompt, chosen, key, answers, document.doc_id)),
    )


def _answer_wordings(document: Document) -> str:
    """Every wording of the true answer."""
    return f"{document.answer} {document.paraphrase}"


def _adds_answer_word(document: Document, prompt: str) -> bool:
    """Whether the prompt has a word of the answer that the document's own prompt has not."""
    added = set(added_words(document.prompt, prompt))
    return bool(words_of_answer(_answer_wordings(document)) & added)


def _has_both(emphasis: Mapping[str, EmphasisWords], question: AttributionQuestion) -> bool:
    words = emphasis[question.document.doc_id]
    return bool(words.key) and len(words.key) == len(words.random)


def _measure(
    context: TrialContext, questions: Sequence[tuple[AttributionQuestion, str]]
) -> Iterator[dict[str, Any]]:
    """Rows doc_id, split, metric, value of the questions in their new words, under the ids of the
    old ones.
    """
    data = context.trial.data
    for split in dict.fromkeys(question.split for question, _ in questions):
        documents = [
            (question.document, replace(question.document, prompt=prompt))
            for question, prompt in questions
            if question.split == split
        ]
        changed = {split: [document for _, document in documents]}
        probes = encode_probes(changed, context.tokenizer, data.template, data.max_tokens)
        renamed = [
            replace(probe, doc_id=original.doc_id)
            for probe, (original, _) in zip(probes, documents, strict=True)
        ]
        yield from evaluate_probes(
            context.model, renamed, emphasis_metrics(context.trial.measure.metrics)
        )


def emphasis_metrics(metrics: str) -> dict[str, Metric]:
    """What emphasised questions are measured by: those of `EMPHASIS_METRICS` that the trial is
    asked for (`measure.metrics`), so that wrong options are passed only where they count.
    """
    measured = chosen_metrics(metrics)
    return {name: METRICS[name] for name in EMPHASIS_METRICS if name in measured}


def _token_gradients(context: TrialContext, question: AttributionQuestion) -> list[float | None]:
    """Integrated gradients of the question's tokens, None where the trial does not ask for them."""
    places = [position for part in question.tokens.places for position in part]
    steps = context.trial.explain.gradient_steps
    if steps == 0:
        return [None] * len(places)
    gradients = integrated_gradients(
        context.model,
        question.sequence,
        places,
        steps=steps,
        baseline_id=int(context.tokenizer.pad_token_id or 0),
    )
    return list(gradients.tolist())


def _attribution_rows(
    context: TrialContext,
    question: AttributionQuestion,
    unit: str,
    units: PromptUnits,
    values: Tensor,
    gradients: Sequence[float | None],
) -> Rows:
    explain = context.trial.explain
    common = {"doc_id": question.document.doc_id, "split": question.split, "unit": unit}
    key = key_tokens(values.tolist(), alpha=explain.alpha, beta=explain.beta)
    parts = zip(units.texts, values.tolist(), key, gradients, strict=True)
    return [
        common
        | {
            "position": index,
            "token": text,
            "contribution": value,
            "is_key": is_key,
            "gradient": gradient,
        }
        for index, (text, value, is_key, gradient) in enumerate(parts)
    ]
