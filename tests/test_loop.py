"""The optimisation loop: it minimises, it stops when told, it notices a loss that is not finite."""

import pytest
import torch
from torch import nn

from rayunlearn.errors import UserError
from rayunlearn.train.loop import StepLoss, choose_parameters, optimise


def bowl() -> tuple[nn.Module, nn.Parameter]:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 5.0)
    return model, model.weight


def test_it_finds_the_minimum_of_a_parabola() -> None:
    model, weight = bowl()
    log = optimise(model, lambda _s: StepLoss((weight - 2).square().sum()), steps=300, learning_rate=0.1)
    assert float(weight.detach()) == pytest.approx(2.0, abs=1e-2)
    assert log.ended == "complete" and len(log.rows) == 300 and log.rows[-1].loss < 1e-3


def test_the_first_adam_step_has_the_length_of_the_learning_rate() -> None:
    """Adam's first update is lr x sign(gradient), whatever the gradient's size."""
    model, weight = bowl()
    optimise(model, lambda _s: StepLoss(3 * weight.sum()), steps=1, learning_rate=0.25, warmup_fraction=0.0, schedule="constant")
    assert float(weight.detach()) == pytest.approx(4.75, abs=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(bad: float) -> None:
    model, weight = bowl()
    log = optimise(model, lambda s: StepLoss(weight.sum() * (bad if s == 3 else 1.0)), steps=50, learning_rate=0.1, check_every=5)
    assert log.ended == "diverged" and len(log.rows) == 5


def test_keep_going_ends_the_run_at_a_check_and_never_after_the_last_step() -> None:
    model, weight = bowl()
    asked: list[int] = []

    def keep_going(step: int) -> bool:
        asked.append(step)
        return step < 20

    log = optimise(model, lambda _s: StepLoss(weight.sum()), steps=30, learning_rate=0.1, check_every=10, keep_going=keep_going)
    assert log.ended == "stopped" and len(log.rows) == 20 and asked == [10, 20]


def test_only_parameters_whose_name_matches_are_trained() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = model[0].weight.clone()
    optimise(model, lambda _s: StepLoss(model(torch.ones(1, 2)).sum()), steps=2, learning_rate=0.1, parameters=r"^1\.weight$")
    assert torch.equal(model[0].weight, before) and model[1].weight.requires_grad and not model[1].bias.requires_grad


def test_a_pattern_that_matches_nothing_is_the_callers_mistake() -> None:
    with pytest.raises(UserError, match=r"train\.parameters must match at least one parameter, got 'down_porj'"):
        choose_parameters(nn.Linear(1, 1), "down_porj")
