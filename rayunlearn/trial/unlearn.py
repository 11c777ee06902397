"""The training of one trial: its losses and what they need (references, prefixes, companions),
watched and wrapped.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rayunlearn import data as data_code
from rayunlearn import methods as method_code
from rayunlearn import models as model_code
from rayunlearn.config import NO_RUNGS, SUBSTITUTES, Rungs, Trial, block_numbers, flatten
from rayunlearn.data.tokenize import Encoded
from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.loss_inputs import paired_response_kinds, reference_kinds
from rayunlearn.methods.objective import (
    ObjectiveSettings,
    PairedResponses,
    Side,
    UnlearningObjective,
    batch_indices,
)
from rayunlearn.methods.paired_responses import PAIRED_RESPONSES, Choices, ResponseInputs
from rayunlearn.methods.retain import RETAIN
from rayunlearn.methods.task_vector import as_trained
from rayunlearn.methods.token_mask import TokenRule, word_list, word_positions
from rayunlearn.models.activation_checkpointing import checkpointed_blocks
from rayunlearn.models.compiled_blocks import compiled_blocks
from rayunlearn.models.mapped_weights import put_back
from rayunlearn.ranges import required_inputs
from rayunlearn.registry import arguments_of, paired_response_function
from rayunlearn.selectors.unlearning_gradients import unlearning_norms
from rayunlearn.storage.artifact_cache import JSON, cached_file
from rayunlearn.storage.code_identity import code_digest, version_of
from rayunlearn.train.adapters import ADAPTERS, with_adapter
from rayunlearn.train.checkpoint import Checkpoints, HasState
from rayunlearn.train.device import FLOAT32, accelerator, computing
from rayunlearn.train.fsdp import shard_model
from rayunlearn.train.live import tell
from rayunlearn.train.loop import (
    Callbacks,
    OptimizerSettings,
    StepRow,
    TrainedParameters,
    TrainLog,
    choose_parameters,
    optimise,
)
from rayunlearn.train.optimizers import OPTIMIZERS
from rayunlearn.train.stored_weights import MasterWeights, stored_weights
from rayunlearn.train.wrappers import TAKES_TERMS_APART, WRAPPERS, Wrapper, ended_by, names_of
from rayunlearn.trial import retained as retained_code
from rayunlearn.trial import steering as steering_code
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.coreset import SCORING, select_coreset
from rayunlearn.trial.diagnostics import GradientEffects, training_effects
from rayunlearn.trial.encodings import training_sequences
from rayunlearn.trial.keywords import coreset_documents, coreset_sequences, substitute_sequences
from rayunlearn.trial.model_state import cached
from rayunlearn.trial.monitor import (
    TrainingMonitor,
    best_look_aim,
    monitored_probes,
    start_evaluation,
    training_monitor,
)
from rayunlearn.trial.references import (
    cache_key,
    cached_trial_reference,
    products_of,
    with_prefixes,
)
from rayunlearn.trial.retained import retained_sequences
from rayunlearn.trial.steering import control_length

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


# the code that decides paired responses
PAIRING = (method_code, model_code, data_code)
# the code that decides which weights a trial ends with
TRAINING = (*SCORING, retained_code, steering_code, sys.modules[__name__])


def select_documents(context: TrialContext) -> tuple[list[int], Tensor]:
    """`select_coreset`; a trial whose forget loss looks at no document (the retain-only control)
    keeps none.
    """
    if not required_inputs(FORGET[context.trial.method.forget].function):
        return [], torch.zeros(len(context.corpus.forget))
    return select_coreset(context, partial(gradient_norms_along, context))


def unlearn(
    context: TrialContext,
    coreset: Sequence[int],
    adapter_folder: Path,
    after_step: Callable[[int], None] | None = None,
    checkpoint: Path | None = None,
    rungs: Rungs = NO_RUNGS,
    measured_at: Mapping[int, Callable[[TrainLog], None]] = MappingProxyType({}),
) -> TrainLog:
    """Train the model away from the kept documents, as the trial says; LoRA adapters are left
    in `adapter_folder`.

    `coreset`: positions in corpus.forget in any order. Batches are drawn by `train.seed` from the
    kept documents in the corpus' order, so how a selector ranks them changes no batch.

    Every `stop.check_every` steps and at the end the model is looked at (`trial.monitor`): the log
    has the curve, and a look may end the training, or say which weights it ends with.
    `after_step(step)`, from 1, is called in place of that, after every step and before what a
    method does after the last one. `checkpoint`: the file that the training is resumed from and,
    every `train.checkpoint_every` steps, written to. `rungs`: shares of the steps at which the
    model is looked at as well, with nothing decided by it, and the one after which the training
    pauses, its state in that file. `measured_at`: steps after which a function is given the log of
    a training that ends there.
    """
    coreset, trial, train = sorted(coreset), context.trial, context.trial.train
    layers, steps = block_numbers(train.layers), train.n_steps(len(coreset))
    adapter = bind_arguments(trial, ADAPTERS[train.adapter].function)
    length = control_length(context)
    # where weights are stored in fewer bits, what the model said before is of those
    sides = objective_sides(context, coreset) if train.weights == FLOAT32 else None
    put_in = with_adapter(context.model, adapter, train.parameters, adapter_folder, layers)
    with put_in as pattern, _as_it_trains(context, pattern) as masters:
        sides = with_prefixes(context, sides or objective_sides(context, coreset))
        watch = None if after_step else _watch(context)
        with shard_model(context.model) as model:
            objective = _objective(context, model, *sides, length)
            monitor = None if watch is None else watch(model)
            looks = monitor, None if after_step else training_effects(context, model, objective)
            callbacks = _callbacks(trial, objective, looks, measured_at, after_step)
            log = optimise(
                model,
                objective,
                steps=steps,
                optimizer=_optimizer_settings(trial),
                trained=TrainedParameters(pattern, layers, masters),
                wrappers=_wrappers(context.trial, after_step),
                callbacks=replace(callbacks, also_at=rungs.steps(steps)),
                checkpoints=_checkpoints(context, coreset, checkpoint, rungs, objective, *looks),
            )
            return _ended(looks, log)


Looks = tuple[TrainingMonitor | None, GradientEffects | None]


def _ended(looks: Looks, log: TrainLog) -> TrainLog:
    """The log as the monitor leaves it, with the curve of the gradients."""
    monitor, effects = looks
    # of the weights that training ended with: the monitor may put back others
    gradients = [] if effects is None else effects.ended(log)
    log = log if monitor is None else monitor.ended(log)
    return replace(log, curve=[*log.curve, *gradients])


def _ended_here(looks: Looks, measure: Callable[[TrainLog], None], log: TrainLog) -> None:
    """Hand on the log of a training that goes on, with the curve that it would have."""
    is_complete = log.outcome == "complete"
    curve = [
        row
        for look in looks
        if look is not None
        for row in (look.curve_at(len(log.rows)) if is_complete else look.rows())
    ]
    measure(replace(log, curve=curve))


@contextmanager
def _as_it_trains(context: TrialContext, pattern: str) -> Iterator[MasterWeights]:
    """The model with its weights stored, and its activations kept, as the trial says while it
    trains what `pattern` names; gives the float32 copies of that.
    """
    train, n_processes = context.trial.train, accelerator().num_processes
    rule = (
        "train.weights must be float32, train.checkpoint_activations and train.compile false where"
        " a trial has several processes"
    )
    is_plain = train.weights == FLOAT32 and not (train.checkpoint_activations or train.compile)
    require(is_plain or n_processes == 1, rule, n_processes)
    choose_parameters(context.model, pattern, block_numbers(train.layers))
    with ExitStack() as stack:
        masters = stack.enter_context(
            stored_weights(
                context.model,
                train.weights,
                context.state.pristine,
                adapted=train.adapter != "none",
                master=train.master_weights,
            )
        )
        if train.compile:
            stack.enter_context(compiled_blocks(context.model, context.cache / "compiled"))
        if train.checkpoint_activations:
            stack.enter_context(checkpointed_blocks(context.model))
        yield masters


def _callbacks(
    trial: Trial,
    objective: UnlearningObjective,
    looks: Looks,
    measured_at: Mapping[int, Callable[[TrainLog], None]],
    after_step: Callable[[int], None] | None,
) -> Callbacks:
    monitor, effects = looks

    def look(step: int) -> bool:
        if step % trial.stop.check_every:
            # a look for the batch: without rungs it would not be there
            if monitor is not None:
                monitor.note(step)
            return True
        if effects is not None:
            effects.look(step)
        return monitor is None or monitor.evaluate(step)

    return Callbacks(
        check_every=trial.stop.check_every,
        keep_going=look if monitor or effects else None,
        after_step=objective.after_step,
        on_rows=None if after_step else tell_rows,
        measured_at={
            step: partial(_ended_here, looks, measure) for step, measure in measured_at.items()
        },
    )


def tell_rows(rows: Sequence[StepRow]) -> None:
    """Tell who listens to this process of the steps, as trackers name what they record."""
    tell([(row.step, {f"train/{name}": v for name, v in _numbers(row)}) for row in rows])


def _numbers(row: StepRow) -> list[tuple[str, float]]:
    """What a step recorded, but its number, where it is finite."""
    values = [(name, value) for name, value in asdict(row).items() if name != "step"]
    return [(name, float(v)) for name, v in values if v is not None and math.isfinite(v)]


def _optimizer_settings(trial: Trial) -> OptimizerSettings:
    train = trial.train
    return OptimizerSettings(
        name=train.optimizer,
        options=arguments_of(trial, OPTIMIZERS[train.optimizer].function),
        learning_rate=train.learning_rate,
        schedule=train.schedule,
        warmup_fraction=train.warmup_fraction,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        accumulation=train.accumulation,
    )


def _watch(context: TrialContext) -> Callable[[PreTrainedModel], TrainingMonitor | None]:
    """What makes the looks at a model that is trained. The trial's own must hold the base weights
    now, as they are the first look.
    """
    questions = monitored_probes(context)
    start = start_evaluation(context, questions)
    aim = best_look_aim(context, questions)
    return partial(training_monitor, context, questions=questions, start=start, aim=aim)


def _objective(
    context: TrialContext, model: PreTrainedModel, forget: Side, retain: Side, length: float
) -> UnlearningObjective:
    trial = context.trial
    settings = ObjectiveSettings(
        forget_weight=trial.method.forget_weight,
        retain_weight=trial.method.retain_weight,
        layer=trial.method.layer,
        batch_size=trial.train.batch_size,
        seed=trial.train.seed,
        n_microbatches=n_microbatches(trial),
        weighting=bind_arguments(trial, FORGET[trial.method.forget].weighting),
        precision=products_of(context),
        control_length=length,
        one_pass=TAKES_TERMS_APART.isdisjoint(names_of(trial.method.wrappers)),
    )
    return UnlearningObjective(model, forget, retain, settings)


def _checkpoints(
    context: TrialContext,
    coreset: Sequence[int],
    path: Path | None,
    rungs: Rungs,
    *states: HasState | None,
) -> Checkpoints | None:
    """`states`: what carries something from step to step, None for what there is not."""
    train = context.trial.train
    pause_at = rungs.pause_step(train.n_steps(len(coreset)))
    # one that paused left a checkpoint, however often it writes one
    if path is None or (train.checkpoint_every == 0 and pause_at == 0 and not path.exists()):
        return None
    settings = flatten(context.trial)
    del settings["train.checkpoint_every"]
    about = {
        "trial": settings,
        "corpus": context.corpus.digest,
        "start": context.state.checksum,
        "kept": list(coreset),
        "device": context.model.device.type,
        "code": code_digest(*TRAINING),
        **{name: version_of(name) for name in ("torch", "transformers", "peft")},
    }
    parts = [state for state in states if state is not None]
    return Checkpoints(path, about, train.checkpoint_every, parts, pause_at)


def objective_sides(context: TrialContext, coreset: Sequence[int]) -> tuple[Side, Side]:
    """The forget and the retain side of the objective. The model must hold the base weights."""
    return _forget_side(context, coreset), _retain_side(context)


def _forget_side(context: TrialContext, coreset: Sequence[int]) -> Side:
    trial, token = context.trial, context.trial.token
    positions, chosen, _ = coreset_sequences(context, coreset)
    row = FORGET[trial.method.forget]
    loss = bind_arguments(trial, row.function)
    companions = {
        kind: _paired_responses(context, positions, kind, loss)
        for kind in paired_response_kinds(loss)
    }
    # of the full forget set, so that trials of every coreset read one entry
    is_original = trial.select.text == "original"
    texts = training_sequences(context)[0] if is_original else chosen
    reference = cached_trial_reference(context, texts, reference_kinds(loss), token.temperature)
    return Side(loss, chosen, reference, companions, _token_rule(context, chosen), mean=row.mean)


def _retain_side(context: TrialContext) -> Side:
    row = RETAIN[context.trial.method.retain]
    loss = bind_arguments(context.trial, row.function)
    # a loss that asks for nothing is shown nothing, so nothing is chosen for it
    retain = retained_sequences(context) if required_inputs(row.function) else []
    reference = cached_trial_reference(context, retain, reference_kinds(loss), 1.0)
    return Side(loss, retain, reference, mean=row.mean)


def _token_rule(context: TrialContext, sequences: Sequence[Encoded]) -> TokenRule:
    token, words = context.trial.token, word_list(context.trial.token.words)
    return TokenRule(
        temperature=token.temperature,
        keep=token.keep,
        cap=token.cap,
        positions=word_positions(sequences, context.tokenizer, words)
        if sequences and words
        else {},
    )


def _paired_responses(
    context: TrialContext, coreset: Sequence[int], kind: str, loss: Callable[..., Tensor]
) -> PairedResponses:
    trial, maker = context.trial, paired_response_function(context.trial, kind)
    forget, retain = training_sequences(context)
    source = ResponseInputs(
        documents=coreset_documents(context, coreset),
        sequences=substitute_sequences(context, coreset)
        if trial.select.text in SUBSTITUTES
        else [forget[p] for p in coreset],
        retain_documents=context.corpus.retain,
        retain_sequences=retain,
        model=context.model,
        tokenizer=context.tokenizer,
        template=trial.data.template,
        max_tokens=trial.data.max_tokens,
    )
    choices = _choices(context, source, maker)
    sequences = [sequence for texts in choices.values() for sequence in texts]
    kinds = reference_kinds(loss, kind)
    return PairedResponses(
        choices, cached_trial_reference(context, sequences, kinds, trial.token.temperature)
    )


def _choices(
    context: TrialContext,
    source: ResponseInputs,
    maker: Callable[..., Choices],
) -> Choices:
    """The companions of the documents of `source`. Those that the model itself writes are kept on
    disk: the same for all trials that keep these documents.
    """
    arguments = arguments_of(context.trial, maker)
    make = partial(maker, source, **arguments)
    sequences = [*source.sequences, *source.retain_sequences]
    key = cache_key(context, sequences, "float32") | {
        "maker": maker.__name__,
        "arguments": arguments,
        "documents": context.corpus.digest,
        "template": context.trial.data.template,
        "max_tokens": source.max_tokens,
        "prompts": [bool(document.prompt) for document in source.documents],
        "code": code_digest(*PAIRING),
    }
    if not PAIRED_RESPONSES[maker.__name__].by_model:
        return cached(context.state, context.cache, key, lambda _folder, _key: make())

    def rows() -> dict[str, list[list[Any]]]:
        return {name: [[s.doc_id, s.ids, s.start] for s in texts] for name, texts in make().items()}

    def read_or_make(folder: Path, key: Mapping[str, object]) -> Choices:
        return {
            name: tuple(Encoded(doc_id, tuple(ids), start) for doc_id, ids, start in texts)
            for name, texts in cached_file(folder, key, rows, JSON).items()
        }

    return cached(context.state, context.cache / "companions", key, read_or_make)


def _wrappers(
    trial: Trial, after_step: Callable[[int], None] | None
) -> list[Callable[..., Wrapper]]:
    """What acts around the steps; the ending of a method that has one comes last, and after it
    `after_step`, which so sees what all of them have done in a step.
    """
    ending = FORGET[trial.method.forget].ending
    last = (
        [] if ending is as_trained else [partial(ended_by, function=bind_arguments(trial, ending))]
    )
    return [
        *(
            partial(WRAPPERS[name].function, **arguments_of(trial, WRAPPERS[name].function))
            for name in names_of(trial.method.wrappers)
        ),
        *last,
        *([lambda *_run: Wrapper(after_step=after_step)] if after_step else []),
    ]


def n_microbatches(trial: Trial) -> int:
    """Microbatches that a step's batch goes through the model in: it is divided by
    `train.accumulation` and over the processes there are.
    """
    batch, shares = trial.train.batch_size, trial.train.accumulation * accelerator().num_processes
    require(
        batch % shares == 0,
        f"train.batch_size must be a multiple of train.accumulation x processes, here {shares}",
        batch,
    )
    return shares


def gradient_norms_along(context: TrialContext, order: Sequence[int], epochs: int) -> Tensor:
    """Gradient norms of the documents at `order` on an unlearning run over the full forget set,
    (epochs + 1, n).

    The norm of grad (forget weight x forget loss + retain weight x retain loss), each forget
    document with a retain document drawn once: row 0 at the base model, row k after the first step
    by which every document was shown k times (where a batch is larger than the forget set, several
    epochs end with one step). `retain weight` is `method.retain_weight`, also where the run moves
    its own. The run is the trial's own in all but coreset, length and warm-up, whose first step has
    rate 0 and would count base twice; with an adapter it is that of the adapted parameters
    themselves. It is looked at as it trains, before weights are averaged or a task vector is
    subtracted. The base weights come back afterwards. Raises UserError where the run diverges and
    on several processes.
    """
    n_processes = accelerator().num_processes
    rule = "select.name must be no selector that trains a model where a trial has several processes"
    require(n_processes == 1, rule, n_processes)
    ends = epoch_ends(len(order), context.trial.train.batch_size, epochs)
    trajectory = replace(context, trial=_trajectory(context.trial, max(ends, default=0)))
    forget, retain = objective_sides(trajectory, order)
    norms_now = partial(
        _norms_now, trajectory, forget, _retain_for_each(retain, len(order), trajectory.trial)
    )
    train = trajectory.trial.train
    choose_parameters(context.model, train.parameters, block_numbers(train.layers))
    norms = {0: norms_now()}

    def after_step(step: int) -> None:
        if step in ends:
            norms[step] = norms_now()

    if epochs > 0:
        log = unlearn(trajectory, order, Path(), after_step=after_step)
        rule = "grand needs an unlearning run whose loss stays finite over its epochs; this one"
        require(log.outcome == "complete", rule, log.outcome)
    put_back(context.model, context.state.pristine)
    context.model.requires_grad_(True)
    return torch.stack([norms[step] for step in (0, *ends)])


def epoch_ends(n_documents: int, batch_size: int, epochs: int) -> list[int]:
    """For each epoch the first optimizer step, from 1, by which it is over: ceil(k n / batch)."""
    return [-(-epoch * n_documents // batch_size) for epoch in range(1, epochs + 1)]


def _trajectory(trial: Trial, steps: int) -> Trial:
    """The trial as `gradient_norms_along` trains it."""
    changes: dict[str, Any] = {"length": float(steps), "unit": "steps", "adapter": "none"}
    changes |= {"weights": FLOAT32, "master_weights": True, "compile": False}
    return replace(trial, train=replace(trial.train, warmup_fraction=0.0, **changes))


def _retain_for_each(retain: Side, n: int, trial: Trial) -> Side:
    """The retain side with one of its documents, drawn once, for each of n forget documents."""
    indices = (
        batch_indices(len(retain.sequences), n, 0, trial.train.seed)
        if required_inputs(retain.loss)
        else []
    )
    return replace(retain, sequences=[retain.sequences[p] for p in indices])


def _norms_now(context: TrialContext, forget: Side, retain: Side) -> Tensor:
    """The norms of `gradient_norms_along` with the model as it stands, in the precision of its
    training.
    """
    trial = context.trial
    with computing(context.model.device, products_of(context)):
        return unlearning_norms(
            context.model,
            forget,
            retain,
            forget_weight=trial.method.forget_weight,
            retain_weight=trial.method.retain_weight,
            layer=trial.method.layer,
            seed=trial.train.seed,
        )


def bind_arguments(trial: Trial, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a family with the trial's hyperparameters bound."""
    return partial(function, **arguments_of(trial, function))
