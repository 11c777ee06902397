"""From attacked models and a panel of attacks to the trials that can run now: `plan` once more, for
`rayunlearn attack`.

A study maximises what an attack recovers: the forgetting metric on split forget. What the attack
does to utility is bounded where the panel says so (`utility_loss`): who wants the knowledge alone
need not care, who wants a model that still works does. It is asked in batches from an in-memory
study as tuning is, so a resumed panel is the same panel.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rayunlearn.analysis.pareto import pareto_front
from rayunlearn.analysis.recovery import utility_loss
from rayunlearn.analysis.run_frames import trial_table
from rayunlearn.analysis.trial_choice import best_trials, measured_cells
from rayunlearn.attacks.panels import Panel, PanelEntry, attack_setting
from rayunlearn.attacks.table import ATTACKS
from rayunlearn.canonical import CheckTrial, canonical_trial, has_gold
from rayunlearn.config import Attack, Harness, Trial, Value, recorded_objective, with_values
from rayunlearn.errors import require
from rayunlearn.experiment import DEFAULT_ATTACKS, Budget, Domain, Experiment, Range
from rayunlearn.metrics.table import CURVE_METRICS
from rayunlearn.planning.outcomes import TrialResult
from rayunlearn.planning.planner import Agenda, Identify, PlannedTrial
from rayunlearn.planning.study import StudyTrial, best_trial, sampler_seed, suggest
from rayunlearn.ranges import options_of
from rayunlearn.storage.run import (
    Run,
    experiment_of_run,
    find_trial,
    open_run,
    scan_driver_table,
    write_run_table,
)
from rayunlearn.trial.load import load_trial

# differ by attack.seed
DRAWN_SETTINGS = {
    "rng",
    "seed",
    "forget_sequences",
    "retain_sequences",
    "unrelated_sequences",
    "held_in",
    "held_in_sequences",
}

TUNED_STEPS = Range(10, 100, log=True, integer=True)
STRENGTH: Mapping[str, Domain] = {
    "learning_rate": Range(1e-4, 1e-2, log=True),
    "steps": TUNED_STEPS,
}

# of attacks that train no weights
OTHER_STRENGTH: Mapping[str, Mapping[str, Domain]] = {
    # a few vectors bear larger steps than all weights do
    "soft_prompt": {"learning_rate": Range(1e-3, 1e-1, log=True), "steps": TUNED_STEPS},
    # it draws replacements and has no learning rate
    "gcg": {"steps": TUNED_STEPS, "candidates": Range(8, 64, log=True, integer=True)},
}


@dataclass(frozen=True, kw_only=True)
class AttackTarget:
    """A model to attack: the trial that ends with it, checked, and its id."""

    trial_id: str
    trial: Trial


@dataclass(frozen=True, kw_only=True)
class AttackFiles:
    """What attacks read, '' for our own: a file of unrelated text, a file of rephrasings (doc_id,
    condition, text), a chat model.
    """

    text: str = ""
    rephrasings: str = ""
    chat_model: str = ""


@dataclass(frozen=True, kw_only=True)
class PlannedAttack:
    """One attack on one model, as the plan asks for it. `values` are sorted by name; `control_for`
    is the setting that it is a control for.
    """

    target: AttackTarget
    name: str
    values: tuple[tuple[str, Value], ...]
    seed: int
    role: str
    control_for: str = ""
    study: str = ""
    study_index: int = -1


@dataclass
class AttackPlanner:
    """`agenda` as of `planner.Planner`: the same interface, another plan. `keep` writes it to
    attacks.parquet.
    """

    experiment: Experiment
    check: CheckTrial
    identify: Identify
    targets: tuple[AttackTarget, ...]
    panel: Panel
    reads: AttackFiles = field(default_factory=AttackFiles)
    _ids: dict[Trial, str] = field(default_factory=dict)
    _rows: list[dict[str, Value]] = field(default_factory=list)
    _made: dict[PlannedAttack, tuple[PlannedTrial, dict[str, Value]]] = field(default_factory=dict)
    _anchors: dict[str, tuple[AttackTarget, ...]] = field(default_factory=dict)
    _suggested: dict[tuple[str, str], list[dict[str, Value]]] = field(default_factory=dict)

    def agenda(self, results: Mapping[str, TrialResult]) -> Agenda:
        """What can run now, given every attack that has ended."""
        self._rows, waiting = [], 0
        rows: list[PlannedTrial] = []
        notes: list[str] = []
        for target in self.targets:
            for entry in self.panel.entries:
                part = self.part(target, entry, results)
                rows += part.rows
                waiting += part.waiting
                notes += part.notes
        planned_rows = {row.trial_id: row for row in rows}
        ready = tuple(row for trial_id, row in planned_rows.items() if trial_id not in results)
        return Agenda(
            rows=tuple(rows), ready=ready, waiting=waiting, notes=tuple(dict.fromkeys(notes))
        )

    def part(
        self, target: AttackTarget, entry: PanelEntry, results: Mapping[str, TrialResult]
    ) -> Agenda:
        """One attack on one model: its study as far as results allow, then its seeds and its
        controls.
        """
        if not entry.tuned:
            return Agenda(rows=self.final(target, entry, dict(entry.values)), ready=(), waiting=0)
        study, finished = self.study(target, entry, results)
        if len(finished) < self.panel.budget:
            return Agenda(
                rows=study,
                ready=(),
                waiting=self.panel.budget - len(study) + self.n_final(target, entry),
            )
        winner = strongest(finished)
        if winner is None:
            note = (
                f"{entry.words} on {target.trial_id}: no strength was measured to its end, so it is"
                " not repeated"
            )
            return Agenda(rows=study, ready=(), waiting=0, notes=(note,))
        note = f"{entry.words} on {target.trial_id}: no strength cost at most"
        note += f" {self.panel.utility_loss:g} of utility; the one that cost least is used"
        return Agenda(
            rows=(*study, *self.final(target, entry, {**dict(entry.values), **winner.values})),
            ready=(),
            waiting=0,
            notes=(note,) if winner.violation > 0 else (),
        )

    def study(
        self, target: AttackTarget, entry: PanelEntry, results: Mapping[str, TrialResult]
    ) -> tuple[tuple[PlannedTrial, ...], tuple[StudyTrial, ...]]:
        """Strengths asked so far, at the panel's first seed, and those that have ended."""
        rows: list[PlannedTrial] = []
        finished: list[StudyTrial] = []
        name = f"{entry.words} on {target.trial_id}"
        while len(rows) < self.panel.budget and len(finished) == len(rows):
            n = min(self.panel.batch, self.panel.budget - len(rows))
            for values in self.suggestions(entry, name, tuple(finished), n):
                attack = PlannedAttack(
                    target=target,
                    name=entry.name,
                    values=_sorted({**dict(entry.values), **values}),
                    seed=self.panel.seeds[0],
                    role="tuning",
                    study=name,
                    study_index=len(rows),
                )
                rows.append(self.planned(attack))
                result = results.get(rows[-1].trial_id)
                # Optuna minimises; an attack wants the metric high
                if result is not None:
                    finished.append(
                        StudyTrial(
                            values=values,
                            status=result.status,
                            forgetting=-result.forgetting,
                            utility=0.0,
                            violation=self.violation(target, result, results),
                        )
                    )
        return tuple(rows), tuple(finished)

    def violation(
        self, target: AttackTarget, result: TrialResult, results: Mapping[str, TrialResult]
    ) -> float:
        """By how much an attack cost more utility than the panel allows. Raises UserError where the
        attacked model's utility is not known.
        """
        bound = self.panel.utility_loss
        if bound == 1:
            return 0.0
        before = results[target.trial_id].utility if target.trial_id in results else math.nan
        rule = "attacks.utility_loss needs the utility of the attacked model"
        require(before > 0, f"{rule}, {target.trial_id}", before)
        return utility_loss(before, result.utility) - bound

    def suggestions(
        self, entry: PanelEntry, name: str, finished: tuple[StudyTrial, ...], batch: int
    ) -> list[dict[str, Value]]:
        """`suggest` for the study `name` of an attack, remembered: an agenda is asked for whenever
        an attack has ended. The attack's own strength comes first.
        """
        key = (name, repr(finished))
        if key not in self._suggested:
            self._suggested[key] = suggest(
                strength_of(entry.name),
                finished,
                batch=batch,
                seed=sampler_seed(name, len(finished)),
                enqueued=(own_strength(entry),)[len(finished) :],
            )
        return self._suggested[key]

    def final(
        self, target: AttackTarget, entry: PanelEntry, values: Mapping[str, Value]
    ) -> tuple[PlannedTrial, ...]:
        """The attack with every seed, and with each the same on base and gold and the companion on
        the model itself.
        """
        control_for = attack_setting(entry.name, values)
        companion = ATTACKS[entry.name].companion
        rows = []
        for seed in attack_seeds(entry.name, self.panel.seeds):
            attack = PlannedAttack(
                target=target, name=entry.name, values=_sorted(values), seed=seed, role="attack"
            )
            control = replace(attack, role="control", control_for=control_for)
            attacks = [attack, *(replace(control, target=other) for other in self.anchors(target))]
            attacks += [replace(control, name=companion)] if companion else []
            rows += [self.planned(planned) for planned in attacks]
        return tuple(rows)

    def n_final(self, target: AttackTarget, entry: PanelEntry) -> int:
        """How many trials `final` will ask for."""
        each = 1 + len(self.anchors(target)) + bool(ATTACKS[entry.name].companion)
        return each * len(attack_seeds(entry.name, self.panel.seeds))

    def anchors(self, target: AttackTarget) -> tuple[AttackTarget, ...]:
        """Base and gold of the target's data and model, itself left out; found once."""
        if target.trial_id not in self._anchors:
            self._anchors[target.trial_id] = self.found_anchors(target)
        return self._anchors[target.trial_id]

    def found_anchors(self, target: AttackTarget) -> tuple[AttackTarget, ...]:
        """`anchors`, from the trial."""
        stages = [role for role in ("base", "gold") if role == "base" or has_gold(target.trial)]
        trials = [
            canonical_trial(replace(target.trial, stage=role), check=self.check)
            for role in stages
            if role != target.trial.stage
        ]
        return tuple(AttackTarget(trial_id=self.identified(trial), trial=trial) for trial in trials)

    def planned(self, attack: PlannedAttack) -> PlannedTrial:
        """A row of the plan, made once and noted for attacks.parquet."""
        if attack not in self._made:
            self._made[attack] = self.made(attack)
        row, settings = self._made[attack]
        self._rows.append(settings)
        return row

    def made(self, attack: PlannedAttack) -> tuple[PlannedTrial, dict[str, Value]]:
        """The row of the plan and that of attacks.parquet; values that the attack has not (a
        companion's) are left out.
        """
        trial, setting = self.trial_of(attack)
        row = PlannedTrial(
            trial_id=self.identified(trial),
            trial=trial,
            role=attack.role,
            group=setting,
            tuning="none",
            study=attack.study,
            study_index=attack.study_index,
        )
        settings: dict[str, Value] = {
            "trial_id": row.trial_id,
            "attacked": attack.target.trial_id,
            "role": attack.role,
            "setting": setting,
            "control_for": attack.control_for,
            "study": attack.study,
            "study_index": attack.study_index,
        }
        return row, settings

    def trial_of(self, attack: PlannedAttack) -> tuple[Trial, str]:
        """The trial that attacks the target, checked, and the attack's setting in words."""
        arguments = {option.argument for option in options_of(ATTACKS[attack.name].function)}
        values = {key: value for key, value in attack.values if key in arguments}
        settings = replace(
            Attack(name=attack.name, seed=attack.seed, **self.read_by(attack.name)),
            **self.curve_of(attack.name),
        )
        target = attack.target.trial
        # without the attack that the trial made itself, and its options
        plain = self.check(replace(target, measure=replace(target.measure, attack="none")))
        trial = with_values(
            replace(plain, attack=settings),
            {f"{attack.name}.{key}": value for key, value in values.items()},
        )
        return self.check(trial), attack_setting(attack.name, values)

    def read_by(self, name: str) -> dict[str, Any]:
        """`attack.file` and `attack.chat_model` of an attack: what of `reads` it asks for."""
        input_names = ATTACKS[name].inputs
        files = {"unrelated_sequences": self.reads.text, "texts": self.reads.rephrasings}
        return {
            "file": next((file for kind, file in files.items() if kind in input_names), ""),
            "chat_model": self.reads.chat_model if "chat" in input_names else "",
        }

    def curve_of(self, name: str) -> dict[str, Any]:
        """`attack.curve_*` of an attack that leaves a recovery curve: the metric that the objective
        forgets by, where a curve may be of it.
        """
        if "watch" not in ATTACKS[name].inputs:
            return {}
        metric = self.experiment.objective.forgetting
        return {"curve_points": self.panel.curve_points} | (
            {"curve_metric": metric} if metric in CURVE_METRICS else {}
        )

    def identified(self, trial: Trial) -> str:
        """The trial's id, computed once."""
        if trial not in self._ids:
            self._ids[trial] = self.identify(trial)
        return self._ids[trial]

    def write_plan(self, run: Path, agenda: Agenda) -> None:
        """Write attacks.parquet: this panel's rows, and those of earlier panels on other models or
        with other attacks.
        """
        own_rows = {_key(row): row for row in self._rows}
        old = scan_driver_table(run, "attacks").collect().to_dicts()
        rows = [*(row for row in old if _key(row) not in own_rows), *own_rows.values()]
        write_run_table(run, "attacks", rows)


def strongest(finished: Sequence[StudyTrial]) -> StudyTrial | None:
    """The strength that recovers most within the bound on utility; where none is, the one that
    costs least.
    """
    winner = best_trial(finished)
    if winner is None or winner.violation <= 0:
        return winner
    return min((t for t in finished if t.measured), key=lambda trial: trial.violation)


def strength_of(name: str) -> Mapping[str, Domain]:
    """What is searched of a tuned attack: learning rate x steps, or what it has in their place."""
    return OTHER_STRENGTH.get(name, STRENGTH)


def own_strength(entry: PanelEntry) -> dict[str, Value]:
    """The strength that the attack has without a search: the panel's values, or its defaults."""
    options = options_of(ATTACKS[entry.name].function)
    defaults = {option.argument: option.default for option in options}
    values = {**defaults, **dict(entry.values)}
    return {name: values[name] for name in strength_of(entry.name)}


def attack_seeds(name: str, seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds that the attack runs with: one where nothing is drawn."""
    return tuple(seeds) if DRAWN_SETTINGS & set(ATTACKS[name].inputs) else tuple(seeds[:1])


def attack_planner(
    folder: Path,
    *,
    trials: str,
    panel: Panel,
    reads: AttackFiles,
    check: CheckTrial,
    identify: Identify,
) -> AttackPlanner:
    """The plan of `rayunlearn attack`: which models of the run (`attack_targets`), which attacks.

    Raises UserError for an unknown trial, and for one that can no longer be repeated.
    """
    run = open_run(folder)
    experiment_of_run(run)
    trials_loaded = [load_trial(folder, trial_id) for trial_id in attack_targets(run, trials)]
    for trial in trials_loaded:
        require(
            trial.trial.attack == Attack() and trial.trial.harness == Harness(),
            "an attack or a task of the harness cannot be attacked; choose the trial that it is"
            " about, not",
            trial.trial_id,
        )
    targets = tuple(
        AttackTarget(trial_id=trial.trial_id, trial=trial.trial) for trial in trials_loaded
    )
    experiment = attack_experiment(run, targets[0].trial)
    return AttackPlanner(experiment, check, identify, targets, panel, reads)


def attack_targets(run: Run, trials: str) -> list[str]:
    """Ids of the trials to attack: `best` (nearest to the target at kept utility, one per method
    and retain loss), `pareto` (those that no other beats), `grid` (every measured cell), or ids and
    beginnings of ids, separated by commas.

    Raises UserError where none fits.
    """
    if trials == "best":
        experiment_of_run(run)
    if trials not in DEFAULT_ATTACKS:
        planned_rows = run.trials.select("trial_id").collect()["trial_id"].to_list()
        return [find_trial(planned_rows, name.strip()) for name in trials.split(",")]
    table = trial_table(run)
    cells = measured_cells(table)
    chosen = {
        "grid": cells,
        "pareto": pareto_front(cells, "objective", "utility"),
        "best": best_trials(run, table),
    }[trials]
    ids = list(dict.fromkeys(chosen["trial_id"].to_list()))
    feasible = (
        " that keeps the objective's utility_floor (or name one by its id)"
        if trials == "best"
        else ""
    )
    require(
        bool(ids),
        f"--trials {trials} must find a complete trial of the grid{feasible}; found",
        len(ids),
    )
    return ids


def attack_experiment(run: Run, trial: Trial) -> Experiment:
    """The experiment of a run as far as attacks need it: its name, version and objective."""
    settings = experiment_of_run(run)
    return Experiment(
        name=str(settings["name"]),
        question=str(settings["question"]),
        base=replace(trial, stage="unlearned"),
        grids=((),),
        search={},
        budget=Budget(tuning="none"),
        objective=recorded_objective(settings["objective"]),
        version=str(settings["version"]),
    )


def _key(row: Mapping[str, Value]) -> tuple[Value, ...]:
    return tuple(row[name] for name in ("trial_id", "role", "control_for", "study_index"))


def _sorted(values: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted(values.items()))
