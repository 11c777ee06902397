"""Each loss by hand, each on a padded batch, each gradient against a finite difference; contracts over the tables."""

import math
from collections.abc import Callable

import pytest
import torch
from tests.tiny_models import SEQUENCES, tiny_model
from torch import Tensor

from rayunlearn.families import options_of
from rayunlearn.methods.forget import FORGET, ga, npo, rmu, simnpo
from rayunlearn.methods.objective import objective, stream
from rayunlearn.methods.retain import RETAIN, activation, kl, nll
from rayunlearn.methods.view import View, control_direction, needs
from rayunlearn.models.reference import reference_of
from rayunlearn.data.encode import collate

NLL = torch.tensor([[0.0, 1.0, 3.0], [0.0, 2.0, 0.0]])  # two answers, of two and of one token; the rest is padding
LABELLED = torch.tensor([[False, True, True], [False, True, False]])
REFERENCE = torch.tensor([[0.0, 0.5, 0.5], [0.0, 1.0, 0.0]])
TABLES = {"forget": FORGET, "retain": RETAIN}
ROWS = [(family, name) for family, table in TABLES.items() for name in table]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_ga_is_minus_the_mean_over_three_label_tokens() -> None:
    """-(1 + 3 + 2) / 3 = -2; the mean over six positions would be -1, the mean of sequence means -2 as well here."""
    assert float(ga(NLL, LABELLED)) == pytest.approx(-2.0)


def test_ga_weighs_tokens_and_not_sequences() -> None:
    """(1 + 3 + 5) / 3 = 3; the mean of sequence means would be (2 + 5) / 2 = 3.5."""
    longer = torch.tensor([[0.0, 1.0, 3.0], [0.0, 5.0, 0.0]])
    assert float(ga(longer, LABELLED)) == pytest.approx(-3.0)


def test_npo_sums_over_the_answer_before_the_sigmoid() -> None:
    """Excess NLL: (1 + 3) - (0.5 + 0.5) = 3 and 2 - 1 = 1; beta 0.5: -(4)(log s(1.5) + log s(0.5)) / 2."""
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
    """Width 2, control (1, 0), steering 2: token distances ((1-2)^2 + 1)/2 = 1, ((4-2)^2 + 0)/2 = 2, (0 + 9)/2 = 4.5; mean 2.5.

    A known error divides per-sequence sums by a column of counts and broadcasts: that gives (3 + 4.5)/2 x (1/2 + 1)/2 = 2.8125.
    """
    hidden = torch.tensor([[[9.0, 9.0], [1.0, 1.0], [4.0, 0.0]], [[9.0, 9.0], [2.0, 3.0], [9.0, 9.0]]])
    assert float(rmu(hidden, LABELLED, torch.tensor([1.0, 0.0]), steering=2.0)) == pytest.approx(2.5)


def test_activation_is_the_mean_square_over_label_tokens_and_width() -> None:
    """Changes (1, 1), (2, 0) and (0, 3) of three label tokens: (1 + 2 + 4.5) / 3 = 2.5; other positions differ and do not count."""
    reference = torch.full((2, 3, 2), 9.0)
    change = torch.tensor([[[5.0, 5.0], [1.0, 1.0], [2.0, 0.0]], [[5.0, 5.0], [0.0, 3.0], [5.0, 5.0]]])
    assert float(activation(reference + change, reference, LABELLED)) == pytest.approx(2.5)


def test_kl_of_two_coins_is_the_textbook_value() -> None:
    """KL((1/2, 1/2) || (1/4, 3/4)) = ln 2 - ln(3) / 2; averaged with a position where both agree: half of it."""
    reference = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    model = torch.tensor([[0.25, 0.75], [0.25, 0.75]]).log()
    assert float(kl(model, reference)) == pytest.approx((math.log(2) - math.log(3) / 2) / 2)


def test_nll_of_retain_is_minus_ga() -> None:
    assert float(nll(NLL, LABELLED)) == pytest.approx(2.0)


def made_view(sequences: list, reference_model: torch.nn.Module, model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> View:
    reference = reference_of(reference_model, sequences, 0, ("token_nll", "log_probs", "hidden"), 1)
    return View(model, sequences, 0, reference=reference, layer=1, control=control_direction(16, 0).to(dtype))


def value(function: Callable[..., Tensor], view: View) -> Tensor:
    return function(**{name: getattr(view, name) for name in needs(function)})


@pytest.mark.parametrize(("family", "name"), [r for r in ROWS if r[1] != "none"])
def test_padding_does_not_change_a_loss(family: str, name: str) -> None:
    """The same sequences beside a longer one, and that one taken out again: token means recombine exactly."""
    function = TABLES[family][name].function
    model, frozen = tiny_model(seed=1), tiny_model(seed=0)
    with torch.no_grad():
        alone = value(function, made_view(SEQUENCES[:1], frozen, model))
        padded = made_view(SEQUENCES, frozen, model)
        inside = function(**{n: first_row(n, padded) for n in needs(function)})
    torch.testing.assert_close(alone, inside, rtol=1e-5, atol=1e-5)


def first_row(name: str, view: View) -> Tensor:
    """A view's tensor cut to its first sequence, padding kept."""
    tensor: Tensor = getattr(view, name)
    if name == "control":
        return tensor
    return tensor[: int(view.labelled[0].sum())] if name.endswith("log_probs") else tensor[:1]


@pytest.mark.parametrize(("family", "name"), [r for r in ROWS if r[1] != "none"])
def test_gradient_equals_a_finite_difference_along_a_random_direction(family: str, name: str) -> None:
    function = TABLES[family][name].function
    model, frozen = tiny_model(seed=1).double(), tiny_model(seed=0)
    view = made_view(SEQUENCES, frozen, model, torch.float64)
    value(function, view).backward()
    weight = model.model.layers[0].mlp.down_proj.weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    slope = float((weight.grad * direction).sum())

    def at(distance: float) -> float:
        with torch.no_grad():
            weight.add_(distance * direction)
            result = float(value(function, made_view(SEQUENCES, frozen, model, torch.float64)))
            weight.sub_(distance * direction)
        return result

    # the head and the activations are cast to float32 before a loss sees them, which bounds the step from below
    assert (at(1e-2) - at(-1e-2)) / 2e-2 == pytest.approx(slope, rel=2e-2, abs=1e-4)


@pytest.mark.parametrize(("family", "name"), ROWS)
def test_every_row_names_its_source_and_states_a_range_for_every_hyperparameter(family: str, name: str) -> None:
    row = TABLES[family][name]
    assert row.source and row.equation and row.title and row.function.__doc__
    assert all(option.rule is not None for option in options_of(row.function))


def test_a_stream_shows_every_document_once_an_epoch() -> None:
    seen = [p for step in range(5) for p in stream(10, 4, step, seed=7)]
    assert sorted(seen[:10]) == list(range(10)) and sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_a_stream_of_fewer_documents_than_a_batch_still_fills_it() -> None:
    assert stream(1, 4, 3, seed=0) == [0, 0, 0, 0]
    assert sorted(stream(2, 4, 0, seed=0)) == [0, 0, 1, 1]


def test_control_direction_is_a_unit_vector_of_its_seed_in_the_positive_orthant() -> None:
    first, again, other = control_direction(64, 1), control_direction(64, 1), control_direction(64, 2)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert float(first.norm()) == pytest.approx(1) and bool((first >= 0).all())


def test_an_objective_adds_the_weighted_terms_and_counts_tokens_and_documents() -> None:
    model = tiny_model()
    nothing = reference_of(model, SEQUENCES, 0, (), 0)
    make = {"layer": 1, "batch_size": 2, "pad_id": 0, "seed": 0, "forget_reference": nothing, "retain_reference": nothing}
    loss = objective(model, SEQUENCES, SEQUENCES, forget_loss=ga, retain_loss=nll, retain_weight=0.5, **make)(0)
    assert loss.forget is not None and loss.retain is not None
    torch.testing.assert_close(loss.total, loss.forget + 0.5 * loss.retain)
    assert loss.n_documents == 2 and loss.n_tokens > 0
    control = objective(model, SEQUENCES, SEQUENCES, forget_loss=FORGET["none"].function, retain_loss=nll, retain_weight=1.0, **make)(0)
    assert control.forget is None and control.n_documents == 0
    torch.testing.assert_close(control.total, loss.retain)


def test_the_reference_is_what_the_model_said_before_it_changed() -> None:
    model = tiny_model()
    reference = reference_of(model, SEQUENCES, 0, ("token_nll",), 1)
    batch = collate(SEQUENCES, 0)
    before = reference.token_nll(SEQUENCES, batch).clone()
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    assert torch.equal(reference.token_nll(SEQUENCES, batch), before)
    assert not torch.allclose(View(model, SEQUENCES, 0, reference=reference, layer=1, control=control_direction(16, 0)).token_nll, before)
