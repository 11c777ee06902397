"""A model directory on a benchmark: on the one real model and the real questions at hand, and with
the harness on a task made here.
"""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rayunlearn.cli.main import main
from rayunlearn.config import Data, Value
from rayunlearn.errors import UserError
from rayunlearn.interop.evaluate import (
    Evaluation,
    EvaluationRequest,
    evaluate,
    read_examples,
    write_evaluation,
)
from rayunlearn.interop.lm_eval import run_harness
from rayunlearn.metrics.forward_passes import spelt_letters
from rayunlearn.metrics.harness import harness_rows
from rayunlearn.models.load import load_model
from rayunlearn.storage.run import compact
from tests import synthetic

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
STORIES = str(SHARED / "stories260k")
needs_data = pytest.mark.skipif(
    not all((SHARED / name).is_dir() for name in ("stories260k", "tofu", "mmlu")),
    reason="the TinyStories model, TOFU and MMLU (shared/data) are not on this machine",
)
METRICS = (
    "probability,option_probability,truth_ratio,truth_ratio_right,"
    "rouge_l_recall,min_k_score,letter_choice,letter_answered"
)


def asked(benchmark: str, metrics: str, cache: Path, limit: int = 6, **more: Any) -> Evaluation:
    settings: dict[str, Value] = {"measure.max_new_tokens": 12} | (
        {"data.options": "size=01"} if benchmark == "tofu" else {}
    )
    request = EvaluationRequest(
        model=STORIES,
        benchmark=benchmark,
        path=str(SHARED / benchmark),
        metrics=metrics,
        limit=limit,
        assignments=settings,
        **more,
    )
    return evaluate(request, cache)


def by_place(done: Evaluation) -> dict[tuple[str, str], float]:
    return {(row["split"], row["metric"]): row["value"] for row in done.evals}


@needs_data
def test_a_story_teller_knows_nothing_of_tofu_and_measures_the_same_twice(tmp_path: Path) -> None:
    done, again = (asked("tofu", METRICS, tmp_path / name) for name in ("a", "b"))
    assert done == again
    found = by_place(done)
    assert found["forget", "probability"] < 0.05 and found["forget", "rouge_l_recall"] < 0.5
    # neither truth nor falsehood is known
    assert found["forget", "truth_ratio"] == pytest.approx(1, abs=0.5)
    assert found["retain", "model_utility"] < 0.2
    values = [
        row["value"]
        for row in done.examples
        if (row["split"], row["metric"]) == ("forget", "probability")
    ]
    assert found["forget", "probability"] == pytest.approx(sum(values) / 6)
    groups = {(row["split"], row["group"]) for row in done.examples}
    # the first six questions of a split are about its first author
    assert groups >= {("forget", "forget author 0"), ("world_facts", None)}
    assert {record["state"] for record in done.about["files"]} == {
        "as recorded"
    } and "only the first 6 probes" in done.about["notes"][0]


@needs_data
def test_sums_are_asked_besides_where_they_are_wanted(tmp_path: Path) -> None:
    settings: dict[str, Value] = {"data.options": "size=01", "data.arithmetic": 9}
    request = EvaluationRequest(
        model=STORIES,
        benchmark="tofu",
        path=str(SHARED / "tofu"),
        metrics="multiple_choice,probability",
        limit=2,
        assignments=settings,
    )
    rows = [row for row in evaluate(request, tmp_path).examples if row["split"] == "arithmetic"]
    assert len({row["doc_id"] for row in rows}) == 9 and len(rows) == 18
    assert all(0 <= row["value"] <= 1 for row in rows)
    with pytest.raises(UserError, match="data.arithmetic must be from 0 to 190, got 191"):
        Data(arithmetic=191)


@needs_data
def test_a_model_is_indistinguishable_from_itself_as_gold_given_as_model_or_as_rows(
    tmp_path: Path,
) -> None:
    words = [
        "evaluate",
        STORIES,
        "--benchmark",
        "tofu",
        "--data",
        str(SHARED / "tofu"),
        "--metrics",
        "truth_ratio",
        "--limit",
        "6",
    ]
    words += ["--set", "data.options=size=01", "--output", str(tmp_path / "rows")]
    assert main(words) == 0
    for gold in (STORIES, str(tmp_path / "rows" / "examples.parquet")):
        assert main([*words[:-1], str(tmp_path / "again"), "--gold", gold]) == 0
        evals = pl.read_parquet(tmp_path / "again" / "evals.parquet").filter(
            pl.col("split") == "forget"
        )
        found = dict(zip(evals["metric"], evals["value"], strict=True))
        assert found["forget_distance"] == 0 and found["forget_quality"] == pytest.approx(1)
    about = json.loads((tmp_path / "again" / "evaluation.json").read_text(encoding="utf-8"))
    assert about["settings"]["data.options"] == "size=01" and about["gold"].endswith(
        "examples.parquet"
    )


@needs_data
def test_a_real_tokenizer_s_letters_are_told_apart_in_mmlu_s_questions(tmp_path: Path) -> None:
    """This tokenizer spells "B" in one token and "A" in two. A story teller guesses: chance within
    four standard errors.
    """
    assert {len(ids) for ids in spelt_letters(load_model(STORIES)[1], 4) or []} == {1, 2}
    found = by_place(
        asked("mmlu", "letter_choice,letter_answered,letter_written", tmp_path, limit=100)
    )
    assert abs(found["mmlu", "letter_choice"] - 0.25) < 4 * (0.25 * 0.75 / 100) ** 0.5
    assert found["mmlu", "letter_written"] <= found["mmlu", "letter_answered"]


@needs_data
def test_what_cannot_be_asked_is_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*words: str) -> str:
        assert main(["evaluate", STORIES, "--output", str(tmp_path), *words]) == 2
        return capsys.readouterr().err

    assert "evaluate needs --benchmark or --harness" in told()
    assert "unknown data.name 'tofuu'; did you mean 'tofu'?" in told(
        "--benchmark", "tofuu", "--data", "x"
    )
    assert (
        "--set takes settings of data, measure, judge and metrics here, got 'train.length'"
        in told("--benchmark", "domain", "--set", "train.length=3")
    )
    assert "need --base" in told("--benchmark", "domain", "--metrics", "base_kl")
    assert "unknown metric 'probabillity'" in told(
        "--benchmark", "domain", "--metrics", "probabillity"
    )
    assert "--gold must be a model or the examples.parquet" in told(
        "--benchmark", "domain", "--limit", "2", "--gold", str(tmp_path / "no.parquet")
    )


ROW = {"trial_id": "t", "stage": "base", "attack": "none", "split": "forget", "metric": "m"}


def written_evaluation(folder: Path) -> Path:
    evals = [ROW | {"step": 0, "value": 0.5, "n": 1}]
    rows = [ROW | {"doc_id": "a", "value": 0.5}]
    write_evaluation(folder, Evaluation(examples=rows, evals=evals, about={"model": "m"}))
    return folder


@pytest.mark.parametrize("name", ["examples.parquet", "evals.parquet", "evaluation.json"])
def test_a_damaged_evaluation_is_found_by_check_and_written_again(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written_evaluation(tmp_path / "rows")
    assert main(["check", str(folder)]) == 0 and "all as written" in capsys.readouterr().out
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), content[:-3], None):
        (folder / name).unlink()
        if damaged is not None:
            (folder / name).write_bytes(damaged)
        assert main(["check", str(folder)]) == 1
        said = capsys.readouterr()
        assert f"{name} is " in said.out and "writes it again" in said.out and not said.err
        written_evaluation(folder)
        assert main(["check", str(folder)]) == 0


def test_gold_examples_that_are_not_what_was_written_are_one_line(tmp_path: Path) -> None:
    """One bit; then a file that no evaluation wrote."""
    file = written_evaluation(tmp_path / "rows") / "examples.parquet"
    assert read_examples(file)["value"].to_list() == [0.5]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(UserError, match="is damaged: it is not what was written"):
        read_examples(file)
    (tmp_path / "rows" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest.json is missing; the command `rayunlearn eval"):
        read_examples(file)


def test_an_evaluation_is_not_written_into_a_run(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path / "run")
    compact(run)
    with pytest.raises(UserError, match="must have a folder of its own, not a run's"):
        written_evaluation(run)


# ---- lm-evaluation-harness

TASK = """task: made_here
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: " "
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@needs_data
def test_the_harness_s_numbers_become_rows_with_their_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four questions; the model's choices are found again by scoring each option here."""
    pytest.importorskip(
        "lm_eval", reason="lm-evaluation-harness (the extra `harness`) is not installed"
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    endings = ["a little girl named Lily", "xylophone quantum tax", "the", "He was very sad"]
    questions = [
        {
            "question": "Once upon a time, there was",
            "choices": endings[at:] + endings[:at],
            "answer": 0,
        }
        for at in range(4)
    ]
    (tmp_path / "questions.jsonl").write_text(
        "".join(json.dumps(q) + "\n" for q in questions), encoding="utf-8"
    )
    (tmp_path / "made_here.yaml").write_text(
        TASK.format(file=tmp_path / "questions.jsonl"), encoding="utf-8"
    )
    rows = {row["metric"]: row for row in run_harness(STORIES, ["made_here"], include=tmp_path)}
    model, tokenizer = load_model(STORIES)
    likeliest = max(
        endings, key=lambda text: -nll(model, tokenizer, questions[0]["question"], text)
    )
    right = [q["choices"][q["answer"]] == likeliest for q in questions]
    assert rows["harness.acc"]["value"] == sum(right) / 4 == 0.25
    assert rows["harness.acc"]["n"] == 4 and rows["harness.acc"]["split"] == "made_here"
    # of a mean of four zeros and ones
    assert rows["harness.acc"]["stderr"] == pytest.approx(math.sqrt(0.25 * 0.75 / 3))
    with pytest.raises(
        UserError,
        match="unknown task of lm-evaluation-harness 'made_heer'; did you mean 'made_here'",
    ):
        run_harness(STORIES, ["made_heer"], include=tmp_path)


def nll(model: Any, tokenizer: Any, question: str, text: str) -> float:
    import torch

    before, whole = (
        tokenizer(words, return_tensors="pt").input_ids
        for words in (question, f"{question} {text}")
    )
    with torch.no_grad():
        logits = model(whole).logits[0, :-1].log_softmax(-1)
    return -float(
        logits[range(before.shape[1] - 1, whole.shape[1] - 1), whole[0, before.shape[1] :]].sum()
    )


def test_a_filter_s_name_stays_with_its_metric_and_what_is_no_number_is_left_out() -> None:
    numbers = {
        "alias": "gsm8k",
        "exact_match,strict-match": 0.5,
        "exact_match_stderr,strict-match": "N/A",
        "acc,none": 1,
        "sample_len": 3,
    }
    rows = harness_rows(
        {"results": {"gsm8k": numbers}, "n-samples": {"gsm8k": {"original": 9, "effective": 4}}}
    )
    assert [(row["metric"], row["value"], row["n"], row["stderr"]) for row in rows] == [
        ("harness.exact_match@strict-match", 0.5, 4, None),
        ("harness.acc", 1.0, 4, None),
    ]
