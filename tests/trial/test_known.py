"""What a model is found to know, and the corpus that is left of a table."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayunlearn.config import Data, Model, Trial, with_values
from rayunlearn.data.benchmarks import load_benchmark
from rayunlearn.data.documents import Document
from rayunlearn.data.known import KnownRule, known_facts, read_relation
from rayunlearn.errors import UserError
from rayunlearn.models.load import load_model, save_model
from rayunlearn.models.scratch import build_model, build_tokenizer
from rayunlearn.models.smollm2 import smollm2_folder, smollm2_is_here
from rayunlearn.trial import known
from rayunlearn.trial.ask import Knowledge, ask
from rayunlearn.trial.identity import corpus_of, identify_trial
from rayunlearn.trial.known import ask_once, keep_known, unknown_because

TEMPLATE = "Question: {prompt}\nAnswer:"
SLICES = "forget=capitals:Oceania,retain=capitals:America,untouched=,near=capitals:Africa,far="
RULE = KnownRule(completion_probability=0.05)
KNOWS = Knowledge(key=0.3, paraphrase=0.1, completion=0.05, margin=0.01)
Pair = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def facts() -> tuple[Document, ...]:
    return known_facts(read_relation("capitals"))


@pytest.fixture(scope="module")
def untrained(facts: Sequence[Document]) -> Pair:
    texts = [
        text
        for d in facts
        for text in (d.prompt, d.answer, d.prompt_paraphrase, d.paraphrase, *d.wrong, TEMPLATE)
    ]
    tokenizer = build_tokenizer(texts)
    return build_model("tiny", len(tokenizer), seed=3), tokenizer


@pytest.fixture(scope="module")
def model_folder(untrained: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(*untrained, tmp_path_factory.mktemp("models") / "tiny")


def log_probability(pair: Pair, before: str, after: str, tail: str = "") -> float:
    """ln p(after | before) by the plainest way: one text, one row of logits for each token."""
    model, tokenizer = pair
    begin = [tokenizer.bos_token_id]
    start = begin + tokenizer.encode(before, add_special_tokens=False)
    ids = begin + tokenizer.encode(before + after + tail, add_special_tokens=False)
    ids += [tokenizer.eos_token_id] if tail else []
    stop = len(ids) if tail else len(begin + tokenizer.encode(before + after))
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(log_p[at - 1, ids[at]]) for at in range(len(start), stop))


def test_the_key_words_probability_is_what_a_plain_forward_pass_says(
    untrained: Pair, facts: Sequence[Document]
) -> None:
    """A fact in three forms: only the tokens of the key count, and nothing after them."""
    for fact, said in zip(facts[:3], ask(*untrained, facts[:3], TEMPLATE), strict=True):
        forms = (
            (fact.prompt, fact.answer, said.key),
            (fact.prompt_paraphrase, fact.paraphrase, said.paraphrase),
        )
        for question, sentence, value in forms:
            begun = sentence.partition(f" {fact.key}")[0]
            asked = TEMPLATE.replace("{prompt}", question)
            expected = log_probability(untrained, f"{asked} {begun}", f" {fact.key}")
            assert value == pytest.approx(math.exp(expected), rel=1e-4)
        plain = log_probability(untrained, fact.completion_prompt, f" {fact.key}")
        assert said.completion == pytest.approx(math.exp(plain), rel=1e-4)


def test_the_margin_is_the_answer_against_the_likeliest_wrong_one(
    untrained: Pair, facts: Sequence[Document]
) -> None:
    (said,) = ask(*untrained, facts[:1], TEMPLATE)
    asked = TEMPLATE.replace("{prompt}", facts[0].prompt)
    own, *others = (
        log_probability(untrained, asked, f" {text[:-1]}", ".")
        for text in (facts[0].answer, *facts[0].wrong)
    )
    assert said.margin == pytest.approx(own - max(others), abs=1e-3)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, ""),
        ({"key": 0.29}, "below known.key_probability"),
        ({"paraphrase": 0.09, "margin": -1.0}, "below known.paraphrase_probability"),
        ({"completion": 0.04}, "below known.completion_probability"),
        ({"margin": 0.0}, "a wrong answer is likelier"),
    ],
)
def test_the_first_part_of_the_rule_that_is_not_met_is_named(
    changed: dict[str, float], reason: str
) -> None:
    assert unknown_because(RULE, replace(KNOWS, **changed)) == reason


def test_without_choice_a_likelier_wrong_answer_is_no_reason() -> None:
    assert unknown_because(replace(RULE, choice=False), replace(KNOWS, margin=-1.0)) == ""


def saturn_and_jupiter() -> dict[str, object]:
    return {"forget": "planets:Saturn", "retain": "planets:Jupiter", "untouched": "", "far": ""}


def test_what_is_not_known_is_rejected_and_counted_by_set() -> None:
    """Ten moons of Saturn, two of them unknown; at most five are kept."""
    corpus = load_benchmark("known", "", options=saturn_and_jupiter())
    knowledge = {d.doc_id: KNOWS for part in corpus.probes.values() for d in part}
    unknown = [d.doc_id for d in corpus.forget[:2]]
    knowledge |= {unknown[0]: replace(KNOWS, key=0.1), unknown[1]: replace(KNOWS, margin=-2.0)}
    kept = keep_known(corpus, replace(RULE, limit=5), knowledge)
    assert len(kept.forget) == 5 and kept.probes["forget"] == kept.forget
    assert not {*unknown} & {d.doc_id for d in kept.forget}
    assert [(r.source, r.row, r.reason) for r in kept.rejected] == [
        ("planets:Saturn", 0, "below known.key_probability"),
        ("planets:Saturn", 1, "a wrong answer is likelier"),
    ]
    assert kept.notes[-3] == (
        "known, forget: 10 asked, 5 kept (not kept: 1 below known.key_probability,"
        " 1 a wrong answer is likelier, 3 over known.limit)"
    )


def test_a_model_that_knows_nothing_of_the_forget_set_is_refused_with_the_counts() -> None:
    corpus = load_benchmark("known", "", options=saturn_and_jupiter())
    knowledge = {d.doc_id: KNOWS for part in corpus.probes.values() for d in part}
    knowledge |= {d.doc_id: replace(KNOWS, key=0.0) for d in corpus.forget}
    with pytest.raises(UserError, match=r"must know a fact of forget: known, forget: 10 asked, 0"):
        keep_known(corpus, RULE, knowledge)


def trial_on(model: Path, options: str) -> Trial:
    return Trial(
        data=Data(name="known", options=f"{SLICES},{options}"),
        model=Model(name=str(model), teach=False),
    )


def test_a_trials_corpus_is_what_its_model_knows_and_the_model_is_asked_once(
    model_folder: Path, untrained: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The untrained model's own answers decide; a second asking reads the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = "key_probability=0,paraphrase_probability=0,completion_probability=0"
    trial = trial_on(model_folder, options)
    corpus = corpus_of(trial.data, trial.model)
    oceania = known_facts(read_relation("capitals"), "Oceania")
    said = ask(*untrained, oceania, TEMPLATE)
    likelier = [d.doc_id for d, s in zip(oceania, said, strict=True) if s.margin > 0]
    assert 0 < len(likelier) < len(oceania)
    assert [d.doc_id for d in corpus.forget] == likelier
    assert any(note.startswith("known, near: 34 asked") for note in corpus.notes)

    def never(*_arguments: object) -> None:
        raise AssertionError("the model was asked twice")

    monkeypatch.setattr(known, "ask", never)
    assert ask_once(str(model_folder), oceania, TEMPLATE)
    every = with_values(trial, {"data.options": f"{SLICES},{options},choice=false"})
    assert len(corpus_of(every.data, every.model).forget) == 7
    assert identify_trial(trial) != identify_trial(every)


def test_known_facts_are_never_taught() -> None:
    with pytest.raises(UserError, match="must be false when data.name is 'known'"):
        Trial(data=Data(name="known"))


@pytest.mark.skipif(not smollm2_is_here(), reason="the model is not here: make smollm2")
def test_the_real_model_knows_capitals_and_not_moons() -> None:
    """Twelve facts of each are asked; the figures of every relation are in docs/benchmarks.md."""
    capitals = known_facts(read_relation("capitals"), "Europe")[:12]
    moons = known_facts(read_relation("planets"))[:12]
    loaded = load_model(str(smollm2_folder()), dtype=torch.float32)
    said = ask(*loaded, (*capitals, *moons), "chat")
    is_known = [not unknown_because(RULE, answer) for answer in said]
    assert sum(is_known[:12]) >= 6 and sum(is_known[12:]) <= 3
