"""The command line: one function per command, named as the command is. Nothing heavy is imported
until it is needed.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rayunlearn.cli.arguments import DONE
from rayunlearn.cli.output import console_for_output, print_table, require_writable
from rayunlearn.errors import require, unknown_name
from rayunlearn.storage.sync import local_run

LISTED_TABLES = (
    "methods",
    "recipes",
    "selectors",
    "extractors",
    "metrics",
    "attacks",
    "experiments",
)


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
    """One trial."""
    from rayunlearn.reporting.console import print_trial

    print_trial(local_run(chosen.run), chosen.trial, console_for_output())
    return DONE


def show_frontier(chosen: argparse.Namespace) -> int:
    """The smallest ratio whose forgetting and utility are equivalent to the full set's, per method
    and selector.
    """
    from rayunlearn.analysis.equivalence import EquivalenceCriterion, frontier_of_run
    from rayunlearn.reporting.sentences import frontier_in_words
    from rayunlearn.storage.run import open_run

    standard = EquivalenceCriterion(margin=chosen.margin)
    for line in frontier_in_words(
        frontier_of_run(open_run(local_run(chosen.run)), standard), standard
    ):
        print(line)
    return DONE


def explain(chosen: argparse.Namespace) -> int:
    """Heat maps from the run's rows; where there are none, of the trial's weights rebuilt."""
    import polars as pl

    from rayunlearn.reporting.console import print_heat_map
    from rayunlearn.reporting.heatmap import pair_map, trial_maps
    from rayunlearn.storage.run import find_trial, open_run

    folder, console = local_run(chosen.run), console_for_output()
    run = open_run(folder)
    trial_id = find_trial(
        run.trials.select("trial_id").collect()["trial_id"].to_list(), chosen.trial
    )
    maps = trial_maps(run, trial_id, chosen.doc)
    if not maps:
        require(
            bool(chosen.doc),
            "--doc must name a question where the run explains nothing (explain.documents 0)",
            chosen.doc,
        )
        from rayunlearn.trial.explain import explain_trial
        from rayunlearn.trial.load import load_trial

        sections = explain_trial(load_trial(folder, trial_id), chosen.doc)
        maps = [
            pair_map(doc, split, pl.DataFrame(before), pl.DataFrame(after))
            for doc, split, before, after in sections
        ]
    for heat in maps:
        print_heat_map(heat, console)
    console.print(
        "blue: supports the right answer, orange: speaks against it; * key token; nats of mean"
        " log p",
        style="dim",
        highlight=False,
    )
    return DONE


def path(chosen: argparse.Namespace) -> int:
    """The line between two trials, and its barriers."""
    from rayunlearn.reporting.connectivity_tables import path_section
    from rayunlearn.reporting.console import print_section
    from rayunlearn.trial.load import load_trial
    from rayunlearn.trial.weight_paths import between_trials

    require(chosen.points >= 3, "--points must be >= 3", chosen.points)
    run = local_run(chosen.run)
    first, other = (load_trial(run, trial_id) for trial_id in (chosen.first, chosen.second))
    rows = between_trials(first, other, points=chosen.points)
    print_section(path_section(rows, first.trial_id, other.trial_id), console_for_output())
    return DONE


def studies(chosen: argparse.Namespace) -> int:
    """The studies as a file, and how to look at it."""
    from rayunlearn.planning.study_export import write_studies

    run = local_run(chosen.run)
    file = Path(chosen.output) if chosen.output else run / "studies.db"
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
        "experiments": listing.print_experiments,
    }
    if chosen.what not in printers:
        raise unknown_name("list", chosen.what, LISTED_TABLES)
    printers[chosen.what](console_for_output())
    return DONE
