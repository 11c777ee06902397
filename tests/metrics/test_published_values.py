"""The metrics that open-unlearning reports, held by values that were worked by hand from the
published definitions (published_values.json): what both agreed on stays as it was.
"""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from rayunlearn.metrics.corpus import UTILITY_TERMS, corpus_rows
from rayunlearn.metrics.table import METRICS

VALUES = json.loads((Path(__file__).parent / "published_values.json").read_text(encoding="utf-8"))
CLOSE = 1e-6


def number(fraction: list[int]) -> float:
    return fraction[0] / fraction[1]


def nll(fractions: list[list[int]]) -> torch.Tensor:
    return torch.tensor([-math.log(number(f)) for f in fractions])


def measured(name: str, case: dict[str, Any]) -> float:
    """The metric of a case of the file, by its own function."""
    flags = torch.tensor([c == "1" for c in case.get("correct", "")] + [True])
    inputs = {
        "token_nll": nll(case.get("p", [[1, 1]])),
        "generated": case.get("text", ""),
        "truth": case.get("truth", ""),
        "option_nll": nll(case.get("options", [[1, 1]])),
        "correct": flags,
        "n_end": 1,
    }
    value = METRICS[name].function(**{n: inputs[n] for n in METRICS[name].inputs})
    assert value is not None
    return value


CASES = [
    (name, case, part)
    for name in (
        "probability",
        "rouge_l_recall",
        "rouge_l_f1",
        "truth_ratio",
        "extraction_strength",
        "exact_memorization",
    )
    for case in VALUES[name]
    for part in ("value", "arithmetic", "even", "right")
    if part in case
]


@pytest.mark.parametrize(("name", "case", "part"), CASES)
def test_a_metric_of_a_document_is_the_published_definition(
    name: str, case: dict[str, Any], part: str
) -> None:
    metric = name if part == "value" else f"{name}_{part}"
    assert measured(metric, case) == pytest.approx(number(case[part]), rel=CLOSE), case["why"]


def frame(rows: list[tuple[str, str, float]]) -> pl.DataFrame:
    listed = [
        {"doc_id": str(at), "split": split, "metric": metric, "value": value}
        for at, (split, metric, value) in enumerate(rows)
    ]
    return pl.DataFrame(listed)


def of_corpus(own: pl.DataFrame, gold: pl.DataFrame | None = None) -> dict[str, Any]:
    return {str(row["metric"]): row["value"] for row in corpus_rows(own, gold)}


def test_model_utility_is_the_harmonic_mean_of_the_nine_terms() -> None:
    case = VALUES["model_utility"]
    kinds: dict[str, list[str]] = {}
    for split, metric in UTILITY_TERMS:
        kinds.setdefault(split, []).append(metric)
    rows = [
        (split, metric, number(value))
        for split, values in case["terms"].items()
        for metric, value in zip(kinds[split], values, strict=True)
    ]
    assert of_corpus(frame(rows))["model_utility"] == pytest.approx(number(case["value"]))


@pytest.mark.parametrize("case", VALUES["forget_quality"])
def test_forget_quality_is_the_exact_p_of_the_test(case: dict[str, Any]) -> None:
    own, gold = (
        frame([("forget", "truth_ratio", ratio) for ratio in case[side]])
        for side in ("own", "gold")
    )
    assert of_corpus(own, gold)["forget_quality"] == pytest.approx(number(case["value"]))


@pytest.mark.parametrize("score", VALUES["attacks"]["auc"])
def test_the_auc_of_four_attacks_is_that_of_their_scores_by_hand(score: str) -> None:
    rows = []
    for document in VALUES["attacks"]["documents"]:
        losses = nll(document["p"]).double()
        inputs = {
            "token_nll": losses,
            "answer": document.get("answer", 40 * document.get("letter", "")),
            "log_prob_mean": torch.full_like(losses, document["mu"] * math.log(2)),
            "log_prob_deviation": torch.full_like(losses, document["sigma"] * math.log(2)),
            "n_end": 1,
        }
        value = METRICS[score].function(**{n: inputs[n] for n in METRICS[score].inputs})
        # scores that are equal by hand are ties: what float64 makes of them is not
        rows.append((document["split"], score, round(float(value or 0.0), 12)))
    expected, why = VALUES["attacks"]["auc"][score]
    assert of_corpus(frame(rows))[f"{score}_auc"] == pytest.approx(number(expected)), why


def test_the_bytes_that_the_file_counts_are_those_of_zlib() -> None:
    sentence = VALUES["attacks"]["documents"][1]["answer"]
    assert [len(zlib.compress(text.encode())) for text in (40 * "a", sentence)] == [12, 51]
