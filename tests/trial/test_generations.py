"""A trial's texts: at every stage, opted out of, kept from evaluations of a private corpus, and
judged by a chat model from a directory.
"""

from pathlib import Path

import polars as pl
import pytest
import torch

from rayunlearn.config import Trial, Value, with_values
from rayunlearn.interop.evaluate import EvaluationRequest, evaluate, write_evaluation
from rayunlearn.metrics.judge import VERDICTS
from rayunlearn.models.load import save_model
from rayunlearn.models.scratch import build_model, build_tokenizer
from rayunlearn.storage.artifact_cache import entries
from rayunlearn.storage.run import Run, open_run
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.workspace import Workspace, validate_trial

SHORT: dict[str, Value] = {
    "train.length": 1,
    "method.layer": 1,
    "measure.metrics": "rouge_l_recall",
    "measure.max_new_tokens": 2,
    "measure.limit_probes": "3",
    "data.max_tokens": 64,
}


def ran(workspace: Workspace, folder: Path, **changes: Value) -> Run:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    trial = validate_trial(with_values(Trial(), SHORT | named))
    status = run_trial(trial, workspace, folder, "test", "1")
    run = open_run(folder)
    assert status == "complete", run.trials.select("error_type", "error").collect().to_dicts()
    return run


def test_a_trial_keeps_what_it_wrote_at_every_stage(workspace: Workspace, tmp_path: Path) -> None:
    # a model that knows nothing extracts nothing; of probability it retains something
    mixing: dict[str, Value] = {"calibrate__tau": 0.5, "calibrate__retention": "probability"}
    run = ran(workspace, tmp_path / "run", measure__attack="few_shot_retain", **mixing)
    texts = run.generations.collect()
    stages = {"unlearned", "calibrated", "calibrated_beside", "attacked"}
    assert {*texts["stage"]} == stages and {*texts["input"]} == {"generated"}
    # every text is of a value of `examples`
    keys = ["trial_id", "stage", "attack", "doc_id", "split"]
    values = run.examples.filter(pl.col("metric") == "rouge_l_recall").collect()
    assert texts.height == values.height
    assert texts.join(values, on=keys, how="anti").is_empty()
    attacked = texts.filter(pl.col("attack") == "few_shot_retain")
    plain = texts.filter(pl.col("stage") == "unlearned").select("doc_id", "prompt")
    longer = attacked.join(plain, on="doc_id", suffix="_plain")
    assert (
        longer.height
        and (longer["prompt"].str.len_chars() > longer["prompt_plain"].str.len_chars()).all()
    )
    base = ran(workspace, tmp_path / "base", stage="base").generations.collect()
    again = ran(workspace, tmp_path / "again", stage="base").generations.collect()
    assert base.equals(again) and base.height == plain.height
    forgotten = {d.doc_id: d for d in workspace.corpus.probes["forget"]}
    for row in base.filter(pl.col("split") == "forget").iter_rows(named=True):
        document = forgotten[row["doc_id"]]
        assert row["prompt"] == f"Question: {document.prompt}\nAnswer:"
        assert row["reference"] == document.answer


def test_fewer_documents_or_none_are_kept_and_no_number_changes(
    workspace: Workspace, tmp_path: Path
) -> None:
    all_kept, one, none = (
        ran(workspace, tmp_path / str(n), measure__keep_texts=n) for n in (1000, 1, 0)
    )
    per_split = one.generations.group_by("split").len().collect()
    assert set(per_split["len"]) == {1} and per_split.height == 3
    assert none.generations.collect().is_empty() and not all_kept.generations.collect().is_empty()
    values = [
        run.examples.sort("split", "doc_id").collect()["value"] for run in (all_kept, one, none)
    ]
    assert values[0].equals(values[1]) and values[0].equals(values[2])


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with a tiny chat model whose vocabulary is the judge's prompt."""
    folder = tmp_path_factory.mktemp("judge") / "model"
    words = build_tokenizer(["A B C D :A :B :C :D .", *VERDICTS.values()])
    words.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}:"
    with torch.random.fork_rng():
        save_model(build_model("tiny", len(words), 3), words, folder)
    return str(folder)


def test_a_chat_model_in_a_directory_judges_a_trial_once(
    workspace: Workspace, tmp_path: Path, judge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Value] = {
        "measure__metrics": "rouge_l_recall,judged_same_fact,judged_refused,judged_wrong",
        "judge__answers": judge,
    }
    run = ran(workspace, tmp_path / "a", **asked)
    verdicts = run.generations.collect()["verdict"]
    assert verdicts.null_count() == 0 and {*verdicts} <= {*VERDICTS}
    values = run.examples.filter(pl.col("metric") == "judged_wrong").collect()
    texts = run.generations.collect()
    found = values.join(texts, on=["doc_id", "split"])
    assert ((found["value"] == 1) == (found["verdict"] == "wrong")).all()
    assert len(entries(workspace.cache / "verdicts")) == 1

    def never(*_: object) -> None:
        raise AssertionError("these answers were judged before")

    monkeypatch.setattr("rayunlearn.trial.evaluate.judge_with", never)
    again = ran(workspace, tmp_path / "b", **asked)
    assert again.generations.collect()["verdict"].equals(verdicts)


def test_an_evaluation_has_the_texts_unless_the_corpus_is_private(
    untaught_models: Path, tmp_path: Path
) -> None:
    def wrote(**more: Value) -> list[str]:
        request = EvaluationRequest(
            model=str(untaught_models / "base"),
            benchmark="domain",
            metrics="rouge_l_recall",
            limit=2,
            assignments={"measure.max_new_tokens": 2, "data.max_tokens": 64}
            | {name.replace("__", "."): value for name, value in more.items()},
        )
        write_evaluation(tmp_path / "out", evaluate(request, tmp_path / "cache"))
        return sorted(file.name for file in (tmp_path / "out").glob("*.parquet"))

    assert wrote() == ["evals.parquet", "examples.parquet", "generations.parquet"]
    texts = pl.read_parquet(tmp_path / "out" / "generations.parquet")
    assert set(texts["split"]) == {"forget", "retain", "untouched"} and texts.height == 6
    assert wrote(data__private=True) == ["evals.parquet", "examples.parquet"]
