"""`rayunlearn attack`: a panel of attacks on a run, or on a model that was unlearned elsewhere."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn.cli.arguments import ADDRESS_HELP, add_command, sweep_options
from rayunlearn.cli.output import console_for_output, named_trials, print_conclusion
from rayunlearn.config import parse_assignments
from rayunlearn.errors import require
from rayunlearn.storage.sync import local_run, output_place

if TYPE_CHECKING:
    from rich.console import Console

    from rayunlearn.planning.attack_planner import AttackPlanner


def add_attack_command(commands: Any) -> None:
    added = add_command(
        commands,
        "attack",
        attack,
        "attack trials of a run, or an externally unlearned model; print what is recovered, with"
        " base, gold"
        " and controls",
    )
    added.add_argument(
        "run",
        metavar="RUN",
        nargs="?",
        default="",
        help="folder or URL of a run, for example runs/hello/1",
    )
    source = (
        "best (default): most forgotten at kept utility, one per method; pareto; grid: every cell;"
        " or ids, separated by commas"
    )
    added.add_argument("--trials", metavar="best|pareto|grid|ID,ID", default="best", help=source)
    added.add_argument(
        "--panel",
        metavar="quick|black_box|coresets|full",
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
    points = (
        "most points of a recovery curve (default: 100, which is every step of the searched"
        " strengths)"
    )
    added.add_argument("--curve-points", metavar="N", type=int, help=points)
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
    added.add_argument(
        "--metric",
        metavar="NAME",
        default="",
        help="metric of the matrix (default: the objective's forgetting metric)",
    )
    added.add_argument(
        "--address",
        metavar="auto|local|ray://HOST:PORT|HOST:PORT",
        default="auto",
        help=ADDRESS_HELP,
    )
    added.add_argument(
        "--workers", metavar="N", type=int, default=0, help="attacks at once (default: one per CPU)"
    )
    added.add_argument("--gpus-per-trial", metavar="F", type=float, help="as in `run`")
    added.add_argument(
        "--processes-per-trial", metavar="N", type=int, default=1, help="as in `run`"
    )
    added.add_argument("--on", metavar="RESOURCE", default="", help="as in `run`")
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
    audit.add_argument(
        "--set",
        dest="assignments",
        metavar="NAME=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="any other setting of data, measure",
    )
    audit.add_argument(
        "--output",
        metavar="DIR|URL",
        default="runs",
        help="where the audit's run lives (default: runs)",
    )


def attack(chosen: argparse.Namespace) -> int:
    """A panel of attacks on trials of a run, or on a model that becomes the one trial of a run;
    what has finished is skipped.
    """
    from rayunlearn.attacks.panels import chosen_panel
    from rayunlearn.planning.attack_planner import AttackFiles, attack_planner
    from rayunlearn.planning.backend import unlearning_backend

    require(
        bool(chosen.run) != bool(chosen.model),
        "attack takes either a run folder or --model, got",
        (chosen.run, chosen.model),
    )
    alone = [
        f"--{name}"
        for name in ("base", "gold", "data", "assignments")
        if getattr(chosen, name) and chosen.run
    ]
    require(
        not alone,
        "these go with --model and not with a run, which has its own",
        [name.replace("assignments", "set") for name in alone],
    )
    names = [name.strip() for name in chosen.attacks.split(",")] if chosen.attacks else []
    # a mistake shows here, before an audit measures anything
    panel = chosen_panel(
        chosen.panel, names=names, n_seeds=chosen.seeds, curve_points=chosen.curve_points
    )
    work, console = unlearning_backend(), console_for_output()
    chosen.words = ["rayunlearn", *sys.argv[1:]]
    folder = _audited(chosen, console) if chosen.model else local_run(chosen.run)
    text, rephrasings = (
        str(Path(file).resolve()) if file else "" for file in (chosen.text, chosen.rephrasings)
    )
    planner = attack_planner(
        folder,
        trials="grid" if chosen.model else chosen.trials,
        panel=panel,
        reads=AttackFiles(text=text, rephrasings=rephrasings, chat_model=chosen.chat_model),
        check=work.check,
        identify=work.identify,
    )
    return run_attacks(planner, folder, chosen, console, metric=chosen.metric)


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
    from rayunlearn.reporting.html import write_report
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
    opened = open_run(folder)
    print_attack_matrices(opened, console, metric=metric)
    for line in (*failed_attack_lines(opened), f"report: {named_trials(write_report(folder))}"):
        console.print(line, highlight=False, soft_wrap=True)
    return print_conclusion(result, chosen.words, console)


def _audited(chosen: argparse.Namespace, console: "Console") -> Path:
    """The run folder of `--model`, with that model, its base and its gold measured."""
    from rayunlearn.cluster.sweep import sweep
    from rayunlearn.interop.audit import audit_of
    from rayunlearn.planning.backend import unlearning_backend

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
        output_place(chosen.output),
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
