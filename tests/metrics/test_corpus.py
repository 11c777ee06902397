"""Metrics of a whole corpus: by hand, by counting pairs,
and against TOFU's public evaluation logs.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from rayunlearn.metrics.corpus import (
    CORPUS_METRICS,
    UTILITY_TERMS,
    auc,
    corpus_rows,
    forget_distance,
    model_utility,
    privacy_leakage,
    tpr_at_fpr,
)
from rayunlearn.metrics.likelihood import (
    option_probability,
    probability,
    truth_ratio,
    truth_ratio_arithmetic,
    truth_ratio_right,
)
from rayunlearn.metrics.text import rouge_l_recall

LOGS = Path(__file__).parents[2].parent / "shared" / "data" / "tofu_logs"
needs_logs = pytest.mark.skipif(
    not LOGS.is_dir(),
    reason="TOFU's evaluation logs (shared/data/tofu_logs) are not on this machine",
)
FILES = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}


def test_auc_counts_the_pairs_that_are_in_order() -> None:
    """Forget 1, 2, holdout 2, 3: pairs (1,2) (1,3) (2,3) in order, (2,2) a tie: 3.5 of 4."""
    assert auc(np.array([1.0, 2.0]), np.array([2.0, 3.0])) == 3.5 / 4


def test_auc_equals_a_loop_over_all_pairs() -> None:
    generator = np.random.default_rng(0)
    forget, holdout = (
        generator.integers(0, 9, 40).astype(float),
        generator.integers(2, 12, 31).astype(float),
    )
    pairs = [(h > f) + 0.5 * (h == f) for f in forget for h in holdout]
    assert auc(forget, holdout) == pytest.approx(float(np.mean(pairs)))


def test_true_positives_are_counted_under_the_threshold_that_lets_one_percent() -> None:
    """Holdout 0, 1, ..., 199: two of 200 may be called members, so the threshold is 2; of 1.5, 1.9,
    2, 50 two lie under it.
    """
    holdout = np.arange(200.0)
    assert tpr_at_fpr(np.array([1.5, 1.9, 2.0, 50.0]), holdout) == 0.5
    # two documents allow no false positive
    assert tpr_at_fpr(np.array([-1.0, 0.0]), np.array([0.0, 5.0])) == 0.5
    assert tpr_at_fpr(np.array([1.0, 9.0]), np.array([0.0, 5.0]), rate=1.0) == 1.0


def test_leakage_is_measured_from_gold() -> None:
    """MUSE: gold's AUC 0.5. All members found (AUC 1): -100. Twice as many unlike members (AUC 0):
    +100. As gold: 0.
    """
    assert [privacy_leakage(x, 0.5) for x in (1.0, 0.5, 0.0)] == [-100.0, 0.0, 100.0]
    assert privacy_leakage(0.7, 0.4) == pytest.approx(-50.0)
    assert privacy_leakage(0.7, 1.0) is None


def test_utility_is_a_harmonic_mean_that_one_zero_brings_down() -> None:
    assert model_utility([0.5, 1.0]) == pytest.approx(2 / 3)
    assert model_utility([0.5, 0.0, 1.0]) == 0.0


def test_distance_is_the_largest_gap_between_distribution_functions() -> None:
    """{1, 2, 3, 4} against {3, 4, 5, 6}: after 2 the first has 2/4, the second 0."""
    assert forget_distance(np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 5, 6])) == 0.5


def rows(values: dict[tuple[str, str], list[float | None]]) -> pl.DataFrame:
    listed = [
        {"doc_id": f"{split}{i}", "split": split, "metric": metric, "value": v}
        for (split, metric), part in values.items()
        for i, v in enumerate(part)
    ]
    return pl.DataFrame(
        listed,
        schema={"doc_id": pl.String, "split": pl.String, "metric": pl.String, "value": pl.Float64},
    )


def test_what_the_rows_do_not_allow_is_left_out() -> None:
    assert corpus_rows(rows({("forget", "min_k_score"): [1.0, 2.0]})) == []
    found = corpus_rows(
        rows({("forget", "min_k_score"): [1.0, 2.0, None], ("holdout", "min_k_score"): [2.0, 3.0]})
    )
    assert [(row["metric"], row["value"], row["n"]) for row in found] == [
        ("min_k_score_auc", 0.875, 4),
        ("min_k_score_tpr_at_fpr", 0.5, 4),
        ("privacy_leakage", pytest.approx(-75.0), 4),
    ]


def test_whole_forget_documents_are_the_members_where_questions_are_asked_of_forget() -> None:
    values: dict[tuple[str, str], list[float | None]] = {
        ("forget", "loss_score"): [9.0],
        ("members", "loss_score"): [1.0],
        ("holdout", "loss_score"): [2.0],
    }
    assert {row["metric"]: row["value"] for row in corpus_rows(rows(values))}[
        "loss_score_auc"
    ] == 1.0


def test_gold_gives_leakage_its_zero_and_the_truth_ratios_their_comparison() -> None:
    own = rows(
        {
            ("forget", "min_k_score"): [1.0, 2.0],
            ("holdout", "min_k_score"): [2.0, 3.0],
            ("forget", "truth_ratio"): [1.0, 2.0, 3.0, 4.0],
        }
    )
    found = {row["metric"]: row["value"] for row in corpus_rows(own, own)}
    assert (
        found["privacy_leakage"] == pytest.approx(0.0)
        and found["forget_distance"] == 0.0
        and found["forget_quality"] == pytest.approx(1.0)
    )


@pytest.mark.parametrize("name", sorted(CORPUS_METRICS))
def test_every_corpus_metric_states_unit_range_and_direction(name: str) -> None:
    row = CORPUS_METRICS[name]
    assert (
        row.unit
        and row.title
        and row.source
        and row.direction in ("higher", "lower", "")
        and row.low < row.high
    )


# ---- golden values: TOFU's own logs of Llama-2-7B, through our functions


def log(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((LOGS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def values_of(entry: dict[str, Any], row: str, *, normalised: bool) -> dict[str, float]:
    """Our metrics of one logged document, from its mean-token losses."""
    wrong = entry["average_perturb_loss"][row]
    options = torch.tensor([entry["avg_paraphrased_loss"][row], *wrong], dtype=torch.float64)
    answer = torch.tensor([entry["avg_gt_loss"][row]], dtype=torch.float64)
    likely = (
        {"option_probability": option_probability(torch.cat([answer, options[1:]]))}
        if normalised
        else {"probability": probability(answer)}
    )
    ratios = {
        "truth_ratio": truth_ratio(options),
        "truth_ratio_right": truth_ratio_right(options),
        "arithmetic": truth_ratio_arithmetic(options),
    }
    return likely | ratios | {"rouge_l_recall": entry["rougeL_recall"][row]}


def examples_of(name: str) -> pl.DataFrame:
    """The log as our table."""
    logged = log(name)
    return pl.DataFrame(
        [
            {"doc_id": f"{split} {row}", "split": split, "metric": metric, "value": value}
            for split, file in FILES.items()
            for row in logged[file]["avg_gt_loss"]
            for metric, value in values_of(
                logged[file], row, normalised=split in ("real_authors", "world_facts")
            ).items()
        ]
    )


@pytest.fixture(scope="module")
def full() -> pl.DataFrame:
    return examples_of("llama2-7b_full_wd0.01")


@pytest.fixture(scope="module")
def retain90() -> pl.DataFrame:
    return examples_of("llama2-7b_retain90_wd0.01")


@needs_logs
def test_forget_quality_of_the_public_logs(full: pl.DataFrame, retain90: pl.DataFrame) -> None:
    """Full against retain90: statistic 0.396667, p 1.83407e-21; retain90 with and without weight
    decay: p 0.9993.
    """
    found = {row["metric"]: row["value"] for row in corpus_rows(full, retain90)}
    assert found["forget_distance"] == pytest.approx(0.396667, abs=1e-6)
    assert found["forget_quality"] == pytest.approx(1.83407e-21, rel=1e-5)
    other = {
        row["metric"]: row["value"]
        for row in corpus_rows(examples_of("llama2-7b_retain90_wd0"), retain90)
    }
    assert other["forget_quality"] == pytest.approx(0.9993, abs=1e-4)


@needs_logs
def test_model_utility_of_the_public_logs(full: pl.DataFrame, retain90: pl.DataFrame) -> None:
    """Geometric truth ratio: full 0.622677, retain90 0.613745."""
    for examples, expected in ((full, 0.622677), (retain90, 0.613745)):
        found = {row["metric"]: row["value"] for row in corpus_rows(examples)}
        assert found["model_utility"] == pytest.approx(expected, abs=1e-6)


@needs_logs
def test_model_utility_with_the_arithmetic_truth_ratio(
    full: pl.DataFrame, retain90: pl.DataFrame
) -> None:
    """Full 0.585886, retain90 0.575240."""
    right = (
        pl.when(pl.col("metric") == "arithmetic")
        .then((1 - pl.col("value")).clip(0))
        .otherwise("value")
    )
    renamed = pl.col("metric").replace(
        {"truth_ratio_right": "unused", "arithmetic": "truth_ratio_right"}
    )
    for examples, expected in ((full, 0.585886), (retain90, 0.575240)):
        found = {
            row["metric"]: row["value"]
            for row in corpus_rows(
                examples.with_columns(right.alias("value")).with_columns(renamed)
            )
        }
        assert found["model_utility"] == pytest.approx(expected, abs=1e-6)


@needs_logs
def test_the_nine_terms_of_the_full_model(full: pl.DataFrame) -> None:
    expected = [0.9895, 0.9857, 0.4747, 0.4555, 0.9330, 0.5962, 0.4186, 0.8825, 0.5390]
    means = {
        (s, m): v
        for s, m, v in full.group_by("split", "metric").agg(pl.col("value").mean()).iter_rows()
    }
    assert [means[place] for place in UTILITY_TERMS] == pytest.approx(expected, abs=5e-5)


@needs_logs
def test_rouge_recall_of_every_logged_text_is_the_logged_one() -> None:
    """The log has the texts beside TOFU's ROUGE-L recall, 100 of each set here."""
    logged = log("llama2-7b_full_wd0.01")
    for file in FILES.values():
        for row in list(logged[file]["generated_text"])[:100]:
            _, text, truth = logged[file]["generated_text"][row]
            assert rouge_l_recall(text, truth) == pytest.approx(
                logged[file]["rougeL_recall"][row], abs=1e-9
            )
