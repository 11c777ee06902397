"""From an experiment and what has finished to the trials that can run now: no Ray, no torch, no
state.

`agenda` is the one function behind first runs, resumes and `rayunlearn plan`. It expands the axes
to cells in canonical form, adds base, gold and the retain-only controls, and lets each group of
cells be tuned first.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Protocol

from rayunlearn.canonical import (
    CheckTrial,
    canonical_trial,
    control_of,
    has_gold,
    measured_stage,
    without_effect,
)
from rayunlearn.config import (
    FULL_RATIO,
    NO_RUNGS,
    SEED_SETTINGS,
    Objective,
    Rungs,
    Trial,
    Value,
    flatten,
    with_values,
)
from rayunlearn.errors import UserError, require
from rayunlearn.experiment import Budget, Domain, Experiment, Grid, Winner, axis_names
from rayunlearn.planning.outcomes import StudyGoal, TrialResult, study_goal
from rayunlearn.planning.rungs import (
    TO_THE_END,
    BatchMember,
    RungRule,
    RungValue,
    batch_members,
    has_reached,
    waits_below,
)
from rayunlearn.planning.study import (
    Sampler,
    StudyTrial,
    best_trial,
    combinations,
    judged_by_seeds,
    lowest_value,
    n_combinations,
    sampler_seed,
    suggest,
    values_outside,
)
from rayunlearn.schema import PAUSED, PRUNED

Identify = Callable[[Trial], str]
NotesOf = Callable[[Trial], tuple[str, ...]]

# settings of which documents train: a tuning is shared over them
CHOOSING = ("select.", "retain.")


def no_notes(_trial: Trial) -> tuple[str, ...]:
    """Nothing to say of a trial's data and model."""
    return ()


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """One row of the plan. A trial that serves twice (a control of two groups) has two rows and one
    id. `rungs`: those of its study, and how far it may train for now; `is_pruned`: its study goes
    on without it.
    """

    trial_id: str
    trial: Trial
    role: str
    group: str
    tuning: str
    study: str = ""
    study_index: int = -1
    tuned_from: str = ""
    search: int = 0
    rungs: Rungs = NO_RUNGS
    is_pruned: bool = False

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        """What the plan has once: a trial in one role, of one group and one of its searches, at one
        place of its study.
        """
        return (self.trial_id, self.role, self.group, self.study_index, self.search)

    def row(self) -> dict[str, Value]:
        """The row of plan.parquet."""
        return {
            "trial_id": self.trial_id,
            "role": self.role,
            "group": self.group,
            "tuning": self.tuning,
            "study": self.study,
            "study_index": self.study_index,
            "tuned_from": self.tuned_from,
            "search": self.search,
        }


@dataclass(frozen=True, kw_only=True)
class Agenda:
    """What is known of the plan now.

    `rows`: every trial whose settings are known; `ready`: those of them that have not ended, each
    id once; `paused`: how many wait at a rung; `pruned`: those that waited there and do not go on;
    `waiting`: number of trials whose settings depend on results that are still to come;
    `expected`: the grid and control rows of groups that are still tuned, with a stand-in for the
    tuned values (to count, never to run); `notes`: what a summary has to say; `studies`: group ->
    number of trials that its tuning takes.
    """

    rows: tuple[PlannedTrial, ...]
    ready: tuple[PlannedTrial, ...]
    waiting: int
    expected: tuple[PlannedTrial, ...] = ()
    notes: tuple[str, ...] = ()
    studies: Mapping[str, int] = field(default_factory=dict)
    paused: int = 0
    pruned: tuple[PlannedTrial, ...] = ()

    @property
    def total(self) -> int:
        """Number of different trials, those that wait included."""
        return len({row.trial_id for row in self.rows}) + self.waiting

    def remaining(self, results: Mapping[str, TrialResult]) -> int:
        """Number of different trials that have not ended, those that wait included."""
        return self.total - len({row.trial_id for row in self.rows} & set(results))


@dataclass(frozen=True)
class GridGroup:
    """Cells that share one tuning."""

    key: str
    values: Mapping[str, Value]
    cells: tuple[Trial, ...]


class PlanSource(Protocol):
    """What a run on Ray asks of a plan: the agenda, to be kept in the run folder whenever it
    changes, and what it is about.
    """

    experiment: Experiment

    def agenda(self, results: Mapping[str, TrialResult]) -> Agenda:
        """What can run now."""

    def write_plan(self, run: Path, agenda: Agenda) -> None:
        """Write the agenda down."""


@dataclass
class Planner:
    """`agenda` with a memory: ids and suggestions are pure functions, so each is computed once.

    check: fills in and validates a trial's options (`registry.check_trial`); identify: its trial
    id; notes_of: what a reader should know of how a trial's data meet its model.
    """

    experiment: Experiment
    check: CheckTrial
    identify: Identify
    notes_of: NotesOf = no_notes
    _ids: dict[Trial, str] = field(default_factory=dict)
    _canonical: dict[Trial, Trial] = field(default_factory=dict)
    _suggested: dict[tuple[object, ...], list[dict[str, Value]]] = field(default_factory=dict)
    _groups: tuple[GridGroup, ...] = ()
    _stages: dict[str, tuple[PlannedTrial, ...]] = field(default_factory=dict)
    _final: dict[tuple[object, ...], tuple[PlannedTrial, ...]] = field(default_factory=dict)

    def agenda(self, results: Mapping[str, TrialResult]) -> Agenda:
        """What can run now, given every trial that has ended."""
        self._groups = self._groups or grid_groups(self.experiment, check=self.canonical)
        groups = self._groups
        rows: dict[tuple[str, str, str, int, int], PlannedTrial] = {}
        expected: list[PlannedTrial] = []
        waiting = 0
        notes: list[str] = []
        studies: dict[str, int] = {}
        for group in groups:
            rows |= {row.key: row for row in self.stages(group)}
        for group in groups:
            part = self.group_agenda(group, results)
            rows |= {row.key: row for row in part.rows}
            expected += part.expected
            waiting += part.waiting
            notes += part.notes
            studies |= part.studies
        pairs = {(row.trial.data, row.trial.model): row.trial for row in rows.values()}
        notes += dict.fromkeys(note for trial in pairs.values() for note in self.notes_of(trial))
        planned_ids = {row.trial_id for row in rows.values()}
        unknown = {row.trial_id for row in expected} - planned_ids
        ready = ready_rows(rows.values(), results)
        stopped = [row for row in at_rungs(rows.values(), results) if row.trial_id not in ready]
        pruned = tuple(row for row in stopped if row.is_pruned)
        return Agenda(
            rows=tuple(rows.values()),
            ready=tuple(ready.values()),
            paused=len(stopped) - len(pruned),
            pruned=pruned,
            waiting=waiting + len(unknown),
            expected=tuple(expected),
            notes=tuple(notes),
            studies=studies,
        )

    def write_plan(self, run: Path, agenda: Agenda) -> None:
        """Rewrite plan.parquet with every row that is known by now."""
        from rayunlearn.storage.run import write_run_table

        write_run_table(run, "plan", [row.row() for row in agenda.rows])

    def group_agenda(self, group: GridGroup, results: Mapping[str, TrialResult]) -> Agenda:
        """One group: its study as far as results allow, then its grid and its controls."""
        experiment = self.experiment
        base = tuning_base(experiment, group, check=self.canonical)
        if experiment.budget.takes_winners:
            source = group_winner(experiment, group)
            rows = self.final(group, source.values, "from", tuned_from=source.words)
            return Agenda(rows=rows, ready=(), waiting=0)
        if experiment.budget.tuning == "none" or not search_space(experiment, base):
            rows = self.final(group, {}, "none")
            return Agenda(rows=rows, ready=(), waiting=0)
        _require_cmaes_fits(experiment, group, search_space(experiment, base))
        parts = [
            self.search_agenda(group, base, results, search)
            for search in range(experiment.budget.repeats)
        ]
        return Agenda(
            rows=tuple(row for part in parts for row in part.rows),
            ready=(),
            waiting=sum(part.waiting for part in parts),
            expected=tuple(row for part in parts for row in part.expected),
            notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
            studies={group.key: sum(part.studies[group.key] for part in parts)},
        )

    def search_agenda(
        self, group: GridGroup, base: Trial, results: Mapping[str, TrialResult], search: int
    ) -> Agenda:
        """One search of a group; its grid is expected, with a stand-in, until a setting has won."""
        objective, budget = self.experiment.objective, self.experiment.budget
        goal = self.goal(base, results)
        study, finished = self.study(group, base, results, goal, search)
        n_settings = len(self.listed_settings(group, base)) or budget.trials
        notes = (*_cut_short(group, n_settings, budget), *_without_rungs(group, base, budget))
        is_complete = len(finished) == n_settings and goal.is_known
        winner = best_trial(finished) if is_complete else None
        part = Agenda(
            rows=study,
            ready=(),
            waiting=n_settings * budget.seeds - len(study),
            studies={group.key: n_settings * budget.seeds},
        )
        if winner is None:
            # a drawn one: two groups may share BASE's own values, but hardly their winners
            index = min(len(self.enqueued(group, base)) * budget.seeds, len(study) - 1)
            settings = flatten(study[index].trial)
            stand_in = {name: settings[name] for name in search_space(self.experiment, base)}
            return replace(
                part,
                expected=self.final(group, stand_in, budget.tuning, search=search),
                notes=(*notes, *_blocked(group, goal, is_complete)),
            )
        rows = (*study, *self.final(group, winner.values, budget.tuning, search=search))
        without_target = _without_target(group, goal, objective)
        return replace(
            part, rows=rows, notes=(*notes, *without_target, *_infeasible(group, winner, objective))
        )

    def goal(self, base: Trial, results: Mapping[str, TrialResult]) -> StudyGoal:
        """What the study of `base` aims at, as far as base and gold say it by now."""
        with_gold = has_gold(base)
        return study_goal(
            self.experiment.objective,
            base=results.get(self.stage(base, "base").trial_id),
            gold=results.get(self.stage(base, "gold").trial_id) if with_gold else None,
            with_gold=with_gold,
        )

    def study(
        self,
        group: GridGroup,
        base: Trial,
        results: Mapping[str, TrialResult],
        goal: StudyGoal,
        search: int,
    ) -> tuple[tuple[PlannedTrial, ...], tuple[StudyTrial, ...]]:
        """The study's trials that can be known now, and those of its settings of which all seeds
        have ended, both in study order.

        A batch is asked for when every trial before it has ended and the goal is known.
        """
        rows: list[PlannedTrial] = []
        finished: list[StudyTrial] = []
        budget = self.experiment.budget
        n_settings = len(self.listed_settings(group, base)) or budget.trials
        n_asked = 0
        while n_asked < n_settings and len(finished) == n_asked and (not n_asked or goal.is_known):
            n_batch = min(budget.batch, n_settings - n_asked)
            suggested = self.suggestions(group, base, tuple(finished), n_batch, search)
            batch = [
                [
                    self.study_row(group, base, values, n_asked + number, search, seed)
                    for seed in range(budget.seeds)
                ]
                for number, values in enumerate(suggested)
            ]
            members = self.members([seeds[0] for seeds in batch], results, goal)
            for values, seeds, member in zip(suggested, batch, members, strict=True):
                n_asked += 1
                is_pruned = member.pruned is not None
                rows += [replace(row, rungs=member.rungs, is_pruned=is_pruned) for row in seeds]
                if ended := _ended_setting(values, seeds, member, results, goal):
                    finished.append(ended)
        return tuple(rows), tuple(finished)

    def members(
        self, batch: Sequence[PlannedTrial], results: Mapping[str, TrialResult], goal: StudyGoal
    ) -> list[BatchMember]:
        """How far each trial of a batch may train."""
        budget = self.experiment.budget
        rule = RungRule(budget.rung_shares, budget.eta, self.experiment.objective.utility_floor)
        if not rule.shares or not can_be_judged(batch[0].trial):
            return [BatchMember() for _ in batch]
        return batch_members([results.get(row.trial_id) for row in batch], goal, rule)

    def study_row(
        self,
        group: GridGroup,
        base: Trial,
        values: Mapping[str, Value],
        index: int,
        search: int,
        seed: int,
    ) -> PlannedTrial:
        """A trial of the study's setting at place `index`; setting 1 may be the winner of another
        run. Each search and each seed of a setting has seeds of its own, from BASE's upwards.
        """
        is_winner = index == 1 and len(self.enqueued(group, base)) > 1
        budget = self.experiment.budget
        seeded = _with_seed(base, search * budget.seeds + seed)
        return self.planned(
            self.canonical(with_values(seeded, values)),
            "tuning",
            group.key,
            budget.tuning,
            study=search_name(group, search),
            study_index=index,
            tuned_from=group_winner(self.experiment, group).words if is_winner else "",
            search=search,
        )

    def enqueued(self, group: GridGroup, base: Trial) -> tuple[Mapping[str, Value], ...]:
        """What the study begins with: BASE's own values, then those that won for this group in the
        run that `budget.tuned_from` names, where they are others.
        """
        base_values = own_values(self.experiment, base)
        winner = self.experiment.winners.by_group.get(group.key)
        if winner is None:
            return (base_values,)
        # a name that RUN's trial has not is at its own value
        winning = {name: winner.values.get(name, value) for name, value in base_values.items()}
        return (base_values,) if winning == base_values else (base_values, winning)

    def listed_settings(self, group: GridGroup, base: Trial) -> list[dict[str, Value]]:
        """All settings of a study, each once and what is enqueued first, where there are no more of
        them than trials; else none.
        """
        space, first = search_space(self.experiment, base), self.enqueued(group, base)
        n_outside = sum(bool(values_outside(space, values)) for values in first)
        if n_combinations(space) + n_outside > self.experiment.budget.trials:
            return []
        remaining = [values for values in combinations(space) if values not in first]
        return [*map(dict, first), *remaining]

    def suggestions(
        self,
        group: GridGroup,
        base: Trial,
        finished: tuple[StudyTrial, ...],
        batch: int,
        search: int,
    ) -> list[dict[str, Value]]:
        """`suggest`, remembered; of a study whose settings can be listed, the next of them."""
        if listed := self.listed_settings(group, base):
            return listed[len(finished) : len(finished) + batch]
        budget = self.experiment.budget
        key = (
            group.key,
            search,
            batch,
            tuple(
                (
                    repr(sorted(f.values.items())),
                    f.status,
                    repr((f.forgetting, f.utility, f.violation)),
                )
                for f in finished
            ),
        )
        if key not in self._suggested:
            self._suggested[key] = suggest(
                search_space(self.experiment, base),
                finished,
                batch=batch,
                seed=sampler_seed(self.study_identity(base), len(finished), search=search),
                sampler=Sampler(budget.sampler, population=budget.batch),
                enqueued=self.enqueued(group, base)[len(finished) :],
            )
        return self._suggested[key]

    def study_identity(self, base: Trial) -> str:
        """What a study's draws depend on, besides what it was told: everything about its trials
        that is not searched, and nothing of the other values on the axes. It is the id of the trial
        at the lower end of the search.
        """
        space = search_space(self.experiment, base)
        lowest = {name: lowest_value(domain) for name, domain in space.items()}
        return self.identify(self.canonical(with_values(base, lowest)))

    def final(
        self,
        group: GridGroup,
        values: Mapping[str, Value],
        tuning: str,
        *,
        tuned_from: str = "",
        search: int = 0,
    ) -> tuple[PlannedTrial, ...]:
        """The group's cells and its retain-only controls with the tuned values that apply to them;
        made once for the same values.
        """
        key = (group.key, tuning, search, repr(sorted(values.items())))
        if key not in self._final:
            rows = self._make_final(group, values, tuning)
            self._final[key] = tuple(
                replace(row, tuned_from=tuned_from, search=search) for row in rows
            )
        return self._final[key]

    def _make_final(
        self, group: GridGroup, values: Mapping[str, Value], tuning: str
    ) -> tuple[PlannedTrial, ...]:
        valued = (with_values(cell, values) if values else cell for cell in group.cells)
        cells = dict.fromkeys(self.canonical(cell) for cell in valued)
        # thousands of cells have few controls: alike ones are dropped before they are checked
        raw_controls = dict.fromkeys(
            without_effect(control_of(cell))
            for cell in cells
            if cell.method.forget != "none" and cell.method.retain != "none"
        )
        controls = dict.fromkeys(self.canonical(control) for control in raw_controls)
        return (
            *(self.planned(cell, "grid", group.key, tuning) for cell in cells),
            *(self.planned(cell, "control", group.key, tuning) for cell in controls),
        )

    def stages(self, group: GridGroup) -> tuple[PlannedTrial, ...]:
        """Base, and gold where there is one, of whatever data, model and metrics the group's cells
        use, each once; made once.
        """
        if group.key not in self._stages:
            # thousands of cells have few bases: alike ones are dropped before they are checked
            required = dict.fromkeys(
                measured_stage(cell, role)
                for cell in group.cells
                for role in ("base", "gold")
                if role == "base" or has_gold(cell)
            )
            self._stages[group.key] = tuple(
                dict.fromkeys(self.stage(trial, trial.stage) for trial in required)
            )
        return self._stages[group.key]

    def stage(self, cell: Trial, role: str) -> PlannedTrial:
        """The trial that measures base or gold and trains nothing."""
        return self.planned(self.canonical(replace(cell, stage=role)), role, "{}", "none")

    def planned(
        self,
        trial: Trial,
        role: str,
        group: str,
        tuning: str,
        *,
        study: str = "",
        study_index: int = -1,
        tuned_from: str = "",
        search: int = 0,
    ) -> PlannedTrial:
        """A plan row of a canonical trial."""
        trial_id = self._ids.get(trial)
        if trial_id is None:
            trial_id = self._ids[trial] = self.identify(trial)
        return PlannedTrial(
            trial_id=trial_id,
            trial=trial,
            role=role,
            group=group,
            tuning=tuning,
            study=study,
            study_index=study_index,
            tuned_from=tuned_from,
            search=search,
        )

    def canonical(self, trial: Trial) -> Trial:
        """`canonical`, remembered."""
        cached = self._canonical.get(trial)
        if cached is None:
            normal_form = canonical_trial(trial, check=self.check)
            # one object for a value: a plan of thousands of trials holds each once
            cached = self._canonical.setdefault(normal_form, normal_form)
            self._canonical[trial] = cached
        return cached


def grid_cells(grid: Grid, base: Trial) -> Iterable[Trial]:
    """BASE with every combination of the grid's points, the last axis fastest."""
    for points in product(*(axis.points for axis in grid)):
        values = {
            name: value
            for axis, point in zip(grid, points, strict=True)
            for name, value in zip(axis.names, point, strict=True)
        }
        yield with_values(base, values)


def grid_groups(experiment: Experiment, *, check: CheckTrial) -> tuple[GridGroup, ...]:
    """The cells of all grids, each once and in canonical form, by the axis values that share one
    tuning.
    """
    cells = dict.fromkeys(
        check(cell) for grid in experiment.grids for cell in grid_cells(grid, experiment.base)
    )
    tuning = grouping(experiment)
    names = [name for name in axis_names(experiment) if _splits(name, tuning)]
    grouped: dict[str, list[Trial]] = {}
    values: dict[str, dict[str, Value]] = {}
    for cell in cells:
        flat = flatten(cell)
        own_settings = {name: flat[name] for name in names if name in flat}
        key = json.dumps(own_settings, sort_keys=True)
        grouped.setdefault(key, []).append(cell)
        values[key] = own_settings
    return tuple(GridGroup(key, values[key], tuple(members)) for key, members in grouped.items())


def tuning_base(experiment: Experiment, group: GridGroup, *, check: CheckTrial) -> Trial:
    """The trial that a group's study varies: BASE's seeds, and BASE's selection at ratio 1.0, of
    the retain set too, where the tuning is shared. Nothing of it depends on which other values the
    axes have.
    """
    base_settings = flatten(experiment.base)
    fixed = {name: base_settings[name] for name in SEED_SETTINGS}
    if grouping(experiment) != "per_cell":
        fixed |= {name: value for name, value in base_settings.items() if name.startswith(CHOOSING)}
        fixed |= {"select.ratio": FULL_RATIO, "retain.ratio": FULL_RATIO, "retain.general": 0.0}
    return check(with_values(group.cells[0], fixed))


def grouping(experiment: Experiment) -> str:
    """Which cells share one tuning, as `budget.tuning` says it; winners that are taken stand for
    the cells that they stood for in their run.
    """
    budget = experiment.budget
    return experiment.winners.tuning if budget.takes_winners else budget.tuning


def search_space(experiment: Experiment, base: Trial) -> dict[str, Domain]:
    """What of SEARCH the trial has: options of functions that it does not use are not searched."""
    flat = flatten(base)
    return {name: domain for name, domain in experiment.search.items() if name in flat}


def own_values(experiment: Experiment, base: Trial) -> dict[str, Value]:
    """BASE's (or its recipe's) values of what is searched: those of trial 0."""
    flat = flatten(base)
    return {name: flat[name] for name in search_space(experiment, base)}


def outside_search(
    experiment: Experiment, groups: Iterable[GridGroup], *, check: CheckTrial
) -> tuple[str, ...]:
    """One sentence for each value of BASE that lies outside SEARCH: trial 0 has it all the same."""
    sentences: dict[str, None] = {}
    for group in groups if experiment.budget.tuning in ("shared", "per_cell") else ():
        base = tuning_base(experiment, group, check=check)
        space, base_values = search_space(experiment, base), own_values(experiment, base)
        for name in values_outside(space, base_values):
            sentences[
                f"BASE's {name} = {base_values[name]!r} lies outside SEARCH, {space[name].words}:"
                " trial 0 tries it, and Optuna is not told of that trial"
            ] = None
    return tuple(sentences)


def group_winner(experiment: Experiment, group: GridGroup) -> Winner:
    """The winner that the run of the budget has for a group. Raises UserError where it was not
    read.
    """
    winner = experiment.winners.by_group.get(group.key)
    if winner is None:
        rule = f"{experiment.budget.source or 'a run'} must have a tuned winner for every group"
        raise UserError(f"{rule}, got none for {study_name(group)}")
    return winner


def study_name(group: GridGroup) -> str:
    """`method.forget=npo, data.redundancy=4`: the group in words; `all` where there is one."""
    return ", ".join(f"{name}={value}" for name, value in group.values.items()) or "all"


def search_name(group: GridGroup, search: int) -> str:
    """The study's name: the group in words, and from the second search on its number."""
    return study_name(group) + (f", search {search + 1}" if search else "")


def _with_seed(base: Trial, offset: int) -> Trial:
    """The trial with its seeds counted up."""
    settings = flatten(base)
    seeds = {name: int(settings[name]) + offset for name in SEED_SETTINGS}
    return with_values(base, seeds) if offset else base


def _splits(name: str, tuning: str) -> bool:
    return name not in SEED_SETTINGS and (tuning == "per_cell" or not name.startswith(CHOOSING))


def study_trial(
    values: Mapping[str, Value], result: TrialResult, goal: StudyGoal, *, trial_id: str
) -> StudyTrial:
    """A trial as its study knows it."""
    return StudyTrial(
        values=values,
        status=result.status,
        forgetting=goal.objective(result),
        utility=result.utility,
        violation=goal.floor - result.utility,
        trial_id=trial_id,
    )


def _require_cmaes_fits(
    experiment: Experiment, group: GridGroup, space: Mapping[str, Domain]
) -> None:
    """Raise UserError where CMA-ES is asked for one number: Optuna would draw it at random."""
    rule = f"budget.sampler=cmaes needs two or more names of SEARCH that {study_name(group)} has"
    require(experiment.budget.sampler != "cmaes" or len(space) > 1, rule, ", ".join(space))


def pruned_trial(values: Mapping[str, Value], at_rung: RungValue, *, trial_id: str) -> StudyTrial:
    """A trial that ended at a rung, as its study knows it."""
    return StudyTrial(
        values=values,
        status=PRUNED,
        violation=at_rung.violation,
        trial_id=trial_id,
        seen={at_rung.step: at_rung.forgetting},
    )


def _ended_setting(
    values: Mapping[str, Value],
    seeds: Sequence[PlannedTrial],
    member: BatchMember,
    results: Mapping[str, TrialResult],
    goal: StudyGoal,
) -> StudyTrial | None:
    """A setting as its study knows it, None before all its seeds have ended or it was pruned."""
    if member.pruned is not None:
        return pruned_trial(values, member.pruned, trial_id=seeds[0].trial_id)
    if not all(has_reached(results.get(row.trial_id), TO_THE_END) for row in seeds):
        return None
    return judged_by_seeds(
        [study_trial(values, results[row.trial_id], goal, trial_id=row.trial_id) for row in seeds]
    )


def ready_rows(
    rows: Iterable[PlannedTrial], results: Mapping[str, TrialResult]
) -> dict[str, PlannedTrial]:
    """The trials that can run now, by id: those that have not begun, and those that may go on from
    a rung. One that serves twice runs as far as the row that wants the most.
    """
    ready: dict[str, PlannedTrial] = {}
    for row in rows:
        result = results.get(row.trial_id)
        if result is None or waits_below(result, row.rungs.until):
            before = ready.get(row.trial_id, row)
            ready[row.trial_id] = max(before, row, key=lambda planned: planned.rungs.until)
    return ready


def at_rungs(
    rows: Iterable[PlannedTrial], results: Mapping[str, TrialResult]
) -> tuple[PlannedTrial, ...]:
    """The trials that have paused, each once."""
    paused = {row.trial_id: row for row in rows if _status_of(row, results) == PAUSED}
    return tuple(paused.values())


def can_be_judged(trial: Trial) -> bool:
    """Whether a look at a trial sees what its end will be made of: not where weights change after
    the last step (averages, task vectors).
    """
    from rayunlearn.registry import changes_after_training

    return not changes_after_training(trial)


def _status_of(row: PlannedTrial, results: Mapping[str, TrialResult]) -> str:
    return results[row.trial_id].status if row.trial_id in results else ""


def _without_rungs(group: GridGroup, base: Trial, budget: Budget) -> tuple[str, ...]:
    if not budget.rung_shares or can_be_judged(base):
        return ()
    rule = "weights change after the last step, so budget.rungs does not stop its tuning trials"
    return (f"{study_name(group)}: {rule}",)


def _cut_short(group: GridGroup, n_trials: int, budget: Budget) -> tuple[str, ...]:
    if n_trials == budget.trials:
        return ()
    return (
        f"{study_name(group)}: SEARCH has {n_trials} different settings, so its tuning takes"
        f" {n_trials} trials, not {budget.trials} (budget.trials)",
    )


def _blocked(group: GridGroup, goal: StudyGoal, is_complete: bool) -> tuple[str, ...]:
    missing = {"base": "no utility floor is known", "gold": "nothing is known to aim at"}
    if goal.unmeasured:
        return (
            f"{study_name(group)}: {goal.unmeasured} could not be measured, so"
            f" {missing[goal.unmeasured]} and its grid is not run",
        )
    return (
        (f"{study_name(group)}: no tuning trial was measured to its end, so its grid is not run",)
        if is_complete
        else ()
    )


def _without_target(group: GridGroup, goal: StudyGoal, objective: Objective) -> tuple[str, ...]:
    """What forgetting aims at, where it is not what the objective names."""
    if goal.target is None or goal.target.kind == objective.target:
        return ()
    if goal.target.kind == "chance":
        words = f"there is no gold model, so {objective.forgetting} was to come to chance"
        return (f"{study_name(group)}: {words}",)
    return (
        f"{study_name(group)}: there is no gold model to aim at and no chance level of"
        f" {objective.forgetting} was measured, so the trial that forgets most was chosen"
        " (objective.target=none)",
    )


def _infeasible(group: GridGroup, winner: StudyTrial, objective: Objective) -> tuple[str, ...]:
    if winner.violation <= 0:
        return ()
    rule = (
        f"no tuning trial kept {objective.utility} on {objective.utility_split} at"
        f" {objective.utility_floor:g} x base"
    )
    return (
        (
            f"{study_name(group)}: {rule}; the one with the highest utility ({winner.utility:.3f})"
            " is used"
        ),
    )
