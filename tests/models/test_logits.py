"""Logits at chosen positions are those of the model's own forward pass, family by family and
caller by caller.
"""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rayunlearn.attacks.adversarial_prompts import PromptObjective, losses_of_prompts
from rayunlearn.attacks.probing import lens_nll
from rayunlearn.attribution.integrated_gradients import integrated_gradients
from rayunlearn.data.tokenize import Encoded, collate
from rayunlearn.errors import UserError
from rayunlearn.models import logits as logits_module
from rayunlearn.models.document_features import document_features
from rayunlearn.models.forward import (
    PrefixStart,
    hidden_states,
    label_logits,
    normed_states,
    score,
    token_nll,
)
from rayunlearn.models.load import load_model
from rayunlearn.models.logits import can_split, final_states, logits_of_states
from tests.families import FAMILIES, toy_model
from tests.tiny_models import SEQUENCES, SHAPE

# those that do something to the logits after the head, and one that projects before it
LAST_STEPS = ("gemma2", "cohere", "cohere2", "granite", "opt")


class Louder(LlamaForCausalLM):
    """A family whose last step depends on the token ids: it cannot run on states alone."""

    def forward(self, input_ids: Tensor, **options: object) -> object:  # type: ignore[override]
        output = super().forward(input_ids=input_ids, **options)
        output.logits = output.logits * (1 + input_ids[..., None] / 10)
        return output


def louder() -> PreTrainedModel:
    torch.manual_seed(0)
    return Louder(LlamaConfig(**SHAPE)).eval()


def own_logits(model: PreTrainedModel, sequence: Encoded) -> Tensor:
    """Logits (n, V) of the n labels from the whole model and the unpadded sequence."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([sequence.ids])).logits[0].float()
    return logits[sequence.start - 1 : -1]


def own_nll(model: PreTrainedModel, sequence: Encoded) -> Tensor:
    labels = torch.tensor(sequence.ids[sequence.start :])
    return torch.nn.functional.cross_entropy(own_logits(model, sequence), labels, reduction="none")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_whole_forward_pass(family: str) -> None:
    model = toy_model(family)
    expected = torch.cat([own_logits(model, sequence) for sequence in SEQUENCES])
    with torch.no_grad():
        found = label_logits(model, collate(SEQUENCES))
    assert can_split(model)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", LAST_STEPS)
def test_features_and_scores_use_the_model_s_own_logits(family: str) -> None:
    model = toy_model(family)
    features, scored = document_features(model, SEQUENCES), score(model, SEQUENCES)
    for sequence, feature, one in zip(SEQUENCES, features, scored, strict=True):
        expected = own_nll(model, sequence)
        torch.testing.assert_close(feature.token_nll, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(one.token_nll, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", LAST_STEPS)
def test_a_searched_prompt_s_loss_is_the_whole_model_s(family: str) -> None:
    model, prompts = toy_model(family), torch.tensor([[20, 21], [30, 31]])
    goal = PromptObjective(collate(SEQUENCES), 1, fluency=0.5)
    found = losses_of_prompts(model, goal, prompts)
    for loss, prompt in zip(found, prompts.tolist(), strict=True):
        asked = [Encoded(s.doc_id, (s.ids[0], *prompt, *s.ids[1:]), s.start + 2) for s in SEQUENCES]
        expected = torch.cat([own_nll(model, sequence) for sequence in asked]).mean()
        alone = Encoded("prompt", (1, *prompt), 1)
        expected = expected + 0.5 * own_nll(model, alone).mean()
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", LAST_STEPS)
def test_integrated_gradients_add_up_to_the_whole_model_s_difference(family: str) -> None:
    pytest.importorskip("captum")
    model, sequence = toy_model(family), SEQUENCES[2]
    values = integrated_gradients(model, sequence, [1, 2], steps=400, baseline_id=0)
    start = Encoded("start", (sequence.ids[0], 0, 0, *sequence.ids[3:]), sequence.start)
    difference = own_nll(model, start).mean() - own_nll(model, sequence).mean()
    torch.testing.assert_close(values.sum(), difference, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_the_last_block_lead_to_the_model_s_logits(family: str) -> None:
    model, batch = toy_model(family), collate(SEQUENCES)
    with torch.no_grad():
        states = hidden_states(model, batch, 1).flatten(0, 1)[batch.places - 1]
        found = logits_of_states(model, normed_states(model, states))
        torch.testing.assert_close(found, label_logits(model, batch), rtol=0, atol=1e-4)


def test_a_model_is_tried_when_it_is_loaded_and_what_is_wrong_is_said_once(
    untaught_models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logits_module, "_SAID", set())
    with caplog.at_level(logging.WARNING, "rayunlearn"):
        load_model(str(untaught_models / "base"))
        assert not caplog.messages
        # now no model agrees
        monkeypatch.setattr(logits_module, "_in_two_parts", lambda _model, _ids: None)
        for name in ("base", "gold"):
            load_model(str(untaught_models / name))
    assert len(caplog.messages) == 1 and "runs through the whole" in caplog.messages[0]


def test_a_family_that_does_not_agree_runs_through_the_whole_model() -> None:
    model, batch = louder(), collate(SEQUENCES)
    assert not can_split(model)
    with torch.no_grad():
        found = label_logits(model, batch)
        hidden = final_states(model, {"input_ids": batch.input_ids}).hidden
        start = PrefixStart(1, hidden_states(model, batch, 0))
        torch.testing.assert_close(label_logits(model, batch, start), found)
    expected = torch.cat([own_logits(model, sequence) for sequence in SEQUENCES])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    features = document_features(model, SEQUENCES)
    torch.testing.assert_close(features[0].token_nll, own_nll(model, SEQUENCES[0]))
    states = model.base_model(input_ids=batch.input_ids).last_hidden_state
    assert torch.equal(hidden, states)


def test_what_needs_the_last_step_alone_refuses_such_a_family() -> None:
    with pytest.raises(UserError, match="answers read from every block need a model"):
        lens_nll(louder(), SEQUENCES)


def test_gradients_flow_through_the_last_step() -> None:
    model, batch = toy_model("gemma2"), collate(SEQUENCES[:1])
    weight = model.model.layers[0].mlp.down_proj.weight
    (found,) = torch.autograd.grad(token_nll(model, batch).sum(), weight)
    places = range(SEQUENCES[0].start - 1, len(SEQUENCES[0].ids) - 1)
    whole = model(input_ids=batch.input_ids).logits[0, list(places)].float()
    labels = batch.input_ids[0, SEQUENCES[0].start :]
    (expected,) = torch.autograd.grad(
        torch.nn.functional.cross_entropy(whole, labels, reduction="sum"), weight
    )
    torch.testing.assert_close(found, expected)
