"""References and prefixes of a trial's losses: computed once per model and corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn import models as model_code
from rayunlearn.data import tokenize
from rayunlearn.data.tokenize import Encoded, collate
from rayunlearn.methods.objective import Side
from rayunlearn.models.forward import can_start, first_trained_block
from rayunlearn.models.reference import (
    ACTIVATION_BYTES,
    Prefix,
    Reference,
    cached_bytes,
    cached_prefix,
    cached_reference,
)
from rayunlearn.models.tensor_cache import sequences_digest
from rayunlearn.ranges import required_inputs
from rayunlearn.storage.code_identity import code_digest, version_of
from rayunlearn.train.device import BFLOAT16, FLOAT32, computing, precision_of_products
from rayunlearn.train.stored_weights import stored_as
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.encodings import training_sequences
from rayunlearn.trial.model_state import cached, cached_in_worker

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def cached_trial_reference(
    context: TrialContext,
    sequences: Sequence[Encoded],
    kinds: tuple[str, ...],
    temperature: float,
) -> Reference:
    """What the model said before unlearning, in the precision the trial trains with."""
    precision = products_of(context)
    layer = context.trial.method.layer if any("hidden" in kind for kind in kinds) else 0
    # hidden states know no temperature: theirs is always the same entry
    used_temperature = 1.0 if all("hidden" in kind for kind in kinds) else temperature
    key = cache_key(context, sequences, precision)

    # on disk each kind is a file of its own, whose key has only what that kind depends on
    def make(folder: Path, _key: Mapping[str, object]) -> Reference:
        with computing(context.model.device, precision):
            return cached_reference(
                folder, key, context.model, sequences, kinds, layer, used_temperature
            )

    settings = {"kinds": kinds, "layer": layer, "temperature": used_temperature}
    return cached(context.state, context.cache / "reference", key | settings, make)


def products_of(context: TrialContext) -> str:
    """The precision in which the trial's training computes products on this machine: float32 or
    bfloat16. Weights stored in fewer bits are multiplied in bfloat16.
    """
    if context.trial.train.weights != FLOAT32:
        return BFLOAT16
    model, precision = context.model, context.trial.train.precision
    make = partial(precision_of_products, model, precision, context.cache)
    return str(cached_in_worker(context.state, ("products", precision), make))


def cache_key(
    context: TrialContext, sequences: Sequence[Encoded], precision: str
) -> dict[str, Any]:
    """What decides any output of the base model on sequences: weights (recipe and bits), texts,
    precision, device, libraries, and the code of forward passes.
    """
    versions = {name: version_of(name) for name in ("torch", "transformers")}
    computed_on = [precision, context.model.device.type]
    storage = stored_as(context.model)
    return {
        "model": [context.workspace.base_digest, context.state.checksum],
        "sequences": sequences_digest(sequences),
        "place": computed_on,
        "code": code_digest(model_code, tokenize),
        **versions,
        # what is stored in float32, as ever, keeps the keys that it has
        **({} if storage == FLOAT32 else {"stored": storage}),
    }


def with_prefixes(context: TrialContext, pair: tuple[Side, Side]) -> tuple[Side, Side]:
    """Both sides with the cached inputs of the lowest block that has a parameter to train (one that
    requires a gradient).

    They stay without where every block runs anyway: block 0 or the embeddings train, dropout is on,
    or the model's blocks cannot be skipped. The model must hold the base weights.
    """
    block = first_trained_block(context.model)
    required = {*required_inputs(pair[0].loss), *required_inputs(pair[1].loss)}
    above_loss = "hidden" in required and block > context.trial.method.layer
    if block == 0 or above_loss or drops_out(context.model):
        return pair
    forget = (
        training_sequences(context)[0]
        if context.trial.select.text == "original"
        else pair[0].sequences
    )
    prefixes = (
        _prefix(context, sequences, block, side)
        for side, sequences in zip(pair, (forget, pair[1].sequences), strict=True)
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
    context: TrialContext,
    sequences: Sequence[Encoded],
    block: int,
    side: Side,
) -> Prefix | None:
    needs_outputs = any(
        name in ("token_nll", "log_probs", "hidden") for name in required_inputs(side.loss)
    )
    if (
        not needs_outputs
        or not sequences
        or cached_bytes(context.model, sequences, "hidden") > ACTIVATION_BYTES
    ):
        return None

    products = products_of(context)

    def make(folder: Path, key: Mapping[str, object]) -> Prefix | None:
        with computing(context.model.device, products):
            if not can_start(context.model, collate(sequences[:2]).to(context.model.device), block):
                return None
            return cached_prefix(folder, key, context.model, sequences, block)

    key = cache_key(context, sequences, products) | {"block": block}
    return cached(context.state, context.cache / "prefix", key, make)
