"""Selectors beside random and texts beside random words, on runs whose truth is planted."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rayunlearn.analysis.baselines import baseline_table
from rayunlearn.analysis.equal_retention import ranks
from rayunlearn.analysis.hypothesis_tests import difference, holm, paired_p
from rayunlearn.config import Trial, Value, digest, flatten, with_values
from rayunlearn.reporting.html import page
from rayunlearn.reporting.tables import baseline_sentences, baseline_view
from rayunlearn.storage.run import Run, open_run, write_experiment, write_run_table, write_trial
from tests.synthetic import EXPERIMENT, plan_row

# Mean left on forget by what is compared; what stands nowhere else is retained at 0.9, of base's
# 1.0.
SELECTORS = {"random": 0.5, "min_k": 0.3, "moderate": 0.501, "grand": 0.8, "loss": 0.3}
TEXTS = {"random_words": 0.6, "original": 0.2, "keywords_only": 0.4}


def rows_of(forget: float, retain: float, seed: int) -> list[dict[str, Any]]:
    """Thirty documents per split, a difficulty of their own each, all moved by 0.005 per seed."""
    common = {"stage": "unlearned", "attack": "none", "metric": "probability"}
    hard = np.random.default_rng(3).normal(0, 0.05, 30)
    noise = np.random.default_rng([seed, round(forget * 1000)]).normal(0, 0.01, 30) + 0.005 * (
        seed - 1
    )
    sides = (("forget", forget + hard + noise), ("retain", np.full(30, retain)))
    return [
        common | {"doc_id": f"{split}{at}", "split": split, "value": float(v)}
        for split, values in sides
        for at, v in enumerate(values)
    ]


def made_run(
    folder: Path, setting: str, left: dict[str, float], ratios: tuple[float, ...] = (0.25,)
) -> Run:
    plan = []
    cells = [(name, ratio, seed) for name in left for ratio in ratios for seed in (0, 1, 2)]
    for name, ratio, seed in cells:
        values: dict[str, Value] = {
            setting: name,
            "select.ratio": ratio,
            "select.seed": seed,
            "train.seed": seed,
        }
        trial = with_values(Trial(), values)
        retain = 0.5 if name == "loss" else 0.9
        plan.append(written(folder, trial, rows_of(left[name], retain, seed), "grid"))
    plan.append(
        written(
            folder,
            with_values(Trial(), {"stage": "base"}),
            [r | {"stage": "base"} for r in rows_of(0.9, 1.0, 0)],
            "base",
        )
    )
    write_run_table(folder, "plan", plan)
    write_experiment(folder, EXPERIMENT | {"search": {}})
    return open_run(folder).in_memory()


def written(
    folder: Path, trial: Trial, examples: list[dict[str, Any]], role: str
) -> dict[str, Any]:
    identity = digest(flatten(trial))
    write_trial(
        folder,
        identity,
        {"trials": [{"status": "complete", "n_forget": 40, "n_kept": 10}], "examples": examples},
        flatten(trial),
    )
    return plan_row(identity, role, "{}")


def test_selectors_that_forget_more_or_less_than_random_are_told_from_one_that_does_neither(
    tmp_path: Path,
) -> None:
    table = baseline_table(made_run(tmp_path, "select.name", SELECTORS))
    verdicts = dict(table.select("arm", "verdict").iter_rows())
    assert verdicts == {
        "min_k": "forgets more",
        "moderate": "not shown",
        "grand": "forgets less",
        "loss": "forgets more",
    }
    row = table.filter(pl.col("arm") == "grand").row(0, named=True)
    assert (
        row["reference"] == "random"
        and row["difference"] == pytest.approx(0.3, abs=0.01) == row["left"] - row["left_reference"]
    )
    # floor 0.9 x 1.0
    assert dict(table.select("arm", "useful").iter_rows()) == {
        "min_k": True,
        "moderate": True,
        "grand": True,
        "loss": False,
    }


def test_p_is_that_of_the_paired_test_and_is_corrected_over_everything_compared(
    tmp_path: Path,
) -> None:
    run = made_run(
        tmp_path, "select.name", {"random": 0.5, "min_k": 0.495, "moderate": 0.498}, (0.25, 0.05)
    )
    table = baseline_table(run)
    values = (
        run.examples.filter(pl.col("split") == "forget")
        .join(run.trials.select("trial_id", "select.name", "select.ratio"), on="trial_id")
        .collect()
    )

    def matrix(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        mine = values.filter(pl.col("select.name") == name, pl.col("select.ratio") == 0.25)
        return (
            mine.pivot(on="doc_id", index="trial_id", values="value", sort_columns=True)
            .drop("trial_id")
            .to_numpy()
        )

    expected = paired_p(difference(matrix("min_k"), matrix("random")))
    row = table.filter(pl.col("arm") == "min_k", pl.col("ratio") == 0.25).row(0, named=True)
    assert row["p"] == pytest.approx(expected) and table.height == 4
    assert table["p_holm"].to_list() == pytest.approx(holm(table["p"].to_list()))


def test_texts_stand_beside_random_words_and_beside_the_whole_each_pair_once(
    tmp_path: Path,
) -> None:
    table = baseline_table(made_run(tmp_path, "select.text", TEXTS))
    assert sorted(table.select("arm", "reference", "verdict").rows()) == [
        ("keywords_only", "original", "forgets less"),
        ("keywords_only", "random_words", "forgets more"),
        ("original", "random_words", "forgets more"),
    ]


def pairs_of(folder: Path, cells: list[tuple[dict[str, Value], float]]) -> list[tuple[str, str]]:
    """(arm, reference) of every comparison in a run of these cells, what they leave beside them."""
    plan = []
    for settings, left in cells:
        for seed in (0, 1, 2):
            trial = with_values(Trial(), settings | {"select.seed": seed, "train.seed": seed})
            plan.append(written(folder, trial, rows_of(left, 0.9, seed), "grid"))
    plan.append(
        written(
            folder,
            with_values(Trial(), {"stage": "base"}),
            [r | {"stage": "base"} for r in rows_of(0.9, 1.0, 0)],
            "base",
        )
    )
    write_run_table(folder, "plan", plan)
    write_experiment(folder, EXPERIMENT | {"search": {}})
    return sorted(baseline_table(open_run(folder)).select("arm", "reference").rows())


PAIRS = [
    ("keywords_only", "original"),
    ("keywords_only", "random_words"),
    ("original", "random_words"),
]


def test_a_whole_text_stands_beside_its_keywords_though_it_names_no_extractor(
    tmp_path: Path,
) -> None:
    """A whole text at ratio 1 needs no keywords, so its trial falls back to
    the default extractor.
    """
    extractors = {"original": "tfidf", "keywords_only": "slots", "random_words": "slots"}
    assert (
        pairs_of(
            tmp_path,
            [
                ({"select.text": text, "select.extractor": name}, TEXTS[text])
                for text, name in extractors.items()
            ],
        )
        == PAIRS
    )


def test_a_whole_text_stands_beside_every_share_and_a_share_beside_random_words_of_its_own(
    tmp_path: Path,
) -> None:
    shares = [
        ("original", 0.3),
        *((text, share) for text in ("keywords_only", "random_words") for share in (0.1, 0.5)),
    ]
    cells: list[tuple[dict[str, Value], float]] = [
        ({"select.text": text, "select.keyword_fraction": share}, TEXTS[text])
        for text, share in shares
    ]
    assert pairs_of(tmp_path, cells) == sorted(PAIRS * 2)
    table = (
        baseline_table(open_run(tmp_path))
        .select("arm", "name", "reference", "reference_name")
        .rows()
    )
    cut = ["select.keyword_fraction 0.1", "select.keyword_fraction 0.5"]
    assert sorted(row for row in table if row[0] == "original") == [
        ("original", "npo + nll", "random_words", share) for share in cut
    ]
    assert {row[3] for row in table if row[0] != "original"} == {""}


def test_a_corpus_is_named_by_no_more_than_tells_it_apart(tmp_path: Path) -> None:
    """Two corpora differ in name, path and epochs of training: the name alone says which."""
    corpora: tuple[dict[str, Value], ...] = (
        {"data.name": "domain"},
        {"data.name": "files", "data.path": "/books", "model.teach_epochs": 60},
    )
    plan = []
    for corpus in corpora:
        base = with_values(Trial(), corpus | {"stage": "base"})
        plan.append(
            written(tmp_path, base, [r | {"stage": "base"} for r in rows_of(0.9, 1.0, 0)], "base")
        )
        for name, seed in ((name, seed) for name in ("random", "min_k") for seed in (0, 1, 2)):
            values: dict[str, Value] = {
                "select.name": name,
                "select.ratio": 0.25,
                "select.seed": seed,
                "train.seed": seed,
            }
            plan.append(
                written(
                    tmp_path,
                    with_values(Trial(), corpus | values),
                    rows_of(SELECTORS[name], 0.9, seed),
                    "grid",
                )
            )
    write_run_table(tmp_path, "plan", plan)
    write_experiment(tmp_path, EXPERIMENT | {"search": {}})
    table = baseline_table(open_run(tmp_path))
    assert table.select("place", "arm", "useful").rows() == [
        ("data.name domain", "min_k", True),
        ("data.name files", "min_k", True),
    ]


def test_nothing_is_compared_where_nothing_was_drawn_at_random(tmp_path: Path) -> None:
    run = made_run(tmp_path, "select.name", {"min_k": 0.3, "grand": 0.8})
    assert (
        baseline_table(run).is_empty()
        and baseline_sentences(baseline_table(run)) == []
        and 'id="beside"' not in page(run)
    )


def test_the_words_and_the_page_name_what_beats_random_and_what_that_cost(tmp_path: Path) -> None:
    run = made_run(tmp_path, "select.name", SELECTORS)
    table = baseline_table(run)
    sentence = baseline_sentences(table)[0]
    assert (
        sentence.startswith("Compared with random: 2 of 4 cells forget more:")
        and "; 1 forget less;" in sentence
    )
    assert (
        "loss at 0.25 -0.198 under the utility floor" in sentence
        and "min_k at 0.25 -0.198;" in sentence
    )
    headers, rows = baseline_view(table)
    assert all(len(row) == len(headers) for row in rows) and len(rows) == 4
    assert 'id="beside"' in page(run) and sentence.split(":")[0] in page(run)


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_document_makes_no_error_of_the_page_and_no_interval_of_one_seed(
    tmp_path: Path, seeds: int
) -> None:
    """One forget and one retain document: over seeds where there are several; over nothing with
    one, where no interval is printed and nothing is shown.
    """
    plan = []
    cells = [(name, seed) for name in ("random", "min_k") for seed in range(seeds)]
    for name, seed in cells:
        values: dict[str, Value] = {
            "select.name": name,
            "select.ratio": 0.25,
            "select.seed": seed,
            "train.seed": seed,
        }
        alone = rows_of(SELECTORS[name], 0.9, seed)[::30]
        plan.append(written(tmp_path, with_values(Trial(), values), alone, "grid"))
    write_run_table(tmp_path, "plan", plan)
    write_experiment(tmp_path, EXPERIMENT | {"search": {}})
    run = open_run(tmp_path).in_memory()
    row = baseline_table(run).row(0, named=True)
    assert (row["low"] is None) == (row["high"] is None) == (row["stderr"] is None) == (seeds == 1)
    assert (row["p"] == 1.0 and row["verdict"] == "not shown") or seeds > 1
    _, (shown,) = baseline_view(baseline_table(run))
    assert f"{row['difference']:+.3f}" in "".join(shown) and "inf" not in "".join(shown)
    assert ranks([np.array([[0.2]]), np.array([[0.4]])]) == [(1.0, 1.0, 2.0), (2.0, 1.0, 2.0)]
    assert 'id="beside"' in page(run)
