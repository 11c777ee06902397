"""Calibration: mix an unlearned model back towards base until it retains as much as was promised,
then compare forgetting.

Unlearning with Control (2406.09179): theta(a) = (1 - a) base + a unlearned, and a* is the largest a
in [0, 1] with retention(a) >= share x retention of base. The paper's search is not published; the
one here is ours. For a model trained through LoRA, whose adapter was added to the weights, theta(a)
is base with the adapter scaled by a: the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.models.forward import evaluating

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel


Weights = Mapping[str, "Tensor"]
MeasureModel = TypeVar("MeasureModel")


def points_along(
    model: PreTrainedModel,
    start: Weights,
    end: Weights,
    measure: Callable[[], MeasureModel],
    *,
    points: int,
) -> Iterator[tuple[float, MeasureModel]]:
    """(x, measure()) for x = 0, ..., 1 in `points` equal steps, `model` holding (1 - x) start + x
    end.

    The ends are the given weights bit for bit. Tensors that are no numbers with a point (buffers of
    integers) must be equal at both ends. The model keeps the last weights. Raises UserError where
    the two are not of one architecture, for fewer than three points, and where integer tensors
    differ.
    """
    check_same_architecture(start, end)
    require(points >= 3, "a path must have >= 3 points", points)
    for step in range(points):
        x = step / (points - 1)
        model.load_state_dict(
            {name: interpolate_weights(tensor, end[name], x) for name, tensor in start.items()}
        )
        with evaluating(model):
            yield x, measure()


def interpolate_weights(start: Tensor, end: Tensor, x: float) -> Tensor:
    """(1 - x) start + x end in the type of `start`; exactly the ends at 0 and 1, and `start` where
    both are equal.
    """
    if x in (0, 1):
        return end if x == 1 else start
    return (
        torch.lerp(start.float(), end.float(), x).to(start.dtype)
        if start.is_floating_point()
        else start
    )


def check_same_architecture(start: Weights, end: Weights) -> None:
    """Raise UserError unless both have the same tensors by name and shape, and equal ones where
    they hold integers.
    """
    shapes = [{name: tuple(t.shape) for name, t in weights.items()} for weights in (start, end)]
    different = sorted(
        name
        for name in shapes[0].keys() | shapes[1].keys()
        if shapes[0].get(name) != shapes[1].get(name)
    )
    require(
        not different,
        "two models on one line must have the same architecture; tensors that differ",
        different[:5],
    )
    moved = [
        name
        for name, t in start.items()
        if not t.is_floating_point() and not torch.equal(t.cpu(), end[name].cpu())
    ]
    require(not moved, "tensors of integers must be equal at both ends", moved[:5])


# looked at before the bisection: does retention fall with a?
COARSE = (0.25, 0.5, 0.75)

# points of the fallback, 1/20 apart
GRID = 20

# halvings of a quarter: a* to 1/256
BISECTION_STEPS = 6


@dataclass(frozen=True, kw_only=True)
class Point:
    """One place on the path that was measured."""

    alpha: float
    retention: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """`alpha` found for `floor` = share x base's retention; `points` are all that was measured, by
    alpha.

    `search`: "whole" (the unlearned model retains enough, alpha 1), "bisection", or "grid" where
    retention did not fall steadily with alpha. `alpha` retains enough and no larger alpha among
    `points` does. `width` is the distance to the next larger one of them, 0 for "whole": where
    retention falls steadily from `alpha` on, the true alpha lies less than that above. A path that
    rises again between two points has been seen by no finite search; its true alpha may lie
    anywhere above, and `width` says nothing of it.
    """

    alpha: float
    floor: float
    points: tuple[Point, ...]
    search: str
    width: float


def calibrate_mixing(
    retention: Callable[[float], float], *, share: float = 0.95, tolerance: float = 0.01
) -> Calibration:
    """The largest alpha in [0, 1] whose `retention` is at least `share` of retention(0), which is
    base's.

    alpha 1 is tried first. Then a coarse look at COARSE: where retention rises by more than
    `tolerance` x base's between two neighbours, now or while bisecting, the path is not monotone,
    and a grid of 1/GRID is measured as well. The largest alpha measured that is high enough is
    taken; on a path that is not monotone between the points that need not be the largest there is.
    Every alpha is measured once. Raises UserError for a base without retention or a retention that
    is no number.
    """
    require(0 < share <= 1, "share must be in (0, 1]", share)
    require(tolerance >= 0, "tolerance must be >= 0", tolerance)
    path = _Path(retention)
    base = path.retention_at(0.0)
    require(base > 0, "calibration needs a base model whose retention is > 0", base)
    floor = share * base
    if path.retention_at(1.0) >= floor:
        return path.result(1.0, floor, "whole", 0.0)
    for alpha in COARSE:
        path.retention_at(alpha)
    low, high = path.bracket(floor)
    for _ in range(BISECTION_STEPS):
        if not path.falls(tolerance * base):
            break
        middle = (low + high) / 2
        low, high = (middle, high) if path.retention_at(middle) >= floor else (low, middle)
    search = "bisection" if path.falls(tolerance * base) else "grid"
    for step in range(GRID + 1) if search == "grid" else ():
        path.retention_at(step / GRID)
    low, high = path.bracket(floor)
    return path.result(low, floor, search, high - low)


class _Path:
    """The points measured so far; each alpha is measured once."""

    def __init__(self, retention: Callable[[float], float]) -> None:
        self._retention, self._retentions = retention, dict[float, float]()

    def retention_at(self, alpha: float) -> float:
        if alpha not in self._retentions:
            value = self._retention(alpha)
            require(value == value, f"retention at alpha {alpha:g} must be a number", value)
            self._retentions[alpha] = value
        return self._retentions[alpha]

    def falls(self, tolerance: float) -> bool:
        """Whether retention never rises by more than the tolerance from one point measured to any
        later one.
        """
        lowest = float("inf")
        for _, value in sorted(self._retentions.items()):
            if value > lowest + tolerance:
                return False
            lowest = min(lowest, value)
        return True

    def bracket(self, floor: float) -> tuple[float, float]:
        """(the largest alpha measured that is high enough, the smallest above it that is not)."""
        low = max(alpha for alpha, value in self._retentions.items() if value >= floor)
        return low, min(alpha for alpha in self._retentions if alpha > low)

    def result(self, alpha: float, floor: float, search: str, width: float) -> Calibration:
        points = tuple(
            Point(alpha=a, retention=value) for a, value in sorted(self._retentions.items())
        )
        return Calibration(alpha=alpha, floor=floor, points=points, search=search, width=width)


def copy_of(model: Module) -> dict[str, Tensor]:
    """The model's weights and buffers, on the CPU, apart from the model."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def mix_into(
    model: Module, base: Mapping[str, Tensor], unlearned: Mapping[str, Tensor], alpha: float
) -> None:
    """Set every weight of the model to (1 - alpha) base + alpha unlearned. alpha 0 and 1 give the
    two exactly.

    Tensors that are no floating-point numbers (counters, masks) must be equal in both and are left
    alone. Tied weights are one weight. Raises UserError for an alpha outside [0, 1] and for states
    of different names or shapes.
    """
    require(0 <= alpha <= 1, "alpha must be in [0, 1]", alpha)
    state = model.state_dict()
    odd = sorted((state.keys() ^ base.keys()) | (state.keys() ^ unlearned.keys()))
    require(
        not odd, "base and unlearned must have the weights that the model has; in one only", odd
    )
    with torch.no_grad():
        for name, tensor in state.items():
            before, after = base[name], unlearned[name]
            require(
                before.shape == after.shape == tensor.shape,
                f"base and unlearned must have the model's shape of {name}",
                tuple(after.shape),
            )
            if tensor.is_floating_point():
                tensor.copy_(_mixed(before, after, alpha))


@contextmanager
def mixed(
    model: Module, base: Mapping[str, Tensor], unlearned: Mapping[str, Tensor], alpha: float
) -> Iterator[None]:
    """The model at theta(alpha) inside, and at `unlearned` again afterwards, after an exception
    too.
    """
    mix_into(model, base, unlearned, alpha)
    try:
        yield
    finally:
        mix_into(model, base, unlearned, 1.0)


def _mixed(before: Tensor, after: Tensor, alpha: float) -> Tensor:
    # exactly, where the sum would round
    if alpha in (0.0, 1.0):
        return after if alpha == 1 else before
    return torch.lerp(before.float(), after.float(), alpha)
