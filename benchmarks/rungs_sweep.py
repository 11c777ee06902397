"""What rungs save of a real experiment, and whether the same wins: tuning with and without them.

    python -m benchmarks.rungs_sweep FOLDER --rungs 0.33,0.67 [--page docs/search.md]

The tuning of `experiments/coreset_effect.py`, its settings, sampler and budget as they are, once
without and once with rungs, trial by trial in turn in one process; CPU time. Of the grid three
seeds of each winner on the full forget set run: they say what a trial of the grid takes and how
much of a difference between two winners is luck. The rest of the grid is the same with and without
rungs, and is counted at that price. A second call goes on where the first ended.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.rungs import write_page
from benchmarks.rungs_pool import planner_of
from rayunlearn.experiment import Budget, load
from rayunlearn.planning.outcomes import TrialResult, trial_results
from rayunlearn.planning.planner import PlannedTrial, Planner
from rayunlearn.schema import PRUNED
from rayunlearn.storage.run import end_as_pruned
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.workspace import prepare_models

NAME = "coreset_effect"
SEEDS = (0, 1, 2)
BEGIN, END = (f"<!-- benchmarks.rungs_sweep: {word} -->" for word in ("begin", "end"))


@dataclass
class Arm:
    """The experiment with or without rungs: its run, what has finished there, and CPU seconds by
    trial and share of its steps, kept in a file.
    """

    planner: Planner
    run: Path
    cache: Path

    @property
    def results(self) -> dict[str, TrialResult]:
        """What the files say."""
        return trial_results(self.run, self.planner.experiment.objective, with_curves=True)

    @property
    def seconds(self) -> list[dict[str, object]]:
        """One entry for each piece of a trial that ran."""
        path = self.run / "seconds.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def rows(self, group: str, *roles: str) -> list[PlannedTrial]:
        """What can run now of a group, and of base and gold."""
        agenda = self.planner.agenda(self.results)
        for planned in agenda.pruned:
            end_as_pruned(self.run, planned.trial_id)
        if agenda.pruned:
            return self.rows(group, *roles)
        return [row for row in agenda.ready if row.role in roles and row.group in (group, "{}")]

    def train(self, planned: PlannedTrial) -> None:
        """Run a trial as far as the plan says, and note the CPU time that it took."""
        workspace = prepare_models(planned.trial, self.cache, lambda *_: None)
        started = time.process_time()
        run_trial(planned.trial, workspace, self.run, NAME, "1", rungs=planned.rungs)
        entry = {
            "trial_id": planned.trial_id,
            "role": planned.role,
            "group": planned.group,
            "seconds": time.process_time() - started,
        }
        with (self.run / "seconds.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def tuned(self, group: str) -> Iterator[None]:
        """The tuning of a group, a step for each piece of a trial."""
        while ready := self.rows(group, "base", "gold", "tuning"):
            for planned in sorted(ready, key=lambda row: row.role == "tuning"):
                self.train(planned)
                yield

    def winners(self, group: str) -> list[PlannedTrial]:
        """The grid's trials on the full forget set, one for each of the first seeds."""
        rows = self.planner.agenda(self.results).rows
        full = [row for row in rows if row.group == group and row.role == "grid"]
        return [
            row for row in full if row.trial.select.ratio == 1.0 and row.trial.train.seed in SEEDS
        ]


def arm_of(folder: Path, rungs: str, eta: float, batch: int) -> Arm:
    """The experiment with these rungs; `batch`: trials of a batch, 0 for the experiment's own."""
    experiment = load(f"experiments/{NAME}.py")
    batch = batch or experiment.budget.batch
    budget = replace(experiment.budget, rungs=rungs, eta=eta, batch=batch)
    run = folder / NAME / f"sweep-{rungs}-{eta:g}-{batch}"
    run.mkdir(parents=True, exist_ok=True)
    return Arm(planner_of(replace(experiment, budget=budget)), run, folder / "cache")


def in_turn(*parts: Iterator[None]) -> None:
    """One step of each, again and again."""
    remaining = list(parts)
    while remaining:
        remaining = [part for part in remaining if next(part, StopIteration) is not StopIteration]


def group_row(group: str, plain: Arm, halved: Arm) -> dict[str, object]:
    """Both tunings of a group, their winners with seeds, and what they took."""
    in_turn(plain.tuned(group), halved.tuned(group))
    row: dict[str, object] = {"group": group}
    for name, arm in (("plain", plain), ("halved", halved)):
        for planned in arm.winners(group):
            if planned.trial_id not in arm.results:
                arm.train(planned)
        results = arm.results
        winners = arm.winners(group)
        goal = arm.planner.goal(winners[0].trial, results)
        row[f"{name}_objectives"] = [goal.objective(results[w.trial_id]) for w in winners]
        row[f"{name}_violation"] = max(goal.floor - results[w.trial_id].utility for w in winners)
        row[f"{name}_winner"] = winners[0].trial_id
        tuning = {
            planned.trial_id
            for planned in arm.planner.agenda(results).rows
            if planned.group == group and planned.role == "tuning"
        }
        row[f"{name}_steps"] = sum(results[trial_id].curve[-1][0] for trial_id in tuning)
        spent = [e for e in arm.seconds if e["group"] == group]
        row[f"{name}_seconds"] = sum(
            float(str(e["seconds"])) for e in spent if e["role"] == "tuning"
        )
        row[f"{name}_trial"] = float(
            np.mean([float(str(e["seconds"])) for e in spent if e["role"] == "grid"])
        )
        row[f"{name}_pruned"] = sum(results[trial_id].status == PRUNED for trial_id in tuning)
    return row


def warm_up(arm: Arm, group: str, folder: Path) -> None:
    """Train the first trial of a group once elsewhere: what is made once and kept on disk is then
    there for both.
    """
    first = next(row for row in arm.planner.agenda({}).rows if row.group == group and row.study)
    run = folder / NAME / "warm"
    run.mkdir(parents=True, exist_ok=True)
    if first.trial_id not in trial_results(run, arm.planner.experiment.objective):
        Arm(arm.planner, run, arm.cache).train(first)


def n_grid(arm: Arm, group: str) -> int:
    """Trials of a group's grid and controls."""
    rows = arm.planner.agenda({}).expected
    return len({row.trial_id for row in rows if row.group == group})


def spread(values: list[float]) -> str:
    """`0.031 [0.020, 0.045]`: the mean of the seeds, the smallest and the largest."""
    return f"{np.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def page(rows: list[dict[str, object]], counts: list[int], budget: Budget) -> str:
    """The tables as Markdown."""
    lines = [
        f"Tuning of {len(rows)} groups of `experiments/{NAME}.py` without rungs and with"
        f" `budget.rungs={budget.rungs}` (`budget.eta={budget.eta:g}`), both with"
        f" `budget.batch={budget.batch}`, all else as it is; CPU seconds of one core.",
        "",
        "| group | steps: without, with | ratio | CPU s: without, with | ratio | winner's objective"
        " [three seeds]: without | with |",
        "|---|---|---|---|---|---|---|",
    ]
    totals = np.zeros(5)
    for row, count in zip(rows, counts, strict=True):
        steps, seconds = (
            [float(str(row[f"{arm}_{name}"])) for arm in ("plain", "halved")]
            for name in ("steps", "seconds")
        )
        grid = count * float(np.mean([row["plain_trial"], row["halved_trial"]]))
        totals += [*steps, *seconds, grid]
        plain, halved = (list(row[f"{arm}_objectives"]) for arm in ("plain", "halved"))  # type: ignore[call-overload]
        same = "the same trial" if row["plain_winner"] == row["halved_winner"] else spread(halved)
        below = [float(str(row[f"{arm}_violation"])) > 0 for arm in ("plain", "halved")]
        marks = [", a seed breaks the floor" if is_below else "" for is_below in below]
        lines.append(
            f"| {group_words(str(row['group']))} | {steps[0]:.0f}, {steps[1]:.0f} |"
            f" {steps[1] / steps[0]:.2f} | {seconds[0]:.1f}, {seconds[1]:.1f} |"
            f" {seconds[1] / seconds[0]:.2f} | {spread(plain)}{marks[0]} | {same}{marks[1]} |"
        )
    steps_ratio, tuning_ratio = totals[1] / totals[0], totals[3] / totals[2]
    whole = (totals[3] + totals[4]) / (totals[2] + totals[4])
    lines += [
        "",
        f"Tuning alone: {steps_ratio:.2f} of the steps and {tuning_ratio:.2f} of the CPU time"
        f" ({totals[2]:.0f} and {totals[3]:.0f} s). The experiment with these groups: {whole:.2f}"
        f" of the CPU time, where its {sum(counts)} trials of grid and controls, which were not all"
        f" run, count with what the winners' seeds took ({totals[4]:.0f} s).",
    ]
    return "\n".join(lines)


def group_words(group: str) -> str:
    """`domain, 20, npo + nll`."""
    values = json.loads(group)
    method = f"{values.pop('method.forget')} + {values.pop('method.retain')}"
    return ", ".join([*(f"{name}={value}" for name, value in values.items()), method])


def main() -> None:
    """Run what is missing, print the table, and write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rungs", default="0.33,0.67")
    parser.add_argument("--eta", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=0, help="trials of a batch; 0: the file's")
    parser.add_argument("--only", default="", help="groups with these values: data.name=domain,...")
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    plain, halved = (
        arm_of(arguments.folder, rungs, arguments.eta, arguments.batch)
        for rungs in ("none", arguments.rungs)
    )
    agenda = plain.planner.agenda({})
    wanted = filter(None, arguments.only.split(","))
    terms = [tuple(term.split("=")) for term in wanted]
    groups = [
        group
        for group in dict.fromkeys(row.group for row in agenda.rows if row.study)
        if all(str(json.loads(group).get(name)) == value for name, value in terms)
    ]
    rows, counts = [], []
    for group in groups:
        warm_up(plain, group, arguments.folder)
        rows.append(group_row(group, plain, halved))
        counts.append(n_grid(plain, group))
        print(json.dumps(rows[-1]), flush=True)
    budget = halved.planner.experiment.budget
    text = page(rows, counts, budget)
    print(text)
    if arguments.page:
        write_page(arguments.page, text, BEGIN, END)


if __name__ == "__main__":
    main()
