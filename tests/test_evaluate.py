"""A model directory on a benchmark, on the one real model and the real questions at hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayunlearn.data.benchmarks import load_benchmark
from rayunlearn.data.documents import Corpus
from rayunlearn.metrics.evaluate import evaluate
from rayunlearn.metrics.inputs import Writing, spelt_letters
from rayunlearn.metrics.measure import chosen_metrics
from rayunlearn.models.load import load_model

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not all((SHARED / name).is_dir() for name in ("stories260k", "tofu", "mmlu")),
    reason="the TinyStories model, TOFU and MMLU (shared/data) are not on this machine",
)
METRICS = "probability,option_probability,truth_ratio,truth_ratio_right,rouge_l_recall,min_k_score,letter_choice,letter_answered"


def few(loaded: Corpus, n: int) -> Corpus:
    """The benchmark with the first `n` probes of each split."""
    return replace(loaded, probes={split: part[:n] for split, part in loaded.probes.items()})


@pytest.fixture(scope="module")
def stories() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_model(str(SHARED / "stories260k"))


@pytest.fixture(scope="module")
def tofu() -> Corpus:
    return few(load_benchmark("tofu", SHARED / "tofu", options={"size": "01"}), 6)


def by_place(evals: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    return {(row["split"], row["metric"]): row["value"] for row in evals}


def test_a_story_teller_knows_nothing_of_tofu_and_measures_the_same_twice(
    stories: tuple[PreTrainedModel, PreTrainedTokenizerBase], tofu: Corpus
) -> None:
    def measured() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return evaluate(*stories, tofu, metrics=chosen_metrics(METRICS), writing=Writing(max_new_tokens=12))

    examples, evals = measured()
    assert measured() == (examples, evals)
    found = by_place(evals)
    assert found["forget", "probability"] < 0.05 and found["forget", "rouge_l_recall"] < 0.5
    assert found["forget", "truth_ratio"] == pytest.approx(1, abs=0.5)  # neither truth nor falsehood is known
    assert found["retain", "model_utility"] < 0.2
    values = [row["value"] for row in examples if (row["split"], row["metric"]) == ("forget", "probability")]
    assert found["forget", "probability"] == pytest.approx(sum(values) / 6)


def test_a_model_is_indistinguishable_from_itself_as_gold(stories: tuple[PreTrainedModel, PreTrainedTokenizerBase], tofu: Corpus) -> None:
    examples, _ = evaluate(*stories, tofu, metrics=chosen_metrics("truth_ratio"))
    _, evals = evaluate(*stories, tofu, metrics=chosen_metrics("truth_ratio"), gold=pl.DataFrame(examples))
    assert by_place(evals)["forget", "forget_distance"] == 0 and by_place(evals)["forget", "forget_quality"] == pytest.approx(1)


def test_a_real_tokenizer_s_letters_are_told_apart_in_mmlu_s_questions(stories: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    """This tokenizer spells "B" in one token and "A" in two. A story teller guesses: chance within four standard errors."""
    assert {len(ids) for ids in spelt_letters(stories[1], 4) or []} == {1, 2}
    benchmark = few(load_benchmark("mmlu", SHARED / "mmlu"), 100)
    _, evals = evaluate(*stories, benchmark, metrics=chosen_metrics("letter_choice,letter_answered,letter_written"))
    found = by_place(evals)
    assert abs(found["mmlu", "letter_choice"] - 0.25) < 4 * (0.25 * 0.75 / 100) ** 0.5
    assert found["mmlu", "letter_written"] <= found["mmlu", "letter_answered"]
