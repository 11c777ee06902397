"""Optimizers that are a direction: loaded when one is built, as its class is one of torch's."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# gradient, what is remembered of the tensor (changed here), settings of its group -> direction
Direction = Callable[[Tensor, dict[str, Any], Mapping[str, Any]], Tensor]


class DirectionOptimizer(torch.optim.Optimizer):
    """w - rate x (direction + decay x w) at every step."""

    def __init__(self, parameters: Any, direction: Direction, settings: dict[str, Any]) -> None:
        super().__init__(parameters, settings)
        self._direction = direction

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take the step; parameters without a gradient stay."""
        for group in self.param_groups:
            shrunk, rate = 1 - group["lr"] * group["weight_decay"], group["lr"]
            for parameter in (p for p in group["params"] if p.grad is not None):
                direction = self._direction(parameter.grad, self.state[parameter], group)
                parameter.mul_(shrunk).add_(direction, alpha=-rate)


def along_velocity(
    gradient: Tensor, remembered: dict[str, Any], settings: Mapping[str, Any]
) -> Tensor:
    """The velocity v = momentum x v + g, which is the gradient where there is no momentum."""
    if settings["momentum"] == 0:
        return gradient
    velocity: Tensor = remembered.setdefault("velocity", torch.zeros_like(gradient))
    return velocity.mul_(settings["momentum"]).add_(gradient)


def lion_direction(
    gradient: Tensor, remembered: dict[str, Any], settings: Mapping[str, Any]
) -> Tensor:
    """The sign of a mix of momentum and gradient; the momentum then takes in the gradient."""
    momentum: Tensor = remembered.setdefault("momentum", torch.zeros_like(gradient))
    direction = momentum.lerp(gradient, 1 - settings["beta1"]).sign_()
    momentum.lerp_(gradient, 1 - settings["beta2"])
    return direction


def sign_of_gradient(
    gradient: Tensor, remembered: dict[str, Any], settings: Mapping[str, Any]
) -> Tensor:
    """The sign of the gradient, 0 where that is 0."""
    return gradient.sign()
