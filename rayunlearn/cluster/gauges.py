"""Numbers of a sweep as Ray's own metrics, which its dashboard, Prometheus and Grafana read."""

import math

from ray.util.metrics import Gauge

from rayunlearn.planning.progress import Snapshot

# name -> what it says; Ray puts `ray_` before it
GAUGES = {
    "rayunlearn_trials_planned": "trials that the plan has",
    "rayunlearn_trials_done": "trials of the plan that have ended, failed ones among them",
    "rayunlearn_trials_failed": "trials of the plan that failed",
    "rayunlearn_trials_running": "trials that are running",
    "rayunlearn_best": "lowest objective at or above the utility floor",
    "rayunlearn_gpu_hours": "hours of GPUs that trials of this call held until they ended",
}


class SweepGauges:
    """The gauges of one sweep, tagged with its experiment and version.

    Args:
        experiment: name of the experiment.
        version: its version.
    """

    def __init__(self, experiment: str, version: str) -> None:
        tags = {"experiment": experiment, "version": version}
        self.gauges = {
            name: Gauge(name, description=text, tag_keys=tuple(tags))
            for name, text in GAUGES.items()
        }
        for gauge in self.gauges.values():
            gauge.set_default_tags(tags)

    def show(self, view: Snapshot) -> None:
        """Set every gauge that has a value: there is no best before a trial has ended."""
        for name, value in values_of(view).items():
            if math.isfinite(value):
                self.gauges[name].set(value)


def values_of(view: Snapshot) -> dict[str, float]:
    """The value of each gauge."""
    return {
        "rayunlearn_trials_planned": view.total,
        "rayunlearn_trials_done": view.done,
        "rayunlearn_trials_failed": view.failed,
        "rayunlearn_trials_running": len(view.running),
        "rayunlearn_best": view.best,
        "rayunlearn_gpu_hours": view.gpu_hours,
    }
