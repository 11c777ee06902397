"""Limits in hours, and what Ray's metrics say of a sweep, with Ray itself."""

import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from rayunlearn.cluster.gauges import GAUGES, SweepGauges
from rayunlearn.experiment import Budget, Experiment
from rayunlearn.planning.progress import Snapshot
from rayunlearn.storage.run import finished_ids, open_run
from tests.cluster.conftest import run_sweep, untuned


def limited(**hours: float) -> Experiment:
    """A trial that takes no time and one that takes 0.9 s, and their controls."""
    axes: dict[str, tuple[object, ...]] = {"train.warmup_fraction": (0.0, 0.9)}
    return replace(untuned(axes), budget=Budget(tuning="none", **hours))


def test_a_trial_that_takes_too_long_is_a_row_and_runs_again_when_it_may_take_longer(
    ray_address: str, tmp_path: Path
) -> None:
    limit = limited(trial_hours=0.3 / 3600)
    first = run_sweep(limit, tmp_path)
    assert first.statuses["timed_out"] == 2 and first.done == first.total
    rows = open_run(first.run).trials.collect()
    timed_out = rows.filter(rows["status"] == "timed_out")
    assert timed_out["seconds"].to_list() == pytest.approx([0.3, 0.3], abs=0.3)
    assert run_sweep(limit, tmp_path).ran == 0
    longer = run_sweep(limited(trial_hours=1.0), tmp_path)
    assert longer.ran == 2 and set(finished_ids(first.run).values()) == {"complete"}


def test_no_trial_begins_when_the_hours_are_over_and_a_larger_number_goes_on(
    tmp_path: Path,
) -> None:
    """So short that nothing is begun: neither is Ray."""
    result = run_sweep(limited(hours=1e-9), tmp_path)
    assert result.ran == 0 and not result.interrupted and result.done < result.total
    assert f"{result.total} trials were not begun" in result.notes[-1]
    experiment = open_run(result.run).experiment
    assert experiment["seconds_used"] > 0 and result.notes[-1] in experiment["notes"]


def test_ray_shows_the_numbers_of_a_sweep(ray_address: str) -> None:
    """On the page that Prometheus reads of each node, as Grafana and Ray's dashboard do."""
    import ray

    SweepGauges("mine", "7").show(Snapshot(done=3, total=8, failed=1, best=0.25, gpu_hours=1.5))
    node = ray.nodes()[0]
    page = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline, lines = time.monotonic() + 30, []
    while len(lines) < len(GAUGES) and time.monotonic() < deadline:
        time.sleep(0.5)
        text = urllib.request.urlopen(page, timeout=5).read().decode()
        tags = ('experiment="mine"', 'version="7"')
        lines = [
            line
            for line in text.splitlines()
            if line.startswith("ray_rayunlearn") and all(tag in line for tag in tags)
        ]
    values = {line.split("{")[0]: float(line.rsplit(maxsplit=1)[1]) for line in lines}
    assert values == {
        "ray_rayunlearn_trials_planned": 8.0,
        "ray_rayunlearn_trials_done": 3.0,
        "ray_rayunlearn_trials_failed": 1.0,
        "ray_rayunlearn_trials_running": 0.0,
        "ray_rayunlearn_best": 0.25,
        "ray_rayunlearn_gpu_hours": 1.5,
    }
