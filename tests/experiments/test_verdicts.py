"""The questions of the experiments on steps, redundancy, attacks, words, weights and defences, on
runs whose answer is known by construction.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from experiments.findings import page as page_module
from experiments.findings import verdicts
from experiments.findings.page import FINDINGS, findings_pages
from experiments.findings.verdicts import (
    against_random,
    arm_of,
    cross_dataset_prediction,
    dilemma_sentences,
    faithfulness_sentences,
    recovery_by_method,
    recovery_sentences,
    residual_after_attack,
    step_gaps,
    step_lags,
    unlearned_shares,
    with_datasets,
)
from rayunlearn.config import Value
from rayunlearn.storage.run import Run, open_run, write_experiment, write_run_table, write_trial
from tests import synthetic

RMU = {"method.forget": "rmu", "method.retain": "activation"}


def run_of(
    folder: Path,
    cells: list[tuple[dict[str, Value], float, float | None]],
    *,
    datasets: tuple[int, ...] = (20,),
) -> Run:
    """A run whose grid trials have these settings, forget probability and coverage; base 0.9 and
    gold 0.1 on every dataset.
    """
    plan = []
    for dataset in datasets:
        for role, left in (("base", 0.9), ("gold", 0.1)):
            trial_id = synthetic.add_trial(
                folder, {"stage": role, "data.redundancy": dataset}, {"forget": left, "retain": 0.9}
            )
            plan.append(synthetic.plan_row(trial_id, role, "{}"))
    for changes, left, coverage in cells:
        trial_id = synthetic.add_trial(
            folder, {**RMU, **changes}, {"forget": left, "retain": 0.9}, coverage=coverage
        )
        plan.append(synthetic.plan_row(trial_id, "grid", json.dumps({})))
    write_run_table(folder, "plan", plan)
    write_experiment(
        folder, synthetic.EXPERIMENT | {"axes": [], "search": {}, "planned": len(plan)}
    )
    return open_run(folder)


def lengths(left: Any) -> list[tuple[dict[str, Value], float, float | None]]:
    """Ratios 0.25 and 1 at 25, 50, 100, 200 and 400 steps (an epoch of the full set is 25), two
    seeds.
    """
    return [
        (
            {"select.ratio": ratio, "train.length": float(steps), "train.seed": seed},
            left(ratio, steps),
            1.0,
        )
        for ratio in (0.25, 1.0)
        for steps in (25, 50, 100, 200, 400)
        for seed in (0, 1)
    ]


def test_where_only_steps_count_the_gap_at_equal_steps_is_none(tmp_path: Path) -> None:
    """Left = 0.8 at 25 steps, 0.1 less at every doubling, whatever the ratio: at equal epochs the
    full set is two doublings on, so 0.2 lower.
    """
    fall = {25: 0.8, 50: 0.7, 100: 0.6, 200: 0.5, 400: 0.4}
    gaps = {
        row["gap"]: row
        for row in step_gaps(run_of(tmp_path, lengths(lambda _r, s: fall[s]))).iter_rows(named=True)
    }
    # 25, 50 and 100 steps of a quarter have 100, 200 and 400 of the whole beside them
    assert gaps["equal steps"]["pairs"] == 3
    assert gaps["equal steps"]["mean"] == pytest.approx(0.0, abs=1e-12)
    assert gaps["equal epochs"]["mean"] == pytest.approx(0.2, abs=0.01)
    assert gaps["epochs - steps"]["low"] > 0.19
    assert (
        gaps["full set, last - first"]["mean"] == pytest.approx(-0.4, abs=0.02)
        and gaps["full set, last - first"]["high"] < 0
    )


def test_where_only_epochs_count_the_sign_turns(tmp_path: Path) -> None:
    fall = {25: 0.8, 50: 0.7, 100: 0.6, 200: 0.5, 400: 0.4, 1600: 0.2, 800: 0.3}
    run = run_of(tmp_path, lengths(lambda r, s: fall[round(s / r)]))
    assert step_gaps(run).filter(pl.col("gap") == "epochs - steps")["high"][0] < -0.19
    # after 400 steps: a quarter at 0.2, as if 1600, the whole at 0.4
    (lag,) = step_lags(run).iter_rows(named=True)
    assert (
        (lag["ratio"], lag["steps"]) == (0.25, 400.0)
        and lag["mean"] == pytest.approx(-0.2, abs=0.01)
        and lag["high"] < 0
    )


def covering(left: Any) -> list[tuple[dict[str, Value], float, float | None]]:
    cells = []
    for dataset, reach in ((5, 0.5), (10, 1.0), (20, 2.0)):
        for ratio in (0.1, 0.2, 0.4, 1.0):
            coverage = 1.0 if ratio == 1 else min(1.0, reach * ratio)
            changes: dict[str, Value] = {
                "data.redundancy": dataset,
                "select.ratio": ratio,
                "train.seed": 0,
            }
            cells.append((changes, left(coverage, ratio), coverage))
    return cells


def test_where_coverage_decides_it_foretells_a_bed_that_was_left_out_and_the_ratio_does_not(
    tmp_path: Path,
) -> None:
    """Left = 0.9 - 0.8 x coverage, so the share is the coverage. By hand, coverage: dataset 10 is
    met exactly, dataset 5 misses 0.05 at its lowest point, dataset 20 misses 0.4 at its highest,
    0.45 / 9 in all. Ratio: the other beds' means are 1.25, 3 and 0.375 times the truth, 1.75 / 9 in
    all.
    """
    run = run_of(
        tmp_path, covering(lambda coverage, _ratio: 0.9 - 0.8 * coverage), datasets=(5, 10, 20)
    )
    shares = unlearned_shares(run)
    assert shares.height == 9
    predictions = cross_dataset_prediction(run)
    assert predictions["error_by_facts"].mean() == pytest.approx(0.45 / 9, abs=0.01)
    assert predictions["error_by_ratio"].mean() == pytest.approx(1.75 / 9, abs=0.01)
    # these trials have none
    assert predictions["error_by_keywords"].null_count() == 3
    assert predictions["dataset"].to_list() == [
        "domain, 5 per fact",
        "domain, 10 per fact",
        "domain, 20 per fact",
    ]
    # Shares at 0.1, 0.2 and 0.4: 0.05 0.1 0.2, 0.1 0.2 0.4 and 0.2 0.4 0.8, so nothing short of the
    # full forget set is nine tenths of it.
    assert predictions["enough"].to_list() == [1.0, 1.0, 1.0]
    assert predictions["enough_by_facts"].to_list() == [1.0, 1.0, 1.0]


def test_the_smallest_ratio_that_is_enough_is_foretold_by_what_decides_it(tmp_path: Path) -> None:
    """Share = coverage = reach x ratio, at most 1: a dataset of reach 5 needs 0.2, one of 10 needs
    0.1 (the ratios tried are 0.1, 0.2 and 0.4). From the facts of the other dataset this is
    predicted; from its ratio the first is told 0.1 and the second 0.2.
    """
    cells: list[tuple[dict[str, Value], float, float | None]] = []
    for dataset, reach in ((5, 5.0), (10, 10.0)):
        for ratio in (0.1, 0.2, 0.4, 1.0):
            coverage = min(1.0, reach * ratio)
            cells.append(
                (
                    {"data.redundancy": dataset, "select.ratio": ratio, "train.seed": 0},
                    0.9 - 0.8 * coverage,
                    coverage,
                )
            )
    predictions = cross_dataset_prediction(run_of(tmp_path, cells, datasets=(5, 10)))
    assert predictions["enough"].to_list() == [0.2, 0.1]
    assert predictions["enough_by_facts"].to_list() == [0.1, 0.1]
    assert predictions["enough_by_ratio"].to_list() == [0.1, 0.2]


def test_a_bed_is_called_by_what_tells_it_apart() -> None:
    settings = {
        "data.name": ["domain", "people", "files", "tofu"],
        "data.path": ["", "", "/somewhere/books", "locuslab/TOFU"],
    }
    trials = pl.DataFrame(
        settings | {"model.size": ["small", "tiny", "tiny", "tiny"], "data.redundancy": 20}
    )
    assert with_datasets(trials)["dataset"].to_list() == [
        "domain, 20 per fact, small model",
        "people",
        "books",
        "TOFU",
    ]


def test_a_selector_that_forgets_more_is_below_random(tmp_path: Path) -> None:
    cells = [
        (
            {"select.name": name, "select.ratio": 0.1, "select.seed": seed, "train.seed": seed},
            left,
            0.5,
        )
        for name, left in (("random", 0.5), ("keyword_coverage", 0.3))
        for seed in range(4)
    ]
    row = against_random(run_of(tmp_path, cells), "keyword_coverage").row(0, named=True)
    assert (
        row["mean"] == pytest.approx(-0.2, abs=0.05)
        and row["high"] < 0
        and row["seeds"] == 4
        and row["p"] < 0.01
    )


def test_an_arm_is_judged_by_what_is_left_in_the_end_and_not_by_the_share_that_came_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cap` forgot little, 0.8 is left, and the attack gives it nothing; plain goes from 0.1 to
    0.5: of cap the attacker has 0.3 more.
    """
    ends = {"plain": (0.1, 0.5), "cap": (0.8, 0.8), "sam": (0.1, 0.2)}
    rows = [
        {
            "attacked": f"{arm}{seed}",
            "setting": f"relearning documents=10 learning_rate=0.00{seed + 1}",
            "unlearned": left,
            "after": after + 0.001 * seed,
        }
        for arm, (left, after) in ends.items()
        for seed in range(4)
    ]
    monkeypatch.setattr(verdicts, "recovery_table", lambda _: pl.DataFrame(rows))
    monkeypatch.setattr(verdicts, "arm_of", lambda row: row["trial_id"][:-1])
    for row in rows:
        write_trial(tmp_path, str(row["attacked"]), {"trials": [{"status": "complete"}]}, {})
    found = {
        row["arm"]: row for row in residual_after_attack(open_run(tmp_path)).iter_rows(named=True)
    }
    assert {row["attack"] for row in found.values()} == {"relearning documents=10"} and found[
        "plain"
    ]["beyond_plain"] is None
    assert (
        found["cap"]["beyond_plain"] == pytest.approx(0.3)
        and found["cap"]["beyond_low"] > 0.29
        and found["cap"]["left"] == pytest.approx(0.8)
    )
    assert (
        found["sam"]["beyond_plain"] == pytest.approx(-0.3) and found["sam"]["beyond_high"] < -0.29
    )


def test_what_comes_back_is_told_beside_gold_and_from_method_to_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`shots`: 0.6 of RMU's, 0.2 of LLMU's, gold gains nothing. `relearning`: 0.5 of both, and gold
    gains as much: the attack told it. `poem`: loses.
    """
    back = {
        "shots": {"rmu": 0.6, "llmu": 0.2},
        "relearning": {"rmu": 0.5, "llmu": 0.5},
        "poem": {"rmu": -0.1, "llmu": -0.5},
    }
    # as a share of the 0.8 that unlearning took
    gold = {"shots": 0.0, "relearning": 0.55, "poem": 0.0}
    rows = [
        {
            "attacked": f"{m}{seed}",
            "setting": attack,
            "recovered": share + 0.001 * seed,
            "gold_rise": 0.8 * gold[attack],
            "base": 0.9,
            "unlearned": 0.1,
        }
        for attack, shares in back.items()
        for m, share in shares.items()
        for seed in (0, 1, 2)
    ]
    monkeypatch.setattr(verdicts, "recovery_table", lambda _: pl.DataFrame(rows))
    plan = []
    for method, seed in product(("rmu", "llmu"), (0, 1, 2)):
        settings = {"method.forget": method, "method.retain": "kl", "select.ratio": 1.0}
        write_trial(tmp_path, f"{method}{seed}", {"trials": [{"status": "complete"}]}, settings)
        plan.append(synthetic.plan_row(f"{method}{seed}", "grid", "{}"))
    write_run_table(tmp_path, "plan", plan)
    run = open_run(tmp_path)
    assert dict(
        recovery_by_method(run)
        .filter(pl.col("method") == "rmu + kl")
        .select("attack", "gold")
        .iter_rows()
    )["relearning"] == pytest.approx(0.55)
    llmu, rmu, both = recovery_sentences(run)
    assert (
        rmu.startswith("rmu + kl: of 3 attacks 1 recover")
        and "shots +0.601" in rmu
        and "one recovers half" in rmu
    )
    assert (
        "relearning" not in rmu
        and "shots +0.201" in llmu
        and "none is shown to recover half" in llmu
    )
    assert (
        both
        == "rmu + kl recovers more than llmu + kl under shots (intervals apart, not corrected)."
    )


def interval(name: str, mean: float, half: float = 0.05) -> dict[str, float]:
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}


def test_the_dilemma_is_answered_cell_by_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, covering(lambda coverage, _ratio: 0.9 - 0.8 * coverage))
    asked = [
        {"cell": cell, "form": "quoted", "forgotten": n, **interval("net", net)}
        for cell, n, net in (("a", 20.0, 0.3), ("b", 20.0, 0.0), ("c", 0.4, 1.0))
    ]
    spared = interval("against_keywords_forget", 2.0) | {
        "function_words_forget": -1.0,
        "keywords_forget": -3.0,
    }
    paid = interval("against_keywords_forget", 0.0) | {
        "function_words_forget": -5.0,
        "keywords_forget": -5.0,
    }
    unknown = dict.fromkeys(spared)
    harm = (("a", 0.5, spared), ("b", 0.02, paid), ("c", 0.1, unknown))
    damage = [
        {
            "cell": cell,
            "role": "grid",
            **interval("destroyed", lost),
            **interval("destroyed_untouched", 0.2),
            **words,
        }
        for cell, lost, words in harm
    ]
    monkeypatch.setattr(verdicts, "emphasis_table", lambda _: pl.DataFrame(asked))
    monkeypatch.setattr(
        verdicts, "damage_table", lambda _: pl.DataFrame(damage, infer_schema_length=None)
    )
    a, b, c = dilemma_sentences(run)
    assert (
        "recover more than random words: quoted 0.30" in a
        and "retain is lost" in a
        and "fell by 1.0 nats and keywords by 3.0: they were spared" in a
    )
    assert (
        "no more than random words in any of 1 forms" in b
        and "retain stays" in b
        and "not shown to be spared" in b
    )
    assert (
        "0.4 questions forgotten, too few" in c and "retain is not decided" in c and "nats" not in c
    )


def test_a_coreset_model_is_judged_by_its_barrier_and_by_what_attacks_give_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [
        ({"select.ratio": ratio, "train.seed": seed}, 0.2, 1.0)
        for ratio in (0.25, 1.0)
        for seed in (0, 1, 2)
    ]
    run = run_of(tmp_path, cells)
    trials = (
        run.trials.filter(pl.col("stage") == "unlearned")
        .select("trial_id", "select.ratio")
        .collect()
    )
    back = {
        ("relearning", 0.25): 0.9,
        ("relearning", 1.0): 0.5,
        ("shots", 0.25): 0.1,
        ("shots", 1.0): 0.1,
    }
    rows = [
        {"attacked": t, "setting": name, "recovered": v}
        for t, r in trials.iter_rows()
        for (name, ratio), v in back.items()
        if ratio == r
    ]
    table = [
        {
            "method": "rmu + activation",
            "select.name": "random",
            "select.ratio": 0.25,
            **interval("barrier_forget", barrier),
            **interval("agreement", 0.7),
        }
        for barrier in (0.3, 0.0, 0.12)
    ]
    monkeypatch.setattr(verdicts, "recovery_table", lambda _: pl.DataFrame(rows))
    monkeypatch.setattr(verdicts, "connectivity_table", lambda _: pl.DataFrame(table))
    refuted, none, open_ = faithfulness_sentences(run)
    assert (
        "a barrier: refuted" in refuted
        and "of 2 attacks 1 recover more than of the full set's models: relearning." in refuted
    )
    assert (
        "no barrier" in none
        and "not decided" in open_
        and "0.70 [0.65, 0.75] of the forget questions" in none
    )


def test_an_arm_is_called_by_what_plain_has_not() -> None:
    plain = {"method.wrappers": "", "token.cap": 0.0, "token.keep": 1.0, "select.ratio": 1.0}
    assert arm_of(plain) == "plain" and arm_of(plain | {"method.wrappers": "sam"}) == "sam"
    assert (
        arm_of(plain | {"token.cap": 40.0}) == "token.cap 40"
        and arm_of(plain | {"token.keep": 0.3}) == "token.keep 0.3"
    )
    assert (
        arm_of(plain | {"select.name": "random", "select.ratio": 0.05})
        == "5% of the documents by random"
    )


def test_the_page_names_no_folder_of_the_machine_that_made_it() -> None:
    said = page_module._without_folders(
        "data.name=tofu, data.path=/home/me/runs/tofu, train.length=60; data.path=books, no more"
    )
    assert said == "data.name=tofu, data.path=tofu, train.length=60; data.path=books, no more"


def test_every_question_has_a_line_and_those_that_were_run_a_page(tmp_path: Path) -> None:
    """The page begins with the answer; what was asked and the table are folded."""
    synthetic.write_run(tmp_path / "coreset_effect" / "1")
    pages = findings_pages(tmp_path)
    assert sorted(pages) == ["findings.md", "findings/coreset-effect.md"]
    assert all(f"| {finding.title} |" in pages["findings.md"] for finding in FINDINGS)
    assert pages["findings.md"].count("not run yet") == len(FINDINGS) - 1
    page = pages["findings/coreset-effect.md"]
    answer = next(f.answer for f in FINDINGS if f.experiment == "coreset_effect")
    assert page.splitlines()[2] == f"**{answer}**"
    folded = page.partition("<details markdown>")[2].partition("</details>")[0]
    assert "rmu + nll, random" in folded and "| method |" in folded
    assert "**Published.**" in page and "commit: abc123" in page


def test_a_page_that_was_made_before_counts_as_run(tmp_path: Path) -> None:
    """And is not written again: its run may be on another machine."""
    (tmp_path / "docs" / "findings").mkdir(parents=True)
    (tmp_path / "docs" / "findings" / "control.md").write_text("# As it was\n")
    pages = findings_pages(tmp_path / "runs", docs=tmp_path / "docs")
    assert list(pages) == ["findings.md"] and "(findings/control.md)" in pages["findings.md"]


def test_the_findings_are_what_their_generator_says_of_answers() -> None:
    docs = Path(__file__).parents[2] / "docs"
    assert findings_pages(docs / "no runs", docs=docs) == {
        "findings.md": (docs / "findings.md").read_text(encoding="utf-8")
    }
    for finding in FINDINGS:
        page = docs / "findings" / f"{finding.name}.md"
        if finding.answer or page.exists():
            head = page.read_text(encoding="utf-8").splitlines()[:3]
            assert head == [f"# {finding.title}", "", f"**{finding.answer}**"]


def test_every_finding_is_of_an_experiment_that_there_is() -> None:
    root = Path(__file__).parents[2] / "experiments"
    assert [f.experiment for f in FINDINGS if not (root / f"{f.experiment}.py").is_file()] == []
