"""The measuring of one trial: its metrics on its probes, and what they are compared with, as rows
of `examples` and `evals`, and what the model wrote.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from rayunlearn import data as data_code
from rayunlearn import metrics as metric_code
from rayunlearn import models as model_code
from rayunlearn.analysis.intervals import summarise_examples
from rayunlearn.config import Attack, Trial, digest
from rayunlearn.data.documents import Corpus
from rayunlearn.data.tokenize import ENCODING_VERSION, Encoded
from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.metrics.corpus import GOLD_METRICS, SCORES, corpus_rows
from rayunlearn.metrics.evaluate import Measured, chosen_metrics, evaluate_probes, measure
from rayunlearn.metrics.forward_passes import (
    EvaluationTask,
    GenerationSettings,
    PatchingTarget,
    Probe,
)
from rayunlearn.metrics.judge import AnswerJudge, GivenAnswer, Verdict
from rayunlearn.metrics.judge_pass import judge_with
from rayunlearn.metrics.table import CHANCE_LEVELS, Metric, sources_of
from rayunlearn.models.cpu_offload import to_device_or_offload
from rayunlearn.models.interpolation import copy_of
from rayunlearn.models.load import load_model, load_tokenizer
from rayunlearn.models.mapped_weights import put_back
from rayunlearn.models.patching import patching_gaps, states_by_block
from rayunlearn.models.reference import Reference, cached_reference
from rayunlearn.models.tensor_cache import tensors_once
from rayunlearn.registry import arguments_of
from rayunlearn.schema import Rows
from rayunlearn.storage.artifact_cache import JSON, cached_file
from rayunlearn.storage.code_identity import code_digest, version_of
from rayunlearn.train.device import accelerator
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.identity import cached_model_digest
from rayunlearn.trial.model_state import ModelState, cached, cached_in_worker, load_model_state
from rayunlearn.trial.probes import encoded_probes
from rayunlearn.trial.references import cache_key
from rayunlearn.trial.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# splits that membership scores compare: what was to be forgotten, and what was never trained on
HOLDOUT_METRICS = ("members", "holdout")

# the code that decides what a measurement of a model gives
MEASURING = (data_code, metric_code, model_code, sys.modules[__name__])


def label_examples(
    context: TrialContext,
    examples: Rows,
    *,
    stage: str,
    step: int,
    attack: str = "none",
) -> dict[str, Rows]:
    """Measured examples (doc_id, split, metric, value) as rows of the two tables, metrics of the
    whole corpus among the means.

    A stage and an attack that the examples already name are overwritten.
    """
    frame = examples_frame(examples)
    means = [
        *summarise_examples(frame).to_dicts(),
        *corpus_rows(frame, gold_examples(context.trial, context.workspace)),
    ]
    keys = {"stage": stage, "attack": attack}
    return {
        "examples": [e | keys for e in examples],
        "evals": [e | keys | {"step": step} for e in means],
    }


def label_measured(
    context: TrialContext, measured: Measured, *, stage: str, step: int, attack: str = "none"
) -> dict[str, Rows]:
    """`label_examples`, and the texts as rows of `generations`."""
    texts = [row | {"stage": stage, "attack": attack} for row in measured.generations]
    tables = label_examples(context, measured.examples, stage=stage, step=step, attack=attack)
    return tables | {"generations": texts}


def trial_examples(
    context: TrialContext,
    probes: Sequence[Probe] | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Rows:
    """doc_id, split, metric, value of the model as it stands, as `measure_trial` has them."""
    return measure_trial(context, probes, metrics).examples


def measure_trial(
    context: TrialContext,
    probes: Sequence[Probe] | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Measured:
    """What the trial measures of the model as it stands, and the texts that it wrote for that;
    `probes` and `metrics` in place of the trial's own.

    Members and holdout are asked for their membership scores alone. Chance levels are asked of base
    and gold, not of an unlearned model.
    """
    trial = context.trial
    if metrics is None:
        metrics = {
            name: row
            for name, row in measured_metrics(trial, context.workspace).items()
            if trial.stage != "unlearned" or name not in CHANCE_LEVELS
        }
    scores = {name: row for name, row in metrics.items() if name in SCORES}
    questions = list(probes) if probes is not None else encoded_probes(context)
    ordinary, strangers = (
        [p for p in questions if (p.split in HOLDOUT_METRICS) is strange]
        for strange in (False, True)
    )
    measured = _measure(context, ordinary, metrics)
    membership = _measure(context, strangers, scores).examples if scores and strangers else []
    texts = first_documents(measured.generations, trial.measure.keep_texts)
    return Measured(measured.examples + membership, texts)


def first_documents(rows: Rows, n: int) -> Rows:
    """The rows of the `n` documents of each split with the smallest `doc_id`, in their order."""
    chosen: dict[str, set[str]] = {}
    for split, doc_id in sorted({(row["split"], row["doc_id"]) for row in rows}):
        if len(of_split := chosen.setdefault(split, set())) < n:
            of_split.add(doc_id)
    return [row for row in rows if row["doc_id"] in chosen[row["split"]]]


def measure_start(context: TrialContext) -> Measured:
    """`measure_trial` of a model that nothing was done to (base, gold): measured once,
    by whichever run and process comes first.

    Kept by weights, probes, settings of the measuring, device, libraries and the code that
    measures.
    """
    trial, probes = context.trial, encoded_probes(context)
    metrics = measured_metrics(trial, context.workspace)
    options = metric_options(trial, metrics)
    compares = any(row.needs_gold for row in metrics.values())
    key = (
        cache_key(context, [], "float32")
        | {
            "what": "examples",
            "probes": digest([asdict(probe) for probe in probes]),
            "measure": asdict(trial.measure),
            "options": options,
            "shots": dict(context.corpus.shots),
            "code": code_digest(*MEASURING),
        }
        | ({"judge": cached_model_digest(trial.judge.answers)} if trial.judge.answers else {})
        | ({"gold": _gold_digest(context.workspace)} if compares else {})
    )

    def make() -> dict[str, Rows]:
        return vars(measure_trial(context))

    tables: dict[str, Rows] = cached_file(context.cache / "evaluations", key, make, JSON)
    return Measured(**tables)


def _measure(
    context: TrialContext,
    probes: Sequence[Probe],
    metrics: Mapping[str, Metric],
) -> Measured:
    trial, sources = context.trial, sources_of(metrics.values())
    task = EvaluationTask(
        model=context.model,
        probes=probes,
        tokenizer=context.tokenizer,
        base=base_reference(trial, context.workspace, probes) if "base" in sources else None,
        writing=replace(writing_of(trial), shots=context.corpus.shots),
        judge=partial(judged, context) if "judge" in sources and trial.judge.answers else None,
        patching=patching_target(trial, context.workspace, metrics)
        if "patching" in sources
        else None,
    )
    return measure(task, metrics, metric_options(trial, metrics))


def judged(context: TrialContext, answers: Sequence[GivenAnswer]) -> list[Verdict]:
    """What the chat model of `judge.answers` says of the answers, in order; the same answers are
    judged once, by whichever run and process comes first.

    The model is loaded where it is asked, and stays in the worker's memory.
    """
    name, device = context.trial.judge.answers, str(context.model.device)
    key = {
        "what": "verdicts",
        "judge": cached_model_digest(name),
        "answers": digest([asdict(answer) for answer in answers]),
        "place": context.model.device.type,
        "code": code_digest(*MEASURING),
        **{library: version_of(library) for library in ("torch", "transformers")},
    }

    def load() -> AnswerJudge:
        return judge_with(*load_model(name, device=device))

    def make() -> list[dict[str, Any]]:
        judge: AnswerJudge = cached_in_worker(context.state, ("judge", name), load)
        return [asdict(verdict) for verdict in judge(answers)]

    rows = cached_file(context.cache / "verdicts", key, make, JSON)
    return [Verdict(tuple(row["probabilities"]), row["reason"]) for row in rows]


def measured_metrics(trial: Trial, workspace: Workspace) -> dict[str, Metric]:
    """The metrics that a trial measures: those that need a gold model only where there is one
    (`workspace.validate_trial` refuses one that is named; `all` names none).
    """
    return {
        name: row
        for name, row in chosen_metrics(trial.measure.metrics).items()
        if workspace.gold or not row.needs_gold
    }


def metric_options(trial: Trial, metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """Keyword arguments by metric."""
    return {name: dict(arguments_of(trial, row.function)) for name, row in metrics.items()}


def writing_of(trial: Trial) -> GenerationSettings:
    """How texts are written."""
    names = ("max_new_tokens", "samples", "temperature", "top_p", "seed")
    return GenerationSettings(**{name: getattr(trial.measure, name) for name in names})


def grouped(examples: Sequence[Mapping[str, Any]], corpus: Corpus) -> Rows:
    """Rows of `examples`, each with the group of its document."""
    return [{**row, "group": corpus.groups.get(row["doc_id"])} for row in examples]


def examples_frame(examples: Rows) -> pl.DataFrame:
    """Examples as a frame, `value` a number even where all of them are null."""
    return pl.DataFrame(examples, infer_schema_length=None, schema_overrides={"value": pl.Float64})


def base_reference(trial: Trial, workspace: Workspace, probes: Sequence[Probe]) -> Reference:
    """Token NLL and next-token distributions of the base model on the probes' answers,
    in float32.
    """
    state, sequences = load_model_state(workspace.base), [p.answer for p in probes]

    def make(folder: Path, key: Mapping[str, object]) -> Reference:
        with base_model(trial, workspace) as model:
            return cached_reference(folder, key, model, sequences, ("token_nll", "log_probs"), 0)

    context = TrialContext(trial, workspace, state)
    key = cache_key(context, sequences, "float32") | {"what": "base on probes"}
    return cached(state, workspace.cache / "reference", key, make)


@contextmanager
def base_model(trial: Trial, workspace: Workspace) -> Iterator[PreTrainedModel]:
    """The base model while the context is open, whatever the worker's model holds; it holds the
    same afterwards.
    """
    state = load_model_state(workspace.base)
    # what an attack has hung on the worker's model must not be in what stands for base
    if trial.attack != Attack():
        device = str(state.model.device)
        yield load_model(workspace.base, dtype=torch.float32, device=device)[0].eval()
        return
    with start_weights(state):
        yield state.model


def patching_target(
    trial: Trial, workspace: Workspace, metrics: Mapping[str, Metric]
) -> PatchingTarget:
    """Base and gold for activation patching, as these metrics ask for it. What base loses with
    gold's states is computed once for all trials: per model pair, sequences, libraries and code.

    Raises UserError where the workspace has no gold model.
    """
    rule = "metrics of hidden states need a gold model (model.teach, or model.gold)"
    require(bool(workspace.gold), rule, workspace.gold)
    state = load_model_state(workspace.base)
    context = TrialContext(trial, workspace, state)
    base, gold_digest = partial(base_model, trial, workspace), _gold_digest(workspace)

    def gold_gaps(sequences: Sequence[Encoded]) -> list[Tensor]:
        def values() -> dict[str, Tensor]:
            states = states_by_block(_gold_model(workspace), sequences)
            with base() as model:
                return {"gaps": torch.stack(patching_gaps(model, sequences, states))}

        def make(folder: Path, key: Mapping[str, object]) -> Tensor:
            return tensors_once(folder, key, values)["gaps"]

        key = cache_key(context, sequences, "float32")
        key |= {"what": "base with gold's states", "gold": gold_digest}
        gaps: Tensor = cached(state, workspace.cache / "evaluations", key, make)
        return list(gaps)

    asking = {name: row for name, row in metrics.items() if row.needs_gold}
    options = metric_options(trial, asking)
    thresholds = [float(options[name].get("threshold", 0.0)) for name in asking]
    return PatchingTarget(base=base, gold_gaps=gold_gaps, threshold=min(thresholds))


@contextmanager
def start_weights(state: ModelState) -> Iterator[None]:
    """The base weights in the model inside, and afterwards the weights that were there."""
    trained_weights = copy_of(state.model)
    put_back(state.model, state.pristine)
    try:
        yield
    finally:
        put_back(state.model, trained_weights)


def gold_examples(trial: Trial, workspace: Workspace) -> pl.DataFrame | None:
    """What corpus metrics hold against gold's: examples of the model that never saw the forget set;
    None where there is none.

    Measured once per model, corpus and options, by whichever process comes first; the model is let
    go again.
    """
    metrics = {
        name: row
        for name, row in chosen_metrics(trial.measure.metrics).items()
        if name in GOLD_METRICS
    }
    if not workspace.gold or not metrics:
        return None
    data, corpus = trial.data, workspace.corpus
    key = {
        "what": "gold",
        "model": _gold_digest(workspace),
        "corpus": corpus.digest,
        "template": data.template,
        "max_tokens": data.max_tokens,
        "encoding": ENCODING_VERSION,
        "metrics": metric_options(trial, metrics),
        "place": accelerator().device.type,
        "code": code_digest(*MEASURING),
        **{name: version_of(name) for name in ("torch", "transformers")},
    }
    make = partial(_gold_values, trial, workspace, metrics)
    return _unpacked(tensors_once(workspace.cache / "evaluations", key, make))


def _gold_values(
    trial: Trial, workspace: Workspace, metrics: Mapping[str, Metric]
) -> dict[str, Tensor]:
    model, tokenizer = _gold_model(workspace), load_tokenizer(workspace.gold)
    context = TrialContext(trial, workspace, ModelState(model, tokenizer, {}, 0))
    probes = [p for p in encoded_probes(context) if p.split in ("forget", *HOLDOUT_METRICS)]
    rows = evaluate_probes(model, probes, metrics, options=metric_options(trial, metrics))
    return _packed(rows)


def _gold_model(workspace: Workspace) -> PreTrainedModel:
    """The gold model in float32 on this machine's device, for the caller alone."""
    model = load_model(workspace.gold, dtype=torch.float32)[0]
    return to_device_or_offload(model, accelerator().device).eval()


def _gold_digest(workspace: Workspace) -> str:
    return cached_model_digest(workspace.gold)


def _packed(rows: Rows) -> dict[str, Tensor]:
    """`split metric` -> values (n,) float64, nulls left out: corpus metrics look at whole splits
    and not at single documents.
    """
    packed: dict[str, list[float]] = {}
    for row in rows:
        if row["value"] is not None:
            packed.setdefault(f"{row['split']} {row['metric']}", []).append(float(row["value"]))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in packed.items()}


def _unpacked(stored: Mapping[str, Tensor]) -> pl.DataFrame:
    rows = [
        (*name.split(" "), value) for name, values in stored.items() for value in values.tolist()
    ]
    return pl.DataFrame(
        rows, schema={"split": pl.String, "metric": pl.String, "value": pl.Float64}, orient="row"
    )
