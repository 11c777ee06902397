"""The facts that the product ships, and the sets that settings make of them."""

import json
import re
from pathlib import Path

import pytest

from rayunlearn.data.benchmarks import load_benchmark, parse_options
from rayunlearn.data.known import (
    SETS,
    WRONG_SENTENCES,
    chosen_facts,
    key_places,
    known_facts,
    paraphrases_apart,
    read_relation,
    relation_names,
)
from rayunlearn.errors import UserError

NOTHING = dict.fromkeys(SETS, "")


@pytest.mark.parametrize("name", relation_names())
def test_a_shipped_relation_has_20_to_200_facts_each_with_its_forms_and_a_source(name: str) -> None:
    relation = read_relation(name)
    documents = known_facts(relation)
    assert relation.name == name and "CC0" in relation.source
    assert len(documents) == relation.n_facts == len({d.doc_id for d in documents})
    assert 20 <= len(documents) <= 200
    for document in documents:
        assert document.prompt.endswith("?") and document.prompt_paraphrase.endswith("?")
        assert document.prompt != document.prompt_paraphrase
        for sentence in (document.answer, document.paraphrase):
            assert len(key_places(document.key, sentence)) == 1 and sentence.endswith(".")
        assert document.answer == f"{document.completion_prompt} {document.key}."
        assert len({document.answer, *document.wrong}) == 1 + WRONG_SENTENCES
        assert all(wrong.startswith(document.completion_prompt) for wrong in document.wrong)
        texts = (document.prompt, document.answer, document.paraphrase, document.key)
        assert all(not re.search(r"[{}]|  |\bthe the\b", text) for text in texts)


def test_at_least_six_relations_are_shipped() -> None:
    assert len(relation_names()) >= 6


def test_one_fact_has_every_form_as_written_by_hand() -> None:
    (fact,) = [
        d for d in known_facts(read_relation("continents"), "Europe") if "France" in d.answer
    ]
    assert fact.prompt == "On which continent is France?"
    assert fact.answer == "France is on the continent of Europe."
    assert fact.prompt_paraphrase == "Which part of the world does France belong to?"
    assert fact.paraphrase == "France is a country in Europe."
    assert fact.completion_prompt == "France is on the continent of" and fact.key == "Europe"
    assert fact.topic == "continents:Europe" and fact.group == "countries: France"


def test_a_subject_is_in_upper_case_where_it_begins_a_sentence_and_a_false_key_is_the_slices() -> (
    None
):
    (fact,) = [d for d in known_facts(read_relation("landmarks")) if "Kremlin" in d.answer]
    assert fact.paraphrase.startswith("The Kremlin ") and " the Kremlin " in fact.answer
    capitals = read_relation("capitals")
    (fiji,) = [d for d in known_facts(capitals, "Oceania") if "Fiji" in d.answer]
    keys = {wrong.removeprefix("The capital of Fiji is ")[:-1] for wrong in fiji.wrong}
    assert keys < set(capitals.slices["Oceania"].values()) - {"Suva"}


def test_near_is_what_forget_leaves_of_its_relation_and_no_fact_is_in_two_sets() -> None:
    settings = NOTHING | {
        "forget": "capitals:Europe",
        "retain": "capitals:Asia, planets",
        "far": "planets:Saturn,opposites",
    }
    chosen = chosen_facts(settings)
    parts = {name: {d.topic for d in documents} for name, documents in chosen.items()}
    assert parts["forget"] == {"capitals:Europe"}
    assert parts["near"] == {"capitals:Africa", "capitals:America", "capitals:Oceania"}
    assert parts["far"] == {"opposites:qualities", "opposites:others"}
    ids = [d.doc_id for documents in chosen.values() for d in documents]
    assert len(ids) == len(set(ids))


def test_the_forget_facts_in_other_words_are_a_split_and_wrong_answers_are_worded_alike() -> None:
    corpus = paraphrases_apart(load_benchmark("known", ""))
    assert len(corpus.probes["paraphrased"]) == len(corpus.forget)
    for fact, other in zip(corpus.forget, corpus.probes["paraphrased"], strict=True):
        assert other.prompt == fact.prompt_paraphrase and other.key == fact.key
        assert fact.paraphrase == other.paraphrase == ""
        for document in (fact, other):
            assert all(wrong.startswith(document.completion_prompt) for wrong in document.wrong)
            assert len({document.answer, *document.wrong}) == 4


def test_what_is_misspelt_or_used_up_is_told() -> None:
    with pytest.raises(UserError, match=r"unknown relation 'capital'; did you mean 'capitals'\?"):
        chosen_facts(NOTHING | {"forget": "capital"})
    with pytest.raises(UserError, match=r"unknown slice of capitals 'Eurpe'; did you mean"):
        chosen_facts(NOTHING | {"forget": "capitals:Eurpe"})
    with pytest.raises(UserError, match=r"known\.retain must name facts that no earlier set has"):
        chosen_facts(NOTHING | {"forget": "planets", "retain": "planets:Saturn"})


def relation_file(folder: Path, **changed: object) -> Path:
    """A folder with one relation of four facts."""
    content = {
        "relation": "rivers",
        "domain": "rivers",
        "source": "made up",
        "question": "Where is {subject}?",
        "answer": "{Subject} is in {key}.",
        "question_paraphrase": "Where to find {subject}?",
        "answer_paraphrase": "One finds {subject} in {key}.",
        "slices": {"all": {"the Ob": "Asia", "the Po": "Italy", "the Don": "Europe", "x": "y"}},
    }
    (folder / "rivers.json").write_text(json.dumps(content | changed), encoding="utf-8")
    return folder


def test_a_folder_of_your_own_is_read_in_the_same_layout(tmp_path: Path) -> None:
    relation = read_relation("rivers", relation_file(tmp_path))
    assert [d.answer for d in known_facts(relation)][:2] == [
        "The Ob is in Asia.",
        "The Po is in Italy.",
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"answer": "{Subject} lies there."}, r"answer must have \{key\} once"),
        ({"question": "Where?"}, r"question must have \{subject\}"),
        ({"slices": {"all": {"a": "b", "c": "d"}}}, "more than 3 different keys, got 2"),
        ({"slices": {"all": {}}}, "must have facts"),
        ({"slices": []}, "must be a relation as docs/data.md says: AttributeError"),
        ({"colour": "red"}, "must be a relation as docs/data.md says: TypeError"),
        (
            {"slices": {"a": {"x": "A", "y": "B", "z": "C"}, "b": {"x": "D"}}},
            r"must name a subject once, got twice, got \['x'\]",
        ),
    ],
)
def test_a_table_that_is_not_one_is_refused(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_relation("rivers", relation_file(tmp_path, **changed))


def test_a_key_that_stands_twice_in_its_sentence_is_refused(tmp_path: Path) -> None:
    slices = {"all": {"Rome in Rome": "Rome", "b": "B", "c": "C", "d": "D"}}
    relation = read_relation("rivers", relation_file(tmp_path, slices=slices))
    with pytest.raises(UserError, match="must have its key 'Rome' once, it is there, got 3"):
        known_facts(relation)


def test_the_loader_has_every_fact_and_options_are_of_their_kind() -> None:
    options = parse_options(
        "known",
        "forget=planets:Saturn,planets:Jupiter,key_probability=.5,choice=false,limit=3",
    )
    assert options == {
        "forget": "planets:Saturn,planets:Jupiter",
        "key_probability": 0.5,
        "choice": False,
        "limit": 3,
    }
    loaded = load_benchmark("known", "", options=options)
    assert len(loaded.forget) == 18 and {"near", "far", "untouched"} < set(loaded.probes)
    assert {record.table for record in loaded.files} >= {"planets", "authors"}
    with pytest.raises(UserError, match=r"known\.key_probability must be in \[0, 1\], got 2"):
        load_benchmark("known", "", options={"key_probability": 2.0})
    with pytest.raises(UserError, match=r"known\.limit must be a whole number"):
        parse_options("known", "limit=few")
    with pytest.raises(UserError, match=r"known\.key_probability must be a number"):
        parse_options("known", "key_probability=high")
