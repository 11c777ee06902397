"""Frames of a run that the tables are computed from."""

import random

import polars as pl

from rayunlearn.analysis.run_frames import means_by


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
