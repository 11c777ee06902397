"""Frames of a run that the tables are computed from."""

import random
from types import SimpleNamespace
from typing import cast

import polars as pl

from rayunlearn.analysis.run_frames import means_by, varying_settings
from rayunlearn.storage.run import Run


def test_a_mean_is_the_same_to_the_last_bit_in_any_order_of_the_rows() -> None:
    """Plain sums of these numbers differ with their order, which the last assertion shows."""
    generator = random.Random(0)
    rows = [("a" if n % 2 else "b", generator.random() * 10 ** (n % 9)) for n in range(400)]
    means, plain = set(), set()
    for seed in range(20):
        random.Random(seed).shuffle(rows)
        frame = pl.LazyFrame(rows, schema=["trial_id", "value"], orient="row")
        means.add(tuple(means_by(frame, ("trial_id",), ("value",)).rows()))
        plain.add(sum(value for _, value in rows))
    assert len(means) == 1 and len(plain) > 1
    (_, mean), _ = next(iter(means))
    expected = [value for name, value in rows if name == "a"]
    assert abs(mean - sum(expected) / 200) < 1e-6


def test_a_setting_that_the_method_decides_is_no_setting_that_varies() -> None:
    """Layers go with the method; the length is varied within one of them; the adapter follows the
    length there.
    """
    rows = [
        ("npo", "nll", "20", 10.0, "none"),
        ("npo", "nll", "20", 30.0, "lora"),
        ("rmu", "activation", "5", 40.0, "none"),
    ]
    names = ["method.forget", "method.retain", "train.layers", "train.length", "train.adapter"]
    grid = pl.DataFrame(rows, schema=names, orient="row").with_columns(
        pl.lit("grid").alias("role"), pl.Series("trial_id", ["a", "b", "c"])
    )
    run = SimpleNamespace(experiment={"search": {}})
    assert varying_settings(cast(Run, run), grid) == ["train.length"]
