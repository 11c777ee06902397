"""The page of methods: which learning rate a line shows, how a trial is called, and that the page
in docs/ is not stale.
"""

from pathlib import Path

import pytest

from rayunlearn.config import Trial, with_values
from rayunlearn.experiment import load
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.retain import RETAIN
from rayunlearn.planning.planner import grid_groups
from rayunlearn.registry import check_trial
from rayunlearn.train.adapters import ADAPTERS
from rayunlearn.train.wrappers import WRAPPERS

ROOT = Path(__file__).parents[2]
FILE = ROOT / "experiments" / "methods.py"


@pytest.fixture(scope="module")
def page() -> dict[str, object]:
    """The names of the experiment file, as running it as a module gives them."""
    names: dict[str, object] = {"__name__": "methods_page"}
    exec(compile(FILE.read_text(encoding="utf-8"), str(FILE), "exec"), names)
    return names


def row(status: str, forget: float | None, retain: float | None) -> dict[str, object]:
    return {"status": status, "forget": forget, "retain": retain}


def test_of_the_rates_that_keep_utility_the_one_that_forgets_most_is_shown(page: dict) -> None:
    rows = [
        row("complete", 0.5, 0.99),
        row("complete", 0.2, 0.91),
        row("complete", 0.1, 0.5),
        row("collapsed", 0.0, 0.95),
        row("failed", None, None),
    ]
    assert page["chosen"](rows, 0.9) == rows[1] | {"feasible": True}
    assert page["chosen"](rows[2:], 0.97) == rows[3] | {"feasible": False}


def test_a_line_says_mean_and_range_over_the_seeds(page: dict) -> None:
    """Forget 0.1, 0.2 and 0.6: mean 0.3, from 0.1 to 0.6; the third seed was not measured for
    multiple choice: 0.5 of 0.4 and 0.6.
    """
    costs = {
        "rate": 1e-3,
        "stage": "unlearned",
        "feasible": True,
        "seconds": 0.04,
        "memory": 2**20,
        "trained": 1000,
    }
    first, second, third = (
        {"forget": f, "choice": c, "retain": 0.9} for f, c in ((0.1, 0.4), (0.2, 0.6), (0.6, None))
    )
    assert (
        page["line"]("ga", first | costs, [second, third])
        == "| `ga` | 0.001 | 0.300 (0.100-0.600) | 0.50 (0.40-0.60) | 0.900 (0.900-0.900) | 40 | 1"
        " | 1,000 |"
    )
    assert "| 0.100 | 0.40 |" in page["line"]("ga", first | costs, [])


def test_a_trial_is_called_by_its_method_and_what_differs_from_the_default(page: dict) -> None:
    label = page["label"]
    assert label(Trial()) == "npo" and label(with_values(Trial(), {"stage": "gold"})) == "gold"
    assert (
        label(with_values(Trial(), {"method.forget": "none", "token.keep": 0.5}))
        == "retain only, keep 0.5"
    )
    assert (
        label(with_values(Trial(), {"method.wrappers": "sam", "train.adapter": "lora"}))
        == "npo, sam, lora"
    )


def test_the_experiment_runs_every_method_every_wrapper_and_every_adapter() -> None:
    trials = [cell for group in grid_groups(load(FILE), check=check_trial) for cell in group.cells]
    assert {t.method.forget for t in trials} >= set(FORGET) - {"none"}
    assert {name for t in trials for name in t.method.wrappers.split(",")} - {""} == set(WRAPPERS)
    assert {t.train.adapter for t in trials} == set(ADAPTERS)


def test_the_page_in_docs_has_a_line_for_every_method_and_the_catalogue_as_it_is_now(
    page: dict,
) -> None:
    """Refresh it with `python -m experiments.methods`: what was measured needs a run, the catalogue
    must match the code.
    """
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert all(f"| `{name}" in text for name in set(FORGET) - {"none"})
    assert page["catalogue"]() in text
    assert all(name in text for name in RETAIN)
