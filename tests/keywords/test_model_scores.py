"""Keywords that a model gives, the judge and its refusals, and the text arms."""

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import Encoded, align, collate, encode_documents
from rayunlearn.keywords.ablation import keyword_positions, text_variant, variant_positions
from rayunlearn.keywords.llm_judge import (
    UnusableAnswerError,
    ask_judge,
    checked_keywords,
)
from rayunlearn.keywords.model_scores import (
    EncodedPages,
    gap_by_word,
    loss_gaps,
    phrase_states,
    word_gradients,
    word_losses,
    words_of_labels,
)
from rayunlearn.keywords.phrases import Keyword, document_words
from rayunlearn.keywords.words import words_of
from rayunlearn.models.chat import Message, chat_with
from rayunlearn.models.forward import hidden_states, score
from rayunlearn.models.scratch import build_model, build_tokenizer
from tests.tokenizer_kinds import KINDS, PAIRS, chat_tokenizer, tokenizer_of

TEMPLATE = "Q: {prompt}\nA:"
DOCUMENTS = [
    Document(answer="Amber Zor glows, at night."),
    Document(prompt="Who glows?", answer="Zor, the amber."),
]
TOKENIZER = build_tokenizer([d.answer for d in DOCUMENTS] + ["Q: Who glows?\nA: Zor, the amber."])
MODEL = build_model("tiny", len(TOKENIZER), 0).eval()
PAGES = [document_words(d.answer) for d in DOCUMENTS]
TEXT = "Anthrax spores survive heat."


def encoded(sequences: Sequence[Encoded]) -> EncodedPages:
    """The first documents, read as these sequences."""
    n = len(sequences)
    return EncodedPages(
        documents=DOCUMENTS[:n],
        sequences=sequences,
        pages=PAGES[:n],
        tokenizer=TOKENIZER,
        template=TEMPLATE,
    )


def test_labels_belong_to_the_words_they_are_pieces_of() -> None:
    """<s> Amber Zor glows , at night . </s>: all but <s> are labels; comma, stop and end belong to
    no word.
    """
    sequences = encode_documents(DOCUMENTS, TOKENIZER, TEMPLATE, 64)
    assert words_of_labels(DOCUMENTS[0], sequences[0], PAGES[0].words, TOKENIZER, TEMPLATE) == [
        0,
        1,
        2,
        -1,
        3,
        4,
        -1,
        -1,
    ]
    assert words_of_labels(DOCUMENTS[1], sequences[1], PAGES[1].words, TOKENIZER, TEMPLATE) == [
        0,
        -1,
        1,
        2,
        -1,
        -1,
    ]


def test_a_document_that_was_cut_has_no_labels_for_its_lost_words() -> None:
    (sequence,) = encode_documents(DOCUMENTS[:1], TOKENIZER, TEMPLATE, 5)
    assert words_of_labels(DOCUMENTS[0], sequence, PAGES[0].words, TOKENIZER, TEMPLATE) == [
        0,
        1,
        2,
        -1,
    ]


@pytest.mark.parametrize("template", ["Q: {prompt}\nA:", "{prompt} ", "chat"])
@pytest.mark.parametrize("kind", [name for name in KINDS if name != "Characters"])
def test_labels_of_a_word_are_its_tokens_under_every_tokenizer(kind: str, template: str) -> None:
    """A label belongs to the last word that its token has a character of, and what closes the
    answer to none.
    """
    chat = template == "chat"
    tokenizer = chat_tokenizer(kind, "gemma") if chat else tokenizer_of(kind)
    for prompt, answer in [(p, a) for q, a in PAIRS for p in (q, "")]:
        document = Document(prompt=prompt, answer=answer)
        (sequence,) = encode_documents([document], tokenizer, template, 10_000)
        words = words_of(answer)
        pieces = words_of_labels(document, sequence, words, tokenizer, template)
        assert len(pieces) == len(sequence.ids) - sequence.start
        n_end = sequence.n_end
        assert pieces[len(pieces) - n_end :] == [-1] * n_end
        whole = align(prompt, answer, tokenizer, template)
        for (start, end), piece in zip(whole.spans[max(1, whole.start) :], pieces, strict=True):
            inside = [
                at
                for at, word in enumerate(words)
                if start < whole.answer + word.end and whole.answer + word.start < end
            ]
            assert piece == (inside[-1] if inside else -1)


def test_word_losses_are_the_token_losses_of_each_word() -> None:
    sequences = encode_documents(DOCUMENTS, TOKENIZER, TEMPLATE, 64)
    tokens = [s.token_nll for s in score(MODEL, sequences)]
    found = word_losses(MODEL, encoded(sequences))
    assert found[0] == pytest.approx([float(tokens[0][i]) for i in (0, 1, 2, 4, 5)])
    assert found[1] == pytest.approx([float(tokens[1][i]) for i in (0, 2, 3)])


def test_word_gradients_are_the_largest_of_their_tokens_and_those_of_autograd() -> None:
    """Brute force: the loss of each label alone, differentiated with respect to the head; divided
    by the state's length.
    """
    (sequence,) = encode_documents(DOCUMENTS[:1], TOKENIZER, TEMPLATE, 64)
    head = MODEL.get_output_embeddings().weight.detach().requires_grad_()
    with torch.no_grad():
        states = MODEL.base_model(input_ids=torch.tensor([sequence.ids])).last_hidden_state[0]
    norms = []
    for at in range(sequence.start, len(sequence.ids)):
        loss = torch.nn.functional.cross_entropy(
            states[at - 1] @ head.T, torch.tensor(sequence.ids[at])
        )
        norms.append(float(torch.autograd.grad(loss, head)[0].norm() / states[at - 1].norm()))
    pieces = words_of_labels(DOCUMENTS[0], sequence, PAGES[0].words, TOKENIZER, TEMPLATE)
    expected = [
        max(n for n, piece in zip(norms, pieces, strict=True) if piece == word)
        for word in range(len(PAGES[0].words))
    ]
    assert word_gradients(MODEL, encoded([sequence]))[0] == pytest.approx(expected, rel=1e-4)


def test_gaps_are_differences_and_average_over_all_places_of_a_word() -> None:
    pages = [document_words("zor amber zor"), document_words("Zor")]
    values = loss_gaps([[1.0, 1.0, 1.0], [0.0]], [[2.0, 1.5, 4.0], [2.0]])
    assert values == [[1.0, 0.5, 3.0], [2.0]] and gap_by_word(pages, values) == {
        "zor": 2.0,
        "amber": 0.5,
    }


def test_phrase_states_are_means_over_the_tokens_of_the_phrase() -> None:
    sequences = encode_documents(DOCUMENTS, TOKENIZER, TEMPLATE, 64)
    for document, sequence, page, (phrases, whole) in zip(
        DOCUMENTS,
        sequences,
        PAGES,
        phrase_states(MODEL, encoded(sequences), 1),
        strict=True,
    ):
        with torch.no_grad():
            states = hidden_states(MODEL, collate([sequence]), 1)[0, sequence.start :]
        pieces = torch.tensor(words_of_labels(document, sequence, page.words, TOKENIZER, TEMPLATE))
        torch.testing.assert_close(whole, states.mean(0))
        for row, phrase in zip(phrases, page.phrases, strict=True):
            inside = [any(a <= int(p) < b for a, b in phrase.places) for p in pieces]
            torch.testing.assert_close(row, states[torch.tensor(inside)].mean(0))


class Scripted:
    """A chat model that gives prepared answers and keeps what it was sent."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.sent = list(answers), list[list[Message]]()

    def __call__(self, messages: Sequence[Message]) -> str:
        self.sent.append(list(messages))
        return self.answers.pop(0)


def test_a_good_answer_is_taken_at_once_even_inside_chatter() -> None:
    chat = Scripted(
        'Sure! ```json\n{"keywords": ["Anthrax spores", "heat", "heat", "ricin", ""]}\n```'
    )
    assert (
        ask_judge(chat, TEXT) == ["Anthrax spores", "heat"]
        and len(chat.sent) == 1
        and TEXT in chat.sent[0][1]["content"]
    )


def test_a_bad_answer_is_sent_back_with_its_reason_and_the_next_one_is_taken() -> None:
    chat = Scripted("anthrax", '{"keywords": [1]}', '{"keywords": ["anthrax"]}')
    assert ask_judge(chat, TEXT) == ["anthrax"]
    assert [m["role"] for m in chat.sent[2]] == ["system", "user", "assistant", "user"]
    assert (
        chat.sent[2][2]["content"] == '{"keywords": [1]}'
        and 'no list of strings under "keywords"' in chat.sent[2][3]["content"]
    )


def test_a_document_without_a_usable_answer_is_given_up_with_the_last_reason() -> None:
    chat = Scripted("no", "no", '{"keywords": ["ricin"]}', '{"keywords": ["heat"]}')
    with pytest.raises(UnusableAnswerError, match="it names no word of the text"):
        ask_judge(chat, TEXT, tries=3)
    assert len(chat.sent) == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("", "no list"),
        ("{", "no list"),
        ("{'keywords': []}", "no JSON"),
        ("[]", "no list"),
        ('{"keywords": []}', "names no word"),
        ('{"keywords": ["spore"]}', "names no"),
    ],
)
def test_every_kind_of_bad_answer_has_its_reason(answer: str, words: str) -> None:
    with pytest.raises(UnusableAnswerError, match=words):
        checked_keywords(answer, TEXT)


def test_a_real_model_without_a_system_role_is_asked_in_the_users_words() -> None:
    """A random model babbles, so the answer cannot be used; what matters is that the whole way is
    walked.
    """
    tokenizer = build_tokenizer([TEXT, "system user assistant"])
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{%"
        " endif %}{{ m.content }}{% endfor %}"
    )
    chat = chat_with(build_model("tiny", len(tokenizer), 0).eval(), tokenizer, max_new_tokens=4)
    assert isinstance(
        chat([{"role": "system", "content": "be brief"}, {"role": "user", "content": TEXT}]), str
    )
    with pytest.raises(UnusableAnswerError):
        ask_judge(chat, "Anthrax", tries=2)


WORDS = words_of("Zor glows amber at night in amber light")
FOUND = [
    Keyword("Zor", 3, ((0, 3),)),
    Keyword("amber", 2, ((10, 15), (28, 33))),
    Keyword("night", 1, ((19, 24),)),
]


def test_keywords_fill_the_fraction_best_first_and_what_does_not_fit_is_passed_over() -> None:
    """Of 8 words: Zor 1, amber 2 more, night 1. A quarter is two words: amber does not fit beside
    Zor, night does.
    """
    assert keyword_positions(WORDS, FOUND, 1.0) == [0, 2, 4, 6]
    assert keyword_positions(WORDS, FOUND, 0.25) == [0, 4]
    assert keyword_positions(WORDS, FOUND, 0.01) == [0] and keyword_positions(WORDS, [], 0.5) == []


def test_arms_by_hand() -> None:
    def text(arm: str) -> str:
        return text_variant(
            "Zor glows amber at night in amber light",
            WORDS,
            variant_positions(arm, 8, [0, 2, 4, 6], random.Random(1)),
        )

    assert text("original") == "Zor glows amber at night in amber light"
    assert text("keywords_only") == "Zor amber night amber"
    assert text("non_keywords") == " glows at in light"
    assert sorted(text("shuffled_keywords").split()) == ["Zor", "amber", "amber", "night"]


@given(st.sets(st.integers(0, 19)), st.integers(0, 99))
def test_arms_keep_their_counts_and_split_the_document(keywords: set[int], seed: int) -> None:
    arms = {
        arm: variant_positions(arm, 20, keywords, random.Random(seed))
        for arm in ("keywords_only", "non_keywords", "random_words", "shuffled_keywords")
    }
    assert sorted(arms["keywords_only"] + arms["non_keywords"]) == list(range(20))
    assert len(arms["random_words"]) == len(set(arms["random_words"])) == len(keywords) and arms[
        "random_words"
    ] == sorted(arms["random_words"])
    assert sorted(arms["shuffled_keywords"]) == sorted(keywords)


def test_random_words_are_drawn_from_all_words_equally_often() -> None:
    """2,000 draws of 2 of 8: each word 500 times expected, standard deviation 19.4; five of them
    allowed.
    """
    counts = [0] * 8
    for seed in range(2000):
        for at in variant_positions("random_words", 8, [0, 1], random.Random(seed)):
            counts[at] += 1
    assert max(abs(c - 500) for c in counts) < 97
