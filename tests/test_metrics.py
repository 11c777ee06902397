"""Metrics by hand, extraction strength against greedy decoding, and what holds for all of them."""

import math

import pytest
import torch

from rayunlearn.data.documents import Document
from rayunlearn.data.encode import Encoded
from rayunlearn.metrics.document import METRICS, exact_memorization, extraction_strength, multiple_choice, perplexity, probability
from rayunlearn.models.forward import score
from tests.tiny_models import tiny_model


def flags(text: str) -> torch.Tensor:
    """'101' -> right, wrong, right; the last one is end-of-sequence."""
    return torch.tensor([c == "1" for c in text])


def test_probability_is_the_geometric_mean_of_token_probabilities() -> None:
    """Token probabilities 1/2, 1/8: (1/16)^(1/2) = 1/4."""
    assert probability(torch.tensor([math.log(2), math.log(8)])) == pytest.approx(0.25)


def test_perplexity_is_its_inverse_and_never_overflows() -> None:
    assert perplexity(torch.tensor([math.log(2), math.log(8)])) == pytest.approx(4.0)
    assert math.isfinite(perplexity(torch.tensor([1e6])))


@pytest.mark.parametrize(("correct", "share"), [("1111", 1.0), ("1010", 2 / 3), ("0001", 0.0), ("1", 1.0)])
def test_exact_memorization_leaves_the_end_of_sequence_out(correct: str, share: float) -> None:
    assert exact_memorization(flags(correct)) == pytest.approx(share)


@pytest.mark.parametrize(("correct", "strength"), [("11111", 1.0), ("01111", 0.75), ("10111", 0.5), ("11101", 0.0), ("00001", 0.0), ("11110", 1.0)])
def test_extraction_strength_counts_from_the_last_mistake(correct: str, strength: float) -> None:
    """Four answer tokens and end-of-sequence; a wrong last answer token gives 0, where a peer's loop gives 1/4."""
    assert extraction_strength(flags(correct)) == pytest.approx(strength)


def greedy(model: torch.nn.Module, ids: tuple[int, ...], n: int) -> tuple[int, ...]:
    for _ in range(n):
        ids = (*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("seed", range(6))
def test_extraction_strength_equals_a_search_with_greedy_decoding(seed: int) -> None:
    """The definition itself: the smallest k such that greedy decoding of [prompt, first k answer tokens] gives the rest.

    The answer is the model's own greedy text with one token replaced, so that every k occurs over the seeds.
    """
    model, length = tiny_model(seed=seed), 6
    with torch.no_grad():
        ids = list(greedy(model, (1, 3 + seed), length))
        ids[2 + seed % length] = 7
        answer = Encoded("x", (*ids, 2), 2)
        k = next(k for k in range(length + 1) if greedy(model, tuple(ids[: 2 + k]), length - k) == tuple(ids))
        assert extraction_strength(score(model, [answer], 0)[0].correct) == pytest.approx(1 - k / length)


def test_multiple_choice_is_right_when_the_first_option_is_likeliest_and_shares_ties() -> None:
    assert multiple_choice(torch.tensor([0.5, 0.9, 0.7])) == 1.0
    assert multiple_choice(torch.tensor([0.9, 0.5, 0.7])) == 0.0
    assert multiple_choice(torch.tensor([0.5, 0.5, 0.7])) == 0.5


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_states_unit_range_direction_and_keeps_to_it(name: str) -> None:
    row = METRICS[name]
    assert row.unit and row.meaning and row.source and row.direction in ("higher", "lower") and row.low < row.high
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "token_nll": torch.rand(9, generator=generator) * 8,
        "correct": torch.rand(9, generator=generator) > 0.5,
        "option_nll": torch.rand(5, generator=generator),
    }
    names = row.function.__code__.co_varnames[: row.function.__code__.co_argcount]
    assert row.low <= row.function(**{n: inputs[n] for n in names}) <= row.high


def test_a_document_without_wrong_answers_has_no_multiple_choice_value() -> None:
    from rayunlearn.metrics.measure import Probe, measure

    probe = Probe(Document(answer="x").doc_id, "forget", Encoded("x", (1, 5, 2), 1), ())
    values = {row["metric"]: row["value"] for row in measure(tiny_model(), [probe], 0)}
    assert values["multiple_choice"] is None and values["probability"] is not None
