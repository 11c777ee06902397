"""Recovered fractions on runs made of numbers, worked by hand."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rayunlearn.analysis.recovery import (
    area_under,
    plain_setting,
    recovery_table,
    steps_to,
    worst_case,
)
from rayunlearn.reporting.attack_tables import attack_tables
from rayunlearn.reporting.plots import recovery_map
from rayunlearn.storage.run import open_run, write_experiment, write_run_table, write_trial

DOCUMENTS = ("a", "b", "c", "d")
RELEARNING = "relearning learning_rate=0.001 steps=20"


def add(
    run: Path,
    trial_id: str,
    stage: str,
    attack: str,
    values: tuple[float | None, ...],
    curve: tuple[float, ...] = (),
    retain: tuple[float, ...] = (),
) -> None:
    """A trial of that stage after that attack with one value per document."""
    examples = [
        {
            "stage": stage,
            "attack": attack,
            "doc_id": d,
            "split": split,
            "metric": "probability",
            "value": v,
        }
        for split, of_split in (("forget", values), ("retain", retain))
        for d, v in zip(DOCUMENTS, of_split, strict=False)
    ]
    points = [
        {
            "kind": "relearning",
            "x": 10.0 * at,
            "metric": "probability",
            "split": "forget",
            "value": v,
            "n": 4,
            "stderr": 0.0,
        }
        for at, v in enumerate(curve)
    ]
    config = {"stage": stage, "data.name": "domain", "model.name": "scratch"} | (
        {} if attack == "none" else {"attack.name": attack}
    )
    write_trial(
        run,
        trial_id,
        {"trials": [{"status": "complete"}], "examples": examples, "curves": points},
        config,
    )


def placed(
    trial_id: str, attacked: str, role: str, setting: str, control_for: str = ""
) -> dict[str, object]:
    return {
        "trial_id": trial_id,
        "attacked": attacked,
        "role": role,
        "setting": setting,
        "control_for": control_for,
        "study": "",
        "study_index": -1,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return attacked_run(tmp_path)


def attacked_run(folder: Path) -> Path:
    """Base knows 0.9, gold 0.1, unlearning left 0.1; two seeds of relearning bring 0.5 and 0.7; a
    tuned one brought 0.9.
    """
    add(folder, "base", "base", "none", (0.8, 1.0, 0.8, 1.0))
    add(folder, "gold", "gold", "none", (0.1,) * 4)
    add(folder, "mine", "unlearned", "none", (0.0, 0.2, 0.0, 0.2))
    add(folder, "s0", "unlearned", "relearning", (0.4, 0.6, 0.4, 0.6), (0.1, 0.3, 0.5))
    add(folder, "s1", "unlearned", "relearning", (0.6, 0.8, 0.6, 0.8), (0.1, 0.5, 0.7))
    add(folder, "tuned", "unlearned", "relearning", (0.9,) * 4)
    add(folder, "g0", "gold", "relearning", (0.2,) * 4)
    add(folder, "u0", "unlearned", "unrelated_training", (0.1, 0.3, 0.1, 0.3))
    # asks two of the documents alone: nothing comes back
    add(folder, "half", "unlearned", "weight_noise", (0.0, 0.2))
    rows = [placed(t, "mine", "attack", RELEARNING) for t in ("s0", "s1")]
    rows += [
        placed("tuned", "mine", "tuning", "relearning learning_rate=0.01 steps=20"),
        placed("g0", "gold", "control", RELEARNING, RELEARNING),
    ]
    rows += [
        placed("u0", "mine", "control", "unrelated_training steps=20", RELEARNING),
        placed("half", "mine", "attack", "weight_noise relative=0.1"),
    ]
    write_run_table(folder, "attacks", rows)
    write_experiment(folder, {"name": "hand", "objective": {"forgetting": "probability"}})
    return folder


def test_recovered_fraction_its_most_its_controls_and_its_curve_by_hand(run: Path) -> None:
    """(0.6 - 0.1) / (0.9 - 0.1) = 0.625; the tuned strength 1.0; unrelated text (0.2 - 0.1) / 0.8 =
    0.125. The mean curve is 0.1, 0.4,
    0.6: recovered 0, 0.375, 0.625, so its area is (0.1875 + 0.5) / 2 and half is reached midway
    between steps 10 and 20."""
    table = recovery_table(open_run(run))
    row = table.filter(pl.col("setting") == RELEARNING).row(0, named=True)
    expected = {
        "base": 0.9,
        "unlearned": 0.1,
        "after": 0.6,
        "recovered": 0.625,
        "most": 1.0,
        "companion": 0.125,
        "gold": 0.1,
        "gold_after": 0.2,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert row["recovered_low"] <= 0.625 <= row["recovered_high"]
    assert row["area"] == pytest.approx(0.34375)
    assert row["half"] == pytest.approx(15.0)
    assert (row["seeds"], row["documents"]) == (2, 4)
    noise = table.filter(pl.col("setting") != RELEARNING).row(0, named=True)
    assert noise["recovered"] == pytest.approx(0.0)
    assert noise["documents"] == 2
    assert noise["gold_after"] is noise["area"] is None
    assert worst_case(table)["setting"].to_list() == [RELEARNING]


def test_what_an_attack_costs_is_the_share_of_utility_that_is_gone(run: Path) -> None:
    """0.8 before; 0.6 and 0.4 after the two seeds: (0.8 - 0.5) / 0.8."""
    asked = (0.0, 0.2, 0.0, 0.2)
    add(run, "mine", "unlearned", "none", asked, retain=(1.0, 0.6))
    add(run, "s0", "unlearned", "relearning", (0.4, 0.6, 0.4, 0.6), retain=(0.6, 0.6))
    add(run, "s1", "unlearned", "relearning", (0.6, 0.8, 0.6, 0.8), retain=(0.5, 0.3))
    losses = dict(recovery_table(open_run(run)).select("setting", "utility_loss").iter_rows())
    assert losses[RELEARNING] == pytest.approx(0.375)
    # not measured on retain
    assert losses["weight_noise relative=0.1"] is None


def test_the_matrix_has_a_row_per_attack_whatever_its_strength_and_the_worst_case_last(
    run: Path,
) -> None:
    matrix, curves = attack_tables(open_run(run))
    assert [row[0] for row in matrix.rows] == [
        "no attack",
        "relearning",
        "weight_noise relative=0.1",
        "worst case",
    ]
    assert matrix.rows[0][1:] == ("0.10 (base 0.90)", "0.10")
    assert matrix.rows[1][1].startswith("0.62 [")
    assert "most 1.00" in matrix.rows[1][1]
    assert matrix.rows[1][2].startswith("0.10 → 0.20 [")
    assert matrix.notes == (
        (
            "gold, which never saw the answers, rises by 0.10 [0.10, 0.10] under relearning: it"
            " trains on what is asked"
        ),
    )
    assert matrix.rows[-1][1] == "0.62 relearning"
    assert [row[2:] for row in curves.rows] == [("0.62", "0.34", "15.0", "0.12", "-", "-")]


def test_a_soft_prompt_stands_beside_random_text_in_what_it_brings_back(
    run: Path,
) -> None:
    """The vectors bring (0.5 - 0.1) / 0.8 back and random text's nothing; each makes its own
    targets likely: 0.9 and 0.7.
    """
    for trial_id, name, asked, learned in (
        ("soft", "soft_prompt", 0.5, 0.9),
        ("random", "soft_prompt_random", 0.1, 0.7),
    ):
        rows = [
            {
                "stage": "unlearned",
                "attack": name,
                "doc_id": d,
                "split": split,
                "metric": "probability",
                "value": value,
            }
            for split, value in (("forget", asked), ("held_in", learned))
            for d in DOCUMENTS
        ]
        config = {
            "stage": "unlearned",
            "data.name": "domain",
            "model.name": "scratch",
            "attack.name": name,
        }
        write_trial(run, trial_id, {"trials": [{"status": "complete"}], "examples": rows}, config)
    rows = pl.read_parquet(run / "attacks.parquet").to_dicts()
    rows += [
        placed("soft", "mine", "attack", "soft_prompt"),
        placed("random", "mine", "control", "soft_prompt_random", "soft_prompt"),
    ]
    write_run_table(run, "attacks", rows)
    row = (
        recovery_table(open_run(run)).filter(pl.col("setting") == "soft_prompt").row(0, named=True)
    )
    expected = {"recovered": 0.5, "companion": 0.0, "learned": 0.9, "companion_learned": 0.7}
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    line = next(row for row in attack_tables(open_run(run))[1].rows if row[0] == "soft_prompt")
    assert line[2:] == ("0.50", "-", "-", "0.00", "0.90 (control 0.70)", "-")


def test_an_attack_with_a_metric_of_its_own_stands_beside_base_gold_and_its_shuffled_control(
    run: Path,
) -> None:
    """Four questions; the probe names two of four answers on the unlearned model, three on base,
    one on gold, one when shuffled.
    """
    for trial_id, stage, right in (("p", "unlearned", 2), ("pb", "base", 3), ("pg", "gold", 1)):
        rows = [
            {
                "stage": stage,
                "attack": "linear_probe",
                "doc_id": d,
                "split": "forget",
                "metric": metric,
                "value": float(at < n),
            }
            for metric, n in (("probe_right", right), ("probe_right_shuffled", 1))
            for at, d in enumerate(DOCUMENTS)
        ]
        config = {
            "stage": stage,
            "data.name": "domain",
            "model.name": "scratch",
            "attack.name": "linear_probe",
        }
        write_trial(run, trial_id, {"trials": [{"status": "complete"}], "examples": rows}, config)
    rows = pl.read_parquet(run / "attacks.parquet").to_dicts()
    rows += [
        placed("p", "mine", "attack", "linear_probe"),
        *(
            placed(t, a, "control", "linear_probe", "linear_probe")
            for t, a in (("pb", "base"), ("pg", "gold"))
        ),
    ]
    write_run_table(run, "attacks", rows)
    line = next(row for row in attack_tables(open_run(run))[0].rows if row[0] == "linear_probe")
    assert line[1].startswith("probe_right 0.50 [") and line[1].endswith(
        "(base 0.75, shuffled 0.25)"
    )
    assert line[2].startswith("probe_right 0.25 [")


def test_the_most_of_an_attack_is_that_of_its_own_setting(run: Path) -> None:
    """Relearning ten documents, which brings 0.9 back, says nothing about relearning one."""
    rows = pl.read_parquet(run / "attacks.parquet").to_dicts()
    renamed = [
        (
            row | {"setting": row["setting"].replace("relearning ", "relearning documents=10 ")}
            if row["trial_id"] == "tuned"
            else row
        )
        for row in rows
    ]
    write_run_table(run, "attacks", renamed)
    assert recovery_table(open_run(run)).filter(pl.col("setting") == RELEARNING)[
        "most"
    ].to_list() == pytest.approx([0.75])


def test_where_base_knows_no_more_there_is_nothing_to_recover(run: Path) -> None:
    add(run, "mine", "unlearned", "none", (0.8, 1.0, 0.8, 1.0))
    assert recovery_table(open_run(run))["recovered"].null_count() == 2
    assert worst_case(recovery_table(open_run(run))).height == 0


def test_strengths_that_were_searched_are_in_no_row_of_the_matrix() -> None:
    assert plain_setting("gcg candidates=16 steps=40") == "gcg"
    assert (
        plain_setting("relearning documents=10 learning_rate=0.001 steps=20")
        == "relearning documents=10"
    )


def test_a_run_without_attacks_has_no_matrix(tmp_path: Path) -> None:
    add(tmp_path, "base", "base", "none", (0.8,))
    assert attack_tables(open_run(tmp_path)) == ()


def test_steps_to_and_area_of_a_curve_that_never_gets_there() -> None:
    steps, flat = np.array([0.0, 10.0]), np.array([0.0, 0.2])
    assert steps_to(0.5, steps, flat) is None
    assert steps_to(0.0, steps, flat) == 0.0
    assert area_under(steps, flat) == pytest.approx(0.1)


def test_more_trials_than_attacks_stand_down_the_page_and_the_heat_map_is_drawn(run: Path) -> None:
    rows = pl.read_parquet(run / "attacks.parquet").to_dicts()
    for at in range(3):
        add(run, f"other{at}", "unlearned", "none", (0.1 * at, 0.2, 0.0, 0.2))
        add(run, f"again{at}", "unlearned", "relearning", (0.4, 0.6, 0.4, 0.6))
        rows.append(placed(f"again{at}", f"other{at}", "attack", RELEARNING))
    write_run_table(run, "attacks", rows)
    opened = open_run(run).in_memory()
    matrix = attack_tables(opened)[0]
    assert matrix.headers == (
        "trial",
        "no attack",
        "relearning",
        "weight_noise relative=0.1",
        "worst case",
    )
    assert [row[0].rpartition(" ")[2] for row in matrix.rows] == [
        "mine",
        "other0",
        "other1",
        "other2",
        "after",
    ]
    assert (
        matrix.rows[0][2].startswith("0.62 [")
        and matrix.rows[-1][0] == "gold: before → after"
        and matrix.rows[-1][2].startswith("0.10 → 0.20")
    )
    figure = recovery_map(opened)
    assert figure is not None and len(figure.data[0].x) == 4


def test_an_attack_with_a_metric_of_its_own_that_measured_nothing_says_so(run: Path) -> None:
    """`linear_probe_held_in` fits answers of half the facts; where no answer of the others is among
    them there is nothing to ask.
    """
    add(run, "probe", "unlearned", "linear_probe_held_in", (None,) * 4)
    rows = pl.read_parquet(run / "attacks.parquet").to_dicts()
    write_run_table(
        run,
        "attacks",
        [*rows, placed("probe", "mine", "attack", "linear_probe_held_in")],
    )
    matrix = attack_tables(open_run(run))[0]
    assert next(row for row in matrix.rows if row[0] == "linear_probe_held_in")[1] == "not measured"
