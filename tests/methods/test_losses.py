"""Each loss by hand, each on a padded batch, each gradient against a finite difference; contracts
over the tables.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from rayunlearn.data.tokenize import Encoded, collate
from rayunlearn.methods.distribution import ce_u, pdu, undial
from rayunlearn.methods.forget import (
    FORGET,
    adaptive_rmu,
    ga,
    npo,
    rmu,
    satimp,
    simnpo,
    task_vector,
    wga,
)
from rayunlearn.methods.loss_inputs import (
    PAIRED_RESPONSE_KINDS,
    LossInputs,
    control_direction,
    paired_response_kinds,
    reference_kinds,
    required_tensor,
    uses_documents,
)
from rayunlearn.methods.objective import (
    ObjectiveSettings,
    PairedResponses,
    Side,
    UnlearningObjective,
    batch_indices,
)
from rayunlearn.methods.preference import altpo, dpo, idk, llmu, llmu_two_term
from rayunlearn.methods.retain import RETAIN, activation, kl, nll
from rayunlearn.methods.retain_weight import dual, fixed_weight
from rayunlearn.methods.task_vector import as_trained, negate
from rayunlearn.models.reference import reference_of
from rayunlearn.ranges import options_of, required_inputs
from tests.tiny_models import SEQUENCES, tiny_model

# two answers, of two and of one token; the rest is padding
NLL = torch.tensor([[0.0, 1.0, 3.0], [0.0, 2.0, 0.0]])
LABELLED = torch.tensor([[False, True, True], [False, True, False]])
REFERENCE = torch.tensor([[0.0, 0.5, 0.5], [0.0, 1.0, 0.0]])
TABLES = {"forget": FORGET, "retain": RETAIN}
ROWS = [(family, name) for family, table in TABLES.items() for name in table]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_ga_is_minus_the_mean_over_three_label_tokens() -> None:
    """-(1 + 3 + 2) / 3 = -2; the mean over six positions would be -1, the mean of sequence means -2
    as well here.
    """
    assert float(ga(NLL, LABELLED)) == pytest.approx(-2.0)


def test_ga_weighs_tokens_and_not_sequences() -> None:
    """(1 + 3 + 5) / 3 = 3; the mean of sequence means would be (2 + 5) / 2 = 3.5."""
    longer = torch.tensor([[0.0, 1.0, 3.0], [0.0, 5.0, 0.0]])
    assert float(ga(longer, LABELLED)) == pytest.approx(-3.0)


def test_npo_sums_over_the_answer_before_the_sigmoid() -> None:
    """Excess NLL: (1 + 3) - (0.5 + 0.5) = 3 and 2 - 1 = 1; beta 0.5: -(4)(log s(1.5) + log s(0.5))
    / 2.
    """
    expected = -4 * (log_sigmoid(1.5) + log_sigmoid(0.5)) / 2
    assert float(npo(NLL, REFERENCE, beta=0.5)) == pytest.approx(expected)


def test_npo_at_the_reference_is_two_ln_two_over_beta() -> None:
    assert float(npo(NLL, NLL, beta=0.1)) == pytest.approx(2 * math.log(2) / 0.1)


def test_npo_gradient_tends_to_gradient_ascent_on_summed_nll_as_beta_vanishes() -> None:
    values = NLL.clone().requires_grad_()
    npo(values, REFERENCE, beta=1e-4).backward()
    torch.testing.assert_close(values.grad, torch.full_like(NLL, -0.5), rtol=1e-3, atol=1e-3)


def test_simnpo_divides_by_length_and_subtracts_delta() -> None:
    """Means 4 / 2 = 2 and 2 / 1 = 2; beta 2, delta 0.5: -(1) log s(2 x 1.5)."""
    assert float(simnpo(NLL, LABELLED, beta=2.0, delta=0.5)) == pytest.approx(-log_sigmoid(3.0))


def test_rmu_counts_label_tokens_once_each() -> None:
    """Width 2, control (1, 0), steering 2: token distances ((1-2)^2 + 1)/2 = 1, ((4-2)^2 + 0)/2 =
    2, (0 + 9)/2 = 4.5; mean 2.5.

    A known error divides per-sequence sums by a column of counts and broadcasts: that gives (3 +
    4.5)/2 x (1/2 + 1)/2 = 2.8125.
    """
    hidden = torch.tensor(
        [[[9.0, 9.0], [1.0, 1.0], [4.0, 0.0]], [[9.0, 9.0], [2.0, 3.0], [9.0, 9.0]]]
    )
    assert float(rmu(hidden, LABELLED, torch.tensor([1.0, 0.0]), steering=2.0)) == pytest.approx(
        2.5
    )


def test_activation_is_the_mean_square_over_label_tokens_and_width() -> None:
    """Changes (1, 1), (2, 0) and (0, 3) of three label tokens: (1 + 2 + 4.5) / 3 = 2.5; other
    positions differ and do not count.
    """
    reference = torch.full((2, 3, 2), 9.0)
    change = torch.tensor(
        [[[5.0, 5.0], [1.0, 1.0], [2.0, 0.0]], [[5.0, 5.0], [0.0, 3.0], [5.0, 5.0]]]
    )
    assert float(activation(reference + change, reference, LABELLED)) == pytest.approx(2.5)


def test_kl_of_two_coins_is_the_textbook_value() -> None:
    """KL((1/2, 1/2) || (1/4, 3/4)) = ln 2 - ln(3) / 2; averaged with a position where both agree:
    half of it.
    """
    reference = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    model = torch.tensor([[0.25, 0.75], [0.25, 0.75]]).log()
    assert float(kl(model, reference)) == pytest.approx((math.log(2) - math.log(3) / 2) / 2)


def test_nll_of_retain_is_minus_ga() -> None:
    assert float(nll(NLL, LABELLED)) == pytest.approx(2.0)


def test_wga_weighs_each_token_by_its_probability_to_the_beta() -> None:
    """beta 2: -(e^-2 x 1 + e^-6 x 3 + e^-4 x 2) / 3."""
    expected = -(math.exp(-2) + 3 * math.exp(-6) + 2 * math.exp(-4)) / 3
    assert float(wga(NLL, LABELLED, beta=2.0)) == pytest.approx(expected)
    assert float(wga(NLL, LABELLED, beta=0.0)) == float(ga(NLL, LABELLED))


def test_the_weight_of_wga_has_no_gradient() -> None:
    """d/dl of -w l / 3 is -w / 3 and not -(w - beta w l) / 3."""
    values = NLL.clone().requires_grad_()
    wga(values, LABELLED, beta=1.0).backward()
    torch.testing.assert_close(values.grad, -torch.exp(-NLL) / 3)


def test_satimp_is_zero_on_what_is_certain_and_on_what_is_gone() -> None:
    """p = 1/2 alone: -(1/2)^5 (1/2)^1 ln 2 / 1; p = 1 gives weight 0 through (1 - p), p near 0
    through p^5.
    """
    half = torch.tensor([[0.0, math.log(2.0)]])
    assert float(satimp(half, torch.tensor([[False, True]]))) == pytest.approx(
        -(0.5**6) * math.log(2)
    )
    sure_and_gone = torch.tensor([[0.0, 50.0]])
    assert float(satimp(sure_and_gone, torch.tensor([[True, True]]))) == pytest.approx(
        0.0, abs=1e-12
    )


def test_dpo_takes_the_refusals_change_from_the_answers_change() -> None:
    """Answers: excess 3 and 1. Refusals: (2 - 1) = 1 and (0.5 - 1) = -0.5. Margins 2 and 1.5; beta
    2: -(1)(log s(4) + log s(3)) / 2.
    """
    refusal, before = torch.tensor([[0.0, 2.0], [0.0, 0.5]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    expected = -(log_sigmoid(4) + log_sigmoid(3)) / 2
    assert float(dpo(NLL, REFERENCE, refusal, before, beta=2.0)) == pytest.approx(expected)
    assert float(altpo(NLL, REFERENCE, refusal, before, beta=2.0)) == pytest.approx(expected)


def test_dpo_learns_the_preferred_text_and_unlearns_the_answer() -> None:
    """At the reference the slopes are -1 on every token of the answer's summed NLL and +1 on the
    refusal's, over 2 sequences.
    """
    answer, refusal = NLL.clone().requires_grad_(), torch.ones(2, 2, requires_grad=True)
    dpo(answer, NLL, refusal, torch.ones(2, 2), beta=0.3).backward()
    torch.testing.assert_close(answer.grad, torch.full_like(NLL, -0.5))
    torch.testing.assert_close(refusal.grad, torch.full((2, 2), 0.5))


def test_idk_is_the_token_mean_of_the_refusals() -> None:
    assert float(idk(NLL, LABELLED)) == pytest.approx(2.0)


def test_llmu_is_ascent_on_sequence_means_and_descent_on_random_answers() -> None:
    """Sequence means 2 and 2; random answers: (1 + 5) / 2 = 3 and 1, mean 2:
    -0.5 x 2 + 2 x 2 = 3.
    """
    random_nll = torch.tensor([[1.0, 5.0], [1.0, 0.0]])
    labelled = torch.tensor([[True, True], [True, False]])
    assert float(
        llmu(NLL, LABELLED, random_nll, labelled, weight=0.5, mismatch_weight=2.0)
    ) == pytest.approx(3.0)


def test_llmu_of_two_terms_weighs_sequences_and_not_tokens() -> None:
    """Means (1 + 3) / 2 = 2 and 5: -0.1 x 3.5; the token mean would be 3."""
    longer = torch.tensor([[0.0, 1.0, 3.0], [0.0, 5.0, 0.0]])
    assert float(llmu_two_term(longer, LABELLED, weight=0.1)) == pytest.approx(-0.35)


def test_task_vector_trains_towards_the_forget_set_and_the_end_is_the_other_way() -> None:
    assert float(task_vector(NLL, LABELLED)) == pytest.approx(2.0)
    start, end = torch.tensor([1.0, 2.0]), torch.tensor([1.5, 1.0])
    torch.testing.assert_close(negate(start, end, scale=2.0), torch.tensor([0.0, 4.0]))
    assert as_trained(start, end) is end


def test_undial_moves_the_true_logit_of_the_reference_down_before_the_softmax() -> None:
    """Two tokens, reference even, beta ln 3, label 0: target (1/4, 3/4); model (1/2, 1/2):
    cross-entropy ln 2.

    With beta 0 the target is the reference itself: its entropy at the model's start, here ln 2 as
    well for even odds.
    """
    even = torch.tensor([[0.5, 0.5]]).log()
    tilted = torch.tensor([[0.25, 0.75]]).log()
    label = torch.tensor([0])
    assert float(undial(even, even, label, beta=math.log(3))) == pytest.approx(math.log(2))
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert float(undial(tilted, even, label, beta=math.log(3))) == pytest.approx(expected)


def test_ce_u_spreads_the_true_tokens_share_over_the_others_and_skips_the_first_token() -> None:
    """p = (1/2, 1/4, 1/4), label 0: target (0, 1/2, 1/2), cross-entropy ln 4. The first token of
    the answer does not count.
    """
    log_probs = torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.25, 0.25]]).log()
    labels, rank = torch.tensor([1, 0]), torch.tensor([0, 1])
    assert float(ce_u(log_probs, labels, rank)) == pytest.approx(math.log(4))
    first = -(0.9 * math.log(0.9) + 0.05 * math.log(0.05)) / 0.95
    assert float(ce_u(log_probs, labels, rank, skipped=0)) == pytest.approx(
        (math.log(4) + first) / 2
    )


def test_ce_u_of_answers_that_are_all_skipped_is_zero_and_not_nan() -> None:
    assert (
        float(
            ce_u(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0]), torch.tensor([0]), skipped=1)
        )
        == 0.0
    )


def test_pdu_is_the_squared_distance_of_the_largest_logit_to_the_mean() -> None:
    """Logits (3, 0, 0): 3 - 1 = 2, squared 4; (1, 1, 1): 0; mean 2. Log-probabilities give the same
    as logits.
    """
    logits = torch.tensor([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert float(pdu(logits)) == pytest.approx(2.0)
    assert float(pdu(logits.log_softmax(-1))) == pytest.approx(2.0)


def test_adaptive_rmu_steers_to_a_length_of_each_token_s_own() -> None:
    """Width 2, control (1, 0), scale 2, lengths 1 and 3: targets (2, 0), (6, 0); states (1, 1), (4,
    0): ((1 + 1)/2 + 4/2) / 2 = 1.5.
    """
    hidden, length = (
        torch.tensor([[[9.0, 9.0], [1.0, 1.0], [4.0, 0.0]]]),
        torch.tensor([[7.0, 1.0, 3.0]]),
    )
    labelled = torch.tensor([[False, True, True]])
    assert float(
        adaptive_rmu(hidden, length, labelled, torch.tensor([1.0, 0.0]), scale=2.0)
    ) == pytest.approx(1.5)


def test_the_dual_weight_rises_while_retain_is_over_its_limit_and_never_falls_below_zero() -> None:
    """1 + 2 (0.4 - 0.1) = 1.6; then 1.6 + 2 (0.05 - 0.1) = 1.5; far under the limit it ends at 0;
    nothing moves in the warm-up.
    """
    options = {"limit": 0.1, "rate": 2.0, "warmup_steps": 1}
    assert dual(1.0, torch.tensor(0.4), 0, **options) == 1.0
    risen = dual(1.0, torch.tensor(0.4), 1, **options)
    assert float(risen) == pytest.approx(1.6)
    assert float(dual(risen, torch.tensor(0.05), 2, **options)) == pytest.approx(1.5)
    assert float(dual(0.01, torch.tensor(0.0), 2, limit=0.1, rate=1.0)) == 0.0
    assert fixed_weight(3.0, torch.tensor(9.0), 5) == 3.0


COMPANION_SEQUENCES = [
    Encoded("a.x.0", (1, 5, 6, 3, 4, 2), 3),
    Encoded("b.x.0", (1, 20, 21, 22, 2), 1),
    Encoded("c.x.0", (1, 11, 12, 13, 14, 9, 2), 5),
]
KINDS = ("token_nll", "log_probs", "hidden", "hidden_norm")


@cache
def reference_model() -> torch.nn.Module:
    """The model that references are made of; nothing changes it."""
    return tiny_model(seed=0)


def made_view(
    sequences: list,
    reference_model: torch.nn.Module,
    model: torch.nn.Module,
    dtype: torch.dtype = torch.float32,
) -> LossInputs:
    control = control_direction(16, 0).to(dtype)

    def one(texts: list, companions: dict[str, LossInputs]) -> LossInputs:
        reference = reference_of(reference_model, texts, KINDS, 1)
        return LossInputs(
            model, texts, reference=reference, layer=1, control=control, companions=companions
        )

    others = [c for c in COMPANION_SEQUENCES if c.doc_id[0] in {s.doc_id for s in sequences}]
    return one(sequences, {kind: one(others, {}) for kind in PAIRED_RESPONSE_KINDS})


def value(function: Callable[..., Tensor], view: LossInputs) -> Tensor:
    return function(**{name: required_tensor(view, name) for name in required_inputs(function)})


@pytest.mark.parametrize(("family", "name"), [r for r in ROWS if r[1] != "none"])
def test_padding_does_not_change_a_loss(family: str, name: str) -> None:
    """The same sequences beside a longer one, and that one taken out again: token means recombine
    exactly.
    """
    function = TABLES[family][name].function
    model, frozen = tiny_model(seed=1), reference_model()
    with torch.no_grad():
        alone = value(function, made_view(SEQUENCES[:1], frozen, model))
        padded = made_view(SEQUENCES, frozen, model)
        inside = function(**{n: first_row(n, padded) for n in required_inputs(function)})
    torch.testing.assert_close(alone, inside, rtol=1e-5, atol=1e-5)


def first_row(name: str, view: LossInputs) -> Tensor:
    """A view's tensor cut to its first sequence, padding kept."""
    value = required_tensor(view, name)
    if name == "control":
        return value
    by_label = name in ("log_probs", "reference_log_probs", "labels", "label_rank")
    return value[: int(view.labelled[0].sum())] if by_label else value[:1]


def frozen_weights(name: str, start: LossInputs) -> Callable[..., Tensor]:
    """The loss with the parts that its definition differentiates not (weights, targets) held at
    their values at the start.
    """
    nll, n_labels, log_probs = (
        start.token_nll.detach(),
        start.labelled.sum(),
        start.log_probs.detach(),
    )
    target = log_probs.scatter(1, start.labels[:, None], -torch.inf).softmax(-1)
    counts = start.label_rank >= 1
    held: dict[str, Callable[..., Tensor]] = {
        "wga": lambda token_nll: -(torch.exp(-nll) * token_nll).sum() / n_labels,
        "satimp": (
            lambda token_nll: (
                -(torch.exp(-5 * nll) * (1 - torch.exp(-nll)) * token_nll).sum() / n_labels
            )
        ),
        "ce_u": lambda log_probs: -((target * log_probs).sum(-1) * counts).sum() / counts.sum(),
    }
    return held.get(name, FORGET[name].function)


def sharp_model(seed: int) -> torch.nn.Module:
    """A random model in float64 whose weights are large enough that its opinions differ from
    uniform ones.
    """
    model = tiny_model(seed=seed).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.dim() == 2 else 1.0)
    return model


@cache
def sharp_reference_model() -> torch.nn.Module:
    """Another one, which references are made of; nothing changes it."""
    return sharp_model(0)


@pytest.mark.parametrize(("family", "name"), [r for r in ROWS if r[1] != "none"])
def test_gradient_equals_a_finite_difference_along_itself(family: str, name: str) -> None:
    """The slope along the normed gradient is its length; any wrong component would shorten what the
    difference sees.
    """
    function = TABLES[family][name].function
    model, frozen = sharp_model(1), sharp_reference_model()
    view = made_view(SEQUENCES, frozen, model, torch.float64)
    weight = model.model.layers[1].mlp.down_proj.weight
    (gradient,) = torch.autograd.grad(value(function, view), weight)
    held = frozen_weights(name, view) if family == "forget" else function

    def at(distance: float) -> float:
        with torch.no_grad():
            weight.add_(distance * gradient / gradient.norm())
            result = float(value(held, made_view(SEQUENCES, frozen, model, torch.float64)))
            weight.sub_(distance * gradient / gradient.norm())
        return result

    # the head and the activations are cast to float32 before a loss sees them, which bounds the
    # step from below
    slope = float(gradient.norm())
    assert slope > 0 and (at(1e-2) - at(-1e-2)) / 2e-2 == pytest.approx(slope, rel=1e-2, abs=0)


@pytest.mark.parametrize(("family", "name"), [r for r in ROWS if r[1] != "none"])
def test_a_loss_computed_in_bfloat16_is_the_float32_one_but_for_rounding(
    family: str, name: str
) -> None:
    """As on a GPU: float32 weights, bfloat16 products, reference in the same precision; the
    gradient lands in float32.
    """
    function, model, frozen = TABLES[family][name].function, tiny_model(seed=1), reference_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = value(function, made_view(SEQUENCES, frozen, model))
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(
        g.dtype == torch.float32 and bool(g.isfinite().all()) for g in gradients
    )
    exact = float(value(function, made_view(SEQUENCES, frozen, model)).detach())
    assert float(loss.detach()) == pytest.approx(exact, rel=0.05, abs=1e-3)


@pytest.mark.parametrize(("family", "name"), ROWS)
def test_every_row_names_its_source_and_states_a_range_for_every_hyperparameter(
    family: str, name: str
) -> None:
    row = TABLES[family][name]
    assert row.source and row.equation and row.title and row.function.__doc__
    assert all(option.rule is not None for option in options_of(row.function))


def test_a_stream_shows_every_document_once_an_epoch() -> None:
    seen = [p for step in range(5) for p in batch_indices(10, 4, step, seed=7)]
    assert sorted(seen[:10]) == list(range(10)) and sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_a_stream_of_fewer_documents_than_a_batch_still_fills_it() -> None:
    assert batch_indices(1, 4, 3, seed=0) == [0, 0, 0, 0]
    assert sorted(batch_indices(2, 4, 0, seed=0)) == [0, 0, 1, 1]


def test_control_direction_is_a_unit_vector_of_its_seed_in_the_positive_orthant() -> None:
    first, again, other = (
        control_direction(64, 1),
        control_direction(64, 1),
        control_direction(64, 2),
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert float(first.norm()) == pytest.approx(1) and bool((first >= 0).all())


def made_objective(
    model: torch.nn.Module,
    forget_loss: Callable[..., Tensor],
    retain_loss: Callable[..., Tensor],
    **settings: object,
) -> UnlearningObjective:
    nothing = reference_of(model, SEQUENCES, (), 0)
    sides = [
        Side(loss, SEQUENCES, nothing, companions_for(model, loss))
        for loss in (forget_loss, retain_loss)
    ]
    usual = ObjectiveSettings(retain_weight=0.5, layer=1, batch_size=2, seed=0)
    return UnlearningObjective(model, *sides, replace(usual, **settings))


def companions_for(
    model: torch.nn.Module, loss: Callable[..., Tensor]
) -> dict[str, PairedResponses]:
    """One companion of each document, for every kind that the loss looks at."""
    choices = {s.doc_id: (c,) for s, c in zip(SEQUENCES, COMPANION_SEQUENCES, strict=True)}
    return {
        kind: PairedResponses(
            choices, reference_of(model, COMPANION_SEQUENCES, reference_kinds(loss, kind), 1)
        )
        for kind in paired_response_kinds(loss)
    }


def test_an_objective_adds_the_weighted_terms_and_counts_tokens_and_documents() -> None:
    model = tiny_model()
    loss = made_objective(model, ga, nll)(0)
    assert loss.forget is not None and loss.retain is not None
    torch.testing.assert_close(loss.total, loss.forget + 0.5 * loss.retain)
    assert loss.n_documents == 2 and loss.n_tokens > 0
    control = made_objective(model, FORGET["none"].function, nll, retain_weight=1.0)(0)
    assert control.forget is None and control.n_documents == 0
    torch.testing.assert_close(control.total, loss.retain)


def test_both_terms_have_their_weight() -> None:
    """Terms of 4 and 3: 0.125 x 4 + 1 x 3 = 3.5 and, 8 times that, 1 x 4 + 8 x 3 = 28; with a
    forget weight of 0 the retain term alone, 3. Terms are recorded before their weights.
    """

    def four(token_nll: Tensor) -> Tensor:
        return token_nll.sum() * 0 + 4

    def three(token_nll: Tensor) -> Tensor:
        return token_nll.sum() * 0 + 3

    model = tiny_model()
    for pair, total in (((0.125, 1.0), 3.5), ((1.0, 8.0), 28.0), ((0.0, 1.0), 3.0)):
        weights = dict(zip(("forget_weight", "retain_weight"), pair, strict=True))
        objective = made_objective(model, four, three, **weights)
        loss, alone = objective(0), objective.forget_term(0)
        assert float(loss.total.detach()) == total
        assert loss.forget is not None and loss.retain is not None and alone is not None
        assert [float(t.detach()) for t in (loss.forget, loss.retain, alone)] == [4.0, 3.0, 4.0]
        assert (loss.forget_weight, loss.retain_weight) == pair


def test_an_objective_counts_the_tokens_of_companions_and_not_those_of_documents() -> None:
    model = tiny_model()
    shown = [SEQUENCES[p] for p in batch_indices(3, 2, 0, 0)]
    refused = [c for s in shown for c in COMPANION_SEQUENCES if c.doc_id[0] == s.doc_id]
    none = RETAIN["none"].function
    assert made_objective(model, idk, none)(0).n_tokens == sum(len(c.ids) for c in refused)
    assert made_objective(model, llmu, none)(0).n_tokens == sum(
        len(s.ids) for s in (*shown, *refused)
    )
    assert not uses_documents(idk) and uses_documents(llmu)


def test_a_retain_weight_moves_after_a_step_and_never_when_a_loss_is_computed() -> None:
    objective = made_objective(
        tiny_model(), ga, nll, weighting=lambda weight, retain, step: weight + retain + step
    )
    first, again = objective(0), objective(1)
    objective.forget_term(2)
    assert first.retain_weight == again.retain_weight == objective.retain_weight == 0.5
    objective.after_step(3, torch.tensor(2.0, requires_grad=True))
    assert objective.retain_weight == 5.5 and not objective.retain_weight.requires_grad


def test_names_of_tensors_are_taken_apart_into_reference_companion_and_tensor() -> None:
    assert paired_response_kinds(dpo) == ("preferred",) and reference_kinds(dpo) == ("token_nll",)
    assert reference_kinds(dpo, "preferred") == ("token_nll",) and paired_response_kinds(npo) == ()
    assert reference_kinds(adaptive_rmu) == ("hidden_norm",)


def test_the_reference_is_what_the_model_said_before_it_changed() -> None:
    model = tiny_model()
    reference = reference_of(model, SEQUENCES, ("token_nll",), 1)
    batch = collate(SEQUENCES)
    before = reference.token_nll(SEQUENCES, batch).clone()
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    assert torch.equal(reference.token_nll(SEQUENCES, batch), before)
    assert not torch.allclose(
        LossInputs(
            model, SEQUENCES, reference=reference, layer=1, control=control_direction(16, 0)
        ).token_nll,
        before,
    )
