"""Batched generation: the tokens of one prompt at a time, whatever shares its batch."""

import math
from collections import Counter

import pytest
import torch
from transformers import PreTrainedModel

from rayunlearn.data.tokenize import Encoded, encode_pair
from rayunlearn.errors import UserError
from rayunlearn.models.generate import ends_of, generate_texts, n_closing, nucleus
from tests.tiny_models import CONFIGS, tiny_model
from tests.tokenizer_kinds import chat_tokenizer

PROMPTS = [
    (1, 5, 6, 7, 8),
    (1,),
    (1, 9, 3),
    (1, 11, 12, 13, 14, 15, 16, 17, 18),
    (1, 3),
    (4, 4, 4),
    (1, 30, 31, 32, 33, 34),
]


def one_by_one(
    model: PreTrainedModel, prompt: tuple[int, ...], steps: int, end: int
) -> tuple[int, ...]:
    """The definition: the whole sequence through the model for every token, no cache, no batch, no
    padding.
    """
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token == end:
                break
            ids.append(token)
    return tuple(ids[len(prompt) :])


def frequent_token(model: PreTrainedModel) -> int:
    """A token that greedy texts of the prompts reach early in some and late or never in others: it
    is made their end.
    """
    texts = [one_by_one(model, p, 20, -1) for p in PROMPTS]
    return Counter(t for text in texts for t in set(text[2:])).most_common(1)[0][0]


@pytest.mark.parametrize("family", sorted(CONFIGS))
@pytest.mark.parametrize("tokens_per_batch", [8192, 60])
def test_a_batch_writes_what_each_prompt_alone_gets(family: str, tokens_per_batch: int) -> None:
    """Prompts of seven lengths, an end token that some texts reach: rows are padded, and leave the
    cache at different steps.
    """
    model = tiny_model(family, seed=3)
    end = frequent_token(model)
    alone = [one_by_one(model, p, 20, end) for p in PROMPTS]
    assert len({len(text) for text in alone}) > 1, (
        "every text has the same length: the end is not tested"
    )
    assert (
        generate_texts(
            model, PROMPTS, ends=((end,),), max_new_tokens=20, tokens_per_batch=tokens_per_batch
        )
        == alone
    )


def test_what_pads_a_prompt_does_not_matter() -> None:
    model = tiny_model()
    assert generate_texts(model, PROMPTS, ends=((2,),), max_new_tokens=8) == generate_texts(
        model, PROMPTS, ends=((2,),), max_new_tokens=8
    )


def test_a_text_ends_at_the_first_of_several_ends_and_without_it() -> None:
    """The greedy text of a prompt, made to end at its tokens 5 and 6 together, or at token 3."""
    model = tiny_model(seed=3)
    text = one_by_one(model, PROMPTS[0], 20, -1)
    pair, single = text[5:7], text[3:4]
    first_pair = next(at for at in range(19) if text[at : at + 2] == pair)
    assert generate_texts(model, PROMPTS[:1], ends=(pair,), max_new_tokens=20) == [
        text[:first_pair]
    ]
    both = generate_texts(model, PROMPTS[:1], ends=(pair, single), max_new_tokens=20)
    assert both == [text[: min(first_pair, text.index(single[0]))]]
    assert n_closing([4, 5, 6], ((6, 5), (5, 6))) == 2 and n_closing([4, 5], ((6,),)) == 0


@pytest.mark.parametrize(("listed", "more"), [(None, []), (5, [5]), ([5, 7], [5, 7])])
def test_texts_end_where_the_model_its_tokenizer_and_the_answers_say(
    listed: int | list[int] | None, more: list[int]
) -> None:
    """generation_config's one or several, the tokenizer's, and the end of turn of the template."""
    tokenizer, model = chat_tokenizer("mistral", "phi3"), tiny_model()
    model.generation_config.eos_token_id = listed
    turn = tokenizer.convert_tokens_to_ids("<|end|>")
    asked = encode_pair("d", "Who?", "Ada", tokenizer, "chat", 64)
    expected = {(i,) for i in [tokenizer.eos_token_id, *more]}
    assert set(ends_of(model, tokenizer)) == expected
    assert set(ends_of(model, tokenizer, [asked])) == expected | {(turn,)}


def test_an_end_of_turn_in_words_is_looked_for_whole_and_a_special_one_without_its_blank() -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = None
    in_words, special = chat_tokenizer("gpt2", "text_end"), chat_tokenizer("mistral", "llama2")
    asked = encode_pair("d", "Who?", "Ada", in_words, "chat", 64)
    closing = asked.ids[len(asked.ids) - asked.n_end :]
    assert len(closing) > 1 and in_words.decode(closing) == "\n### End"
    assert set(ends_of(model, in_words, [asked])) == {(in_words.eos_token_id,), closing}
    spaced = encode_pair("d", "Who?", "Ada", special, "chat", 64)
    assert spaced.n_end == 2
    assert ends_of(model, special, [spaced]) == ((special.eos_token_id,),)
    assert ends_of(model, None, [Encoded("d", (1, 4, 9), 1, 0)]) == ()


def test_a_full_context_ends_a_text() -> None:
    """64 positions: a prompt of 62 tokens has room for two."""
    model = tiny_model()
    texts = generate_texts(model, [(5,) * 62, (5, 6)], ends=(), max_new_tokens=6)
    assert [len(text) for text in texts] == [2, 6]


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    """An empty text was its continuation, whose ROUGE is 0: forgotten."""
    with pytest.raises(UserError, match="leave room to answer, at most 63 tokens of 64, got 64"):
        generate_texts(tiny_model(), [(5, 6), (5,) * 64], ends=(), max_new_tokens=6)


def test_a_sample_is_its_seed_s_own() -> None:
    model = tiny_model()
    seeds = [f"row {at}" for at in range(len(PROMPTS))]
    together = generate_texts(
        model, PROMPTS, ends=((2,),), max_new_tokens=6, temperature=1.0, seeds=seeds
    )
    alone = [
        generate_texts(model, [p], ends=((2,),), max_new_tokens=6, temperature=1.0, seeds=[s])[0]
        for p, s in zip(PROMPTS, seeds, strict=True)
    ]
    assert together == alone
    assert (
        len(
            {
                generate_texts(
                    model, [(1, 5)], ends=(), max_new_tokens=6, temperature=1.0, seeds=[f"{s}"]
                )[0]
                for s in range(8)
            }
        )
        > 1
    )


def test_samples_follow_the_model_s_probabilities() -> None:
    """First tokens of 2,000 samples against the softmax at that temperature: every share within
    four standard errors.
    """
    model, n = tiny_model(seed=1), 2000
    drawn = generate_texts(
        model,
        [(1, 5)] * n,
        ends=(),
        max_new_tokens=1,
        temperature=0.7,
        seeds=[str(i) for i in range(n)],
    )
    with torch.no_grad():
        expected = (model(input_ids=torch.tensor([(1, 5)])).logits[0, -1] / 0.7).softmax(-1)
    shares = torch.bincount(torch.tensor([text[0] for text in drawn]), minlength=len(expected)) / n
    assert float(((shares - expected).abs() / (expected * (1 - expected) / n).sqrt()).max()) < 4


def test_nucleus_keeps_the_fewest_tokens_that_reach_the_probability() -> None:
    """Probabilities 0.5, 0.3, 0.15, 0.05: 0.8 is reached by two, 0.81 needs three; the first always
    stays.
    """
    logits = torch.tensor([[math.log(p) for p in (0.15, 0.5, 0.05, 0.3)]])
    assert [float(x) > -math.inf for x in nucleus(logits, 0.81)[0]] == [True, True, False, True]
    assert [float(x) > -math.inf for x in nucleus(logits, 0.79)[0]] == [False, True, False, True]
    assert [float(x) > -math.inf for x in nucleus(logits, 0.1)[0]] == [False, True, False, False]
    assert nucleus(logits, 1.0) is logits


def test_an_empty_prompt_and_missing_seeds_are_mistakes() -> None:
    with pytest.raises(UserError, match="at least one token"):
        generate_texts(tiny_model(), [(1,), ()], ends=((2,),), max_new_tokens=2)
    with pytest.raises(UserError, match="one seed for each of 1 prompts, got 0"):
        generate_texts(tiny_model(), [(1,)], ends=((2,),), max_new_tokens=2, temperature=1.0)
