"""The straight line between two models in weight space, measured along the way.

Both models of every pair here were unlearned from the same start, so they share its neurons' order:
no permutation has to be found before their weights can be averaged, as it must between models that
were trained apart.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayunlearn.errors import require
from rayunlearn.models.forward import evaluating

Weights = Mapping[str, Tensor]
Measured = TypeVar("Measured")


def along(
    model: PreTrainedModel,
    start: Weights,
    end: Weights,
    measure: Callable[[], Measured],
    *,
    points: int,
) -> Iterator[tuple[float, Measured]]:
    """(x, measure()) for x = 0, ..., 1 in `points` equal steps, `model` holding (1 - x) start + x
    end.

    The ends are the given weights bit for bit. Tensors that are no numbers with a point (buffers of
    integers) must be equal at both ends. The model keeps the last weights. Raises UserError where
    the two are not of one architecture, for fewer than three points, and where integer tensors
    differ.
    """
    check_pair(start, end)
    require(points >= 3, "a path must have >= 3 points", points)
    for at in range(points):
        x = at / (points - 1)
        model.load_state_dict(
            {name: between(tensor, end[name], x) for name, tensor in start.items()}
        )
        with evaluating(model):
            yield x, measure()


def between(start: Tensor, end: Tensor, x: float) -> Tensor:
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


def check_pair(start: Weights, end: Weights) -> None:
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
