"""From an experiment and what has finished to the trials that can run now: no Ray, no torch, no
state.

`agenda` is the one function behind first runs, resumes and `rayunlearn plan`. It expands the axes
to cells in canonical form, adds base, gold and the retain-only controls, and lets each group of
cells be tuned first.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rayunlearn.config import Select, Token, Trial, Value, flatten, with_values
from rayunlearn.experiment import SEEDS, Experiment, Grid, Objective, axis_names
from rayunlearn.tuning import Finished, best, seed_of, suggest

if TYPE_CHECKING:
    import polars as pl

Check = Callable[[Trial], Trial]
Identify = Callable[[Trial], str]


@dataclass(frozen=True)
class Result:
    """How a trial ended; `forgetting` and `utility` are NaN where it was not measured."""

    status: str
    forgetting: float = math.nan
    utility: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One row of the plan. A trial that serves twice (a control of two groups) has two rows and one
    id.
    """

    trial_id: str
    trial: Trial
    role: str
    group: str
    tuning: str
    study: str = ""
    study_index: int = -1

    def row(self) -> dict[str, Value]:
        """The row of plan.parquet."""
        return {
            "trial_id": self.trial_id,
            "role": self.role,
            "group": self.group,
            "tuning": self.tuning,
            "study": self.study,
            "study_index": self.study_index,
        }


@dataclass(frozen=True, kw_only=True)
class Agenda:
    """What is known of the plan now.

    `rows`: every trial whose settings are known; `ready`: those of them that have not ended, each
    id once; `waiting`: number of trials whose settings depend on results that are still to come;
    `expected`: the grid and control rows of groups that are still tuned, with a stand-in for the
    tuned values (to count, never to run); `notes`: what a summary has to say.
    """

    rows: tuple[Planned, ...]
    ready: tuple[Planned, ...]
    waiting: int
    expected: tuple[Planned, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Number of different trials, those that wait included."""
        return len({row.trial_id for row in self.rows}) + self.waiting


@dataclass(frozen=True)
class Group:
    """Cells that share one tuning."""

    key: str
    values: Mapping[str, Value]
    cells: tuple[Trial, ...]


class Plans(Protocol):
    """What a run on Ray asks of a plan: the agenda, to be kept in the run folder whenever it
    changes, and what it is about.
    """

    experiment: Experiment

    def agenda(self, results: Mapping[str, Result]) -> Agenda:
        """What can run now."""

    def keep(self, run: Path, agenda: Agenda) -> None:
        """Write the agenda down."""


@dataclass
class Planner:
    """`agenda` with a memory: ids and suggestions are pure functions, so each is computed once.

    check: fills in and validates a trial's options (`families.check`); identify: its trial id.
    """

    experiment: Experiment
    check: Check
    identify: Identify
    _ids: dict[Trial, str] = field(default_factory=dict)
    _canonical: dict[Trial, Trial] = field(default_factory=dict)
    _suggested: dict[tuple[object, ...], list[dict[str, Value]]] = field(default_factory=dict)
    _groups: tuple[Group, ...] = ()
    _stages: dict[str, tuple[Planned, ...]] = field(default_factory=dict)
    _final: dict[tuple[object, ...], tuple[Planned, ...]] = field(default_factory=dict)

    def agenda(self, results: Mapping[str, Result]) -> Agenda:
        """What can run now, given every trial that has ended."""
        self._groups = self._groups or groups_of(self.experiment, check=self.canonical)
        groups = self._groups
        rows: dict[tuple[str, str, str], Planned] = {}
        expected: list[Planned] = []
        waiting = 0
        notes: list[str] = []
        for group in groups:
            for row in self.stages(group):
                rows.setdefault((row.trial_id, row.role, row.group), row)
        for group in groups:
            part = self.group_agenda(group, results)
            rows |= {
                (row.trial_id, row.role, f"{row.group}{row.study_index}"): row for row in part.rows
            }
            expected += part.expected
            waiting += part.waiting
            notes += part.notes
        known = {row.trial_id for row in rows.values()}
        unknown = {row.trial_id for row in expected} - known
        ready = {row.trial_id: row for row in rows.values() if row.trial_id not in results}
        return Agenda(
            rows=tuple(rows.values()),
            ready=tuple(ready.values()),
            waiting=waiting + len(unknown),
            expected=tuple(expected),
            notes=tuple(notes),
        )

    def keep(self, run: Path, agenda: Agenda) -> None:
        """Rewrite plan.parquet with every row that is known by now."""
        from rayunlearn.results.store import write_table

        write_table(run / "plan.parquet", "plan", [row.row() for row in agenda.rows])

    def group_agenda(self, group: Group, results: Mapping[str, Result]) -> Agenda:
        """One group: its study as far as results allow, then its grid and its controls."""
        experiment = self.experiment
        base = tuning_base(experiment, group, check=self.canonical)
        space = {
            name: domain for name, domain in experiment.search.items() if name in flatten(base)
        }
        if experiment.budget.tuning == "none" or not space:
            rows = self.final(group, {}, "none")
            return Agenda(rows=rows, ready=(), waiting=0)
        base_id = self.stage(base, "base").trial_id
        floor = (
            experiment.objective.utility_floor * results[base_id].utility
            if base_id in results
            else math.nan
        )
        study, finished = self.study(group, base, results, floor=floor)
        left = experiment.budget.trials - len(study)
        ended = left == 0 and len(finished) == len(study) and math.isfinite(floor)
        winner = best(finished) if ended else None
        if winner is None:
            stand_in = {name: flatten(study[0].trial)[name] for name in space}
            notes = _blocked(group, base_id in results and not math.isfinite(floor), ended)
            return Agenda(
                rows=study,
                ready=(),
                waiting=left,
                expected=self.final(group, stand_in, experiment.budget.tuning),
                notes=notes,
            )
        rows = (*study, *self.final(group, winner.values, experiment.budget.tuning))
        return Agenda(
            rows=rows, ready=(), waiting=0, notes=_infeasible(group, winner, experiment.objective)
        )

    def study(
        self, group: Group, base: Trial, results: Mapping[str, Result], *, floor: float
    ) -> tuple[tuple[Planned, ...], tuple[Finished, ...]]:
        """The study's trials that can be known now, and those of them that have ended, both in
        study order.

        A batch is asked for when every trial before it has ended and base's utility is known.
        """
        rows: list[Planned] = []
        finished: list[Finished] = []
        budget = self.experiment.budget
        while (
            len(rows) < budget.trials
            and len(finished) == len(rows)
            and (not rows or math.isfinite(floor))
        ):
            asked = self.suggestions(
                group, base, tuple(finished), min(budget.batch, budget.trials - len(rows))
            )
            for values in asked:
                trial = self.canonical(with_values(base, values))
                rows.append(
                    self.planned(
                        trial,
                        "tuning",
                        group.key,
                        budget.tuning,
                        study=study_name(group),
                        study_index=len(rows),
                    )
                )
                if rows[-1].trial_id in results:
                    finished.append(
                        _finished(values, results[rows[-1].trial_id], floor, rows[-1].trial_id)
                    )
        return tuple(rows), tuple(finished)

    def suggestions(
        self, group: Group, base: Trial, finished: tuple[Finished, ...], batch: int
    ) -> list[dict[str, Value]]:
        """`suggest`, remembered."""
        space = {
            name: domain for name, domain in self.experiment.search.items() if name in flatten(base)
        }
        key = (
            group.key,
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
                space, finished, batch=batch, seed=seed_of(study_name(group), len(finished))
            )
        return self._suggested[key]

    def final(self, group: Group, values: Mapping[str, Value], tuning: str) -> tuple[Planned, ...]:
        """The group's cells and its retain-only controls with the tuned values that apply to them;
        made once for the same values.
        """
        key = (group.key, tuning, repr(sorted(values.items())))
        if key not in self._final:
            self._final[key] = self._make_final(group, values, tuning)
        return self._final[key]

    def _make_final(
        self, group: Group, values: Mapping[str, Value], tuning: str
    ) -> tuple[Planned, ...]:
        cells = [self.canonical(with_values(cell, values)) for cell in group.cells]
        controls = [
            self.canonical(control_of(cell))
            for cell in cells
            if cell.method.forget != "none" and cell.method.retain != "none"
        ]
        rows = [self.planned(cell, "grid", group.key, tuning) for cell in dict.fromkeys(cells)]
        return (
            *rows,
            *(self.planned(cell, "control", group.key, tuning) for cell in dict.fromkeys(controls)),
        )

    def stages(self, group: Group) -> tuple[Planned, ...]:
        """Base, and gold where there is one, of whatever data, model and metrics the group's cells
        use, each once; made once.
        """
        if group.key not in self._stages:
            wanted = (
                (cell, role)
                for cell in group.cells
                for role in ("base", "gold")
                if role == "base" or has_gold(cell)
            )
            self._stages[group.key] = tuple(
                dict.fromkeys(self.stage(cell, role) for cell, role in wanted)
            )
        return self._stages[group.key]

    def stage(self, cell: Trial, role: str) -> Planned:
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
    ) -> Planned:
        """A plan row of a canonical trial."""
        if trial not in self._ids:
            self._ids[trial] = self.identify(trial)
        return Planned(
            trial_id=self._ids[trial],
            trial=trial,
            role=role,
            group=group,
            tuning=tuning,
            study=study,
            study_index=study_index,
        )

    def canonical(self, trial: Trial) -> Trial:
        """`canonical`, remembered."""
        if trial not in self._canonical:
            self._canonical[trial] = canonical(trial, check=self.check)
        return self._canonical[trial]


def canonical(trial: Trial, *, check: Check) -> Trial:
    """The one form of a trial that others differ from in name only.

    Base and gold train nothing: only their data, their model and what is measured and explained
    count. With the whole forget set the selector does not matter; without a forget loss (the
    retain-only control) neither selector nor ratio does, except that `epochs` of a smaller coreset
    are fewer steps, so there the control keeps its ratio; token rules are forget's. Other texts
    than the original are another training, so only what chooses documents is dropped there.
    """
    # `check` keeps the options of the metrics
    if trial.stage != "unlearned":
        explain = replace(trial.explain, path_points=0)
        return check(
            Trial(
                stage=trial.stage,
                data=trial.data,
                model=trial.model,
                measure=trial.measure,
                explain=explain,
                options=trial.options,
            )
        )
    if trial.method.forget == "none":
        trial = replace(
            trial,
            select=Select(ratio=trial.select.ratio if trial.train.unit == "epochs" else 1.0),
            token=Token(),
        )
    elif trial.select.ratio == 1.0:
        trial = replace(trial, select=whole_set(trial.select))
    return check(trial)


def whole_set(select: Select) -> Select:
    """The one form of a selection of everything: nothing chooses documents, and without a text arm
    nothing else matters.
    """
    if select.text == "original":
        return Select()
    drawn = select.text in ("random_words", "shuffled_keywords")
    return replace(select, name="random", stratified=True, seed=select.seed if drawn else 0)


def control_of(cell: Trial) -> Trial:
    """The same training without the forget loss."""
    return with_values(cell, {"method.forget": "none"})


def has_gold(trial: Trial) -> bool:
    """Whether there is a model that never saw the forget set: one is taught here, or one was named."""
    return trial.model.teach or bool(trial.model.gold)


def cells_of(grid: Grid, base: Trial) -> Iterable[Trial]:
    """BASE with every combination of the grid's points, the last axis fastest."""
    for points in product(*(axis.points for axis in grid)):
        values = {
            name: value
            for axis, point in zip(grid, points, strict=True)
            for name, value in zip(axis.names, point, strict=True)
        }
        yield with_values(base, values)


def groups_of(experiment: Experiment, *, check: Check) -> tuple[Group, ...]:
    """The cells of all grids, each once and in canonical form, by the axis values that share one
    tuning.
    """
    cells = dict.fromkeys(
        check(cell) for grid in experiment.grids for cell in cells_of(grid, experiment.base)
    )
    names = [name for name in axis_names(experiment) if _splits(name, experiment.budget.tuning)]
    grouped: dict[str, list[Trial]] = {}
    values: dict[str, dict[str, Value]] = {}
    for cell in cells:
        flat = flatten(cell)
        mine = {name: flat[name] for name in names if name in flat}
        key = json.dumps(mine, sort_keys=True)
        grouped.setdefault(key, []).append(cell)
        values[key] = mine
    return tuple(Group(key, values[key], tuple(members)) for key, members in grouped.items())


def tuning_base(experiment: Experiment, group: Group, *, check: Check) -> Trial:
    """The trial that a group's study varies: BASE's seeds, and ratio 1.0 where the tuning is
    shared.
    """
    seeds = {name: flatten(experiment.base)[name] for name in SEEDS}
    whole: dict[str, Value] = (
        {"select.ratio": 1.0} if experiment.budget.tuning != "per_cell" else {}
    )
    return check(with_values(group.cells[0], seeds | whole))


def study_name(group: Group) -> str:
    """`method.forget=npo, data.redundancy=4`: the group in words; `all` where there is one."""
    return ", ".join(f"{name}={value}" for name, value in group.values.items()) or "all"


def results_of(run: Path, objective: Objective) -> dict[str, Result]:
    """Every ended trial of a run with the two values that the objective asks for, read from
    Parquet.
    """
    from rayunlearn.results.store import finished, open_run

    statuses = finished(run)
    if not statuses:
        return {}
    opened = open_run(run, own=True)
    values = {
        row[0]: (_number(row[1]), _number(row[2]))
        for row in _objective_values(opened.evals, opened.trials, objective).collect().iter_rows()
    }
    return {
        trial_id: Result(status, *values.get(trial_id, (math.nan, math.nan)))
        for trial_id, status in statuses.items()
    }


def result_of(run: Path, trial_id: str, objective: Objective) -> Result | None:
    """One trial's result from its own folder, None where it has none: cheap however many trials
    there are.
    """
    import polars as pl

    from rayunlearn.results.mirror import fetch_folder

    folder = run / "trials" / trial_id
    # of a run under a URL: it may have run on another machine
    fetch_folder(folder, again=True)
    if not (folder / "trials.parquet").is_file():
        return None
    status = pl.read_parquet(folder / "trials.parquet", columns=["status"]).item()
    values = _objective_values(
        pl.scan_parquet(folder / "evals.parquet"),
        pl.scan_parquet(folder / "trials.parquet"),
        objective,
    ).collect()
    return (
        Result(status, _number(values.item(0, 1)), _number(values.item(0, 2)))
        if values.height
        else Result(status)
    )


def _objective_values(
    evals: "pl.LazyFrame", trials: "pl.LazyFrame", objective: Objective
) -> "pl.LazyFrame":
    """trial_id, forgetting, utility: the objective's stage (base's and gold's own) without attack,
    last step; of an attack's trial the model that it attacked, after that attack."""
    import polars as pl

    attack = (
        pl.col("attack.name").fill_null("none")
        if "attack.name" in trials.collect_schema()
        else pl.lit("none")
    )
    evals = evals.join(
        trials.select("trial_id", attack.alias("_own")), on="trial_id", maintain_order="left"
    )
    attacked = (pl.col("_own") != "none") & (pl.col("stage") == "unlearned")
    own_stage = (pl.col("stage").is_in(["base", "gold", objective.stage]) | attacked) & (
        pl.col("attack") == pl.col("_own")
    )
    forgetting = (pl.col("metric") == objective.forgetting) & (pl.col("split") == "forget")
    utility = (pl.col("metric") == objective.utility) & (pl.col("split") == objective.utility_split)
    measured = evals.filter(own_stage & (forgetting | utility)).sort("step", maintain_order=True)
    return measured.group_by("trial_id").agg(
        pl.col("value").filter(forgetting).last().alias("forgetting"),
        pl.col("value").filter(utility).last().alias("utility"),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _splits(name: str, tuning: str) -> bool:
    return name not in SEEDS and (tuning == "per_cell" or not name.startswith("select."))


def _finished(values: Mapping[str, Value], result: Result, floor: float, trial_id: str) -> Finished:
    return Finished(
        values=values,
        status=result.status,
        forgetting=result.forgetting,
        utility=result.utility,
        violation=floor - result.utility,
        trial_id=trial_id,
    )


def _blocked(group: Group, base_unmeasured: bool, ended: bool) -> tuple[str, ...]:
    if base_unmeasured:
        return (
            (
                f"{study_name(group)}: base could not be measured, so no utility floor is known and"
                " its grid is not run"
            ),
        )
    return (
        (f"{study_name(group)}: no tuning trial was measured to its end, so its grid is not run",)
        if ended
        else ()
    )


def _infeasible(group: Group, winner: Finished, objective: Objective) -> tuple[str, ...]:
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
