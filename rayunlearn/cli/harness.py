"""`rayunlearn harness`: tasks of lm-evaluation-harness on chosen trials of a run."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn.cli.arguments import (
    add_address_option,
    add_command,
    add_plugin_option,
    add_resource_options,
    add_run_argument,
    sweep_options,
)
from rayunlearn.cli.attack import TRIALS_HELP
from rayunlearn.cli.output import console_for_output, print_conclusion
from rayunlearn.config import Harness, names_in
from rayunlearn.errors import require
from rayunlearn.storage.sync import local_run

if TYPE_CHECKING:
    from rich.console import Console


def add_harness_command(commands: Any) -> None:
    """`harness RUN`."""
    added = add_command(
        commands,
        "harness",
        harness,
        "ask models of a run tasks of lm-evaluation-harness, side by side, with base and gold"
        " (pip install 'rayunlearn[harness]')",
    )
    add_run_argument(added)
    added.add_argument(
        "--trials", metavar="best|pareto|grid|ID,ID", default="best", help=TRIALS_HELP
    )
    _add_task_options(added)
    add_plugin_option(added)
    add_address_option(added)
    added.add_argument(
        "--workers", metavar="N", type=int, default=0, help="tasks at once (default: one per CPU)"
    )
    add_resource_options(added)


def _add_task_options(added: argparse.ArgumentParser) -> None:
    """What is asked."""
    added.add_argument(
        "--tasks",
        metavar="TASK,...",
        required=True,
        help="tasks or groups of the harness, or of --include-path",
    )
    added.add_argument(
        "--include-path", metavar="DIR", type=Path, help="a folder with your own tasks (YAML)"
    )
    added.add_argument(
        "--limit",
        metavar="N",
        type=int,
        default=0,
        help="the first N questions of each task (default: all)",
    )
    added.add_argument(
        "--shots",
        metavar="N",
        type=int,
        help="solved examples before each question (default: the task's own number)",
    )


def harness(chosen: argparse.Namespace) -> int:
    """Each task on each chosen model, and on base and gold; what has finished is skipped."""
    from rayunlearn.cluster.sweep import attack_run
    from rayunlearn.planning.backend import unlearning_backend
    from rayunlearn.planning.harness_planner import harness_planner
    from rayunlearn.trial.load import cache_of

    folder, work, console = local_run(chosen.run), unlearning_backend(), console_for_output()
    planner = harness_planner(
        folder,
        trials=chosen.trials,
        tasks=_tasks(chosen),
        check=work.check,
        identify=work.identify,
    )
    result = attack_run(
        folder,
        planner,
        cache_of(folder),
        work=work,
        options=sweep_options(chosen),
        console=console,
    )
    print_harness(folder, [row.trial_id for row in planner.rows], console)
    return print_conclusion(result, ["rayunlearn", *sys.argv[1:]], console)


def _tasks(chosen: argparse.Namespace) -> list[Harness]:
    """A task each, held against the installed harness. Raises UserError for a mistake."""
    from rayunlearn.metrics.harness import task_manager

    names = names_in(chosen.tasks)
    require(bool(names), "--tasks takes names of tasks, separated by commas", chosen.tasks)
    include = chosen.include_path
    rule = "--include-path must be a folder with tasks"
    require(include is None or include.is_dir(), rule, str(include))
    folder = str(include.resolve()) if include else ""
    task_manager(names, folder)
    shots = "" if chosen.shots is None else str(chosen.shots)
    return [Harness(task=name, include=folder, limit=chosen.limit, shots=shots) for name in names]


def print_harness(folder: Path, trial_ids: list[str], console: "Console") -> None:
    """What the tasks gave, a line per model, task and metric, and what failed."""
    import polars as pl

    from rayunlearn.analysis.harness import harness_table
    from rayunlearn.storage.run import open_run

    table = harness_table(open_run(folder)).filter(pl.col("trial_id").is_in(trial_ids))
    for row in table.iter_rows(named=True):
        model = row["stage"] if row["stage"] != "unlearned" else row["evaluated"] or ""
        if row["metric"] is None:
            text = f"{row['status']}: {row['error']}"
        else:
            error = "" if row["stderr"] is None else f" +- {row['stderr']:.4f}"
            text = f"{row['metric']} {row['value']:.4f}{error} (n {row['n']})"
        console.print(f"{row['task']}  {model}  {text}", highlight=False, soft_wrap=True)
