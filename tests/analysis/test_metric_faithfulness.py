"""AUC, R and Q of metrics: numbers worked by hand, and a run made of them."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import mannwhitneyu

from rayunlearn.analysis.metric_faithfulness import (
    auc_with_interval,
    faithfulness_table,
    forgetting_threshold,
    on_scale,
    quantization_robustness,
    relearning_robustness,
)
from rayunlearn.reporting.console import print_robustness
from rayunlearn.reporting.html import write_report
from rayunlearn.storage.run import open_run, write_experiment, write_run_table, write_trial

BOUNDS = {"low": 0.0, "high": 1.0, "unit": "fraction", "meaning": "made up", "chance": ""}
METRICS = [
    {**BOUNDS, "name": "sharp", "direction": "higher", "compares": False},
    {**BOUNDS, "name": "blind", "direction": "higher", "compares": False},
    {**BOUNDS, "name": "loss", "direction": "lower", "high": None, "compares": False},
    {**BOUNDS, "name": "depth", "direction": "lower", "compares": True},
    {**BOUNDS, "name": "neutral", "direction": "", "compares": False},
]
RELEARNED, ROUNDED = "relearning steps=20", "four_bit_normal_float"


def test_auc_is_the_share_of_ordered_pairs_and_its_interval_one_of_wilson() -> None:
    """3 against 4 models, by scipy's U / (m n). Where all pairs are in order and there are 4 pairs
    of models, Wilson's lower end is n / (n + t^2) with t(.975, 3) = 3.1824: 4 / 14.128.
    """
    knowing, unknowing = np.array([0.9, 0.4, 0.6]), np.array([0.1, 0.4, 0.5, 0.2])
    expected = mannwhitneyu(knowing, unknowing).statistic / 12
    value, low, high = auc_with_interval(knowing, unknowing, 3)
    assert value == pytest.approx(expected) and low < value < high
    perfect = auc_with_interval(np.array([1.0, 2.0]), np.array([0.0]), 4)
    assert perfect == pytest.approx((1.0, 4 / (4 + 3.1824**2), 1.0), abs=1e-4)


def test_the_interval_covers_the_auc_of_shifted_normal_models() -> None:
    """Values N(1, 1) against N(0, 1): the AUC is Phi(1 / sqrt 2) = .7602. The largest variance is
    taken, so at least 95% of intervals over 10 pairs must hold it.
    """
    generator = np.random.default_rng(0)
    ends = [
        auc_with_interval(generator.normal(1, 1, 10), generator.normal(0, 1, 10), 10)[1:]
        for _ in range(300)
    ]
    assert np.mean([low <= 0.7602 <= high for low, high in ends]) >= 0.95


@pytest.mark.parametrize(
    ("gold", "own", "expected"),
    [
        # gold gains .1 and the model .4: three quarters were hidden
        ((0.2, 0.3), (0.1, 0.5), 0.25),
        # gains alike, or gold more: nothing was
        ((0.2, 0.4), (0.1, 0.3), 1.0),
        ((0.2, 0.6), (0.1, 0.3), 1.0),
        # the model loses by it
        ((0.2, 0.3), (0.5, 0.4), 1.0),
        # gold loses and the model gains
        ((0.3, 0.2), (0.1, 0.5), 0.0),
    ],
)
def test_relearning_robustness_by_hand(
    gold: tuple[float, float], own: tuple[float, float], expected: float
) -> None:
    assert relearning_robustness(gold, own) == pytest.approx(expected)


def test_quantization_robustness_and_the_scale_by_hand() -> None:
    assert quantization_robustness(0.1, 0.4) == pytest.approx(0.25)
    assert quantization_robustness(0.4, 0.1) == quantization_robustness(0.0, 0.0) == 1.0
    unit = {"low": 0.0, "high": 1.0}
    assert on_scale(0.3, **unit, direction="higher") == pytest.approx(0.3)
    assert on_scale(0.3, **unit, direction="lower") == pytest.approx(0.7)
    assert on_scale(3.0, low=0.0, high=None, direction="lower") == pytest.approx(0.25)
    assert on_scale(3.0, low=0.0, high=None, direction="higher") == pytest.approx(0.75)
    assert on_scale(0.0, low=None, high=None, direction="lower") == pytest.approx(0.5)
    assert on_scale(1e6, low=None, high=None, direction="lower") == pytest.approx(0.0)


def test_the_threshold_is_that_with_most_models_on_their_side() -> None:
    """Knowing .8, .6, .2, unknowing .1, .3: cuts at .15, .25, .45, .7 are right for 4, 3, 4, 3."""
    cut = forgetting_threshold(np.array([0.8, 0.6, 0.2]), np.array([0.1, 0.3]))
    assert cut == pytest.approx(0.15)


def add(run: Path, name: str, stage: str, attack: str, pair: int, **values: float) -> None:
    """A trial with two documents of forget at these means and one of retain at .9."""
    rows: list[dict[str, Any]] = [
        {"split": "forget", "metric": metric, "doc_id": f"d{at}", "value": mean + step}
        for metric, mean in values.items()
        for at, step in enumerate((-0.01, 0.01))
    ]
    rows.append({"split": "retain", "metric": "sharp", "doc_id": "r", "value": 0.9})
    labelled = [row | {"stage": stage, "attack": attack.split(" ")[0]} for row in rows]
    write_trial(
        run,
        name,
        {"trials": [{"status": "complete"}], "examples": labelled},
        {"stage": stage, "data.seed": pair, "model.seed": pair, "attack.name": "none"},
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three pairs of base and gold, an unlearned model each, relearned and rounded.

    `sharp` tells base (.9) from gold (.2) and sees a quarter of what relearning brings: gold gains
    .1, the model .4; rounding halves nothing. `blind` is .5 everywhere. `depth` is 0 on base and 1
    on gold by definition, and on the rounded ones .1 and .8.
    """
    attacks = []
    for pair in range(3):
        ids = {stage: f"{stage}{pair}" for stage in ("base", "gold", "unlearned")}
        plain = {
            "base": {"sharp": 0.9, "blind": 0.5, "loss": 1.0, "depth": 0.5, "neutral": 0.1},
            "gold": {"sharp": 0.2, "blind": 0.5, "loss": 4.0, "depth": 0.5, "neutral": 0.2},
            "unlearned": {"sharp": 0.1, "blind": 0.5, "loss": 4.0, "depth": 0.9, "neutral": 0.3},
        }
        relearned = {"gold": 0.3, "unlearned": 0.5, "base": 0.9}
        rounded = {"gold": (0.2, 0.8), "unlearned": (0.2, 0.6), "base": (0.9, 0.1)}
        for stage, values in plain.items():
            add(tmp_path, ids[stage], stage, "none", pair, **values)
            for setting in (RELEARNED, ROUNDED):
                name = f"{setting.split(' ')[0]}-{ids[stage]}"
                after = (
                    {"sharp": relearned[stage]}
                    if setting == RELEARNED
                    else {"sharp": rounded[stage][0], "depth": rounded[stage][1]}
                )
                add(tmp_path, name, "attacked", setting, pair, blind=0.5, loss=4.0, **after)
                role = "attack" if stage == "unlearned" else "control"
                place = {"trial_id": name, "attacked": ids[stage], "setting": setting}
                control_for = "" if stage == "unlearned" else setting
                attacks.append(
                    place
                    | {"role": role, "control_for": control_for, "study": "", "study_index": -1}
                )
    write_run_table(tmp_path, "attacks", attacks)
    goal = {"forgetting": "sharp", "utility": "sharp", "utility_split": "retain"}
    write_experiment(
        tmp_path, {"name": "hand", "question": "?", "objective": goal, "metrics": METRICS}
    )
    return tmp_path


def test_a_run_s_table_has_the_hand_worked_numbers(run: Path) -> None:
    """sharp: AUC 1; the cut is .55, the model is under it; R .1 / .4, Q .1 / .2, their harmonic
    mean 1/3. blind: AUC 1/2, R and Q 1 (nothing moves). depth: 1 - .1 against 1 - .8 after
    rounding, AUC 1, over three models each and not six; no relearning was measured. neutral says
    nothing of knowledge.
    """
    table = {row["metric"]: row for row in faithfulness_table(open_run(run)).to_dicts()}
    assert set(table) == {"sharp", "blind", "loss", "depth"}
    sharp = table["sharp"]
    found = [sharp[name] for name in ("auc", "relearning", "quantization", "robustness", "models")]
    assert found == pytest.approx([1.0, 0.25, 0.5, 1 / 3, 3])
    assert (sharp["knowing"], sharp["unknowing"], sharp["pairs"]) == (6, 6, 3)
    blind = table["blind"]
    assert [blind["auc"], blind["robustness"]] == pytest.approx([0.5, 1.0])
    depth = table["depth"]
    assert (depth["auc"], depth["knowing"], depth["unknowing"]) == (1.0, 3, 3)
    assert depth["compares"] and depth["relearning"] is None and depth["robustness"] is None
    assert table["loss"]["auc"] == pytest.approx(0.5 * (0.5 + 1.0)), (
        "loss 1 and, after rounding, 4 against 4: half of the pairs are in order, the rest are ties"
    )


def test_it_is_read_in_the_terminal_and_on_the_page(run: Path) -> None:
    printed = io.StringIO()
    print_robustness(open_run(run), Console(file=printed, width=200))
    page = write_report(run).read_text(encoding="utf-8")
    words = "metrics tell models that know from models that never did better than chance"
    for text in (" ".join(printed.getvalue().split()), page):
        assert "sharp" in text and "depth †" in text and words in text
        # a blind metric says the same of every model, and survives everything
        assert re.search("Most robust of those above chance: (loss|sharp)", text)


def test_two_pairs_are_too_few(run: Path) -> None:
    for file in (run / "trials").glob("*2"):
        for part in sorted(file.iterdir()):
            part.unlink()
        file.rmdir()
    assert faithfulness_table(open_run(run)).is_empty()
