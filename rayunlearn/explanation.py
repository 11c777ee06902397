"""What a trial says of words: contributions at base and at its own weights, questions asked again
with emphasis, weight paths.

`explain.*` asks for it. Words are chosen by what the model before unlearning goes by, so that every
model is asked the same emphasised questions, base and gold too: they are its controls, and so is
emphasis of as many words drawn at random.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import polars as pl
from torch import Tensor

from rayunlearn.attribution.contributions import (
    Units,
    contributions,
    key_tokens,
    token_units,
    word_units,
)
from rayunlearn.attribution.emphasis import (
    FORMS,
    added_words,
    answer_words,
    chosen_words,
    random_words,
)
from rayunlearn.attribution.gradients import integrated_gradients
from rayunlearn.config import Attack, Explain, Select, Trial
from rayunlearn.connectivity import along
from rayunlearn.data.documents import Document
from rayunlearn.data.encode import Encoded, encode_pair
from rayunlearn.errors import require
from rayunlearn.families import options_of
from rayunlearn.finished import Finished
from rayunlearn.keywords.arms import keyword_positions
from rayunlearn.keywords.corpus import Known, extract
from rayunlearn.keywords.extractors import tfidf
from rayunlearn.keywords.statistics import Statistics, statistics_of
from rayunlearn.keywords.stop import ENGLISH
from rayunlearn.keywords.words import Word, words_of
from rayunlearn.methods.tokens import touched
from rayunlearn.metrics.document import METRICS
from rayunlearn.metrics.measure import encode_probes, measure
from rayunlearn.models.forward import score
from rayunlearn.results.analysis import summarise
from rayunlearn.schema import WORD_KINDS
from rayunlearn.unlearning import probes_of
from rayunlearn.worker import Loaded, remembered, reset
from rayunlearn.workspace import Workspace

Rows = list[dict[str, Any]]
ASKED = {
    name: METRICS[name]
    for name in ("probability", "multiple_choice", "exact_memorization", "extraction_strength")
}
ON_PATH = {name: METRICS[name] for name in ("probability", "multiple_choice")}
# `emphasis:quoted` is the value of column `attack`
KEY, RANDOM = "emphasis", "emphasis_random"


@dataclass(frozen=True)
class Asked:
    """One question that is looked into: its document, its split, its ids, and the parts of it that
    can be left out.
    """

    document: Document
    split: str
    sequence: Encoded
    tokens: Units
    words: Units


@dataclass(frozen=True)
class Focus:
    """The words of one question that are pointed out, and as many others. A function of the base
    model.
    """

    key: tuple[Word, ...]
    random: tuple[Word, ...]


def asked_of(trial: Trial, workspace: Workspace, state: Loaded) -> list[Asked]:
    """The first `explain.documents` questions of every split in the order of their ids, which is as
    good as drawn.
    """
    chosen = [
        (d, split)
        for split, part in workspace.corpus.probes.items()
        for d in _first(part, trial.explain.documents)
        if d.prompt
    ]
    return [asked_one(trial, state, document, split) for document, split in chosen]


def asked_one(trial: Trial, state: Loaded, document: Document, split: str) -> Asked:
    """A question with its ids and its parts."""
    tokenizer, data = state.tokenizer, trial.data
    sequence = encode_pair(
        document.doc_id, document.prompt, document.answer, tokenizer, data.template, data.max_tokens
    )
    units = [
        part(sequence, document.prompt, tokenizer, data.template)
        for part in (token_units, word_units)
    ]
    return Asked(document, split, sequence, *units)


def attributions(explain: Explain, state: Loaded, asked: Sequence[Asked]) -> Rows:
    """Rows of `attributions` of the weights that the model holds: every token and every word of
    every question.
    """
    rows: Rows = []
    for unit in ("token", "word"):
        parts = [getattr(a, f"{unit}s") for a in asked]
        found = contributions(
            state.model, [(a.sequence, units) for a, units in zip(asked, parts, strict=True)]
        )
        for a, units, values in zip(asked, parts, found, strict=True):
            gradients = (
                _gradients(explain, state, a) if unit == "token" else [None] * len(units.texts)
            )
            rows += _rows(explain, a, unit, units, values, gradients)
    return rows


def focus_of(trial: Trial, workspace: Workspace) -> dict[str, Focus]:
    """What is pointed out in each question, by doc_id; empty where nothing is explained. The
    worker's base model is reset.
    """
    if trial.explain.documents == 0:
        return {}
    state = reset(workspace.base)
    asked = asked_of(trial, workspace, state)
    found = contributions(state.model, [(a.sequence, a.words) for a in asked])
    return {
        a.document.doc_id: _focus(trial.explain, a.document, values.tolist())
        for a, values in zip(asked, found, strict=True)
    }


def explained(
    trial: Trial, workspace: Workspace, state: Loaded, focus: Mapping[str, Focus], *, step: int
) -> dict[str, Rows]:
    """Rows by table of what `explain.*` asks of the model as it is now, which it is afterwards."""
    curves = paths(trial, workspace, state)
    if trial.explain.documents == 0:
        return {"curves": curves}
    asked = asked_of(trial, workspace, state)
    found = [*emphasised(trial, state, asked, focus), *word_log_probs(trial, workspace, state)]
    examples = [{"stage": trial.stage} | row for row in found]
    means = summarise(pl.DataFrame(examples, infer_schema_length=None)).to_dicts()
    rows = [{"stage": trial.stage} | row for row in attributions(trial.explain, state, asked)]
    return {
        "attributions": rows,
        "examples": examples,
        "evals": [{"step": step} | row for row in means],
        "curves": curves,
    }


def emphasised(
    trial: Trial, state: Loaded, asked: Sequence[Asked], focus: Mapping[str, Focus]
) -> Rows:
    """Rows of `examples`, `attack` saying the form: every question with its key words pointed out,
    and with as many others.

    A question without a key word is left out, and one to which the form itself would add a word of
    the answer.
    """
    rows: Rows = []
    for kind, words in ((KEY, "key"), (RANDOM, "random")):
        for name, form in FORMS.items():
            there = [
                (a, getattr(focus[a.document.doc_id], words)) for a in asked if _has_both(focus, a)
            ]
            changed = [
                (a, form.function(a.document.prompt, pointed_out, trial.explain.wording))
                for a, pointed_out in there
            ]
            kept = [
                (a, prompt)
                for a, prompt in changed
                if not answer_words(_told(a.document)) & set(added_words(a.document.prompt, prompt))
            ]
            rows += [{"attack": f"{kind}:{name}"} | row for row in _measured(trial, state, kept)]
    return rows


def word_log_probs(trial: Trial, workspace: Workspace, state: Loaded) -> Rows:
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
        statistics = remembered(
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
                    place - sequence.start
                    for place in sorted(touched(sequence, state.tokenizer, sorted(words)))
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
    found = extract(tfidf.__name__, Known(documents, statistics=statistics), defaults)
    kinds = []
    for document, keywords in zip(documents, found, strict=True):
        words = words_of(document.answer)
        keys = frozenset(w.key for w in words)
        chosen = frozenset(words[at].key for at in keyword_positions(words, keywords, fraction))
        kinds.append(
            dict(zip(WORD_KINDS, (keys & ENGLISH, chosen - ENGLISH, keys - ENGLISH), strict=True))
        )
    return kinds


def _statistics(documents: Sequence[Document]) -> Statistics:
    return statistics_of(d.answer for d in documents)


def paths(trial: Trial, workspace: Workspace, state: Loaded) -> Rows:
    """Rows of `curves`: the line from the full-set model to the trial's own, and from base to it,
    `explain.path_points` each.

    The full-set model is the trial at ratio 1.0 with everything else the same. Kind
    `mode_connectivity:full` (x 0 is the full-set model) and `mode_connectivity:base` (x 0 is base).
    `state.model` holds the trial's weights before and after.
    """
    points = trial.explain.path_points
    if points == 0 or trial.stage != "unlearned":
        return []
    own = weights_of(state)
    starts = {"base": state.pristine}
    twin = full_set_twin(trial)
    if twin != trial:
        starts["full"] = weights_of(remade_state(twin, workspace))
        state.model.load_state_dict(own)
    return [
        row
        for name, start in starts.items()
        for row in path_rows(
            trial, workspace, state, start, own, f"mode_connectivity:{name}", points
        )
    ]


def looked_into(finished: Finished, wanted: str) -> list[tuple[str, str, Rows, Rows]]:
    """(doc_id, split, rows before, rows after) of every question whose id begins with `wanted`: of
    base, and of the trial's own weights.

    For a trial that was not told to explain: its weights are made again. Raises UserError where no
    question fits.
    """
    trial, workspace = finished.trial, finished.workspace
    found = [
        (d, split)
        for split, part in workspace.corpus.probes.items()
        for d in part
        if d.prompt and d.doc_id.startswith(wanted)
    ]
    require(
        bool(found),
        "--doc must be a question of the trial's probes, or the beginning of one's id",
        wanted,
    )
    state = reset(workspace.base)
    asked = [asked_one(trial, state, document, split) for document, split in found]
    before = attributions(trial.explain, state, asked)
    after = attributions(trial.explain, remade_state(trial, workspace), asked)
    return [(a.document.doc_id, a.split, _of(a, before), _of(a, after)) for a in asked]


def between_trials(one: Finished, other: Finished, *, points: int) -> Rows:
    """Rows of `curves` on the straight line from one trial's weights (x 0) to another's (x 1),
    asked the second one's probes.

    Raises UserError where the two are not of one architecture, or `points` is below 3.
    """
    start = weights_of(remade_state(one.trial, one.workspace))
    state = remade_state(other.trial, other.workspace)
    return path_rows(
        other.trial,
        other.workspace,
        state,
        start,
        weights_of(state),
        f"mode_connectivity:{one.trial_id}",
        points,
    )


def remade_state(trial: Trial, workspace: Workspace) -> Loaded:
    """`remade.remade`, which imports the trial, which imports this."""
    from rayunlearn.remade import remade

    return remade(trial, workspace)


def path_rows(
    trial: Trial,
    workspace: Workspace,
    state: Loaded,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    kind: str,
    points: int,
) -> Rows:
    """Rows of `curves` (kind, x, split, metric, value, n, stderr) between two models, on every
    probe. The model ends as `end`.
    """
    probes = probes_of(workspace, state, trial.data)
    look = partial(measure, state.model, probes, ON_PATH)
    rows: Rows = []
    for x, examples in along(state.model, start, end, look, points=points):
        means = summarise(pl.DataFrame(examples, infer_schema_length=None))
        rows += [{"kind": kind, "x": x} | row for row in means.to_dicts()]
    return rows


def full_set_twin(trial: Trial) -> Trial:
    """The trial that unlearns the whole forget set with everything else the same."""
    from rayunlearn.plan import whole_set

    return replace(trial, select=whole_set(replace(trial.select, ratio=1.0)), attack=Attack())


def weights_of(state: Loaded) -> dict[str, Tensor]:
    """A copy of what the model holds now, on the CPU."""
    return {
        name: tensor.detach().cpu().clone() for name, tensor in state.model.state_dict().items()
    }


def _of(asked: Asked, rows: Rows) -> Rows:
    return [
        row for row in rows if (row["doc_id"], row["split"]) == (asked.document.doc_id, asked.split)
    ]


def _first(documents: Sequence[Document], n: int) -> list[Document]:
    return sorted(documents, key=lambda d: d.doc_id)[:n]


def _focus(explain: Explain, document: Document, scores: Sequence[float]) -> Focus:
    key = key_tokens(scores, alpha=explain.alpha, beta=explain.beta)
    told = _told(document)
    chosen = chosen_words(document.prompt, scores, key, told)
    return Focus(
        tuple(chosen), tuple(random_words(document.prompt, chosen, key, told, document.doc_id))
    )


def _told(document: Document) -> str:
    """Every wording of the true answer."""
    return f"{document.answer} {document.paraphrase}"


def _has_both(focus: Mapping[str, Focus], asked: Asked) -> bool:
    found = focus[asked.document.doc_id]
    return bool(found.key) and len(found.key) == len(found.random)


def _measured(
    trial: Trial, state: Loaded, changed: Sequence[tuple[Asked, str]]
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
        yield from measure(state.model, same, ASKED)


def _gradients(explain: Explain, state: Loaded, asked: Asked) -> list[float | None]:
    places = [place for part in asked.tokens.places for place in part]
    if explain.gradient_steps == 0:
        return [None] * len(places)
    return list(
        integrated_gradients(
            state.model,
            asked.sequence,
            places,
            steps=explain.gradient_steps,
            baseline_id=int(state.tokenizer.pad_token_id or 0),
        ).tolist()
    )


def _rows(
    explain: Explain,
    asked: Asked,
    unit: str,
    units: Units,
    values: Tensor,
    gradients: Sequence[float | None],
) -> Rows:
    common = {"doc_id": asked.document.doc_id, "split": asked.split, "unit": unit}
    key = key_tokens(values.tolist(), alpha=explain.alpha, beta=explain.beta)
    parts = zip(units.texts, values.tolist(), key, gradients, strict=True)
    return [
        common
        | {
            "position": at,
            "token": text,
            "contribution": value,
            "is_key": is_key,
            "gradient": gradient,
        }
        for at, (text, value, is_key, gradient) in enumerate(parts)
    ]
