"""Every public function and class of the analysis and config API says its arguments and its
result, and its example is run as it stands, on the small runs of docs/notebooks and on runs made of
numbers.

Public is what PUBLIC lists, and what a notebook or a page of docs/ imports: the second must be
listed too.
"""

import doctest
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import synthetic
from tests.analysis.test_attribution import explained_run
from tests.analysis.test_recovery import attacked_run

ROOT = Path(__file__).parents[1]
PUBLIC = {
    "rayunlearn.analysis.attribution": (
        "damage_table",
        "emphasis_table",
        "tracking_table",
    ),
    "rayunlearn.analysis.baselines": ("baseline_table",),
    "rayunlearn.analysis.coreset_table": ("coreset_table",),
    "rayunlearn.analysis.equal_retention": (
        "method_ranking",
        "order_changes",
    ),
    "rayunlearn.analysis.equivalence": ("frontier_of_run", "full_set_comparison"),
    "rayunlearn.analysis.hypothesis_tests": ("holm",),
    "rayunlearn.analysis.intervals": (
        "gap_closed",
        "mean_interval",
    ),
    "rayunlearn.analysis.harness": ("harness_table",),
    "rayunlearn.analysis.pareto": ("pareto_front",),
    "rayunlearn.analysis.recovery": (
        "area_under",
        "recovery_table",
        "worst_case",
    ),
    "rayunlearn.analysis.retain_choice": ("retain_table", "selection_frequency"),
    "rayunlearn.analysis.run_frames": (
        "objective_of",
        "trial_table",
    ),
    "rayunlearn.analysis.targets": (
        "above_target",
        "cell_distance",
        "distance_by_document",
        "is_over_forgotten",
        "target_distance",
    ),
    "rayunlearn.analysis.two_way": ("combined_estimate",),
    "rayunlearn.analysis.run_warnings": ("run_warnings",),
    "rayunlearn.analysis.trial_choice": ("best_trials", "chosen_trial"),
    "rayunlearn.analysis.tuning": ("correlation_test", "settings_tried", "tuned_table"),
    "rayunlearn.config": (
        "Objective",
        "flatten",
        "from_flat",
        "parse_assignments",
        "recorded_objective",
        "with_values",
    ),
    "rayunlearn.experiment": (
        "Budget",
        "Choice",
        "Experiment",
        "Range",
        "load",
        "override",
    ),
    "rayunlearn.planning.study_export": ("study_of_run",),
    "rayunlearn.ranges": ("options_of",),
    "rayunlearn.reporting.html": ("write_report",),
    "rayunlearn.reporting.figures": ("figures_of",),
    "rayunlearn.reporting.page_tables": ("page_tables",),
    "rayunlearn.reporting.sentences": (
        "frontier_in_words",
        "full_set_sentences",
        "verdict_sentences",
        "warning_sentences",
    ),
    "rayunlearn.reporting.summary": ("run_summary", "summary_block"),
    "rayunlearn.reporting.svg": ("bar_picture", "draw", "parallel"),
    "rayunlearn.reporting.tables": ("ranking_sentences",),
    "rayunlearn.selectors.table": ("top_k_documents",),
    "rayunlearn.storage.run": (
        "Run",
        "find_trial",
        "finished_ids",
        "open_run",
    ),
}
# where users' own code begins: pages and notebooks, and no command line
IMPORT = re.compile(r"from (rayunlearn[a-z_.]*) import ([A-Za-z_, ]+)")
FUNCTIONS = [(module, name) for module, names in PUBLIC.items() for name in names]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples open: docs, experiments and three runs made of numbers."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("docs", "experiments"):
        (folder / name).symlink_to(ROOT / name)
    synthetic.write_run(folder / "runs" / "selectors" / "1")
    attacked_run(folder / "runs" / "attacked" / "1")
    explained_run(folder / "runs" / "explained" / "1")
    return folder


def function_of(module: str, name: str) -> Callable[..., Any]:
    """The function or class of that name."""
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


@pytest.mark.parametrize(("module", "name"), FUNCTIONS, ids=[name for _, name in FUNCTIONS])
def test_a_public_function_has_an_example_that_runs(
    module: str, name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    function = function_of(module, name)
    names = vars(importlib.import_module(module)).copy()
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, globs=names)
    assert example.examples, f"{module}.{name} has no example"
    results = doctest.DocTestRunner().run(example)
    assert results.failed == 0 and results.attempted >= 1


@pytest.mark.parametrize(("module", "name"), FUNCTIONS, ids=[name for _, name in FUNCTIONS])
def test_a_public_function_says_its_arguments_and_its_result(module: str, name: str) -> None:
    function = function_of(module, name)
    text = inspect.getdoc(function) or ""
    arguments = text.partition("Args:")[2].partition("Returns:")[0]
    unnamed = [p for p in inspect.signature(function).parameters if p not in arguments]
    assert unnamed == [] and ("Returns:" in text or inspect.isclass(function))


def test_what_pages_and_notebooks_import_is_public() -> None:
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "notebooks").glob("*.ipynb")]
    texts = [page.read_text(encoding="utf-8") for page in pages]
    imported = {
        (module, name.strip())
        for text in texts
        for module, names in IMPORT.findall(text)
        for name in names.split(",")
        if inspect.isfunction(getattr(importlib.import_module(module), name.strip(), None))
    }
    assert imported and imported <= set(FUNCTIONS)
