"""What attacks ask for, made when asked for, and an attack on the model as it stands."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from rayunlearn.analysis.intervals import summarise_examples
from rayunlearn.attacks.base import AttackRow
from rayunlearn.attacks.prompt_text import PromptNotAllowedError
from rayunlearn.attacks.relearning import DivergedError, draw_documents
from rayunlearn.attacks.table import ATTACKS
from rayunlearn.config import Attack
from rayunlearn.data.documents import Document
from rayunlearn.data.general_text import text_of
from rayunlearn.data.readers import read_file
from rayunlearn.data.tokenize import Encoded, encode_documents
from rayunlearn.data.unrelated_text import unrelated_documents
from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.metrics.evaluate import Measured, chosen_metrics, encode_probes
from rayunlearn.metrics.forward_passes import Probe
from rayunlearn.metrics.table import Metric
from rayunlearn.models.chat import Chat, load_chat
from rayunlearn.models.load import load_model
from rayunlearn.models.matrices import require_touched, share_touched, tensor_states
from rayunlearn.registry import arguments_of
from rayunlearn.schema import HELD_IN, Rows
from rayunlearn.train.device import accelerator
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.encodings import training_sequences
from rayunlearn.trial.evaluate import measure_trial, trial_examples
from rayunlearn.trial.model_state import cached_in_worker
from rayunlearn.trial.probes import encoded_probes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# what is asked of an attacked model; an attack says nothing of members and holdout
SPLITS = ("forget", "retain", "untouched")

# whose questions prompt attacks change
REASKING_KINDS = ("forget", "retain")

# own unrelated documents, as many as the domain dataset has on a side, and a few more
N_UNRELATED = 200


class AttackInputs:
    """What attacks may ask for, by the names in `attacks.base.ATTACK_INPUTS`;
    made when asked for.
    """

    def __init__(self, context: TrialContext, leaving: ExitStack) -> None:
        self._context, self.trial, self.leaving = context, context.trial, leaving
        self.attack: AttackRow = ATTACKS[self.trial.attack.name]
        self.seed, self.template = self.trial.attack.seed, self.trial.data.template
        self.curve: Rows = []
        self.columns: dict[str, Any] = {}

    @property
    def model(self) -> PreTrainedModel:
        return self._context.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._context.tokenizer

    @cached_property
    def base(self) -> PreTrainedModel:
        device = str(self._context.model.device)
        model: PreTrainedModel = load_model(
            self._context.workspace.base, dtype=torch.float32, device=device
        )[0]
        return model.eval().requires_grad_(False)

    @cached_property
    def probes(self) -> list[Probe]:
        return [p for p in encoded_probes(self._context) if p.split in SPLITS]

    @cached_property
    def held_in(self) -> list[Probe]:
        learned = draw_held_in_facts(self._context.corpus.probes["forget"], self.seed)
        return [p for p in self.probes if p.split == "forget" and facts_of(p) <= learned]

    @property
    def evaluated_probes(self) -> list[Probe]:
        """The probes that count after the attack: all, or without those that it may learn from."""
        learned = {p.doc_id for p in self.held_in} if self.attack.holds_out else set()
        return [p for p in self.probes if p.split != "forget" or p.doc_id not in learned]

    def is_evaluated(self, probe: Probe) -> bool:
        """Whether a probe that an attack has changed is one that counts, or one that says how well
        the attack learned.
        """
        return probe.split == HELD_IN or any(
            (p.doc_id, p.split) == (probe.doc_id, probe.split) for p in self.evaluated_probes
        )

    @cached_property
    def forget_probes(self) -> tuple[Document, ...]:
        return self._context.corpus.probes["forget"]

    @cached_property
    def retain_probes(self) -> tuple[Document, ...]:
        return self._context.corpus.probes["retain"]

    @cached_property
    def forget_sequences(self) -> list[Encoded]:
        return draw_documents(training_sequences(self._context)[0], self.seed)

    @cached_property
    def retain_sequences(self) -> list[Encoded]:
        return draw_documents(training_sequences(self._context)[1], self.seed)

    @cached_property
    def held_in_sequences(self) -> list[Encoded]:
        return [p.answer for p in self.held_in]

    @cached_property
    def unrelated_sequences(self) -> list[Encoded]:
        file = self.trial.attack.file
        documents = text_of(Path(file)) if file else unrelated_documents(N_UNRELATED, 0)
        return draw_documents(
            encode_documents(documents, self.tokenizer, self.template, self.trial.data.max_tokens),
            self.seed,
        )

    @cached_property
    def texts(self) -> dict[str, dict[str, str]]:
        file, own = self.trial.attack.file, self._context.corpus.rephrasings
        texts = {doc_id: dict(by_condition) for doc_id, by_condition in own.items()}
        for doc_id, by_condition in (rephrasings_of(Path(file)) if file else {}).items():
            texts[doc_id] = texts.get(doc_id, {}) | by_condition
        return texts

    @cached_property
    def chat(self) -> Chat | None:
        name = self.trial.attack.chat_model
        return (
            cached_in_worker(
                self._context.state,
                ("chat", name),
                lambda: load_chat(name, str(accelerator().device)),
            )
            if name
            else None
        )

    @cached_property
    def rng(self) -> random.Random:
        return random.Random(f"{self.trial.attack.name} {self.seed}")

    def encode(self, document: Document) -> Probe:
        return self._encode_as(document, "forget", document.doc_id)

    def _encode_as(self, document: Document, split: str, doc_id: str) -> Probe:
        probe = encode_probes(
            {split: [document]}, self.tokenizer, self.template, self.trial.data.max_tokens
        )[0]
        return replace(probe, doc_id=doc_id)

    def rewritten_probes(self, function: Callable[..., Document]) -> list[Probe]:
        """The questions of `REASKING_KINDS` as the attack asks them, under their own doc_ids; those
        that do not allow it are left out.

        Raises UserError where none allows it: the attack was not tried.
        """
        probes, refusal_reason = [], ""
        for split in REASKING_KINDS:
            for document in self._context.corpus.probes.get(split, ()):
                rewritten = {
                    "document": document,
                    "rng": random.Random(f"{self.trial.attack.name} {self.seed} {document.doc_id}"),
                }
                try:
                    changed = function(
                        **{
                            name: rewritten[name] if name in rewritten else getattr(self, name)
                            for name in self.attack.inputs
                        }
                    )
                except PromptNotAllowedError as reason:
                    refusal_reason = str(reason)
                    continue
                probes.append(self._encode_as(changed, split, document.doc_id))
        require(
            any(p.split == "forget" for p in probes),
            f"{self.trial.attack.name} must be possible for a probe of split forget; why not",
            refusal_reason,
        )
        return probes

    def measure(self, probes: Sequence[Probe]) -> Measured:
        """The trial's metrics on the model as it stands now, and the texts they read."""
        return measure_trial(self._context, list(probes))

    def require_touched(self) -> None:
        """Raise UserError where an attack on all weight matrices has reached few of them."""
        if "weights_touched" in self.columns:
            require_touched(self.columns["weights_touched"], self.trial.attack.name)

    def watch(self, step: int) -> bool:
        """Put the model as it stands at `step` on the recovery curve, where the step is one of its
        points; training goes on.
        """
        if self.attack.trains and step % -(-self._n_steps // self.trial.attack.curve_points) == 0:
            self._record_curve(step)
        return True

    def complete_curve(self) -> Rows:
        """The curve with its end."""
        if self.attack.trains:
            self._record_curve(self._n_steps)
        return self.curve

    @property
    def _n_steps(self) -> int:
        return int(arguments_of(self.trial, self.attack.function)["steps"])

    @cached_property
    def _curve_inputs(self) -> tuple[dict[str, Metric], list[Probe]]:
        """The curve's metric, where the trial measures it, and the forget questions.

        So a look costs about half of a training step on the tiny dataset: 14 ms of CPU beside 23
        ms; with every metric and split, 238 ms.
        """
        measured = chosen_metrics(self.trial.measure.metrics)
        metrics = {
            name: row for name, row in measured.items() if name == self.trial.attack.curve_metric
        }
        return metrics, [p for p in self.evaluated_probes if p.split == "forget"]

    def _record_curve(self, step: int) -> None:
        metrics, probes = self._curve_inputs
        if metrics:
            self.curve += curve_rows(
                "relearning",
                step,
                trial_examples(self._context, probes, metrics),
            )


def attacked_rows(context: TrialContext, *, step: int) -> dict[str, Rows]:
    """`examples` and `evals` of stage `attacked`: the attack that `measure.attack` names, on the
    model that the trial ended with, which is another one afterwards.

    Its settings are the trial's, the same for every trial of an experiment; its seed is the
    trial's. The rows are those of the attack as a trial of its own, without a recovery curve.
    Training that ends in no number leaves no rows.
    """
    trial = context.trial
    settings = Attack(name=trial.measure.attack, seed=trial.train.seed, curve_points=1)
    attacked = replace(context, trial=replace(trial, attack=settings))
    with torch.random.fork_rng(), ExitStack() as leaving:
        torch.manual_seed(settings.seed)
        inputs = AttackInputs(attacked, leaving)
        try:
            probes, tables = run_attack(inputs)
        except DivergedError:
            return {}
        inputs.require_touched()
        measured = inputs.measure(probes) if probes else Measured(tables["examples"], [])
    return labelled_rows(measured, {"stage": "attacked", "attack": settings.name}, step)


def labelled_rows(measured: Measured, keys: Mapping[str, str], step: int) -> dict[str, Rows]:
    """Rows of `examples` and `generations` with `keys`, their stage and attack, which rows that
    have them already keep, and of `evals`, the means.
    """
    examples = [{**keys, **row} for row in measured.examples]
    texts = [{**keys, **row} for row in measured.generations]
    frame = pl.DataFrame(examples, infer_schema_length=None, schema_overrides={"value": pl.Float64})
    evals = [{"step": step} | row for row in summarise_examples(frame).to_dicts()]
    return {"examples": examples, "evals": evals, "generations": texts}


def run_attack(inputs: AttackInputs) -> tuple[list[Probe], dict[str, Rows]]:
    """Do the attack: the probes that are now to be measured, or rows that are measured already, and
    curves.
    """
    row = inputs.attack
    function = partial(row.function, **arguments_of(inputs.trial, row.function))
    if row.kind == "prompt":
        return inputs.rewritten_probes(function), {}
    if row.kind == "weights":
        inputs.watch(0)
    before = tensor_states(inputs.model) if row.of_matrices else {}
    result = function(**{name: getattr(inputs, name) for name in row.inputs})
    if row.of_matrices:
        inputs.columns["weights_touched"] = share_touched(before, tensor_states(inputs.model))
    if row.kind == "weights":
        return inputs.evaluated_probes, {"curves": inputs.complete_curve()}
    if row.kind == "tokens":
        return [probe for probe in result if inputs.is_evaluated(probe)], {}
    if row.kind == "decoding":
        return [], {"examples": result}
    return [], {"examples": at_best_layer(result), "curves": layer_curve(result)}


def draw_held_in_facts(probes: Sequence[Document], seed: int) -> set[str]:
    """Half of the facts that are asked, drawn by the seed. Where the data names no facts every
    document is one of its own.
    """
    facts = sorted({fact for d in probes for fact in d.facts or (d.doc_id,)})
    return set(random.Random(f"held in {seed}").sample(facts, len(facts) // 2))


def facts_of(probe: Probe) -> set[str]:
    """The facts that a probe asks."""
    return (
        set(probe.document.facts)
        if probe.document is not None and probe.document.facts
        else {probe.doc_id}
    )


def curve_rows(kind: str, x: float, examples: Rows) -> Rows:
    """Means of examples as points of a curve."""
    frame = pl.DataFrame(examples, infer_schema_length=None, schema_overrides={"value": pl.Float64})
    return [
        {"kind": kind, "x": float(x)} | row
        for row in summarise_examples(frame)
        .select("metric", "split", "value", "n", "stderr")
        .to_dicts()
    ]


def layer_curve(rows: Rows) -> Rows:
    """What the layers know, a point per layer."""
    return [
        row
        for x in sorted({r["x"] for r in rows})
        for row in curve_rows("inside", x, [_plain(r) for r in rows if r["x"] == x])
    ]


def at_best_layer(rows: Rows) -> Rows:
    """Rows of the layer that knows most of split forget, per metric: the worst case, and chosen by
    looking. Gold has the same choice.
    """
    best: dict[str, float] = {}
    for metric in dict.fromkeys(r["metric"] for r in rows):
        means = {
            x: _mean(
                [r for r in rows if (r["metric"], r["split"], r["x"]) == (metric, "forget", x)]
            )
            for x in sorted({r["x"] for r in rows})
        }
        best[metric] = max(means, key=lambda x: means[x])
    return [_plain(r) for r in rows if r["x"] == best[r["metric"]]]


def _mean(rows: Rows) -> float:
    values = [float(r["value"]) for r in rows if r["value"] is not None]
    return sum(values) / len(values) if values else float("-inf")


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "x"}


def rephrasings_of(file: Path) -> dict[str, dict[str, str]]:
    """doc_id -> condition -> text, from a data file with the columns doc_id, condition and text."""
    texts: dict[str, dict[str, str]] = {}
    for row in read_file(file):
        missing = [
            name
            for name in ("doc_id", "condition", "text")
            if not isinstance(row.values.get(name), str)
        ]
        require(
            not missing,
            f"{file}: row {row.row} must have the texts doc_id, condition and text; missing",
            missing,
        )
        texts.setdefault(str(row.values["doc_id"]), {})[str(row.values["condition"])] = str(
            row.values["text"]
        )
    return texts
