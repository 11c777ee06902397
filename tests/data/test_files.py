"""Reading documents of your own: formats agree with each other, and every kind of bad row is
rejected with its reason.
"""

import csv
import gzip
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayunlearn.config import Data
from rayunlearn.data import data_streams
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.data.files import find_split, load_files
from rayunlearn.data.hub import read_dataset
from rayunlearn.data.readers import CSV_FIELD_CHARACTERS, read_csv, read_file, read_json
from rayunlearn.data.rows import SourceRow, as_list, parse_columns
from rayunlearn.errors import UserError

FORGET: list[dict[str, object]] = [
    {
        "question": f"Who wrote book {i}?",
        "answer": f"Author {i}, of course.",
        "perturbed_answer": [f"Nobody {i}", "Ünal, «x»"],
    }
    for i in range(3)
]
RETAIN: list[dict[str, object]] = [
    {"question": f"Where is town {i}?", "answer": f"In land {i}\nby the sea."} for i in range(4)
]


def write_lines(file: Path, rows: list[dict[str, object]]) -> None:
    """One JSON object per line."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(file: Path, rows: list[dict[str, object]]) -> None:
    """A header and one record per row; lists as JSON."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(
            {
                key: json.dumps(value) if isinstance(value, list) else value
                for key, value in row.items()
            }
            for row in rows
        )


def settings(path: Path, **values: object) -> Data:
    """Data of kind `files` at `path`."""
    return Data(name="files", path=str(path), **values)  # type: ignore[arg-type]


def load_with(tmp_path: Path, lines: list[bytes], **values: object) -> Corpus:
    """A corpus whose forget file has the given raw lines."""
    (tmp_path / "forget.jsonl").write_bytes(b"\n".join(lines))
    write_lines(tmp_path / "retain.jsonl", RETAIN)
    return load_files(settings(tmp_path, **values))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", "array.json", ".csv", ".parquet"])
def test_every_format_gives_the_same_documents(tmp_path: Path, suffix: str) -> None:
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        file = tmp_path / f"{name}.{suffix.rpartition('.')[2]}"
        if suffix == "array.json":
            file.write_text("\n  " + json.dumps(rows, indent=1))
        elif suffix == ".csv":
            write_csv(file, rows)
        elif suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=2)
        else:
            write_lines(file, rows)
    corpus = load_files(settings(tmp_path))
    assert corpus.forget[2] == Document(
        prompt="Who wrote book 2?", answer="Author 2, of course.", wrong=("Nobody 2", "Ünal, «x»")
    )
    assert [d.answer for d in corpus.retain] == [
        "In land 0\nby the sea.",
        "In land 1\nby the sea.",
        "In land 2\nby the sea.",
        "In land 3\nby the sea.",
    ]
    assert corpus.probes == {"forget": corpus.forget, "retain": corpus.retain}
    assert corpus.rejected == ()
    assert corpus.extra_training == {}


def test_a_column_says_who_questions_are_about_and_else_the_facts_they_share(
    tmp_path: Path,
) -> None:
    """Questions 0 and 1 name a group; 2 and 3 share fact y, 3 and 4 fact z, so the three hang
    together; 5 has a fact of its own, 6 none. A text without a question is no question about its
    facts.
    """
    facts = {2: ["x", "y"], 3: ["y", "z"], 4: ["z"], 5: ["w"]}
    rows: list[dict[str, object]] = [
        {"question": f"Q {i}?", "answer": f"A {i}.", "facts": facts.get(i, [])} for i in range(7)
    ]
    for row in rows[:2]:
        row |= {"person": "Ada", "facts": ["z"]}
    write_lines(tmp_path / "forget.jsonl", rows)
    write_lines(tmp_path / "retain.jsonl", RETAIN)
    corpus = load_files(settings(tmp_path))
    groups = [corpus.groups.get(d.doc_id) for d in corpus.forget]
    assert groups[0] == groups[1] == "Ada" and groups[2] == groups[3] == groups[4] != groups[5]
    assert groups[5] is not None and groups[6] is None
    text = Document(answer="A text.", facts=("w",))
    assert text.doc_id not in replace(corpus, forget=(*corpus.forget, text)).groups


BAD_LINES: list[tuple[bytes, str]] = [
    (b'{"question": "q", "answer": ', "not JSON: Expecting value"),
    (b'["q", "a"]', "a row must be an object, this is list"),
    (b'{"question": "q"}', "answer is missing"),
    (b'{"question": "q", "answer": null}', "answer is missing"),
    (b'{"question": "q", "answer": " \\t "}', "answer is empty"),
    (b'{"question": "", "answer": "a"}', "question is empty"),
    (b'{"question": "q", "answer": 42}', "answer is int, not text"),
    (b'{"question": ["q"], "answer": "a"}', "question is list, not text"),
    (b'{"question": "q", "answer": "a\xff"}', "not valid UTF-8 text"),
    (b'{"question": "q", "answer": "\\ud800"}', "answer is not valid UTF-8 text"),
    (b"[" * 100_000, "not JSON: nested too deep or a number too long"),
    (b'{"question": "Good?", "answer": "Yes.", "topic": "again"}', "the same document as row 0"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[reason for _, reason in BAD_LINES])
def test_a_bad_line_is_set_aside_with_its_place_and_reason_and_the_rest_goes_on(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    corpus = load_with(
        tmp_path,
        [
            b'{"question": "Good?", "answer": "Yes."}',
            b"",
            line,
            b'{"question": "Last?", "answer": "Too."}',
        ],
    )
    assert [d.prompt for d in corpus.forget] == ["Good?", "Last?"]
    [rejected] = corpus.rejected
    assert (rejected.source, rejected.row, rejected.reason) == ("forget.jsonl", 2, reason)
    assert 0 < len(rejected.excerpt) <= 200
    assert rejected.excerpt.encode()[:5] in line or rejected.excerpt.startswith('{"question"')


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_no_bytes_at_all_can_stop_the_reader(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    tmp_path = tmp_path_factory.mktemp("bytes")
    corpus = load_with(tmp_path, [b'{"question": "Good?", "answer": "Yes."}', *lines])
    assert corpus.forget[0].prompt == "Good?"
    for item in corpus.rejected:
        item.excerpt.encode()
        assert item.reason


def test_a_byte_order_mark_and_a_first_line_in_a_crlf_file_are_read(tmp_path: Path) -> None:
    corpus = load_with(
        tmp_path,
        [
            b'\xef\xbb\xbf{"question": "Good?", "answer": "Yes."}\r',
            b'{"question": "Next?", "answer": "Yes."}\r',
        ],
    )
    assert [d.prompt for d in corpus.forget] == ["Good?", "Next?"]


def test_a_broken_array_is_one_rejected_row_and_the_error_says_why_nothing_is_left(
    tmp_path: Path,
) -> None:
    (tmp_path / "forget.json").write_text('[{"question": "q", "answer": "a"}')
    write_lines(tmp_path / "retain.jsonl", RETAIN)
    with pytest.raises(
        UserError,
        match=(
            r"data.forget must have at least one usable document, got none .* 1 rejected, the"
            r" commonest reason: not JSON: Expecting"
        ),
    ):
        load_files(settings(tmp_path))


def test_the_error_of_an_empty_corpus_counts_and_names_the_commonest_reason(tmp_path: Path) -> None:
    lines = [b'{"question": "q", "answer": ""}', b'{"question": "p", "answer": ""}', b"nonsense"]
    with pytest.raises(UserError, match=r"3 rejected, the commonest reason: answer is empty \(2\)"):
        load_with(tmp_path, lines)


def test_a_csv_keeps_what_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "forget.csv"
    file.write_bytes(
        b'question,answer\nq1,a1\nq2\nq3,a3,extra\n\nq4,"a, ""4"""\nq\xff5,a5\nq6,"never'
        b" closed\nq7,a7\n"
    )
    rows = list(read_csv(file))
    assert [row.reason for row in rows] == [
        "",
        "1 cells under a header of 2",
        "3 cells under a header of 2",
        "",
        "",
        "not CSV: unexpected end of data",
    ]
    assert rows[3].values == {"question": "q4", "answer": 'a, "4"'}
    write_lines(tmp_path / "retain.jsonl", RETAIN)
    corpus = load_files(settings(tmp_path))
    assert [d.prompt for d in corpus.forget] == ["q1", "q4"]
    assert [item.reason for item in corpus.rejected][2] == "question is not valid UTF-8 text"


def test_a_csv_field_may_be_as_long_as_a_book_and_the_module_s_limit_is_put_back(
    tmp_path: Path,
) -> None:
    file = tmp_path / "books.csv"
    write_csv(file, [{"text": "x" * 300_000}])
    before = csv.field_size_limit()
    [row] = read_csv(file)
    assert len(str(row.values["text"])) == 300_000
    assert csv.field_size_limit() == before < CSV_FIELD_CHARACTERS


def test_parquet_with_bytes_that_are_not_text_loses_only_that_row(tmp_path: Path) -> None:
    raw = pyarrow.array([b"good", b"\xff\xfe", b"also good"], pyarrow.binary()).view(
        pyarrow.string()
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": raw}), tmp_path / "forget.parquet")
    write_lines(tmp_path / "retain.jsonl", [{"text": "kept"}])
    corpus = load_files(settings(tmp_path))
    assert [d.answer for d in corpus.forget] == ["good", "also good"]
    assert [(item.row, item.reason) for item in corpus.rejected] == [(1, "not valid UTF-8 text")]


def test_a_file_that_is_not_parquet_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "forget.parquet").write_bytes(b"PAR1 but not really")
    write_lines(tmp_path / "retain.jsonl", RETAIN)
    with pytest.raises(UserError, match="could not be read as parquet"):
        load_files(settings(tmp_path))


def test_a_document_in_both_sets_stays_in_forget_and_keeps_its_place_in_the_record(
    tmp_path: Path,
) -> None:
    write_lines(tmp_path / "forget.jsonl", FORGET)
    write_lines(tmp_path / "retain.jsonl", [RETAIN[0], FORGET[1], RETAIN[1]])
    corpus = load_files(settings(tmp_path))
    assert len(corpus.forget) == 3
    assert [d.prompt for d in corpus.retain] == ["Where is town 0?", "Where is town 1?"]
    assert [(item.source, item.row, item.reason) for item in corpus.rejected] == [
        ("retain.jsonl", 1, "also in the forget set")
    ]


def test_a_retain_set_that_lies_wholly_in_the_forget_set_is_an_error(tmp_path: Path) -> None:
    write_lines(tmp_path / "forget.jsonl", FORGET)
    write_lines(tmp_path / "retain.jsonl", FORGET[:2])
    with pytest.raises(
        UserError,
        match=(
            r"data.retain must have .* 2 rejected, the commonest reason: also in the forget set"
            r" \(2\)"
        ),
    ):
        load_files(settings(tmp_path))


def test_the_retain_limit_keeps_the_first_and_takes_the_cut_documents_out_of_the_probes(
    tmp_path: Path,
) -> None:
    write_lines(tmp_path / "forget.jsonl", FORGET)
    write_lines(tmp_path / "retain.jsonl", RETAIN)
    write_lines(
        tmp_path / "asked.jsonl",
        [RETAIN[3], RETAIN[0], FORGET[0], {"question": "New?", "answer": "Never trained."}],
    )
    corpus = load_files(settings(tmp_path, limit_retain=2, probe_retain="asked"))
    assert [d.prompt for d in corpus.retain] == ["Where is town 0?", "Where is town 1?"]
    assert [d.prompt for d in corpus.probes["retain"]] == ["Where is town 0?", "New?"]
    assert [(item.source, item.row, item.reason) for item in corpus.rejected] == [
        ("asked.jsonl", 2, "a retain probe that is in the forget set")
    ]


def test_one_file_is_divided_by_its_split_column(tmp_path: Path) -> None:
    rows = (
        [row | {"split": "forget"} for row in FORGET]
        + [row | {"split": "retain"} for row in RETAIN]
        + [{"question": "q", "answer": "a", "split": "other"}]
    )
    write_lines(tmp_path / "all.jsonl", [*rows, {"question": "lost", "answer": "a"}])
    corpus = load_files(settings(tmp_path / "all.jsonl"))
    assert (len(corpus.forget), len(corpus.retain)) == (3, 4)
    assert [(item.row, item.reason) for item in corpus.rejected] == [(8, "split is no text")]


def test_one_file_without_a_split_column_says_what_it_lacks(tmp_path: Path) -> None:
    write_lines(tmp_path / "all.jsonl", FORGET)
    with pytest.raises(
        UserError,
        match="must have a column 'split' .* got the columns question, answer, perturbed_answer",
    ):
        load_files(settings(tmp_path / "all.jsonl"))


def test_columns_map_ours_to_theirs_and_an_empty_prompt_means_none(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "forget.jsonl",
        [{"body": "A text.", "question": "not a prompt here", "alt": "A paraphrase."}],
    )
    write_lines(tmp_path / "retain.jsonl", [{"body": "Another.", "question": "x"}])
    corpus = load_files(settings(tmp_path, columns="answer=body, prompt=, paraphrase=alt"))
    assert corpus.forget == (Document(answer="A text.", paraphrase="A paraphrase."),)
    assert corpus.retain == (Document(answer="Another."),)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("answr=answer", "unknown field in data.columns 'answr'; did you mean 'answer'?"),
        ("answer=anwser", "'anwser'; did you mean 'answer'?"),
        ("paraphrase=nowhere", "unknown column for paraphrase in data.columns: 'nowhere'"),
        ("prompt=perturbed_answer", "looked for in split 'retain'"),
        ("answer", "data.columns takes ours=theirs,ours=theirs, got 'answer'"),
        ("answer=a,answer=b", "must name a field once"),
    ],
)
def test_a_wrong_column_mapping_says_what_is_wrong_with_it(
    tmp_path: Path, columns: str, message: str
) -> None:
    write_lines(tmp_path / "forget.jsonl", FORGET)
    write_lines(tmp_path / "retain.jsonl", RETAIN)
    with pytest.raises(UserError) as error:
        load_files(settings(tmp_path, columns=columns))
    assert message in str(error.value)


def test_columns_that_no_common_name_fits_ask_for_a_mapping(tmp_path: Path) -> None:
    write_lines(tmp_path / "forget.jsonl", [{"frage": "q", "antwort": "a"}])
    write_lines(tmp_path / "retain.jsonl", RETAIN)
    with pytest.raises(
        UserError, match=r"give data.columns=answer=<column>, one of frage, antwort"
    ):
        load_files(settings(tmp_path))


def test_a_misspelt_split_names_the_nearest(tmp_path: Path) -> None:
    write_lines(tmp_path / "forget10.jsonl", FORGET)
    write_lines(tmp_path / "retain.jsonl", RETAIN)
    with pytest.raises(
        UserError, match=r"'forgte10'; did you mean 'forget10'\? \(known: forget10, retain\)"
    ):
        load_files(settings(tmp_path, forget="forgte10"))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "a/b", "a\\b", "x\0"])
def test_a_split_name_cannot_leave_the_directory(tmp_path: Path, name: str) -> None:
    write_lines(tmp_path.parent / "secret.jsonl", FORGET)
    with pytest.raises(UserError, match="a split name must be a file stem, not a path"):
        find_split(tmp_path, name)


def test_two_files_of_one_stem_are_ambiguous(tmp_path: Path) -> None:
    write_lines(tmp_path / "forget.jsonl", FORGET)
    write_csv(tmp_path / "forget.csv", RETAIN)
    with pytest.raises(UserError, match=r"a split must be one file in .*forget.csv.*forget.jsonl"):
        find_split(tmp_path, "forget")


@pytest.mark.parametrize(
    "path", ["./missing", "missing.jsonl", "/nowhere/at/all", "a name with spaces"]
)
def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub(path: str) -> None:
    with pytest.raises(UserError, match="no such file or directory"):
        load_files(Data(name="files", path=path))


def test_forget_and_retain_cannot_be_the_same_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be different splits"):
        load_files(settings(tmp_path, retain="forget"))


def test_a_document_keeps_its_identity_when_rows_move_and_when_probes_repeat_it(
    tmp_path: Path,
) -> None:
    write_lines(tmp_path / "forget.jsonl", FORGET)
    write_lines(tmp_path / "retain.jsonl", RETAIN)
    first = load_files(settings(tmp_path))
    write_lines(tmp_path / "forget.jsonl", FORGET[::-1])
    second = load_files(settings(tmp_path, probe_forget="forget"))
    assert [d.doc_id for d in first.forget] == [d.doc_id for d in second.forget][::-1]
    assert {d.doc_id for d in second.probes["forget"]} == {d.doc_id for d in first.forget}
    # the order of training documents is part of the corpus
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ()),
        ("", ()),
        ("one", ("one",)),
        ('["a", "b"]', ("a", "b")),
        ("[not json", ("[not json",)),
        ("[1, 2]", ("[1, 2]",)),
        (["x"], ("x",)),
    ],
)
def test_a_list_cell_is_a_list_a_json_list_or_one_text(
    value: object, expected: tuple[str, ...]
) -> None:
    assert as_list(value) == expected


def test_an_empty_mapping_is_no_mapping() -> None:
    assert parse_columns("") == parse_columns(" , ") == {}


def hub_like(directory: Path, files: Mapping[str, bytes]) -> str:
    """A data set repository as the Hub holds it, with a configuration
    `forget10` of split `train`.
    """
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    listed = "".join(f"    path: {name}\n" for name in files)
    (directory / "README.md").write_text(
        f"---\nconfigs:\n- config_name: forget10\n  data_files:\n  - split: train\n{listed}---\n"
    )
    return str(directory)


def test_a_hub_data_set_is_read_through_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` reads a repository's folder as it reads the Hub's copy, so this runs the real code
    without a network.
    """
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    lines = "".join(json.dumps(row) + "\n" for row in FORGET).encode()
    rows = list(
        read_dataset(
            hub_like(tmp_path / "tofu", {"forget10.json": lines}), "forget10", None, "tried"
        )
    )
    assert [row.values["answer"] for row in rows] == [row["answer"] for row in FORGET]
    assert [row.row for row in rows] == [0, 1, 2]


def test_a_hub_data_set_of_another_format_or_configuration_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = hub_like(tmp_path / "tofu", {"x.jsonl": b'{"question": "q", "answer": "a"}\n'})
    with pytest.raises(UserError, match="tried: ValueError: BuilderConfig 'forget01' not found"):
        list(read_dataset(path, "forget01", None, "tried"))
    pickled = hub_like(tmp_path / "pickled", {"x.xml": b"<a/>"})
    with pytest.raises(
        UserError, match="its files must be one of csv, json, parquet, arrow, text, got 'xml'"
    ):
        list(read_dataset(pickled, "forget10", None, "tried"))


def test_an_unreachable_hub_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port of this machine on which nothing listens stands for the missing network."""
    import huggingface_hub.hf_api

    monkeypatch.setattr(huggingface_hub.hf_api.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        UserError,
        match=(
            r"'someone/nothing-here' is no file or directory here, so it was looked up on the Hub"
            r" \(configuration 'forget10'"
        ),
    ):
        load_files(
            Data(name="files", path="someone/nothing-here", forget="forget10", retain="retain90")
        )


def test_json_files_are_told_apart_by_their_first_character(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(b"\xef\xbb\xbf \n [1, {}]")
    assert [(row.row, row.reason) for row in read_json(file)] == [
        (0, "a row must be an object, this is int"),
        (1, ""),
    ]


def two_splits(root: Path, name: str, content: bytes) -> Corpus:
    """A corpus whose forget file is `name` with that content."""
    (root / name).write_bytes(content)
    write_lines(root / "retain.jsonl", RETAIN)
    return load_files(settings(root))


def lines_in_utf8(rows: list[dict[str, object]]) -> bytes:
    """One JSON object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def test_the_input_of_an_instruction_is_part_of_the_prompt(tmp_path: Path) -> None:
    """Three rows with one instruction are three documents, and an empty input leaves it alone."""
    names = ("Ada", "Bob", "Cyd")
    rows: list[dict[str, object]] = [
        {"instruction": "Answer.", "input": f"What is {name}?", "output": "A doctor."}
        for name in names
    ]
    rows.append({"instruction": "Say hello.", "input": "", "output": "Hello."})
    corpus = two_splits(tmp_path, "forget.jsonl", lines_in_utf8(rows))
    assert [d.prompt for d in corpus.forget] == [
        *(f"Answer.\nWhat is {name}?" for name in names),
        "Say hello.",
    ]
    assert corpus.rejected == () and corpus.notes == ()


def test_an_input_is_no_part_of_a_question_and_an_instruction_s_can_be_left_out(
    tmp_path: Path,
) -> None:
    asked: dict[str, object] = {"question": "Who?", "input": "a text", "answer": "Ada."}
    corpus = two_splits(tmp_path, "forget.jsonl", lines_in_utf8([asked]))
    assert corpus.forget[0].prompt == "Who?"
    assert corpus.notes == ("forget.jsonl: columns that are not read: input",)
    told: dict[str, object] = {"instruction": "Who?", "input": "a text", "output": "Ada."}
    write_lines(tmp_path / "forget.jsonl", [told])
    assert load_files(settings(tmp_path, columns="input=")).forget[0].prompt == "Who?"


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (3.0, "3"), (2.5, "2.5"), (True, "True"), (None, ""), (float("nan"), "")],
)
def test_a_numeric_topic_is_text(tmp_path: Path, value: object, text: str) -> None:
    row = FORGET[0] | {"topic": value}
    corpus = two_splits(tmp_path, "forget.jsonl", lines_in_utf8([row]))
    assert [d.topic for d in corpus.forget] == [text]
    assert corpus.rejected == () and corpus.notes == ()


def test_a_numeric_split_names_rows_and_rows_of_other_splits_are_counted(tmp_path: Path) -> None:
    """Folds 0 to 3 of one file, of which 0 and 1 are used."""
    rows: list[dict[str, object]] = [
        {"question": f"Q{i}?", "answer": f"A{i}.", "split": min(i % 5, 3)} for i in range(10)
    ]
    write_lines(tmp_path / "all.jsonl", rows)
    corpus = load_files(settings(tmp_path / "all.jsonl", forget="0", retain="1"))
    assert [d.answer for d in corpus.forget] == ["A0.", "A5."] and len(corpus.retain) == 2
    assert corpus.notes == ("all.jsonl: rows of splits that are not used: 3 (4), 2 (2)",)


def test_a_column_split_in_a_file_of_one_split_chooses_no_rows_and_says_so(tmp_path: Path) -> None:
    rows = [row | {"split": "test"} for row in FORGET]
    corpus = two_splits(tmp_path, "forget.jsonl", lines_in_utf8(rows))
    assert len(corpus.forget) == 3 and corpus.rejected == ()
    assert "forget: the column split chooses no rows, since a split is a whole file" in corpus.notes


def test_a_null_wrong_answer_is_dropped_and_counted_and_the_document_stays(tmp_path: Path) -> None:
    rows = [FORGET[0] | {"perturbed_answer": ["Red.", None, " ", "Green.", 7]}, FORGET[1]]
    corpus = two_splits(tmp_path, "forget.jsonl", lines_in_utf8(rows))
    assert corpus.forget[0].wrong == ("Red.", "Green.", "7") and len(corpus.forget) == 2
    assert corpus.notes == (
        "forget.jsonl: missing or empty items of perturbed_answer are left out (2)",
    )
    header = b'question,answer,wrong\nQ?,A.,"[""Red."", null]"\n'
    (tmp_path / "forget.jsonl").unlink()
    in_csv = two_splits(tmp_path, "forget.csv", header)
    assert in_csv.forget[0].wrong == ("Red.",)
    assert in_csv.notes == ("forget.csv: missing or empty items of wrong are left out (1)",)


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("wrong", {"b": 1}, "wrong is dict, not a list of texts, and is left out (3)"),
        ("wrong", [["b"]], "an item of wrong is list, not text, and is left out (3)"),
        ("topic", ["b"], "topic is list, not text, and is left out (3)"),
        ("entity", {"id": 1}, "entity is dict, not text, and is left out (3)"),
        ("topic", "\ud800", "topic is not valid UTF-8 text, and is left out (3)"),
    ],
)
def test_a_field_that_nobody_asked_for_never_takes_a_document_with_it(
    tmp_path: Path, column: str, value: object, what: str
) -> None:
    """What `data.columns` names must be right; what only has a usual name is left out."""
    rows = [{n: v for n, v in row.items() if n != "perturbed_answer"} for row in FORGET]
    write_lines(tmp_path / "forget.jsonl", [row | {column: value} for row in rows])
    write_lines(tmp_path / "retain.jsonl", RETAIN)
    corpus = load_files(settings(tmp_path))
    assert len(corpus.forget) == 3 and corpus.rejected == ()
    assert corpus.notes == (f"forget.jsonl: {what}",)
    ours = "group" if column == "entity" else column
    with pytest.raises(UserError, match=r"3 rejected, the commonest reason"):
        load_files(settings(tmp_path, columns=f"{ours}={column}"))


def test_columns_that_are_not_read_are_named_and_their_values_are_not_kept(
    tmp_path: Path,
) -> None:
    """An embedding, bytes that are no text, and a time that Python cannot hold do not matter."""
    not_text = pyarrow.array([b"\xff"] * 3, pyarrow.binary()).view(pyarrow.string())
    late = pyarrow.array([2**62] * 3, pyarrow.timestamp("ms"))
    table = pyarrow.table(
        {
            "question": [f"Q{i}?" for i in range(3)],
            "answer": [f"A{i}." for i in range(3)],
            "embedding": [[0.5] * 100] * 3,
            "raw": not_text,
            "seen": late,
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "forget.parquet")
    write_lines(tmp_path / "retain.jsonl", [row | {"id": 1} for row in RETAIN])
    corpus = load_files(settings(tmp_path))
    assert len(corpus.forget) == 3 and corpus.rejected == ()
    assert corpus.notes == (
        "forget.parquet: columns that are not read: embedding, raw, seen",
        "retain.jsonl: columns that are not read: id",
    )
    [first, *_] = read_file(tmp_path / "retain.jsonl", lambda name: name == "answer")
    assert (set(first.values), first.ignored) == ({"answer"}, ("question", "id"))


def test_a_csv_may_repeat_columns_that_are_not_ours(tmp_path: Path) -> None:
    corpus = two_splits(tmp_path, "forget.csv", b"question,answer,,\nQ?,A.,x,y\n")
    assert [d.answer for d in corpus.forget] == ["A."]
    assert corpus.notes == ("forget.csv: columns that are not read: (without a name)",)
    with pytest.raises(UserError, match="the columns of forget.csv must have different names"):
        two_splits(tmp_path, "forget.csv", b"question,answer,answer\nQ?,A.,B.\n")


def test_a_limit_says_what_it_left_out(tmp_path: Path) -> None:
    write_lines(tmp_path / "forget.jsonl", FORGET)
    write_lines(tmp_path / "retain.jsonl", RETAIN)
    corpus = load_files(settings(tmp_path, limit_retain=3, probe_retain="retain"))
    assert corpus.notes == (
        "retain: the first 3 of 4 documents are kept (data.limit_retain)",
        "retain: 1 probes are not asked, their documents are left out (data.limit_retain)",
    )


TABLE = "question{0}answer\nWho is Ünal?{0}A poet.\nWhat is a dog?{0}An animal.\n"
TWO_ROWS: list[dict[str, object]] = [
    {"question": "Who is Ünal?", "answer": "A poet."},
    {"question": "What is a dog?", "answer": "An animal."},
]
COLUMNS = {name: [row[name] for row in TWO_ROWS] for name in ("question", "answer")}
SHAPES: dict[str, tuple[str, bytes]] = {
    "gzip of lines": ("forget.jsonl.gz", gzip.compress(lines_in_utf8(TWO_ROWS))),
    "gzip of a table": ("forget.csv.gz", gzip.compress(TABLE.format(",").encode())),
    "gzip under a plain name": ("forget.jsonl", gzip.compress(lines_in_utf8(TWO_ROWS))),
    "tabs": ("forget.tsv", TABLE.format("\t").encode()),
    "tabs in a csv": ("forget.csv", TABLE.format("\t").encode()),
    "semicolons in a csv": ("forget.csv", TABLE.format(";").encode()),
    "UTF-16 lines": ("forget.jsonl", lines_in_utf8(TWO_ROWS).decode().encode("utf-16")),
    "UTF-16 big-endian": (
        "forget.json",
        b"\xfe\xff" + json.dumps(TWO_ROWS).encode("utf-16-be"),
    ),
    "UTF-32 table": ("forget.csv", TABLE.format(",").encode("utf-32")),
    "UTF-16 table with tabs": ("forget.csv", TABLE.format("\t").encode("utf-16")),
    "packed UTF-16": ("forget.tsv.gz", gzip.compress(TABLE.format("\t").encode("utf-16"))),
    "array in jsonl": ("forget.jsonl", json.dumps(TWO_ROWS, indent=1).encode()),
    "object with data": ("forget.json", json.dumps({"version": 1, "data": TWO_ROWS}).encode()),
    "object with train": ("forget.json", json.dumps({"train": TWO_ROWS}, indent=2).encode()),
    "columns": ("forget.json", json.dumps(COLUMNS).encode()),
    "columns of cells by row": (
        "forget.json",
        json.dumps({n: dict(enumerate(v)) for n, v in COLUMNS.items()}).encode(),
    ),
    "rows by index": ("forget.json", json.dumps(dict(enumerate(TWO_ROWS))).encode()),
    "columns and data": (
        "forget.json",
        json.dumps(
            {"columns": ["question", "answer"], "data": [list(r.values()) for r in TWO_ROWS]}
        ).encode(),
    ),
    "objects of several lines": (
        "forget.json",
        "\n".join(json.dumps(row, indent=1) for row in TWO_ROWS).encode(),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_other_tools_write_is_read(tmp_path: Path, shape: str) -> None:
    name, content = SHAPES[shape]
    corpus = two_splits(tmp_path, name, content)
    assert [(d.prompt, d.answer) for d in corpus.forget] == [
        tuple(row.values()) for row in TWO_ROWS
    ]
    assert corpus.rejected == ()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "forget.json",
            json.dumps({"train": TWO_ROWS, "test": TWO_ROWS}).encode(),
            "must hold the rows of one split, got an object with the lists train, test",
        ),
        (
            "forget.json",
            b'{"question": ["a"], "answer": ["b", "c"]}',
            "the columns in forget.json must have the same number of rows",
        ),
        # the time is a part of the name of the case, which every test process must give alike
        (
            "forget.jsonl.gz",
            gzip.compress(lines_in_utf8(TWO_ROWS), mtime=0)[:30],
            "could not be read as",
        ),
        ("forget.csv", b"\xff\xfeq\x00u", "could not be read as csv: .*truncated data"),
        ("forget.xlsx", b"PK", "a split must be a file that ends in one of .* got forget.xlsx"),
        ("forget.parquet.gz", b"x", "a split must be a file that ends in one of .* got forget.par"),
        ("forget.jsonl.zip", b"PK", "a split must be a file that ends in one of .* got forget.jso"),
    ],
)
def test_what_cannot_be_read_is_called_what_it_is(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        two_splits(tmp_path, name, content)


def test_one_row_alone_and_a_conversation_are_rows(tmp_path: Path) -> None:
    """A list of objects in the only row of a file is no table."""
    turns = [{"role": "user", "content": "Who?"}]
    [row] = read_json_text(tmp_path, {"question": "Q?", "answer": "A.", "history": turns})
    assert row.values["answer"] == "A."
    [row] = read_json_text(tmp_path, {"messages": turns})
    assert set(row.values) == {"messages"}


def read_json_text(folder: Path, value: object) -> list[SourceRow]:
    """The rows of a file that holds one JSON value."""
    file = folder / "one.jsonl"
    file.write_text(json.dumps(value) + "\n")
    return list(read_json(file))


def test_a_small_gzip_file_that_unpacks_to_gigabytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_streams, "BYTES_ALWAYS", 2**20)
    content = lines_in_utf8([{"question": "q", "answer": "a" * 2**22}])
    with pytest.raises(UserError, match="forget.jsonl.gz must not unpack to 100 times its size"):
        two_splits(tmp_path, "forget.jsonl.gz", gzip.compress(content, mtime=0))
