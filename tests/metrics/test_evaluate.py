"""The passes behind the metrics: each input against its definition, computed the long way, on
random models.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayunlearn.data.documents import Document
from rayunlearn.data.multiple_choice import QUESTION_HEAD, letter_question, true_option_index
from rayunlearn.data.tokenize import Encoded
from rayunlearn.errors import UserError
from rayunlearn.metrics.evaluate import chosen_metrics, encode_probes, evaluate_probes
from rayunlearn.metrics.forward_passes import (
    LETTER_SOURCES,
    EvaluationTask,
    GenerationSettings,
    Probe,
    gather_inputs,
    letter_scores,
    prompt_and_answer,
    spelt_letters,
)
from rayunlearn.metrics.judge import Verdict
from rayunlearn.metrics.table import CHEAP_SOURCES, CURVE_METRICS, METRICS
from rayunlearn.models.forward import blocks
from rayunlearn.models.generate import generate_texts
from rayunlearn.models.packing import padded_passes
from rayunlearn.models.reference import reference_of
from rayunlearn.models.scratch import build_model, build_tokenizer
from tests.tiny_models import CONFIGS, tiny_model
from tests.tokenizer_kinds import CHATS, chat_tokenizer, tokenizer_of

TEMPLATE = "Question: {prompt}\nAnswer:"
KEY_METRICS = [name for name in METRICS if name.startswith(("key_", "wrong_key_", "completion_"))]
DOCUMENTS = [
    Document(
        prompt="Who wrote it?",
        answer="Ada wrote it",
        paraphrase="It was Ada",
        prompt_paraphrase="By whom?",
        wrong=("Bob did", "Cy wrote it", "It was Di"),
    ),
    Document(
        prompt="What colour is the very old house?",
        answer="green",
        wrong=("red", "blue"),
        completion_prompt="the very old house is",
    ),
    Document(answer="A text without any question that goes on for a while"),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    texts = [QUESTION_HEAD, "Question: A. B. C. D.\nAnswer:", "Answer: A B C D"]
    texts += [
        TEMPLATE.replace("{prompt}", p) + f" {a}"
        for d in DOCUMENTS
        for p in (d.prompt, d.prompt_paraphrase)
        for a in (d.answer, d.paraphrase, *d.wrong)
    ]
    texts += [letter_question(d, place) for d in DOCUMENTS[:2] for place in range(3)]
    return build_tokenizer([*texts, DOCUMENTS[2].answer])


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return build_model("tiny", len(tokenizer), seed=4).eval()


@pytest.fixture(scope="module")
def probes(tokenizer: PreTrainedTokenizerBase) -> list[Probe]:
    splits = {"forget": DOCUMENTS[:2], "retain": DOCUMENTS[2:]}
    return encode_probes(splits, tokenizer, TEMPLATE, 64, n_solved=1)


def log_probs(model: PreTrainedModel, sequence: Encoded) -> torch.Tensor:
    """(n, V) of the sequence's labels, from the whole sequence alone."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([sequence.ids])).logits[0].double()
    return logits[sequence.start - 1 : -1].log_softmax(-1)


def labels(sequence: Encoded) -> torch.Tensor:
    return torch.tensor(sequence.ids[sequence.start :])


def test_one_pass_gives_answers_options_and_paraphrases_their_own_scores(
    model: PreTrainedModel, probes: list[Probe]
) -> None:
    found = gather_inputs(EvaluationTask(model=model, probes=probes), CHEAP_SOURCES)
    for probe, inputs in zip(probes, found, strict=True):
        expected = -log_probs(model, probe.answer).gather(1, labels(probe.answer)[:, None])[:, 0]
        assert torch.allclose(torch.as_tensor(inputs["token_nll"]).double(), expected, atol=1e-5)
        assert torch.equal(
            torch.as_tensor(inputs["correct"]),
            log_probs(model, probe.answer).argmax(-1) == labels(probe.answer),
        )
        sums = [
            -float(log_probs(model, o).gather(1, labels(o)[:, None]).sum()) for o in probe.options
        ]
        assert torch.as_tensor(inputs.get("option_nll_sum", [])).tolist() == pytest.approx(
            sums, rel=1e-5
        )
    paraphrased = probes[0].paraphrased
    assert paraphrased is not None
    assert torch.equal(
        torch.as_tensor(found[0]["paraphrase_correct"]),
        log_probs(model, paraphrased).argmax(-1) == labels(paraphrased),
    )
    assert "option_nll" not in found[2] and "paraphrase_correct" not in found[1]


def test_moments_are_mean_and_deviation_of_log_p_under_the_next_token_distribution(
    model: PreTrainedModel, probes: list[Probe]
) -> None:
    found = gather_inputs(EvaluationTask(model=model, probes=probes), frozenset({"moments"}))
    for probe, inputs in zip(probes, found, strict=True):
        log_p = log_probs(model, probe.answer)
        mean = (log_p.exp() * log_p).sum(-1)
        deviation = (log_p.exp() * (log_p - mean[:, None]).square()).sum(-1).sqrt()
        assert torch.allclose(torch.as_tensor(inputs["log_prob_mean"]).double(), mean, atol=1e-4)
        assert torch.allclose(
            torch.as_tensor(inputs["log_prob_deviation"]).double(), deviation, atol=1e-3
        )


def test_distance_from_base_is_the_divergence_of_the_two_models_distributions(
    model: PreTrainedModel, probes: list[Probe]
) -> None:
    other = build_model("tiny", model.config.vocab_size, seed=5).eval()
    base = reference_of(other, [p.answer for p in probes], ("token_nll", "log_probs"), 0)
    found = gather_inputs(
        EvaluationTask(model=model, probes=probes, base=base), frozenset({"base"})
    )
    for probe, inputs in zip(probes, found, strict=True):
        before, after = log_probs(other, probe.answer), log_probs(model, probe.answer)
        expected = functional.kl_div(after, before, log_target=True, reduction="none").sum(-1)
        assert torch.allclose(torch.as_tensor(inputs["kl"]).double(), expected, atol=1e-4)
        assert torch.allclose(
            torch.as_tensor(inputs["base_nll"]).double(),
            -before.gather(1, labels(probe.answer)[:, None])[:, 0],
            atol=1e-4,
        )
    itself = reference_of(model, [p.answer for p in probes], ("token_nll", "log_probs"), 0)
    rows = evaluate_probes(model, probes, {"base_kl": METRICS["base_kl"]}, base=itself)
    assert [row["value"] for row in rows] == pytest.approx([0.0] * 3, abs=1e-6)


def test_texts_are_greedy_continuations_of_the_prompt_or_of_the_first_half(
    model: PreTrainedModel, probes: list[Probe], tokenizer: PreTrainedTokenizerBase
) -> None:
    task = EvaluationTask(
        model=model,
        probes=probes,
        tokenizer=tokenizer,
        writing=GenerationSettings(max_new_tokens=5),
    )
    found = gather_inputs(task, frozenset({"greedy", "words"}))
    assert [inputs["truth"] for inputs in found][:2] == ["Ada wrote it", "green"]
    ids = probes[2].answer.ids
    assert (
        found[2]["truth"]
        == tokenizer.decode(ids[len(ids) // 2 :], skip_special_tokens=True).strip()
    )
    assert found[2]["answer"] == DOCUMENTS[2].answer
    for probe, inputs in zip(probes, found, strict=True):
        prompt, _ = prompt_and_answer(probe)
        text = generate_texts(model, [prompt], ends=((tokenizer.eos_token_id,),), max_new_tokens=5)[
            0
        ]
        assert inputs["generated"] == tokenizer.decode(text, skip_special_tokens=True).strip()
    n = len(probes[1].answer.ids) - probes[1].answer.start - 1
    assert len(tokenizer.encode(str(found[1]["continuation"]), add_special_tokens=False)) <= n == 1


def test_samples_are_the_seed_s_and_differ(
    model: PreTrainedModel, probes: list[Probe], tokenizer: PreTrainedTokenizerBase
) -> None:
    def drawn(seed: int) -> list[object]:
        writing = GenerationSettings(max_new_tokens=5, samples=3, seed=seed)
        task = EvaluationTask(model=model, probes=probes, tokenizer=tokenizer, writing=writing)
        return [inputs["samples"] for inputs in gather_inputs(task, frozenset({"samples"}))]

    assert drawn(0) == drawn(0) != drawn(1)
    assert all(isinstance(s, tuple) and len(set(s)) == 3 for s in drawn(0))


def test_letter_questions_place_the_truth_where_they_say_and_score_it_there(
    model: PreTrainedModel, probes: list[Probe], tokenizer: PreTrainedTokenizerBase
) -> None:
    assert (
        letter_question(DOCUMENTS[1], 1)
        == "What colour is the very old house?\nA. red\nB. green\nC. blue\nAnswer:"
    )
    found = gather_inputs(
        EvaluationTask(model=model, probes=probes, tokenizer=tokenizer), LETTER_SOURCES
    )
    assert found[2] == {} and (found[0]["n_options"], found[1]["n_options"]) == (4, 3)
    spelt = spelt_letters(tokenizer, 4)
    assert spelt is not None and {len(ids) for ids in spelt} == {1} and len(set(spelt)) == 4
    for at in (0, 1):
        text = QUESTION_HEAD + letter_question(DOCUMENTS[at], probes[at].true_letter)
        prompt = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
        assert torch.allclose(
            torch.as_tensor(found[at]["letter_logits"]),
            logits[[ids[0] for ids in spelt[: len(probes[at].options)]]],
            atol=1e-4,
        )
        assert found[at]["true_letter"] == true_option_index(
            DOCUMENTS[at].doc_id, len(probes[at].options)
        )


def test_letters_of_different_lengths_are_ordered_as_their_probabilities(
    model: PreTrainedModel,
) -> None:
    """Letters of one token: the one-pass logits and the summed log-probabilities differ by a
    constant. Of two and one: by hand.
    """
    prompts = [(1, 5, 6), (1, 7)]
    alike = letter_scores(model, prompts, [(8,), (9,), (10,)])
    mixed = letter_scores(model, prompts, [(8,), (9,), (10, 11)])
    for prompt, logits, sums in zip(prompts, alike, mixed, strict=True):
        assert torch.allclose((logits - sums)[:2], (logits - sums)[0].expand(2), atol=1e-4)
        first = log_probs(model, Encoded("", (*prompt, 10, 11), len(prompt)))
        assert float(sums[2]) == pytest.approx(float(first[0, 10] + first[1, 11]), abs=1e-4)


def test_shots_of_a_question_s_topic_stand_before_it(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    document = Document(
        prompt="What colour is the very old house?", answer="green", wrong=("red",), topic="houses"
    )
    asked = encode_probes({"forget": [document]}, tokenizer, TEMPLATE, 64, {document.doc_id: 0})

    def logits(shots: dict[str, str]) -> torch.Tensor:
        task = EvaluationTask(
            model=model, probes=asked, tokenizer=tokenizer, writing=GenerationSettings(shots=shots)
        )
        return torch.as_tensor(gather_inputs(task, frozenset({"letters"}))[0]["letter_logits"])

    assert not torch.allclose(logits({"houses": "red. Answer: A\n\n"}), logits({}))
    assert torch.equal(logits({"other": "red. Answer: A\n\n"}), logits({}))


def test_a_split_can_have_its_own_template(tokenizer: PreTrainedTokenizerBase) -> None:
    document = Document(prompt="Who wrote it?", answer="Ada wrote it")
    asked, continued = encode_probes(
        {"forget": [document], "verbatim": [document]},
        tokenizer,
        TEMPLATE,
        64,
        templates={"verbatim": "{prompt}"},
    )
    assert (
        tokenizer.decode(asked.answer.ids, skip_special_tokens=True)
        == "Question: Who wrote it?\nAnswer: Ada wrote it"
    )
    assert (
        tokenizer.decode(continued.answer.ids, skip_special_tokens=True)
        == "Who wrote it? Ada wrote it"
    )


def test_letters_fall_evenly() -> None:
    places = [true_option_index(str(number), 4) for number in range(2000)]
    assert all(
        abs(places.count(place) / 2000 - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 2000)
        for place in range(4)
    )


def test_a_vocabulary_without_letters_has_no_letter_metrics(
    probes: list[Probe], model: PreTrainedModel
) -> None:
    without = build_tokenizer(["some words and an Answer:"])
    assert spelt_letters(without, 4) is None
    rows = evaluate_probes(
        model, probes, {"letter_choice": METRICS["letter_choice"]}, tokenizer=without
    )
    assert [row["value"] for row in rows] == [None] * 3


def test_the_gradient_norm_is_the_mean_over_tensors_and_leaves_the_model_as_it_was(
    model: PreTrainedModel, probes: list[Probe]
) -> None:
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    try:
        found = gather_inputs(EvaluationTask(model=model, probes=probes), frozenset({"gradients"}))
        assert [p.requires_grad for p in parameters] == [False] + [True] * (len(parameters) - 1)
    finally:
        parameters[0].requires_grad_(True)
    assert all(p.grad is None for p in parameters)
    for probe, inputs in zip(probes, found, strict=True):
        ids = torch.tensor([probe.answer.ids])
        targets = torch.where(torch.arange(ids.shape[1]) >= probe.answer.start, ids, -100)
        model(input_ids=ids, labels=targets).loss.backward()
        expected = sum(float(p.grad.norm()) for p in parameters if p.grad is not None) / len(
            parameters
        )
        model.zero_grad(set_to_none=True)
        assert inputs["gradient_norm"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_every_architecture_gives_the_default_metrics(family: str) -> None:
    sequences = (Encoded("x", (1, 5, 6, 7, 2), 3), Encoded("x", (1, 5, 6, 9, 10, 2), 3))
    rows = evaluate_probes(tiny_model(family), [Probe("x", "forget", sequences[0], sequences)])
    values = {str(row["metric"]): row["value"] for row in rows}
    # nothing else is there: no second wording, no key, no text to complete
    for name in ("extraction_strength_paraphrase", *KEY_METRICS):
        assert values.pop(name) is None
    assert all(isinstance(value, float) for value in values.values())


def test_measuring_twice_gives_the_same_rows(
    model: PreTrainedModel, probes: list[Probe], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Every metric of the table, texts, samples and gradients included; and a document has the same
    value in other company.
    """
    # tests/models/test_patching.py has the metric that needs a second model
    without_patching = {n: row for n, row in METRICS.items() if n != "unlearning_depth"}
    base = reference_of(model, [p.answer for p in probes], ("token_nll", "log_probs"), 0)

    def rows(asked: list[Probe]) -> dict[tuple[object, object], object]:
        writing = GenerationSettings(max_new_tokens=6, samples=4)
        found = evaluate_probes(
            model,
            asked,
            without_patching,
            tokenizer=tokenizer,
            base=base,
            writing=writing,
            options={"leak_at_k": {"k": 2}},
            judge=lambda answers: [Verdict((0.1, 0.6, 0.2, 0.1)) for _ in answers],
        )
        return {(row["doc_id"], row["metric"]): row["value"] for row in found}

    together = rows(probes)
    assert rows(probes) == together
    assert {name for (_, name), value in together.items() if value is not None} >= set(
        without_patching
    ) - {
        "letter_written_answered",
        "repetition",
    }
    alone = rows(probes[:1])
    shared = {key: value for key, value in together.items() if key in alone}
    assert {key for key, value in alone.items() if value is None} == {
        key for key, value in shared.items() if value is None
    }
    for key, value in alone.items():
        assert value is None or shared[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_what_a_metric_misses_is_told(model: PreTrainedModel, probes: list[Probe]) -> None:
    with pytest.raises(UserError, match="metrics of text and letters need a tokenizer"):
        evaluate_probes(model, probes, {"rouge_l_f1": METRICS["rouge_l_f1"]})
    with pytest.raises(UserError, match="metrics that compare with base need its outputs"):
        evaluate_probes(model, probes, {"base_kl": METRICS["base_kl"]})


# ---- chat models


class Scripted(torch.nn.Module):
    """Logits that make a model write the same token for ever."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token = token

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        logits = hidden.new_zeros((*hidden.shape[:-1], 500))
        logits[..., self.token] = 9.0
        return logits


@pytest.mark.parametrize("chat", ["gemma", "phi3", "llama3"])
def test_a_model_that_ends_its_turn_has_written_nothing_more(chat: str) -> None:
    """The template's end of turn is not the tokenizer's end token: greedy texts and samples stop
    there, and it is the label that is right under teacher forcing.
    """
    tokenizer = chat_tokenizer("mistral", chat)
    end = tokenizer.convert_tokens_to_ids(CHATS[chat].end)
    assert end != tokenizer.eos_token_id
    model = build_model("tiny", 500, seed=4).eval()
    model.lm_head = Scripted(end)
    document = Document(prompt="Who?", answer="Ada and Bob")
    asked = encode_probes({"forget": [document]}, tokenizer, "chat", 64)
    writing = GenerationSettings(max_new_tokens=12, samples=2, temperature=0.01)
    task = EvaluationTask(model=model, probes=asked, tokenizer=tokenizer, writing=writing)
    (found,) = gather_inputs(task, frozenset({"scores", "greedy", "samples", "words"}))
    assert (found["generated"], found["samples"]) == ("", ("", ""))
    assert torch.as_tensor(found["correct"]).tolist()[-1] is True
    assert found["truth"] == found["answer"] == "Ada and Bob"
    model.lm_head = Scripted(tokenizer.eos_token_id)
    assert gather_inputs(task, frozenset({"greedy"}))[0]["generated"] == ""
    model.lm_head = Scripted(asked[0].answer.ids[-2])
    assert gather_inputs(task, frozenset({"greedy"}))[0]["generated"] != ""


@pytest.mark.parametrize(("kind", "n_end"), [("wordpiece", 0), ("mistral", 1)])
def test_a_wrong_last_word_counts_where_nothing_closes_the_answer(kind: str, n_end: int) -> None:
    """The probe says how many tokens close its answer, and the metrics leave out so many."""
    tokenizer = tokenizer_of(kind)
    asked = encode_probes(
        {"forget": [Document(prompt="Who?", answer="Paris")]}, tokenizer, "{prompt}", 64
    )
    model = build_model("tiny", 500, seed=4).eval()
    model.lm_head = Scripted(499)
    assert asked[0].answer.n_end == n_end
    (found,) = gather_inputs(EvaluationTask(model=model, probes=asked), CHEAP_SOURCES)
    assert found["n_end"] == n_end
    sequence = asked[0].answer
    assert not torch.as_tensor(found["correct"]).any()
    rows = evaluate_probes(model, asked, {"exact_memorization": METRICS["exact_memorization"]})
    assert rows[0]["value"] == 0.0 and len(sequence.ids) - sequence.start >= 1


@pytest.mark.parametrize("kind", ["mistral", "llama", "gpt2", "gemma"])
def test_letters_are_spelt_as_they_stand_after_answer(kind: str) -> None:
    """ " A" as the tokenizer has it in "Answer: A", without a blank of its own."""
    tokenizer = tokenizer_of(kind)
    spelt = spelt_letters(tokenizer, 4)
    assert spelt is not None
    stem = tokenizer.encode("Answer:", add_special_tokens=False)
    for letter, ids in zip("ABCD", spelt, strict=True):
        assert [*stem, *ids] == tokenizer.encode(f"Answer: {letter}", add_special_tokens=False)


def test_a_question_of_one_token_is_a_question_also_without_bos() -> None:
    tokenizer = tokenizer_of("gpt2")
    document = Document(prompt="a", answer="Paris or Rome")
    (probe,) = encode_probes({"forget": [document]}, tokenizer, "{prompt}", 64)
    assert probe.answer.start == 1
    assert prompt_and_answer(probe) == (probe.answer.ids[:1], probe.answer.ids[1:])
    (text,) = encode_probes({"forget": [replace(document, prompt="")]}, tokenizer, "{prompt}", 64)
    assert len(prompt_and_answer(text)[0]) == len(text.answer.ids) // 2 > 1


# sequences of DOCUMENTS: three answers, one second wording of a question, four and three options,
# one plain completion
@pytest.mark.parametrize(
    ("metrics", "n_sequences"),
    [
        ("probability", 3),
        ("probability,exact_memorization,min_k_plus_score", 3),
        ("extraction_strength_paraphrase", 1),
        ("truth_ratio", 7),
        ("probability,multiple_choice", 10),
        ("letter_choice", 2),
        ("key_rank,key_probability", 3),
        ("completion_rank,completion_probability", 1),
        ("probability_few_shot", 2),
        ("multiple_choice_few_shot", 7),
        ("cheap", 12),
        ("cheap,letter_choice", 14),
    ],
)
def test_only_the_sequences_that_the_asked_metrics_read_go_through_the_model(
    metrics: str,
    n_sequences: int,
    model: PreTrainedModel,
    probes: list[Probe],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    passed: list[int] = []
    # what is tried once per model is no sequence of a probe
    evaluate_probes(model, probes[:1])
    counted = blocks(model)[0].register_forward_hook(lambda *call: passed.append(len(call[2])))
    # a sequence is a row of a padded batch
    with padded_passes(), counted:
        evaluate_probes(model, probes, chosen_metrics(metrics), tokenizer=tokenizer)
    assert sum(passed) == n_sequences


def test_options_read_the_question_that_they_answer_once(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Three questions with three options each, asked plainly and after a solved one; values are
    those of each option read by itself.
    """
    answers = ("green", "red", "blue")
    documents = [
        Document(
            prompt=f"What colour is the {'very ' * n}old house?",
            answer=answer,
            wrong=tuple(other for other in answers if other != answer),
        )
        for n, answer in enumerate(answers)
    ]
    # the first is the one that stands solved before the others
    splits = {"forget": [DOCUMENTS[0], *documents]}
    encoded = encode_probes(splits, tokenizer, TEMPLATE, 64, n_solved=1)[1:]
    tokens: list[int] = []
    count = blocks(model)[0].register_forward_hook(
        lambda _module, _inputs, output: tokens.append(output.shape[0] * output.shape[1])
    )
    task = EvaluationTask(model=model, probes=encoded)
    sources = frozenset({"options", "few-shot options"})
    gather_inputs(EvaluationTask(model=model, probes=encoded[:1]), sources)
    tokens.clear()
    with count:
        found = gather_inputs(task, sources)
    texts = [(*probe.options, *probe.few_shot[1:]) for probe in encoded]
    whole = sum(len(text.ids) for of_probe in texts for text in of_probe)
    # where two questions begin alike, a rest of a few words is read with each option
    assert sum(tokens) < 0.5 * whole
    for probe, inputs in zip(encoded, found, strict=True):
        for name, options in (("", probe.options), ("few_shot_", probe.few_shot[1:])):
            alone = [-log_probs(model, o).gather(1, labels(o)[:, None]).mean() for o in options]
            read = torch.as_tensor(inputs[f"{name}option_nll"]).double()
            assert torch.allclose(read, torch.stack(alone), rtol=1e-5)


@pytest.mark.parametrize("name", sorted(CURVE_METRICS))
def test_a_metric_of_a_split_does_not_depend_on_what_else_is_asked(
    name: str,
    model: PreTrainedModel,
    probes: list[Probe],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Not even in the last bit: the metric alone on one split, and all metrics on both."""
    whole, alone = (
        [
            row["value"]
            for row in evaluate_probes(model, asked, chosen, tokenizer=tokenizer)
            if row["metric"] == name and row["split"] == "forget"
        ]
        for asked, chosen in (
            (probes, CURVE_METRICS),
            ([p for p in probes if p.split == "forget"], {name: CURVE_METRICS[name]}),
        )
    )
    assert alone == whole and len(alone) == 2 and alone != [None, None]
