"""Encoding and forward passes against the plain way:
one unpadded sequence, all logits, all layers.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rayunlearn.data.tokenize import Encoded, by_length, collate
from rayunlearn.models.forward import blocks, can_pack, hidden_states, score, token_nll
from tests.tiny_models import CONFIGS, SEQUENCES, tiny_model

FAMILIES = sorted(CONFIGS)


def plain_nll(model: torch.nn.Module, sequence: Encoded) -> list[float]:
    """-log p of every label, from the full logits of the unpadded sequence."""
    logits = model(input_ids=torch.tensor([sequence.ids])).logits[0].float()
    log_probs = logits.log_softmax(-1)
    return [
        -float(log_probs[t - 1, sequence.ids[t]]) for t in range(sequence.start, len(sequence.ids))
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_token_nll_of_a_padded_batch_equals_unpadded_rows(family: str) -> None:
    model = tiny_model(family)
    batch = collate(SEQUENCES)
    with torch.no_grad():
        nll = token_nll(model, batch)
        for row, sequence in enumerate(SEQUENCES):
            torch.testing.assert_close(
                nll[row][batch.labelled[row]],
                torch.tensor(plain_nll(model, sequence)),
                rtol=1e-5,
                atol=1e-5,
            )
    assert torch.equal(nll[~batch.labelled], torch.zeros(int((~batch.labelled).sum())))


@pytest.mark.parametrize("pad_id", [0, 2, 5])
def test_the_choice_of_pad_token_changes_nothing_even_when_it_is_eos(pad_id: int) -> None:
    model = tiny_model()
    batch = collate(SEQUENCES)
    padded = replace(batch, input_ids=batch.input_ids.where(batch.present, pad_id))
    assert pad_id == 0 or not torch.equal(padded.input_ids, batch.input_ids)
    with torch.no_grad():
        assert torch.equal(token_nll(model, collate(SEQUENCES)), token_nll(model, padded))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_hidden_states_equal_the_block_output_of_a_full_forward(family: str, layer: int) -> None:
    model = tiny_model(family)
    batch = collate(SEQUENCES)
    caught: list[Tensor] = []
    handle = blocks(model)[layer].register_forward_hook(
        lambda _m, _i, o: caught.append(o[0] if isinstance(o, tuple) else o)
    )
    with torch.no_grad():
        model(input_ids=batch.input_ids)
        handle.remove()
        found = hidden_states(model, batch, layer)
    # the batch is padded there and packed here
    close = torch.testing.assert_close
    close(found[batch.present], caught[0][batch.present], rtol=1e-6, atol=1e-7)


def test_nothing_above_the_wanted_block_runs() -> None:
    model = tiny_model()
    # the first use tries the model as a whole
    can_pack(model)
    ran: list[int] = []
    for index, block in enumerate(blocks(model)):
        block.register_forward_hook(lambda _m, _i, _o, index=index: ran.append(index))
    hidden_states(model, collate(SEQUENCES), 1)
    assert ran == [0, 1]


def test_scores_come_in_the_order_given_whatever_the_batching() -> None:
    model = tiny_model()
    at_once, one_by_one = score(model, SEQUENCES), score(model, SEQUENCES, tokens_per_batch=1)
    for left, right, sequence in zip(at_once, one_by_one, SEQUENCES, strict=True):
        assert len(left.token_nll) == len(sequence.ids) - sequence.start
        torch.testing.assert_close(left.token_nll, right.token_nll, rtol=1e-5, atol=1e-5)
        assert torch.equal(left.correct, right.correct)


def test_batches_by_length_hold_every_position_once_within_the_budget() -> None:
    lengths = [3, 9, 1, 4, 4, 20, 2]
    sequences = [Encoded(str(n), tuple(range(n)), 1) for n in lengths]
    batches = list(by_length(sequences, 12))
    assert sorted(p for batch in batches for p in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[p] for p in b) <= 12 for b in batches)
