"""Trials with full curves, of the studies of several experiments, for `benchmarks/rungs.py`.

    python -m benchmarks.rungs_pool FOLDER

A study's first trial has BASE's values, the rest are random draws of its SEARCH, none of them is
stopped; its best trial is trained with two more seeds, which say how much of a difference is luck.
In one process, without Ray; a second call goes on.
"""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rayunlearn.config import Data, Rungs, Trial, Value, with_values
from rayunlearn.experiment import Experiment, load
from rayunlearn.planning.outcomes import TrialResult, trial_results
from rayunlearn.planning.planner import PlannedTrial, Planner, study_trial
from rayunlearn.planning.study import best_trial
from rayunlearn.trial.identity import identify_trial
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.workspace import prepare_models, validate_trial

EXPERIMENTS = ("coreset_effect", "defences", "dilemma", "hello", "truly_unlearned")
TRIALS = 12
# trials of a study after which its best one is trained with more seeds, as it is at the end
ENOUGH = 8
# of each experiment on each of its datasets, the first of them
STUDIES = 2
SEEDS = (1, 2)
# shares of a trial's steps at which it is looked at beside its six looks
FURTHER_LOOKS = Rungs((0.1,))
# weights that change after the last step cannot be judged before it; sam takes twice the time
LEFT_OUT = ("average", "task_vector", "sam")


def pool_of(name: str) -> Experiment:
    """The experiment as a pool: one batch of random draws for each study, six looks at each trial,
    and nothing measured but what the objective asks for.
    """
    experiment = load(f"experiments/{name}.py")
    budget = replace(experiment.budget, trials=TRIALS, batch=TRIALS, sampler="random")
    own: dict[str, Value] = {
        "stop.check_every": 10,
        "model.size": "tiny",
        "explain.documents": 0,
    }
    metrics = ",".join(
        dict.fromkeys((experiment.objective.forgetting, experiment.objective.utility))
    )
    base = with_values(experiment.base, own | {"measure.metrics": metrics})
    return replace(experiment, base=base, budget=budget, version="pool")


def planner_of(experiment: Experiment) -> Planner:
    """The planner of a pool."""
    return Planner(experiment, validate_trial, identify_trial)


def run_planned(trial: Trial, folder: Path, run: Path) -> None:
    """Run one trial in this process."""
    workspace = prepare_models(trial, folder / "cache", lambda *_: None)
    run_trial(trial, workspace, run, run.parent.name, "pool", rungs=FURTHER_LOOKS)


def is_judged(row: PlannedTrial) -> bool:
    """Whether a rung could judge the trial; base and gold, which it is compared with, too."""
    method = row.trial.method
    of_pool = row.trial.model.size == "tiny" and row.role in ("base", "gold", "tuning")
    return of_pool and not {method.forget, method.wrappers} & set(LEFT_OUT)


def rows_of_pool(planner: Planner) -> list[PlannedTrial]:
    """Base and gold, and the trials of the studies that the pool has."""
    rows = [row for row in planner.agenda({}).rows if is_judged(row)]
    studies: dict[Data, dict[str, None]] = {}
    for row in rows:
        of_data = studies.setdefault(row.trial.data, {})
        if row.study and len(of_data) < STUDIES:
            of_data[row.study] = None
    return [row for row in rows if not row.study or row.study in studies[row.trial.data]]


def data_by_use(rows: dict[str, list[PlannedTrial]]) -> list[Data]:
    """The datasets, that of the most studies first: their models take the longest."""
    studies = {
        (name, row.study): row.trial.data
        for name, planned in rows.items()
        for row in planned
        if row.study
    }
    return [data for data, _ in Counter(studies.values()).most_common()]


def main() -> None:
    """Run the pools dataset by dataset and round by round, so that one that is broken off has
    studies of as many trials.
    """
    folder = Path(sys.argv[1])
    pools = {name: planner_of(pool_of(name)) for name in EXPERIMENTS}
    rows = {name: rows_of_pool(planner) for name, planner in pools.items()}
    for data in data_by_use(rows):
        of_data = {
            name: [row for row in planned if row.trial.data == data]
            for name, planned in rows.items()
        }
        for rounds in (range(-1, ENOUGH), range(ENOUGH, TRIALS)):
            for index in rounds:
                for name, planned in of_data.items():
                    of_round = [row.trial for row in planned if row.study_index == index]
                    run_missing(name, pools[name], of_round, folder)
            for name, planned in of_data.items():
                results = trial_results(folder / name / "pool", pools[name].experiment.objective)
                ended = [row for row in planned if row.trial_id in results]
                run_missing(
                    name, pools[name], winners_with_seeds(pools[name], ended, results), folder
                )


def run_missing(name: str, planner: Planner, trials: list[Trial], folder: Path) -> None:
    """Run the trials of an experiment's pool that have not ended."""
    run = folder / name / "pool"
    run.mkdir(parents=True, exist_ok=True)
    ended = trial_results(run, planner.experiment.objective)
    for trial in trials:
        if identify_trial(trial) not in ended:
            run_planned(trial, folder, run)
            print(name, trial.stage, trial.method.forget, flush=True)


def winners_with_seeds(
    planner: Planner, rows: list[PlannedTrial], results: dict[str, TrialResult]
) -> list[Trial]:
    """The best trial of every study with other seeds."""
    studies = {row.study: [r for r in rows if r.study == row.study] for row in rows if row.study}
    trials: list[Trial] = []
    for planned in studies.values():
        goal = planner.goal(planned[0].trial, results)
        ended = [
            study_trial({}, results[row.trial_id], goal, trial_id=row.trial_id) for row in planned
        ]
        best = best_trial(ended)
        if best is not None:
            winner = next(row.trial for row in planned if row.trial_id == best.trial_id)
            trials += [validate_trial(with_values(winner, {"train.seed": seed})) for seed in SEEDS]
    return trials


if __name__ == "__main__":
    main()
