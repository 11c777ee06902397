"""What a model's weights and hidden states tell of its unlearning, block by block: how far and in
how many directions the weights have moved, how far apart forget and retain stand, and how the
gradients of the two sides hang together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.models.forward import blocks

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# rows or columns up to which all singular values are computed; above, the largest by iteration
EXACT_SIZE = 512
# of the iteration: it ends where the value grows by less than this share, or after so many rounds
ITERATION_TOLERANCE = 1e-7
MOST_ITERATIONS = 500


@dataclass(frozen=True)
class BlockChange:
    """How a block's weights differ from the base model's, all its tensors together.

    `relative_change` ||W - W0|| / ||W0|| (Euclidean, so Frobenius of each matrix). `spectral_norm`
    the largest singular value of W - W0, the block's matrices standing beside each other in one
    block-diagonal matrix: the largest of theirs. `stable_rank` ||D||^2 / spectral_norm^2 of that
    matrix D, vectors left out: the number of directions that carry the change, 1 for a change of
    rank 1; None where no matrix changed.
    """

    relative_change: float
    spectral_norm: float
    stable_rank: float | None


def block_changes(model: PreTrainedModel, base: Mapping[str, Tensor]) -> list[BlockChange]:
    """The change of every block, in order.

    Norms are summed in float64. A tensor of more than two dimensions (experts, convolutions) is a
    matrix for each of its first places (experts) or its first dimension against the rest
    (convolutions). Stable rank: Rudelson & Vershynin (math/0503442); that a block's matrices count
    as one is ours.

    Args:
        model: the model as it stands.
        base: the weights to compare with, by their names in the model's state.

    Raises:
        UserError: where a weight has no counterpart of its name and shape in `base`.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    strange = [n for n, shape in shapes.items() if n not in base or base[n].shape != shape]
    rule = "diagnostics compare weights: the model must have base's, but for"
    require(not strange, rule, strange[:3])
    return [
        _change({names[id(p)]: p.detach() for p in block.parameters()}, base)
        for block in blocks(model)
    ]


def _change(current: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> BlockChange:
    moved, size, of_matrices, largest = 0.0, 0.0, 0.0, 0.0
    for name, weights in current.items():
        start = base[name].to(weights.device)
        change = weights.float() - start.float()
        squares = float(change.double().square().sum())
        moved += squares
        size += float(start.double().square().sum())
        if change.dim() > 1 and squares > 0:
            of_matrices += squares
            largest = max(largest, *map(spectral_norm, _matrices(change)))
    return BlockChange(
        relative_change=(moved / size) ** 0.5 if size > 0 else 0.0,
        spectral_norm=largest,
        stable_rank=of_matrices / largest**2 if largest > 0 else None,
    )


def _matrices(tensor: Tensor) -> list[Tensor]:
    """A matrix as it is; the experts of a tensor of three dimensions; else first dimension against
    the rest.
    """
    if tensor.dim() == 3 and min(tensor.shape[1:]) > 1:
        return list(tensor)
    return [tensor.flatten(1)]


def spectral_norm(matrix: Tensor) -> float:
    """The largest singular value of a matrix (n, m).

    From the eigenvalues of the smaller product A A' in float64 up to 512 rows or columns; above, by
    iterating A'A on a vector drawn once, which comes within 1e-7 of it unless several lie that
    close together, where it makes no difference which one is found.

    Example:
        >>> round(spectral_norm(torch.tensor([[3.0, 0.0], [4.0, 0.0]])), 6)
        5.0
    """
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    if wide.shape[0] <= EXACT_SIZE:
        largest = torch.linalg.eigvalsh(wide @ wide.T)[-1]
        return float(largest.clamp(min=0).sqrt())
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(wide.shape[0], generator=generator, dtype=torch.float64)
    vector, value = (start / start.norm()).to(wide.device), 0.0
    for _ in range(MOST_ITERATIONS):
        image = wide @ (wide.T @ vector)
        length = float(image.norm())
        if length <= value * (1 + ITERATION_TOLERANCE):
            break
        vector, value = image / length, length
    return value**0.5


def activation_separation(forget: Tensor, retain: Tensor) -> Tensor:
    """How far forget and retain activations stand apart at each block, (L,) in units of their
    spread: the distance of the two centres over the root of the mean of their variances.

    0 where the centres are one; large where a block tells the two sets apart. A variance is the
    mean squared distance from the centre, over n - 1. Ours; the square of it is Fisher's
    criterion, for traces in place of projections.

    Args:
        forget: (n, L, D) activations of n forget documents at L blocks.
        retain: (m, L, D).

    Example: centres 0 and 4, variance 2 on either side.
        >>> forget, retain = (torch.tensor([[[a]], [[b]]]) for a, b in ((-1.0, 1.0), (3.0, 5.0)))
        >>> activation_separation(forget, retain).tolist()
        [2.8284271247461903]
    """
    first, second = forget.double(), retain.double()
    distance = (first.mean(0) - second.mean(0)).norm(dim=-1)
    spread = ((_variance(first) + _variance(second)) / 2).sqrt()
    return distance / spread


def _variance(values: Tensor) -> Tensor:
    return (values - values.mean(0)).square().sum(-1).sum(0) / (len(values) - 1)


@dataclass(frozen=True)
class GradientEffect:
    """The inner product of an objective's gradient and that of a risk, and their cosine (None where
    one of them is zero).
    """

    product: float
    cosine: float | None


def gradient_effects(
    objective: Tensor, risks: Mapping[str, Tensor], parameters: Sequence[Tensor]
) -> dict[str, GradientEffect]:
    """G-effect: for each risk R the inner product of grad R and the gradient of the unlearning
    objective. Wang et al. 2502.19301.

    A small step down the objective changes R by -rate x product: below zero on forget the
    documents are forgotten, below zero on retain they are harmed. The cosine beside it is ours.

    Args:
        objective: a scalar with a graph.
        risks: scalars with graphs, by name.
        parameters: what the gradients are taken in.
    """
    gradient = _gradient(objective, parameters)
    effects = {}
    for name, risk in risks.items():
        other = _gradient(risk, parameters)
        product, lengths = float(gradient @ other), float(gradient.norm() * other.norm())
        effects[name] = GradientEffect(product, product / lengths if lengths > 0 else None)
    return effects


def _gradient(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(value, list(parameters), allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).detach().double().flatten()
            for g, p in zip(gradients, parameters, strict=True)
        ]
    )
