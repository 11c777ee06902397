"""The command line: parses the arguments and calls one command."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from rayunlearn.cli.arguments import DONE, INTERRUPTED, MISTAKE, load_chosen_plugins
from rayunlearn.cli.attack import add_attack_command
from rayunlearn.cli.cards import add_card_command, add_compare_command
from rayunlearn.cli.check import add_check_command
from rayunlearn.cli.corpus import add_books_command, add_keywords_command, add_score_command
from rayunlearn.cli.harness import add_harness_command
from rayunlearn.cli.init import add_init_command
from rayunlearn.cli.inspect import (
    add_explain_command,
    add_frontier_command,
    add_list_command,
    add_path_command,
    add_report_command,
    add_show_command,
    add_studies_command,
)
from rayunlearn.cli.jobs import add_jobs_command, add_submit_command
from rayunlearn.cli.models import add_convert_command, add_evaluate_command, add_export_command
from rayunlearn.cli.output import print_any_text, sigterm_as_interrupt
from rayunlearn.cli.run import add_plan_command, add_prepare_command, add_run_command
from rayunlearn.errors import UserError, without_secrets
from rayunlearn.lazy import quiet_libraries
from rayunlearn.trial.narration import narrated

# the help lists the commands in this order
COMMANDS = (
    add_init_command,
    add_run_command,
    add_plan_command,
    add_prepare_command,
    add_report_command,
    add_show_command,
    add_frontier_command,
    add_studies_command,
    add_check_command,
    add_attack_command,
    add_harness_command,
    add_explain_command,
    add_path_command,
    add_list_command,
    add_keywords_command,
    add_score_command,
    add_evaluate_command,
    add_export_command,
    add_convert_command,
    add_card_command,
    add_compare_command,
    add_submit_command,
    add_jobs_command,
    add_books_command,
)

# what a command does first; the parts that follow say so themselves
FIRST_PART = {
    "run": "reading the experiment",
    "plan": "reading the experiment, its data and its models",
    "prepare": "reading the experiment",
    "submit": "reading the experiment",
    "report": "reading the run and drawing its report",
    "attack": "reading the run",
    "harness": "reading the run",
    "evaluate": "loading the model",
    "export": "loading the trial",
    "explain": "reading the run",
    "path": "loading the two trials",
    "show": "reading the run",
    "check": "checking the files of the run",
    "frontier": "testing equivalence",
    "studies": "rebuilding the studies",
    "convert": "reading the file",
    "jobs": "asking the job server",
    "keywords": "reading the corpus",
    "score": "reading the corpus",
    "books": "cutting the books",
    "card": "reading the run and writing its card",
    "compare": "reading the cards",
    "list": "loading the tables",
    "init": "writing the experiment",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 not everything finished, 2 a mistake in
    the request, 130 interrupted by Ctrl-C, 143 by SIGTERM.
    """
    print_any_text()
    chosen = parser().parse_args(arguments)
    quiet_libraries()
    command: Callable[[argparse.Namespace], int] = chosen.command
    # as a program only: to a caller in Python nothing is said that was not asked for
    narration = (
        narrated(FIRST_PART.get(chosen.name, "working")) if arguments is None else nullcontext()
    )
    try:
        with sigterm_as_interrupt() as sigterm, narration:
            load_chosen_plugins(chosen)
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
    for add in COMMANDS:
        add(commands)
    return top
