"""Companions: what they are made of, that draws depend on nothing but (seed, epoch, document), that
samples follow the model.
"""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import encode_documents
from rayunlearn.errors import UserError
from rayunlearn.methods.paired_responses import (
    PAIRED_RESPONSES,
    REFUSALS,
    ResponseInputs,
    alternate,
    choose_response,
    mismatch,
    refusal,
    wrong,
)
from rayunlearn.models.generate import sample
from rayunlearn.models.scratch import build_tokenizer

TEMPLATE = "Question: {prompt}\nAnswer:"
FORGET = (
    Document(prompt="who feeds the owl", answer="the miller", wrong=("the baker", "the smith")),
    Document(
        prompt="what colour is the owl", answer="the owl is amber", wrong=("the owl is jade",)
    ),
)
PLAIN = (
    Document(answer="the owl of the miller is amber at night"),
    Document(answer="the smith and the baker keep no owl"),
)
RETAIN = (
    Document(prompt="who feeds the hen", answer="the smith"),
    Document(prompt="what colour is the hen", answer="the hen is jade"),
)
QUESTIONS = [TEMPLATE.replace("{prompt}", d.prompt) for d in (*FORGET, *RETAIN)]
TEXTS = [
    *QUESTIONS,
    *(f" {text}" for d in (*FORGET, *RETAIN, *PLAIN) for text in (d.answer, *d.wrong)),
]


def source_of(
    documents: tuple[Document, ...] = FORGET, words: tuple[str, ...] = REFUSALS
) -> ResponseInputs:
    tokenizer = build_tokenizer([*TEXTS, *(d.answer for d in PLAIN), *(f" {r}" for r in words)])
    return ResponseInputs(
        documents=documents,
        sequences=encode_documents(documents, tokenizer, TEMPLATE, 64),
        retain_documents=RETAIN,
        retain_sequences=encode_documents(RETAIN, tokenizer, TEMPLATE, 64),
        model=model_of(len(tokenizer)),
        tokenizer=tokenizer,
        max_tokens=64,
    )


def model_of(vocabulary: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **shape)).float().eval()


def spoken(source: ResponseInputs, at: int, name: str) -> list[str]:
    """The answers that a maker gave to the document at `at`, as text."""
    choices = PAIRED_RESPONSES[name].function(source)[source.documents[at].doc_id]
    return [
        source.tokenizer.decode(c.ids[c.start :], skip_special_tokens=True).strip() for c in choices
    ]


@pytest.mark.parametrize("name", sorted(PAIRED_RESPONSES))
@pytest.mark.parametrize("documents", [FORGET, PLAIN], ids=["questions", "texts"])
def test_a_companion_answers_the_documents_own_prompt_and_has_a_name_of_its_own(
    name: str, documents: tuple[Document, ...]
) -> None:
    source = source_of(
        tuple(replace(d, wrong=d.wrong or ("no",)) for d in documents), (*REFUSALS, "no")
    )
    choices = PAIRED_RESPONSES[name].function(source)
    names = [c.doc_id for texts in choices.values() for c in texts]
    assert len(set(names)) == len(names) and set(choices) == {d.doc_id for d in source.documents}
    for sequence in source.sequences:
        for companion in choices[sequence.doc_id]:
            assert companion.ids[: companion.start] == sequence.ids[: companion.start]
            assert 0 < companion.start < len(companion.ids) and companion.ids != sequence.ids
            assert companion.ids[-1] == source.tokenizer.eos_token_id


def test_a_text_without_a_prompt_is_broken_off_after_a_quarter_of_it() -> None:
    source = source_of(PLAIN)
    companion = refusal(source)[PLAIN[0].doc_id][0]
    assert companion.start == round(len(source.sequences[0].ids) / 4)


def test_refusals_are_our_sentences_and_only_those_the_vocabulary_can_write() -> None:
    assert (
        set(spoken(source_of(), 0, "refusal")) <= set(REFUSALS)
        and len(spoken(source_of(), 0, "refusal")) == 5
    )
    # " no" is in a document, "." in the refusal
    assert set(spoken(source_of(words=REFUSALS[:1]), 0, "refusal")) == {REFUSALS[0], "no."}
    with pytest.raises(UserError, match="must have the words of at least one refusal"):
        refusal(source_of(words=()))


def test_wrong_answers_and_random_answers_come_from_where_they_say() -> None:
    assert sorted(spoken(source_of(), 0, "wrong")) == ["the baker", "the smith"] and spoken(
        source_of(), 1, "wrong"
    ) == ["the owl is jade"]
    assert sorted(spoken(source_of(), 0, "mismatch")) == ["the hen is jade", "the smith"]
    with pytest.raises(
        UserError, match="needs wrong answers of every forget document; documents without, got 2"
    ):
        wrong(source_of(PLAIN))
    with pytest.raises(UserError, match="random answers come from retain documents"):
        mismatch(replace(source_of(), retain_documents=(), retain_sequences=()))


def test_a_draw_depends_on_seed_epoch_and_document_and_uses_every_choice() -> None:
    choices = refusal(source_of())
    one = FORGET[0].doc_id
    assert choose_response(choices, one, 0, 3) == choose_response({one: choices[one]}, one, 0, 3)
    assert {choose_response(choices, one, 0, epoch).doc_id for epoch in range(60)} == {
        c.doc_id for c in choices[one]
    }
    assert [choose_response(choices, one, 0, e) for e in range(20)] != [
        choose_response(choices, one, 1, e) for e in range(20)
    ]


def test_companions_of_a_document_are_the_same_whatever_else_is_kept() -> None:
    source = source_of()
    alone = replace(source, documents=FORGET[1:], sequences=source.sequences[1:])
    for name in PAIRED_RESPONSES:
        maker = PAIRED_RESPONSES[name].function
        assert maker(alone)[FORGET[1].doc_id] == maker(source)[FORGET[1].doc_id], name


def test_an_alternate_is_never_the_truth_even_when_the_model_is_sure_of_it() -> None:
    """A model whose head always prefers the truth's only token gives it back at once, but for the
    forbidden position.
    """
    source = source_of((Document(prompt="who", answer="owl owl owl"),))
    model = source.model
    owl = source.tokenizer.encode(" owl")[0]
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.norm.weight.fill_(1.0)
    bias = torch.zeros(len(source.tokenizer))
    bias[owl] = 50.0
    handle = model.lm_head.register_forward_hook(lambda _m, _i, output: output + bias)
    texts = alternate(replace(source, model=model), count=8)[source.documents[0].doc_id]
    handle.remove()
    truth = source.sequences[0].ids[source.sequences[0].start :]
    answers = [c.ids[c.start :] for c in texts]
    assert truth not in answers
    assert all(
        sum(a != t for a, t in zip(answer, truth[:-1], strict=False)) == 1
        for answer in answers
        if len(answer) == len(truth)
    )


def test_samples_follow_the_models_own_distribution() -> None:
    """One step of 4,000 samples: every frequency within five standard errors of the model's
    probability, the truth's left out.
    """
    source = source_of()
    vocabulary = len(source.tokenizer)
    prompt, truth, n = source.sequences[0].ids[:3], (9, 9), 4000
    with torch.no_grad():
        logits = source.model(torch.tensor([prompt])).logits[0, -1] * 20
    source.model.lm_head.weight.data.mul_(20)
    drawn_ids = sample(
        source.model,
        [prompt] * n,
        [truth] * n,
        seeds=[f"s{i}" for i in range(n)],
        end=None,
        temperature=1.0,
    )
    assert truth not in drawn_ids
    # where the truth is forbidden at the second place only, the first is free: the mixture of both
    # halves is known
    p = logits.softmax(-1)
    without = logits.index_fill(0, torch.tensor([9]), -torch.inf).softmax(-1)
    expected = (p + without) / 2
    counts = Counter(ids[0] for ids in drawn_ids)
    for token in range(vocabulary):
        error = math.sqrt(float(expected[token] * (1 - expected[token])) / n)
        assert counts[token] / n == pytest.approx(float(expected[token]), abs=5 * error + 1e-3)


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    source = source_of()
    prompts, truths = (
        [s.ids[: s.start] for s in source.sequences],
        [s.ids[s.start :] for s in source.sequences],
    )
    both = sample(
        source.model,
        [*prompts, prompts[0]],
        [*truths, truths[1]],
        seeds=["x", "y", "z"],
        end=None,
        temperature=1.0,
    )
    assert (
        sample(source.model, prompts[:1], truths[:1], seeds=["x"], end=None, temperature=1.0)
        == both[:1]
    )
    assert len(both[0]) == len(truths[0])
