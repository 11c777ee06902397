"""Calibration: the search against curves whose crossing is known, the mixture against arithmetic,
and both on a model.
"""

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rayunlearn.errors import UserError
from rayunlearn.models.interpolation import (
    calibrate_mixing,
    copy_of,
    mix_into,
    mixed,
)
from rayunlearn.train.adapters import lora, with_adapter
from tests.tiny_models import tiny_model


def counted(curve: Callable[[float], float]) -> tuple[Callable[[float], float], list[float]]:
    """The curve, and the list of what it was asked."""
    asked: list[float] = []

    def measure(alpha: float) -> float:
        asked.append(alpha)
        return curve(alpha)

    return measure, asked


def test_a_model_that_retains_enough_is_taken_whole_after_two_measurements() -> None:
    measure, asked = counted(lambda a: 1 - 0.04 * a)
    found = calibrate_mixing(measure)
    assert (found.alpha, found.search, found.width) == (1.0, "whole", 0.0) and asked == [0.0, 1.0]


@pytest.mark.parametrize("crossing", [0.01, 0.1, 0.25, 0.3, 0.62, 0.9, 0.999])
def test_bisection_finds_where_a_falling_curve_crosses_the_floor(crossing: float) -> None:
    """retention = 0.8 exp(-k a) with k so that it is 0.95 x 0.8 at the crossing: found from below,
    to 1/256.
    """
    k = -math.log(0.95) / crossing
    measure, asked = counted(lambda a: 0.8 * math.exp(-k * a))
    found = calibrate_mixing(measure)
    assert found.search == "bisection" and found.width <= 1 / 256
    assert found.alpha <= crossing + 1e-12 and crossing - found.alpha <= found.width + 1e-12
    assert found.floor == pytest.approx(0.76)
    assert len(asked) == len(set(asked)) <= 11, "an alpha was measured twice, or too many were"
    assert [p.alpha for p in found.points] == sorted(asked)


def test_a_lower_share_lets_more_of_the_unlearned_model_in() -> None:
    def curve(a: float) -> float:
        return 1 - a

    assert calibrate_mixing(curve, share=0.95).alpha == pytest.approx(0.05, abs=1 / 256)
    assert calibrate_mixing(curve, share=0.90).alpha == pytest.approx(0.10, abs=1 / 256)


def test_a_path_that_comes_back_is_searched_by_grid_for_its_largest_alpha() -> None:
    """Retention dips in the middle and is high again on [0.68, 0.83]: the largest grid point there
    is 0.8.
    """
    measure, asked = counted(lambda a: 1.0 if a < 0.2 or 0.68 <= a <= 0.83 else 0.3)
    found = calibrate_mixing(measure)
    assert (found.search, found.alpha) == ("grid", 0.8) and found.width == pytest.approx(0.05)
    assert len(asked) == len(set(asked))


def test_a_rise_seen_only_while_bisecting_leads_to_the_grid_too() -> None:
    """Falling on the coarse points; at 0.125, the first middle, retention is below what it is at
    0.25.
    """
    values = {0.0: 1.0, 0.125: 0.5, 0.25: 0.7}
    found = calibrate_mixing(lambda a: values.get(a, max(0.0, 0.9 - a) if a > 0.25 else 0.96))
    assert found.search == "grid"


def test_a_point_between_those_of_the_grid_is_taken_where_it_is_the_largest_that_is_enough() -> (
    None
):
    """0.25 is enough, 0.5 is not; bisecting, 0.375 and 0.4375 are, and 0.46875 rises over 0.4375,
    so the grid is measured: its largest is 0.45, but 0.46875 is enough too and 0.5 the next.
    """
    values = {0.375: 0.97, 0.4375: 0.96, 0.45: 0.96, 0.46875: 0.999}
    measure, _ = counted(lambda a: values.get(a, 1 - 0.1 * a if a < 0.3 else 0.9 - 0.1 * a))
    found = calibrate_mixing(measure)
    assert (found.search, found.alpha, found.width) == ("grid", 0.46875, 0.03125)


def bumpy(seed: int) -> Callable[[float], float]:
    """A falling path with waves of a random height, length and phase on it."""
    draw = random.Random(seed)
    slope, height, waves, phase = (
        draw.uniform(a, b) for a, b in ((0.1, 1), (0, 0.2), (1, 12), (0, 6))
    )
    return lambda a: max(
        0.01, 1 - slope * a + height * (math.sin(waves * a + phase) - math.sin(phase))
    )


@pytest.mark.parametrize("seed", range(200))
def test_the_alpha_found_is_the_largest_measured_that_is_enough_and_width_the_next_one(
    seed: int,
) -> None:
    """On any path: what `width` promises is about the points; where the path falls from the alpha
    found on, it is about the true one too, here taken from 20,001 points.
    """
    curve = bumpy(seed)
    found = calibrate_mixing(curve)
    retained = {point.alpha: point.retention for point in found.points}
    assert retained[found.alpha] >= found.floor
    above = [alpha for alpha in retained if alpha > found.alpha]
    assert all(retained[alpha] < found.floor for alpha in above)
    assert found.width == (min(above) - found.alpha if above else 0.0)
    fine = [n / 20_000 for n in range(20_001)]
    beyond = [curve(alpha) for alpha in fine if alpha >= found.alpha]
    if all(left >= right for left, right in itertools.pairwise(beyond)):
        true = max(alpha for alpha in fine if curve(alpha) >= found.floor)
        assert true - found.alpha <= found.width + 1e-4


def test_a_path_that_rises_unseen_between_two_points_has_a_larger_alpha_than_width_says() -> None:
    """Enough up to 0.2 and on [0.6, 0.7], between the points at 0.5 and 0.75: no search of finitely
    many points sees that, and the docstring says so.
    """
    found = calibrate_mixing(lambda a: 1.0 if a <= 0.2 or 0.6 <= a <= 0.7 else 0.5)
    assert found.search == "bisection" and found.alpha <= 0.2 and found.width < 0.01


def test_a_ripple_within_the_tolerance_is_no_rise() -> None:
    found = calibrate_mixing(lambda a: 1 - 0.5 * a + 0.002 * math.sin(300 * a))
    assert found.search == "bisection" and found.alpha == pytest.approx(0.1, abs=0.015)


def test_what_cannot_be_calibrated_is_told() -> None:
    with pytest.raises(UserError, match=r"retention is > 0, got 0\.0"):
        calibrate_mixing(lambda a: 0.0)
    with pytest.raises(UserError, match=r"retention at alpha 1 must be a number, got nan"):
        calibrate_mixing(lambda a: math.nan if a == 1 else 1.0)
    with pytest.raises(UserError, match=r"share must be in \(0, 1\], got 1\.5"):
        calibrate_mixing(lambda a: 1.0, share=1.5)


def test_a_mixture_is_the_weighted_mean_of_every_weight_and_its_ends_are_exact() -> None:
    base, unlearned, model = tiny_model(seed=0), tiny_model(seed=1), tiny_model(seed=2)
    states = copy_of(base), copy_of(unlearned)
    mix_into(model, *states, 0.25)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, 0.75 * states[0][name] + 0.25 * states[1][name], atol=1e-7)
    for alpha, end in ((0.0, base), (1.0, unlearned)):
        mix_into(model, *states, alpha)
        assert all(
            torch.equal(tensor, end.state_dict()[name])
            for name, tensor in model.state_dict().items()
        )


def test_the_unlearned_model_comes_back_even_after_an_error() -> None:
    model = tiny_model(seed=1)
    base, unlearned = copy_of(tiny_model(seed=0)), copy_of(model)
    with pytest.raises(RuntimeError, match="inside"), mixed(model, base, unlearned, 0.5):
        assert not torch.equal(model.state_dict()["lm_head.weight"], unlearned["lm_head.weight"])
        raise RuntimeError("inside")
    assert all(torch.equal(tensor, unlearned[name]) for name, tensor in model.state_dict().items())


def test_states_that_do_not_fit_are_refused() -> None:
    model = tiny_model()
    state = copy_of(model)
    with pytest.raises(UserError, match=r"alpha must be in \[0, 1\], got 1\.5"):
        mix_into(model, state, state, 1.5)
    fewer = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    with pytest.raises(UserError, match="lm_head.weight"):
        mix_into(model, state, fewer, 0.5)
    other = state | {"lm_head.weight": state["lm_head.weight"][:3]}
    with pytest.raises(UserError, match=r"shape of lm_head.weight, got \(3, 16\)"):
        mix_into(model, state, other, 0.5)


def test_mixing_a_merged_adapter_is_scaling_it(tmp_path: Path) -> None:
    """W + a (alpha / rank) B A by hand against the mixture of base and the model with its adapter
    added.
    """
    model = tiny_model(seed=0)
    base = copy_of(model)
    with with_adapter(
        model,
        lambda modules: lora(modules, rank=2, alpha=4, dropout=0.0),
        "q_proj",
        tmp_path / "adapter",
    ):
        generator = torch.Generator().manual_seed(0)
        factors = {}
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
                factors[name] = parameter.data.clone()
    unlearned = copy_of(model)
    mix_into(model, base, unlearned, 0.3)
    checked = 0
    for name, tensor in model.state_dict().items():
        module = name.removesuffix(".weight")
        down, up = (factors.get(f"{module}.lora_{side}.default.weight") for side in "AB")
        if down is not None and up is not None:
            assert torch.allclose(tensor, base[name] + 0.3 * (4 / 2) * up @ down, atol=1e-6)
            checked += 1
    assert checked == model.config.num_hidden_layers
