"""Texts that begin with a model's opening follow one copy of it: the same logits, states and
gradients as where each text has its own.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayunlearn.config import Data, Trial
from rayunlearn.data.tokenize import Batch, Encoded, collate, encode_pair
from rayunlearn.models.forward import (
    PrefixStart,
    hidden_states,
    outputs_of,
    score,
    token_nll,
)
from rayunlearn.models.packed_layout import layout_of, opening_of, share_opening
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.model_state import ModelState
from rayunlearn.trial.workspace import Workspace
from tests.families import FAMILIES, PADDED, toy_model
from tests.tiny_models import tiny_model
from tests.tokenizer_kinds import chat_tokenizer

OPENING = (1, 3, 4, 5, 6, 7, 8, 9)
# of the last two one begins otherwise, and one has a label right behind the opening
TEXTS = [
    Encoded("a", (*OPENING, 11, 12, 13, 14, 15, 16, 17, 18, 2), 12),
    Encoded("b", (*OPENING, 21, 22, 23, 24, 25, 26, 27, 28, 29, 2), 9),
    Encoded("c", (*OPENING, 31, 32, 2), 10),
    Encoded("d", (1, 3, 4, 5, 6, 7, 8, 10, 33, 2), 9),
    Encoded("e", (*OPENING, 34, 35, 2), 8),
]
OTHERS = [Encoded("f", (*OPENING, 36, 30, 20, 19, 2), 11)]


def values_of(model: PreTrainedModel, batches: Sequence[Batch]) -> list[Tensor]:
    """Logits and states of block 0 of each batch in one pass, then the gradients of their sums."""
    outputs = outputs_of(model, batches, [None] * len(batches), layer=0)
    tensors = [tensor for pair in outputs for tensor in pair if tensor is not None]
    total = torch.stack([tensor.square().sum() for tensor in tensors]).sum()
    gradients = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    found = [g for g in gradients if g is not None]
    return [tensor.detach() for tensor in (*tensors, *found)]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in PADDED])
def test_a_shared_opening_changes_no_logit_state_or_gradient(family: str) -> None:
    model, batches = toy_model(family), [collate(TEXTS), collate(OTHERS)]
    plain = values_of(model, batches)
    share_opening(model, OPENING)
    shared = values_of(model, batches)
    assert not (shared[1][~batches[0].present] != 0).any()
    largest = max(float(value.abs().max()) for value in plain[4:])
    for number, (found, expected) in enumerate(zip(shared, plain, strict=True)):
        most = float(expected.abs().max()) if number < 4 else largest
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6 * most)


def test_the_layout_of_an_opening_worked_by_hand() -> None:
    """Opening 1 2 (a layout takes any): `a` and `c` begin with it, `b` does not. Sequences stand by
    tokens before them, tokens, labels: opening | b | rest of c | rest of a.
    """
    first = collate([Encoded("a", (1, 2, 5, 6), 3), Encoded("b", (1, 7), 1)])
    second = collate([Encoded("c", (1, 2, 8), 3)])
    layout = layout_of([first, second], (1, 2))
    assert layout.groups == ((1, 2, 0), (1, 2, 1), (1, 1, 0), (1, 2, 1))
    ids = layout.pack([first.input_ids, second.input_ids])
    assert ids.tolist() == [[1, 2, 1, 7, 8, 5, 6]]
    assert layout.positions.tolist() == [[0, 1, 0, 1, 2, 2, 3]]
    assert [tokens.tolist() for tokens in layout.before] == [[], [], [0, 1], [0, 1]]
    # a's label is predicted from its 5, b's from b0
    assert layout.predicting.tolist() == [5, 2] and layout.queries.tolist() == [2, 5]
    back = layout.unpack(ids[..., None].float())
    assert torch.equal(back[0][..., 0], first.input_ids.float())
    assert torch.equal(back[1][..., 0], second.input_ids.float())


def test_texts_without_the_opening_or_with_labels_in_it_are_laid_down_whole() -> None:
    batch = collate(TEXTS[3:])
    opened, plain = layout_of([batch], OPENING), layout_of([batch])
    assert opened.groups == plain.groups and torch.equal(opened.places, plain.places)
    assert opened.before == () and opened.repeated is None
    n_tokens = sum(len(text.ids) for text in TEXTS)
    assert len(layout_of([collate(TEXTS)], OPENING).places) == n_tokens - 2 * len(OPENING)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_with_an_opening_too_a_text_says_the_same_bits_whatever_else_is_there(family: str) -> None:
    """Each batch has at least 16 rows, from which on products round a row alike."""
    model = toy_model(family)
    share_opening(model, OPENING)
    together = score(model, [*TEXTS, *OTHERS])
    for text, in_company in zip(TEXTS[:2], together, strict=False):
        (alone,) = score(model, [text])
        assert torch.equal(alone.token_nll, in_company.token_nll)


def test_a_pass_from_a_prefix_is_the_whole_pass_with_an_opening() -> None:
    model, batch = tiny_model(), collate(TEXTS)
    share_opening(model, OPENING)
    start = PrefixStart(1, hidden_states(model, batch, 0).detach())
    assert torch.equal(hidden_states(model, batch, 2, start), hidden_states(model, batch, 2))


def test_too_short_an_opening_is_not_shared() -> None:
    model = tiny_model()
    share_opening(model, OPENING[:7])
    assert opening_of(model) == ()
    assert opening_of(tiny_model()) == ()


@pytest.mark.parametrize("template", ["chat", "Question: {prompt}\nAnswer:"])
def test_a_trial_on_conversations_shares_what_its_template_begins_with(
    template: str, tmp_path: Path
) -> None:
    """Qwen 2.5 writes a system prompt of its own before every question."""
    tokenizer, model = chat_tokenizer("qwen", "qwen25"), tiny_model()
    trial = Trial(data=replace(Data(), template=template))
    workspace = Workspace(corpus=None, base="", gold="", base_digest="", cache=tmp_path)  # type: ignore[arg-type]
    TrialContext(trial, workspace, ModelState(model, tokenizer, {}, 0))
    text = encode_pair("d", "Who?", "You.", tokenizer, template, 200)
    opening = opening_of(model)
    assert bool(opening) == (template == "chat") and text.ids[: len(opening)] == opening


def test_the_nll_of_a_padded_pass_is_that_of_a_shared_opening() -> None:
    """Beside a plain forward pass of each text alone, with a mask that the library makes."""
    model = tiny_model()
    share_opening(model, OPENING)
    nll = token_nll(model, collate(TEXTS)).detach()
    for row, text in zip(nll, TEXTS, strict=True):
        with torch.no_grad():
            log_p = model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
        for at in range(text.start, len(text.ids)):
            assert float(row[at]) == pytest.approx(-float(log_p[at - 1, text.ids[at]]), rel=1e-5)
