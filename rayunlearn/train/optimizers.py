"""How a step follows from a gradient: optimizers by name (`train.optimizer`).

An optimizer is built from parameter groups, a learning rate and a weight decay. Its keyword-only
arguments are its hyperparameters. Weight decay is decoupled everywhere, also where a paper adds it
to the gradient: beside the step it shrinks the weights by rate x decay (Loshchilov & Hutter
1711.05101).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

from rayunlearn.errors import UserError
from rayunlearn.lazy import torch
from rayunlearn.ranges import FamilyRow, Rule

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

ParameterGroups = Sequence["nn.Parameter"] | Sequence[dict[str, Any]]
Momentum = Annotated[float, Rule("must be in [0, 1)", lambda x: 0 <= x < 1)]
# of bitsandbytes: moments of smaller tensors are float32, larger ones have a scale for so many
LEAST_QUANTIZED = 4096
QUANTIZED_BLOCK = 256
# of a number in float32
FLOAT32_BYTES = 4


def adamw(
    parameters: ParameterGroups, learning_rate: float, weight_decay: float = 0.0
) -> Optimizer:
    """AdamW with betas 0.9 and 0.999, in one pass over memory: on a CPU a fifth to a third of the
    time of torch's default, equal to it but for rounding.
    """
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)


def adamw_8bit(
    parameters: ParameterGroups, learning_rate: float, weight_decay: float = 0.0
) -> Optimizer:
    """AdamW whose moments take a byte each, by bitsandbytes (256 numbers share a scale). Dettmers
    et al. 2110.02861.

    Tensors of fewer than 4,096 numbers have moments in float32. Raises UserError where bitsandbytes
    is not installed.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(f"{NEEDS_BITSANDBYTES}, got {error}") from error
    optimizer: Optimizer = bitsandbytes.optim.AdamW8bit(
        parameters, lr=learning_rate, weight_decay=weight_decay
    )
    return optimizer


def sgd(
    parameters: ParameterGroups,
    learning_rate: float,
    weight_decay: float = 0.0,
    *,
    momentum: Momentum = 0.0,
) -> Optimizer:
    """w - rate x v with v = momentum x v + g, the gradient itself where there is no momentum."""
    from rayunlearn.train.direction_optimizer import DirectionOptimizer, along_velocity

    settings = {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum}
    return DirectionOptimizer(parameters, along_velocity, settings)


def lion(
    parameters: ParameterGroups,
    learning_rate: float,
    weight_decay: float = 0.0,
    *,
    beta1: Momentum = 0.9,
    beta2: Momentum = 0.99,
) -> Optimizer:
    """w - rate x sign(beta1 m + (1 - beta1) g), then m = beta2 m + (1 - beta2) g. Chen et al.
    2302.06675, algorithm 2.

    A step moves every weight by the rate, mostly further than AdamW's does: the paper takes a third
    to a tenth of AdamW's rate.
    """
    from rayunlearn.train.direction_optimizer import DirectionOptimizer, lion_direction

    settings = {"lr": learning_rate, "weight_decay": weight_decay, "beta1": beta1, "beta2": beta2}
    return DirectionOptimizer(parameters, lion_direction, settings)


def sign(parameters: ParameterGroups, learning_rate: float, weight_decay: float = 0.0) -> Optimizer:
    """w - rate x sign(g): nothing is remembered, and clipping changes nothing. Bernstein et al.
    1802.04434.
    """
    from rayunlearn.train.direction_optimizer import DirectionOptimizer, sign_of_gradient

    settings = {"lr": learning_rate, "weight_decay": weight_decay}
    return DirectionOptimizer(parameters, sign_of_gradient, settings)


def _two_moments(n: int, size: int) -> int:
    return 2 * n * size


def _two_quantized_moments(n: int, size: int) -> int:
    if n < LEAST_QUANTIZED:
        return 2 * n * FLOAT32_BYTES
    return 2 * (n + FLOAT32_BYTES * -(-n // QUANTIZED_BLOCK))


def _velocity(n: int, size: int, *, momentum: float = 0.0) -> int:
    return n * size if momentum else 0


def _one_moment(n: int, size: int, **_betas: float) -> int:
    return n * size


def _nothing(n: int, size: int) -> int:
    return 0


@dataclass(frozen=True)
class OptimizerRow(FamilyRow["Optimizer"]):
    """A row of the family. `state_bytes(n, size)`: what is remembered of a tensor of n numbers of
    `size` bytes, given the optimizer's hyperparameters. `package`: what it needs that rayunlearn
    does not bring; `shards`: whether it may update a tensor that several processes share.
    """

    state_bytes: Callable[..., int] = _two_moments
    package: str = ""
    shards: bool = True


NEEDS_BITSANDBYTES = (
    "train.optimizer adamw_8bit needs bitsandbytes (pip install 'rayunlearn[quantisation]')"
)
OPTIMIZERS: dict[str, OptimizerRow] = {
    row.function.__name__: row
    for row in (
        OptimizerRow(adamw, "two moments in float32", "Loshchilov & Hutter 1711.05101"),
        OptimizerRow(
            adamw_8bit,
            "AdamW with moments of 8 bits (bitsandbytes)",
            "Dettmers et al. 2110.02861",
            state_bytes=_two_quantized_moments,
            package="bitsandbytes",
            shards=False,
        ),
        OptimizerRow(sgd, "the gradient, with or without a momentum", "-", state_bytes=_velocity),
        OptimizerRow(
            lion,
            "the sign of a momentum",
            "Chen et al. 2302.06675, algorithm 2",
            state_bytes=_one_moment,
        ),
        OptimizerRow(
            sign,
            "the sign of the gradient",
            "Bernstein et al. 1802.04434; for unlearning 2510.00761",
            state_bytes=_nothing,
        ),
    )
}


def check_installed(name: str) -> None:
    """Raise UserError where the optimizer needs a package that is not installed."""
    package = OPTIMIZERS[name].package
    if package and find_spec(package) is None:
        raise UserError(f"{NEEDS_BITSANDBYTES}, which is not installed")
