"""The comparison of experiments/optimizers.py, on a made-up run whose differences are known."""

from pathlib import Path

import pytest

from experiments.findings.optimizers import comparison, comparisons, optimizer_cells
from rayunlearn.experiment import load, settings
from rayunlearn.storage.run import Run, open_run, write_experiment, write_run_table, write_trial

FILE = Path(__file__).parents[2] / "experiments" / "optimizers.py"
DOCUMENTS = tuple(f"d{i}" for i in range(12))
# seeds that differ a little
SEEDS = (-0.01, 0.0, 0.01, 0.005, -0.005)
# left, after relearning
VALUES = {"adamw": (0.2, 0.7), "sign": (0.1, 0.3), "lion": (0.2, 0.69), "gold": (0.15, 0.2)}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    plan, attacks = [], []
    for name, (left, after) in VALUES.items():
        is_gold = name == "gold"
        stage = "gold" if is_gold else "unlearned"
        for seed, shift in enumerate(SEEDS[:1] if is_gold else SEEDS):
            config = {"stage": stage, "method.forget": "npo", "train.seed": seed}
            config |= {"train.optimizer": "adamw" if is_gold else name}
            config |= {"train.learning_rate": 1e-3, "data.name": "domain", "select.seed": 0}
            for trial, at, attack, value in (
                (f"{name}{seed}", stage, "none", left + shift),
                (f"{name}{seed}-attacked", stage, "relearning", after + 2 * shift),
            ):
                examples = [
                    {"stage": at, "attack": attack, "doc_id": document, "split": "forget"}
                    | {"metric": "probability", "value": value + 0.001 * place}
                    for place, document in enumerate(DOCUMENTS)
                ]
                tables = {"trials": [{"status": "complete"}], "examples": examples}
                write_trial(tmp_path, trial, tables, config)
            role = "gold" if is_gold else "grid"
            plan.append({"trial_id": f"{name}{seed}", "role": role, "group": "{}"})
            attacks.append(
                {"trial_id": f"{name}{seed}-attacked", "attacked": f"{name}{seed}"}
                | {"role": "control" if is_gold else "attack", "setting": "relearning"}
            )
    write_run_table(tmp_path, "plan", plan)
    write_run_table(tmp_path, "attacks", attacks)
    write_experiment(tmp_path, settings(load(FILE)))
    return open_run(tmp_path)


def test_what_an_attack_brings_back_is_compared_with_adamw_by_seeds_and_documents(
    run: Run,
) -> None:
    """With adamw 0.5 come back, with sign 0.2, with lion 0.49: a difference within the seeds."""
    found = {name: (estimate.mean, p) for name, _, estimate, p in comparisons(optimizer_cells(run))}
    assert found["npo, sign"][0] == pytest.approx(-0.3) and found["npo, sign"][1] < 0.001
    assert found["npo, lion"][0] == pytest.approx(-0.01) and found["npo, lion"][1] > 0.05
    gold, *unlearned = optimizer_cells(run)
    assert gold.name == "gold" and gold.recovered("relearning").mean == pytest.approx(0.04)
    assert [cell.name for cell in unlearned] == ["npo, adamw", "npo, lion", "npo, sign"]


def test_the_table_has_a_line_for_each_optimizer_and_for_gold(run: Run) -> None:
    said = comparison([run])
    assert "| npo, sign | train.learning_rate 0.001 | 0.11 [" in said and "| gold | - | 0.1" in said
    assert "npo, sign: relearning recovers -0.300 more than with adamw" in said
    assert "lion: relearning recovers -0.010 more than with adamw" in said and "not shown" in said
