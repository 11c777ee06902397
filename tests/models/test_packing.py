"""Packed passes against padded ones, family by family: logits, states, losses and gradients."""

import logging
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayunlearn.data.tokenize import Batch, Encoded, collate
from rayunlearn.methods.forget import npo, rmu
from rayunlearn.methods.objective import ObjectiveSettings, Side, UnlearningObjective
from rayunlearn.methods.retain import activation, nll
from rayunlearn.models import packing
from rayunlearn.models.forward import (
    blocks,
    can_pack,
    hidden_states,
    label_logits,
    outputs_of,
    score,
    score_branches,
    token_nll,
)
from rayunlearn.models.packed_layout import branching_layout, layout_of
from rayunlearn.models.packing import Abilities, abilities, padded_passes
from rayunlearn.models.reference import reference_of
from rayunlearn.train.step import StepLoss
from tests.families import FAMILIES, PADDED, toy_model
from tests.tiny_models import SEQUENCES, tiny_model

OTHERS = [
    Encoded("d", (1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 2), 7),
    Encoded("e", (1, 21, 22, 2), 2),
]


def close(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-6 of the largest number."""
    most = float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=max(1e-8, 1e-6 * most))


def gradients(model: PreTrainedModel, batch: Batch) -> list[Tensor | None]:
    losses = token_nll(model, batch).sum()
    return list(torch.autograd.grad(losses, list(model.parameters()), allow_unused=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_pass_gives_what_the_padded_one_gives(family: str) -> None:
    """Texts longer than the window of the families that have one, of unlike lengths, in one row."""
    model, batch = toy_model(family), collate([*SEQUENCES, *OTHERS])
    assert can_pack(model) == (family not in PADDED)
    assert abilities(model, blocks(model)[-1]) == Abilities(can_pack(model), can_pack(model))
    found = label_logits(model, batch), hidden_states(model, batch, 0), gradients(model, batch)
    with padded_passes():
        padded = label_logits(model, batch), hidden_states(model, batch, 0)
        close(found[0], padded[0])
        close(found[1][batch.present], padded[1][batch.present])
        expected = gradients(model, batch)
    largest = max(float(g.abs().max()) for g in expected if g is not None)
    for packed, plain in zip(found[2], expected, strict=True):
        assert (packed is None) == (plain is None)
        if packed is not None and plain is not None:
            torch.testing.assert_close(packed, plain, rtol=2e-5, atol=1e-6 * largest)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "qwen2_moe"])
def test_a_sequence_says_the_same_whatever_else_is_in_the_row(family: str) -> None:
    model = toy_model(family)
    together, alone = score(model, [*SEQUENCES, *OTHERS]), score(model, SEQUENCES)
    for left, right in zip(together, alone, strict=False):
        close(left.token_nll, right.token_nll)


ALIKE = (1, 3, 4, 5, 6, 7, 8, 9, 10)
BRANCHES = [
    Encoded("a", (*ALIKE, 11, 12, 13, 14, 15, 16, 17, 18, 2), 9),
    Encoded("b", (*ALIKE, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20), 17),
    Encoded("c", (*ALIKE, 21, 2), 9),
    Encoded("d", (1, 3, 22, 2), 2),
    Encoded("e", ALIKE, 8),
    Encoded("f", (*ALIKE, 21, 2), 10),
    Encoded("g", (5,), 1),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_that_begin_alike_score_as_each_by_itself(family: str) -> None:
    """Beginnings within beginnings, one text that is the beginning of others, one twice, one
    without a label; longer than the window of the families that have one.
    """
    model = toy_model(family)
    for shared, (text, alone) in zip(
        score_branches(model, BRANCHES),
        ((text, score(model, [text])[0]) for text in BRANCHES),
        strict=True,
    ):
        assert len(shared.token_nll) == len(text.ids) - text.start
        assert torch.equal(shared.correct, alone.correct)
        if len(alone.token_nll):
            close(shared.token_nll, alone.token_nll)


def test_what_texts_begin_with_alike_is_in_a_branching_row_once() -> None:
    """Nine tokens of five texts, eight more of a and b, then each one's own. `d` goes its way after
    two tokens, and c is f, with two tokens more: too few to be laid down once.
    """
    batch = collate(BRANCHES)
    layout = branching_layout(batch)
    # g, d, what a, b, c, e and f begin with; then c and f, a with b; what is left of a and of b
    assert [size for _, size, _ in layout.groups] == [1, 4, 9, 2, 8, 1, 2]
    assert [len(before) for before in layout.before] == [0, 0, 0, 2 * 9, 9, 17, 17]
    row, width = layout.pack([batch.input_ids])[0], batch.input_ids.shape[1]
    assert len(row) == 29 and sum(len(text.ids) for text in BRANCHES) == 73
    for number, text in enumerate(BRANCHES):
        rows = layout.rows[number * width : number * width + len(text.ids)]
        assert row[rows].tolist() == list(text.ids)
        assert layout.positions[0, rows].tolist() == list(range(len(text.ids)))
    assert not layout.trims


def test_the_layout_of_two_batches_worked_by_hand() -> None:
    """Lengths 3, 2 (one label each) and 2 (no label): by length, then labels; the row is
    f0 f1 | b0 b1 | a0 a1 a2."""
    first = collate([Encoded("a", (1, 5, 6), 2), Encoded("b", (7, 8), 1)])
    second = collate([Encoded("f", (3, 4), 2)])
    layout = layout_of([first, second])
    assert layout.groups == ((1, 2, 0), (1, 2, 1), (1, 3, 1))
    assert layout.places.tolist() == [6, 7, 3, 4, 0, 1, 2]
    assert layout.positions.tolist() == [[0, 1, 0, 1, 0, 1, 2]]
    # a's label is predicted from a1, b's from b0
    assert layout.predicting.tolist() == [5, 2] and layout.queries.tolist() == [2, 5]
    ids = layout.pack([first.input_ids, second.input_ids])
    assert ids.tolist() == [[3, 4, 7, 8, 1, 5, 6]]
    back = layout.unpack(ids[..., None].float())
    assert torch.equal(back[0][..., 0], first.input_ids.float())
    assert torch.equal(back[1][..., 0], second.input_ids.float())


def test_the_last_block_runs_at_label_positions_and_no_block_sees_padding() -> None:
    model, batch = tiny_model(), collate([*SEQUENCES, *OTHERS])
    can_pack(model)
    rows: list[int] = []
    for block in blocks(model):
        block.mlp.register_forward_hook(lambda _m, _i, output: rows.append(output.shape[1]))
    label_logits(model, batch)
    n_tokens, n_labels = int(batch.present.sum()), int(batch.labelled.sum())
    assert rows == [n_tokens, n_tokens, n_labels]
    rows.clear()
    hidden_states(model, batch, 2)
    assert rows == [n_tokens] * 3


def test_a_batch_without_a_label_has_no_logits() -> None:
    batch = collate(SEQUENCES)
    unlabelled = replace(batch, labelled=torch.zeros_like(batch.labelled))
    assert label_logits(tiny_model(), unlabelled).shape == (0, 37)


def test_two_batches_in_one_pass_get_what_each_gets_alone() -> None:
    model, batches = tiny_model("mistral"), [collate(SEQUENCES), collate(OTHERS)]
    together = outputs_of(model, batches, [None, None], layer=1)
    for (logits, hidden), batch in zip(together, batches, strict=True):
        assert logits is not None and hidden is not None
        close(logits, label_logits(model, batch))
        close(hidden, hidden_states(model, batch, 1))


def step(model: PreTrainedModel, losses: tuple[object, object], *, one_pass: bool) -> StepLoss:
    """Step 0 of the two losses on SEQUENCES and OTHERS."""
    reference = reference_of(tiny_model(seed=4), [*SEQUENCES, *OTHERS], ["token_nll", "hidden"], 1)
    settings = ObjectiveSettings(
        retain_weight=1.5, layer=1, batch_size=2, seed=0, one_pass=one_pass
    )
    sides = map(partial(Side, reference=reference), losses, (SEQUENCES, OTHERS))
    return UnlearningObjective(model, *sides, settings)(0)


@pytest.mark.parametrize(
    ("losses", "n_calls"), [((npo, nll), 1), ((rmu, activation), 1), ((npo, activation), 2)]
)
def test_a_step_in_one_pass_is_the_step_of_a_pass_per_side(
    losses: tuple[object, object], n_calls: int
) -> None:
    """Sides that end at the same place share a pass; a side that ends below the head has its own,
    so that nothing above its block runs for it."""
    model = tiny_model()
    can_pack(model)
    found: list[list[Tensor]] = []
    for one_pass in (False, True):
        calls: list[int] = []
        count = blocks(model)[0].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        result = step(model, losses, one_pass=one_pass)
        count.remove()
        assert len(calls) == (n_calls if one_pass else 2)
        weights = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(result.total, weights, allow_unused=True)
        terms = [t.detach() for t in (result.forget, result.retain) if t is not None]
        found.append([*terms, *(g for g in grads if g is not None)])
    for apart, joint in zip(*found, strict=True):
        torch.testing.assert_close(joint, apart, rtol=1e-5, atol=1e-6)
    assert abs(float(found[0][0] - found[1][0])) <= 1e-6 * abs(float(found[0][0]))


def test_a_window_that_attention_is_not_told_of_is_not_packed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(packing, "_SAID", set())
    with caplog.at_level(logging.WARNING, "rayunlearn"):
        for _ in range(2):
            model = tiny_model()
            # no layer of a Llama has one
            model.config.sliding_window = 4
            assert not can_pack(model)
    assert len(caplog.messages) == 1 and "every pass is padded" in caplog.messages[0]
    unknown = tiny_model()
    unknown.config.layer_types = ["chunked_attention"] * 3
    assert not can_pack(unknown)


def test_a_model_has_its_own_attention_back_after_a_pass_and_after_a_failed_one() -> None:
    model, batch = tiny_model(), collate(SEQUENCES)
    before = model.config._attn_implementation
    label_logits(model, batch)
    blocks(model)[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        label_logits(model, batch)
    assert model.config._attn_implementation == before
    assert not any("forward" in module.__dict__ for module in model.modules())
