"""Activation patching against a model computed block by block, and on every family."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rayunlearn.data.tokenize import Encoded
from rayunlearn.errors import UserError
from rayunlearn.models.packing import padded_passes
from rayunlearn.models.patching import key_sequence, patching_gaps, states_by_block
from tests.families import FAMILIES, SHAPE, toy_model

SEQUENCES = [
    Encoded("a", (3, 9, 4, 11, 5, 8, 2), start=3, key=(1, 3)),
    Encoded("b", (7, 6, 12, 2), start=2),
    Encoded("c", (5, 8, 3, 14, 13, 6, 10, 9, 2), start=4, key=(0, 1)),
]


def key_places(sequence: Encoded) -> list[int]:
    """Where the key's tokens stand in the text."""
    first, last = sequence.key or (0, len(sequence.ids) - sequence.start - 1)
    return list(range(sequence.start + first, sequence.start + last))


def streams(
    model: PreTrainedModel, ids: tuple[int, ...], patch: tuple[int, torch.Tensor] | None = None
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What each block of a Llama gives and log p of every next token, one block after the other.

    `patch`: a block, and states (T, D), NaN where the model's own stay.
    """
    inner = model.model
    with torch.no_grad():
        hidden = inner.embed_tokens(torch.tensor([ids]))
        places = torch.arange(len(ids))[None]
        mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)[None, None]
        rotary = inner.rotary_emb(hidden, places)
        found = []
        for number, block in enumerate(inner.layers):
            output = block(hidden, attention_mask=mask, position_embeddings=rotary)
            hidden = output[0] if isinstance(output, tuple) else output
            if patch is not None and patch[0] == number:
                hidden = torch.where(patch[1].isnan(), hidden[0], patch[1])[None]
            found.append(hidden[0])
        return found, model.lm_head(inner.norm(hidden))[0].log_softmax(-1)


def brute_gaps(target: PreTrainedModel, source: PreTrainedModel, sequence: Encoded) -> list[float]:
    """The gaps of one document from its whole text, its end included."""
    ids, places = sequence.ids, key_places(sequence)
    theirs, (_, plain) = streams(source, ids)[0], streams(target, ids)
    gaps = []
    for number in range(len(theirs)):
        states = torch.full_like(theirs[number], torch.nan)
        for place in places:
            states[place - 1] = theirs[number][place - 1]
        patched = streams(target, ids, (number, states))[1]
        lost = [float(plain[p - 1, ids[p]] - patched[p - 1, ids[p]]) for p in places]
        gaps.append(sum(lost) / len(lost))
    return gaps


def gaps_of(
    target: PreTrainedModel, source: PreTrainedModel, sequences: list[Encoded] = SEQUENCES
) -> list[torch.Tensor]:
    asked = [key_sequence(s) for s in sequences]
    return patching_gaps(target, asked, states_by_block(source, asked))


def test_gaps_are_those_of_patching_one_document_after_the_other_block_by_block() -> None:
    """In one batch of three lengths, cut after the key, packed and padded: the same as whole texts
    alone. A document without a key is asked for its answer without the end.
    """
    target, source = (toy_model("llama", seed=seed) for seed in (0, 1))
    expected = [brute_gaps(target, source, sequence) for sequence in SEQUENCES]
    with padded_passes():
        padded = gaps_of(target, source)
    for found, again, wanted in zip(gaps_of(target, source), padded, expected, strict=True):
        assert found.tolist() == pytest.approx(wanted, abs=1e-3), "logits are tens here"
        assert again.tolist() == pytest.approx(wanted, abs=1e-3)
    assert max(abs(gap) for gaps in expected for gap in gaps) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_loses_nothing_by_its_own_states_and_something_by_another_s(family: str) -> None:
    """With its own states a model computes what it computes without any; the last block's states
    decide by themselves what another model would say.
    """
    target, other = (toy_model(family, seed=seed) for seed in (0, 1))
    own = torch.stack(gaps_of(target, target))
    assert own.shape == (len(SEQUENCES), 2) and own.abs().max() < 1e-3
    assert torch.stack(gaps_of(target, other)).abs().max() > 0.1


def test_models_of_other_shapes_are_refused() -> None:
    small = toy_model("llama")
    config = AutoConfig.for_model("llama", vocab_size=37, **{**SHAPE, "num_hidden_layers": 3})
    deep = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match="2 blocks of width 16, the other model, got .3 blocks of"):
        gaps_of(small, deep)


def test_a_family_whose_blocks_give_another_thing_is_refused_in_words() -> None:
    """A block that gives four streams at once, as Gemma 3n's do."""
    model, asked = toy_model("llama"), [key_sequence(SEQUENCES[1])]
    states_by_block(model, asked)
    model.model.layers[0].register_forward_hook(lambda _m, _i, out: out.expand(4, *out.shape))
    with padded_passes(), pytest.raises(UserError, match=r"those of LlamaForCausalLM give \(4, "):
        states_by_block(model, asked)
