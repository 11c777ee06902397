"""How far a loss steers activations, in lengths of the activations themselves, and what a trial
says of itself where its forget loss could not move.

A steering of 6.5 (RMU's default, of models whose activations are about as long) pulls activations
of length 150 towards zero, and 200 leaves one of length 10 no way there; neither is an error, and
both look like a method that does not work.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from rayunlearn.config import Trial
from rayunlearn.data.tokenize import Encoded, collate
from rayunlearn.lazy import torch
from rayunlearn.methods.forget import FORGET
from rayunlearn.models.forward import evaluating, hidden_states
from rayunlearn.ranges import required_inputs
from rayunlearn.registry import arguments_of
from rayunlearn.storage.artifact_cache import JSON, cached_file
from rayunlearn.storage.code_identity import code_digest
from rayunlearn.train.device import FLOAT32
from rayunlearn.train.loop import TrainLog
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.encodings import training_sequences
from rayunlearn.trial.model_state import cached
from rayunlearn.trial.references import cache_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# texts of each side that the length is a mean over, and how many go through the model at once
LENGTH_TEXTS = 32
TEXTS_AT_ONCE = 4
# so many times the activations' length, or less than one part of it, is said in the trial's note
FAR = 10.0
# a forget loss that changed by a smaller fraction than this from its first to its last steps has
# not moved; batches differ, so each end is a mean over a tenth of the steps
UNMOVED = 0.01


def activation_length(context: TrialContext) -> float | None:
    """Mean length (L2 norm) of the model's activations at `method.layer`, over the label tokens of
    up to 32 forget and 32 retain texts, computed once per base model; None for a forget loss that
    steers no activations. The model must hold the base weights.
    """
    if "control" not in required_inputs(FORGET[context.trial.method.forget].function):
        return None
    forget, retain = (texts[:LENGTH_TEXTS] for texts in training_sequences(context))
    texts, layer = [*forget, *retain], context.trial.method.layer
    key = cache_key(context, texts, FLOAT32) | {
        "what": "activation length",
        "layer": layer,
        "averaged by": code_digest(sys.modules[__name__]),
    }
    make = partial(
        cached_file, make=lambda: mean_length(context.model, texts, layer), file_type=JSON
    )
    return float(cached(context.state, context.cache / "evaluations", key, make))


def mean_length(model: PreTrainedModel, texts: Sequence[Encoded], layer: int) -> float:
    """Mean L2 norm of the output of block `layer` at the label tokens of the texts."""
    lengths = []
    with evaluating(model):
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            batch = collate(texts[first : first + TEXTS_AT_ONCE]).to(model.device)
            states = hidden_states(model, batch, layer).float()
            lengths.append(states.norm(dim=-1)[batch.labelled].cpu())
    return float(torch.cat(lengths).double().mean())


def control_length(context: TrialContext) -> float:
    """Length of the control direction that steering multiplies: 1, or that of the activations where
    `method.steering_unit` says so. The model must hold the base weights.
    """
    in_lengths = context.trial.method.steering_unit == "activation"
    return (activation_length(context) or 1.0) if in_lengths else 1.0


def training_note(trial: Trial, log: TrainLog, length: float | None) -> str | None:
    """What a reader of the trial's numbers should know of its training; None for nothing."""
    notes = (_steering_note(trial, length), _unmoved_note(log))
    return "; ".join(filter(None, notes)) or None


def _steering_note(trial: Trial, length: float | None) -> str:
    if length is None:
        return ""
    arguments = arguments_of(trial, FORGET[trial.method.forget].function)
    # of adaptive RMU, whose scale is in lengths of each token's own activation
    in_lengths = float(arguments.get("scale", 0.0))
    if "steering" in arguments:
        unit = 1.0 if trial.method.steering_unit == "activation" else length
        in_lengths = float(arguments["steering"]) / unit
    if 1 / FAR <= in_lengths <= FAR:
        return ""
    return (
        f"{trial.method.forget} steers to {in_lengths:.2g} x the length of activations at block"
        f" {trial.method.layer} ({length:.3g})"
    )


def _unmoved_note(log: TrainLog) -> str:
    losses = [row.forget_loss for row in log.rows if row.forget_loss is not None]
    n = max(1, len(losses) // 10)
    if len(losses) < 2:
        return ""
    first, last = (sum(part) / n for part in (losses[:n], losses[-n:]))
    if abs(last - first) >= UNMOVED * abs(first):
        return ""
    return (
        f"the forget loss did not move: {first:.4g} at the start, {last:.4g} at the end, less than"
        f" {UNMOVED:.0%} in {len(losses)} steps"
    )
