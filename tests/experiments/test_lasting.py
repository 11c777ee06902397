"""The comparison of experiments/lasting.py, on made-up runs whose differences are known."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from experiments.findings.lasting import aims_differ, comparison, gold_values, pair_orders
from rayunlearn.experiment import load, settings
from rayunlearn.storage.run import Run, open_run, write_experiment, write_run_table, write_trial

FILE = Path(__file__).parents[2] / "experiments" / "lasting.py"
DOCUMENTS = tuple(f"d{i}" for i in range(12))
# seeds and documents that differ a little
SEEDS = (-0.01, 0.0, 0.01, 0.005, -0.005)


def made_up(folder: Path, preset: str, cells: Mapping[str, tuple[float, float]]) -> Run:
    """A run with these values, before and after, for each method, and gold at 0.1 and 0.2."""
    plan = []
    for method, (before, after) in (cells | {"gold": (0.1, 0.2)}).items():
        is_gold = method == "gold"
        stage = "gold" if is_gold else "unlearned"
        for seed, shift in enumerate(SEEDS[:1] if is_gold else SEEDS):
            trial_id = f"{method}{seed}"
            examples = [
                {"stage": at, "attack": attack, "doc_id": document, "split": "forget"}
                | {"metric": "probability", "value": value + shift + 0.001 * place}
                for at, attack, value in (
                    (stage, "none", before),
                    ("attacked", "relearning", after),
                )
                for place, document in enumerate(DOCUMENTS)
            ]
            config = {"stage": stage, "method.forget": method, "train.seed": seed}
            config |= {"train.learning_rate": 1e-3, "data.name": "domain", "select.seed": 0}
            write_trial(
                folder, trial_id, {"trials": [{"status": "complete"}], "examples": examples}, config
            )
            plan.append(
                {"trial_id": trial_id, "role": "gold" if is_gold else "grid", "group": "{}"}
            )
    write_run_table(folder, "plan", plan)
    write_experiment(folder, settings(load(FILE, preset=preset)))
    return open_run(folder)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Run, Run]:
    """NPO hides: before the attack it is below RMU, after it above; tuned for after it leaves 0.2
    less, RMU the same."""
    before = made_up(tmp_path / "before", "before", {"npo": (0.1, 0.8), "rmu": (0.3, 0.4)})
    after = made_up(tmp_path / "after", "laptop", {"npo": (0.2, 0.6), "rmu": (0.3, 0.4)})
    return after, before


def test_what_relearning_leaves_differs_by_what_a_method_was_tuned_for(
    runs: tuple[Run, Run],
) -> None:
    found = {name: (estimate.mean, p) for name, estimate, p in aims_differ(*runs)}
    assert found["npo"][0] == pytest.approx(-0.2) and found["npo"][1] < 0.01
    assert found["rmu"][0] == pytest.approx(0.0) and found["rmu"][1] > 0.5


def test_a_pair_that_changes_places_is_shown_where_both_differences_are(
    runs: tuple[Run, Run],
) -> None:
    """Tuned for before, NPO leaves 0.2 less than RMU; tuned for after, 0.2 more."""
    (pair,) = pair_orders(*runs)
    assert (pair.before.mean, pair.after.mean) == pytest.approx((-0.2, 0.2))
    assert pair.changes and pair.is_shown
    (same,) = pair_orders(runs[0], runs[0])
    assert same.before.mean == pytest.approx(-0.1) and same.changes


def test_the_table_has_both_aims_of_each_method_and_gold_after_the_same_attack(
    runs: tuple[Run, Run],
) -> None:
    assert gold_values(runs[0])["attacked"].mean == pytest.approx(0.2 - 0.01 + 0.0055)
    said = comparison(*runs)
    assert "| npo | before |" in said and "| rmu | after |" in said and "| gold | - |" in said
    same, each = said.split("Each tuned for its moment:")
    assert "npo - rmu: before -0.200" in same and "after +0.400" in same
    assert "npo - rmu: before -0.200" in each and "after +0.200" in each
    assert said.count("1 of 1 pairs change places, 1 of them shown.") == 2


def test_every_trial_of_both_runs_relearns_with_the_same_budget() -> None:
    after, before = load(FILE), load(FILE, preset="before")
    assert after.base == before.base and after.base.measure.attack == "relearning"
    assert (after.objective.stage, before.objective.stage) == ("attacked", "unlearned")
    assert (after.version, before.version) == ("1", "1-before")
