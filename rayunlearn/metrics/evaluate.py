"""Measure a model on probes: the passes that the metrics need, each once, and one row per document
and metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from rayunlearn.data.documents import Document
from rayunlearn.data.key_span import key_span, wrong_key_spans
from rayunlearn.data.multiple_choice import true_option_index
from rayunlearn.data.tokenize import Encoded, encode_pair
from rayunlearn.errors import UserError, require, unknown_name
from rayunlearn.metrics.forward_passes import (
    EvaluationTask,
    GenerationSettings,
    MetricInputs,
    Probe,
    gather_inputs,
)
from rayunlearn.metrics.generations import generation_rows
from rayunlearn.metrics.judge import AnswerJudge
from rayunlearn.metrics.judge_pass import judged_inputs
from rayunlearn.metrics.table import CHEAP, JUDGED, METRICS, Metric, sources_of
from rayunlearn.models.reference import Reference
from rayunlearn.schema import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def encode_probes(
    probes: Mapping[str, Sequence[Document]],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    max_tokens: int,
    true_letters: Mapping[str, int] | None = None,
    templates: Mapping[str, str] | None = None,
    n_solved: int = 0,
) -> list[Probe]:
    """Encode every probe of every split. The true option is the paraphrase where there is one, so
    that a right answer is not preferred for its wording alone. `true_letters` (doc_id -> place
    among the letters) keeps the order of options that the data came in; elsewhere the document's
    digest places the truth. `templates` (split -> template) are for splits that are not questions:
    a continuation has `{prompt}` alone. `n_solved` questions of the split stand before those that
    are asked after solved ones (0: no such sequences)."""

    split_templates = templates or {}
    shared: dict[str, Any] = {"tokenizer": tokenizer, "max_tokens": max_tokens}
    encoded: list[Probe] = []
    for split, documents in probes.items():
        encode = partial(encode_pair, **shared, template=split_templates.get(split, template))
        complete = partial(encode_pair, **shared, template="{prompt}")
        ordered = sorted(documents, key=lambda d: d.doc_id) if n_solved else []
        encoded += [
            replace(
                _probe(d, split, partial(encode, d.doc_id), true_letters or {}),
                completion=_completion(d, complete),
                few_shot=_few_shot(d, partial(encode, d.doc_id), ordered, n_solved),
            )
            for d in documents
        ]
    return encoded


def _probe(
    d: Document, split: str, encoded: Callable[..., Encoded], true_letters: Mapping[str, int]
) -> Probe:
    """`encoded` makes one sequence of a prompt and an answer."""
    key = key_span(d)
    wrong_keys = wrong_key_spans(d, key) if key else (None,) * len(d.wrong)
    wrong = (
        encoded(d.prompt, text, key=span) for text, span in zip(d.wrong, wrong_keys, strict=True)
    )
    return Probe(
        d.doc_id,
        split,
        encoded(d.prompt, d.answer, key=key),
        (encoded(d.prompt, d.paraphrase or d.answer), *wrong) if d.wrong else (),
        encoded(d.prompt_paraphrase, d.answer) if d.prompt and d.prompt_paraphrase else None,
        d,
        true_letters.get(d.doc_id, true_option_index(d.doc_id, 1 + len(d.wrong))),
    )


def _completion(d: Document, encoded: Callable[..., Encoded]) -> Encoded | None:
    """The key after the document's own text for it, as plain text."""
    span = key_span(d) if d.completion_prompt else None
    if span is None:
        return None
    key = d.answer[slice(*span)]
    return encoded(d.doc_id, d.completion_prompt, key, key=(0, len(key)))


def _few_shot(
    d: Document, encoded: Callable[..., Encoded], ordered: Sequence[Document], n_solved: int
) -> tuple[Encoded, ...]:
    """The answer and the options after `n_solved` others of the split, () where it has not so many
    that ask something else."""
    usable = (other for other in ordered if d.prompt and _asks_something_else(d, other))
    solved = [(other.prompt, other.answer) for other in islice(usable, n_solved)]
    if not solved or len(solved) < n_solved:
        return ()
    options = (d.paraphrase or d.answer, *d.wrong) if d.wrong else ()
    return tuple(encoded(d.prompt, text, solved=solved) for text in (d.answer, *options))


def _asks_something_else(d: Document, other: Document) -> bool:
    """Whether the other question, solved, gives nothing of this one away."""
    return (
        bool(other.prompt)
        and other.prompt != d.prompt
        and other.answer not in (d.answer, d.paraphrase, *d.wrong)
        and not (d.group and d.group == other.group)
        and not set(d.facts) & set(other.facts)
    )


def evaluate_probes(
    model: PreTrainedModel,
    probes: Sequence[Probe],
    metrics: Mapping[str, Metric] = CHEAP,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    base: Reference | None = None,
    writing: GenerationSettings = GenerationSettings(),  # noqa: B008 - frozen
    options: Mapping[str, Mapping[str, float]] | None = None,
    judge: AnswerJudge | None = None,
) -> list[dict[str, object]]:
    """Rows doc_id, split, metric, value: every metric of every probe; value None where the probe
    does not allow it.

    The default metrics come from one forward pass. Others may need the `tokenizer` (texts,
    letters), outputs of the `base` model on the answers, a `judge` or gradients; `options` are
    keyword arguments by metric. Activation patching needs an `EvaluationTask` with its models
    (`measure`). Raises UserError for what is missing.
    """
    task = EvaluationTask(
        model=model,
        probes=probes,
        tokenizer=tokenizer,
        base=base,
        writing=writing,
        judge=judge,
    )
    return measure(task, metrics, options).examples


@dataclass(frozen=True)
class Measured:
    """What was measured of a model: rows doc_id, split, metric, value, and rows of what it wrote
    where metrics read that (`generations.generation_rows`).
    """

    examples: Rows
    generations: Rows


def measure(
    task: EvaluationTask,
    metrics: Mapping[str, Metric],
    options: Mapping[str, Mapping[str, float]] | None = None,
) -> Measured:
    """`evaluate_probes`, with the texts that the metrics read."""
    sources = sources_of(metrics.values())
    # a judge judges the greedy text
    wanted = sources - {"judge"} | ({"greedy", "words"} if "judge" in sources else set())
    gathered = gather_inputs(task, frozenset(wanted))
    if "judge" in sources:
        for inputs, judged in zip(gathered, judged_inputs(task, gathered), strict=True):
            inputs |= judged
    parts = {
        name: (row.function, row.inputs, (options or {}).get(name, {}))
        for name, row in metrics.items()
    }
    examples: Rows = [
        {
            "doc_id": probe.doc_id,
            "split": probe.split,
            "metric": name,
            "value": _value(*of_metric, inputs),
        }
        for probe, inputs in zip(task.probes, gathered, strict=True)
        for name, of_metric in parts.items()
    ]
    return Measured(examples, generation_rows(task, gathered, metrics))


def chosen_metrics(names: str) -> dict[str, Metric]:
    """`cheap`, `all` or names separated by commas (either may be one) -> rows of the table; `all`
    without those of a judge, who must be named. Raises UserError for a name that it does not have.
    """
    without_judge = {name: row for name, row in METRICS.items() if name not in JUDGED}
    sets = {"cheap": CHEAP, "all": without_judge}
    chosen: dict[str, Metric] = {}
    for name in (name.strip() for name in names.split(",")):
        if name not in METRICS and name not in sets:
            error = unknown_name("metric", name, [*METRICS, *sets])
            raise UserError(f"{error}; cheap and all name sets of metrics")
        chosen |= sets[name] if name in sets else {name: METRICS[name]}
    return chosen


def require_gold(names: str, has_gold: bool, needed: str) -> None:
    """Raise UserError where a metric is named, itself and not as one of a set, that needs a gold
    model and there is none; `needed` says what gives one.
    """
    words = [name.strip() for name in names.split(",")]
    named = [name for name in words if name in METRICS and METRICS[name].needs_gold]
    require(has_gold or not named, f"{', '.join(named)} needs a gold model ({needed})", names)


def _value(
    function: Callable[..., float | None],
    names: Sequence[str],
    options: Mapping[str, float],
    inputs: MetricInputs,
) -> float | None:
    return (
        function(**{n: inputs[n] for n in names}, **options)
        if all(n in inputs for n in names)
        else None
    )
