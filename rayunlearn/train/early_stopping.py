"""Which weights a training ends with, where they are not the last: those of the last look that held
retention, or those of the best look.

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


class KeptWeights:
    """A copy of the trained parameters after some step; at first those of the start.

    `model`'s parameters that require gradients are the ones that are kept and put back.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.step = 0
        self._weights = self._copy()

    def keep(self, step: int) -> None:
        """Keep the parameters as they are now, after `step` steps."""
        self.step, self._weights = step, self._copy()

    def put_back(self) -> None:
        """Make the parameters what was kept."""
        copy_into(self._parameters, self._weights)

    def state(self) -> dict[str, Tensor]:
        """What is kept, for a checkpoint."""
        weights = {f"kept.{number}": tensor for number, tensor in enumerate(self._weights)}
        return weights | {"step": torch.tensor(self.step)}

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Keep this."""
        self.step = int(state["step"])
        self._weights = [state[f"kept.{number}"] for number in range(len(self._weights))]

    def _copy(self) -> list[Tensor]:
        return [p.detach().clone() for p in self._parameters]


class RetentionEarlyStopping:
    """The last trained parameters at which `retention()` was at least `floor`; at first those of
    the start.
    """

    def __init__(self, model: nn.Module, retention: Callable[[], float], floor: float) -> None:
        self._kept, self._retention, self._floor = KeptWeights(model), retention, floor

    def holds(self, step: int) -> bool:
        """Whether retention is high enough now, after `step` steps; if so these parameters are the
        ones to keep.
        """
        if self._retention() < self._floor:
            return False
        self._kept.keep(step)
        return True

    def state(self) -> dict[str, Tensor]:
        """What is kept, for a checkpoint."""
        return self._kept.state()

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Keep this."""
        self._kept.take(state)

    def restore_best(self, log: TrainLog) -> TrainLog:
        """The log of a run that was stopped, or whose last step fell under the floor, after putting
        the last weights above the floor back: its outcome is `early_stopped`.

        A run that diverged, or stayed above the floor to the end, stays as it is.
        """
        if log.outcome == "diverged" or (log.outcome == "complete" and self.holds(len(log.rows))):
            return log
        self._kept.put_back()
        return replace(log, outcome="early_stopped", kept_step=self._kept.step)


class BestLook:
    """The trained parameters at the look that ranks first, lower is better; at first those of the
    start, whose rank is `start`. Of two equal ranks the earlier one stays.
    """

    def __init__(self, model: nn.Module, start: tuple[float, float]) -> None:
        self._kept, self._rank = KeptWeights(model), start

    def see(self, step: int, rank: tuple[float, float]) -> None:
        """Keep the parameters, after `step` steps, if they rank before those that are kept."""
        if rank < self._rank:
            self._rank = rank
            self._kept.keep(step)

    def state(self) -> dict[str, Tensor]:
        """What is kept, for a checkpoint."""
        return self._kept.state() | {"rank": torch.tensor(self._rank, dtype=torch.float64)}

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Keep this."""
        first, second = state["rank"].tolist()
        self._rank = (first, second)
        self._kept.take(state)

    def restore(self, log: TrainLog) -> TrainLog:
        """The log after putting the best weights back: `early_stopped` where they are not those of
        the last step. A run that diverged stays as it is.
        """
        if log.outcome == "diverged":
            return log
        if log.outcome == "complete" and self._kept.step == len(log.rows):
            return log
        self._kept.put_back()
        return replace(log, outcome="early_stopped", kept_step=self._kept.step)
