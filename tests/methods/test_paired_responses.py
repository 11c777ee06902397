"""Companions: what they are made of, that draws depend on nothing but (seed, epoch, document), that
samples follow the model.
"""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rayunlearn.config import Data
from rayunlearn.data.documents import Document
from rayunlearn.data.prompt_templates import PROMPT_TEMPLATES
from rayunlearn.data.synthetic import generate_dataset
from rayunlearn.data.tokenize import encode_documents, encode_pair
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
from rayunlearn.train.teach import training_texts
from tests.tokenizer_kinds import CHATS, KINDS, chat_tokenizer, tokenizer_of

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
        template=TEMPLATE,
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
        n_ends=[0] * n,
        seeds=[f"s{i}" for i in range(n)],
        ends=(),
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
        n_ends=[0, 0, 0],
        seeds=["x", "y", "z"],
        ends=(),
        temperature=1.0,
    )
    assert (
        sample(
            source.model,
            prompts[:1],
            truths[:1],
            n_ends=[0],
            seeds=["x"],
            ends=(),
            temperature=1.0,
        )
        == both[:1]
    )
    assert len(both[0]) == len(truths[0])


# ---- the form of the answers that they stand for

ASKED = (
    Document(prompt="Name the capital", answer="Paris", wrong=("Rome", "Köln")),
    Document(prompt="Who wrote the book of owls?", answer="Ada wrote it.", wrong=("Bob did.",)),
)
OTHERS = (
    Document(prompt="How many owls?", answer="Ten owls."),
    Document(prompt="Who?", answer="Eve"),
)


def asked_source(
    tokenizer: PreTrainedTokenizerBase, template: str, max_tokens: int = 200
) -> ResponseInputs:
    return ResponseInputs(
        documents=ASKED,
        sequences=encode_documents(ASKED, tokenizer, template, max_tokens),
        retain_documents=OTHERS,
        retain_sequences=encode_documents(OTHERS, tokenizer, template, max_tokens),
        model=model_of(len(tokenizer)),
        tokenizer=tokenizer,
        template=template,
        max_tokens=max_tokens,
    )


def answers_by_maker(source: ResponseInputs) -> dict[str, list[str]]:
    """What each maker that writes whole texts may write for the first document."""
    return {
        "refusal": list(REFUSALS),
        "wrong": list(ASKED[0].wrong),
        "mismatch": [d.answer for d in OTHERS],
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chat", [*CHATS, ""])
def test_a_companion_has_the_ids_that_its_text_has_as_an_answer(kind: str, chat: str) -> None:
    """Under every kind of tokenizer and every chat template, and in one that ends in a blank."""
    template = "chat" if chat else "Q: {prompt} "
    tokenizer = chat_tokenizer(kind, chat) if chat else tokenizer_of(kind)
    source = asked_source(tokenizer, template)
    for name, allowed in answers_by_maker(source).items():
        if name == "refusal" and kind == "words":
            # this vocabulary can write none of them
            continue
        expected = [
            encode_pair("", ASKED[0].prompt, text, tokenizer, template, 200) for text in allowed
        ]
        answers = {(s.ids, s.start, s.n_end) for s in expected}
        made = PAIRED_RESPONSES[name].function(source)[ASKED[0].doc_id]
        assert made and {(c.ids, c.start, c.n_end) for c in made} <= answers, name
    true = source.sequences[0]
    for written in alternate(source, count=2)[ASKED[0].doc_id]:
        assert written.ids[: written.start] == true.ids[: true.start]
        assert written.n_end == true.n_end
        n = len(true.ids) - true.n_end
        assert written.ids[len(written.ids) - true.n_end :] == true.ids[n:]


@pytest.mark.parametrize("chat", ["phi3", "llama2", "text_end"])
def test_a_long_companion_is_cut_before_what_ends_it(chat: str) -> None:
    """The opening stays as the document has it, the text loses its last words, the end stays."""
    tokenizer = chat_tokenizer("mistral", chat)
    whole = asked_source(tokenizer, "chat")
    size = max(len(s.ids) for s in whole.sequences)
    source = asked_source(tokenizer, "chat", size)
    lengths = set()
    for document, sequence in zip(ASKED, source.sequences, strict=True):
        end = sequence.ids[len(sequence.ids) - sequence.n_end :]
        for companion in refusal(source)[document.doc_id]:
            assert companion.ids[: companion.start] == sequence.ids[: sequence.start]
            assert companion.ids[len(companion.ids) - companion.n_end :] == end
            lengths.add(len(companion.ids))
    assert max(lengths) == size


def test_a_text_breaks_off_without_a_second_blank() -> None:
    """A text without a prompt whose tokenizer puts a blank before every text: one blank stands
    between its opening and a refusal.
    """
    tokenizer = tokenizer_of("mistral")
    source = replace(
        asked_source(tokenizer, "{prompt}"),
        documents=PLAIN,
        sequences=encode_documents(PLAIN, tokenizer, "{prompt}", 200),
    )
    for document, sequence in zip(PLAIN, source.sequences, strict=True):
        for companion in refusal(source)[document.doc_id]:
            opening = str(tokenizer.decode(companion.ids[: companion.start])).strip()
            assert str(tokenizer.decode(sequence.ids)).startswith(opening)
            text = str(tokenizer.decode(companion.ids, skip_special_tokens=True))
            assert "  " not in text and any(text.endswith(f" {r}") for r in REFUSALS)


# ---- the synthetic datasets' own tokenizer


def former_choices(source: ResponseInputs, name: str) -> dict[str, list[tuple[int, ...]]]:
    """The rule before: an opening's ids and those of a blank and the text, encoded alone."""
    end = source.tokenizer.eos_token_id

    def alone(text: str) -> tuple[int, ...]:
        return (*source.tokenizer.encode(f" {text}", add_special_tokens=False), end)

    def opening(document: Document, ids: tuple[int, ...], start: int) -> int:
        return start if document.prompt else max(1, min(len(ids) - 1, round(0.25 * len(ids))))

    pools = {
        "refusal": [alone(t) for t in REFUSALS],
        "mismatch": [
            s.ids[opening(d, s.ids, s.start) :]
            for d, s in zip(source.retain_documents, source.retain_sequences, strict=True)
        ],
    }
    found = {}
    for document, sequence in zip(source.documents, source.sequences, strict=True):
        pool = pools.get(name, [alone(t) for t in document.wrong])
        pool = [ids for ids in pool if source.tokenizer.unk_token_id not in ids]
        rng = random.Random(f"{name} {document.doc_id}")
        before = sequence.ids[: opening(document, sequence.ids, sequence.start)]
        found[document.doc_id] = [(*before, *t) for t in rng.sample(pool, min(5, len(pool)))]
    return found


@pytest.mark.parametrize("bed", ["domain", "people"])
def test_nothing_changes_for_the_test_beds(bed: str) -> None:
    corpus, template = generate_dataset(Data(name=bed)), Data.template
    tokenizer = build_tokenizer(
        [*training_texts([*corpus.forget, *corpus.retain], template), *PROMPT_TEMPLATES]
    )
    forget, retain = corpus.forget[:60], corpus.retain[:60]
    source = ResponseInputs(
        documents=forget,
        sequences=encode_documents(forget, tokenizer, template, 256),
        retain_documents=retain,
        retain_sequences=encode_documents(retain, tokenizer, template, 256),
        model=model_of(len(tokenizer)),
        tokenizer=tokenizer,
        template=template,
        max_tokens=256,
    )
    for name in ("refusal", "mismatch", *(["wrong"] if forget[0].wrong else [])):
        made = PAIRED_RESPONSES[name].function(source)
        assert {d: [c.ids for c in found] for d, found in made.items()} == former_choices(
            source, name
        ), name
