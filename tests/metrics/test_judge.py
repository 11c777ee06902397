"""A judge of what was written: forced, made by hand, and a chat model that cannot be asked."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rayunlearn.config import Judge, Trial, with_values
from rayunlearn.data.documents import Document
from rayunlearn.data.multiple_choice import LETTERS
from rayunlearn.errors import UserError
from rayunlearn.metrics.evaluate import chosen_metrics, encode_probes, evaluate_probes, measure
from rayunlearn.metrics.forward_passes import EvaluationTask, GenerationSettings
from rayunlearn.metrics.judge import VERDICTS, AnswerJudge, GivenAnswer, Verdict, judge_messages
from rayunlearn.metrics.judge_pass import NO_LETTERS, NO_ROOM, judge_with
from rayunlearn.metrics.table import JUDGED, METRICS
from rayunlearn.models.load import save_model
from rayunlearn.models.scratch import build_model, build_tokenizer
from rayunlearn.registry import check_trial
from rayunlearn.trial.workspace import check_named_models

ANSWER = GivenAnswer("What colour does Zor glow?", "amber", "It glows in amber light.")
# the template ends in the mark of the verdict that stands at A, which is all the model looks at
MARKS = ("!", "?", "%", "&")
TEMPLATE = (
    "{{ messages[-1].content }}"
    "{% if 'A. It states the same' in messages[-1].content %} !"
    "{% elif 'A. It refuses' in messages[-1].content %} ?"
    "{% elif 'A. It is empty' in messages[-1].content %} %"
    "{% else %} &{% endif %}"
)
NAMES = ",".join(JUDGED)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = build_tokenizer([f" {mark}{letter}" for mark in MARKS for letter in LETTERS[:4]])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def forced(
    tokenizer: PreTrainedTokenizerBase, choice: int | None, positions: int = 512
) -> PreTrainedModel:
    """A Llama whose next token follows from the last one alone: the letter at which verdict
    `choice` stands, 5 above the others; None: always A.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "norm" not in name:
                weights.zero_()
        for first, mark in enumerate(MARKS):
            letter = LETTERS[0 if choice is None else (choice - first) % 4]
            (mark_id,) = tokenizer.encode(f" {mark}")
            (letter_id,) = tokenizer.encode(letter)
            model.get_input_embeddings().weight[mark_id, first] = 1
            # the norm makes the one-hot state sqrt(8) long
            model.get_output_embeddings().weight[letter_id, first] = 5 / 8**0.5
    return model


@pytest.mark.parametrize("choice", range(4))
def test_the_verdict_is_the_option_that_the_judge_s_probabilities_favour_at_every_place(
    tokenizer: PreTrainedTokenizerBase, choice: int
) -> None:
    """Its logit is 5 and the others' 0, at whatever letter: e^5 / (e^5 + 3) of the probability."""
    (verdict,) = judge_with(forced(tokenizer, choice), tokenizer)([ANSWER])
    favoured = torch.tensor(5.0).exp().item()
    expected = [1 / (favoured + 3)] * 4
    expected[choice] = favoured / (favoured + 3)
    assert verdict.probabilities == pytest.approx(expected, rel=1e-4)
    assert verdict.words() == list(VERDICTS)[choice] and not verdict.reason


def test_a_judge_that_always_says_a_has_no_verdict(tokenizer: PreTrainedTokenizerBase) -> None:
    """Each verdict stands at A once, so all four share what A is given: a letter is no verdict."""
    (verdict,) = judge_with(forced(tokenizer, None), tokenizer)([ANSWER])
    assert verdict.probabilities == pytest.approx([0.25] * 4)
    shares = [METRICS[name].function(torch.tensor([0.25] * 4)) for name in JUDGED]
    assert shares == [0.25] * 4


def test_every_option_stands_once_at_every_letter_and_the_answer_is_quoted() -> None:
    places: dict[str, set[str]] = {name: set() for name in VERDICTS}
    for first in range(4):
        system, user = judge_messages(ANSWER, first)
        assert system["role"] == "system" and ANSWER.answer in user["content"]
        for name, words in VERDICTS.items():
            line = next(line for line in user["content"].split("\n") if words in line)
            places[name].add(line[0])
    assert all(letters == set("ABCD") for letters in places.values())
    empty = judge_messages(GivenAnswer("", "the rest", ""), 0)[1]["content"]
    assert "(empty)" in empty and "(continue the text)" in empty


def test_a_judge_that_cannot_be_asked_says_why(tokenizer: PreTrainedTokenizerBase) -> None:
    small = judge_with(forced(tokenizer, 0, positions=16), tokenizer)([ANSWER])
    assert [(v.probabilities, v.words()) for v in small] == [((), f"not judged: {NO_ROOM}")]
    without = build_tokenizer(["x y z"])
    without.chat_template = TEMPLATE
    model = build_model("tiny", len(without), 0).eval()
    assert judge_with(model, without)([ANSWER])[0].reason == NO_LETTERS
    without.chat_template = None
    with pytest.raises(UserError, match=r"judge\.answers must be a chat model"):
        judge_with(model, without)


def by_hand(answers: Sequence[GivenAnswer]) -> list[Verdict]:
    """A judge of one rule: what it was not asked about `Zor` it does not judge; else the answer is
    wrong, or two verdicts tie.
    """
    return [
        Verdict((), "it is not about Zor")
        if "Zor" not in answer.question
        else Verdict((0.0, 0.0, 0.0, 1.0) if answer.reference == "amber" else (0.4, 0.4, 0.1, 0.1))
        for answer in answers
    ]


def test_metrics_and_texts_have_a_judge_s_verdicts_and_null_where_there_is_none() -> None:
    documents = [
        Document(prompt="What colour does Zor glow?", answer="amber"),
        Document(prompt="What does Zor feed on?", answer="moss"),
        Document(prompt="Where does Kex grow?", answer="caves"),
    ]
    words = build_tokenizer([f"{d.prompt} {d.answer}" for d in documents])
    model = build_model("tiny", len(words), 0).eval()
    probes = encode_probes({"forget": documents}, words, "{prompt}", 64)
    judge: AnswerJudge = by_hand
    task = EvaluationTask(
        model=model,
        probes=probes,
        tokenizer=words,
        writing=GenerationSettings(max_new_tokens=3),
        judge=judge,
    )
    done = measure(task, chosen_metrics(NAMES))
    values = {
        name: [row["value"] for row in done.examples if row["metric"] == name] for name in JUDGED
    }
    assert values == {
        "judged_same_fact": [0, 0.5, None],
        "judged_refused": [0, 0.5, None],
        "judged_gibberish": [0, 0, None],
        "judged_wrong": [1, 0, None],
    }
    assert [row["verdict"] for row in done.generations] == [
        "wrong",
        "same fact or refused",
        "not judged: it is not about Zor",
    ]
    assert {row["metrics"] for row in done.generations} == {NAMES}
    with pytest.raises(UserError, match=r"need a chat model, judge\.answers"):
        evaluate_probes(model, probes, chosen_metrics("judged_wrong"), tokenizer=words)


def test_a_judge_and_its_metrics_need_each_other_before_anything_runs(tmp_path: Path) -> None:
    asked = with_values(Trial(), {"measure.metrics": "probability,judged_refused"})
    with pytest.raises(UserError, match=r"judge\.answers must name a chat model for judged_refus"):
        check_trial(asked)
    with pytest.raises(UserError, match=r"measure\.metrics must name one of judged_same_fact, "):
        check_trial(with_values(Trial(), {"judge.answers": "somewhere"}))
    assert check_trial(with_values(asked, {"judge.answers": "x"})).judge == Judge(answers="x")
    # `all` is what can be measured without a judge
    assert set(METRICS) - set(chosen_metrics("all")) == set(JUDGED)
    mute = build_tokenizer(["x y z"])
    save_model(build_model("tiny", len(mute), 0), mute, tmp_path / "mute")
    judged = with_values(asked, {"judge.answers": str(tmp_path / "mute")})
    with pytest.raises(UserError, match="chat template"):
        check_named_models(judged)
