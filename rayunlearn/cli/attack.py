"""`rayunlearn attack`: a panel of attacks on a run, or on a model that was unlearned elsewhere."""

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
    add_set_option,
    output_folder,
    sweep_options,
)
from rayunlearn.cli.output import console_for_output, named_trials, print_conclusion
from rayunlearn.config import parse_assignments
from rayunlearn.errors import require
from rayunlearn.storage.sync import local_run

if TYPE_CHECKING:
    from rich.console import Console

    from rayunlearn.attacks.panels import Panel
    from rayunlearn.planning.attack_planner import AttackFiles, AttackPlanner


def add_attack_command(commands: Any) -> None:
    """`attack RUN`, or `attack --model MODEL`."""
    added = add_command(
        commands,
        "attack",
        attack,
        "attack trials of a run, or an externally unlearned model; print what is recovered, with"
        " base, gold and controls",
    )
    add_run_argument(added, optional=True)
    add_plugin_option(added)
    _add_panel_options(added)
    _add_input_options(added)
    added.add_argument(
        "--metric",
        metavar="NAME",
        default="",
        help="metric of the matrix (default: the objective's forgetting metric)",
    )
    add_address_option(added)
    added.add_argument(
        "--workers", metavar="N", type=int, default=0, help="attacks at once (default: one per CPU)"
    )
    add_resource_options(added)
    _add_audit_options(added)


def _add_panel_options(added: argparse.ArgumentParser) -> None:
    """Which trials are attacked, and by what."""
    added.add_argument(
        "--trials", metavar="best|pareto|grid|ID,ID", default="best", help=TRIALS_HELP
    )
    added.add_argument(
        "--panel",
        metavar="quick|black_box|coresets|pretrained|full",
        default="quick",
        help="which attacks (default: quick; see docs/attacks.md)",
    )
    added.add_argument(
        "--attacks",
        metavar="NAME,NAME",
        default="",
        help="only these (see `rayunlearn list attacks`)",
    )
    added.add_argument(
        "--seeds",
        metavar="N",
        type=int,
        help="seeds of attacks that draw (default: the panel's, 3)",
    )
    added.add_argument("--curve-points", metavar="N", type=int, help=CURVE_POINTS_HELP)
    added.add_argument(
        "--utility-loss", metavar="F", type=float, default=1.0, help=UTILITY_LOSS_HELP
    )


def _add_input_options(added: argparse.ArgumentParser) -> None:
    """Texts and models that some attacks read."""
    added.add_argument(
        "--text",
        metavar="FILE",
        default="",
        help="unrelated text to train on: .txt by paragraphs, or a data file (default: our own)",
    )
    added.add_argument(
        "--rephrasings",
        metavar="FILE",
        default="",
        help="questions in other words: columns doc_id, condition, text",
    )
    added.add_argument(
        "--chat-model",
        metavar="MODEL",
        default="",
        help="directory or Hub name of a chat model that rephrases",
    )


def _add_audit_options(added: argparse.ArgumentParser) -> None:
    """An unlearned model from outside, its references and its data."""
    audit = added.add_argument_group("an externally unlearned model, instead of RUN")
    audit.add_argument(
        "--model",
        metavar="MODEL",
        default="",
        help="the unlearned model: a directory or Hub name, safetensors only",
    )
    audit.add_argument("--base", metavar="MODEL", default="", help="the model before unlearning")
    audit.add_argument(
        "--gold",
        metavar="MODEL",
        default="",
        help="a model that never saw what was to be forgotten (default: none)",
    )
    audit.add_argument(
        "--benchmark",
        metavar="NAME",
        default="files",
        help="as data.name: tofu, wmdp-bio, ..., files (the default)",
    )
    audit.add_argument(
        "--data",
        metavar="PATH",
        default="",
        help="as data.path: folder, file or Hub name of the data",
    )
    add_set_option(audit, "any other setting of data, measure")
    audit.add_argument(
        "--output",
        metavar="DIR|URL",
        default="runs",
        help="where the audit's run lives (default: runs)",
    )


TRIALS_HELP = (
    "best (default): nearest to the target (objective.target) at kept utility, one per method;"
    " pareto; grid: every cell; or ids, separated by commas"
)

CURVE_POINTS_HELP = (
    "most points of a recovery curve (default: 100, which is every step of the searched strengths)"
)


UTILITY_LOSS_HELP = (
    "share of the attacked model's utility that a searched strength may cost, for example 0.05"
    " (default: 1, all of it)"
)


def attack(chosen: argparse.Namespace) -> int:
    """A panel of attacks on trials of a run, or on a model that becomes the one trial of a run;
    what has finished is skipped.
    """
    from rayunlearn.planning.attack_planner import attack_planner
    from rayunlearn.planning.backend import unlearning_backend

    # a mistake shows here, before an audit measures anything
    panel = panel_of_options(chosen)
    work, console = unlearning_backend(), console_for_output()
    chosen.words = ["rayunlearn", *sys.argv[1:]]
    folder = _audited(chosen, console) if chosen.model else local_run(chosen.run)
    planner = attack_planner(
        folder,
        trials="grid" if chosen.model else chosen.trials,
        panel=panel,
        reads=_attack_files(chosen),
        check=work.check,
        identify=work.identify,
    )
    return run_attacks(planner, folder, chosen, console, metric=chosen.metric)


def panel_of_options(chosen: argparse.Namespace) -> "Panel":
    """The attacks that the options name. Raises UserError for a mistake in them, in the metric or
    in what is to be attacked.
    """
    from rayunlearn.attacks.panels import chosen_panel
    from rayunlearn.metrics.evaluate import chosen_metrics

    _check_target(chosen)
    if chosen.metric:
        chosen_metrics(chosen.metric)
    return chosen_panel(
        chosen.panel,
        names=[name.strip() for name in chosen.attacks.split(",")] if chosen.attacks else [],
        n_seeds=chosen.seeds,
        curve_points=chosen.curve_points,
        utility_loss=chosen.utility_loss,
    )


def _check_target(chosen: argparse.Namespace) -> None:
    """Raises UserError unless there is a run or a model, and only what goes with it."""
    require(
        bool(chosen.run) != bool(chosen.model),
        "attack takes either a run folder or --model, got",
        (chosen.run, chosen.model),
    )
    names = ("base", "gold", "data", "assignments")
    alone = [f"--{name}" for name in names if getattr(chosen, name) and chosen.run]
    require(
        not alone,
        "these go with --model and not with a run, which has its own",
        [name.replace("assignments", "set") for name in alone],
    )


def _attack_files(chosen: argparse.Namespace) -> "AttackFiles":
    """What the attacks read, by absolute path."""
    from rayunlearn.planning.attack_planner import AttackFiles

    text, rephrasings = (
        str(Path(file).resolve()) if file else "" for file in (chosen.text, chosen.rephrasings)
    )
    return AttackFiles(text=text, rephrasings=rephrasings, chat_model=chosen.chat_model)


def run_attacks(
    planner: "AttackPlanner",
    folder: Path,
    chosen: argparse.Namespace,
    console: "Console",
    *,
    metric: str = "",
) -> int:
    """Run the plan of attacks, print the matrix, write the report."""
    from rayunlearn.cluster.sweep import attack_run
    from rayunlearn.planning.backend import unlearning_backend
    from rayunlearn.reporting.console import print_attack_matrices
    from rayunlearn.reporting.html import write_page
    from rayunlearn.reporting.sentences import failed_attack_lines
    from rayunlearn.storage.run import open_run
    from rayunlearn.trial.load import cache_of

    result = attack_run(
        folder,
        planner,
        cache_of(folder),
        work=unlearning_backend(),
        options=sweep_options(chosen),
        console=console,
    )
    opened = open_run(folder).in_memory()
    print_attack_matrices(opened, console, metric=metric)
    page = write_page(opened, folder / "report.html")
    for line in (*failed_attack_lines(opened), f"report: {named_trials(page)}"):
        console.print(line, highlight=False, soft_wrap=True)
    return print_conclusion(result, chosen.words, console)


def _audited(chosen: argparse.Namespace, console: "Console") -> Path:
    """The run folder of `--model`, with that model, its base and its gold measured."""
    from rayunlearn.cluster.sweep import sweep
    from rayunlearn.interop.audit import audit_of
    from rayunlearn.planning.backend import unlearning_backend

    output = output_folder(chosen.output)
    data = {"data.name": chosen.benchmark} | ({"data.path": chosen.data} if chosen.data else {})
    experiment = audit_of(
        chosen.model,
        chosen.base,
        chosen.gold,
        data | parse_assignments(chosen.assignments),
        metric=chosen.metric,
    )
    measured = sweep(
        experiment,
        output,
        work=unlearning_backend(),
        options=sweep_options(chosen),
        console=console,
    )
    require(
        measured.done == measured.total,
        f"the models must be measured before they are attacked; see {measured.run}; not done",
        measured.total - measured.done,
    )
    return measured.run
