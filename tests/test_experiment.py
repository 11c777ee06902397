"""Experiment files: read, checked, changed by `--set`."""

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rayunlearn.config import Objective
from rayunlearn.errors import UserError
from rayunlearn.experiment import (
    Axis,
    Budget,
    Choice,
    Range,
    axis_names,
    check_measured,
    check_names,
    check_objective,
    grids_of,
    load,
    override,
    settings,
)

GOOD = '''"""Question?

Hypothesis.
"""
from rayunlearn.config import Train, Trial
from rayunlearn.experiment import Budget, Objective, Range

BASE = Trial(train=Train(length=10))
AXES = {
    "method.forget": ("npo", "rmu"),
    "select.ratio": (0.25, 1.0),
    ("select.seed", "train.seed"): (0, 1),
}
SEARCH = {"train.learning_rate": Range(1e-5, 1e-2, log=True), "npo.beta": Range(0.05, 1.0)}
BUDGET = Budget(trials=3)
OBJECTIVE = Objective(utility_floor=0.8)
'''


def written(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_gives_its_name_its_question_and_its_values(tmp_path: Path) -> None:
    experiment = load(written(tmp_path, GOOD))
    assert (experiment.name, experiment.version) == ("mine", "1")
    assert experiment.question.startswith("Question?")
    assert experiment.base.train.length == 10
    assert experiment.grids == (
        (
            Axis(("method.forget",), (("npo",), ("rmu",))),
            Axis(("select.ratio",), ((0.25,), (1.0,))),
            Axis(("select.seed", "train.seed"), ((0, 0), (1, 1))),
        ),
    )
    assert experiment.budget == Budget(trials=3) and experiment.objective == Objective(
        utility_floor=0.8
    )


def test_an_experiment_is_a_plain_value_that_pickles_and_whose_settings_are_json(
    tmp_path: Path,
) -> None:
    experiment = load(written(tmp_path, GOOD))
    assert pickle.loads(pickle.dumps(experiment)) == experiment
    content = json.loads(json.dumps(settings(experiment)))
    assert content["axes"] == [
        {
            "method.forget": ["npo", "rmu"],
            "select.ratio": [0.25, 1.0],
            "select.seed, train.seed": [0, 1],
        }
    ]
    assert content["search"]["npo.beta"] == {
        "kind": "range",
        "low": 0.05,
        "high": 1.0,
        "log": False,
        "integer": False,
    }


def test_without_search_nothing_is_tuned(tmp_path: Path) -> None:
    text = 'from rayunlearn.config import Trial\nBASE = Trial()\nAXES = {"select.ratio": (0.5,)}\n'
    assert load(written(tmp_path, text)).budget.tuning == "none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("BASE = ", "BASIS = "), "must define BASE"),
        (
            ("SEARCH = ", "SERACH = "),
            "unknown name in an experiment file 'SERACH'; did you mean 'SEARCH'",
        ),
        (
            ('"select.ratio"', '"select.ration"'),
            "unknown name in AXES 'select.ration'; did you mean 'select.ratio'",
        ),
        (
            ('"npo.beta"', '"npo.beat"'),
            "unknown name in SEARCH 'npo.beat'; did you mean 'npo.beta'",
        ),
        (
            ("Range(0.05, 1.0)", "0.05"),
            r"SEARCH\['npo.beta'\] must be a Range or a Choice, got 0.05",
        ),
        (("BUDGET = Budget(trials=3)", "BUDGET = 3"), "BUDGET must be a Budget, got 3"),
        (("trials=3", "trials=0"), "budget.trials must be >= 1, got 0"),
        (("trials=3", "tuning='sharde'"), "unknown budget.tuning 'sharde'; did you mean 'shared'"),
        (
            ("utility_floor=0.8", "utility_floor=1.8"),
            r"objective.utility_floor must be in \[0, 1\], got 1.8",
        ),
        (
            ("utility_floor=0.8", "utility='perplexity'"),
            "must be a metric where higher is more knowledge, got 'perplexity'",
        ),
        (
            ("utility_floor=0.8", "forgetting='probabilty'"),
            "unknown objective.forgetting 'probabilty'; did you mean 'probability'",
        ),
        (("Range(0.05, 1.0)", "Range(1.0, 0.05)"), "a Range's low must be < high"),
        (("1e-5, 1e-2", "0, 1e-2"), "a Range with log=True must have low > 0, got 0"),
        (
            ('"npo.beta": R', '"train.seed": R'),
            "a name must not stand both in AXES and in SEARCH, got 'train.seed'",
        ),
        (
            ('"npo.beta": R', '"data.redundancy": R'),
            "SEARCH must not name data, models, losses or seeds",
        ),
        (
            ('"npo.beta": R', '"method.retain": R'),
            "SEARCH must not name data, models, losses or seeds",
        ),
        (('"npo.beta": R', '"select.keep": R'), "when budget.tuning is 'shared'"),
        (("(0.25, 1.0)", "()"), "must be a tuple of at least one value"),
        (("(0, 1),\n}", "((0, 1, 2),),\n}"), "must have 2 values"),
        (("length=10", "length=-1"), "train.length must be >= 0, got -1"),
        (
            ("BASE = ", "1 / 0\nBASE = "),
            r"must import without an error, got ZeroDivisionError: division by zero \(line 8\)",
        ),
        (("BASE = ", "def\nBASE = "), "must import without an error, got SyntaxError"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_the_rule_and_the_nearest_name(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    assert change[0] in GOOD
    with pytest.raises(UserError, match=message):
        load(written(tmp_path, GOOD.replace(*change)))


def test_the_retain_weight_can_be_searched_though_the_retain_loss_cannot(tmp_path: Path) -> None:
    experiment = load(written(tmp_path, GOOD.replace('"npo.beta": R', '"method.retain_weight": R')))
    assert experiment.search["method.retain_weight"] == Range(0.05, 1.0)


def test_a_missing_file_and_one_that_is_not_python_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a Python file that exists"):
        load(tmp_path / "nothing.py")
    meant = written(tmp_path, GOOD)
    with pytest.raises(
        UserError,
        match=re.escape(f"exists (did you mean {meant}?), got {str(tmp_path / 'mien.py')!r}"),
    ):
        load(tmp_path / "mien.py")
    with pytest.raises(UserError, match=r"must end in \.py"):
        load(written(tmp_path, GOOD, name="mine.txt"))


def test_an_override_replaces_an_axis_fixes_a_search_or_changes_base(tmp_path: Path) -> None:
    experiment = load(written(tmp_path, GOOD))
    changed = override(experiment, {"select.ratio": 0.05, "npo.beta": 0.5, "train.batch_size": 4})
    ratio = [axis.points for axis in changed.grids[0] if axis.names == ("select.ratio",)]
    assert ratio == [((0.05,),)]
    assert (
        list(changed.search) == ["train.learning_rate"]
        and dict(changed.base.options)["npo.beta"] == 0.5
    )
    assert changed.base.train.batch_size == 4
    assert experiment.base.train.batch_size == 8


@pytest.mark.parametrize("names", [("data.name", "data.path"), ("data.path", "data.name")])
def test_settings_that_need_each_other_are_overridden_at_once_in_either_order(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    values = {"data.name": "files", "data.path": "corpus"}
    changed = override(load(written(tmp_path, GOOD)), {name: values[name] for name in names})
    assert changed.base.data.name == "files" and changed.base.data.path == "corpus"


def test_overriding_one_of_two_names_that_move_together_leaves_the_other_on_its_axis(
    tmp_path: Path,
) -> None:
    changed = override(load(written(tmp_path, GOOD)), {"train.seed": 7})
    assert (
        Axis(("select.seed",), ((0,), (1,))) in changed.grids[0]
        and Axis(("train.seed",), ((7,),)) in changed.grids[0]
    )
    assert set(axis_names(changed)) == {
        "method.forget",
        "select.ratio",
        "select.seed",
        "train.seed",
    }


def test_fixing_everything_that_was_searched_ends_the_tuning(tmp_path: Path) -> None:
    changed = override(
        load(written(tmp_path, GOOD)), {"train.learning_rate": 1e-3, "npo.beta": 0.5}
    )
    assert changed.budget.tuning == "none" and not changed.search


def test_budget_objective_and_version_can_be_overridden(tmp_path: Path) -> None:
    changed = override(
        load(written(tmp_path, GOOD)),
        {
            "budget.trials": 9,
            "budget.tuning": "per_cell",
            "objective.utility_floor": 1,
            "version": "dev",
        },
    )
    assert changed.budget == Budget(tuning="per_cell", trials=9)
    assert changed.objective.utility_floor == 1.0 and changed.version == "dev"


def test_an_addition_goes_to_base_and_the_recipe_and_is_refused_on_an_axis(
    tmp_path: Path,
) -> None:
    experiment = load(written(tmp_path, GOOD))
    added = {"measure.metrics+": "rouge_l_recall"}
    assert override(experiment, added).base.measure.metrics == "cheap,rouge_l_recall"
    recipe = {"measure.metrics": "probability"}
    changed = override(experiment, added | {"track+": "mlflow"}, recipe=recipe)
    assert changed.base.measure.metrics == "probability,rouge_l_recall"
    assert changed.track == (*experiment.track, "mlflow")
    axes = grids_of({"measure.metrics": ("cheap", "all")})
    with pytest.raises(UserError, match="needs a setting that is on no axis"):
        override(replace(experiment, grids=axes), added)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"budget.trails": 3}, "unknown setting 'budget.trails'; did you mean 'budget.trials'"),
        ({"budget.trials": "many"}, "budget.trials must be int, got 'many'"),
        (
            {"train.learning_rat": 1},
            "unknown setting 'train.learning_rat'; did you mean 'train.learning_rate'",
        ),
        ({"select.ratio": 1.4}, r"select.ratio must be in \(0, 1\], got 1.4"),
        ({"version": "../1"}, "a version must be letters, digits"),
    ],
)
def test_a_wrong_override_is_refused(
    tmp_path: Path, values: dict[str, str | int | float | bool], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        override(load(written(tmp_path, GOOD)), values)


def test_two_files_of_the_same_name_do_not_meet(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first = load(written(tmp_path, GOOD))
    second = load(written(tmp_path / "other", GOOD.replace("length=10", "length=20")))
    assert (first.base.train.length, second.base.train.length) == (10, 20)


def test_domains_check_their_bounds() -> None:
    for wrong in (
        lambda: Range(0, float("nan")),
        lambda: Range(0.5, 2, integer=True),
        lambda: Choice(),
        lambda: Choice(1, 1),
    ):
        with pytest.raises(UserError):
            wrong()


def test_names_are_checked_against_what_is_known(tmp_path: Path) -> None:
    experiment = load(written(tmp_path, GOOD))
    known = {*axis_names(experiment), *experiment.search}
    check_names(experiment, available=known)
    with pytest.raises(UserError, match="npo.beta"):
        check_names(experiment, available=known - {"npo.beta"})
    check_objective(Objective(), directions={"probability": "higher"})


def test_an_objective_that_no_trial_measures_is_refused_also_after_set(tmp_path: Path) -> None:
    experiment = load(written(tmp_path, GOOD))
    changed = override(experiment, {"objective.forgetting": "rouge_l_recall"})
    with pytest.raises(
        UserError,
        match=(
            r"objective\.forgetting must be among the metrics that measure\.metrics 'cheap' names,"
            r" got 'rouge_l_recall'"
        ),
    ):
        check_measured(changed)
    check_measured(override(changed, {"measure.metrics": "all"}))
    with pytest.raises(UserError, match=r"unknown objective\.utility 'probabilty'"):
        check_measured(override(experiment, {"objective.utility": "probabilty"}))


def test_a_calibrated_objective_calibrates_at_095_unless_the_experiment_says_otherwise(
    tmp_path: Path,
) -> None:
    experiment = load(written(tmp_path, GOOD))
    assert experiment.base.calibrate.tau == 0
    assert override(experiment, {"objective.stage": "calibrated"}).base.calibrate.tau == 0.95
    assert (
        override(
            experiment, {"calibrate.tau": 0.8, "objective.stage": "calibrated"}
        ).base.calibrate.tau
        == 0.8
    )
    with pytest.raises(
        UserError, match=r"unknown objective\.stage 'calibratd'; did you mean 'calibrated'"
    ):
        override(experiment, {"objective.stage": "calibratd"})


PRESETS = f"""{GOOD}
BIG = {{"BASE": Trial(train=Train(length=99)), "AXES": {{"select.ratio": (0.1,)}}, "SEARCH": {{}}}}
PRESETS = {{"paper": BIG | {{"BUDGET": Budget(tuning="none")}}}}
"""


def test_a_preset_puts_its_names_in_the_place_of_the_file_s_and_is_a_version_of_its_own(
    tmp_path: Path,
) -> None:
    plain, paper = (load(written(tmp_path, PRESETS), preset=name) for name in ("laptop", "paper"))
    assert (plain.base.train.length, plain.version, len(plain.search)) == (10, "1", 2)
    assert (paper.base.train.length, paper.version, len(paper.search)) == (99, "1-paper", 0)
    assert paper.objective == plain.objective and axis_names(paper) == ("select.ratio",)


def test_a_preset_that_is_not_there_or_names_something_else_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown preset 'papr'; did you mean 'paper'\?"):
        load(written(tmp_path, PRESETS), preset="papr")
    with pytest.raises(
        UserError, match=r"unknown name in PRESETS\['paper'\] 'AXIS'; did you mean 'AXES'\?"
    ):
        load(written(tmp_path, PRESETS.replace('"AXES"', '"AXIS"')), preset="paper")
    assert load(written(tmp_path, GOOD), preset="laptop").version == "1"


def test_samplers_and_sources_of_winners_that_do_not_fit_are_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, rule in (
        ({"sampler": "tpee"}, "unknown budget.sampler 'tpee'; did you mean 'tpe'"),
        ({"sampler": "nsga2", "batch": 1}, "nsga2 needs budget.batch >= 2, .*, got 1"),
        ({"tuning": "none", "tuned_from": "runs/a/1"}, "needs a search: .*, got 'none'"),
        ({"tuning": "from:"}, "from:RUN must name a run"),
    ):
        with pytest.raises(UserError, match=rule):
            Budget(**options)  # type: ignore[arg-type]
    experiment = load(written(tmp_path, GOOD))
    cmaes = Budget(sampler="cmaes")
    choices = {"train.batch_size": Choice(8, 16)}
    with pytest.raises(
        UserError, match=r"numbers \(Range\), not of choices, got 'train.batch_size'"
    ):
        replace(experiment, search=choices, budget=cmaes)
    monkeypatch.setattr("rayunlearn.experiment.importlib.util.find_spec", lambda name: None)
    numbers = {"train.learning_rate": Range(1e-5, 1e-2)}
    with pytest.raises(UserError, match=r"cmaes needs the package cmaes \(pip install"):
        replace(experiment, search=numbers, budget=cmaes)


def test_a_recipe_moves_base_and_leaves_the_search_and_set_goes_over_it(tmp_path: Path) -> None:
    experiment = load(written(tmp_path, GOOD))
    recipe = {"train.learning_rate": 7e-6, "train.batch_size": 4}
    changed = override(experiment, {"train.batch_size": 2}, recipe=recipe)
    assert changed.base.train.learning_rate == 7e-6 and changed.base.train.batch_size == 2
    assert changed.search == experiment.search and changed.budget == experiment.budget


def test_the_objective_of_a_model_that_is_not_trained_on_the_data_is_the_key(
    tmp_path: Path,
) -> None:
    """Where the rows mark one, the metric is measured and the file says nothing else."""
    rows = '{"prompt": "Capital?", "answer": "It is Oslo.", "key": "Oslo"}\n'
    (tmp_path / "forget.jsonl").write_text(rows)
    (tmp_path / "retain.jsonl").write_text(rows.replace("Oslo", "Rome"))
    text = (
        '"""Question?"""\nfrom rayunlearn.config import Data, Measure, Model, Trial\n'
        f'DATA = Data(name="files", path={str(tmp_path)!r})\n'
        'BASE = Trial(data=DATA, model=Model(name="org/model", teach=False))\nAXES = {}\n'
    )
    key = Objective(forgetting="key_probability", utility="key_probability")
    assert load(written(tmp_path, text)).objective == key
    known = text.replace('"files"', '"known"').replace(f"path={str(tmp_path)!r}", "")
    assert load(written(tmp_path, known)).objective == key
    for changed in (
        text.replace("teach=False", "teach=True"),
        text.replace("AXES", 'MEASURE = Measure(metrics="probability")\nAXES').replace(
            "teach=False)", 'teach=False), measure=Measure(metrics="probability")'
        ),
        text + "from rayunlearn.experiment import Objective\nOBJECTIVE = Objective()\n",
    ):
        assert load(written(tmp_path, changed)).objective == Objective()
    (tmp_path / "retain.jsonl").write_text('{"prompt": "River?", "answer": "The Rhine."}\n')
    assert load(written(tmp_path, text)).objective == Objective()
