"""Frames of a run that the tables are computed from."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import polars as pl
from polars.testing import assert_frame_equal

from rayunlearn.analysis.run_frames import (
    means_by,
    trial_table,
    values_by_trial,
    varying_settings,
)
from rayunlearn.storage.run import Run, open_run, write_run_table
from tests import synthetic


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


def test_a_frame_is_computed_once_of_a_run_in_memory_and_anew_where_files_may_change(
    tmp_path: Path,
) -> None:
    folder = synthetic.write_run(tmp_path)
    on_disk, in_memory = open_run(folder), open_run(folder).in_memory()
    before = trial_table(on_disk)
    assert trial_table(in_memory) is trial_table(in_memory)
    assert values_by_trial(in_memory, "forget", "probability", "") is not values_by_trial(
        in_memory, "retain", "probability", ""
    )
    assert_frame_equal(trial_table(in_memory), before)
    values = {"forget": 0.5, "retain": 0.9}
    other = synthetic.add_trial(folder, {"train.seed": 77}, values, coverage=None)
    plan = on_disk.plan.collect().to_dicts()
    write_run_table(folder, "plan", [*plan, synthetic.plan_row(other, "grid", "{}")])
    assert trial_table(in_memory).height == before.height
    assert trial_table(open_run(folder)).height == before.height + 1
