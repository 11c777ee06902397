"""Loaders of public benchmarks: real rows where they are at hand (TOFU, MMLU), made rows in the
Hub's layout elsewhere.
"""

import csv
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rayunlearn import config
from rayunlearn.config import Data
from rayunlearn.data.benchmark_files import split_article
from rayunlearn.data.benchmarks import (
    BIOLOGY_SUBJECTS,
    LOADERS,
    load_benchmark,
    parse_options,
    with_shots,
)
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.data.load import load_corpus
from rayunlearn.data.multiple_choice import letter_question
from rayunlearn.errors import UserError
from rayunlearn.planning.run_tables import write_corpora
from rayunlearn.storage.run import open_run
from rayunlearn.trial.workspace import Workspace

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_tofu = pytest.mark.skipif(
    not (SHARED / "tofu").is_dir(),
    reason="the TOFU questions (shared/data/tofu) are not on this machine",
)
needs_mmlu = pytest.mark.skipif(
    not (SHARED / "mmlu").is_dir(),
    reason="the MMLU questions (shared/data/mmlu) are not on this machine",
)


def parquet(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)


def lines(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def states(loaded: Corpus) -> dict[str, tuple[str, int]]:
    return {record.table: (record.state, record.rows) for record in loaded.files}


# ---- TOFU


@needs_tofu
@pytest.mark.parametrize(("size", "n"), [("01", 40), ("05", 200), ("10", 400)])
def test_tofu_loads_each_size_with_its_complement_and_its_four_splits(size: str, n: int) -> None:
    loaded = load_benchmark("tofu", SHARED / "tofu", options={"size": size})
    assert (len(loaded.forget), len(loaded.retain)) == (n, 4000 - n)
    assert {split: len(documents) for split, documents in loaded.probes.items()} == {
        "forget": n,
        "retain": 400,
        "real_authors": 100,
        "world_facts": 117,
    }
    assert {state for state, _ in states(loaded).values()} == {"as recorded"} and loaded.notes == ()
    forget = loaded.probes["forget"][0]
    assert len(forget.wrong) == 5 and forget.paraphrase and forget.prompt_paraphrase
    assert len(loaded.probes["real_authors"][0].wrong) == 3


@needs_tofu
def test_a_changed_file_is_noticed_and_can_be_allowed(tmp_path: Path) -> None:
    shutil.copytree(SHARED / "tofu", tmp_path / "tofu")
    file = tmp_path / "tofu" / "forget01.json"
    file.chmod(0o644)
    file.write_text(file.read_text(encoding="utf-8").replace(" the ", " teh ", 1), encoding="utf-8")
    with pytest.raises(
        UserError,
        match=r"tofu in .* changed: forget01 is not the file that was recorded: 40 rows, SHA-256 ",
    ):
        load_benchmark("tofu", tmp_path / "tofu", options={"size": "01"})
    loaded = load_benchmark("tofu", tmp_path / "tofu", options={"size": "01", "strict": False})
    assert (
        states(loaded)["forget01"] == ("changed", 40)
        and states(loaded)["retain99"][0] == "as recorded"
    )
    assert len(loaded.notes) == 1 and "forget01" in loaded.notes[0]


@needs_tofu
def test_the_twenty_questions_of_an_author_are_one_group_and_name_no_other_author() -> None:
    """Groups by place in the file, against the texts: the full name that an author's answers give
    most often is in no other author's answers of the forget set.
    """
    corpus = load_benchmark("tofu", SHARED / "tofu", options={"size": "10"})
    for documents in (corpus.forget, corpus.probes["retain"]):
        assert [len(answers) for answers in groups_of_answers(documents).values()] == [20] * 20
    retained = {d.doc_id: d.group for d in corpus.retain}
    assert all(retained[d.doc_id] == d.group for d in corpus.probes["retain"])
    names = {
        group: max(
            Counter(re.findall(r"[A-Z][\w'-]+ [A-Z][\w'-]+", " ".join(answers))).items(),
            key=lambda item: item[1],
        )[0]
        for group, answers in groups_of_answers(corpus.forget).items()
    }
    for group, answers in groups_of_answers(corpus.forget).items():
        assert not any(name in " ".join(answers) for g, name in names.items() if g != group)
    assert {d.group for d in corpus.probes["world_facts"]} == {""}
    assert corpus.groups[corpus.forget[0].doc_id] == corpus.forget[0].group


def groups_of_answers(documents: tuple[Document, ...]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for document in documents:
        groups.setdefault(document.group, []).append(document.answer)
    return groups


@needs_tofu
def test_tofu_s_holdout_is_a_split_where_the_folder_has_it(tmp_path: Path) -> None:
    shutil.copytree(SHARED / "tofu", tmp_path / "tofu")
    lines(
        tmp_path / "tofu" / "holdout01.json",
        [{"question": "Who?", "answer": "Nobody that anyone was told of."}],
    )
    loaded = load_benchmark("tofu", tmp_path / "tofu", options={"size": "01"})
    assert len(loaded.probes["holdout"]) == 1 and states(loaded)["holdout01"] == ("unknown", 1)


# ---- MMLU


@needs_mmlu
def test_mmlu_s_biology_subjects_are_forgotten_and_the_others_kept() -> None:
    loaded = load_benchmark("mmlu", SHARED / "mmlu", options={"part": "biology", "shots": 5})
    probes = loaded.probes
    assert {d.topic for d in probes["forget"]} == set(BIOLOGY_SUBJECTS) and len(
        {d.topic for d in probes["retain"]}
    ) == 47
    assert states(loaded) == {"test": ("as recorded", 14_042), "dev": ("as recorded", 285)}
    assert all("the same" in r.reason for r in loaded.rejected)
    assert (
        len(loaded.rejected) == 125
        and len(probes["forget"]) + len(probes["retain"]) + 125 == 14_042
    )
    assert (
        all(shots.count("Answer:") == 5 for shots in loaded.shots.values())
        and len(loaded.shots) == 57
    )


@needs_mmlu
def test_mmlu_s_questions_keep_their_options_order() -> None:
    """Every question of a subject, written with its letters, against the file itself."""
    loaded = load_benchmark("mmlu", SHARED / "mmlu")
    asked = {d.doc_id: d for d in loaded.probes["mmlu"]}
    with (SHARED / "mmlu" / "test" / "anatomy_test.csv").open(
        encoding="utf-8", newline=""
    ) as stream:
        rows = list(csv.reader(stream))
    for question, a, b, c, d, letter in rows:
        document = Document(prompt=question, answer=[a, b, c, d]["ABCD".index(letter)])
        place = loaded.true_letters[document.doc_id]
        assert (
            letter_question(asked[document.doc_id], place)
            == f"{question}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:"
        )
        assert "ABCD"[place] == letter


def test_mmlu_loads_from_the_hub_s_one_table_too(tmp_path: Path) -> None:
    rows = [
        {
            "question": "What is a cell?",
            "subject": "anatomy",
            "choices": ["a room", "a unit of life", "a phone", "a list"],
            "answer": 1,
        },
        {
            "question": "Who was Kant?",
            "subject": "philosophy",
            "choices": ["a cook", "a king", "a thinker", "a horse"],
            "answer": 2,
        },
    ]
    parquet(tmp_path / "all" / "test-00000-of-00001.parquet", rows)
    loaded = load_benchmark("mmlu", tmp_path, options={"part": "biology"})
    assert [d.prompt for d in loaded.probes["forget"]] == ["What is a cell?"]
    assert sorted(loaded.true_letters.values()) == [1, 2]


# ---- MUSE


def muse(root: Path, *, n: int = 889) -> Path:
    """A folder in the layout of muse-bench/MUSE-News with made articles in upstream's numbers."""
    sizes = {"raw/forget": n, "raw/retain1": 1777, "privleak/forget": 100, "privleak/holdout": 100}
    sizes |= {f"scal/forget_{k}": rows for k, rows in ((1, 889), (2, 1778))} | {
        "sust/forget_4": 887
    }
    for table, rows in sizes.items():
        parquet(
            root / f"{table}-00000-of-00001.parquet",
            [
                {"text": f"{table} article {number} tells of something new"}
                for number in range(rows)
            ],
        )
    for side in ("forget", "retain"):
        for name, rows in ((f"{side}_qa", 100), (f"{side}_qa_icl", 10)):
            parquet(
                root / "knowmem" / f"{name}-00000-of-00001.parquet",
                [{"question": f"{name} {i}?", "answer": f"{i}"} for i in range(rows)],
            )
    parquet(
        root / "verbmem" / "forget-00000-of-00001.parquet",
        [{"prompt": f"It was {i}", "gt": f"and then {i}"} for i in range(100)],
    )
    return root


def test_muse_asks_after_ten_solved_questions_and_continues_texts(tmp_path: Path) -> None:
    loaded = load_benchmark("muse-news", muse(tmp_path))
    assert (len(loaded.forget), len(loaded.retain)) == (889, 1777)
    assert {split: len(d) for split, d in loaded.probes.items()} == {
        "forget": 100,
        "retain": 100,
        "verbatim": 100,
        "members": 100,
        "holdout": 100,
    }
    prompt = loaded.probes["forget"][3].prompt
    assert prompt.startswith(
        "forget_qa_icl 0?\nAnswer: 0\n\nQuestion: forget_qa_icl 1?"
    ) and prompt.endswith("\n\nQuestion: forget_qa 3?")
    assert prompt.count("Answer:") == 10
    assert loaded.probes["verbatim"][7] == Document(prompt="It was 7", answer="and then 7")
    assert loaded.templates == {"verbatim": "{prompt}"}
    assert {state for state, _ in states(loaded).values()} == {"unknown"}


def test_muse_s_scaling_and_sequential_steps_replace_the_forget_set(tmp_path: Path) -> None:
    root = muse(tmp_path)
    assert (
        len(load_benchmark("muse-news", root, options={"task": "scal", "step": 2}).forget) == 1778
    )
    assert len(load_benchmark("muse-news", root, options={"task": "sust", "step": 4}).forget) == 887
    with pytest.raises(UserError, match=r"must hold sust/forget_1: looked for"):
        load_benchmark("muse-news", root, options={"task": "sust", "step": 1})


def test_another_number_of_rows_than_the_card_says_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="raw/forget is not the file that was recorded: 888 rows"):
        load_benchmark("muse-news", muse(tmp_path, n=888))


def test_a_missing_shard_is_noticed(tmp_path: Path) -> None:
    root = muse(tmp_path)
    (root / "raw" / "retain1-00000-of-00001.parquet").rename(
        root / "raw" / "retain1-00000-of-00002.parquet"
    )
    with pytest.raises(
        UserError, match=r"raw/retain1 must have all of its 2 shards in .*, found, got 1"
    ):
        load_benchmark("muse-news", root)


def test_novels_are_cut_into_pieces(tmp_path: Path) -> None:
    root = muse(tmp_path)
    for table, rows in (("raw/forget", 4), ("raw/retain1", 12)):
        parquet(
            root / f"{table}-00000-of-00001.parquet",
            [{"text": " ".join(f"{table}{book}w{i}" for i in range(450))} for book in range(rows)],
        )
    loaded = load_benchmark("muse-books", root)
    assert len(loaded.forget) == 4 * 3 and len(loaded.forget[2].answer.split()) == 50


def test_pieces_together_are_the_text() -> None:
    document = Document(answer="a b c d e f g", topic="t")
    pieces = split_article([document], 3)
    assert [p.answer for p in pieces] == ["a b c", "d e f", "g"] and {p.topic for p in pieces} == {
        "t"
    }
    assert split_article([document], 0) == (document,)


def test_a_question_without_shots_is_itself() -> None:
    document = Document(prompt="Who?", answer="I")
    assert with_shots(document, ()) == document


# ---- WMDP, RWKU, folders


def test_wmdp_asks_questions_and_says_how_to_get_the_texts(tmp_path: Path) -> None:
    rows = [
        {"question": f"Which of {i}?", "choices": ["w", "x", f"y{i}", "z"], "answer": 2}
        for i in range(1273)
    ]
    parquet(tmp_path / "wmdp-bio" / "test-00000-of-00001.parquet", rows)
    loaded = load_benchmark("wmdp-bio", tmp_path)
    assert len(loaded.probes["forget"]) == 1273 and set(loaded.true_letters.values()) == {2}
    assert loaded.probes["forget"][5].answer == "y5" and loaded.forget == ()
    assert (
        "wmdp-bio-forget-corpus" in loaded.notes[0]
        and "bio_remove_dataset.jsonl" in loaded.notes[0]
    )
    with pytest.raises(
        UserError,
        match=(
            r"not public\. Ask for them at"
            r" https://huggingface.co/datasets/cais/wmdp-bio-forget-corpus"
        ),
    ):
        load_benchmark("wmdp-bio", tmp_path, options={"corpora": True})
    lines(
        tmp_path / "bio_remove_dataset.jsonl",
        [{"title": "t", "abstract": "a", "text": "a text to forget"}],
    )
    lines(tmp_path / "bio-retain-corpus.jsonl", [{"text": "a text to keep"}])
    loaded = load_benchmark("wmdp-bio", tmp_path, options={"corpora": True})
    assert (loaded.forget[0].answer, loaded.retain[0].answer, loaded.notes) == (
        "a text to forget",
        "a text to keep",
        (),
    )


@pytest.mark.parametrize("place", ["", "wmdp-corpora"])
def test_wmdp_s_corpora_are_found_in_the_folders_of_their_card(tmp_path: Path, place: str) -> None:
    """`<corpus>/train-*.parquet`, beside the questions or in a folder of the data set's name."""
    rows = [{"question": f"Q{i}?", "choices": ["w", f"x{i}"], "answer": 1} for i in range(1987)]
    parquet(tmp_path / "wmdp-cyber" / "test-00000-of-00001.parquet", rows)
    for side in ("forget", "retain"):
        for shard in (0, 1):
            file = f"cyber-{side}-corpus/train-0000{shard}-of-00002.parquet"
            parquet(tmp_path / place / file, [{"text": f"{side} {shard}"}])
    loaded = load_benchmark("wmdp-cyber", tmp_path, options={"corpora": True, "documents": 1})
    assert [d.answer for d in loaded.forget] == ["forget 0"]
    assert [d.answer for d in loaded.retain] == ["retain 0", "retain 1"]
    assert loaded.notes == ("forget: the first 1 of 2 are kept (documents)",)


def test_rwku_s_targets_filter_members_or_say_that_they_do_not(tmp_path: Path) -> None:
    root = rwku(tmp_path)
    chosen = {"targets": "Bob Example"}
    assert load_benchmark("rwku", root, options=chosen).probes.get("members", ()) == ()
    (root / "All" / "forget_mia.json").write_text(json.dumps([{"text": "seen"}]))
    loaded = load_benchmark("rwku", root, options=chosen)
    assert [d.answer for d in loaded.probes["members"]] == ["seen"]
    assert loaded.notes == ("All/forget_mia names no people: rwku.targets does not filter it",)
    with pytest.raises(UserError, match="must name people of the benchmark, got 'Nobody'"):
        load_benchmark("rwku", root, options={"targets": "Bob Example,Nobody"})


def test_questions_that_are_none_are_set_aside_with_their_reason(tmp_path: Path) -> None:
    good = [{"question": f"Which of {i}?", "choices": ["w", "x"], "answer": 0} for i in range(1984)]
    bad = [
        {"question": "", "choices": ["w", "x"], "answer": 0},
        {"question": "One?", "choices": ["w"], "answer": 0},
        {"question": "Seven?", "choices": ["w", "x"], "answer": 7},
    ]
    parquet(tmp_path / "wmdp-cyber" / "test-00000-of-00001.parquet", good + bad)
    loaded = load_benchmark("wmdp-cyber", tmp_path)
    assert [r.reason for r in loaded.rejected] == [
        "question is empty",
        "choices must be at least two texts",
        "answer names no option",
    ]
    assert [r.row for r in loaded.rejected] == [1984, 1985, 1986] and len(
        loaded.probes["forget"]
    ) == 1984


def rwku(root: Path) -> Path:
    people = ("Ada Example", "Bob Example")
    for level in (1, 2, 3):
        rows = [
            {
                "query": f"{p} level {level} ___?",
                "answer": f"a{level}",
                "level": str(level),
                "type": "qa",
                "subject": p,
            }
            for p in people
        ]
        (root / "All").mkdir(parents=True, exist_ok=True)
        (root / "All" / f"forget_level{level}.json").write_text(json.dumps(rows), encoding="utf-8")
    for level in (1, 2):
        rows = [
            {"query": f"near {p} {level}?", "answer": "n", "level": str(level), "subject": p}
            for p in people
        ]
        (root / "All" / f"neighbor_level{level}.json").write_text(
            json.dumps(rows), encoding="utf-8"
        )
    (root / "All" / "passage.json").write_text(
        json.dumps([{"text": f"{p} was born.", "subject": p} for p in people]), encoding="utf-8"
    )
    (root / "All" / "forget_mia.json").write_text(
        json.dumps([{"text": "seen", "subject": p} for p in people[:1]]), encoding="utf-8"
    )
    return root


def test_rwku_s_probes_are_by_level_and_by_person(tmp_path: Path) -> None:
    root = rwku(tmp_path)
    whole = load_benchmark("rwku", root)
    assert {split: len(d) for split, d in whole.probes.items()} == {
        "forget": 6,
        "retain": 4,
        "level1": 2,
        "level2": 2,
        "level3": 2,
        "members": 1,
    }
    assert {d.group for d in whole.probes["forget"]} == {"Ada Example", "Bob Example"}
    assert all(d.group in d.prompt + d.answer for d in whole.probes["forget"])
    one = load_benchmark("rwku", root, options={"targets": "Ada Example"})
    assert (
        len(one.probes["forget"]) == 3
        and [d.answer for d in one.forget] == ["Ada Example was born."]
        and one.retain == ()
    )
    with pytest.raises(
        UserError, match=r"rwku.targets must name people of the benchmark, got 'Nobody'"
    ):
        load_benchmark("rwku", root, options={"targets": "Nobody"})


def test_article_folders_are_documents_in_pieces(tmp_path: Path) -> None:
    for folder, words in (
        ("Wikipedia_Biology", 250),
        ("Wikipedia_History_Concepts-in-Physics_Philosophy", 10),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "Cell.txt").write_text(
            " ".join(f"{folder}{i}" for i in range(words)), encoding="utf-8"
        )
    (tmp_path / "Wikipedia_Biology" / "broken.txt").write_bytes(b"\xff\xfe\xff")
    loaded = load_benchmark("biology", tmp_path)
    assert [len(d.answer.split()) for d in loaded.forget] == [200, 50] and {
        d.topic for d in loaded.forget
    } == {"Cell"}
    assert loaded.probes["forget"] == loaded.forget and "no folder mmlu" in loaded.notes[0]
    assert [(r.source, r.reason) for r in loaded.rejected] == [
        ("Wikipedia_Biology/broken.txt", "not valid UTF-8 text")
    ]


@needs_mmlu
def test_biology_is_asked_with_mmlu_s_questions_where_they_stand_beside(tmp_path: Path) -> None:
    for folder in ("forget", "retain"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(f"{folder} text", encoding="utf-8")
    (tmp_path / "mmlu").symlink_to(SHARED / "mmlu")
    loaded = load_benchmark("biology", tmp_path, options={"forget": "forget", "retain": "retain"})
    assert (
        len(loaded.probes["forget"]) > 1900
        and loaded.true_letters
        and states(loaded)["test"][0] == "as recorded"
    )


def test_a_folder_of_one_s_own_is_loaded_as_elsewhere(tmp_path: Path) -> None:
    lines(tmp_path / "mine.jsonl", [{"question": "q", "answer": "a"}, {"question": "q"}])
    lines(tmp_path / "other.jsonl", [{"question": "q2", "answer": "a2"}])
    loaded = load_benchmark("files", tmp_path, options={"forget": "mine", "retain": "other"})
    assert [d.prompt for d in loaded.forget] == ["q"] and [r.reason for r in loaded.rejected] == [
        "answer is missing"
    ]
    assert states(loaded) == {"mine": ("unknown", 2), "other": ("unknown", 1)}


# ---- in a trial


@needs_tofu
def test_a_trial_s_data_section_chooses_size_and_strictness_and_cuts_the_retain_side() -> None:
    corpus = load_corpus(
        Data(name="tofu", path=str(SHARED / "tofu"), options="size=05", limit_retain=100)
    )
    assert (len(corpus.forget), len(corpus.retain), len(corpus.probes["forget"])) == (200, 100, 200)
    asked = {d.doc_id for d in corpus.probes["retain"]}
    assert (
        len(corpus.probes["real_authors"]) == 100
        and asked
        and not asked & {d.doc_id for d in corpus.forget}
    )
    uncut = load_corpus(Data(name="tofu", path=str(SHARED / "tofu"), options="size=05"))
    assert asked < {d.doc_id for d in uncut.probes["retain"]} and asked <= {
        d.doc_id for d in corpus.retain
    }
    assert {r.state for r in corpus.files} == {"as recorded"} and corpus.digest != uncut.digest


def test_a_benchmark_without_texts_cannot_be_unlearned_and_says_how_to_get_them(
    tmp_path: Path,
) -> None:
    rows = [
        {"question": f"Which of {i}?", "choices": ["w", "x", f"y{i}", "z"], "answer": 2}
        for i in range(1273)
    ]
    parquet(tmp_path / "wmdp-bio" / "test-00000-of-00001.parquet", rows)
    with pytest.raises(
        UserError,
        match=(
            r"wmdp-bio must bring documents to forget: questions only \(option corpora=true wants"
            r" the texts\)\. WMDP's"
        ),
    ):
        load_corpus(Data(name="wmdp-bio", path=str(tmp_path)))
    lines(tmp_path / "bio_remove_dataset.jsonl", [{"text": "a text to forget"}])
    lines(tmp_path / "bio-retain-corpus.jsonl", [{"text": "a text to keep"}])
    shelved = {
        "question": "What is a cell?",
        "subject": "anatomy",
        "choices": ["a room", "a unit of life"],
        "answer": 1,
    }
    parquet(tmp_path / "mmlu" / "all" / "test-00000-of-00001.parquet", [shelved])
    corpus = load_corpus(Data(name="wmdp-bio", path=str(tmp_path), options="corpora=true"))
    assert len(corpus.forget) == 1 and [d.prompt for d in corpus.probes["retain"]] == [
        "What is a cell?"
    ]
    assert corpus.true_letters[corpus.probes["retain"][0].doc_id] == 1


@needs_tofu
def test_a_run_says_which_files_its_corpora_were(tmp_path: Path) -> None:
    corpus = load_corpus(Data(name="tofu", path=str(SHARED / "tofu"), options="size=01"))
    write_corpora(
        tmp_path,
        tmp_path / "cache",
        [Workspace(corpus, "", "", "m", tmp_path), Workspace(corpus, "", "", "other", tmp_path)],
    )
    (tmp_path / "trials").mkdir()
    rows = {row["file"]: row for row in open_run(tmp_path).corpora.collect().to_dicts()}
    assert set(rows) == {
        "forget01",
        "retain99",
        "forget01_perturbed",
        "retain_perturbed",
        "real_authors_perturbed",
        "world_facts_perturbed",
    }
    sha = hashlib.sha256((SHARED / "tofu" / "forget01.json").read_bytes()).hexdigest()
    assert rows["forget01"] == {
        "corpus_digest": corpus.digest,
        "corpus": "tofu",
        "file": "forget01",
        "rows": 40,
        "sha256": sha,
        "state": "as recorded",
    }


def test_options_are_texts_numbers_or_truth_values_as_their_defaults_are() -> None:
    assert parse_options("tofu", "size=10") == {"size": "10"} and parse_options("tofu", "") == {}
    assert parse_options("muse-news", "task=sust, step=2,strict=false") == {
        "task": "sust",
        "step": 2,
        "strict": False,
    }
    assert parse_options("rwku", "targets=Ada Example, Bob Example,passages=false") == {
        "targets": "Ada Example,Bob Example",
        "passages": False,
    }
    with pytest.raises(UserError, match="muse-news.step must be a whole number, got 'two'"):
        parse_options("muse-news", "step=two")
    with pytest.raises(UserError, match="unknown option of tofu 'sise'; did you mean 'size'"):
        parse_options("tofu", "sise=10")
    with pytest.raises(UserError, match="data.options takes name=value,name=value, got '05'"):
        parse_options("tofu", "05")


def test_how_a_question_is_asked_is_part_of_the_corpus_s_identity() -> None:
    document = Document(prompt="Who?", answer="I", wrong=("you",))
    plain = Corpus(
        name="c", forget=(document,), retain=(), probes={"forget": (document,)}, extra_training={}
    )
    assert (
        plain.digest
        != replace(plain, true_letters={document.doc_id: 1}).digest
        != replace(plain, templates={"forget": "{prompt}"}).digest
    )


# ---- the table


def test_config_knows_the_benchmarks_that_a_trial_may_name() -> None:
    assert {*config.BENCHMARKS, "files"} == set(LOADERS)


@needs_tofu
def test_tofu_asks_the_forget_questions_in_other_words_where_it_shall() -> None:
    plain = load_benchmark("tofu", SHARED / "tofu", options={"size": "01"})
    loaded = load_benchmark("tofu", SHARED / "tofu", options={"size": "01", "paraphrased": True})
    assert "paraphrased" not in plain.probes and len(loaded.probes["paraphrased"]) == 40
    by_answer = {d.answer: d for d in loaded.probes["forget"]}
    for document in loaded.probes["paraphrased"]:
        original = by_answer[document.answer]
        assert document.prompt == original.prompt_paraphrase != original.prompt
        assert document.group == original.group and document.wrong == original.wrong


def test_a_name_that_is_no_folder_is_looked_up_on_the_hub_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError,
        match=(
            "'nobody/tofu' is no directory here, so it was looked up on the Hub:"
            " LocalEntryNotFoundError"
        ),
    ):
        load_benchmark("tofu", "nobody/tofu")


def test_a_misspelt_benchmark_or_option_and_a_missing_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"unknown benchmark 'muse_news'; did you mean 'muse-news'\?"
    ):
        load_benchmark("muse_news", tmp_path)
    with pytest.raises(UserError, match=r"unknown option of tofu 'sise'; did you mean 'size'\?"):
        load_benchmark("tofu", tmp_path, options={"sise": "10"})
    with pytest.raises(UserError, match="must be a directory on this machine"):
        load_benchmark("tofu", tmp_path / "nowhere")
    with pytest.raises(
        UserError,
        match=r"must hold forget10_perturbed: looked for forget10_perturbed\.\(jsonl",
    ):
        load_benchmark("tofu", tmp_path)


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_every_benchmark_says_where_it_lives_and_on_what_terms(name: str) -> None:
    row = LOADERS[name]
    assert row.home and row.licence and row.source and row.function.__doc__
    assert all(rows > 0 and (sha == "" or len(sha) == 64) for sha, rows in row.recorded.values())
