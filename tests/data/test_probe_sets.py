"""Probe sets by name: read from files, asked and never trained on, limited, and part of a trial's
id by their content alone."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rayunlearn.config import Data, Model, Trial, probe_limits, with_values
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.data.files import load_files
from rayunlearn.data.known import read_relation
from rayunlearn.data.probe_sets import parse_probe_sets, with_probe_sets
from rayunlearn.errors import UserError
from rayunlearn.trial.identity import content_digests, corpus_of
from rayunlearn.trial.probes import limit_probes
from rayunlearn.trial.workspace import validate_trial


def write(file: Path, *answers: str) -> str:
    rows = [{"prompt": f"What is {a}?", "answer": f"It is {a}.", "key": a} for a in answers]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "forget.jsonl", "Oslo", "Rome")
    write(tmp_path / "retain.jsonl", "Iron", "Gold")
    write(tmp_path / "near.jsonl", "Lima", "Rome", "Iron", "Bern")
    return tmp_path


def answers(documents: tuple[Document, ...]) -> list[str]:
    return [d.key for d in documents]


def test_a_set_is_a_split_without_what_is_trained_on(folder: Path) -> None:
    """Of near's four documents one is in the forget set and one in the retain set."""
    far = write(folder / "elsewhere.jsonl", "Blue")
    data = Data(name="files", path=str(folder), probes=f"near=near,far={far}")
    plain = load_files(data)
    corpus = with_probe_sets(plain, data)
    assert answers(corpus.probes["near"]) == ["Lima", "Bern"]
    assert answers(corpus.probes["far"]) == ["Blue"]
    reasons = [r.reason for r in corpus.rejected]
    assert reasons == [
        "a document of near that is in the forget set",
        "a document of near that is in the retain set",
    ]
    assert (corpus.forget, corpus.retain) == (plain.forget, plain.retain)
    assert [record.table for record in corpus.files][-2:] == ["near", "elsewhere.jsonl"]
    assert corpus.digest != plain.digest


def test_any_data_can_have_sets_from_files(folder: Path) -> None:
    corpus = corpus_of(Data(probes=f"near={folder / 'near.jsonl'}"), Model())
    assert answers(corpus.probes["near"]) == ["Lima", "Rome", "Iron", "Bern"]
    assert {"forget", "retain", "untouched", "near"} <= set(corpus.probes)
    without = corpus_of(Data(), Model())
    assert with_probe_sets(without, Data()) is without


def test_a_set_can_be_general_text_that_names_no_fact_of_the_tables() -> None:
    """Passages alone: no question, no key, and no subject or key of a table of places."""
    data = Data(probes="general=general_text")
    corpus = corpus_of(data, Model())
    passages = corpus.probes["general"]
    assert len(passages) == 32
    assert all(not d.prompt and not d.key and 40 <= len(d.answer.split()) <= 60 for d in passages)
    text = " ".join(d.answer for d in passages)
    for name in ("capitals", "continents", "currencies", "languages", "authors", "planets"):
        slices = read_relation(name).slices.values()
        names = {word for facts in slices for fact in facts.items() for word in fact}
        assert [word for word in names if re.search(rf"\b{re.escape(word)}\b", text)] == []
    record = next(record for record in corpus.files if record.table == "general_text")
    assert record.rows == 32


def test_a_set_can_be_a_table_of_facts_that_the_product_ships(folder: Path) -> None:
    """Whatever a model knows of it, and without what is trained on."""
    data = Data(
        name="files",
        path=str(folder),
        probes="far=known:continents,Europe=known:capitals:Europe",
    )
    corpus = with_probe_sets(load_files(data), data)
    tables = {name: read_relation(name) for name in ("continents", "capitals")}
    assert len(corpus.probes["far"]) == tables["continents"].n_facts
    assert answers(corpus.probes["Europe"]) == list(tables["capitals"].slices["Europe"].values())
    assert corpus.probes["Europe"][11].answer == "The capital of France is Paris."
    records = {record.table: record.rows for record in corpus.files}
    assert records["known_facts/continents"] == tables["continents"].n_facts
    assert content_digests(Trial(data=data))["data.probes"] == "far,Europe"


@pytest.mark.parametrize(
    ("probes", "said"),
    [
        ("near", "takes name=file,name=file"),
        ("a b=near", "must be letters"),
        ("near=near,near=far", "must name a set once"),
        ("retain=near", "a name that the data does not use"),
        ("members=near", "a name that the data does not use"),
        ("near=nearer", "unknown split .* did you mean 'near'"),
        ("near=known:capital", "unknown relation .* did you mean 'capitals'"),
        ("near=known:capitals:Erope", "unknown slice of capitals .* did you mean 'Europe'"),
        ("again=forget", "must have a usable document, got none in forget"),
    ],
)
def test_a_set_that_cannot_be_is_refused(folder: Path, probes: str, said: str) -> None:
    data = Data(name="files", path=str(folder), probes=probes)
    with pytest.raises(UserError, match=said):
        with_probe_sets(load_files(data), data)
    with pytest.raises(UserError, match="must be a data file that exists"):
        corpus_of(Data(probes="near=nowhere.jsonl"), Model())


def test_a_trial_s_id_has_the_names_and_the_content_of_sets_and_not_their_paths(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Trial(data=Data(probes=f"near={folder / 'near.jsonl'}"))
    assert content_digests(there)["data.probes"] == "near"
    assert "data.probes" not in content_digests(Trial())
    monkeypatch.chdir(folder)
    relative = validate_trial(Trial(data=Data(probes="near=near.jsonl")))
    assert parse_probe_sets(relative.data.probes) == {"near": str(folder / "near.jsonl")}


def test_limits_are_of_all_sets_or_of_named_ones() -> None:
    sets = {
        name: tuple(Document(prompt=f"{name} {n}", answer="a") for n in range(5))
        for name in ("forget", "near", "far")
    }

    def sizes(limits: str) -> list[int]:
        return [len(documents) for documents in limit_probes(sets, limits).values()]

    assert sizes("") == [5, 5, 5]
    assert sizes("2") == [2, 2, 2]
    assert sizes("near=3") == [5, 3, 5]
    assert sizes("near=3,forget=9,1") == [5, 3, 1]
    chosen = limit_probes(sets, "2")["far"]
    assert {d.doc_id for d in chosen} == set(sorted(d.doc_id for d in sets["far"])[:2])
    reverse = {"far": sets["far"][::-1]}
    assert set(limit_probes(reverse, "2")["far"]) == set(chosen)


@pytest.mark.parametrize("text", ["0", "near=", "near=x", "near=2,near=3", "-1"])
def test_a_limit_must_be_a_number(text: str) -> None:
    with pytest.raises(UserError, match=r"measure\.limit_probes"):
        probe_limits(text)
    with pytest.raises(UserError, match=r"measure\.limit_probes"):
        with_values(Trial(), {"measure.limit_probes": text})


def test_a_limit_of_a_set_that_is_not_there_is_refused_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"unknown set in measure.limit_probes 'nearr'"):
        validate_trial(with_values(Trial(), {"measure.limit_probes": "nearr=3"}))


def test_a_corpus_keeps_its_own_sets(folder: Path) -> None:
    document = Document(prompt="?", answer="Bern")
    corpus = Corpus(
        name="c",
        forget=(),
        retain=(),
        probes={"near": (document,), "far": (document,)},
        extra_training={},
    )
    data = Data(name="files", path=str(folder), probes="other=near")
    assert list(with_probe_sets(corpus, data).probes) == ["near", "far", "other"]
    with pytest.raises(UserError, match="does not use, got 'near'"):
        with_probe_sets(corpus, replace(data, probes="near=near"))
