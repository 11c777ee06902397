"""Rows of table `diagnostics` and the G-effect along training: what weights, hidden states and
gradients tell of a trial (`models.diagnostics`), where `explain` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from rayunlearn.data.tokenize import Batch, Encoded, collate
from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.methods.objective import UnlearningObjective
from rayunlearn.metrics.forward_passes import Probe
from rayunlearn.models.diagnostics import (
    activation_separation,
    block_changes,
    gradient_effects,
)
from rayunlearn.models.forward import token_nll
from rayunlearn.models.patching import states_by_block
from rayunlearn.schema import Rows
from rayunlearn.train.device import accelerator
from rayunlearn.train.loop import TrainLog
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.encodings import training_sequences
from rayunlearn.trial.model_state import load_model_state
from rayunlearn.trial.probes import encoded_probes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# probes of a split whose activations are compared, and documents that the risks are over: as many
# as a look asks, and a batch's worth of gradients
MAX_ACTIVATION_PROBES = 64
MAX_RISK_DOCUMENTS = 16
COMPARED_SPLITS = ("forget", "retain")


def diagnostic_rows(context: TrialContext) -> Rows:
    """A row per block of the model as it stands: its change from base, and how far its activations
    of forget and retain probes stand apart; none where `explain.diagnostics` is off.

    Activations are taken at the positions that predict the answer, mean over them, of up to 64
    probes of each of the splits forget and retain; null where one has fewer than two.
    """
    trial = context.trial
    if not trial.explain.diagnostics:
        return []
    # base, unless the trial began from a model that was unlearned elsewhere or from gold
    base = load_model_state(context.workspace.base).pristine
    changes = block_changes(context.model, base)
    apart = _separation(context.model, encoded_probes(context))
    return [
        {"stage": trial.stage, "layer": layer, **asdict(change), "separation": separation}
        for layer, (change, separation) in enumerate(zip(changes, apart, strict=True))
    ]


def _separation(model: PreTrainedModel, probes: Sequence[Probe]) -> list[float | None]:
    activations = []
    for side in COMPARED_SPLITS:
        sequences = [p.answer for p in probes if p.split == side and p.answer.start > 0][
            :MAX_ACTIVATION_PROBES
        ]
        states = states_by_block(model, sequences)
        activations.append([state.mean(1) for state in states])
    depth = model.config.get_text_config().num_hidden_layers
    if min(map(len, activations)) < 2:
        return [None] * depth
    values = activation_separation(*map(torch.stack, activations)).tolist()
    return [value if value == value and value != float("inf") else None for value in values]


class GradientEffects:
    """The G-effect of a trial's forget loss at the looks of its training, as rows of `curves`.

    `forget_term` gives the forget loss of one batch, always the same; `risks` are batches whose
    mean token NLL is the risk, by split.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        forget_term: Callable[[], Tensor | None],
        risks: Mapping[str, Batch],
    ) -> None:
        self._model, self._forget_term, self._risks = model, forget_term, risks
        self._looks: list[tuple[float, int, float, float]] = []

    def look(self, step: int) -> None:
        """Take the gradients of the model as it stands; parameters and their gradients stay."""
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        was_training = self._model.training
        self._model.eval()
        try:
            term = self._forget_term()
            if term is None:
                return
            risks = {split: self._risk(batch) for split, batch in self._risks.items()}
            effects = gradient_effects(term, risks, parameters)
        finally:
            self._model.train(was_training)
        for number, split in enumerate(self._risks):
            product, cosine = effects[split].product, effects[split].cosine
            undefined = float("nan") if cosine is None else cosine
            self._looks.append((float(step), number, product, undefined))

    def ended(self, log: TrainLog) -> Rows:
        """`rows`, after a look at what a whole training ended with."""
        return self.curve_at(len(log.rows)) if log.outcome == "complete" else self.rows()

    def curve_at(self, step: int) -> Rows:
        """The rows that a training has which ends after `step` steps; this one may go on."""
        before = list(self._looks)
        if not any(x == step for x, *_ in before):
            self.look(step)
        rows, self._looks = self.rows(), before
        return rows

    def _risk(self, batch: Batch) -> Tensor:
        return token_nll(self._model, batch).sum() / batch.labelled.sum()

    def rows(self) -> Rows:
        """A row per look, split and metric: `g_effect` and `g_effect_cosine`."""
        splits = list(self._risks)
        return [
            {"kind": "gradients", "x": step, "split": splits[number], "metric": metric}
            | {"value": value, "n": len(self._risks[splits[number]].input_ids), "stderr": None}
            for step, number, product, cosine in self._looks
            for metric, value in (
                ("g_effect", product),
                ("g_effect_cosine", None if cosine != cosine else cosine),
            )
        ]

    def state(self) -> dict[str, Tensor]:
        """What the looks found, for a checkpoint."""
        return {"effects": torch.tensor(self._looks, dtype=torch.float64).reshape(-1, 4)}

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Go on from this."""
        self._looks = [
            (step, int(number), product, cosine)
            for step, number, product, cosine in state["effects"].tolist()
        ]


def training_effects(
    context: TrialContext, model: PreTrainedModel, objective: UnlearningObjective
) -> GradientEffects | None:
    """What takes the G-effect of a training of `model`, the first look at the weights that it has
    now taken; None where `explain.g_effect` is off.

    The risks are over the first 16 documents of each side by `doc_id`. Raises UserError where the
    trial has several processes, whose gradients lie in parts.
    """
    if not context.trial.explain.g_effect:
        return None
    n_processes = accelerator().num_processes
    require(n_processes == 1, "explain.g_effect must be off with several processes", n_processes)
    risks = {
        side: collate(_first(sequences)).to(model.device)
        for side, sequences in zip(COMPARED_SPLITS, training_sequences(context), strict=True)
        if sequences
    }
    effects = GradientEffects(model, partial(objective.forget_term, 0), risks)
    effects.look(0)
    return effects


def _first(sequences: Sequence[Encoded]) -> list[Encoded]:
    return sorted(sequences, key=lambda s: s.doc_id)[:MAX_RISK_DOCUMENTS]
