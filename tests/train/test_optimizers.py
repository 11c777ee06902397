"""Optimizers by name: steps worked by hand, and the bytes that are said of them."""

import pytest
import torch
from torch import nn

from rayunlearn.config import Trial, Value, with_values
from rayunlearn.errors import UserError
from rayunlearn.ranges import options_of
from rayunlearn.registry import check_trial
from rayunlearn.train import optimizers
from rayunlearn.train.loop import OptimizerSettings, optimise
from rayunlearn.train.optimizers import OPTIMIZERS
from rayunlearn.train.step import StepLoss

# rate 0.1 and decay 0.1, so that a step keeps 0.99 of a weight; gradient 2 w, first 10
HAND_WORKED: dict[str, tuple[dict[str, Value], float]] = {
    # 5 x 0.99 - 1 = 3.95, gradient 7.9; 3.95 x 0.99 - 0.79
    "sgd": ({}, 3.1205),
    # 3.95 as before, velocity 0.5 x 10 + 7.9 = 12.9; 3.9105 - 1.29
    "sgd with a momentum": ({"momentum": 0.5}, 2.6205),
    # 5 x 0.99 - 0.1 = 4.85; 4.85 x 0.99 - 0.1
    "sign": ({}, 4.7015),
    # as sign, both mixes of gradients being positive
    "lion": ({}, 4.7015),
}


def two_steps(name: str, options: dict[str, Value]) -> float:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 5.0)
    settings = OptimizerSettings(
        learning_rate=0.1,
        schedule="constant",
        warmup_fraction=0.0,
        weight_decay=0.1,
        max_grad_norm=100.0,
        name=name,
        options=options,
    )
    optimise(model, lambda _s: StepLoss(model.weight.square().sum()), steps=2, optimizer=settings)
    return float(model.weight.detach())


@pytest.mark.parametrize("case", HAND_WORKED)
def test_two_steps_on_w_squared_are_those_worked_by_hand(case: str) -> None:
    options, end = HAND_WORKED[case]
    name = case.partition(" ")[0]
    defaults = {o.argument: o.default for o in options_of(OPTIMIZERS[name].function)}
    assert two_steps(name, defaults | options) == pytest.approx(end, abs=1e-5)


def test_lion_goes_by_a_mix_of_what_was_and_the_gradient_and_then_forgets_slower() -> None:
    """Gradients 1, -0.05, -0.05 and 0 with beta1 0.9 and beta2 0.99, w = 0, rate 1.

    m = 0, mix 0.1: -1. m = 0.01, mix 0.009 - 0.005 = 0.004: -2. m = 0.0099 - 0.0005 = 0.0094, mix
    0.00846 - 0.005: -3. Momentum alone with beta 0.9 would have turned (0.1, 0.085, 0.0715) as
    little. With beta1 0.5 the second mix is 0.005 - 0.025, and w is back at 0.
    """
    ends = []
    for beta1 in (0.9, 0.5):
        weight = nn.Parameter(torch.zeros(1))
        optimizer = OPTIMIZERS["lion"].function([weight], 1.0, 0.0, beta1=beta1, beta2=0.99)
        for gradient in (1.0, -0.05):
            weight.grad = torch.tensor([gradient])
            optimizer.step()
        ends.append(float(weight.detach()))
        momentum = optimizer.state[weight]["momentum"]
        assert float(momentum) == pytest.approx(0.99 * 0.01 - 0.01 * 0.05, abs=1e-8)
    assert ends == [-2.0, 0.0]


def test_a_sign_of_nothing_is_no_step_and_the_size_of_a_gradient_does_not_count() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = OPTIMIZERS["sign"].function([weight], 0.5)
    weight.grad = torch.tensor([1e-20, 0.0, -1e20])
    optimizer.step()
    assert weight.tolist() == [-0.5, 0.0, 0.5]


def test_adamw_in_8_bits_takes_the_steps_of_adamw_as_far_as_8_bits_can() -> None:
    """Ten steps on a matrix of 8,192 numbers: no weight is further from AdamW's than a tenth of the
    way, most are within a hundredth.
    """
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(64, 128, generator=generator) for _ in range(10)]
    ways = []
    for name in ("adamw", "adamw_8bit"):
        weight = nn.Parameter(torch.zeros(64, 128))
        optimizer = OPTIMIZERS[name].function([weight], 1e-2)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        ways.append(weight.detach())
    difference = (ways[0] - ways[1]).abs()
    assert 0 < float(difference.max()) < 1e-2 and float(difference.median()) < 1e-3


@pytest.mark.parametrize("size", [(3, 5), (64, 128), (100, 101)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_remembers_as_many_bytes_as_are_said_of_it(
    name: str, size: tuple[int, int]
) -> None:
    """But for counts of steps and the two tables of 256 values that all tensors of `adamw_8bit`
    share.
    """
    row, weight = OPTIMIZERS[name], nn.Parameter(torch.zeros(size))
    options: list[dict[str, float]] = [{}, {"momentum": 0.9}] if name == "sgd" else [{}]
    for arguments in options:
        optimizer = row.function([weight], 1e-3, **arguments)
        weight.grad = torch.ones(size)
        optimizer.step()
        tensors = {
            key: t
            for key, t in optimizer.state[weight].items()
            if isinstance(t, torch.Tensor) and t.numel() > 1 and not key.startswith("qmap")
        }
        held = sum(t.numel() * t.element_size() for t in tensors.values())
        assert held == row.state_bytes(weight.numel(), 4, **arguments)


def test_a_name_that_no_table_has_a_missing_package_and_a_value_out_of_range_are_refused_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match=r"train\.optimizer .*'adam'.*adamw"):
        check_trial(with_values(Trial(), {"train.optimizer": "adam"}))
    with pytest.raises(UserError, match=r"sgd\.momentum must be in \[0, 1\), got 1"):
        check_trial(with_values(Trial(), {"train.optimizer": "sgd", "sgd.momentum": 1.0}))
    monkeypatch.setattr(optimizers, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"adamw_8bit needs bitsandbytes .*quantisation"):
        check_trial(with_values(Trial(), {"train.optimizer": "adamw_8bit"}))
    # of another optimizer no package is asked for, and its own options are not the trial's
    options = dict(check_trial(Trial(options=(("sgd.momentum", 0.5),))).options)
    assert "sgd.momentum" not in options
