"""Wrappers and pieces of the loop: each worked by hand on a parabola, and the loop with several of
them.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from rayunlearn.methods.task_vector import negate
from rayunlearn.train.loop import BuildWrapper, Callbacks, OptimizerSettings, TrainLog, optimise
from rayunlearn.train.step import StepLoss
from rayunlearn.train.wrappers import WRAPPERS, average, ball, ended_by, names_of, sam


class Bowl:
    """Forget term sum(w^3) / 3 over a vector w, retain term sum(w): gradients w^2 and 1."""

    def __init__(self, *start: float) -> None:
        self.model = nn.Linear(len(start), 1, bias=False)
        with torch.no_grad():
            self.model.weight.copy_(torch.tensor([start]))

    def __call__(self, step: int) -> StepLoss:
        forget, retain = self.forget_term(step), self.model.weight.sum()
        return StepLoss(forget + 0.5 * retain, forget, retain, 3, 2, 0.5)

    def forget_term(self, _step: int) -> Tensor:
        return self.model.weight.pow(3).sum() / 3

    @property
    def weights(self) -> list[float]:
        return self.model.weight.detach()[0].tolist()


def run(
    bowl: Bowl,
    *builds: BuildWrapper,
    steps: int = 1,
    loss: Callable[[int], StepLoss] | None = None,
    **settings: float,
) -> TrainLog:
    constant = OptimizerSettings(learning_rate=0.1, schedule="constant", warmup_fraction=0.0)
    return optimise(
        bowl.model,
        loss or bowl,
        steps=steps,
        optimizer=replace(constant, **settings),
        wrappers=builds,
    )


def test_sam_takes_the_forget_gradient_uphill_and_the_retain_gradient_here() -> None:
    """w = (2, 1): g_f = (4, 1), |g_f| = sqrt 17; at w + 0.5 g_f / |g_f| the forget gradient is its
    square; plus 0.5 x 1.
    """
    bowl = Bowl(2.0, 1.0)
    wrapper = sam(bowl, [bowl.model.weight], 1, radius=0.5)
    loss = wrapper.gradient(bowl, 0, lambda value: value.backward())
    uphill = [2 + 0.5 * 4 / math.sqrt(17), 1 + 0.5 / math.sqrt(17)]
    assert bowl.model.weight.grad is not None
    torch.testing.assert_close(
        bowl.model.weight.grad, torch.tensor([[w * w + 0.5 for w in uphill]])
    )
    assert bowl.weights == [2.0, 1.0], "the weights come back exactly"
    assert float(loss.total.detach()) == pytest.approx(9 / 3 + 0.5 * 3)


class WeightedBowl(Bowl):
    """The bowl with a forget weight of 0.125."""

    def __call__(self, step: int) -> StepLoss:
        return replace(super().__call__(step), forget_weight=0.125)


def test_sam_weighs_the_forget_gradient_and_not_the_perturbation() -> None:
    """As above, but 0.125 x the square of the weights uphill, plus 0.5."""
    bowl = WeightedBowl(2.0, 1.0)
    wrapper = sam(bowl, [bowl.model.weight], 1, radius=0.5)
    wrapper.gradient(bowl, 0, lambda value: value.backward())
    uphill = [2 + 0.5 * 4 / math.sqrt(17), 1 + 0.5 / math.sqrt(17)]
    assert bowl.model.weight.grad is not None
    expected = torch.tensor([[0.125 * w * w + 0.5 for w in uphill]])
    torch.testing.assert_close(bowl.model.weight.grad, expected)


def test_sam_without_a_forget_term_is_the_plain_gradient() -> None:
    bowl = Bowl(2.0)
    retain_only = sam(RetainOnly(bowl), [bowl.model.weight], 1)
    retain_only.gradient(bowl, 0, lambda value: value.backward())
    assert bowl.model.weight.grad is not None and bowl.model.weight.grad.tolist() == [[1.0]]


class RetainOnly:
    """The control: a retain term alone."""

    def __init__(self, bowl: Bowl) -> None:
        self.bowl = bowl

    def __call__(self, _step: int) -> StepLoss:
        return StepLoss(self.bowl.model.weight.sum(), None, self.bowl.model.weight.sum())

    def forget_term(self, _step: int) -> None:
        return None


def test_average_ends_at_the_mean_of_the_weights_from_its_start_on() -> None:
    """Adam moves w by 0.1 a step whatever the gradient's size: 4.9, ..., 4.0 after 10 steps; from
    step 5 every 2nd: 4.5, 4.3, 4.1.
    """
    bowl = Bowl(5.0)
    constant = lambda _s: StepLoss(bowl.model.weight.sum())  # noqa: E731
    run(bowl, partial(average, start=0.5, every=2), steps=10, loss=constant)
    assert bowl.weights[0] == pytest.approx((4.5 + 4.3 + 4.1) / 3, abs=1e-5)


def test_average_of_a_run_that_ends_before_its_start_keeps_the_last_weights() -> None:
    bowl = Bowl(5.0)
    optimise(
        bowl.model,
        lambda _s: StepLoss(bowl.model.weight.sum()),
        steps=10,
        optimizer=OptimizerSettings(learning_rate=0.1, schedule="constant", warmup_fraction=0.0),
        callbacks=Callbacks(check_every=2, keep_going=lambda step: step < 4),
        wrappers=[partial(average, start=0.9)],
    )
    assert bowl.weights[0] == pytest.approx(4.6, abs=1e-5)


def test_the_ball_draws_back_along_the_line_to_the_start() -> None:
    """Start (3, 1): |W0| = 4, radius 0.025 allows 0.1. A step of 0.1 in both moves 0.2, so half of
    it stays.
    """
    bowl = Bowl(3.0, 1.0)
    constant = lambda _s: StepLoss(bowl.model.weight.sum())  # noqa: E731
    run(bowl, partial(ball, radius=0.025), steps=7, loss=constant)
    assert bowl.weights == pytest.approx([2.95, 0.95], abs=1e-5)


def test_a_change_inside_the_ball_is_left_as_it_is_and_a_tensor_of_zeros_stays() -> None:
    inside, zero = Bowl(3.0, 1.0), Bowl(0.0)
    run(inside, partial(ball, radius=0.5), loss=lambda _s: StepLoss(inside.model.weight.sum()))
    assert inside.weights == pytest.approx([2.9, 0.9], abs=1e-6)
    run(zero, partial(ball, radius=0.5), loss=lambda _s: StepLoss(zero.model.weight.sum()))
    assert zero.weights == [0.0]


def test_an_ending_is_applied_to_every_tensor_once_after_the_last_step() -> None:
    """Down from 5 to 4.8 in two steps; the other way twice as far: 5 + 2 x 0.2."""
    bowl = Bowl(5.0)
    run(
        bowl,
        partial(ended_by, function=partial(negate, scale=2.0)),
        steps=2,
        loss=lambda _s: StepLoss(bowl.model.weight.sum()),
    )
    assert bowl.weights[0] == pytest.approx(5.4, abs=1e-5)


def test_pieces_of_a_step_give_the_mean_gradient_and_their_total_counts() -> None:
    """Pieces with slopes 1 and 3 at rate 0: the gradient's length is 2; tokens and documents add
    up.
    """
    bowl = Bowl(1.0)
    seen: list[int] = []

    def piece(at: int) -> StepLoss:
        seen.append(at)
        value = (1.0 if at % 2 == 0 else 3.0) * bowl.model.weight.sum()
        return StepLoss(value, value, None, 10 + at, 4)

    log = run(bowl, steps=2, loss=piece, accumulation=2, max_grad_norm=100.0, learning_rate=1e-12)
    assert seen == [0, 1, 2, 3]
    assert [row.grad_norm for row in log.rows] == pytest.approx([2.0, 2.0])
    assert [row.loss for row in log.rows] == pytest.approx([2.0, 2.0]) and log.rows[
        0
    ].retain_loss is None
    assert [row.tokens for row in log.rows] == [21, 25] and log.presentations == 16


def test_wrappers_work_together_and_names_are_read_in_order() -> None:
    bowl = Bowl(5.0)
    log = run(bowl, *(WRAPPER_BUILDS[name] for name in names_of("sam, ball,average")), steps=10)
    assert log.outcome == "complete" and 4.97 < bowl.weights[0] < 5.0
    assert names_of("") == () and set(names_of("sam,ball,average")) == set(WRAPPERS)


WRAPPER_BUILDS: dict[str, BuildWrapper] = {name: row.function for name, row in WRAPPERS.items()}
