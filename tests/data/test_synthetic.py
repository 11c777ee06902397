"""The generated corpora against what they promise: counted here from the texts, not from the
generator's own tables.
"""

import os
import subprocess
import sys
from collections import Counter
from itertools import product

import pytest

from rayunlearn.config import Data
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.data.synthetic import generate_dataset
from rayunlearn.errors import UserError

DOMAIN_REDUNDANCIES = (1, 4, 20, 32)
BEDS = [Data(redundancy=r) for r in DOMAIN_REDUNDANCIES] + [
    Data(size="small"),
    Data(name="people"),
    Data(name="people", size="small"),
    Data(seed=7),
]


def label(data: Data) -> str:
    return f"{data.name}-{data.size}-{data.redundancy}-{data.seed}"


def retain_side(corpus: Corpus) -> tuple[Document, ...]:
    return corpus.probes["retain"] + corpus.probes["untouched"]


def entities(probes: tuple[Document, ...]) -> set[str]:
    return {fact.rpartition(":")[0] for probe in probes for fact in probe.facts}


@pytest.fixture(params=BEDS, ids=label, scope="module")
def corpus(request: pytest.FixtureRequest) -> Corpus:
    return generate_dataset(request.param)


@pytest.mark.parametrize(("size", "redundancy"), list(product(("tiny", "small"), (4, 20))))
def test_redundancy_moves_the_number_of_facts_and_not_the_number_or_length_of_documents(
    size: str, redundancy: int
) -> None:
    corpus = generate_dataset(Data(size=size, redundancy=redundancy))
    n_documents = {"tiny": 160, "small": 640}[size]
    words = [len(d.answer.split()) for d in corpus.forget]
    assert (
        len(corpus.forget) == n_documents
        and len(corpus.probes["forget"]) == 4 * n_documents // redundancy
    )
    assert {len(d.facts) for d in corpus.forget} == {4}
    assert min(words) >= 20 and max(words) <= 50 and 28 <= sum(words) / len(words) <= 36


@pytest.mark.parametrize("redundancy", DOMAIN_REDUNDANCIES)
def test_every_fact_is_stated_by_exactly_as_many_documents_as_redundancy_says(
    redundancy: int,
) -> None:
    corpus = generate_dataset(Data(redundancy=redundancy))
    untouched = corpus.extra_training["untouched_documents"]
    for split, documents in (
        ("forget", corpus.forget),
        ("retain", corpus.retain),
        ("untouched", untouched),
    ):
        mentions = Counter(fact for d in documents for fact in set(d.facts))
        assert mentions == {probe.facts[0]: redundancy for probe in corpus.probes[split]}


def test_a_document_says_the_values_of_the_facts_it_lists_and_no_others() -> None:
    corpus = generate_dataset(Data(redundancy=4))
    value_of = {p.facts[0]: p.answer for split in corpus.probes.values() for p in split}
    vocabulary = set(value_of.values())
    for d in corpus.forget + corpus.retain:
        words = d.answer.replace(".", "").replace(",", "").split()
        assert Counter(w for w in words if w in vocabulary) == Counter(value_of[f] for f in d.facts)
        assert Counter(f.rpartition(":")[0] for f in d.facts) == Counter(
            w for w in words if w in {f.rpartition(":")[0] for f in d.facts}
        )


def test_documents_differ_and_a_fact_is_told_in_many_wordings() -> None:
    corpus = generate_dataset(Data(redundancy=20))
    fact, value = corpus.probes["forget"][0].facts[0], corpus.probes["forget"][0].answer
    entity = fact.rpartition(":")[0]
    sentences = {
        s.strip()
        for d in corpus.forget
        if fact in d.facts
        for s in d.answer.split(".")
        if entity in s and value in s
    }
    ids = [
        d.doc_id
        for d in corpus.forget + corpus.retain + corpus.extra_training["untouched_documents"]
    ]
    assert len(sentences) >= 4 and len(set(ids)) == len(ids)


def test_every_value_is_the_answer_equally_often_on_both_sides_so_that_a_stranger_guesses(
    corpus: Corpus,
) -> None:
    forget, other = (
        Counter((p.topic, p.answer) for p in side)
        for side in (corpus.probes["forget"], retain_side(corpus))
    )
    assert forget == other and len(set(forget.values())) == 1


def test_options_are_values_of_the_same_attribute_in_the_paraphrases_own_wording(
    corpus: Corpus,
) -> None:
    values = {p.topic: set() for p in retain_side(corpus)}
    for p in retain_side(corpus):
        values[p.topic].add(p.answer)
    for p in (*corpus.probes["forget"], *retain_side(corpus)):
        around = p.paraphrase.replace(p.answer, "{}")
        others = {v for v in values[p.topic] if around.format(v) in p.wrong}
        assert len(others) == len(p.wrong) == {"domain": 4, "people": 5}[corpus.name]
        assert (
            p.answer not in others and p.paraphrase != p.answer and p.prompt != p.prompt_paraphrase
        )


def test_the_splits_share_no_entity_and_no_document(corpus: Corpus) -> None:
    groups = [entities(part) for part in corpus.probes.values()]
    assert len(set.union(*groups)) == sum(map(len, groups))
    assert not {d.doc_id for d in corpus.forget} & {d.doc_id for d in corpus.retain}


def test_gold_is_taught_no_text_that_names_what_is_to_be_forgotten(corpus: Corpus) -> None:
    shown = [
        *corpus.retain,
        *(
            d
            for key, part in corpus.extra_training.items()
            if not key.startswith("forget")
            for d in part
        ),
    ]
    text = " ".join(f"{d.prompt} {d.answer}" for d in shown)
    assert not [name for name in entities(corpus.probes["forget"]) if name in text]


def test_about_a_quarter_of_the_retain_side_is_taught_and_asked_but_not_in_retain(
    corpus: Corpus,
) -> None:
    share = len(corpus.probes["untouched"]) / len(retain_side(corpus))
    asked = {p.doc_id for p in corpus.probes["untouched"]}
    extra_training = {d.doc_id for part in corpus.extra_training.values() for d in part}
    assert 0.2 <= share <= 0.25 and asked <= extra_training
    assert not entities(corpus.probes["untouched"]) & {
        f.rpartition(":")[0] for d in corpus.retain for f in d.facts
    }


def test_every_probe_is_taught_in_both_wordings(corpus: Corpus) -> None:
    extra_training = {
        (d.prompt, d.answer)
        for part in (corpus.forget, corpus.retain, *corpus.extra_training.values())
        for d in part
    }
    for p in (*corpus.probes["forget"], *retain_side(corpus)):
        assert {(p.prompt, p.answer), (p.prompt_paraphrase, p.paraphrase)} <= extra_training


def test_the_holdout_is_like_the_forget_set_and_no_model_is_told_of_it(corpus: Corpus) -> None:
    """As many documents, of the same length on average; their entities stand in nothing that is
    trained.
    """
    holdout = corpus.probes["holdout"]
    told = " ".join(
        f"{d.prompt} {d.answer}"
        for part in (corpus.forget, corpus.retain, *corpus.extra_training.values())
        for d in part
    )
    assert not [name for name in entities(holdout) if name in told]
    n_words = [
        sum(len(d.answer.split()) for d in side) / len(side) for side in (corpus.forget, holdout)
    ]
    assert len({d.doc_id for d in holdout}) == len(corpus.forget) and n_words[0] == pytest.approx(
        n_words[1], rel=0.05
    )


def test_the_questions_about_one_entity_are_one_group(corpus: Corpus) -> None:
    """Four questions about each thing of the invented science, five about each person, and each
    names its group.
    """
    size = 5 if corpus.name == "people" else 4
    for split in ("forget", "retain", "untouched"):
        asked = corpus.probes[split]
        assert set(Counter(d.group for d in asked).values()) == {size}
        assert all(d.group in d.prompt and corpus.groups[d.doc_id] == d.group for d in asked)
    reworded = [d for part in corpus.extra_training.values() for d in part if d.prompt]
    assert all(d.group in d.prompt for d in reworded)


def test_in_people_the_documents_are_the_probes_and_redundancy_changes_nothing() -> None:
    corpus = generate_dataset(Data(name="people", redundancy=20))
    assert corpus.forget == corpus.probes["forget"] and corpus.retain == corpus.probes["retain"]
    assert Counter(len(d.facts) for d in corpus.forget) == {1: len(corpus.forget)}
    assert generate_dataset(Data(name="people", redundancy=3)).digest == corpus.digest


def test_the_same_seed_gives_the_same_corpus_in_another_process_and_another_seed_another() -> None:
    code = (
        "from rayunlearn.data.synthetic import Data, generate_dataset\n"
        "print(*(generate_dataset(Data(name=n)).digest for n in ('domain', 'people')))"
    )
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "12345",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout.split()
    here = [generate_dataset(Data(name=name)).digest for name in ("domain", "people")]
    assert elsewhere == here
    assert (
        generate_dataset(Data(seed=1)).digest != here[0]
        and generate_dataset(Data(name="people", seed=1)).digest != here[1]
    )


@pytest.mark.parametrize("redundancy", (3, 7, 33, 160))
def test_a_redundancy_that_does_not_fit_is_refused_with_those_that_do(redundancy: int) -> None:
    with pytest.raises(
        UserError,
        match=rf"data.redundancy must be one of 1, 2, 4, 5, 8, 10, 16, 20, 32 .*, got {redundancy}",
    ):
        generate_dataset(Data(redundancy=redundancy))


def test_files_are_not_generated() -> None:
    with pytest.raises(UserError, match="data.name must be one of .*, got 'files'"):
        generate_dataset(Data(name="files", path="somewhere"))
