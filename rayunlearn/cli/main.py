"""The command line: parses the arguments and calls one command."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rayunlearn.cli.arguments import DONE, INTERRUPTED, MISTAKE, add_command, add_experiment_options
from rayunlearn.cli.attack import add_attack_command
from rayunlearn.cli.check import add_check_command
from rayunlearn.cli.corpus import add_books_command, add_keywords_command, add_score_command
from rayunlearn.cli.inspect import (
    LISTED_TABLES,
    explain,
    path,
    report,
    show,
    show_frontier,
    show_list,
    studies,
)
from rayunlearn.cli.jobs import add_submit_command
from rayunlearn.cli.models import add_evaluate_command, add_export_command
from rayunlearn.cli.output import sigterm_as_interrupt
from rayunlearn.cli.run import plan, prepare, run
from rayunlearn.errors import UserError, without_secrets
from rayunlearn.lazy import quiet_libraries


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 not everything finished, 2 a mistake in
    the request, 130 interrupted by Ctrl-C, 143 by SIGTERM.
    """
    chosen = parser().parse_args(arguments)
    quiet_libraries()
    command: Callable[[argparse.Namespace], int] = chosen.command
    try:
        with sigterm_as_interrupt() as sigterm:
            status = command(chosen)
        return sigterm.status if status == INTERRUPTED else status
    except UserError as error:
        print(f"rayunlearn: {without_secrets(str(error))}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("rayunlearn: interrupted", file=sys.stderr)
        return sigterm.status
    # `rayunlearn list methods | head`
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    # a panic of a reader's Rust code is no Exception
    except BaseException as error:
        words = _unreadable_table(error)
        if not words:
            raise
        print(f"rayunlearn: {without_secrets(words)}", file=sys.stderr)
        return MISTAKE


def _unreadable_table(error: BaseException) -> str:
    """What a reader of tables met, in one line; '' where it is not a reader's error."""
    # nobody who reads no table has loaded it
    if "polars" not in sys.modules:
        return ""
    from rayunlearn.storage.parquet import reader_failure

    return reader_failure(error)


def parser() -> argparse.ArgumentParser:
    """Every command with its help."""
    top = argparse.ArgumentParser(
        prog="rayunlearn",
        description=(
            "Experiments on unlearning in language models: how little of the forget set is enough?"
        ),
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_experiment_options(
        commands,
        "run",
        run,
        "run an experiment: what has finished is skipped, the rest runs on Ray",
        on_cluster=True,
    )
    plan_parser = add_experiment_options(
        commands,
        "plan",
        plan,
        "say what `run` would do, how long it takes and what it needs, without Ray",
    )
    plan_parser.add_argument(
        "--all", action="store_true", help="print every cell, also of a plan with many"
    )
    add_experiment_options(
        commands,
        "prepare",
        prepare,
        "build the corpora and train the base and gold models, nothing else",
        on_cluster=True,
    )
    report_parser = add_command(
        commands, "report", report, "rebuild the report of a run from its Parquet files"
    )
    report_parser.add_argument(
        "run", metavar="RUN", help="folder or URL of a run, for example runs/hello/1"
    )
    forms = "html prints the table too; pdf needs the extra `pdf` (default: html)"
    report_parser.add_argument(
        "--format", dest="form", metavar="html|md|json|pdf", default="html", help=forms
    )
    report_parser.add_argument(
        "--output",
        metavar="FILE|DIR",
        default="",
        help="where it is written, for a run that is read-only (default: report.* in the run)",
    )
    show_parser = add_command(
        commands, "show", show, "print one trial: its settings, its status, its numbers"
    )
    show_parser.add_argument(
        "run", metavar="RUN", help="folder or URL of a run, for example runs/hello/1"
    )
    show_parser.add_argument("trial", metavar="TRIAL", help="trial id, or the beginning of it")
    frontier_parser = add_command(
        commands,
        "frontier",
        show_frontier,
        "find the smallest coreset statistically equivalent to the full forget set",
    )
    frontier_parser.add_argument(
        "run", metavar="RUN", help="folder or URL of a run, for example runs/hello/1"
    )
    frontier_parser.add_argument(
        "--margin",
        metavar="M",
        type=float,
        default=0.1,
        help="difference of either metric that does not matter (default: 0.1)",
    )
    studies_parser = add_command(
        commands,
        "studies",
        studies,
        "write the run's Optuna studies as a SQLite file that optuna-dashboard opens",
    )
    studies_parser.add_argument(
        "run", metavar="RUN", help="folder or URL of a run, for example runs/hello/1"
    )
    studies_parser.add_argument(
        "--output", metavar="FILE", default="", help="default: studies.db in the run"
    )
    add_check_command(commands)
    add_attack_command(commands)
    _add_explain(commands)
    list_parser = add_command(
        commands,
        "list",
        show_list,
        "list methods, recipes, selectors, extractors, metrics (hyperparameters, defaults, sources)"
        " or experiments",
    )
    list_parser.add_argument("what", metavar="|".join(LISTED_TABLES), help="which table")
    add_keywords_command(commands)
    add_score_command(commands)
    add_evaluate_command(commands)
    add_export_command(commands)
    add_submit_command(commands)
    add_books_command(commands)
    return top


def _add_explain(commands: Any) -> None:
    added = add_command(
        commands,
        "explain",
        explain,
        "show what the words of a question did for its answer, before and after a trial",
    )
    added.add_argument(
        "run", metavar="RUN", help="folder or URL of a run, for example runs/hello/1"
    )
    added.add_argument("trial", metavar="TRIAL", help="trial id, or the beginning of it")
    added.add_argument(
        "--doc",
        metavar="ID",
        default="",
        help="question, or the beginning of its id (default: the first of the forget set)",
    )
    path_parser = add_command(
        commands,
        "path",
        path,
        "measure the models on the straight line between the weights of two trials",
    )
    path_parser.add_argument(
        "run", metavar="RUN", help="folder or URL of a run, for example runs/hello/1"
    )
    path_parser.add_argument("first", metavar="TRIAL", help="trial id, or the beginning of it")
    path_parser.add_argument(
        "second", metavar="TRIAL", help="another trial of the same architecture"
    )
    path_parser.add_argument(
        "--points",
        metavar="N",
        type=int,
        default=11,
        help="models that are measured, both ends counted (default: 11)",
    )
