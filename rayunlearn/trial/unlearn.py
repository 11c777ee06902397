"""The training of one trial: its losses and what they need (references, prefixes, companions),
watched and wrapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn import data as data_code
from rayunlearn import methods as method_code
from rayunlearn import models as model_code
from rayunlearn.config import Trial, block_numbers, flatten
from rayunlearn.data.tokenize import Encoded
from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.loss_inputs import paired_response_kinds, reference_kinds
from rayunlearn.methods.objective import PairedResponses, Side, UnlearningObjective, batch_indices
from rayunlearn.methods.paired_responses import PAIRED_RESPONSES, Choices, ResponseInputs
from rayunlearn.methods.retain import RETAIN
from rayunlearn.methods.task_vector import as_trained
from rayunlearn.methods.token_mask import TokenRule, word_list, word_positions
from rayunlearn.ranges import required_inputs
from rayunlearn.registry import arguments_of, paired_response_function
from rayunlearn.selectors.unlearning_gradients import unlearning_norms
from rayunlearn.storage.artifact_cache import JSON, cached_file
from rayunlearn.train.adapters import ADAPTERS, with_adapter
from rayunlearn.train.checkpoint import Checkpoints
from rayunlearn.train.device import accelerator, computing
from rayunlearn.train.early_stopping import RetentionEarlyStopping
from rayunlearn.train.fsdp import shard_model
from rayunlearn.train.loop import TrainLog, choose_parameters, optimise
from rayunlearn.train.wrappers import WRAPPERS, Wrapper, ended_by, names_of
from rayunlearn.trial.coreset import select_coreset
from rayunlearn.trial.encodings import training_sequences
from rayunlearn.trial.keywords import coreset_sequences
from rayunlearn.trial.model_state import ModelState, cached
from rayunlearn.trial.probes import retention_probe
from rayunlearn.trial.provenance import code_digest, version_of
from rayunlearn.trial.references import cache_key, cached_trial_reference, with_prefixes
from rayunlearn.trial.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def select_documents(
    trial: Trial, workspace: Workspace, state: ModelState
) -> tuple[list[int], Tensor]:
    """`coreset.select_coreset`; a trial whose forget loss looks at no document (the retain-only control)
    keeps none.
    """
    if not required_inputs(FORGET[trial.method.forget].function):
        return [], torch.zeros(len(workspace.corpus.forget))
    return select_coreset(
        trial, workspace, state, partial(gradient_norms_along, trial, workspace, state)
    )


def unlearn(
    trial: Trial,
    workspace: Workspace,
    state: ModelState,
    coreset: Sequence[int],
    adapter_folder: Path,
    after_step: Callable[[int], None] | None = None,
    checkpoint: Path | None = None,
) -> TrainLog:
    """Train `state.model` away from the kept documents, as the trial says; LoRA adapters are left
    in `adapter_folder`.

    Every `stop.check_every` steps utility says whether to go on: as a collapse, or under
    `stop.retention_floor` as a control, which puts back the last weights that held it.
    `after_step(step)`, from 1, is called in place of that, after every step and before what a
    method does after the last one. `checkpoint`: the file that the training is resumed from and,
    every `train.checkpoint_every` steps, written to.
    """
    pair = objective_sides(trial, workspace, state, coreset)
    train = trial.train
    names = (
        "learning_rate",
        "schedule",
        "warmup_fraction",
        "weight_decay",
        "max_grad_norm",
        "accumulation",
    )
    settings = {name: getattr(train, name) for name in names} | {
        "check_every": trial.stop.check_every
    }
    adapter, layers = _bound(trial, ADAPTERS[train.adapter].function), block_numbers(train.layers)
    with with_adapter(state.model, adapter, train.parameters, adapter_folder, layers) as parameters:
        choose_parameters(state.model, parameters, layers)
        forget, retain = with_prefixes(trial, workspace, state, pair)
        retained = None if after_step else retention_probe(trial, workspace, state)
        checkpoints = _checkpoints(trial, workspace, state, coreset, checkpoint)
        with shard_model(state.model) as model:
            terms = _objective(trial, model, forget, retain)
            floor = (
                RetentionEarlyStopping(model, partial(retained.now, model), retained.floor)
                if retained and retained.holds_back
                else None
            )
            log = optimise(
                model,
                terms,
                steps=n_steps(trial, len(coreset)),
                parameters=parameters,
                layers=layers,
                wrappers=_wrappers(trial, after_step),
                keep_going=floor.holds if floor else retained.watch(model) if retained else None,
                checkpoints=checkpoints,
                remembers=[terms, floor] if floor else [terms],
                after_step=terms.after_step,
                **settings,
            )
            return floor.ended(log) if floor else log


def _objective(
    trial: Trial, model: PreTrainedModel, forget: Side, retain: Side
) -> UnlearningObjective:
    return UnlearningObjective(
        model,
        forget,
        retain,
        retain_weight=trial.method.retain_weight,
        weighting=_bound(trial, FORGET[trial.method.forget].weighting),
        layer=trial.method.layer,
        batch_size=trial.train.batch_size,
        pieces=n_microbatches(trial),
        seed=trial.train.seed,
        precision=trial.train.precision,
    )


def _checkpoints(
    trial: Trial, workspace: Workspace, state: ModelState, coreset: Sequence[int], path: Path | None
) -> Checkpoints | None:
    if path is None or trial.train.checkpoint_every == 0:
        return None
    versions = {name: version_of(name) for name in ("torch", "transformers", "peft")}
    settings = {
        name: value for name, value in flatten(trial).items() if name != "train.checkpoint_every"
    }
    about = {
        "trial": settings,
        "corpus": workspace.corpus.digest,
        "start": state.checksum,
        "kept": list(coreset),
        "device": state.model.device.type,
    }
    return Checkpoints(path, about | versions, trial.train.checkpoint_every)


def objective_sides(
    trial: Trial, workspace: Workspace, state: ModelState, coreset: Sequence[int]
) -> tuple[Side, Side]:
    """The forget and the retain side of the objective; `state` must hold the base weights."""
    forget, retain = training_sequences(trial, workspace, state)
    coreset, chosen, _ = coreset_sequences(trial, workspace, state, coreset)
    token, reference_sequences = trial.token, forget if trial.select.text == "original" else chosen
    forget_loss, retain_loss = (
        _bound(trial, table[name].function)
        for table, name in ((FORGET, trial.method.forget), (RETAIN, trial.method.retain))
    )
    words = word_list(token.words)
    positions = word_positions(chosen, state.tokenizer, words) if chosen and words else {}
    rule = TokenRule(
        temperature=token.temperature, keep=token.keep, cap=token.cap, positions=positions
    )
    reference = partial(cached_trial_reference, trial, workspace, state)
    companions = {
        kind: _companions(trial, workspace, state, coreset, kind, forget_loss)
        for kind in paired_response_kinds(forget_loss)
    }
    forget_side = Side(
        forget_loss,
        chosen,
        reference(reference_sequences, reference_kinds(forget_loss), token.temperature),
        companions,
        rule,
        mean=FORGET[trial.method.forget].mean,
    )
    return forget_side, Side(
        retain_loss,
        retain,
        reference(retain, reference_kinds(retain_loss), 1.0),
        mean=RETAIN[trial.method.retain].mean,
    )


def _companions(
    trial: Trial,
    workspace: Workspace,
    state: ModelState,
    coreset: Sequence[int],
    kind: str,
    loss: Callable[..., Tensor],
) -> PairedResponses:
    maker = paired_response_function(trial, kind)
    forget, retain = training_sequences(trial, workspace, state)
    source = ResponseInputs(
        documents=[workspace.corpus.forget[p] for p in coreset],
        sequences=[forget[p] for p in coreset],
        retain_documents=workspace.corpus.retain,
        retain_sequences=retain,
        model=state.model,
        tokenizer=state.tokenizer,
        template=trial.data.template,
        max_tokens=trial.data.max_tokens,
    )
    choices = _choices(trial, workspace, state, source, maker)
    return PairedResponses(
        choices,
        cached_trial_reference(
            trial,
            workspace,
            state,
            [s for texts in choices.values() for s in texts],
            reference_kinds(loss, kind),
            trial.token.temperature,
        ),
    )


def _choices(
    trial: Trial,
    workspace: Workspace,
    state: ModelState,
    source: ResponseInputs,
    maker: Callable[..., Choices],
) -> Choices:
    """The companions of the documents of `source`. Those that the model itself writes are kept on
    disk: the same for all trials that keep these documents.
    """
    arguments = arguments_of(trial, maker)
    make = partial(maker, source, **arguments)
    sequences = [*source.sequences, *source.retain_sequences]
    key = cache_key(workspace, state, sequences, "float32") | {
        "maker": maker.__name__,
        "arguments": arguments,
        "documents": workspace.corpus.digest,
        "template": trial.data.template,
        "max_tokens": source.max_tokens,
        "prompts": [bool(document.prompt) for document in source.documents],
        "code": code_digest(method_code, model_code, data_code),
    }
    if not PAIRED_RESPONSES[maker.__name__].by_model:
        return cached(state, workspace.cache, key, lambda _folder, _key: make())

    def rows() -> dict[str, list[list[Any]]]:
        return {name: [[s.doc_id, s.ids, s.start] for s in texts] for name, texts in make().items()}

    def read_or_make(folder: Path, key: Mapping[str, object]) -> Choices:
        return {
            name: tuple(Encoded(doc_id, tuple(ids), start) for doc_id, ids, start in texts)
            for name, texts in cached_file(folder, key, rows, JSON).items()
        }

    return cached(state, workspace.cache / "companions", key, read_or_make)


def _wrappers(
    trial: Trial, after_step: Callable[[int], None] | None
) -> list[Callable[..., Wrapper]]:
    """What acts around the steps; the ending of a method that has one comes last, and after it
    `after_step`, which so sees what all of them have done in a step.
    """
    ending = FORGET[trial.method.forget].ending
    last = [] if ending is as_trained else [partial(ended_by, function=_bound(trial, ending))]
    return [
        *(
            partial(WRAPPERS[name].function, **arguments_of(trial, WRAPPERS[name].function))
            for name in names_of(trial.method.wrappers)
        ),
        *last,
        *([lambda *_run: Wrapper(after_step=after_step)] if after_step else []),
    ]


def n_microbatches(trial: Trial) -> int:
    """Parts that a step's batch goes through the model in: it is divided into pieces and over the
    processes there are.
    """
    batch, shares = trial.train.batch_size, trial.train.accumulation * accelerator().num_processes
    require(
        batch % shares == 0,
        f"train.batch_size must be a multiple of train.accumulation x processes, here {shares}",
        batch,
    )
    return shares


def n_steps(trial: Trial, n_kept: int) -> int:
    """Optimizer steps of a trial: `train.length` in steps, epochs of the coreset or presentations
    of a document.
    """
    length, unit = trial.train.length, trial.train.unit
    presentations = {
        "steps": length * trial.train.batch_size,
        "epochs": length * n_kept,
        "presentations": length,
    }[unit]
    return max(1, round(presentations / trial.train.batch_size)) if length > 0 else 0


def gradient_norms_along(
    trial: Trial, workspace: Workspace, state: ModelState, order: Sequence[int], epochs: int
) -> Tensor:
    """Gradient norms of the documents at `order` on an unlearning run over the whole forget set,
    (epochs + 1, n).

    The norm of grad (forget loss + retain weight x retain loss), each forget document with a retain
    document drawn once: row 0 at the base model, row k after the first step by which every document
    was shown k times (where a batch is larger than the forget set, several epochs end with one
    step). `retain weight` is `method.retain_weight`, also where the run moves its own. The run is
    the trial's own in all but coreset, length and warm-up, whose first step has rate 0 and would
    count base twice; with an adapter it is that of the adapted parameters themselves. It is looked
    at as it trains, before weights are averaged or a task vector is subtracted. The base weights
    come back afterwards. Raises UserError where the run diverges and on several processes.
    """
    n_processes = accelerator().num_processes
    rule = "select.name must be no selector that trains a model where a trial has several processes"
    require(n_processes == 1, rule, n_processes)
    ends = epoch_ends(len(order), trial.train.batch_size, epochs)
    whole = _trajectory(trial, max(ends, default=0))
    forget, retain = objective_sides(whole, workspace, state, order)
    at_point = partial(_norms_now, whole, state.model, forget, _matched(retain, len(order), trial))
    choose_parameters(state.model, whole.train.parameters, block_numbers(whole.train.layers))
    norms = {0: at_point()}

    def after_step(step: int) -> None:
        if step in ends:
            norms[step] = at_point()

    if epochs > 0:
        log = unlearn(whole, workspace, state, order, Path(), after_step=after_step)
        rule = "grand needs an unlearning run whose loss stays finite over its epochs; this one"
        require(log.ended == "complete", rule, log.ended)
    state.model.load_state_dict(state.pristine)
    state.model.requires_grad_(True)
    return torch.stack([norms[step] for step in (0, *ends)])


def epoch_ends(n_documents: int, batch_size: int, epochs: int) -> list[int]:
    """For each epoch the first optimizer step, from 1, by which it is over: ceil(k n / batch)."""
    return [-(-epoch * n_documents // batch_size) for epoch in range(1, epochs + 1)]


def _trajectory(trial: Trial, steps: int) -> Trial:
    """The trial as `gradient_norms_along` trains it."""
    changes: dict[str, Any] = {"length": float(steps), "unit": "steps", "adapter": "none"}
    return replace(trial, train=replace(trial.train, warmup_fraction=0.0, **changes))


def _matched(retain: Side, n: int, trial: Trial) -> Side:
    """The retain side with one of its documents, drawn once, for each of n forget documents."""
    drawn = (
        batch_indices(len(retain.sequences), n, 0, trial.train.seed)
        if required_inputs(retain.loss)
        else []
    )
    return replace(retain, sequences=[retain.sequences[p] for p in drawn])


def _norms_now(trial: Trial, model: PreTrainedModel, forget: Side, retain: Side) -> Tensor:
    """The norms of `gradient_norms_along` with the model as it stands, in the precision of its
    training.
    """
    with computing(model.device, trial.train.precision):
        return unlearning_norms(
            model,
            forget,
            retain,
            retain_weight=trial.method.retain_weight,
            layer=trial.method.layer,
            seed=trial.train.seed,
        )


def _bound(trial: Trial, function: Callable[..., Any]) -> Callable[..., Any]:
    return partial(function, **arguments_of(trial, function))
