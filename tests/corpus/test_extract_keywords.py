"""`rayunlearn keywords`: a file in, a table out, and one line for a mistake."""

import json
from pathlib import Path

import polars as pl
import pytest

from rayunlearn.cli.arguments import DONE, MISTAKE
from rayunlearn.cli.main import main
from rayunlearn.corpus.extract_keywords import extractor_arguments
from rayunlearn.errors import UserError
from rayunlearn.models.load import save_model
from rayunlearn.models.scratch import build_model, build_tokenizer
from rayunlearn.schema import column_names

ROWS = [
    {"text": "Dark matter halos bend light."},
    {"text": "Light bends."},
    {"text": ""},
    {"text": "Dark matter is unseen."},
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    return file


def test_keywords_of_a_file_are_written_with_their_places_and_bad_rows_beside_them(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "found.parquet"
    assert (
        main(
            [
                "keywords",
                str(corpus),
                "--extractor",
                "tfidf",
                "--set",
                "tfidf.earliness=0",
                "--output",
                str(output),
            ]
        )
        == DONE
    )
    table = pl.read_parquet(output)
    assert tuple(table.columns) == column_names("keywords") and table["doc_id"].n_unique() == 3
    first = table.filter(pl.col("keyword") == "Dark matter halos bend light")
    assert first.select("start", "end").rows() == [(0, 28)]
    assert pl.read_parquet(tmp_path / "out" / "found.quarantine.parquet").height == 1
    assert "keywords of 3 documents, 1 rejected" in capsys.readouterr().out


def test_a_test_bed_is_compared_with_its_own_retain_side(tmp_path: Path) -> None:
    assert (
        main(
            ["keywords", "domain", "--extractor", "linked", "--output", str(tmp_path / "k.parquet")]
        )
        == DONE
    )
    assert pl.read_parquet(tmp_path / "k.parquet")["keyword"].n_unique() > 30


def test_a_model_of_ones_own_gives_the_states(corpus: Path, tmp_path: Path) -> None:
    tokenizer = build_tokenizer([row["text"] for row in ROWS])
    save_model(build_model("tiny", len(tokenizer), 0), tokenizer, tmp_path / "model")
    words = [
        "keywords",
        str(corpus),
        "--extractor",
        "embedding",
        "--base",
        str(tmp_path / "model"),
        "--output",
        str(tmp_path / "k.parquet"),
    ]
    assert main(words) == DONE and pl.read_parquet(tmp_path / "k.parquet").height >= 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--extractor", "tfdif"], "unknown extractor 'tfdif'; did you mean 'tfidf'?"),
        (["--extractor", "tfidf", "--set", "tfidf.earlyness=1"], "did you mean 'tfidf.earliness'?"),
        (
            ["--extractor", "tfidf", "--set", "tfidf.earliness=-1"],
            "tfidf.earliness must be >= 0, got -1",
        ),
        (["--extractor", "log_odds"], "retain corpus, which must have a document"),
        (["--extractor", "loss_gap"], "needs a base model"),
        (["--extractor", "judge"], "needs a chat model"),
        (["--extractor", "tfidf", "--output", "k.csv"], "--output must end in .parquet"),
        (["--extractor", "tfidf", "--columns", "answer=body"], "unknown column|must have a column"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(
    words: list[str], message: str, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keywords", str(corpus), *words]) == MISTAKE
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and any(part in line for part in message.split("|"))


def test_a_corpus_that_is_not_there_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keywords", "nowhere.jsonl", "--extractor", "tfidf"]) == MISTAKE
    assert (
        "a corpus must be a data file, a folder of them or one of domain, people, got"
        " 'nowhere.jsonl'" in capsys.readouterr().err
    )


def test_options_are_held_to_their_types() -> None:
    assert extractor_arguments("tfidf", {"tfidf.earliness": 2}) == {"earliness": 2.0}
    with pytest.raises(UserError, match=r"textrank\.window must be int"):
        extractor_arguments("textrank", {"textrank.window": "wide"})
