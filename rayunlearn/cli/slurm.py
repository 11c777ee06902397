"""`rayunlearn submit --slurm`: a batch script that runs an experiment on a Slurm allocation."""

import argparse
import math
import shlex
import subprocess
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from rayunlearn.errors import UserError, require

# what the driver has to close its run, and Slurm to queue the job again
SIGNAL_SECONDS = 180
# queued again this often at most: each time costs the hours that were asked for
REQUEUES = 20
MIN_HOURS = 0.1
# of `submit`, without --slurm
JOB_SERVER_OPTIONS = {
    "address": "",
    "include": [],
    "variables": [],
    "install": False,
    "follow": False,
    "detach": False,
}


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """What the batch script asks Slurm for.

    Raises UserError for numbers out of range and for text that a directive cannot hold.

    Args:
        name: name of the job, and of its files.
        words: the command that the driver is.
        partition: Slurm's partition, '' for the cluster's default.
        account: what the hours are charged to, '' for the user's default.
        nodes: machines, at least 1.
        gpus: GPUs of each node, a number or `TYPE:NUMBER`; '' for none.
        cpus: CPUs of each node, of nodes that are shared with other jobs; 0 for whole nodes.
        hours: time limit of one allocation, at least 0.1; the job is queued again when it is over.
        extra: further directives of sbatch, for example `--qos=long`.
    """

    name: str
    words: tuple[str, ...]
    partition: str = ""
    account: str = ""
    nodes: int = 1
    gpus: str = ""
    cpus: int = 0
    hours: float = 24.0
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.nodes >= 1, "--nodes must be >= 1", self.nodes)
        require(self.cpus >= 0, "--cpus must be >= 0", self.cpus)
        require(
            math.isfinite(self.hours) and self.hours >= MIN_HOURS,
            f"--hours must be a finite number >= {MIN_HOURS}",
            self.hours,
        )
        number = self.gpus.rpartition(":")[2]
        require(
            not self.gpus or (number.isdigit() and int(number) >= 1),
            "--gpus must be a number >= 1 or TYPE:NUMBER",
            self.gpus,
        )
        for text in (self.partition, self.account, self.gpus, *self.extra):
            require(
                text.isprintable() and (text in self.extra or " " not in text),
                "a directive of sbatch must be one line, and a name have no space",
                text,
            )
        for text in self.extra:
            require(text.startswith("-"), "--sbatch must be an option of sbatch", text)


def batch_script(job: SlurmJob) -> str:
    """The whole script, ready for `sbatch`."""
    minutes = math.ceil(job.hours * 60)
    whole = job.cpus == 0
    directives = [
        f"--job-name={job.name}",
        f"--partition={job.partition}" if job.partition else "",
        f"--account={job.account}" if job.account else "",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        *(("--exclusive", "--mem=0") if whole else (f"--cpus-per-task={job.cpus}",)),
        f"--gpus-per-node={job.gpus}" if job.gpus else "",
        f"--time={minutes // 60:02d}:{minutes % 60:02d}:00",
        f"--signal=B:USR1@{SIGNAL_SECONDS}",
        "--requeue",
        "--open-mode=append",
        "--output=slurm-%x-%j.out",
        *job.extra,
    ]
    body = files("rayunlearn.cli").joinpath("templates/sweep.sbatch").read_text(encoding="utf-8")
    head = ["#!/bin/bash", *(f"#SBATCH {text}" for text in directives if text)]
    settings = [
        f"command=({shlex.join(job.words)})",
        f"nodes={'whole' if whole else 'shared'}",
        f"requeues={REQUEUES}",
    ]
    return "\n".join([*head, "", *settings, "", body])


def hand_over(script: Path) -> str:
    """Give the script to `sbatch`; the job's number. Raises UserError where there is no `sbatch`
    or it refuses.
    """
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise UserError(
            "submit --slurm needs Slurm's sbatch on PATH, got none; --print shows the script"
        ) from error
    require(done.returncode == 0, "sbatch must take the script", done.stderr.strip())
    # NUMBER or NUMBER;CLUSTER
    return done.stdout.strip().split(";")[0]


def submit_to_slurm(chosen: argparse.Namespace, words: list[str], name: str) -> None:
    """Write the script into the current folder and hand it over; with `--print`, show it and do
    nothing else.
    """
    job = SlurmJob(
        name=name,
        words=tuple(words),
        partition=chosen.partition,
        account=chosen.account,
        nodes=chosen.nodes,
        gpus=chosen.gpus,
        cpus=chosen.cpus,
        hours=chosen.hours,
        extra=tuple(chosen.sbatch),
    )
    if chosen.print_script:
        print(batch_script(job), end="")
        return
    script = Path(f"{name}.sbatch")
    script.write_text(batch_script(job), encoding="utf-8")
    number = hand_over(script)
    print(
        f"job {number} ({script}); its output: slurm-{name}-{number}.out   where it is: squeue -j"
        f" {number}   end it: scancel --batch --signal=TERM {number}"
    )


def check_slurm_options(chosen: argparse.Namespace, parser_defaults: dict[str, Any]) -> None:
    """Raise UserError for an option of the job server with `--slurm`, and for one of Slurm
    without it.
    """
    wrong = JOB_SERVER_OPTIONS if chosen.slurm else parser_defaults
    names = {"variables": "pass", "print_script": "print"}
    for name, default in wrong.items():
        if getattr(chosen, name) != default:
            without = "" if chosen.slurm else "out"
            raise UserError(f"there is no --{names.get(name, name)} with{without} --slurm")


# of `submit --slurm`: what argparse is told of each
SLURM_OPTIONS: dict[str, dict[str, Any]] = {
    "partition": {"metavar": "NAME", "default": "", "help": "Slurm's partition"},
    "account": {"metavar": "NAME", "default": "", "help": "what is charged"},
    "nodes": {"metavar": "N", "type": int, "default": 1, "help": "machines (default: 1)"},
    "gpus": {"metavar": "[TYPE:]N", "default": "", "help": "GPUs of each node (default: none)"},
    "cpus": {
        "metavar": "N",
        "type": int,
        "default": 0,
        "help": "CPUs of each node, which other jobs may then share (default: whole nodes)",
    },
    "hours": {
        "metavar": "F",
        "type": float,
        "default": 24.0,
        "help": "time limit; the job is queued again when it is over and goes on (default: 24)",
    },
    "sbatch": {
        "metavar": "OPTION",
        "action": "append",
        "default": [],
        "help": "a further option of sbatch, for example --sbatch=--qos=long",
    },
    "print": {
        "dest": "print_script",
        "action": "store_true",
        "help": "print the script and do nothing else",
    },
}


def add_slurm_options(added: argparse.ArgumentParser) -> dict[str, Any]:
    """`--slurm` and what belongs to it; the defaults of the latter."""
    group = added.add_argument_group("Slurm (docs/how-to/slurm.md)")
    group.add_argument(
        "--slurm",
        action="store_true",
        help="write a batch script that runs the experiment on nodes of Slurm, give it to sbatch",
    )
    names = [
        group.add_argument(f"--{name}", **settings).dest for name, settings in SLURM_OPTIONS.items()
    ]
    return {name: added.get_default(name) for name in names}
