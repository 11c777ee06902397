"""`make findings`: run the experiments of `parts.py`, then write their pages:
`python -m experiments.findings.make [--only NAME,NAME] [--plan]`.

It says first what is left of each and how long that takes. What has finished is skipped, so that
the same command goes on after an interruption.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.findings.parts import Part, parts_of
from rayunlearn.cli.arguments import DONE, INCOMPLETE, MISTAKE
from rayunlearn.errors import UserError
from rayunlearn.experiment import load
from rayunlearn.planning.progress import format_duration

HOME = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class PartPlan:
    """A part, how many trials it has and how many of them have ended, the seconds that the rest
    takes here, and why it cannot run on this machine ('': it can). Attacks and the training of base
    and gold are not in these numbers.
    """

    part: Part
    trials: int = 0
    finished: int = 0
    seconds: float = 0.0
    attacks: str = ""
    problem: str = ""


def plan_of(part: Part, output: Path, workers: int) -> PartPlan:
    """What `rayunlearn plan` says of a part."""
    from rayunlearn.cluster.sweep import cached_results
    from rayunlearn.planning.backend import unlearning_backend
    from rayunlearn.planning.cost import estimate, size_of, trainings_left
    from rayunlearn.planning.planner import Planner

    work, folder = unlearning_backend(), part.folder(output)
    try:
        experiment = load(HOME / f"{part.experiment}.py", preset=part.preset)
        results = cached_results(folder, experiment)
        agenda = Planner(experiment, work.check, work.identify, work.notes_of).agenda(results)
        left = trainings_left(agenda, results)
        seconds = left * estimate(folder, agenda, size_of=size_of).seconds / workers if left else 0
    except UserError as problem:
        return PartPlan(part=part, problem=str(problem))
    return PartPlan(
        part=part,
        trials=agenda.total,
        finished=agenda.total - agenda.remaining(results),
        seconds=seconds,
        attacks=part.attacks or experiment.attacks.panel,
    )


def plan_table(plans: Sequence[PartPlan]) -> Table:
    """A row for each part: trials, what has finished, the time that is left, and attacks."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("experiment", "preset", "trials", "finished", "time left", "then attacks"):
        table.add_column(header, justify="right" if header in ("trials", "finished") else "left")
    for plan in plans:
        part = plan.part
        numbers = (str(plan.trials), str(plan.finished), format_duration(plan.seconds))
        words = ("", "", "cannot run here") if plan.problem else numbers
        table.add_row(part.experiment, part.preset, *words, "yes" if plan.attacks else "")
    return table


def run_parts(parts: Sequence[Part], output: Path, run: Callable[[list[str]], int]) -> int:
    """`run` the commands of every part, one after the other. Returns DONE, or the status of the
    first command that did not end so, after which no other is run.
    """
    for part in parts:
        for command in part.commands(output):
            if (status := run(command)) != DONE:
                return status
    return DONE


def rayunlearn_status(words: list[str]) -> int:
    """Exit status of `rayunlearn` with these words, in a process of its own."""
    return subprocess.run([sys.executable, "-m", "rayunlearn", *words], check=False).returncode


def write_pages(output: Path, docs: Path) -> int:
    """The pages of findings from the runs that are there, and the paper that cites them."""
    for words in (["page", str(output), str(docs)], ["paper", str(docs)]):
        module, *rest = words
        command = [sys.executable, "-m", f"experiments.findings.{module}", *rest]
        if status := subprocess.run(command, check=False).returncode:
            return status
    return DONE


def main() -> int:
    """Say what is left, run it, write the pages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--only", metavar="NAME,NAME", default="", help="only these experiments")
    parser.add_argument("--plan", action="store_true", help="say what is left and stop")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="where runs live")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where pages are written")
    chosen = parser.parse_args()
    console, workers = Console(), len(os.sched_getaffinity(0))
    try:
        parts = parts_of(chosen.only)
    except UserError as mistake:
        print(f"findings: {mistake}", file=sys.stderr)
        return MISTAKE
    plans = []
    for part in parts:
        with console.status(f"planning {part.experiment} ({part.preset})"):
            plans.append(plan_of(part, chosen.output, workers))
    console.print(plan_table(plans))
    for plan in plans:
        if plan.problem:
            said = f"{plan.part.experiment} ({plan.part.preset}) cannot run here: {plan.problem}"
            console.print(said, highlight=False, markup=False, soft_wrap=True)
    runnable = [plan for plan in plans if not plan.problem]
    total = format_duration(sum(plan.seconds for plan in runnable))
    console.print(
        f"with {workers} workers {total}; training base and gold, and attacks, come on top",
        highlight=False,
    )
    if chosen.plan:
        return DONE
    status = run_parts([plan.part for plan in runnable], chosen.output, rayunlearn_status)
    status = status or write_pages(chosen.output, chosen.docs)
    return status or (DONE if runnable == plans else INCOMPLETE)


if __name__ == "__main__":
    sys.exit(main())
