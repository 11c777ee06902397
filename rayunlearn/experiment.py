"""An experiment: one question, a base trial, the grid it is about, what Optuna may search, and the
objective.

An experiment is a Python file with a docstring (question, hypothesis, what would refute it) and the
names BASE, AXES and, where something is tuned, SEARCH, BUDGET and OBJECTIVE; ATTACKS, TRACK
("tensorboard,mlflow") and VERSION are optional. `load` reads it. PRESETS may say the same question
at other sizes: `{"paper": {"BASE": ..., "AXES": ...}}` puts these names instead of the file's.
ROWS brings methods, selectors, metrics and attacks that the file defines itself, PLUGINS names
files beside it that do (`plugins/`). All else is a plain value: workers are sent trials, and the
source of plugins.
"""

import importlib.util
import math
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, MappingProxyType, ModuleType
from typing import Any

from rayunlearn.config import (
    ASKED_FIRST,
    SEED_SETTINGS,
    Objective,
    Trial,
    Value,
    coerce_value,
    digest,
    field_names,
    flatten,
    names_in,
    with_additions,
    with_values,
)
from rayunlearn.errors import UserError, require, unknown_name
from rayunlearn.schema import KEY_METRIC

# share of base's retention at which models are compared (2406.09179 evaluates 0.95 to 0.90)
CALIBRATED = 0.95
TUNINGS = ("shared", "per_cell", "none")
# budget.tuning=from:RUN takes the winners of another run
FROM_RUN = "from:"
# budget.sampler: Optuna's own
SAMPLERS = ("tpe", "gp", "nsga2", "random", "cmaes")
NAMES = (
    *("BASE", "AXES", "SEARCH", "BUDGET", "OBJECTIVE", "ATTACKS", "TRACK", "VERSION", "PRESETS"),
    *("ROWS", "PLUGINS"),
)
# the folder beside the runs that all of them share
CACHE = "cache"
# the preset that every experiment has: the file as it stands
LAPTOP = "laptop"
# by name: the package that it needs
TRACKER_NAMES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny"}
DEFAULT_ATTACKS = ("best", "pareto", "grid")
# of an experiment, beside its base trial
EXPERIMENT_PARTS = ("budget", "objective", "attacks")
# what metrics of tasks of lm-evaluation-harness begin with (`metrics.harness.PREFIX`)
HARNESS = "harness."
# A search over these would ask for another corpus, another base model or another study in every
# trial.
NOT_SEARCHED = ("stage", "method.forget", "method.retain", *SEED_SETTINGS)
NOT_SEARCHED_SECTIONS = ("data.", "model.")


@dataclass(frozen=True)
class Range:
    """A domain of SEARCH: numbers from `low` to `high`, both included.

    Raises UserError for bounds that are not finite or not in order, for `log` from 0 or below, and
    for `integer` with bounds that are no whole numbers.

    Args:
        low: the smallest value.
        high: the largest value.
        log: drawn uniformly in the logarithm.
        integer: whole numbers only.

    Example:
        >>> Range(1e-5, 1e-3, log=True)
        Range(low=1e-05, high=0.001, log=True, integer=False)
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __post_init__(self) -> None:
        for bound in (self.low, self.high):
            require(
                type(bound) in (int, float) and math.isfinite(bound),
                "a Range's bounds must be finite numbers",
                bound,
            )
        require(self.low < self.high, "a Range's low must be < high", (self.low, self.high))
        require(not self.log or self.low > 0, "a Range with log=True must have low > 0", self.low)
        is_integer = float(self.low).is_integer() and float(self.high).is_integer()
        require(
            not self.integer or is_integer,
            "a Range with integer=True must have whole bounds",
            (self.low, self.high),
        )

    @property
    def words(self) -> str:
        """`0.001 to 0.1`."""
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True, init=False)
class Choice:
    """A domain of SEARCH: one of the given values.

    Raises UserError for no value, for one that is no text, number or boolean, and for one that is
    given twice.

    Args:
        values: the values, each of which may be drawn.

    Example:
        >>> Choice("nll", "kl").values
        ('nll', 'kl')
    """

    values: tuple[Value, ...]

    def __init__(self, *values: Value) -> None:
        require(len(values) >= 1, "a Choice needs at least one value", values)
        for value in values:
            require(
                isinstance(value, (str, int, float, bool)),
                "a Choice's values must be text, numbers or booleans",
                value,
            )
        require(
            len(set(values)) == len(values), "a Choice's values must differ from each other", values
        )
        object.__setattr__(self, "values", values)

    @property
    def words(self) -> str:
        """`'a' or 'b'`."""
        return " or ".join(repr(value) for value in self.values)


Domain = Range | Choice


@dataclass(frozen=True, kw_only=True)
class Budget:
    """BUDGET: how hyperparameters are tuned.

    Raises UserError for a `tuning` or `sampler` that there is not, and for numbers below 1.

    Args:
        tuning: `shared`: tuned once per group at ratio 1.0; `per_cell`: every cell has the same
            budget of its own; `none`: BASE's values are taken as they are; `from:RUN`: the winners
            of that run are taken without a search.
        trials: settings that a search tries, per group or per cell; the first has BASE's values.
        batch: trials that are asked for at once; the next batch waits for their results.
        sampler: which of Optuna's asks: tpe, gp, nsga2, cmaes or random.
        seeds: trials of each setting, whose seeds count up from BASE's; the setting is judged by
            the mean of what is minimised and by the lowest utility.
        repeats: searches of each group or cell, independent of each other; the grid runs with the
            winner of each, and the spread between them enters its intervals.
        tuned_from: folder or URL of a run whose winners are tried after the first trial.
        hours: time of all calls together after which no trial begins any more, those that run
            end; 0 for no limit.
        trial_hours: time after which a trial is ended, with status `timed_out`; 0 for no limit.
        rungs: shares of its steps, separated by commas, at which a trial of a study is evaluated
            and waits for the others of its batch, and only the best go on (docs/search.md); none:
            each trains to its end.
        eta: at each rung 1 of `eta` trials goes on, rounded up (2.4: five of twelve).

    Example:
        >>> Budget(trials=12).tuning
        'shared'
    """

    tuning: str = "shared"
    trials: int = 8
    batch: int = 4
    sampler: str = "tpe"
    seeds: int = 1
    repeats: int = 1
    tuned_from: str = ""
    hours: float = 0.0
    trial_hours: float = 0.0
    rungs: str = "none"
    eta: float = 2.0

    def __post_init__(self) -> None:
        shares = self.rung_shares
        rule = "budget.rungs must be rising shares in (0, 1), separated by commas, or none"
        is_rising = list(shares) == sorted({*shares}) and all(0 < share < 1 for share in shares)
        require(is_rising, rule, self.rungs)
        require(2 <= self.eta < math.inf, "budget.eta must be >= 2 and finite", self.eta)
        rule = "budget.seeds must be 1 with budget.rungs, which compare trials and not settings"
        require(not shares or self.seeds == 1, rule, self.seeds)
        if shares and self.sampler in ("nsga2", "cmaes"):
            rule = "budget.rungs needs a sampler without generations (tpe, gp, random)"
            raise UserError(f"{rule}, got {self.sampler!r}")
        if self.tuning not in TUNINGS and not self.takes_winners:
            raise unknown_name("budget.tuning", self.tuning, (*TUNINGS, "from:RUN"))
        require(self.tuning != FROM_RUN, "budget.tuning=from:RUN must name a run", self.tuning)
        require(self.trials >= 1, "budget.trials must be >= 1", self.trials)
        require(self.batch >= 1, "budget.batch must be >= 1", self.batch)
        require(self.seeds >= 1, "budget.seeds must be >= 1", self.seeds)
        require(self.repeats >= 1, "budget.repeats must be >= 1", self.repeats)
        for name in ("hours", "trial_hours"):
            hours = getattr(self, name)
            rule = f"budget.{name} must be finite and >= 0 (0: no limit)"
            require(math.isfinite(hours) and hours >= 0, rule, hours)
        if self.sampler not in SAMPLERS:
            raise unknown_name("budget.sampler", self.sampler, SAMPLERS)
        require(
            self.sampler not in ("nsga2", "cmaes") or self.batch >= 2,
            f"budget.sampler={self.sampler} needs budget.batch >= 2, as a batch is its population",
            self.batch,
        )
        searches = self.tuning in ("shared", "per_cell")
        require(
            not self.tuned_from or searches,
            "budget.tuned_from (--tuned-from) needs a search: budget.tuning 'shared' or 'per_cell'",
            self.tuning,
        )

    @property
    def trials_per_group(self) -> int:
        """Tuning trials of a group or cell, where its settings cannot be listed."""
        return self.trials * self.seeds * self.repeats

    @property
    def source(self) -> str:
        """The run whose winners are taken or tried first, '' for none."""
        return self.tuned_from or (self.tuning.removeprefix(FROM_RUN) if self.takes_winners else "")

    @property
    def rung_shares(self) -> tuple[float, ...]:
        """`rungs` as numbers; () where nothing is searched or no trial is judged before its end."""
        if self.rungs == "none" or self.tuning not in ("shared", "per_cell"):
            return ()
        try:
            return tuple(float(part) for part in self.rungs.split(","))
        except ValueError:
            rule = "budget.rungs must be rising shares in (0, 1), separated by commas, or none"
            raise UserError(f"{rule}, got {self.rungs!r}") from None

    @property
    def takes_winners(self) -> bool:
        """Whether another run's winners are taken without a search."""
        return self.tuning.startswith(FROM_RUN)


@dataclass(frozen=True, kw_only=True)
class Winner:
    """What another run's tuning chose for a group: the run, the trial that won and its tuned
    values.
    """

    run: str
    trial_id: str
    values: Mapping[str, Value]

    @property
    def words(self) -> str:
        """`runs/hello/1 4ae438a0`: where the values come from, a column of the plan."""
        return f"{self.run} {self.trial_id}"


@dataclass(frozen=True, kw_only=True)
class Winners:
    """The winners of the run that `budget.source` names: `tuning` is that run's, `by_group` has
    them by the key of the group here that takes them.
    """

    tuning: str = ""
    by_group: Mapping[str, Winner] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """What `rayunlearn run` attacks when every trial has ended: `panel` ('' for none) on `trials`,
    as `rayunlearn attack` does. A strength that is searched may cost at most the share
    `utility_loss` of the attacked model's utility (1: all of it).
    """

    panel: str = ""
    trials: str = "grid"
    utility_loss: float = 1.0

    def __post_init__(self) -> None:
        if self.trials not in DEFAULT_ATTACKS:
            raise unknown_name("attacks.trials", self.trials, DEFAULT_ATTACKS)
        rule = "attacks.utility_loss must be in [0, 1]"
        require(0 <= self.utility_loss <= 1, rule, self.utility_loss)


@dataclass(frozen=True)
class Axis:
    """One axis: `names` move together; each point gives one value per name."""

    names: tuple[str, ...]
    points: tuple[tuple[Value, ...], ...]


Grid = tuple[Axis, ...]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment, checked when it is built; `load` builds it from a file.

    Raises UserError for a name of `search` that cannot be searched, an empty `search` that is to be
    tuned, a `base` of another stage than `unlearned`, an unknown tracker, and a version that names
    no folder.

    Args:
        name: name of the file, and of the folder of its runs.
        question: what the file's docstring asks.
        base: settings of every trial where no axis and no tuning says otherwise.
        grids: axes that are crossed; a cell that two grids give is one cell.
        search: domain by setting or option, for the tuning.
        budget: how the tuning is done.
        objective: what the tuning minimises and maximises.
        attacks: what is attacked when every trial has ended.
        track: trackers that are told of every trial: tensorboard, wandb, mlflow.
        version: folder of the run under the name; letters, digits, '.', '_', '-'.
        winners: what was read of the run that the budget names.

    Example:
        >>> experiment = Experiment(
        ...     name="mine",
        ...     question="How low can the ratio go?",
        ...     base=Trial(),
        ...     grids=grids_of({"select.ratio": [1.0, 0.25]}),
        ...     search={},
        ...     budget=Budget(tuning="none"),
        ...     objective=Objective(),
        ... )
        >>> axis_names(experiment)
        ('select.ratio',)
    """

    name: str
    question: str
    base: Trial
    grids: tuple[Grid, ...]
    search: Mapping[str, Domain]
    budget: Budget
    objective: Objective
    attacks: Attacks = field(default_factory=Attacks)
    track: tuple[str, ...] = ()
    version: str = "1"
    winners: Winners = field(default_factory=Winners)

    def __post_init__(self) -> None:
        for name in self.search:
            _check_searched(self, name)
        _check_sampler(self)
        require(
            bool(self.search) or self.budget.tuning == "none" or self.budget.takes_winners,
            "SEARCH must name something when budget.tuning is not 'none'",
            self.budget.tuning,
        )
        require(
            self.base.stage == "unlearned",
            "BASE's stage must be 'unlearned' (base and gold are added by themselves)",
            self.base.stage,
        )
        if needed := _needed_by_objective(self):
            object.__setattr__(self, "base", with_values(self.base, needed))
        has_rungs = bool(self.budget.rung_shares)
        judge = "budget.rungs" if has_rungs else "stop.keep=best" if _keeps_best(self) else ""
        rule = f"objective.stage must be 'unlearned' with {judge}, as a look sees nothing later"
        require(not judge or self.objective.stage == "unlearned", rule, self.objective.stage)
        for name in self.track:
            if name not in TRACKER_NAMES:
                raise unknown_name("tracker", name, TRACKER_NAMES)
        require(
            is_folder_name(self.name),
            "an experiment's name, its file's without .py, must name a folder of its own in the"
            " output folder",
            self.name,
        )
        safe = (
            bool(self.version)
            and self.version not in (".", "..")
            and all(c.isalnum() or c in "._-" for c in self.version)
        )
        require(safe, "a version must be letters, digits, '.', '_' or '-'", self.version)


def _needed_by_objective(experiment: Experiment) -> dict[str, Value]:
    """The settings that BASE must have for the objective to be measured."""
    objective, needed = experiment.objective, dict[str, Value]()
    if objective.stage == "calibrated" and experiment.base.calibrate.tau == 0:
        needed["calibrate.tau"] = CALIBRATED
    if objective.stage == "attacked":
        needed["measure.attack"] = objective.attack
    if _keeps_best(experiment):
        needed["stop.target"] = objective.target
    looks_judge = _keeps_best(experiment) or bool(experiment.budget.rung_shares)
    return needed | (looks_of(objective) if looks_judge else {})


def looks_of(objective: Objective) -> dict[str, Value]:
    """The settings by which a trial's looks see what the objective asks for."""
    return {
        "stop.forgetting": objective.forgetting,
        "stop.utility": objective.utility,
        "stop.utility_split": objective.utility_split,
        "stop.keep_floor": objective.utility_floor,
    }


def _keeps_best(experiment: Experiment) -> bool:
    """Whether a trial of the experiment ends with the weights of its best look."""
    axes = [axis for grid in experiment.grids for axis in grid if "stop.keep" in axis.names]
    on_axis = any("best" in point for axis in axes for point in axis.points)
    return experiment.base.stop.keep == "best" or on_axis


def is_folder_name(name: str) -> bool:
    """Whether an experiment may be called so: one folder below the output folder, not its cache."""
    return (
        bool(name.strip(" ."))
        and name != CACHE
        and name.isprintable()
        and not any(mark in name for mark in "/\\")
    )


def axis_names(experiment: Experiment) -> tuple[str, ...]:
    """Every name on an axis of any grid, each once, in the order of the file."""
    return tuple(
        dict.fromkeys(name for grid in experiment.grids for axis in grid for name in axis.names)
    )


def load(path: str | Path, *, preset: str = LAPTOP) -> Experiment:
    """Read an experiment file at one of its presets. The experiment's name is the file's stem.

    Raises UserError for a file that is missing or does not run, for a name that is missing, of the
    wrong type or misspelt, for an axis or a search name that no setting and no function has, and
    for a preset that the file does not have.

    Args:
        path: the experiment file.
        preset: a name of the file's PRESETS; `laptop` is the file as it stands.

    Returns:
        The experiment, checked.

    Example:
        >>> load("experiments/hello.py").name
        'hello'
    """
    module = _import(Path(path))
    # late, as what they import is much
    from rayunlearn.registry import option_names

    _load_plugins(module, Path(path))

    experiment = from_module(module, name=Path(path).stem, preset=preset)
    check_names(experiment, available=(*field_names(), *option_names()))
    check_measured(experiment)
    return experiment


def _load_plugins(module: ModuleType, path: Path) -> None:
    """Put the rows of installed plugins, of the files that PLUGINS names and of the file itself
    into the tables.
    """
    from rayunlearn.plugins.load import (
        Plugin,
        add_rows,
        forget_plugin,
        load_installed_plugins,
        load_plugin_file,
    )

    load_installed_plugins()
    for name in _take(module, "PLUGINS", tuple, ()):
        load_plugin_file(path.parent / name)
    origin, rows = str(path.resolve()), _take(module, "ROWS", tuple, ())
    if rows:
        add_rows(Plugin(origin, path.read_text(encoding="utf-8")), rows)
    else:
        forget_plugin(origin)


def from_module(module: ModuleType, *, name: str, preset: str = LAPTOP) -> Experiment:
    """The experiment that a module's BASE, AXES, SEARCH, BUDGET, OBJECTIVE, ATTACKS, TRACK and
    VERSION say.

    A preset other than `laptop` is a version of its own (`1-paper`), so that its trials never stand
    among the others.
    """
    _refuse_misspelt(module)
    module = at_preset(module, preset)
    search = dict(_take(module, "SEARCH", Mapping, {}))
    for key, domain in search.items():
        require(isinstance(domain, Domain), f"SEARCH[{key!r}] must be a Range or a Choice", domain)
    base = _take(module, "BASE", Trial)
    # reads the data, so only where the file does not say it
    is_named = hasattr(module, "OBJECTIVE")
    objective = _take(module, "OBJECTIVE", Objective) if is_named else default_objective(base)
    return Experiment(
        name=name,
        question=(module.__doc__ or "").strip(),
        base=base,
        grids=grids_of(_take(module, "AXES", (Mapping, tuple))),
        search=search,
        budget=_take(module, "BUDGET", Budget, Budget() if search else Budget(tuning="none")),
        objective=objective,
        attacks=_take(module, "ATTACKS", Attacks, Attacks()),
        track=_names(_take(module, "TRACK", str, "")),
        version=_take(module, "VERSION", str, "1") + ("" if preset == LAPTOP else f"-{preset}"),
    )


def default_objective(base: Trial) -> Objective:
    """The objective of an experiment file that names none.

    A loaded model that is not trained on the data first knows it in its own words, and unlearning
    may only change how its sentences begin: where every forget and retain probe has a marked `key`,
    and the key is measured, the objective is `key_probability` on both sides. Elsewhere it is
    `probability`.

    Example:
        >>> default_objective(Trial()).forgetting
        'probability'
    """
    from rayunlearn.data.load import load_corpus
    from rayunlearn.metrics.evaluate import chosen_metrics

    if base.model.teach or KEY_METRIC not in chosen_metrics(base.measure.metrics):
        return Objective()
    by_key = Objective(forgetting=KEY_METRIC, utility=KEY_METRIC)
    # of what a model is asked first only facts have keys, all of them
    if base.data.name in ASKED_FIRST:
        return by_key if base.data.name == "known" else Objective()
    probes = load_corpus(base.data).probes
    documents = [*probes.get("forget", ()), *probes.get("retain", ())]
    return by_key if all(document.key for document in documents) else Objective()


def at_preset(module: ModuleType, preset: str) -> ModuleType:
    """A copy of the module in which the preset's names stand instead of the file's."""
    all_presets: Mapping[str, Mapping[str, Any]] = _take(module, "PRESETS", Mapping, {})
    presets: dict[str, Mapping[str, Any]] = {LAPTOP: {}, **all_presets}
    if preset not in presets:
        raise unknown_name("preset", preset, presets)
    for name in presets[preset]:
        if name not in NAMES[:-1]:
            raise unknown_name(f"name in PRESETS[{preset!r}]", name, NAMES[:-1])
    chosen = ModuleType(module.__name__, module.__doc__)
    vars(chosen).update({**vars(module), **presets[preset]})
    return chosen


def grids_of(axes: Mapping[Any, Any] | tuple[Any, ...]) -> tuple[Grid, ...]:
    """AXES as checked grids; `{("a", "b"): (0, (1, 2))}` sets both to 0, then a to 1 and b to 2."""
    grids = (axes,) if isinstance(axes, Mapping) else axes
    for grid in grids:
        require(isinstance(grid, Mapping), "AXES must be a dict or a tuple of dicts", grid)
    built = tuple(tuple(_axis(key, points) for key, points in grid.items()) for grid in grids)
    for grid in built:
        names = [name for axis in grid for name in axis.names]
        require(
            len(names) == len(set(names)), "a name must stand on one axis of a grid only", names
        )
    return built or ((),)


def check_names(experiment: Experiment, *, available: Collection[str]) -> None:
    """Raise UserError with the nearest name for an axis or a search name that is not `known`."""
    for name in axis_names(experiment):
        if name not in available:
            raise unknown_name("name in AXES", name, available)
    for name in experiment.search:
        if name not in available:
            raise unknown_name("name in SEARCH", name, available)


def check_objective(objective: Objective, *, directions: Mapping[str, str]) -> None:
    """Raise UserError for a metric that is unknown or where less is more knowledge: forgetting is
    minimised, utility maximised.
    """
    for setting, name in (
        ("objective.forgetting", objective.forgetting),
        ("objective.utility", objective.utility),
    ):
        if name not in directions:
            raise unknown_name(setting, name, directions)
        require(
            directions[name] == "higher",
            f"{setting} must be a metric where higher is more knowledge",
            name,
        )


def check_measured(experiment: Experiment) -> None:
    """Raise UserError for an objective that is no metric (`check_objective`) or that the
    experiment's trials do not measure.
    """
    from rayunlearn.metrics.evaluate import chosen_metrics
    from rayunlearn.metrics.table import METRICS

    goal = experiment.objective
    if goal.utility.startswith(HARNESS):
        # what the harness calls its metrics only the harness knows
        _check_asked(experiment)
        goal = replace(goal, utility=goal.forgetting)
    check_objective(goal, directions={name: row.direction for name, row in METRICS.items()})
    axes = [
        (axis, axis.names.index("measure.metrics"))
        for grid in experiment.grids
        for axis in grid
        if "measure.metrics" in axis.names
    ]
    metrics = [str(point[column]) for axis, column in axes for point in axis.points] or [
        experiment.base.measure.metrics
    ]
    for names in metrics:
        for setting, metric in (
            ("objective.forgetting", goal.forgetting),
            ("objective.utility", goal.utility),
        ):
            require(
                metric in chosen_metrics(names),
                f"{setting} must be among the metrics that measure.metrics {names!r} names",
                metric,
            )


def _check_asked(experiment: Experiment) -> None:
    """Raise UserError for a utility on a task of lm-evaluation-harness that no trial is asked."""
    goal, tasks = experiment.objective, names_in(experiment.base.measure.harness)
    rule = (
        f"objective.utility_split must be a task of measure.harness where {goal.utility!r} is the"
        f" utility ({', '.join(tasks)})"
    )
    require(goal.utility_split in tasks, rule, goal.utility_split)
    judged = bool(experiment.budget.rung_shares) or _keeps_best(experiment)
    rule = "objective.utility must be no task of the harness with budget.rungs or stop.keep=best"
    require(not judged, f"{rule}, whose looks do not ask it", goal.utility)


def override(
    experiment: Experiment,
    values: Mapping[str, Value],
    *,
    recipe: Mapping[str, Value] = MappingProxyType({}),
) -> Experiment:
    """A changed copy, for `--set`: a name on an axis keeps that single value; a searched name is
    fixed to it. A recipe's values go under them, and what it says of a searched name is where the
    search begins.

    `budget.*`, `objective.*` and `attacks.*` change those; `version` and `track` change these;
    every other name changes BASE. `NAME+` adds to the list that BASE has (`with_additions`).

    Args:
        experiment: the experiment to start from; it stays as it is.
        values: new values by name.
        recipe: settings of a published run; `values` go over them.

    Returns:
        The changed copy.

    Raises:
        UserError: a name that is unknown, a value out of its range, or an addition to a setting
            that is on an axis.

    Example:
        >>> override(load("experiments/hello.py"), {"budget.trials": 4}).budget.trials
        4
    """
    axes = {name for grid in experiment.grids for axis in grid for name in axis.names}
    for name in values:
        rule = (
            "--set NAME+=VALUE needs a setting that is on no axis; give the whole list, NAME=LIST"
        )
        require(not name.endswith("+") or name[:-1] not in axes, rule, name)
    current = flatten(experiment.base) | dict(recipe) | {"track": ",".join(experiment.track)}
    values = with_additions(values, current)
    changed = _fixed(
        experiment,
        {
            name: value
            for name, value in values.items()
            if name.partition(".")[0] not in (*EXPERIMENT_PARTS, "version", "track")
        },
        recipe,
    )
    for name, value in values.items():
        section, _, key = name.partition(".")
        if section in EXPERIMENT_PARTS:
            changed = _replace_field(changed, section, key, value)
    if "track" in values:
        changed = replace(changed, track=_names(str(values["track"])))
    return replace(changed, version=str(values["version"])) if "version" in values else changed


def with_axes(experiment: Experiment, axes: Mapping[str, Any]) -> Experiment:
    """A changed copy in which each of these names is an axis of every grid, and is no longer
    searched.

    Args:
        experiment: the experiment to start from; it stays as it is.
        axes: values by name.

    Returns:
        The changed copy.

    Raises:
        UserError: a name that no setting and no function has, or an axis without values.

    Example:
        >>> changed = with_axes(load("experiments/hello.py"), {"select.ratio": (0.5, 1.0)})
        >>> [axis.points for axis in changed.grids[0] if axis.names == ("select.ratio",)]
        [((0.5,), (1.0,))]
    """
    if not axes:
        return experiment
    from rayunlearn.registry import option_names

    grids = experiment.grids
    for name, points in axes.items():
        axis = _axis(name, points)
        grids = tuple((*_grid_without(grid, name), axis) for grid in grids)
    search = {name: domain for name, domain in experiment.search.items() if name not in axes}
    nothing_left = bool(experiment.search) and not search
    budget = replace(experiment.budget, tuning="none") if nothing_left else experiment.budget
    changed = replace(experiment, grids=grids, search=search, budget=budget)
    check_names(changed, available=(*field_names(), *option_names()))
    return changed


def settings(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON-ready values: what experiment.json and the report hold."""
    axes = [
        {", ".join(axis.names): [_format_point(point) for point in axis.points] for axis in grid}
        for grid in experiment.grids
    ]
    search = {
        name: asdict(domain) | {"kind": type(domain).__name__.lower()}
        for name, domain in experiment.search.items()
    }
    return {
        "name": experiment.name,
        "question": experiment.question,
        "version": experiment.version,
        "axes": axes,
        "search": search,
        "budget": asdict(experiment.budget),
        "objective": asdict(experiment.objective),
        "attacks": asdict(experiment.attacks),
        "winners": asdict(experiment.winners),
    }


def _names(text: str) -> tuple[str, ...]:
    """`"tensorboard, mlflow"` as names."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def _format_point(point: tuple[Value, ...]) -> Value | list[Value]:
    """A point of a single name is its value; one value for several names is that value too."""
    return point[0] if len(set(point)) == 1 else list(point)


class _FromSource(SourceFileLoader):
    """Runs a file as it stands. Python's own loader takes compiled code for it where a file has the
    size and the second of an earlier one.
    """

    def get_code(self, fullname: str) -> CodeType:
        """The file's code, compiled now."""
        return self.source_to_code(self.get_data(self.path), self.path)


def _import(path: Path) -> ModuleType:
    matches = (
        get_close_matches(path.name, [file.name for file in path.parent.glob("*.py")], n=1)
        if path.parent.is_dir()
        else []
    )
    meant = f" (did you mean {path.with_name(matches[0])}?)" if matches else ""
    require(path.is_file(), f"an experiment must be a Python file that exists{meant}", str(path))
    require(path.suffix == ".py", "an experiment file's name must end in .py", path.name)
    name = f"_rayunlearn_experiment_{digest(str(path.resolve()))}"
    loader = _FromSource(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses in the file look themselves up there
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        raise UserError(
            f"{path} must import without an error, got {type(error).__name__}:"
            f" {error}{_meant_keyword(error)}{_error_location(error, path)}"
        ) from error
    finally:
        del sys.modules[name]
    return module


def _meant_keyword(error: Exception) -> str:
    """`; did you mean 'batch_size'?` for `Train(batchsize=8)`, '' for any other error."""
    from rayunlearn import config

    match = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    part = match and (getattr(config, match[1], None) or globals().get(match[1]))
    if not match or not is_dataclass(part):
        return ""
    nearest = get_close_matches(match[2], [each.name for each in fields(part)], n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def _error_location(error: Exception, path: Path) -> str:
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line})" if line else ""


def _refuse_misspelt(module: ModuleType) -> None:
    """A capital name that is nearly one of ours (`AXIS`,
    `SERACH`) would be ignored without a word.
    """
    from difflib import get_close_matches

    for name in vars(module):
        if name.isupper() and name not in NAMES and not name.startswith("_"):
            matches = get_close_matches(name, NAMES, n=1, cutoff=0.75)
            if matches and matches[0] not in vars(module):
                raise unknown_name("name in an experiment file", name, NAMES)


def _take(module: ModuleType, name: str, kind: Any, default: Any = None) -> Any:
    value = getattr(module, name, default)
    if value is None:
        raise UserError(
            f"an experiment file must define {name}, got none in {Path(module.__file__ or '').name}"
        )
    expected = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
    require(isinstance(value, kind), f"{name} must be a {expected}", value)
    return value


def _axis(key: Any, points: Any) -> Axis:
    names = (key,) if isinstance(key, str) else key
    texts = (
        isinstance(names, tuple) and len(names) > 0 and all(isinstance(name, str) for name in names)
    )
    require(texts, "a key of AXES must be a name or a tuple of names", key)
    require(
        isinstance(points, (tuple, list, range)) and len(points) > 0,
        f"AXES[{key!r}] must be a tuple of at least one value",
        points,
    )
    return Axis(tuple(names), tuple(_point(names, point) for point in points))


def _point(names: tuple[str, ...], point: Any) -> tuple[Value, ...]:
    values = point if isinstance(point, (tuple, list)) else (point,) * len(names)
    require(
        len(values) == len(names),
        f"a point of the axis {', '.join(names)} must have {len(names)} values",
        point,
    )
    for value in values:
        require(
            isinstance(value, (str, int, float, bool)),
            f"a value of the axis {', '.join(names)} must be text, a number or a boolean",
            value,
        )
    return tuple(values)


def _check_searched(experiment: Experiment, name: str) -> None:
    require(
        name not in axis_names(experiment), "a name must not stand both in AXES and in SEARCH", name
    )
    fixed = name in NOT_SEARCHED or name.startswith(NOT_SEARCHED_SECTIONS)
    require(
        not fixed, "SEARCH must not name data, models, losses or seeds (put them on an axis)", name
    )
    shared = experiment.budget.tuning == "shared"
    require(
        not (shared and name.startswith("select.")),
        "SEARCH must not name select.* when budget.tuning is 'shared' (it tunes at ratio 1.0)",
        name,
    )


def _check_sampler(experiment: Experiment) -> None:
    """CMA-ES moves a normal distribution over numbers, with a package that Optuna does not
    bring.
    """
    if experiment.budget.sampler != "cmaes":
        return
    choices = [name for name, domain in experiment.search.items() if isinstance(domain, Choice)]
    rule = "budget.sampler=cmaes needs a SEARCH of numbers (Range), not of choices"
    require(not choices, rule, ", ".join(choices))
    rule = "budget.sampler=cmaes needs the package cmaes (pip install 'rayunlearn[cmaes]')"
    require(importlib.util.find_spec("cmaes") is not None, rule, "none")


def _fixed(
    experiment: Experiment, values: Mapping[str, Value], recipe: Mapping[str, Value]
) -> Experiment:
    """BASE with these values, all at once, since what one may be depends on the others; no axis
    varies them, and no search draws those that are not the recipe's.
    """
    grids = experiment.grids
    all_values = {**recipe, **values}
    for name, value in all_values.items():
        grids = tuple(_fixed_grid(grid, name, value) for grid in grids)
    search = {key: domain for key, domain in experiment.search.items() if key not in values}
    nothing_left = bool(experiment.search) and not search
    budget = replace(experiment.budget, tuning="none") if nothing_left else experiment.budget
    return replace(
        experiment,
        base=with_values(experiment.base, all_values),
        grids=grids,
        search=search,
        budget=budget,
    )


def _replace_field(experiment: Experiment, section: str, key: str, value: Value) -> Experiment:
    part = getattr(experiment, section)
    field_names_of_part = [f"{section}.{part_field.name}" for part_field in fields(part)]
    if f"{section}.{key}" not in field_names_of_part:
        raise unknown_name("setting", f"{section}.{key}", field_names_of_part)
    changed = replace(
        part, **{key: coerce_value(f"{section}.{key}", value, type(getattr(part, key)))}
    )
    if section == "attacks":
        return replace(experiment, attacks=changed)
    return (
        replace(experiment, budget=changed)
        if section == "budget"
        else replace(experiment, objective=changed)
    )


def _fixed_grid(grid: Grid, name: str, value: Value) -> Grid:
    """The grid with that single value: names that moved with it stay on their axis, one that was
    alone leaves it.
    """
    if all(name not in axis.names for axis in grid):
        return grid
    return (*_grid_without(grid, name), Axis((name,), ((value,),)))


def _grid_without(grid: Grid, name: str) -> Grid:
    return tuple(axis for axis in (_axis_without(axis, name) for axis in grid) if axis.names)


def _axis_without(axis: Axis, name: str) -> Axis:
    if name not in axis.names:
        return axis
    keep = [i for i, other in enumerate(axis.names) if other != name]
    points = dict.fromkeys(tuple(point[i] for i in keep) for point in axis.points)
    return Axis(tuple(axis.names[i] for i in keep), tuple(points))
