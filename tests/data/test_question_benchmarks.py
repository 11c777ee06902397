"""LUME, KnowUnDo and BLUR, from folders made here in the layout of the public ones."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rayunlearn.config import Data
from rayunlearn.data.benchmarks import load_benchmark
from rayunlearn.data.load import load_corpus
from rayunlearn.errors import UserError

Row = dict[str, Any]


def lines(file: Path, rows: Sequence[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def whole(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


def lume_rows(side: str) -> list[Row]:
    """A story and a biography: each completed once and asked about."""

    def row(id_: str, input_: str, output: str, task: str) -> Row:
        return {"id": id_, "input": input_, "output": output, "task": task, "split": side}

    return [
        row('"08b7-9b41"sc1', f"The {side} ship left", "the harbour.", "Task1"),
        row('"08b7-9b41"qa0', f"Where was the {side} ship?", "In the harbour.", "Task1"),
        row("a988-4d9bqa1", f"What is the number of {side} Ada?", "900", "Task2"),
        row("a988-4d9bqa2", f"Where does {side} Ada live?", "Bergen", "Task2"),
        row("no kind", f"What is this {side}?", "nothing", "Task3"),
        row("23408sc1", f"Bo of {side} was born", "", "Task3"),
    ]


def test_lume_s_questions_and_completions_are_splits_and_documents(tmp_path: Path) -> None:
    for side in ("forget", "retain"):
        lines(tmp_path / "data" / f"{side}.jsonl", lume_rows(side))
    corpus = load_benchmark("lume", tmp_path)
    assert [d.prompt for d in corpus.probes["forget"]] == [
        "Where was the forget ship?",
        "What is the number of forget Ada?",
        "Where does forget Ada live?",
    ]
    (completion,) = corpus.probes["completion"]
    assert (completion.prompt, completion.answer) == ("The forget ship left", "the harbour.")
    # trained on as it stands, without a question
    assert ("", "The forget ship left the harbour.") in [
        (d.prompt, d.answer) for d in corpus.forget
    ]
    assert len(corpus.forget) == len(corpus.retain) == 4
    assert corpus.templates == {"completion": "{prompt}", "retain_completion": "{prompt}"}
    # what is asked of one document is one group, its completion too; sides are apart
    groups = {d.group for d in (*corpus.probes["forget"], completion)}
    assert groups == {"forget 08b7-9b41", "forget a988-4d9b"}
    assert {d.topic for d in corpus.forget} == {"Task1", "Task2"}
    assert {r.reason for r in corpus.rejected if r.source == "data/forget"} == {
        "its id does not end in sc or qa and a number",
        "output is empty",
    }
    assert {(f.table, f.rows) for f in corpus.files} == {("data/forget", 6), ("data/retain", 6)}


def test_lume_s_tasks_and_semeval_s_folds_are_chosen(tmp_path: Path) -> None:
    for fold in ("train", "validation"):
        for side in ("forget", "retain"):
            file = tmp_path / "hub" / "data" / f"{side}_{fold}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = [row | {"output": f"{fold} {row['output']}"} for row in lume_rows(side)]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
            lines(tmp_path / "folders" / fold / f"{side}.jsonl", rows)
    for place in ("hub", "folders"):
        data = Data(name="lume", path=str(tmp_path / place), options="task=Task2,fold=validation")
        corpus = load_corpus(data)
        assert [d.answer for d in corpus.probes["forget"]] == [
            "validation 900",
            "validation Bergen",
        ]
        assert "completion" not in corpus.probes and len(corpus.forget) == 2
    with pytest.raises(
        UserError, match="lume.task must be all, Task1, Task2 or Task3, got 'Task4'"
    ):
        load_benchmark("lume", tmp_path / "hub", options={"task": "Task4"})
    with pytest.raises(UserError, match=r"lume\.fold must be train or validation, got 'test'"):
        load_benchmark("lume", tmp_path / "hub", options={"fold": "test"})


def test_lume_s_missing_files_and_columns_are_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    rule = "must hold one of data/forget, forget, data/forget_train, train/forget"
    with pytest.raises(UserError, match=rule):
        load_benchmark("lume", tmp_path / "empty")
    for side in ("forget", "retain"):
        rows = [{k: v for k, v in row.items() if k != "output"} for row in lume_rows(side)]
        lines(tmp_path / "short" / f"{side}.jsonl", rows)
    with pytest.raises(UserError, match=r"forget must have the columns id, input, output, task, "):
        load_benchmark("lume", tmp_path / "short")


def knowundo_file(side: str) -> Row:
    def pair(fold: str, number: int) -> Row:
        return {"text": f"What is {side} {fold} {number}?", "labels": f"It is {side} {number}."}

    return {fold: [pair(fold, number) for number in range(2)] for fold in ("train", "val")}


def test_knowundo_trains_on_train_and_asks_val(tmp_path: Path) -> None:
    for domain, listed in (("copyright", False), ("privacy", True)):
        for side in ("unlearn", "retention"):
            content = knowundo_file(f"{domain} {side}")
            # the Hub's viewer has one row; a file may be it, or a list of it
            whole(tmp_path / domain / f"{side}.json", [content] if listed else content)
    for domain in ("copyright", "privacy"):
        corpus = load_corpus(Data(name="knowundo", path=str(tmp_path), options=f"domain={domain}"))
        assert [d.prompt for d in corpus.forget] == [
            f"What is {domain} unlearn train {number}?" for number in range(2)
        ]
        assert corpus.forget[1].answer == f"It is {domain} unlearn 1."
        assert [d.prompt for d in corpus.probes["retain"]] == [
            f"What is {domain} retention val {number}?" for number in range(2)
        ]
        assert {(f.table, f.rows) for f in corpus.files} == {
            (f"{domain}/unlearn", 4),
            (f"{domain}/retention", 4),
        }


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"train": []}, r"copyright/unlearn\.json must have the lists train and val; missing.*val"),
        ([], "must hold one object, got 'list'"),
        ({"train": [{"text": "Who?"}], "val": []}, "must have the columns text, labels, it has"),
        ({"train": ["Who?"], "val": []}, "must have the columns text, labels, it has"),
        (None, r"must hold copyright/unlearn\.json"),
    ],
)
def test_knowundo_s_layout_is_held_against_the_files(
    tmp_path: Path, content: object, told: str
) -> None:
    tmp_path.joinpath("copyright").mkdir()
    if content is not None:
        whole(tmp_path / "copyright" / "unlearn.json", content)
    with pytest.raises(UserError, match=told):
        load_benchmark("knowundo", tmp_path)
    with pytest.raises(UserError, match=r"knowundo\.domain must be copyright or privacy"):
        load_benchmark("knowundo", tmp_path, options={"domain": "books"})


def blur_folder(folder: Path) -> None:
    whole(folder / "rwku_forget.json", [{"text": "Who wrote It?"}, {"text": "Who wrote If?"}])
    whole(folder / "rwku_retain.json", [{"text": "Who wrote Emma?"}])
    paired = "Who wrote It? And who wrote Emma?"
    whole(folder / "rwku_paired_forget_retain.json", [{"text": paired}])
    lines(
        folder / "answers.jsonl",
        [
            {"text": "Who wrote It?", "answer": "Stephen King"},
            {"text": "Who wrote Emma?", "answer": "Jane Austen"},
            {"text": paired, "answer": "Stephen King; Jane Austen"},
        ],
    )


def test_blur_s_questions_get_their_answers_from_a_file(tmp_path: Path) -> None:
    blur_folder(tmp_path)
    corpus = load_corpus(
        Data(name="blur", path=str(tmp_path), options="task=rwku,answers=answers.jsonl")
    )
    assert {split: [d.answer for d in part] for split, part in corpus.probes.items()} == {
        "forget": ["Stephen King"],
        "retain": ["Jane Austen"],
        "combined": ["Stephen King; Jane Austen"],
    }
    assert corpus.forget == corpus.probes["forget"] and corpus.retain == corpus.probes["retain"]
    (rejected,) = corpus.rejected
    assert (rejected.source, rejected.row, rejected.reason) == (
        "rwku_forget",
        1,
        "it has no answer",
    )


def test_blur_without_answers_or_files_says_what_it_needs(tmp_path: Path) -> None:
    blur_folder(tmp_path)
    with pytest.raises(UserError, match=r"blur\.answers must name a file of .* text and answer"):
        load_benchmark("blur", tmp_path)
    with pytest.raises(UserError, match=r"blur\.answers must be a file of the folder"):
        load_benchmark("blur", tmp_path, options={"answers": "nowhere.json"})
    with pytest.raises(UserError, match=r"must hold files of whp: whp_forget\.json, whp_retain"):
        load_benchmark("blur", tmp_path, options={"task": "whp"})
    with pytest.raises(UserError, match="blur.task must be one of rwku, whp, tofu, wmdp"):
        load_benchmark("blur", tmp_path, options={"task": "muse"})
    whole(tmp_path / "tofu_paired_forget_retain.json", [{"question": "Who?"}])
    with pytest.raises(UserError, match="must have the columns text, it has question"):
        load_benchmark("blur", tmp_path, options={"task": "tofu"})
