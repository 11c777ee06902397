"""The command line: one function per command, named as the command is. Nothing heavy is imported
until it is needed.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn.cli.arguments import (
    DONE,
    add_command,
    add_plugin_option,
    add_run_argument,
    add_trial_argument,
)
from rayunlearn.cli.output import console_for_output, print_table, require_writable
from rayunlearn.errors import require, unknown_name
from rayunlearn.storage.sync import local_run

if TYPE_CHECKING:
    from rayunlearn.reporting.heatmap import HeatMap

LISTED_TABLES = (
    "methods",
    "recipes",
    "selectors",
    "extractors",
    "metrics",
    "attacks",
    "settings",
    "experiments",
)


def add_report_command(commands: Any) -> None:
    """`report RUN`."""
    added = add_command(
        commands, "report", report, "rebuild the report of a run from its Parquet files"
    )
    add_run_argument(added)
    forms = "html prints the table too; pdf needs the extra `pdf` (default: html)"
    added.add_argument(
        "--format", dest="form", metavar="html|md|json|pdf", default="html", help=forms
    )
    added.add_argument(
        "--output",
        metavar="FILE|DIR",
        default="",
        help="where it is written, for a run that is read-only (default: report.* in the run)",
    )


def add_show_command(commands: Any) -> None:
    """`show RUN [TRIAL]`."""
    added = add_command(
        commands,
        "show",
        show,
        "list the trials of a run, or print one: its settings, its status, its numbers",
    )
    add_run_argument(added)
    add_trial_argument(added, without="all of them are listed")
    added.add_argument(
        "--texts",
        metavar="N",
        type=int,
        default=0,
        help="also print what it wrote, base and gold beside it, for the N documents of the forget"
        " set and the N others that changed most (default: 0)",
    )


def add_frontier_command(commands: Any) -> None:
    """`frontier RUN`."""
    added = add_command(
        commands,
        "frontier",
        show_frontier,
        "find the smallest coreset statistically equivalent to the full forget set",
    )
    add_run_argument(added)
    added.add_argument(
        "--margin",
        metavar="M",
        type=float,
        default=0.1,
        help="difference of either metric that does not matter (default: 0.1)",
    )


def add_studies_command(commands: Any) -> None:
    """`studies RUN`."""
    added = add_command(
        commands,
        "studies",
        studies,
        "write the run's Optuna studies as a SQLite file that optuna-dashboard opens",
    )
    add_run_argument(added)
    added.add_argument(
        "--output", metavar="FILE", default="", help="default: studies.db in the run"
    )


def add_explain_command(commands: Any) -> None:
    """`explain RUN TRIAL`."""
    added = add_command(
        commands,
        "explain",
        explain,
        "show what the words of a question did for its answer, before and after a trial",
    )
    add_run_argument(added)
    add_trial_argument(added)
    added.add_argument(
        "--doc",
        metavar="ID",
        default="",
        help=(
            "question, or the beginning of its id (default: the first of the forget set that the"
            " run explains; where it explains none, its questions are listed)"
        ),
    )
    add_plugin_option(added)


def add_path_command(commands: Any) -> None:
    """`path RUN TRIAL TRIAL`."""
    added = add_command(
        commands,
        "path",
        path,
        "measure the models on the straight line between the weights of two trials",
    )
    add_run_argument(added)
    add_trial_argument(added, "first")
    added.add_argument("second", metavar="TRIAL", help="another trial of the same architecture")
    added.add_argument(
        "--points",
        metavar="N",
        type=int,
        default=11,
        help="models that are measured, both ends counted (default: 11)",
    )
    add_plugin_option(added)


def add_list_command(commands: Any) -> None:
    """`list TABLE`."""
    added = add_command(
        commands,
        "list",
        show_list,
        "list methods, recipes, selectors, extractors, metrics, attacks (hyperparameters, defaults,"
        " sources), settings (meaning, default, allowed values) or experiments",
    )
    added.add_argument("what", metavar="|".join(LISTED_TABLES), help="which table")
    add_plugin_option(added)


def report(chosen: argparse.Namespace) -> int:
    """The report in one form, from Parquet alone; html with the table on the terminal."""
    from rayunlearn.reporting.formats import report_file, write_as

    folder = local_run(chosen.run)
    file = report_file(folder, chosen.form, chosen.output)
    require_writable(file.parent, "--output names another place for the report")
    if chosen.form == "html":
        print_table(folder, console_for_output(), file)
    else:
        print(write_as(folder, chosen.form, file))
    return DONE


def show(chosen: argparse.Namespace) -> int:
    """One trial, or the list of them."""
    from rayunlearn.reporting.console import print_texts, print_trial, print_trials

    require(chosen.texts >= 0, "--texts must be >= 0", chosen.texts)
    require(
        bool(chosen.trial) or not chosen.texts,
        "--texts needs a trial (an id, or best)",
        chosen.trial,
    )
    run, console = local_run(chosen.run), console_for_output()
    if not chosen.trial:
        print_trials(run, console)
        return DONE
    print_trial(run, chosen.trial, console)
    if chosen.texts:
        print_texts(run, chosen.trial, chosen.texts, console)
    return DONE


def show_frontier(chosen: argparse.Namespace) -> int:
    """The smallest ratio whose forgetting and utility are equivalent to the full set's, per method
    and selector.
    """
    from rayunlearn.analysis.equivalence import (
        EquivalenceCriterion,
        frontier_of_run,
        widest_margin,
    )
    from rayunlearn.reporting.sentences import frontier_in_words
    from rayunlearn.storage.run import open_run

    standard = EquivalenceCriterion(margin=chosen.margin)
    run = open_run(local_run(chosen.run))
    largest = widest_margin(run)
    rule = f"--margin must be < {largest:g}, as far as the metrics of this run can differ"
    require(chosen.margin < largest, rule, chosen.margin)
    lines = frontier_in_words(frontier_of_run(run, standard), standard)
    nothing = (
        "nothing to compare: no method was trained on the full forget set and on a part of it"
        " (axis select.ratio), each with at least two seeds"
    )
    for line in lines or [nothing]:
        print(line)
    return DONE


def explain(chosen: argparse.Namespace) -> int:
    """Heat maps from the run's rows; where there are none, of the trial's weights rebuilt, and the
    list of documents where none is named.
    """
    from rayunlearn.analysis.trial_choice import chosen_trial
    from rayunlearn.reporting.console import print_documents, print_heat_map
    from rayunlearn.reporting.heatmap import trial_maps
    from rayunlearn.storage.run import open_run

    folder, console = local_run(chosen.run), console_for_output()
    run = open_run(folder)
    trial_id = chosen_trial(run, chosen.trial)
    maps = trial_maps(run, trial_id, chosen.doc)
    if not maps and not chosen.doc:
        print_documents(run, trial_id, console)
        return DONE
    maps = maps or _rebuilt_maps(folder, trial_id, chosen.doc)
    for heat in maps:
        print_heat_map(heat, console)
    console.print(
        "blue: supports the right answer, orange: speaks against it; * key token; nats of mean"
        " log p",
        style="dim",
        highlight=False,
    )
    return DONE


def _rebuilt_maps(folder: Path, trial_id: str, doc_id: str) -> "list[HeatMap]":
    """Heat maps of one question, from the trial's weights."""
    import polars as pl

    from rayunlearn.reporting.heatmap import pair_map
    from rayunlearn.trial.explain import explain_trial
    from rayunlearn.trial.load import load_trial

    return [
        pair_map(doc, split, pl.DataFrame(before), pl.DataFrame(after))
        for doc, split, before, after in explain_trial(load_trial(folder, trial_id), doc_id)
    ]


def path(chosen: argparse.Namespace) -> int:
    """The line between two trials, and its barriers."""
    from rayunlearn.analysis.trial_choice import chosen_trial
    from rayunlearn.reporting.connectivity_tables import path_section
    from rayunlearn.reporting.console import print_section
    from rayunlearn.storage.run import open_run
    from rayunlearn.trial.load import load_trial
    from rayunlearn.trial.weight_paths import between_trials

    require(chosen.points >= 3, "--points must be >= 3", chosen.points)
    run = local_run(chosen.run)
    names = [chosen_trial(open_run(run), name) for name in (chosen.first, chosen.second)]
    first, other = (load_trial(run, trial_id) for trial_id in names)
    rows = between_trials(first, other, points=chosen.points)
    print_section(path_section(rows, first.trial_id, other.trial_id), console_for_output())
    return DONE


def studies(chosen: argparse.Namespace) -> int:
    """The studies as a file, and how to look at it."""
    from rayunlearn.planning.study_export import write_studies

    run = local_run(chosen.run)
    file = Path(chosen.output) if chosen.output else run / "studies.db"
    require(
        not file.is_dir(), "--output must be a file, or one to be made; it is a folder", str(file)
    )
    require_writable(file.parent, "--output names another place for the file")
    names = write_studies(run, file.resolve())
    print(f"{len(names)} {'study' if len(names) == 1 else 'studies'} in {file}; to look at them:")
    print(f"  pip install optuna-dashboard && optuna-dashboard sqlite:///{file}")
    return DONE


def show_list(chosen: argparse.Namespace) -> int:
    """One of the tables."""
    from rayunlearn.cli import listing

    printers: Mapping[str, Callable[[Any], None]] = {
        "methods": listing.print_methods,
        "recipes": listing.print_recipes,
        "selectors": listing.print_selectors,
        "extractors": listing.print_extractors,
        "metrics": listing.print_metrics,
        "attacks": listing.print_attacks,
        "settings": listing.print_settings,
        "experiments": listing.print_experiments,
    }
    if chosen.what not in printers:
        raise unknown_name("list", chosen.what, LISTED_TABLES)
    printers[chosen.what](console_for_output())
    return DONE
