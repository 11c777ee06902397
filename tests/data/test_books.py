"""Books become passages and questions; what is wrong with a book is one line."""

import json
from pathlib import Path

import pytest

from rayunlearn.cli.arguments import DONE, MISTAKE
from rayunlearn.cli.main import main
from rayunlearn.config import Data
from rayunlearn.data.books import BookSplit, cut_books
from rayunlearn.data.load import load_corpus
from rayunlearn.errors import UserError

GULLS = " ".join(f"gull{i}" for i in range(30))
TIDES = " ".join(f"tide{i}\n" for i in range(30))
CUT = BookSplit(forget="Gulls", retain=("Tides",), n_forget=7, n_retain=3, n_words=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Gulls.txt").write_text(GULLS)
    (tmp_path / "in" / "Tides.txt").write_text(TIDES)
    return tmp_path / "in"


def corpus_at(path: Path) -> Data:
    return Data(
        name="files",
        path=str(path),
        template="{prompt}",
        probe_forget="probe_forget",
        probe_retain="probe_retain",
    )


def test_thirty_words_give_seven_passages_of_four_and_each_asks_its_second_half(
    folder: Path, tmp_path: Path
) -> None:
    """30 = 7 x 4 + 2: all seven are drawn, in the order of the book, and the last two words are in
    none.
    """
    assert cut_books(folder, CUT, tmp_path / "out") == {
        "forget": 7,
        "retain": 3,
        "probe_forget": 7,
        "probe_retain": 3,
    }
    corpus = load_corpus(corpus_at(tmp_path / "out"))
    assert [d.answer for d in corpus.forget][:2] == [
        "gull0 gull1 gull2 gull3",
        "gull4 gull5 gull6 gull7",
    ]
    assert [(p.prompt, p.answer) for p in corpus.probes["forget"]][1] == (
        "gull4 gull5",
        "gull6 gull7",
    )
    for passage, probe in zip(corpus.retain, corpus.probes["retain"], strict=True):
        assert f"{probe.prompt} {probe.answer}" == passage.answer and "\n" not in passage.answer
    assert not corpus.rejected and {d.topic for d in corpus.forget} == {"Gulls"}


def test_near_passages_are_of_the_forgotten_book_and_untouched_ones_of_another(
    folder: Path, tmp_path: Path
) -> None:
    """Seven passages of the book: five to forget, the other two asked alone."""
    (folder / "Winds.txt").write_text(" ".join(f"wind{i}" for i in range(12)))
    split = BookSplit(
        forget="Gulls",
        retain=("Tides",),
        untouched=("Winds",),
        n_forget=5,
        n_near=2,
        n_retain=3,
        n_words=4,
    )
    rows = cut_books(folder, split, tmp_path / "out")
    assert rows["forget"] == 5 and rows["near"] == 2 and rows["untouched"] == 3

    def texts(name: str) -> set[str]:
        lines = (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()
        parts = (json.loads(line) for line in lines)
        return {f"{row.get('prompt', '')} {row['answer']}".strip() for row in parts}

    assert not texts("near") & texts("forget") and len(texts("near") | texts("forget")) == 7
    assert all(text.startswith("wind") for text in texts("untouched"))


def test_the_same_cut_gives_the_same_files_and_another_seed_other_passages(
    folder: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        cut_books(
            folder,
            BookSplit(
                forget="Gulls", retain=("Tides",), n_forget=3, n_retain=3, n_words=4, seed=seed
            ),
            tmp_path / name,
        )
    a, b, c = ((tmp_path / name / "forget.jsonl").read_text() for name in "abc")
    assert a == b != c
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert (
        manifest["rows"]["forget"] == 3
        and manifest["settings"]["seed"] == 0
        and len(manifest["sha256"]["Gulls"]) == 64
    )


def test_a_file_with_titles_does_as_well_as_a_folder(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "books.jsonl"
    file.write_text(
        "\n".join(
            json.dumps({"title": t, "text": x, "year": 1})
            for t, x in (("Gulls", GULLS), ("Tides", TIDES), ("Sand", "x"))
        )
    )
    cut_books(file, CUT, tmp_path / "a")
    cut_books(folder, CUT, tmp_path / "b")
    assert (tmp_path / "a" / "forget.jsonl").read_bytes() == (
        tmp_path / "b" / "forget.jsonl"
    ).read_bytes()


def test_a_title_that_stands_for_two_books_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "books.jsonl"
    file.write_text(
        "\n".join(
            json.dumps({"title": t, "text": x})
            for t, x in (("Gulls", GULLS), ("Gulls", TIDES), ("Tides", TIDES))
        )
    )
    with pytest.raises(UserError, match="'Gulls' stands for, got 2"):
        cut_books(file, CUT, tmp_path / "a")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--forget", "Guls", "--retain", "Tides"], "did you mean 'Gulls'?"),
        (["--forget", "Gulls", "--retain", "Gulls"], "a book must be named once"),
        (
            ["--forget", "Gulls", "--retain", "Tides", "--words", "5"],
            "--words must be even and >= 4, got 5",
        ),
        (
            ["--forget", "Gulls", "--retain", "Tides", "--words", "4", "--passages", "8"],
            "8 different passages of 4 words, 'Gulls' has, got 7",
        ),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["books", str(folder), *words, "--output", str(tmp_path / "out")]) == MISTAKE
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_command_says_what_was_cut_and_how_to_use_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--forget",
        "Gulls",
        "--retain",
        "Tides",
        "--words",
        "4",
        "--passages",
        "7",
        "--retain-passages",
        "2",
    ]
    assert main(["books", str(folder), *words, "--output", str(tmp_path / "out")]) == DONE
    out = capsys.readouterr().out
    assert (
        "7 forget, 2 retain, 7 probe_forget, 2 probe_retain" in out
        and "data.probe_forget=probe_forget" in out
    )
