"""Which tokens a forget loss counts: hand-made rules, and every forget loss under every rule."""

import math
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from rayunlearn.data.tokenize import Encoded
from rayunlearn.errors import UserError
from rayunlearn.methods.forget import FORGET, ga, npo
from rayunlearn.methods.loss_inputs import (
    PAIRED_RESPONSE_KINDS,
    LossInputs,
    control_direction,
    required_tensor,
)
from rayunlearn.methods.token_mask import TokenRule, token_mask, word_list, word_positions
from rayunlearn.models.reference import reference_of
from rayunlearn.models.scratch import build_tokenizer
from rayunlearn.ranges import required_inputs
from tests.tiny_models import SEQUENCES, tiny_model

NLL = torch.tensor([[0.0, 3.0, 1.0, 2.0], [0.0, 5.0, 0.0, 0.0]])
LABELLED = torch.tensor([[False, True, True, True], [False, True, False, False]])
KINDS = ("token_nll", "log_probs", "hidden", "hidden_norm")


@cache
def reference_model() -> PreTrainedModel:
    """The model that references are made of; nothing changes it."""
    return tiny_model(seed=0)


def view_of(rule: TokenRule, sequences: list[Encoded] = SEQUENCES) -> LossInputs:
    """The batch as a loss sees it under the rule; the companions are the documents themselves."""

    model, control = tiny_model(seed=1), control_direction(16, 0)

    def one(text_rule: TokenRule, companions: dict[str, LossInputs]) -> LossInputs:
        reference = reference_of(reference_model(), sequences, KINDS, 1, text_rule.temperature)
        return LossInputs(
            model,
            sequences,
            reference=reference,
            layer=1,
            control=control,
            rule=text_rule,
            companions=companions,
        )

    return one(
        rule,
        {kind: one(TokenRule(temperature=rule.temperature), {}) for kind in PAIRED_RESPONSE_KINDS},
    )


def loss_under(name: str, rule: TokenRule, sequences: list[Encoded] = SEQUENCES) -> torch.Tensor:
    view, function = view_of(rule, sequences), FORGET[name].function
    return function(**{n: required_tensor(view, n) for n in required_inputs(function)})


def test_keep_takes_the_best_remembered_tokens_of_each_sequence() -> None:
    """Two thirds of three tokens are two, those of NLL 1 and 2;
    a sequence of one token keeps it.
    """
    kept = token_mask(NLL, LABELLED, TokenRule(keep=2 / 3))
    assert kept.tolist() == [[False, False, True, True], [False, True, False, False]]
    assert token_mask(NLL, LABELLED, TokenRule(keep=0.01)).sum(1).tolist() == [1, 1]


def test_a_sequence_whose_summed_nll_has_reached_the_cap_counts_no_more() -> None:
    """Sums 6 and 5: a cap of 6 leaves the second, a cap of 5 none, a cap of 7 both, a cap of 0 is
    none at all.
    """
    assert [
        token_mask(NLL, LABELLED, TokenRule(cap=cap)).sum().item() for cap in (6.0, 5.0, 7.0, 0.0)
    ] == [1, 0, 4, 4]


def test_a_temperature_divides_the_logits_of_model_and_reference() -> None:
    plain, warm = view_of(TokenRule()), view_of(TokenRule(temperature=2.0))
    expected = (plain._logits / 2).log_softmax(-1).gather(1, plain.labels[:, None])[:, 0]
    torch.testing.assert_close(warm.token_nll[warm.labelled], -expected)
    assert not torch.allclose(warm.reference_token_nll, plain.reference_token_nll)
    torch.testing.assert_close(warm.hidden, plain.hidden)


def test_allowed_positions_are_the_only_ones_that_reach_a_loss() -> None:
    """Of "a" the 4th and 5th id, of "b" none, of "c" the last: three label tokens, whose NLL is
    that of the plain view.
    """
    plain, some = (
        view_of(TokenRule()),
        view_of(TokenRule(positions={"a": frozenset({3, 4}), "c": frozenset({7})})),
    )
    expected = torch.zeros_like(plain.labelled)
    expected[0, 3], expected[0, 4], expected[2, 7] = True, True, True
    assert torch.equal(some.labelled, expected)
    torch.testing.assert_close(some.token_nll, plain.token_nll * expected)
    torch.testing.assert_close(some.reference_token_nll, plain.reference_token_nll * expected)
    torch.testing.assert_close(
        some.reference_log_probs, plain.reference_log_probs[expected[plain.labelled]]
    )
    torch.testing.assert_close(some.log_probs, plain.log_probs[expected[plain.labelled]])
    assert some.label_rank.tolist() == [0, 1, 2] and some.labels.tolist() == [7, 8, 2]


RULES = {
    "half": TokenRule(keep=0.5),
    "capped": TokenRule(cap=9.0),
    "masked and warm": TokenRule(positions={"a": frozenset({4})}, keep=0.5, temperature=3.0),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", [name for name in FORGET if name != "none"])
def test_every_forget_loss_takes_every_rule_and_keeps_a_finite_gradient(
    name: str, rule: TokenRule
) -> None:
    view, function = view_of(rule), FORGET[name].function
    assert 0 < int(view.labelled.sum()) < int(view.batch.labelled.sum())
    loss = function(**{n: required_tensor(view, n) for n in required_inputs(function)})
    loss.backward()
    gradients = [p.grad for p in view._model.parameters() if p.grad is not None]
    assert (
        math.isfinite(float(loss.detach()))
        and gradients
        and all(bool(g.isfinite().all()) for g in gradients)
    )


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, row in FORGET.items()
        if name != "none" and not {"refusal_token_nll"} & set(required_inputs(row.function))
    ],
)
def test_a_batch_without_a_token_left_is_a_finite_constant(name: str) -> None:
    alone = loss_under(name, TokenRule(positions={"nobody": frozenset({1})}))
    assert math.isfinite(float(alone.detach()))


def test_masked_gradient_ascent_is_the_mean_over_what_is_left() -> None:
    plain = view_of(TokenRule())
    masked = loss_under("ga", TokenRule(positions={"a": frozenset({3}), "b": frozenset({2})}))
    torch.testing.assert_close(masked, -(plain.token_nll[0, 3] + plain.token_nll[1, 2]) / 2)
    assert ga is FORGET["ga"].function and npo is FORGET["npo"].function


def test_words_are_found_whole_in_any_case_and_with_the_space_before_them() -> None:
    text = "the Cat sat on a catalogue, black cat."
    tokenizer = build_tokenizer([text, "black cat"])
    ids = tuple(tokenizer.encode(text))
    spoken = [tokenizer.decode([i]) for i in ids]
    found = word_positions([Encoded("d", ids, 1)], tokenizer, word_list("cat, black cat ,"))
    assert [spoken[at] for at in sorted(found["d"])] == [" Cat", " black", " cat"]


def test_a_prompt_is_never_counted_and_words_that_no_document_has_are_a_mistake() -> None:
    tokenizer = build_tokenizer(["one two three"])
    ids = tuple(tokenizer.encode("one two three"))
    assert word_positions([Encoded("d", ids, 2)], tokenizer, ["one", "three"]) == {
        "d": frozenset({2})
    }
    assert word_positions([Encoded("d", ids, 2)], tokenizer, []) == {}
    with pytest.raises(
        UserError,
        match=r"token\.words must have a word that occurs in a kept document's answer, got 'four'",
    ):
        word_positions([Encoded("d", ids, 0)], tokenizer, ["four"])
