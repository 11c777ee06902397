"""Early stopping as a control: training ends where retention falls under a floor, with the last
weights that held it.

The released code of "Unlearning with Control" (2406.09179, v1) keeps checkpoints to choose from;
what is measured and when is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from rayunlearn.lazy import torch
from rayunlearn.train.loop import TrainLog
from rayunlearn.train.wrappers import copy_into

if TYPE_CHECKING:
    from torch import Tensor, nn


class RetentionEarlyStopping:
    """The last trained parameters at which `retention()` was at least `floor`; at first those of
    the start.

    `model`'s parameters that require gradients are the ones that are kept and put back.
    """

    def __init__(self, model: nn.Module, retention: Callable[[], float], floor: float) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._retention, self._floor = retention, floor
        self._step, self._best_weights = 0, [p.detach().clone() for p in self._parameters]

    def holds(self, step: int) -> bool:
        """Whether retention is high enough now, after `step` steps; if so these parameters are the
        ones to keep.
        """
        if self._retention() < self._floor:
            return False
        self._step, self._best_weights = step, [p.detach().clone() for p in self._parameters]
        return True

    def state(self) -> dict[str, Tensor]:
        """What is kept, for a checkpoint."""
        return {f"kept.{number}": tensor for number, tensor in enumerate(self._best_weights)} | {
            "step": torch.tensor(self._step)
        }

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Keep this."""
        self._step = int(state["step"])
        self._best_weights = [state[f"kept.{number}"] for number in range(len(state) - 1)]

    def restore_best(self, log: TrainLog) -> TrainLog:
        """The log of a run that was stopped, or whose last step fell under the floor, after putting
        the last weights above the floor back: its outcome is `early_stopped`.

        A run that diverged, or stayed above the floor to the end, stays as it is.
        """
        if log.outcome == "diverged" or (log.outcome == "complete" and self.holds(len(log.rows))):
            return log
        copy_into(self._parameters, self._best_weights)
        return replace(log, outcome="early_stopped", kept_step=self._step)
