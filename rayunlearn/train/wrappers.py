"""What may be put around any method: a sharpness-aware step, an average of the weights, a ball
around the start.

A wrapper is built from the step's loss, the trained parameters and the number of steps, and says
what to do in place of the gradient, after each step and after the last one. Its keyword-only
arguments are its hyperparameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rayunlearn.lazy import torch
from rayunlearn.ranges import Count, FamilyRow, Positive, UnitInterval
from rayunlearn.train.step import Backward, StepLoss

if TYPE_CHECKING:
    from torch import Tensor, nn


class Terms(Protocol):
    """A loss whose forget term can be computed alone."""

    def __call__(self, step: int) -> StepLoss:
        """Both terms."""

    def forget_term(self, step: int) -> Tensor | None:
        """The forget term alone, before its weight."""


def no_wrapper(terms: Callable[[int], StepLoss], step: int, backward: Backward) -> StepLoss:
    """The gradient of the total loss."""
    loss = terms(step)
    backward(loss.total)
    return loss


@dataclass(frozen=True)
class Wrapper:
    """What a wrapper does: `gradient` fills the parameters' .grad, `after_step(step)` counts from
    1, `at_end` comes last.

    `state` and `take`: what it carries from step to step, for a run that goes on from a checkpoint;
    it is then built anew first, at the parameters that the run began with.
    """

    gradient: Callable[[Callable[[int], StepLoss], int, Backward], StepLoss] = no_wrapper
    after_step: Callable[[int], None] = lambda _step: None
    at_end: Callable[[], None] = lambda: None
    state: Callable[[], Mapping[str, Tensor]] = dict
    take: Callable[[Mapping[str, Tensor]], None] = lambda _state: None


def sam(
    terms: Terms, parameters: Sequence[nn.Parameter], n_steps: int, *, radius: Positive = 0.01
) -> Wrapper:
    """Sharpness-aware forgetting: the forget gradient is taken at weights + radius g_f / |g_f|, the
    retain gradient here.

    g_f is the forget gradient over all trained parameters, |.| its Euclidean norm. With
    `train.accumulation` each microbatch has its own perturbation. Fan et al. 2502.05374 (radius
    0.01 there). The loss recorded is the one before perturbing. The weight of the forget term
    (`method.forget_weight`) scales its gradient and not the perturbation, which has length radius.
    """

    def gradient(_terms: Callable[[int], StepLoss], step: int, backward: Backward) -> StepLoss:
        loss = terms(step)
        if loss.forget is None:
            backward(loss.total)
            return loss
        # both terms may come from one pass of the model
        slopes = torch.autograd.grad(
            loss.forget, list(parameters), allow_unused=True, retain_graph=loss.retain is not None
        )
        if loss.retain is not None:
            backward(loss.retain_weight * loss.retain)
        norm = (
            torch.stack([s.norm() for s in slopes if s is not None])
            .norm()
            .clamp(min=torch.finfo(torch.float32).tiny)
        )
        start = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for parameter, slope in zip(parameters, slopes, strict=True):
                if slope is not None:
                    parameter.add_(slope * (radius / norm))
        raised = terms.forget_term(step)
        assert raised is not None
        backward(loss.forget_weight * raised)
        copy_into(parameters, start)
        return loss

    return Wrapper(gradient=gradient)


def average(
    terms: Terms,
    parameters: Sequence[nn.Parameter],
    n_steps: int,
    *,
    start: UnitInterval = 0.8,
    every: Count = 5,
) -> Wrapper:
    """The model ends as the mean of its weights after steps start x n_steps, then every `every`
    steps.

    Fan et al. 2502.05374 begin at step 100 of 125 and take every fifth. A run that ends before
    `start` keeps its last weights.
    """
    mean = _MeanWeights(parameters, first=max(1, round(start * n_steps)), every=every)
    return Wrapper(after_step=mean.after_step, at_end=mean.at_end, state=mean.state, take=mean.take)


class _MeanWeights:
    """The mean of the parameters' values after step `first` and every `every` steps after it."""

    def __init__(self, parameters: Sequence[nn.Parameter], *, first: int, every: int) -> None:
        self._parameters, self._first, self._every = parameters, first, every
        self._means: list[Tensor] = []
        self._n_averaged = 0

    def after_step(self, step: int) -> None:
        if step < self._first or (step - self._first) % self._every:
            return
        self._n_averaged += 1
        values = [p.detach() for p in self._parameters]
        if not self._means:
            self._means = [value.clone() for value in values]
            return
        self._means = [
            mean + (value - mean) / self._n_averaged
            for mean, value in zip(self._means, values, strict=True)
        ]

    def at_end(self) -> None:
        if self._means:
            copy_into(self._parameters, self._means)

    def state(self) -> dict[str, Tensor]:
        means = {f"mean.{number}": mean for number, mean in enumerate(self._means)}
        return means | {"taken": torch.tensor(self._n_averaged)}

    def take(self, state: Mapping[str, Tensor]) -> None:
        self._n_averaged = int(state["taken"])
        self._means = [state[f"mean.{number}"] for number in range(len(state) - 1)]


def ball(
    terms: Terms, parameters: Sequence[nn.Parameter], n_steps: int, *, radius: Positive = 0.005
) -> Wrapper:
    """After each step every tensor is drawn back to |W - W0| <= radius |W0|, sums of absolute
    values, on the line to W0.

    The form and the radius are those of a sibling of "Unlearning with Control" (2406.09179, whose
    released trainer takes a `ball` and leaves it unused); its relation to the paper is not
    confirmed. There it acts every N steps, here on each. A tensor that starts at zero stays there.
    """
    start = [p.detach().clone() for p in parameters]

    def after_step(_step: int) -> None:
        with torch.no_grad():
            for parameter, origin in zip(parameters, start, strict=True):
                change = parameter - origin
                allowed, moved = radius * origin.abs().sum(), change.abs().sum()
                parameter.copy_(
                    torch.where(moved > allowed, origin + change * (allowed / moved), parameter)
                )

    return Wrapper(after_step=after_step)


def ended_by(
    terms: Terms,
    parameters: Sequence[nn.Parameter],
    n_steps: int,
    *,
    function: Callable[[Tensor, Tensor], Tensor],
) -> Wrapper:
    """At the end every tensor becomes function(its start, its end)."""
    start = [p.detach().clone() for p in parameters]
    return Wrapper(
        at_end=lambda: copy_into(
            parameters, [function(a, p.detach()) for a, p in zip(start, parameters, strict=True)]
        )
    )


def copy_into(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Overwrite the parameters' values."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


WRAPPERS: dict[str, FamilyRow[Wrapper]] = {
    row.function.__name__: row
    for row in (
        FamilyRow(sam, "sharpness-aware step on the forget gradient", "Fan et al. 2502.05374"),
        FamilyRow(
            average,
            "average of the weights of the last steps",
            "Fan et al. 2502.05374 (WA); Izmailov et al. 1803.05407",
        ),
        FamilyRow(
            ball,
            "weights kept in a ball around the start",
            "a sibling of 2406.09179, not confirmed",
        ),
    )
}


# wrappers that take the gradients of the two terms one by one
TAKES_TERMS_APART = frozenset({"sam"})


def names_of(text: str) -> tuple[str, ...]:
    """The names in `method.wrappers`."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
