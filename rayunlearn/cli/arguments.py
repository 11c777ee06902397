"""Arguments that several commands share, and the experiment that they describe."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn.config import parse_assignments
from rayunlearn.errors import UserError, require
from rayunlearn.storage.sync import output_place

if TYPE_CHECKING:
    from rayunlearn.experiment import Experiment
    from rayunlearn.planning.plan_run import Options


# 128 + the number of the signal, as shells say it
DONE, INCOMPLETE, MISTAKE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

# of entry points (plugins/load.py)
PLUGIN_GROUP = "rayunlearn"
# set by Ray for a job's command, and the folder of a session that working folders are unpacked in
RAY_JOB_VARIABLES = ("RAY_JOB_ID", "RAY_JOB_CONFIG_JSON_ENV_VAR")
RAY_JOB_FOLDER = "runtime_resources"


def add_command(
    commands: Any, name: str, command: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """A command: its name, what it calls, and one sentence for its help."""
    added: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    added.set_defaults(command=command, name=name)
    return added


def add_run_argument(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """`RUN`, the run that a command reads; '' where it is optional and not given."""
    parser.add_argument(
        "run",
        metavar="RUN",
        nargs="?" if optional else None,
        default="" if optional else None,
        help="folder or URL of a run, for example runs/hello/1",
    )


def add_trial_argument(
    parser: argparse.ArgumentParser, name: str = "trial", *, without: str = ""
) -> None:
    """`TRIAL`, kept under `name`; `without` says what happens where it is left out, '' that it
    may not be.
    """
    text = "trial id, the beginning of it, or `best`"
    if without:
        parser.add_argument(
            name, metavar="TRIAL", nargs="?", default="", help=f"{text} (default: {without})"
        )
    else:
        parser.add_argument(name, metavar="TRIAL", help=text)


def add_plugin_option(parser: argparse.ArgumentParser) -> None:
    """`--plugin FILE`, for what the run's experiment file brought or named."""
    parser.add_argument(
        "--plugin",
        dest="plugins",
        metavar="FILE.py",
        nargs="+",
        action="extend",
        default=[],
        help="file with ROWS that the run's experiment brought (docs/how-to/own-method.md)",
    )


def load_chosen_plugins(chosen: argparse.Namespace) -> None:
    """What installed packages and `--plugin` bring, for a command that has the option."""
    files = getattr(chosen, "plugins", None)
    # most have none, and the tables are much to load
    if files is None or not (files or entry_points(group=PLUGIN_GROUP)):
        return
    from rayunlearn.plugins.load import load_installed_plugins, load_plugin_file

    load_installed_plugins()
    for file in files:
        load_plugin_file(Path(file))


def add_set_option(options: argparse._ActionsContainer, text: str) -> None:
    """`--set NAME=VALUE ...`, as often as one likes, kept as `assignments`."""
    options.add_argument(
        "--set",
        dest="assignments",
        metavar="NAME=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help=text,
    )


def add_address_option(options: argparse._ActionsContainer) -> None:
    """`--address`, the Ray cluster that the driver joins."""
    options.add_argument(
        "--address",
        metavar="auto|local|ray://HOST:PORT|HOST:PORT",
        default="auto",
        help=ADDRESS_HELP,
    )


def add_resource_options(
    options: argparse._ActionsContainer,
    *,
    gpus: str = "as in `run`",
    processes: str = "as in `run`",
    on: str = "as in `run`",
) -> None:
    """What a trial takes of the cluster: `--gpus-per-trial`, `--processes-per-trial`, `--on`."""
    options.add_argument("--gpus-per-trial", metavar="F", type=float, help=gpus)
    options.add_argument("--processes-per-trial", metavar="N", type=int, default=1, help=processes)
    options.add_argument("--on", metavar="RESOURCE", default="", help=on)


def add_experiment_options(
    commands: Any,
    name: str,
    command: Callable[[argparse.Namespace], int],
    text: str,
    *,
    on_cluster: bool = False,
) -> argparse.ArgumentParser:
    """A command on an experiment file, with the options that change it and say where it runs."""
    added = add_command(commands, name, command, text)
    added.add_argument(
        "experiment",
        metavar="EXPERIMENT.py",
        help="experiment file, for example experiments/hello.py",
    )
    add_set_option(added, SET_HELP)
    added.add_argument("--preset", metavar="NAME", default="laptop", help=PRESET_HELP)
    added.add_argument("--recipe", metavar="NAME", default="", help=RECIPE_HELP)
    added.add_argument("--tuned-from", metavar="RUN", default="", help=TUNED_FROM_HELP)
    added.add_argument("--output", metavar="DIR|URL", default="runs", help=OUTPUT_HELP)
    added.add_argument("--version", metavar="V", help=VERSION_HELP)
    added.add_argument(
        "--workers", metavar="N", type=int, default=0, help="trials at once (default: one per CPU)"
    )
    if on_cluster:
        add_address_option(added)
        add_resource_options(added, gpus=GPUS_HELP, processes=PROCESSES_HELP, on=ON_HELP)
    return added


SET_HELP = (
    "change a setting: on an axis it replaces the axis, in SEARCH it fixes the value, else it"
    " changes BASE; budget.trials=4 works too; measure.metrics+=NAME adds to a list"
)

PRESET_HELP = (
    "a size that the file's PRESETS names, for example paper (default: laptop, the file as it"
    " stands)"
)

RECIPE_HELP = (
    "a published run: see `rayunlearn list recipes`; --set goes over it, and a search begins at"
    " its values"
)

TUNED_FROM_HELP = (
    "folder or URL of a run whose winners each study tries after trial 0 (to take them without a"
    " search: --set budget.tuning=from:RUN)"
)

OUTPUT_HELP = (
    "where runs and the cache of models live: a folder or s3://bucket/prefix (default: runs)"
)

VERSION_HELP = (
    "version of the run (default: the file's VERSION, else 1); `dev` starts from nothing every time"
)

GPUS_HELP = "GPUs a trial takes, fractions share one (default: what the largest trial needs)"

ON_HELP = (
    "trials only on machines with this resource of Ray's, for example accelerator_type:A100"
    " (default: on any)"
)

PROCESSES_HELP = (
    "processes that share one trial, each with a GPU of its own where there are GPUs: batches and"
    " blocks are divided (default: 1)"
)

ADDRESS_HELP = (
    "auto: the cluster of RAY_ADDRESS (a submitted job's own), else a private one on this machine;"
    " local: always private (default: auto)"
)


def output_folder(place: str | Path) -> Path:
    """The folder to work in for `--output`. Raises UserError for a file, for a path below one, and
    for a path that is lost with the Ray job that this is.
    """
    folder = output_place(str(place))
    rule = (
        "--output must be an absolute path that outlives this Ray job, whose working folder is"
        " deleted, or a URL (/shared/runs, s3://bucket/runs)"
    )
    require(not _is_lost_with_job(folder), rule, str(place))
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    require(
        existing.is_dir(), "--output must be a folder or one to be made; it is a file", str(place)
    )
    return folder


def _is_lost_with_job(folder: Path) -> bool:
    """Whether a folder lies in what Ray unpacked for the job that this process belongs to."""
    in_job = any(os.environ.get(name) for name in RAY_JOB_VARIABLES)
    return in_job and RAY_JOB_FOLDER in folder.resolve().parts


def split_axes(assignments: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """What `--set` says, as (axes by name, the other assignments): NAME=[VALUE,VALUE] is an axis.

    Raises UserError for a list that is no JSON.

    Example:
        >>> split_axes(["select.ratio=[0.25,1]", "train.length=20"])
        ({'select.ratio': [0.25, 1]}, ['train.length=20'])
    """
    axes: dict[str, list[Any]] = {}
    single = []
    for text in assignments:
        name, _, raw = text.partition("=")
        if not raw.strip().startswith("["):
            single.append(text)
            continue
        try:
            axes[name.strip()] = json.loads(raw)
        except ValueError as error:
            rule = "--set NAME=[VALUE,VALUE] takes a JSON list, texts in double quotes"
            raise UserError(f"{rule}, got {text!r}") from error
    return axes, single


def experiment_of(chosen: argparse.Namespace) -> "Experiment":
    """The experiment with what the command line changes. The words that were given are kept for `go
    on with`.
    """
    from rayunlearn import recipes
    from rayunlearn.experiment import check_measured, load, override, with_axes

    recipe = recipes.values(chosen.recipe) if chosen.recipe else {}
    axes, single = split_axes(chosen.assignments)
    values = parse_assignments(single)
    if chosen.tuned_from:
        values["budget.tuned_from"] = chosen.tuned_from
    experiment = load(chosen.experiment, preset=chosen.preset)
    require(chosen.workers >= 0, "--workers must be >= 0", chosen.workers)
    chosen.words = ["rayunlearn", *sys.argv[1:]]
    chosen.output = output_folder(chosen.output)
    version = {} if chosen.version is None else {"version": chosen.version}
    changed = with_axes(override(experiment, values | version, recipe=recipe), axes)
    check_measured(changed)
    return _checked(changed)


def _checked(experiment: "Experiment") -> "Experiment":
    """The experiment, with the winners of the run that its budget names, after a look at the names
    and values of every trial that does not wait for the tuning, and of the attacks. What of BASE
    lies outside SEARCH is said on stderr.
    """
    from rayunlearn.planning.planner import grid_groups, outside_search
    from rayunlearn.registry import check_trial

    if experiment.attacks.panel:
        from rayunlearn.attacks.panels import panel_of

        panel_of(experiment.attacks.panel)
    if experiment.budget.source:
        from rayunlearn.planning.winners import with_winners

        experiment = with_winners(experiment, check=check_trial)
    groups = grid_groups(experiment, check=check_trial)
    for note in outside_search(experiment, groups, check=check_trial):
        print(f"note: {note}", file=sys.stderr)
    return experiment


def sweep_options(chosen: argparse.Namespace) -> "Options":
    from rayunlearn.planning.plan_run import Options

    return Options(
        address=chosen.address,
        workers=chosen.workers,
        gpus_per_trial=chosen.gpus_per_trial,
        processes=chosen.processes_per_trial,
        on=chosen.on,
        rerun_changed=getattr(chosen, "rerun_changed", False),
    )
