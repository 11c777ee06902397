"""Second names, multi-hop and combined questions: what each asks, by hand and for all documents."""

import json
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from rayunlearn.attacks.base import AttackRow
from rayunlearn.attacks.linked_questions import (
    LINKED_QUESTIONS,
    aliases,
    combined,
    combined_same_side,
    multi_hop,
    multi_hop_exchanged,
)
from rayunlearn.attacks.panels import PANELS
from rayunlearn.attacks.prompt_text import PromptNotAllowedError
from rayunlearn.attacks.table import ATTACKS
from rayunlearn.config import Data, Trial, Value, with_values
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.data.synthetic import generate_dataset
from rayunlearn.data.tokenize import encode_documents
from rayunlearn.errors import UserError
from rayunlearn.models.load import save_model
from rayunlearn.storage.run import open_run
from rayunlearn.train.teach import starting_point, training_documents
from rayunlearn.trial.attack import run_attack_or_trial
from rayunlearn.trial.workspace import Workspace, validate_trial

TEMPLATE = "Question: {prompt}\nAnswer:"
NAMES = ("domain", "people")
CONTROLS = {name: row.companion for name, row in LINKED_QUESTIONS.items() if row.companion}


@lru_cache
def linked(name: str) -> Corpus:
    return generate_dataset(Data(name=name, linked=True))


def apply(
    row: AttackRow, document: Document, corpus: Corpus, seed: int = 0, **more: Any
) -> Document:
    given: dict[str, Any] = {
        "document": document,
        "forget_probes": corpus.probes["forget"],
        "retain_probes": corpus.probes["retain"],
        "template": TEMPLATE,
        "rng": random.Random(f"{seed} {document.doc_id}"),
        "texts": corpus.rephrasings,
        "chat": None,
    } | more
    changed = row.function(**{name: given[name] for name in row.inputs})
    assert isinstance(changed, Document)
    return changed


# ---- the dataset


@pytest.mark.parametrize("name", NAMES)
def test_links_change_neither_documents_nor_questions(name: str) -> None:
    corpus, plain = linked(name), generate_dataset(Data(name=name))
    assert (corpus.forget, corpus.retain, corpus.probes) == (
        plain.forget,
        plain.retain,
        plain.probes,
    )
    assert corpus.digest != plain.digest and not plain.rephrasings
    added = {*corpus.extra_training} - {*plain.extra_training}
    assert added == {"forget_linked", "retain_linked", "untouched_linked"}


@pytest.mark.parametrize("name", NAMES)
def test_a_chain_ends_where_the_question_does_and_gold_learns_none_of_the_forget_side(
    name: str,
) -> None:
    """Followed by hand: the link's question of the named entity is answered by the question's
    subject, and its second name by nobody else.
    """
    corpus = linked(name)
    learned = {d.prompt: d.answer for d in corpus.extra_training["forget_linked"]}
    links = {p: a for p, a in learned.items() if p.startswith(("Which neigh", "Who is the best"))}
    assert sorted(links.values()) == sorted({d.group for d in corpus.probes["forget"]})
    for probe in corpus.probes["forget"]:
        texts = corpus.rephrasings[probe.doc_id]
        assert set(texts) == {"aliases", "multi_hop"}
        assert not any(probe.group in text for text in texts.values())
        (alias,) = [a for p, a in learned.items() if probe.group in p and "other name" in p]
        assert texts["aliases"] == probe.prompt.replace(probe.group, alias)
        (start,) = [p.rstrip("?") for p, a in links.items() if a == probe.group]
        assert start.split(" of ")[-1].split(" does ")[-1].split(" have")[0] in texts["multi_hop"]
        assert learned[texts["aliases"]] == learned[texts["multi_hop"]] == probe.answer
    of_gold = {d.prompt for d in training_documents(corpus, "gold")}
    assert not of_gold & set(learned) and set(learned) <= {
        d.prompt for d in training_documents(corpus, "base")
    }


def test_links_are_for_generated_data_and_need_names_that_are_left() -> None:
    with pytest.raises(UserError, match="data.linked must be false when data.name is no synthetic"):
        Data(name="files", path="x", linked=True)
    with pytest.raises(UserError, match="data.linked needs a second name for each of"):
        generate_dataset(Data(size="small", redundancy=2, linked=True))


# ---- the attacks


@pytest.mark.parametrize("bed", NAMES)
@pytest.mark.parametrize("name", LINKED_QUESTIONS)
def test_no_attack_brings_an_answer_word_and_every_word_is_in_the_vocabulary(
    name: str, bed: str
) -> None:
    corpus = linked(bed)
    tokenizer = starting_point(Trial(data=Data(name=bed, linked=True)), corpus)[1]
    documents = [*corpus.probes["forget"], *corpus.probes["retain"]]
    changed = [apply(LINKED_QUESTIONS[name], document, corpus) for document in documents]
    for before, after in zip(documents, changed, strict=True):
        assert before.answer.lower() not in after.prompt.lower().replace("?", " ").split()
        assert after.prompt != before.prompt
        assert (after.answer, after.wrong) == (before.answer, before.wrong)
    for sequence in encode_documents(changed, tokenizer, TEMPLATE, 1024):
        assert tokenizer.unk_token_id not in sequence.ids, tokenizer.decode(sequence.ids)


def test_a_combined_query_by_hand() -> None:
    """The asked question is the second, and the first one's answer stands before its own."""
    asked, kept = Document(prompt="q2?", answer="z"), Document(prompt="q1?", answer="a1")
    draw = random.Random(0)
    mixed = combined(asked, [asked], [kept], {}, TEMPLATE, draw)
    whole = TEMPLATE.replace("{prompt}", mixed.prompt)
    assert whole == "Question: q1? q2?\nAnswer: a1\nAnswer:"
    assert combined(kept, [asked], [kept], {}, TEMPLATE, draw).prompt.startswith("q2? q1?")
    in_chat = combined(asked, [asked], [kept], {}, "chat", draw).prompt
    assert in_chat == "q1? q2?\nAnswer: a1\nAnswer:"
    own = Document(prompt="q3?", answer="a3")
    assert combined_same_side(asked, [asked, own], [kept], TEMPLATE, draw).prompt.startswith("q3?")
    texts = {asked.doc_id: {"combined": "Tell me q2 and q1?"}}
    assert combined(asked, [asked], [kept], texts, TEMPLATE, draw).prompt == "Tell me q2 and q1?"
    told = Document(prompt="q4?", answer="z")
    with pytest.raises(PromptNotAllowedError, match="holds a word of its answer"):
        combined(asked, [asked], [told], {}, TEMPLATE, draw)


def test_the_controls_ask_by_another_subject_whose_answer_is_another() -> None:
    corpus = linked("domain")
    by_id = {d.doc_id: d for d in corpus.probes["forget"]}
    for name in ("aliases", "multi_hop"):
        texts = {texts[name]: by_id[i] for i, texts in corpus.rephrasings.items() if i in by_id}
        for document in corpus.probes["forget"]:
            changed = apply(LINKED_QUESTIONS[CONTROLS[name]], document, corpus)
            subject = texts[changed.prompt]
            assert subject.topic == document.topic and subject.group != document.group
            assert subject.answer != document.answer
    lonely = Document(prompt="q?", answer="a", topic="t")
    with pytest.raises(PromptNotAllowedError, match="no other question of its topic"):
        multi_hop_exchanged(lonely, [lonely], [], {}, random.Random(0))


def test_what_nobody_says_otherwise_is_refused_and_a_file_s_text_is_asked() -> None:
    document = Document(prompt="Where is Lyon?", answer="France")
    for attack in (aliases, multi_hop):
        with pytest.raises(PromptNotAllowedError, match=f"chat model has .* as {attack.__name__}"):
            attack(document, {}, None)
        texts = {document.doc_id: {attack.__name__: "Where is the city of silk?"}}
        assert attack(document, texts, None).prompt == "Where is the city of silk?"
    leaking = {document.doc_id: {"multi_hop": "Which country is France?"}}
    with pytest.raises(PromptNotAllowedError, match="holds a word of the answer"):
        multi_hop(document, leaking, None)
    said = '{"question": "Where is the city at the meeting of Rhone and Saone?"}'
    asked = multi_hop(document, {}, lambda _messages: said)
    assert asked.prompt == "Where is the city at the meeting of Rhone and Saone?"


def test_each_attack_has_its_control_and_a_panel() -> None:
    assert {"aliases", "multi_hop", "combined"} == set(CONTROLS)
    assert all(control in ATTACKS for control in CONTROLS.values())
    assert [entry.name for entry in PANELS["linked"].entries] == list(CONTROLS)


# ---- a trial


def test_rows_are_the_attack_s_own_and_a_file_goes_over_the_data(
    tmp_path: Path,
) -> None:
    corpus = linked("domain")
    start = Trial(data=Data(linked=True))
    save_model(*starting_point(start, corpus), tmp_path / "base")
    workspace = Workspace(corpus, str(tmp_path / "base"), "", "untaught", tmp_path / "c")
    asked, other = corpus.probes["forget"][0], corpus.probes["untouched"][0]
    row = {"doc_id": asked.doc_id, "condition": "multi_hop", "text": other.prompt}
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(row) + "\n")
    values: dict[str, Value] = {
        "data.linked": True,
        "stage": "base",
        "measure.metrics": "probability,rouge_l_recall",
        "measure.max_new_tokens": 1,
        "attack.name": "multi_hop",
        "attack.file": str(file),
    }
    trial = validate_trial(with_values(Trial(), values))
    assert run_attack_or_trial(trial, workspace, tmp_path / "run", "test", "1") == "complete"
    run = open_run(tmp_path / "run")
    rows = run.examples.collect()
    assert {*rows["attack"]} == {"multi_hop"} and {*rows["split"]} == {"forget", "retain"}
    prompts = {r["doc_id"]: r["prompt"] for r in run.generations.collect().iter_rows(named=True)}
    assert prompts.pop(asked.doc_id) == f"Question: {other.prompt}\nAnswer:"
    for doc_id, prompt in prompts.items():
        assert corpus.rephrasings[doc_id]["multi_hop"] in prompt
