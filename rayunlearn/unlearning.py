"""The training of one trial: its losses and what they need (references, prefixes, companions),
watched and wrapped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayunlearn.config import Data, Trial, block_numbers, flatten
from rayunlearn.coreset import sequences_of, written
from rayunlearn.data.documents import Document
from rayunlearn.data.encode import Encoded, collate
from rayunlearn.errors import require
from rayunlearn.families import arguments_of, companion_maker
from rayunlearn.methods.companions import COMPANIONS, Choices, Source
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.objective import Companions, Objective, Side, stream
from rayunlearn.methods.retain import RETAIN
from rayunlearn.methods.tokens import TokenRule, word_list, word_positions
from rayunlearn.methods.view import companion_kinds, needs, reference_kinds
from rayunlearn.methods.weightspace import as_trained
from rayunlearn.metrics.measure import Probe, encode_probes, mean_probability
from rayunlearn.metrics.probes import arithmetic_probes
from rayunlearn.models.cache import json_once, sequences_digest, tensors_once
from rayunlearn.models.forward import can_start, first_trained_block
from rayunlearn.models.reference import (
    ACTIVATION_BYTES,
    Prefix,
    Reference,
    kept_bytes,
    kept_prefix,
    kept_reference,
)
from rayunlearn.provenance import version_of
from rayunlearn.scores.unlearning import unlearning_norms
from rayunlearn.train.adapters import ADAPTERS, adapted
from rayunlearn.train.checkpoint import Checkpoints
from rayunlearn.train.device import accelerator, computing
from rayunlearn.train.floor import Floor
from rayunlearn.train.loop import TrainLog, choose_parameters, optimise
from rayunlearn.train.sharded import sharded
from rayunlearn.train.wrappers import WRAPPERS, Wrapper, ended, names_of
from rayunlearn.worker import Loaded, remembered
from rayunlearn.workspace import Workspace

# retain probes that watch utility during training; a rung, not a result
UTILITY_PROBES = 64


def unlearn(
    trial: Trial,
    workspace: Workspace,
    state: Loaded,
    kept: Sequence[int],
    adapter_folder: Path,
    watch: Callable[[int], bool] | None = None,
    checkpoint: Path | None = None,
) -> TrainLog:
    """Train `state.model` away from the kept documents, as the trial says; LoRA adapters are left
    in `adapter_folder`.

    `watch(step)`, every `stop.check_every` steps, says whether to go on; without it utility does:
    as a collapse, or under `stop.retention_floor` as a control, which puts back the last weights
    that held it. `checkpoint`: the file that the training is resumed from and, every
    `train.checkpoint_every` steps, written to.
    """
    pair = sides(trial, workspace, state, kept)
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
    with adapted(state.model, adapter, train.parameters, adapter_folder, layers) as parameters:
        choose_parameters(state.model, parameters, layers)
        forget, retain = with_prefixes(trial, workspace, state, pair)
        retained = None if watch else _retained(trial, workspace, state)
        checkpoints = _checkpoints(trial, workspace, state, kept, checkpoint)
        with sharded(state.model) as model:
            terms = _objective(trial, model, forget, retain)
            floor = (
                Floor(model, partial(retained.now, model), retained.floor)
                if retained and retained.holds_back
                else None
            )
            log = optimise(
                model,
                terms,
                steps=n_steps(trial, len(kept)),
                parameters=parameters,
                layers=layers,
                wrappers=_wrappers(trial),
                keep_going=watch
                or (floor.holds if floor else retained.watch(model) if retained else None),
                checkpoints=checkpoints,
                remembers=[terms, floor] if floor else [terms],
                **settings,
            )
            return floor.ended(log) if floor else log


def _objective(trial: Trial, model: PreTrainedModel, forget: Side, retain: Side) -> Objective:
    return Objective(
        model,
        forget,
        retain,
        retain_weight=trial.method.retain_weight,
        weighting=_bound(trial, FORGET[trial.method.forget].weighting),
        layer=trial.method.layer,
        batch_size=trial.train.batch_size,
        pieces=n_pieces(trial),
        seed=trial.train.seed,
        precision=trial.train.precision,
    )


def _checkpoints(
    trial: Trial, workspace: Workspace, state: Loaded, kept: Sequence[int], path: Path | None
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
        "kept": list(kept),
        "device": state.model.device.type,
    }
    return Checkpoints(path, about | versions, trial.train.checkpoint_every)


def sides(
    trial: Trial, workspace: Workspace, state: Loaded, kept: Sequence[int]
) -> tuple[Side, Side]:
    """The forget and the retain side of the objective; `state` must hold the base weights."""
    forget, retain = sequences_of(trial, workspace, state)
    kept, chosen, _ = written(trial, workspace, state, kept)
    token, known = trial.token, forget if trial.select.text == "original" else chosen
    forget_loss, retain_loss = (
        _bound(trial, table[name].function)
        for table, name in ((FORGET, trial.method.forget), (RETAIN, trial.method.retain))
    )
    words = word_list(token.words)
    positions = word_positions(chosen, state.tokenizer, words) if chosen and words else {}
    rule = TokenRule(
        temperature=token.temperature, keep=token.keep, cap=token.cap, positions=positions
    )
    know = partial(_reference, trial, workspace, state)
    companions = {
        kind: _companions(trial, workspace, state, kept, kind, forget_loss)
        for kind in companion_kinds(forget_loss)
    }
    forget_side = Side(
        forget_loss,
        chosen,
        know(
            "forget" if known is forget else ("forget", tuple(known)),
            known,
            reference_kinds(forget_loss),
            token.temperature,
        ),
        companions,
        rule,
        mean=FORGET[trial.method.forget].mean,
    )
    return forget_side, Side(
        retain_loss,
        retain,
        know("retain", retain, reference_kinds(retain_loss), 1.0),
        mean=RETAIN[trial.method.retain].mean,
    )


def _companions(
    trial: Trial,
    workspace: Workspace,
    state: Loaded,
    kept: Sequence[int],
    kind: str,
    loss: Callable[..., Tensor],
) -> Companions:
    maker = companion_maker(trial, kind)
    forget, retain = sequences_of(trial, workspace, state)
    source = Source(
        documents=[workspace.corpus.forget[p] for p in kept],
        sequences=[forget[p] for p in kept],
        retain_documents=workspace.corpus.retain,
        retain_sequences=retain,
        model=state.model,
        tokenizer=state.tokenizer,
        max_tokens=trial.data.max_tokens,
    )
    arguments = arguments_of(trial, maker)
    key = (
        "companions",
        workspace.corpus.digest,
        maker.__name__,
        tuple(sorted(arguments.items())),
        tuple(kept),
        trial.data.template,
        trial.data.max_tokens,
    )
    make = partial(maker, source, **arguments)
    kept_make = partial(
        _written_once, workspace, state, source, make, {"maker": maker.__name__, **arguments}
    )
    choices: Choices = remembered(
        state, key, kept_make if COMPANIONS[maker.__name__].by_model else make
    )
    sequences = [s for texts in choices.values() for s in texts]
    return Companions(
        choices,
        _reference(
            trial,
            workspace,
            state,
            key,
            sequences,
            reference_kinds(loss, kind),
            trial.token.temperature,
        ),
    )


def _written_once(
    workspace: Workspace,
    state: Loaded,
    source: Source,
    make: Callable[[], Choices],
    settings: dict[str, Any],
) -> Choices:
    """Companions that the model itself writes, kept on disk: the same for all trials that keep
    these documents.
    """
    opened = [bool(document.prompt) for document in source.documents]
    about = (
        cache_key(workspace, state, source.sequences, "float32")
        | {"max_tokens": source.max_tokens, "prompts": opened}
        | settings
    )
    folder = workspace.cache / "companions"
    stored = json_once(
        folder,
        about,
        lambda: {
            name: [[s.doc_id, s.ids, s.start] for s in texts] for name, texts in make().items()
        },
    )
    return {
        name: tuple(Encoded(doc_id, tuple(ids), start) for doc_id, ids, start in texts)
        for name, texts in stored.items()
    }


def _wrappers(trial: Trial) -> list[Callable[..., Wrapper]]:
    """What acts around the steps; the ending of a method that has one comes last."""
    ending = FORGET[trial.method.forget].ending
    last = [] if ending is as_trained else [partial(ended, function=_bound(trial, ending))]
    return [
        *(
            partial(WRAPPERS[name].function, **arguments_of(trial, WRAPPERS[name].function))
            for name in names_of(trial.method.wrappers)
        ),
        *last,
    ]


def n_pieces(trial: Trial) -> int:
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


def norms_along(
    trial: Trial, workspace: Workspace, state: Loaded, order: Sequence[int], epochs: int
) -> Tensor:
    """Gradient norms of the documents at `order` on an unlearning run over the whole forget set,
    (epochs + 1, n).

    The norm of grad (forget loss + retain weight x retain loss), each forget document with a retain
    document drawn once, at the base model and after each epoch. The run is the trial's own in all
    but length and coreset; with an adapter it is that of the adapted parameters themselves. The
    base weights come back afterwards.
    """
    train = replace(trial.train, length=float(epochs), unit="epochs", adapter="none")
    whole = replace(
        trial,
        train=train,
        stop=replace(
            trial.stop,
            check_every=max(
                1, n_steps(replace(trial, train=replace(train, length=1.0)), len(order))
            ),
        ),
    )
    forget, retain = sides(whole, workspace, state, order)
    partners = (
        stream(len(retain.sequences), len(order), 0, trial.train.seed) if needs(retain.loss) else []
    )
    matched = replace(retain, sequences=[retain.sequences[p] for p in partners])
    choose_parameters(state.model, train.parameters, block_numbers(train.layers))
    at_point = partial(
        unlearning_norms,
        state.model,
        forget,
        matched,
        retain_weight=trial.method.retain_weight,
        layer=trial.method.layer,
        seed=train.seed,
    )
    found = [at_point()]

    def look(_step: int) -> bool:
        found.append(at_point())
        return True

    if epochs > 0:
        unlearn(whole, workspace, state, order, Path(), watch=look)
        found.append(at_point())
    state.model.load_state_dict(state.pristine)
    state.model.requires_grad_(True)
    return torch.stack(found)


@dataclass(frozen=True)
class _Retained:
    """The retain probes that are watched while a model trains, and the mean probability that they
    must keep; under it a run collapses, or (`holds_back`) ends with the last weights that held
    it."""

    probes: Sequence[Probe]
    floor: float
    holds_back: bool

    def now(self, model: PreTrainedModel) -> float:
        """Their mean probability."""
        return mean_probability(model, self.probes)

    def watch(self, model: PreTrainedModel) -> Callable[[int], bool]:
        """Whether the model may train on."""
        return lambda _step: self.now(model) >= self.floor


def _retained(trial: Trial, workspace: Workspace, state: Loaded) -> _Retained | None:
    """What watches a trial, None where nothing does. `state` must hold the base weights."""
    watched, stop = _watched(trial, workspace, state), trial.stop
    require(
        bool(watched) or stop.retention_floor == 0,
        "stop.retention_floor needs probes of split retain; there are",
        len(watched),
    )
    share = stop.retention_floor or stop.utility_floor
    if share == 0 or not watched:
        return None
    return _Retained(
        watched, share * base_utility(trial, workspace, state, watched), stop.retention_floor > 0
    )


def _watched(trial: Trial, workspace: Workspace, state: Loaded) -> list[Probe]:
    return [p for p in probes_of(workspace, state, trial.data) if p.split == "retain"][
        :UTILITY_PROBES
    ]


def base_utility(
    trial: Trial, workspace: Workspace, state: Loaded, watched: Sequence[Probe]
) -> float:
    """Mean probability of the watched probes' answers before unlearning; evaluated once per model
    and corpus.
    """

    def make() -> float:
        key = cache_key(workspace, state, [p.answer for p in watched], "float32") | {
            "what": "mean_probability"
        }
        measured = partial(mean_probability, state.model, watched)
        found = tensors_once(
            workspace.cache / "evaluations",
            key,
            lambda: {"value": torch.tensor([measured()], dtype=torch.float64)},
        )
        return float(found["value"])

    utility: float = remembered(
        state,
        ("utility", workspace.corpus.digest, trial.data.template, trial.data.max_tokens),
        make,
    )
    return utility


def probes_of(workspace: Workspace, state: Loaded, data: Data) -> list[Probe]:
    """Every probe of the corpus, encoded once per worker. Where it has a holdout, the forget
    documents themselves are its `members`.

    `data.arithmetic` puts sums beside them.
    """
    corpus = workspace.corpus
    splits: dict[str, Sequence[Document]] = (
        {"members": corpus.forget} if "holdout" in corpus.probes else {}
    )
    splits |= corpus.probes
    splits |= {"arithmetic": arithmetic_probes(data.arithmetic)} if data.arithmetic else {}
    key = ("probes", corpus.digest, data.template, data.max_tokens, data.arithmetic)

    def make() -> list[Probe]:
        return encode_probes(
            splits,
            state.tokenizer,
            data.template,
            data.max_tokens,
            corpus.true_letters,
            corpus.templates,
        )

    probes: list[Probe] = remembered(state, key, make)
    return probes


def _bound(trial: Trial, function: Callable[..., Any]) -> Callable[..., Any]:
    return partial(function, **arguments_of(trial, function))


def _reference(
    trial: Trial,
    workspace: Workspace,
    state: Loaded,
    role: object,
    sequences: Sequence[Encoded],
    kinds: tuple[str, ...],
    temperature: float,
) -> Reference:
    """What the model said before unlearning, in the precision the trial trains with."""
    layer, precision = (
        (trial.method.layer if any("hidden" in kind for kind in kinds) else 0),
        trial.train.precision,
    )
    heat = 1.0 if all("hidden" in kind for kind in kinds) else temperature
    key = (
        "reference",
        workspace.corpus.digest,
        trial.data.template,
        trial.data.max_tokens,
        role,
        kinds,
        layer,
        heat,
        precision,
    )

    def make() -> Reference:
        about, folder = (
            cache_key(workspace, state, sequences, precision),
            workspace.cache / "reference",
        )
        with computing(state.model.device, precision):
            return kept_reference(folder, about, state.model, sequences, kinds, layer, heat)

    reference: Reference = remembered(state, key, make)
    return reference


def cache_key(
    workspace: Workspace, state: Loaded, sequences: Sequence[Encoded], precision: str
) -> dict[str, Any]:
    """What decides any output of the base model on sequences: weights (recipe and bits), texts,
    precision, device, libraries.
    """
    versions = {name: version_of(name) for name in ("torch", "transformers")}
    place = [precision, state.model.device.type]
    return {
        "model": [workspace.base_digest, state.checksum],
        "sequences": sequences_digest(sequences),
        "place": place,
        **versions,
    }


def with_prefixes(
    trial: Trial, workspace: Workspace, state: Loaded, pair: tuple[Side, Side]
) -> tuple[Side, Side]:
    """Both sides with the cached inputs of the lowest block that has a parameter to train (one that
    requires a gradient).

    They stay without where every block runs anyway: block 0 or the embeddings train, dropout is on,
    or the model's blocks cannot be skipped. `state.model` must hold the base weights.
    """
    block = first_trained_block(state.model)
    looks = {*needs(pair[0].loss), *needs(pair[1].loss)}
    above_loss = "hidden" in looks and block > trial.method.layer
    if block == 0 or above_loss or drops_out(state.model):
        return pair
    forget = (
        sequences_of(trial, workspace, state)[0]
        if trial.select.text == "original"
        else pair[0].sequences
    )
    prefixes = (
        _prefix(trial, workspace, state, known, block, side)
        for side, known in zip(pair, (forget, pair[1].sequences), strict=True)
    )
    first, second = (
        replace(side, prefix=prefix) for side, prefix in zip(pair, prefixes, strict=True)
    )
    return first, second


def drops_out(model: PreTrainedModel) -> bool:
    """Whether the model's blocks drop activations at random while they train, which makes them
    different at every step.
    """
    rates = {
        name: rate
        for name, rate in model.config.to_dict().items()
        if "drop" in name and "classifier" not in name
    }
    return any(isinstance(rate, float) and rate > 0 for rate in rates.values())


def _prefix(
    trial: Trial,
    workspace: Workspace,
    state: Loaded,
    known: Sequence[Encoded],
    block: int,
    side: Side,
) -> Prefix | None:
    asked = any(name in ("token_nll", "log_probs", "hidden") for name in needs(side.loss))
    if not asked or not known or kept_bytes(state.model, known, "hidden") > ACTIVATION_BYTES:
        return None
    about, folder = (
        cache_key(workspace, state, known, trial.train.precision),
        workspace.cache / "prefix",
    )

    def make() -> Prefix | None:
        with computing(state.model.device, trial.train.precision):
            if not can_start(state.model, collate(known[:2]).to(state.model.device), block):
                return None
            return kept_prefix(folder, about, state.model, known, block)

    prefix: Prefix | None = remembered(
        state, ("prefix", about["sequences"], block, trial.train.precision), make
    )
    return prefix
