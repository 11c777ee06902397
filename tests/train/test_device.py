"""What precision training computes its products in: asked for, or tried."""

from pathlib import Path

import pytest
import torch

from rayunlearn.train import device
from rayunlearn.train.device import computing, precision_of_products
from tests.tiny_models import tiny_model


@pytest.mark.parametrize(
    ("precision", "products"),
    [("float32", "float32"), ("auto", "float32"), ("bfloat16", "bfloat16")],
)
def test_on_a_processor_bfloat16_is_computed_in_where_it_is_asked_for(
    precision: str, products: str, tmp_path: Path
) -> None:
    """And nothing is tried, so nothing is kept."""
    assert precision_of_products(tiny_model(), precision, tmp_path) == products
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "products"),
    [
        ({"float32": 1.0, "bfloat16": 0.5}, "bfloat16"),
        ({"float32": 1.0, "bfloat16": 0.9}, "float32"),
    ],
)
def test_the_fastest_is_bfloat16_where_a_try_says_so_and_is_tried_once_per_machine(
    seconds: dict[str, float],
    products: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tenth less is not worth it. What another process finds later no longer counts."""
    monkeypatch.setattr(device, "_seconds_of_block", lambda _shapes, name: seconds[name])
    device._fastest.cache_clear()
    assert precision_of_products(tiny_model(), "fastest", tmp_path) == products
    monkeypatch.setattr(device, "_seconds_of_block", lambda _shapes, name: -seconds[name])
    device._fastest.cache_clear()
    assert precision_of_products(tiny_model(), "fastest", tmp_path) == products


def test_a_try_computes_in_what_it_times_and_takes_a_moment() -> None:
    shapes = ((64, 32), (32, 64))
    assert all(0 <= device._seconds_of_block(shapes, name) < 1 for name in ("float32", "bfloat16"))
    a = torch.ones(2, 2)
    with computing(torch.device("cpu"), "bfloat16"):
        assert (a @ a).dtype == torch.bfloat16
    with computing(torch.device("cpu"), "float32"):
        assert (a @ a).dtype == torch.float32
