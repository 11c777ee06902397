"""How often do rungs cut what would have won? Studies drawn from trials with full curves.

    python -m benchmarks.rungs_pool FOLDER                    # the trials, minutes of one core
    python -m benchmarks.rungs FOLDER                         # the table
    python -m benchmarks.rungs FOLDER --page docs/search.md   # writes it into the page

A study of 8 to 12 trials is drawn from those of a study of the pool: its first trial, which has
BASE's values, then others in random order. It is played twice: to its end, and with rungs, where
the product's own code (`planning.rungs.batch_members`) says who goes on. What is compared are the
two winners, by the measurement of finished trials. As a control the same places are given at random
(the looks of a batch's trials are exchanged).
"""

import argparse
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.rungs_pool import (
    EXPERIMENTS,
    planner_of,
    pool_of,
    rows_of_pool,
    winners_with_seeds,
)
from rayunlearn.analysis.intervals import Numbers, mean_interval
from rayunlearn.planning.outcomes import (
    DocumentValues,
    SearchTarget,
    StudyGoal,
    TrialResult,
    trial_results,
)
from rayunlearn.planning.planner import PlannedTrial, Planner, study_trial
from rayunlearn.planning.rungs import BatchMember, RungRule, batch_members
from rayunlearn.planning.study import StudyTrial, best_trial
from rayunlearn.trial.identity import identify_trial

SHARES = (
    (0.1,),
    (1 / 6,),
    (1 / 3,),
    (1 / 2,),
    (2 / 3,),
    (1 / 6, 1 / 3),
    (1 / 6, 2 / 3),
    (1 / 3, 2 / 3),
)
# (budget.batch, budget.eta). The experiments ask for batches of 4, in which 1 of 3, rounded up, is
# 1 of 2: two go on, then one. The whole study as one batch compares the most and waits the longest;
# 1 of 2.4 are five of twelve.
RULES = ((4, 2), (12, 2), (12, 2.4), (12, 3))
SIZES = (8, 9, 10, 11, 12)
DRAWS = 200
# what the search is to reach: saved steps, and studies whose winner is there or one as good
AIMS = (0.40, 0.95)
BEGIN, END = "<!-- benchmarks.rungs: begin -->", "<!-- benchmarks.rungs: end -->"


@dataclass(frozen=True, kw_only=True)
class PoolStudy:
    """A study of which every trial ran to its end: `trials` as the study knows them, in the order
    of `results`; `spread`: of its best trial's objective, largest minus smallest of its seeds; NaN
    where they did not run.
    """

    name: str
    results: tuple[TrialResult, ...]
    trials: tuple[StudyTrial, ...]
    goal: StudyGoal
    floor: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rungs that are tried; at random: the control."""

    shares: tuple[float, ...]
    eta: float
    batch: int
    at_random: bool = False


@dataclass(frozen=True, kw_only=True)
class Halved:
    """A study with rungs beside the same without: share of steps saved, whether the winner was cut,
    and how much worse the other winner is (inf: it breaks the floor that the winner keeps).
    """

    saved: float
    is_cut: bool
    regret: float


def pool_studies(folder: Path) -> list[PoolStudy]:
    """The studies of the pool that have enough trials, and one that keeps the floor."""
    studies = []
    for name in EXPERIMENTS:
        planner = planner_of(pool_of(name))
        results = trial_results(
            folder / name / "pool", planner.experiment.objective, with_curves=True
        )
        rows = [row for row in rows_of_pool(planner) if row.study]
        for study in dict.fromkeys(row.study for row in rows):
            planned = [row for row in rows if row.study == study and row.trial_id in results]
            if len(planned) >= min(SIZES):
                studies.append(pool_study(f"{name}: {study}", planner, planned, results))
    return [study for study in studies if any(trial.violation <= 0 for trial in study.trials)]


def pool_study(
    name: str, planner: Planner, planned: list[PlannedTrial], results: Mapping[str, TrialResult]
) -> PoolStudy:
    """One study of the pool."""
    trial = planned[0].trial
    goal = planner.goal(trial, dict(results))
    ended = tuple(results[row.trial_id] for row in planned)
    seeds = winners_with_seeds(planner, planned, dict(results))
    trials = tuple(
        study_trial({}, result, goal, trial_id=str(index)) for index, result in enumerate(ended)
    )
    best = best_trial(trials)
    objectives = [best.forgetting] if best else []
    ids = [identify_trial(seed) for seed in seeds]
    objectives += [goal.objective(results[trial_id]) for trial_id in ids if trial_id in results]
    return PoolStudy(
        name=name,
        results=ended,
        trials=trials,
        goal=at_a_look(goal),
        floor=planner.experiment.objective.utility_floor,
        spread=float(np.nanmax(objectives) - np.nanmin(objectives)) if objectives[1:] else math.nan,
    )


def at_a_look(goal: StudyGoal) -> StudyGoal:
    """The goal with the target's mean alone, which is all that a look is held against."""
    target = goal.target
    if target is None or not target.documents.ids:
        return goal
    mean = float(np.mean(target.documents.values))
    values = type(target.documents.values)("d", [mean])
    return replace(goal, target=SearchTarget(target.kind, DocumentValues(("mean",), values)))


def halved(study: PoolStudy, order: Sequence[int], case: Case, draw: random.Random) -> Halved:
    """One drawn study."""
    rule = RungRule(case.shares, case.eta, study.floor)
    members: list[BatchMember] = []
    for start in range(0, len(order), case.batch):
        results = [study.results[index] for index in order[start : start + case.batch]]
        if case.at_random:
            results = exchanged(results, draw)
        members += batch_members(results, study.goal, rule)
    steps = [study.results[index].curve[-1][0] for index in order]
    trained = [
        step if member.pruned is None else min(step, member.pruned.step)
        for step, member in zip(steps, members, strict=True)
    ]
    survivors = [
        study.trials[index]
        for index, member in zip(order, members, strict=True)
        if member.pruned is None
    ]
    winner = best_trial([study.trials[index] for index in order])
    other = best_trial(survivors)
    assert winner is not None
    saved = 1 - sum(trained) / sum(steps)
    return Halved(saved=saved, is_cut=winner not in survivors, regret=regret_of(winner, other))


def regret_of(winner: StudyTrial, other: StudyTrial | None) -> float:
    """How much larger what is minimised is."""
    if other is None or other.violation > 0:
        return math.inf
    return other.forgetting - winner.forgetting


def exchanged(results: Sequence[TrialResult], draw: random.Random) -> list[TrialResult]:
    """The trials of a batch with each other's looks; those that ended early have their own."""
    whole = [i for i, r in enumerate(results) if r.status == "complete"]
    order = draw.sample(whole, len(whole))
    changed = list(results)
    for index, other in zip(whole, order, strict=True):
        changed[index] = replace(results[index], curve=results[other].curve)
    return changed


def orders(study: PoolStudy, n_draws: int, draw: random.Random) -> Iterable[list[int]]:
    """The trials of drawn studies in which some trial keeps the floor, BASE's own values first."""
    n_trials, n_drawn = len(study.trials), 0
    while n_drawn < n_draws:
        size = draw.choice([size for size in SIZES if size <= n_trials])
        order = [0, *draw.sample(range(1, n_trials), size - 1)]
        if any(study.trials[index].violation <= 0 for index in order):
            n_drawn += 1
            yield order


def case_row(studies: Sequence[PoolStudy], case: Case, n_draws: int) -> dict[str, object]:
    """One row: means over the pool's studies, each with the same weight, and their intervals."""
    by_study: list[list[Halved]] = []
    for number, study in enumerate(studies):
        draw = random.Random(number)
        drawn = list(orders(study, n_draws, draw))
        by_study.append([halved(study, order, case, draw) for order in drawn])
    measures = {
        "saved": [np.mean([one.saved for one in drawn]) for drawn in by_study],
        "cut": [np.mean([one.is_cut for one in drawn]) for drawn in by_study],
        "in_spread": [
            np.mean([one.regret <= (study.spread if study.spread > 0 else 0.0) for one in drawn])
            for study, drawn in zip(studies, by_study, strict=True)
        ],
    }
    regrets = sorted(one.regret for drawn in by_study for one in drawn)
    row: dict[str, object] = {
        "rungs": ", ".join(f"{share:.2f}" for share in case.shares),
        "eta": float(case.eta),
        "batch": case.batch,
        "at_random": case.at_random,
        "regret_median": regrets[len(regrets) // 2],
        "regret_95": regrets[math.ceil(0.95 * len(regrets)) - 1],
    }
    for name, values in measures.items():
        low, high = ends_of(np.array(values, dtype=np.float64))
        row |= {name: float(np.mean(values)), f"{name}_low": low, f"{name}_high": high}
    return row


def ends_of(rates: Numbers) -> tuple[float | None, float | None]:
    """The 95% interval of a mean over the pool's studies (n,), rates in [0, 1]. Where all are 0, or
    all are 1, a t has nothing to go by: then that of Clopper and Pearson, a study one draw.
    """
    if np.ptp(rates) == 0 and rates[0] in (0.0, 1.0):
        end = 0.025 ** (1 / len(rates))
        return (end, 1.0) if rates[0] else (0.0, 1 - end)
    interval = mean_interval(rates[:, None], bounds=(0.0, 1.0))
    return interval.low, interval.high


def table(studies: Sequence[PoolStudy], n_draws: int) -> pl.DataFrame:
    """All cases."""
    cases = [
        Case(shares=shares, eta=eta, batch=batch, at_random=at_random)
        for (batch, eta), shares, at_random in product(RULES, SHARES, (False, True))
    ]
    return pl.DataFrame([case_row(studies, case, n_draws) for case in cases])


def percent(row: Mapping[str, object], name: str) -> str:
    """`41% [40, 43]`."""
    mean, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if low is None or high is None:
        return f"{100 * float(str(mean)):.0f}%"
    low, high = (100 * float(str(value)) for value in (low, high))
    return f"{100 * float(str(mean)):.0f}% [{low:.0f}, {high:.0f}]"


def page(rows: pl.DataFrame, studies: Sequence[PoolStudy], n_draws: int) -> str:
    """The table as Markdown."""
    names = ("batch", "eta", "rungs")
    control = {tuple(row[n] for n in names): row for row in rows.filter("at_random").to_dicts()}
    spreads = [study.spread for study in studies if math.isfinite(study.spread)]
    seeds = (
        f"the median spread of a winner's seeds is {np.median(spreads):.3f}."
        if len(spreads) == len(studies)
        else f"winners whose seeds ran: {len(spreads)}, the others have to be there themselves."
    )
    lines = [
        f"Studies: {len(studies)}, of experiments: {len({s.name.split(':')[0] for s in studies})},"
        f" with {sum(len(s.trials) for s in studies)} trials; {n_draws} draws of each study a row;"
        f" {seeds}",
        "",
        "| batch | eta | rungs | steps saved | winner cut | winner or one within its spread |"
        " regret: median, 95% | at random: within the spread |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows.filter(~pl.col("at_random")).to_dicts():
        lines.append(
            f"| {row['batch']} | {row['eta']:g} | {row['rungs']} | {percent(row, 'saved')} |"
            f" {percent(row, 'cut')} | {percent(row, 'in_spread')} |"
            f" {regret_words(row['regret_median'])}, {regret_words(row['regret_95'])} |"
            f" {percent(control[tuple(row[n] for n in names)], 'in_spread')} |"
        )
    return "\n".join(lines)


def regret_words(value: float) -> str:
    """`0.012`, or that no trial keeps the floor."""
    return f"{value:.3f}" if math.isfinite(value) else "none keeps the floor"


def write_page(path: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put a table between two marks of a page."""
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise SystemExit(f"{path} must have the lines {begin} and {end}")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Print the table, keep it as Parquet, and write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--draws", type=int, default=DRAWS)
    arguments = parser.parse_args()
    studies = pool_studies(arguments.folder)
    if not studies:
        rule = f"{arguments.folder} must hold studies of {min(SIZES)} trials or more"
        raise SystemExit(f"{rule} (python -m benchmarks.rungs_pool)")
    rows = table(studies, arguments.draws)
    rows.write_parquet(arguments.folder / "rungs.parquet")
    text = page(rows, studies, arguments.draws)
    print(text)
    if arguments.page:
        write_page(arguments.page, text)


if __name__ == "__main__":
    main()
