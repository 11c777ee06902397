"""The optimisation loop: it minimises, it stops when told, it notices a loss that is not finite."""

import pytest
import torch
from torch import nn

from rayunlearn.errors import UserError
from rayunlearn.train.loop import (
    Callbacks,
    OptimizerSettings,
    TrainedParameters,
    choose_parameters,
    optimise,
)
from rayunlearn.train.step import StepLoss
from tests.tiny_models import tiny_model


def bowl() -> tuple[nn.Module, nn.Parameter]:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 5.0)
    return model, model.weight


def test_it_finds_the_minimum_of_a_parabola() -> None:
    model, weight = bowl()
    log = optimise(
        model,
        lambda _s: StepLoss((weight - 2).square().sum()),
        steps=300,
        optimizer=OptimizerSettings(learning_rate=0.1),
    )
    assert float(weight.detach()) == pytest.approx(2.0, abs=1e-2)
    assert log.outcome == "complete" and len(log.rows) == 300 and log.rows[-1].loss < 1e-3


def test_the_first_adam_step_has_the_length_of_the_learning_rate() -> None:
    """Adam's first update is lr x sign(gradient), whatever the gradient's size."""
    model, weight = bowl()
    optimise(
        model,
        lambda _s: StepLoss(3 * weight.sum()),
        steps=1,
        optimizer=OptimizerSettings(learning_rate=0.25, schedule="constant", warmup_fraction=0.0),
    )
    assert float(weight.detach()) == pytest.approx(4.75, abs=1e-6)


def test_two_steps_on_w_squared_worked_by_hand() -> None:
    """w = 5, rate 0.1, decay 0.1. Gradient 10: w = 5 x 0.99 - 0.1 x 10 / 10 = 4.85. Then 9.7: first
    moment (0.9 + 0.97) / 0.19 = 9.842105, second (0.0999 + 0.09409) / 0.001999 = 97.04352, its root
    9.851067; w = 4.85 x 0.99 - 0.1 x 9.842105 / 9.851067 = 4.701591."""
    model, weight = bowl()
    settings = OptimizerSettings(
        learning_rate=0.1,
        schedule="constant",
        warmup_fraction=0.0,
        weight_decay=0.1,
        max_grad_norm=100.0,
    )
    optimise(model, lambda _s: StepLoss(weight.square().sum()), steps=2, optimizer=settings)
    assert float(weight.detach()) == pytest.approx(4.701591, abs=1e-6)


# by pair and clipping norm, where w ends
PAIRS = (
    (0.125, 1.0, 1.0, 4.8067820),
    (1.0, 8.0, 1.0, 4.8),
    (0.125, 1.0, 100.0, 4.8128936),
    (1.0, 8.0, 100.0, 4.8128936),
)


@pytest.mark.parametrize(("forget_weight", "retain_weight", "limit", "end"), PAIRS)
def test_a_pair_of_weights_and_its_multiple_differ_where_gradients_are_clipped_and_only_there(
    forget_weight: float, retain_weight: float, limit: float, end: float
) -> None:
    """Terms 8 w and w / 2, then 0 and w / 2; w = 5, rate 0.1.

    Gradients 1.5 and 0.5 with (0.125, 1), 12 and 4 with (1, 8). The first step is 0.1 always. The
    second, unclipped: moments (0.9 x 1.5 + 0.5) / 1.9 = 0.973684 and (0.999 x 2.25 + 0.25) / 1.999
    = 1.249500, root 1.117810, a step of 0.0871064, and the same of 8 times the gradients. Clipped
    at 1: gradients 1 and 0.5, moments 1.4 / 1.9 = 0.736842 and 1.249 / 1.999 = 0.624812, root
    0.790451, a step of 0.0932180; of the other pair both gradients are 1, and the step is 0.1.
    """
    model, weight = bowl()

    def terms(step: int) -> StepLoss:
        forget, retain = weight.sum() * (8.0 if step == 0 else 0.0), weight.sum() / 2
        total = forget_weight * forget + retain_weight * retain
        return StepLoss(
            total, forget, retain, retain_weight=retain_weight, forget_weight=forget_weight
        )

    settings = OptimizerSettings(
        learning_rate=0.1, schedule="constant", warmup_fraction=0.0, max_grad_norm=limit
    )
    log = optimise(model, terms, steps=2, optimizer=settings)
    scale = retain_weight
    assert [row.grad_norm for row in log.rows] == pytest.approx([1.5 * scale, 0.5 * scale])
    assert float(weight.detach()) == pytest.approx(end, abs=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(bad: float) -> None:
    model, weight = bowl()
    log = optimise(
        model,
        lambda s: StepLoss(weight.sum() * (bad if s == 3 else 1.0)),
        steps=50,
        optimizer=OptimizerSettings(learning_rate=0.1),
        callbacks=Callbacks(check_every=5),
    )
    assert log.outcome == "diverged" and len(log.rows) == 5


def test_keep_going_ends_the_run_at_a_check_and_never_after_the_last_step() -> None:
    model, weight = bowl()
    asked: list[int] = []

    def keep_going(step: int) -> bool:
        asked.append(step)
        return step < 20

    log = optimise(
        model,
        lambda _s: StepLoss(weight.sum()),
        steps=30,
        optimizer=OptimizerSettings(learning_rate=0.1),
        callbacks=Callbacks(check_every=10, keep_going=keep_going),
    )
    assert log.outcome == "stopped" and len(log.rows) == 20 and asked == [10, 20]


def test_only_parameters_whose_name_matches_are_trained() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = model[0].weight.clone()
    optimise(
        model,
        lambda _s: StepLoss(model(torch.ones(1, 2)).sum()),
        steps=2,
        optimizer=OptimizerSettings(learning_rate=0.1),
        trained=TrainedParameters(pattern=r"^1\.weight$"),
    )
    assert (
        torch.equal(model[0].weight, before)
        and model[1].weight.requires_grad
        and not model[1].bias.requires_grad
    )


def test_a_pattern_that_matches_nothing_is_the_callers_mistake() -> None:
    with pytest.raises(
        UserError, match=r"train\.parameters must match at least one parameter, got 'down_porj'"
    ):
        choose_parameters(nn.Linear(1, 1), "down_porj")


def test_blocks_are_chosen_by_number_and_the_name_chooses_within_them() -> None:
    model = tiny_model()
    chosen = choose_parameters(model, r"mlp\.down_proj", (0, 2))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert (
        trained == ["model.layers.0.mlp.down_proj.weight", "model.layers.2.mlp.down_proj.weight"]
        and len(chosen) == 2
    )
    assert not any(
        "embed" in name or "lm_head" in name for name in names_trained(model, ".*", (1,))
    )


def names_trained(model: nn.Module, pattern: str, layers: tuple[int, ...]) -> list[str]:
    choose_parameters(model, pattern, layers)
    return [name for name, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize(
    ("pattern", "layers", "message"),
    [
        (".*", (3,), r"train\.layers must be < 3, .* got 3"),
        ("lm_head", (1,), r"must match at least one parameter in blocks 1, got 'lm_head'"),
    ],
)
def test_a_block_that_is_not_there_or_holds_no_such_parameter_is_the_callers_mistake(
    pattern: str, layers: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        choose_parameters(tiny_model(), pattern, layers)


def test_the_weight_of_the_retain_term_is_recorded_as_it_was_in_each_step() -> None:
    model, weight = bowl()
    weights = (2.0, torch.tensor(2.5), 0.0)

    def loss_of_step(step: int) -> StepLoss:
        retain = weight.square().sum()
        return StepLoss(weights[step] * retain, None, retain, retain_weight=weights[step])

    log = optimise(model, loss_of_step, steps=3, optimizer=OptimizerSettings(learning_rate=0.1))
    assert [row.retain_weight for row in log.rows] == [2.0, 2.5, 0.0]
    assert all(
        row.loss == pytest.approx((row.retain_weight or 0) * (row.retain_loss or 0))
        for row in log.rows
    )
    assert (
        optimise(
            model,
            lambda _s: StepLoss(weight.sum()),
            steps=1,
            optimizer=OptimizerSettings(learning_rate=0.1),
        )
        .rows[0]
        .retain_weight
        is None
    )
