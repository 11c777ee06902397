"""From chosen models and tasks of lm-evaluation-harness to the trials that can run now: `plan` once
more, for `rayunlearn harness`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from rayunlearn.canonical import CheckTrial, canonical_trial, has_gold
from rayunlearn.config import Attack, Harness, Trial
from rayunlearn.errors import require
from rayunlearn.experiment import Experiment
from rayunlearn.planning.attack_planner import attack_experiment, attack_targets
from rayunlearn.planning.outcomes import TrialResult
from rayunlearn.planning.planner import Agenda, Identify, PlannedTrial
from rayunlearn.storage.run import experiment_of_run, open_run
from rayunlearn.trial.load import load_trial


@dataclass
class HarnessPlanner:
    """`agenda` as of `planner.Planner`: each of `models` (checked trials) is asked each of `tasks`,
    a trial of its own each. Nothing depends on what has finished.
    """

    experiment: Experiment
    check: CheckTrial
    identify: Identify
    models: tuple[Trial, ...]
    tasks: tuple[Harness, ...]

    @cached_property
    def rows(self) -> tuple[PlannedTrial, ...]:
        """The plan, a row per model and task."""
        trials = [
            self.check(replace(model, harness=task)) for task in self.tasks for model in self.models
        ]
        return tuple(
            PlannedTrial(
                trial_id=self.identify(trial),
                trial=trial,
                role="harness",
                group=trial.harness.task,
                tuning="none",
            )
            for trial in trials
        )

    def agenda(self, results: Mapping[str, TrialResult]) -> Agenda:
        """What can run now: all that has not ended."""
        ready = tuple(row for row in self.rows if row.trial_id not in results)
        return Agenda(rows=self.rows, ready=ready, waiting=0)

    def write_plan(self, run: Path, agenda: Agenda) -> None:
        """Nothing: column `evaluated` of `trials` says whose model a row is about."""


def harness_planner(
    folder: Path,
    *,
    trials: str,
    tasks: Sequence[Harness],
    check: CheckTrial,
    identify: Identify,
) -> HarnessPlanner:
    """The plan of `rayunlearn harness`: the chosen models of the run (`attack_targets`), and base
    and gold of their data and models beside them.

    Raises UserError for an unknown trial, and for one that can no longer be repeated.
    """
    run = open_run(folder)
    experiment_of_run(run)
    chosen = [load_trial(folder, trial_id) for trial_id in attack_targets(run, trials)]
    for trial in chosen:
        is_plain = trial.trial.attack == Attack() and trial.trial.harness == Harness()
        rule = "--trials must name trials that end with a model, no attack and no task; not"
        require(is_plain, rule, trial.trial_id)
    models = [trial.trial for trial in chosen]
    anchors = [
        canonical_trial(replace(model, stage=role), check=check)
        for model in models
        for role in ("base", "gold")
        if role == "base" or has_gold(model)
    ]
    return HarnessPlanner(
        attack_experiment(run, models[0]),
        check,
        identify,
        tuple(dict.fromkeys([*models, *anchors])),
        tuple(tasks),
    )
