"""Where and how wide a plan runs: what the driver and the part that needs Ray both know."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from rayunlearn.errors import require
from rayunlearn.planning.backend import TrialBackend
from rayunlearn.planning.planner import PlanSource


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where and how wide trials run. `workers` 0: as many as fit; `gpus_per_trial` None: where
    there are GPUs, what the largest trial needs; `processes`: how many share one trial, each with
    a GPU of its own where there are GPUs; `on`: the resource that a machine must have to be given
    trials ('': any machine); `rerun_changed`: finished trials whose functions have other source now
    run again."""

    address: str = "auto"
    workers: int = 0
    gpus_per_trial: float | None = None
    processes: int = 1
    on: str = ""
    rerun_changed: bool = False

    def __post_init__(self) -> None:
        require(self.workers >= 0, "--workers must be >= 0", self.workers)
        gpus = self.gpus_per_trial
        rule = (
            "--gpus-per-trial must be in [0, 1], as a process trains on one GPU;"
            " --processes-per-trial gives a trial several"
        )
        require(gpus is None or 0 <= gpus <= 1, rule, gpus)
        require(self.processes >= 1, "--processes-per-trial must be >= 1", self.processes)
        shared = self.processes > 1 and gpus not in (None, 0, 1)
        require(
            not shared,
            "--gpus-per-trial must be 0 or 1 with --processes-per-trial, as each process has a GPU"
            " of its own",
            gpus,
        )

    @property
    def local_cpus(self) -> int:
        """CPUs of a private cluster, one per process; 0: as many as this machine has, which is
        enough for one trial.
        """
        if self.workers == 0 and self.processes <= len(os.sched_getaffinity(0)):
            return 0
        return max(1, self.workers) * self.processes


@dataclass(frozen=True, kw_only=True)
class PlanRun:
    """A plan and where it is carried out: `run` is the folder of its tables, `cache` that of the
    models, `work` does one trial, `console` shows how far it is; `over_at`: the moment of this
    process's monotonic clock at which budget.hours are over.
    """

    planner: PlanSource
    run: Path
    cache: Path
    work: TrialBackend
    options: Options
    console: Console
    over_at: float = math.inf
