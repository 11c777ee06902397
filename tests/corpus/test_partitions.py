"""A corpus in pieces is the corpus: the same rows in the same order, whatever its format and
however small the pieces.
"""

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rayunlearn.corpus.partitions import (
    columns_of,
    documents_of,
    partitions_of,
    plain_texts,
    rows_of,
    texts_at,
)
from rayunlearn.data.readers import read_file
from rayunlearn.errors import UserError

TEXTS = [f"Row {at}: naïve café, {'moss ' * (at % 7)}end" for at in range(60)] + [
    '"quoted"\nover two lines, é',
    "last",
]


def written(folder: Path, ending: str) -> Path:
    """The texts as one file of that format, with a second column and one row
    that cannot be used.
    """
    file = folder / f"corpus{ending}"
    rows = [{"text": text, "n": at} for at, text in enumerate(TEXTS)]
    if ending in (".jsonl", ".json"):
        file.write_text("\n".join([*map(json.dumps, rows), "", "{broken"]), encoding="utf-8")
    elif ending == ".csv":
        with file.open("w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerows(
                [["text", "n"], *([r["text"], r["n"]] for r in rows), ["too", "many", "cells"]]
            )
    else:
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([*rows, {"text": None, "n": 0}]), file, row_group_size=25
        )
    return file


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("piece_bytes", [1, 300, 10**9])
def test_pieces_of_a_file_hold_its_rows_in_order(
    ending: str, piece_bytes: int, tmp_path: Path
) -> None:
    file = written(tmp_path, ending)
    pieces = partitions_of(str(file), piece_bytes=piece_bytes)
    assert [row for piece in pieces for row in rows_of(piece)] == list(read_file(file))
    assert len(pieces) == 1 if piece_bytes == 10**9 else len(pieces) > 3


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in "ba":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    pieces = partitions_of(str(tmp_path))
    assert [
        d.answer for piece in pieces for d in documents_of(piece, columns_of(pieces, ""))[0]
    ] == ["a", "b"]
    (tmp_path / "c.csv").write_text("text\nc\n")
    with pytest.raises(UserError, match=r"files of one kind.*\['\.csv', '\.jsonl'\]"):
        partitions_of(str(tmp_path))


@pytest.mark.parametrize("piece_bytes", [1, 10**9])
@pytest.mark.parametrize(
    ("unit", "found"),
    [
        ("", [("one", 0), ("two", 1), ("three", 4)]),
        ("line", [("one", 0), ("two", 1), ("three", 4)]),
        ("paragraph", [("one\ntwo", 0), ("three", 4)]),
        ("file", [("one\ntwo\n\n \nthree", 0)]),
    ],
)
def test_a_text_file_has_a_document_per_line_paragraph_or_file(
    unit: str, found: list[tuple[str, int]], piece_bytes: int, tmp_path: Path
) -> None:
    file = tmp_path / "book.txt"
    file.write_bytes(b"\xef\xbb\xbfone\ntwo\n\n \nthree")
    pieces = partitions_of(str(file), unit=unit, piece_bytes=piece_bytes)
    columns = columns_of(pieces, "")
    read = [documents_of(piece, columns) for piece in pieces]
    assert [
        (d.answer, row)
        for documents, rows, _ in read
        for d, row in zip(documents, rows, strict=True)
    ] == found


def test_a_folder_of_texts_has_a_document_per_file_and_bytes_that_are_no_text_are_set_aside(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    pieces = partitions_of(str(tmp_path))
    read = [documents_of(piece, columns_of(pieces, "")) for piece in pieces]
    assert [d.answer for documents, _, _ in read for d in documents] == ["one\n\ntwo"]
    assert [(r.source, r.reason) for _, _, aside in read for r in aside] == [
        ("b.txt", "not valid UTF-8 text")
    ]


def test_texts_alone_are_the_texts_of_the_documents(tmp_path: Path) -> None:
    """The faster way, with a copy, an empty text and a missing one; a prompt or a list takes the
    other way.
    """
    file = tmp_path / "plain.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"text": [*TEXTS, TEXTS[1], " ", None], "n": range(len(TEXTS) + 3)}),
        file,
        row_group_size=10,
    )
    pieces = partitions_of(str(file), piece_bytes=500)
    assert len(pieces) > 2
    for piece in pieces:
        documents, rows, aside = documents_of(piece, {"answer": "text"})
        found = plain_texts(piece, {"answer": "text"})
        assert found == (
            [d.doc_id for d in documents],
            list(rows),
            [d.answer for d in documents],
            list(aside),
        )
        assert texts_at(piece, {"answer": "text"}, rows) == [d.answer for d in documents]
    assert (
        plain_texts(pieces[0], {"answer": "text", "prompt": "n"}) is None
        and plain_texts(pieces[0], {"answer": "n"}) is None
    )


def test_one_large_row_group_is_cut_inside(tmp_path: Path) -> None:
    """A hundred thousand rows in one row group must not be one piece: it would be one worker's."""
    file = tmp_path / "one.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"text": [f"text number {at}" for at in range(1000)]}), file
    )
    pieces = partitions_of(str(file), piece_bytes=2000)
    assert len(pieces) >= 5 and [p.start for p in pieces[1:]] == [p.stop for p in pieces[:-1]]
    assert [row.row for piece in pieces for row in rows_of(piece)] == list(range(1000))


@pytest.mark.parametrize(
    ("source", "unit", "message"),
    [
        ("nowhere", "", "a corpus must be a data file, a folder of them or one of"),
        ("domain", "word", "unknown --text-unit 'word'"),
    ],
)
def test_a_mistake_in_the_source_says_the_rule(source: str, unit: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        partitions_of(source, unit=unit)
