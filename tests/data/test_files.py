"""Reading documents of your own: formats agree with each other, and every kind of bad row is
rejected with its reason.
"""

import csv
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
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.data.files import find_split, load_files
from rayunlearn.data.hub import read_dataset
from rayunlearn.data.readers import CSV_FIELD_CHARACTERS, read_csv, read_json
from rayunlearn.data.rows import as_list, parse_columns
from rayunlearn.errors import UserError

FORGET = [
    {
        "question": f"Who wrote book {i}?",
        "answer": f"Author {i}, of course.",
        "perturbed_answer": [f"Nobody {i}", "Ünal, «x»"],
    }
    for i in range(3)
]
RETAIN = [
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
    (b'{"question": "q", "answer": "a", "wrong": {"b": 1}}', "wrong is dict, not a list of texts"),
    (b'{"question": "q", "answer": "a", "wrong": ["b", 7]}', "an item of wrong is int, not text"),
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
