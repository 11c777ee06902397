"""Leave-one-out contributions against one sequence at a time and against a model whose answer is
known; integrated gradients against their axiom.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rayunlearn.attribution.integrated_gradients import integrated_gradients
from rayunlearn.attribution.leave_one_out import (
    PromptUnits,
    contributions,
    key_tokens,
    token_units,
    without_unit,
    word_units,
)
from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import Encoded, align, encode_pair
from rayunlearn.errors import UserError
from rayunlearn.keywords.words import words_of
from rayunlearn.models.scratch import build_tokenizer
from tests.tiny_models import CONFIGS, tiny_model
from tests.tokenizer_kinds import KINDS, PAIRS, chat_tokenizer, tokenizer_of

SEQUENCES = [
    Encoded("a", (1, 5, 6, 7, 8, 9, 2), 5),
    Encoded("b", (1, 9, 4, 3, 2), 3),
    Encoded("c", (1, 30, 11, 12, 13, 14, 15, 16, 2), 6),
]
UNITS = [
    PromptUnits(("5", "6 7"), ((1,), (2, 3))),
    PromptUnits(("9", "4"), ((1,), (2,))),
    PromptUnits(("30", "", "11 13"), ((1,), (), (2, 4))),
]
TEMPLATE = "Question: {prompt}\nAnswer:"


def log_prob(model: Callable[..., Any], ids: list[int], start: int) -> Tensor:
    """Mean log-probability of ids[start:], each from its own logits, nothing padded."""
    logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return torch.stack([logits[at - 1, ids[at]] for at in range(start, len(ids))]).mean()


@pytest.mark.parametrize("family", CONFIGS)
def test_all_ablations_in_padded_batches_are_those_of_one_sequence_at_a_time(family: str) -> None:
    model = tiny_model(family)
    together = contributions(model, list(zip(SEQUENCES, UNITS, strict=True)))
    for sequence, units, values in zip(SEQUENCES, UNITS, together, strict=True):
        ids = list(sequence.ids)
        with torch.no_grad():
            whole = log_prob(model, ids, sequence.start)
            alone = [
                whole
                - log_prob(
                    model, [i for at, i in enumerate(ids) if at not in p], sequence.start - len(p)
                )
                for p in units.places
            ]
        torch.testing.assert_close(values, torch.stack(alone), atol=2e-6, rtol=0)


def test_a_unit_that_is_not_there_contributes_nothing_and_the_last_token_before() -> None:
    values = contributions(tiny_model(), [(SEQUENCES[2], UNITS[2])])[0]
    assert values[1] == 0 and values[0] != 0
    with pytest.raises(
        UserError, match="must leave something before the answer, tokens left, got 0"
    ):
        without_unit(Encoded("x", (5, 6, 2), 1), (0,))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        # two positive, fewer than three: all of them
        ([0.5, -1.0, 0.01], [True, False, True]),
        # three positive: over 0.25 x 1.0
        ([1.0, 0.3, 0.2, -2.0], [True, True, False, False]),
        # at the threshold is not over it
        ([0.25, 1.0, 1.0], [False, True, True]),
        ([0.0, -1.0], [False, False]),
        ([], []),
    ],
)
def test_key_tokens_by_the_two_cases(values: list[float], key: list[bool]) -> None:
    """alpha 0.25, beta 3."""
    assert key_tokens(values, alpha=0.25, beta=3) == key


def test_tokens_and_words_of_the_prompt_are_found_in_the_ids() -> None:
    prompt = "Where does low-cost Bafex grow?"
    tokenizer = build_tokenizer([TEMPLATE.replace("{prompt}", prompt), " caves"])
    sequence = encode_pair("d", prompt, "caves", tokenizer, TEMPLATE, 64)
    document = Document(prompt=prompt, answer="caves")
    tokens, words = (
        token_units(sequence, document, tokenizer, TEMPLATE),
        word_units(sequence, document, tokenizer, TEMPLATE),
    )
    assert tokens.texts == ("Where", "does", "low", "-", "cost", "Bafex", "grow", "?")
    assert words.texts == ("Where", "does", "low-cost", "Bafex", "grow")
    assert [len(places) for places in words.places] == [1, 1, 3, 1, 1]
    for texts, places in ((tokens.texts, tokens.places), (words.texts, words.places)):
        assert [
            str(tokenizer.decode([sequence.ids[at] for at in p])).strip() for p in places
        ] == list(texts)
    left = without_unit(sequence, words.places[2])
    assert (
        tokenizer.decode(left.ids[: left.start]) == "<s>Question: Where does Bafex grow?\nAnswer:"
    )


@pytest.mark.parametrize("template", [TEMPLATE, "{prompt} ", "chat"])
@pytest.mark.parametrize("kind", [name for name in KINDS if name != "Characters"])
def test_words_are_at_the_ids_of_their_characters_under_every_tokenizer(
    kind: str, template: str
) -> None:
    """Leaving all words out leaves no token of them before the answer; whole and cut prompts agree
    on what is left.
    """
    chat = template == "chat"
    tokenizer = chat_tokenizer(kind, "zephyr") if chat else tokenizer_of(kind)
    for prompt, answer in PAIRS:
        document = Document(prompt=prompt, answer=answer)
        whole = align(prompt, answer, tokenizer, template)
        begin = whole.text.index(prompt)
        sequence = encode_pair("d", prompt, answer, tokenizer, template, 10_000)
        words = word_units(sequence, document, tokenizer, template)
        for word, places in zip(words_of(prompt), words.places, strict=True):
            expected = [
                at
                for at, (start, end) in enumerate(whole.spans[: whole.start])
                if at >= whole.n_begin and start < begin + word.end and begin + word.start < end
            ]
            assert list(places) == expected
        most = max(8, len(sequence.ids) - 3)
        short = encode_pair("d", prompt, answer, tokenizer, template, most)
        n_lost = len(sequence.ids) - len(short.ids)
        for full, left in zip(
            words.places, word_units(short, document, tokenizer, template).places, strict=True
        ):
            kept = [at - n_lost for at in full if at - n_lost >= whole.n_begin]
            assert list(left) == kept
            assert [short.ids[at] for at in left] == [sequence.ids[at + n_lost] for at in left]


def test_a_prompt_that_lost_its_beginning_offers_what_is_left_of_it() -> None:
    prompt = "one two three four five six"
    tokenizer = build_tokenizer([TEMPLATE.replace("{prompt}", prompt), " caves"])
    sequence = encode_pair("d", prompt, "caves", tokenizer, TEMPLATE, 9)
    document = Document(prompt=prompt, answer="caves")
    assert token_units(sequence, document, tokenizer, TEMPLATE).texts == ("four", "five", "six")
    assert [len(p) for p in word_units(sequence, document, tokenizer, TEMPLATE).places] == [
        0,
        0,
        0,
        1,
        1,
        1,
    ]


@pytest.mark.parametrize("family", CONFIGS)
def test_integrated_gradients_add_up_to_the_difference_that_the_tokens_make(family: str) -> None:
    """Completeness, the axiom they are named for: the sum over tokens is LP with them minus LP with
    padding in their place.

    Matrices of the size that trained ones have: at their first 0.02 a path of any kind would be
    straight.
    """
    model, sequence, places = tiny_model(family), SEQUENCES[2], [1, 2, 4]
    for matrix in (p for p in model.parameters() if p.dim() == 2):
        matrix.data.mul_(10)
    values = integrated_gradients(model, sequence, places, steps=256, baseline_id=0)
    padded = [0 if at in places else i for at, i in enumerate(sequence.ids)]
    with torch.no_grad():
        whole, without_them = (
            log_prob(model, list(ids), sequence.start) for ids in (sequence.ids, padded)
        )
    assert abs(whole - without_them) > 0.02
    torch.testing.assert_close(values.sum(), whole - without_them, atol=1e-4, rtol=1e-2)
    assert (
        len(values) == 3 and (values != 0).all() and all(p.grad is None for p in model.parameters())
    )


def test_gradients_without_the_library_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("rayunlearn.attribution.integrated_gradients.find_spec", lambda _name: None)
    with pytest.raises(
        UserError, match=r"explain\.gradient_steps must be 0 without captum .* got 8"
    ):
        integrated_gradients(tiny_model(), SEQUENCES[0], [1], steps=8, baseline_id=0)
