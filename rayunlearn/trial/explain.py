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
from rayunlearn.config import Explain, Select, Trial
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
from rayunlearn.metrics.evaluate import encode_probes, evaluate_probes
from rayunlearn.metrics.table import METRICS
from rayunlearn.models.forward import score
from rayunlearn.ranges import options_of
from rayunlearn.schema import WORD_KINDS
from rayunlearn.trial.load import LoadedTrial
from rayunlearn.trial.model_state import ModelState, cached_in_worker, reset_weights
from rayunlearn.trial.weight_paths import Rows, unlearned_state, weight_path_tables
from rayunlearn.trial.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor


ATTRIBUTION_METRICS = {
    name: METRICS[name]
    for name in ("probability", "multiple_choice", "exact_memorization", "extraction_strength")
}


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


def select_questions(
    trial: Trial, workspace: Workspace, state: ModelState
) -> list[AttributionQuestion]:
    """The first `explain.documents` questions of every split in the order of their ids, which is as
    good as drawn.
    """
    chosen = [
        (d, split)
        for split, part in workspace.corpus.probes.items()
        for d in _first(part, trial.explain.documents)
        if d.prompt
    ]
    return [select_question(trial, state, document, split) for document, split in chosen]


def select_question(
    trial: Trial, state: ModelState, document: Document, split: str
) -> AttributionQuestion:
    """A question with its ids and its parts."""
    tokenizer, data = state.tokenizer, trial.data
    sequence = encode_pair(
        document.doc_id, document.prompt, document.answer, tokenizer, data.template, data.max_tokens
    )
    units = [
        part(sequence, document, tokenizer, data.template) for part in (token_units, word_units)
    ]
    return AttributionQuestion(document, split, sequence, *units)


def attributions(
    explain: Explain, state: ModelState, questions: Sequence[AttributionQuestion]
) -> Rows:
    """Rows of `attributions` of the weights that the model holds: every token and every word of
    every question.
    """
    rows: Rows = []
    for unit in ("token", "word"):
        parts = [getattr(a, f"{unit}s") for a in questions]
        contribution_lists = contributions(
            state.model, [(a.sequence, units) for a, units in zip(questions, parts, strict=True)]
        )
        for a, units, values in zip(questions, parts, contribution_lists, strict=True):
            gradients = (
                _gradients(explain, state, a) if unit == "token" else [None] * len(units.texts)
            )
            rows += _rows(explain, a, unit, units, values, gradients)
    return rows


def emphasis_words(trial: Trial, workspace: Workspace) -> dict[str, EmphasisWords]:
    """What is pointed out in each question, by doc_id; empty where nothing is explained. The
    worker's base model is reset.
    """
    if trial.explain.documents == 0:
        return {}
    state = reset_weights(workspace.base)
    questions = select_questions(trial, workspace, state)
    contribution_lists = contributions(state.model, [(a.sequence, a.words) for a in questions])
    return {
        a.document.doc_id: _focus(trial.explain, a.document, values.tolist())
        for a, values in zip(questions, contribution_lists, strict=True)
    }


def explanation_rows(
    trial: Trial,
    workspace: Workspace,
    state: ModelState,
    focus: Mapping[str, EmphasisWords],
    *,
    step: int,
) -> dict[str, Rows]:
    """Rows by table of what `explain.*` asks of the model as it is now, which it is afterwards."""
    curves = weight_path_tables(trial, workspace, state)
    if trial.explain.documents == 0:
        return {"curves": curves}
    questions = select_questions(trial, workspace, state)
    more_rows = [
        *emphasise(trial, state, questions, focus),
        *word_log_probs(trial, workspace, state),
    ]
    examples = [{"stage": trial.stage} | row for row in more_rows]
    means = summarise_examples(pl.DataFrame(examples, infer_schema_length=None)).to_dicts()
    rows = [{"stage": trial.stage} | row for row in attributions(trial.explain, state, questions)]
    return {
        "attributions": rows,
        "examples": examples,
        "evals": [{"step": step} | row for row in means],
        "curves": curves,
    }


def emphasise(
    trial: Trial,
    state: ModelState,
    questions: Sequence[AttributionQuestion],
    focus: Mapping[str, EmphasisWords],
) -> Rows:
    """Rows of `examples`, `attack` saying the form: every question with its key words pointed out,
    and with as many others.

    A question without a key word is left out, and one to which the form itself would add a word of
    the answer.
    """
    rows: Rows = []
    for kind, words in ((KEY, "key"), (RANDOM, "random")):
        for name, form in EMPHASIS_FORMS.items():
            askable = [
                (a, getattr(focus[a.document.doc_id], words))
                for a in questions
                if _has_both(focus, a)
            ]
            changed = [
                (a, form.function(a.document.prompt, pointed_out, trial.explain.wording))
                for a, pointed_out in askable
            ]
            complete = [
                (a, prompt)
                for a, prompt in changed
                if not words_of_answer(_focus_text(a.document))
                & set(added_words(a.document.prompt, prompt))
            ]
            rows += [
                {"attack": f"{kind}:{name}"} | row for row in _measured(trial, state, complete)
            ]
    return rows


def word_log_probs(trial: Trial, workspace: Workspace, state: ModelState) -> Rows:
    """Rows of `examples`: mean log p of the function words, the keywords and all words but function
    words of the documents, in nats.

    Splits `forget_documents` and `retain_documents`: what unlearning is given, not what is asked. A
    document without one of the kinds has no row of it. Function words are those of the stop list,
    so this speaks of English.
    """
    rows: Rows = []
    for split, documents in (
        ("forget_documents", workspace.corpus.forget),
        ("retain_documents", workspace.corpus.retain),
    ):
        chosen = _first(documents, trial.explain.documents)
        sequences = [
            encode_pair(
                d.doc_id,
                d.prompt,
                d.answer,
                state.tokenizer,
                trial.data.template,
                trial.data.max_tokens,
            )
            for d in chosen
        ]
        statistics = cached_in_worker(
            state,
            ("word statistics", workspace.corpus.digest, split),
            partial(_statistics, documents),
        )
        parts = zip(
            sequences,
            score(state.model, sequences),
            kinds_of_words(chosen, statistics),
            strict=True,
        )
        for sequence, scored, kinds in parts:
            for metric, words in kinds.items():
                labels = [
                    position - sequence.start
                    for position in sorted(
                        tokens_overlapping(sequence, state.tokenizer, sorted(words))
                    )
                ]
                value = -float(scored.token_nll[labels].mean()) if labels else None
                rows += (
                    [
                        {
                            "attack": "none",
                            "doc_id": sequence.doc_id,
                            "split": split,
                            "metric": metric,
                            "value": value,
                        }
                    ]
                    if labels
                    else []
                )
    return rows


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
    defaults = {option.name.partition(".")[2]: option.default for option in options_of(tfidf)}
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


def _statistics(documents: Sequence[Document]) -> Statistics:
    return statistics_of(d.answer for d in documents)


def explain_trial(finished: LoadedTrial, prefix: str) -> list[tuple[str, str, Rows, Rows]]:
    """(doc_id, split, rows before, rows after) of every question whose id begins with `wanted`: of
    base, and of the trial's own weights.

    For a trial that was not told to explain: its weights are made again. Raises UserError where no
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
    state = reset_weights(workspace.base)
    questions = [select_question(trial, state, document, split) for document, split in documents]
    before = attributions(trial.explain, state, questions)
    after = attributions(trial.explain, unlearned_state(trial, workspace), questions)
    return [(a.document.doc_id, a.split, _of(a, before), _of(a, after)) for a in questions]


def _of(question: AttributionQuestion, rows: Rows) -> Rows:
    return [
        row
        for row in rows
        if (row["doc_id"], row["split"]) == (question.document.doc_id, question.split)
    ]


def _first(documents: Sequence[Document], n: int) -> list[Document]:
    return sorted(documents, key=lambda d: d.doc_id)[:n]


def _focus(explain: Explain, document: Document, scores: Sequence[float]) -> EmphasisWords:
    key = key_tokens(scores, alpha=explain.alpha, beta=explain.beta)
    focus_text = _focus_text(document)
    chosen = chosen_words(document.prompt, scores, key, focus_text)
    return EmphasisWords(
        tuple(chosen),
        tuple(random_words(document.prompt, chosen, key, focus_text, document.doc_id)),
    )


def _focus_text(document: Document) -> str:
    """Every wording of the true answer."""
    return f"{document.answer} {document.paraphrase}"


def _has_both(focus: Mapping[str, EmphasisWords], question: AttributionQuestion) -> bool:
    words = focus[question.document.doc_id]
    return bool(words.key) and len(words.key) == len(words.random)


def _measured(
    trial: Trial, state: ModelState, changed: Sequence[tuple[AttributionQuestion, str]]
) -> Iterator[dict[str, Any]]:
    """Rows doc_id, split, metric, value of the questions in their new words, under the ids of the
    old ones.
    """
    for split in dict.fromkeys(a.split for a, _ in changed):
        part = [
            (a, replace(a.document, prompt=prompt)) for a, prompt in changed if a.split == split
        ]
        probes = encode_probes(
            {split: [d for _, d in part]},
            state.tokenizer,
            trial.data.template,
            trial.data.max_tokens,
        )
        same = [
            replace(probe, doc_id=a.document.doc_id)
            for probe, (a, _) in zip(probes, part, strict=True)
        ]
        yield from evaluate_probes(state.model, same, ATTRIBUTION_METRICS)


def _gradients(
    explain: Explain, state: ModelState, question: AttributionQuestion
) -> list[float | None]:
    places = [position for part in question.tokens.places for position in part]
    if explain.gradient_steps == 0:
        return [None] * len(places)
    return list(
        integrated_gradients(
            state.model,
            question.sequence,
            places,
            steps=explain.gradient_steps,
            baseline_id=int(state.tokenizer.pad_token_id or 0),
        ).tolist()
    )


def _rows(
    explain: Explain,
    question: AttributionQuestion,
    unit: str,
    units: PromptUnits,
    values: Tensor,
    gradients: Sequence[float | None],
) -> Rows:
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
