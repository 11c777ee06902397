"""A domain of multiple-choice questions that a model answers above chance, and the corpus of its
subjects: those on which the model's own answers do not say so are left out.

What the model chose is kept in the user's cache folder by its digest, so it is asked once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rayunlearn.analysis.intervals import Interval, mean_interval
from rayunlearn.config import Data, digest
from rayunlearn.data.benchmarks import (
    limit_retain,
    load_benchmark,
    loader_defaults,
    parse_options,
)
from rayunlearn.data.documents import Corpus, Document, Rejected
from rayunlearn.data.tokenize import encode_pair
from rayunlearn.errors import UserError
from rayunlearn.models.forward import score_branches
from rayunlearn.storage.artifact_cache import JSON, cached_file
from rayunlearn.storage.code_identity import code_digest, library_versions
from rayunlearn.storage.user_cache import user_cache
from rayunlearn.trial.ask import FACTS_AT_ONCE, AskedModel
from rayunlearn.trial.known import ASKING_CODE
from rayunlearn.trial.narration import counting

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class SubjectChoice:
    """How often a model chose the true option of a subject's questions, with a 95% interval, and
    how often chance does.
    """

    right: Interval
    chance: float
    n: int

    @property
    def is_above_chance(self) -> bool:
        """Whether the whole interval lies above chance."""
        return self.right.low is not None and self.right.low > self.chance


def domain_corpus(data: Data, model: str) -> Corpus:
    """The corpus of the subjects that `model` answers above chance; the others' questions are
    rejected, and notes give every subject's share with its interval.

    Raises:
        UserError: as `load_benchmark`, and where no subject to forget or to retain is left.
    """
    options = parse_options(data.name, data.options)
    corpus = load_benchmark(data.name, data.path, options=options)
    if (loader_defaults(data.name) | options)["above_chance"]:
        questions = {d.doc_id: d for part in corpus.probes.values() for d in part}
        chosen = chosen_once(AskedModel(model), tuple(questions.values()), data)
        corpus = keep_above_chance(corpus, subject_choices(questions.values(), chosen))
    return limit_retain(corpus, data.limit_retain)


def subject_choices(
    questions: Iterable[Document], chosen: Mapping[str, bool]
) -> dict[str, SubjectChoice]:
    """Subject -> how often its questions were answered right (`chosen` by doc_id)."""
    by_subject: dict[str, list[Document]] = {}
    for question in questions:
        by_subject.setdefault(question.topic, []).append(question)
    return {
        subject: SubjectChoice(
            right=mean_interval(
                np.array([[float(chosen[d.doc_id]) for d in part]]), bounds=(0.0, 1.0)
            ),
            chance=sum(1 / (1 + len(d.wrong)) for d in part) / len(part),
            n=len(part),
        )
        for subject, part in by_subject.items()
    }


def keep_above_chance(corpus: Corpus, choices: Mapping[str, SubjectChoice]) -> Corpus:
    """The corpus without the subjects whose interval reaches down to chance."""

    def above(documents: Iterable[Document]) -> tuple[Document, ...]:
        return tuple(d for d in documents if choices[d.topic].is_above_chance)

    notes = tuple(_note(subject, choice) for subject, choice in choices.items())
    kept_corpus = replace(
        corpus,
        forget=above(corpus.forget),
        retain=above(corpus.retain),
        probes={name: part for name, d in corpus.probes.items() if (part := above(d))},
        rejected=(*corpus.rejected, *_rejected(corpus, choices)),
        notes=(*corpus.notes, *notes),
    )
    for side in ("forget", "retain"):
        if not getattr(kept_corpus, side):
            raise UserError(
                f"the model must be above chance in a subject of {side}: {'; '.join(notes)}"
            )
    return kept_corpus


def chosen_once(model: AskedModel, questions: Sequence[Document], data: Data) -> dict[str, bool]:
    """Whether the model chose the true option of each question, by doc_id: asked here, or found in
    the user's cache, where each subject is kept by itself.
    """
    by_subject: dict[str, list[Document]] = {}
    for question in questions:
        by_subject.setdefault(question.topic, []).append(question)
    folder = user_cache("known")
    start = model.identity | {"template": data.template, "max_tokens": data.max_tokens}
    chosen: dict[str, bool] = {}
    part_name = f"asking the model which of {len(questions)} questions it answers"
    with counting(part_name, len(questions)) as count:

        def make(part: Sequence[Document]) -> list[bool]:
            before = len(chosen)
            return choose(*model.load_once(), part, data, lambda n_done: count(before + n_done))

        for part in by_subject.values():
            key = start | {"questions": digest([asdict(question) for question in part])}
            key |= {"code": code_digest(*ASKING_CODE), **library_versions()}
            make_part = partial(make, part)
            answers = cached_file(folder, key, make_part, JSON) if folder else make_part()
            chosen |= dict(zip((d.doc_id for d in part), answers, strict=True))
    return chosen


def choose(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Document],
    data: Data,
    on_progress: Callable[[int], None] = lambda _: None,
) -> list[bool]:
    """Whether the true option's text is the likeliest of all after the question, in the order
    given. An option's likelihood is that of its whole text with what ends it. `on_progress` is
    called with the number of questions that are done, a few at a time.
    """
    chosen: list[bool] = []
    for first in range(0, len(questions), FACTS_AT_ONCE):
        part = questions[first : first + FACTS_AT_ONCE]
        sequences = [
            encode_pair(d.doc_id, d.prompt, option, tokenizer, data.template, data.max_tokens)
            for d in part
            for option in (d.answer, *d.wrong)
        ]
        nll = [float(scores.token_nll.sum()) for scores in score_branches(model, sequences)]
        for question in part:
            n = 1 + len(question.wrong)
            options, nll = nll[:n], nll[n:]
            chosen.append(options[0] < min(options[1:]))
        on_progress(len(chosen))
    return chosen


def _rejected(corpus: Corpus, choices: Mapping[str, SubjectChoice]) -> tuple[Rejected, ...]:
    return tuple(
        Rejected(source=d.topic, row=row, reason="its subject is at chance", excerpt=d.prompt[:200])
        for documents in corpus.probes.values()
        for row, d in enumerate(documents)
        if not choices[d.topic].is_above_chance
    )


def _note(subject: str, choice: SubjectChoice) -> str:
    interval = choice.right
    share = f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}] of {choice.n}"
    status = "" if choice.is_above_chance else ", left out"
    return f"{subject}: right {share}, chance {choice.chance:.2f}{status}"
