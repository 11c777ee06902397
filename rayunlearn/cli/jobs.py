"""`rayunlearn submit` and `jobs`: the same command on a Ray cluster, or on nodes of Slurm."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn.cli.arguments import (
    DONE,
    INTERRUPTED,
    add_command,
    add_experiment_options,
    add_resource_options,
    experiment_of,
)
from rayunlearn.cli.slurm import add_slurm_options, check_slurm_options, submit_to_slurm
from rayunlearn.errors import require
from rayunlearn.storage.sync import display_path
from rayunlearn.trial.narration import now_doing

if TYPE_CHECKING:
    from rayunlearn.experiment import Experiment

SERVER_HELP = (
    "the cluster's job server, http://HOST:8265 (default: RAY_API_SERVER_ADDRESS, or RAY_ADDRESS"
    " where that is a URL; see docs/cluster.md)"
)


def job_server(address: str) -> str:
    """The job server that `--address` names, else Ray's own variables. Raises UserError where
    neither does.
    """
    names = (address, os.environ.get("RAY_API_SERVER_ADDRESS"), os.environ.get("RAY_ADDRESS"))
    url = next((name for name in names if name), "")
    require(
        bool(url),
        "--address, RAY_API_SERVER_ADDRESS or RAY_ADDRESS must be the job server's"
        " http://HOST:PORT",
        "none of them",
    )
    setting = "--address" if address else "RAY_API_SERVER_ADDRESS or RAY_ADDRESS"
    require(
        url.startswith(("http://", "https://")),
        f"{setting} must be the job server's http://HOST:PORT",
        url,
    )
    return url


def add_submit_command(commands: Any) -> None:
    """`submit EXPERIMENT.py`."""
    added = add_experiment_options(
        commands,
        "submit",
        submit,
        "run an experiment on a cluster: pack this folder, hand it to the job server, follow it;"
        " or on Slurm (--slurm)",
    )
    added.add_argument("--address", metavar="URL", default="", help=SERVER_HELP)
    add_resource_options(added)
    _add_package_options(added)
    mode = added.add_mutually_exclusive_group()
    mode.add_argument(
        "--follow",
        action="store_true",
        help="print what the job prints and return its exit status (the default)",
    )
    mode.add_argument("--detach", action="store_true", help="return as soon as the job is accepted")
    added.set_defaults(slurm_defaults=add_slurm_options(added))


def _add_package_options(added: argparse.ArgumentParser) -> None:
    """What the job is given besides the folder's files."""
    added.add_argument(
        "--include",
        metavar="PATH",
        nargs="+",
        action="extend",
        default=[],
        help="pack this too, although git ignores it",
    )
    added.add_argument(
        "--pass",
        dest="variables",
        metavar="NAME",
        nargs="+",
        action="extend",
        default=[],
        help="environment variables to give to the job",
    )
    added.add_argument(
        "--install",
        action="store_true",
        help="install the packed project on the machines first (minutes, once per change of it)",
    )


def add_jobs_command(commands: Any) -> None:
    """`jobs [JOB]`."""
    added = add_command(
        commands,
        "jobs",
        jobs,
        "list the jobs of a cluster with where their runs are, follow one, or stop it",
    )
    added.add_argument(
        "job", metavar="JOB", nargs="?", default="", help="follow this job (default: list all)"
    )
    added.add_argument("--address", metavar="URL", default="", help=SERVER_HELP)
    added.add_argument("--stop", action="store_true", help="end the job; what has finished is kept")


def submit(chosen: argparse.Namespace) -> int:
    """Pack, hand over, follow; with `--slurm` write a batch script and hand that over."""
    check_slurm_options(chosen, chosen.slurm_defaults)
    # a mistake in the request shows here, before anything is loaded or uploaded
    experiment = experiment_of(chosen)
    folder = Path.cwd()
    file = Path(chosen.experiment).resolve()
    require(
        file.is_relative_to(folder),
        "the experiment must lie in the folder that is packed (the current one)",
        str(file),
    )
    words = _job_command(chosen, file.relative_to(folder))
    if chosen.slurm:
        submit_to_slurm(chosen, words, f"{experiment.name}-{experiment.version}")
        return DONE
    return _submit_to_server(chosen, words, experiment)


def _submit_to_server(
    chosen: argparse.Namespace, words: list[str], experiment: "Experiment"
) -> int:
    """Pack the current folder, hand it to the job server, follow the job."""
    from rayunlearn.cluster.jobs import Submission
    from rayunlearn.cluster.jobs import submit_job as hand_over

    missing = [name for name in chosen.variables if name not in os.environ]
    require(not missing, "--pass must name environment variables that are set", missing)
    request = Submission(
        words=tuple(words),
        experiment=experiment.name,
        version=experiment.version,
        output=display_path(chosen.output),
        folder=Path.cwd(),
        include=tuple(chosen.include),
        variables={name: os.environ[name] for name in chosen.variables},
        install=chosen.install,
    )
    address = job_server(chosen.address)
    job = hand_over(request, address, print)
    print(f"job {job}; again: rayunlearn jobs --address {address} {job}   end it: ... {job} --stop")
    return DONE if chosen.detach else _follow(job, address)


def _job_command(chosen: argparse.Namespace, file: Path) -> list[str]:
    words = [
        "python",
        "-m",
        "rayunlearn",
        "run",
        file.as_posix(),
        "--output",
        display_path(chosen.output),
    ]
    for name in (
        "preset",
        "recipe",
        "tuned_from",
        "version",
        "workers",
        "gpus_per_trial",
        "processes_per_trial",
        "on",
    ):
        value, default = getattr(chosen, name), 1 if name == "processes_per_trial" else 0
        words += (
            [f"--{name.replace('_', '-')}", str(value)]
            if value not in ("", None, default, "laptop")
            else []
        )
    return words + (["--set", *chosen.assignments] if chosen.assignments else [])


def _follow(job: str, address: str) -> int:
    from rayunlearn.cluster.jobs import follow_job

    now_doing("waiting for the job's first line")

    def show(text: str) -> None:
        now_doing("")
        print(text, end="", flush=True)

    try:
        return follow_job(job, address, show)
    except KeyboardInterrupt:
        print(
            f"\nthe job goes on; look again with: rayunlearn jobs --address {address} {job}",
            file=sys.stderr,
        )
        return INTERRUPTED


def jobs(chosen: argparse.Namespace) -> int:
    """List, follow or stop."""
    from rayunlearn.cluster import jobs as server

    require(bool(chosen.job) or not chosen.stop, "--stop needs the job's name", chosen.job)
    address = job_server(chosen.address)
    if chosen.stop:
        was_running = server.stop_job(chosen.job, address)
        print("asked to stop" if was_running else "it had ended already")
        return DONE
    if chosen.job:
        return _follow(chosen.job, address)
    for row in server.list_jobs(address):
        print(f"{row['job']}  {row['status']:<9}  {row['run']}")
    return DONE
