"""Metrics by hand, extraction strength against greedy decoding, and what holds for all of them."""

import math
import zlib

import pytest
import torch

from rayunlearn.data.tokenize import Encoded
from rayunlearn.errors import UserError
from rayunlearn.metrics.evaluate import chosen_metrics
from rayunlearn.metrics.likelihood import (
    base_kl,
    exact_memorization,
    extraction_strength,
    option_probability,
    perplexity,
    probability,
    sequence_probability,
    truth_ratio,
    truth_ratio_arithmetic,
    truth_ratio_even,
    truth_ratio_right,
)
from rayunlearn.metrics.membership import (
    loss_score,
    min_k_plus_score,
    min_k_score,
    reference_score,
    zlib_score,
)
from rayunlearn.metrics.multiple_choice import (
    letter_answered,
    letter_choice,
    letter_written,
    letter_written_answered,
    multiple_choice,
    multiple_choice_sum,
)
from rayunlearn.metrics.table import (
    CHANCE_LEVELS,
    CHEAP,
    CHEAP_SOURCES,
    CURVE_METRICS,
    INPUTS,
    JUDGED,
    METRICS,
)
from rayunlearn.metrics.text import (
    first_answer,
    knowledge_memorization,
    leak_at_k,
    ngram_entropy,
    repetition,
    rouge_l_f1,
    rouge_l_recall,
    syntactic_sanity,
    verbatim_memorization,
)
from rayunlearn.models.forward import score
from tests.tiny_models import tiny_model


def flags(text: str) -> torch.Tensor:
    """'101' -> right, wrong, right; the last one is end-of-sequence."""
    return torch.tensor([c == "1" for c in text])


def nll(*probabilities: float) -> torch.Tensor:
    """Negative logarithms of the probabilities."""
    return -torch.tensor(probabilities).log()


# ---- likelihood


def test_probability_is_the_geometric_mean_of_token_probabilities() -> None:
    """Token probabilities 1/2, 1/8: (1/16)^(1/2) = 1/4; of the whole 1/16."""
    assert probability(nll(1 / 2, 1 / 8)) == pytest.approx(0.25)
    assert sequence_probability(nll(1 / 2, 1 / 8)) == pytest.approx(1 / 16)


def test_perplexity_is_its_inverse_and_never_overflows() -> None:
    assert perplexity(nll(1 / 2, 1 / 8)) == pytest.approx(4.0)
    assert math.isfinite(perplexity(torch.tensor([1e6])))


def test_option_probability_shares_one_among_the_options() -> None:
    """0.3 against 0.1, 0.1 and 0.1: 0.3 / 0.6."""
    assert option_probability(nll(0.3, 0.1, 0.1, 0.1)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("correct", "share"), [("1111", 1.0), ("1010", 2 / 3), ("0001", 0.0), ("1", 1.0)]
)
def test_exact_memorization_leaves_the_end_of_sequence_out(correct: str, share: float) -> None:
    assert exact_memorization(flags(correct)) == pytest.approx(share)


@pytest.mark.parametrize(
    ("correct", "strength"),
    [
        ("11111", 1.0),
        ("01111", 0.75),
        ("10111", 0.5),
        ("11101", 0.0),
        ("00001", 0.0),
        ("11110", 1.0),
    ],
)
def test_extraction_strength_counts_from_the_last_mistake(correct: str, strength: float) -> None:
    """Four answer tokens and end-of-sequence; a wrong last answer token gives 0, where a peer's
    loop gives 1/4.
    """
    assert extraction_strength(flags(correct)) == pytest.approx(strength)


@pytest.mark.parametrize(
    ("n_end", "share", "strength"), [(0, 3 / 4, 0.0), (1, 1.0, 1.0), (2, 1.0, 1.0)]
)
def test_only_what_closes_an_answer_is_left_out(n_end: int, share: float, strength: float) -> None:
    """Four tokens, the last one wrong. It counts where nothing closes the answer, not where it is
    the end token or the second of two that end the turn.
    """
    assert exact_memorization(flags("1110"), n_end) == pytest.approx(share)
    assert extraction_strength(flags("1110"), n_end) == pytest.approx(strength)
    values = torch.tensor([1.0, 2.0, 3.0, 9.0])
    worst = [9.0, 3.0, 2.0][n_end]
    assert min_k_score(values, n_end) == worst
    assert min_k_plus_score(values, torch.zeros(4), torch.ones(4), n_end) == worst


def greedy(model: torch.nn.Module, ids: tuple[int, ...], n: int) -> tuple[int, ...]:
    for _ in range(n):
        ids = (*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("seed", range(6))
def test_extraction_strength_equals_a_search_with_greedy_decoding(seed: int) -> None:
    """The definition itself: the smallest k such that greedy decoding of [prompt, first k answer
    tokens] gives the rest.

    The answer is the model's own greedy text with one token replaced, so that every k occurs over
    the seeds.
    """
    model, length = tiny_model(seed=seed), 6
    with torch.no_grad():
        ids = list(greedy(model, (1, 3 + seed), length))
        ids[2 + seed % length] = 7
        answer = Encoded("x", (*ids, 2), 2)
        k = next(
            k
            for k in range(length + 1)
            if greedy(model, tuple(ids[: 2 + k]), length - k) == tuple(ids)
        )
        assert extraction_strength(score(model, [answer])[0].correct) == pytest.approx(
            1 - k / length
        )


def test_truth_ratio_means_the_wrong_options_geometrically_or_arithmetically() -> None:
    """True 0.4, wrong 0.1 and 0.4: geometric mean 0.2, R = 1/2; arithmetic mean 0.25, R = 5/8."""
    options = nll(0.4, 0.1, 0.4)
    assert truth_ratio(options) == pytest.approx(0.5)
    assert truth_ratio_arithmetic(options) == pytest.approx(0.625)
    assert truth_ratio_even(options) == pytest.approx(0.5)
    assert truth_ratio_right(options) == pytest.approx(0.5)


def test_a_model_that_prefers_falsehood_has_a_ratio_above_one() -> None:
    """True 0.1, wrong 0.4: R = 4, min(R, 1/R) = 1/4, max(0, 1 - R) = 0."""
    options = nll(0.1, 0.4)
    assert (
        truth_ratio(options),
        truth_ratio_even(options),
        truth_ratio_right(options),
    ) == pytest.approx((4.0, 0.25, 0.0))
    assert math.isfinite(truth_ratio(torch.tensor([1e6, 0.0])))


def test_distance_from_base_is_the_mean_over_tokens() -> None:
    assert base_kl(torch.tensor([0.0, 0.5, 1.0])) == pytest.approx(0.5)


# ---- choice


def test_multiple_choice_is_right_when_the_first_option_is_likeliest_and_shares_ties() -> None:
    assert multiple_choice(torch.tensor([0.5, 0.9, 0.7])) == 1.0
    assert multiple_choice(torch.tensor([0.9, 0.5, 0.7])) == 0.0
    assert multiple_choice(torch.tensor([0.5, 0.5, 0.7])) == 0.5
    assert multiple_choice_sum(torch.tensor([2.0, 3.0])) == 1.0


def test_the_letter_s_logit_decides_at_the_true_letter_s_place() -> None:
    logits = torch.tensor([0.1, 0.9, 0.3, 0.2])
    assert [letter_choice(logits, place) for place in range(4)] == [0.0, 1.0, 0.0, 0.0]
    assert letter_choice(torch.tensor([0.9, 0.9]), 1) == 0.5


@pytest.mark.parametrize(
    ("text", "right", "among_answered", "answered"),
    [
        ("B", 1.0, 1.0, 1.0),
        (" b", 1.0, 1.0, 1.0),
        ("(B", 1.0, 1.0, 1.0),
        ("A", 0.0, 0.0, 1.0),
        ("E", 0.0, None, 0.0),
        ("?", 0.0, None, 0.0),
        ("", 0.0, None, 0.0),
    ],
)
def test_a_text_without_a_letter_is_wrong_but_not_answered(
    text: str, right: float, among_answered: float | None, answered: float
) -> None:
    """Four options, the truth is B. The last character counts, as in Doshi & Stickland."""
    assert (
        letter_written(text, 1),
        letter_written_answered(text, 1, 4),
        letter_answered(text, 4),
    ) == (right, among_answered, answered)


# ---- membership


def test_loss_zlib_and_reference_scores_are_mean_losses_discounted_in_three_ways() -> None:
    values, answer = torch.tensor([1.0, 3.0]), "a a a a a a a a a a"
    assert loss_score(values) == 2.0
    assert zlib_score(values, answer) == pytest.approx(2.0 / len(zlib.compress(answer.encode())))
    assert reference_score(values, torch.tensor([0.5, 1.5])) == pytest.approx(1.0)


def test_min_k_means_the_least_likely_tokens_without_the_end() -> None:
    """NLL 1, 5, 2, 3 and end-of-sequence 9: 40% of four tokens is one, the 5; 50% are two, mean
    4.
    """
    values = torch.tensor([1.0, 5.0, 2.0, 3.0, 9.0])
    assert min_k_score(values) == 5.0
    assert min_k_score(values, share=0.5) == 4.0


def test_min_k_plus_normalises_each_position_first() -> None:
    """Two tokens, log p = -1 and -5 under means -2 and -6 and deviations 1 and 0.5: z = 1 and 2;
    the lower half is 1, so -1.
    """
    token_nll, mean, deviation = (
        torch.tensor([1.0, 5.0, 7.0]),
        torch.tensor([-2.0, -6.0, 0.0]),
        torch.tensor([1.0, 0.5, 1.0]),
    )
    assert min_k_plus_score(token_nll, mean, deviation, share=0.5) == pytest.approx(-1.0)


# ---- text


def test_rouge_counts_the_longest_common_subsequence_of_stemmed_words() -> None:
    """Truth "the cats sat on mats" (5 words), written "cat sits on the mat" -> cat, on, mat: recall
    3/5, precision 3/5.
    """
    assert rouge_l_recall("cat sits on the mat", "the cats sat on mats") == pytest.approx(0.6)
    assert (
        rouge_l_recall("so the cats sat on mats then and there again", "the cats sat on mats")
        == 1.0
    )
    assert rouge_l_f1(
        "so the cats sat on mats then and there again", "the cats sat on mats"
    ) == pytest.approx(2 / 3)
    assert rouge_l_recall("", "a truth") == 0.0


def test_muse_s_scores_take_words_as_they_are_and_tofu_s_by_their_stems() -> None:
    """ "cat" is "cats" to the stemmer alone: one word of two in common without it, F1 1/2."""
    assert rouge_l_recall("the cats", "the cat") == rouge_l_f1("the cats", "the cat") == 1.0
    assert leak_at_k(("the cats",), "the cat", k=1) == 1.0
    assert verbatim_memorization("the cats", "the cat") == pytest.approx(0.5)
    assert knowledge_memorization("the cats\n\nmore", "the cat") == pytest.approx(0.5)


def test_an_answer_ends_where_the_next_question_begins() -> None:
    assert first_answer("Paris\n\nQuestion: where") == "Paris"
    assert first_answer("Paris Question: x\n\n") == "Paris "
    assert first_answer("Paris") == "Paris"
    assert knowledge_memorization("Paris\n\nand more of it", "Paris") == 1.0


def test_leak_is_the_mean_best_of_all_subsets_of_k_samples() -> None:
    """Recalls 0, 0, 0.5, 1 of two-word truths; the mean of the best over all C(4, 2) pairs, counted
    one by one: (0+0.5+1+0.5+1+1)/6.
    """
    from itertools import combinations

    samples = ("x", "y", "alpha", "alpha beta")
    recalls = [rouge_l_recall(s, "alpha beta") for s in samples]
    assert recalls == [0.0, 0.0, 0.5, 1.0]
    for k in (1, 2, 3, 4):
        best = [max(chosen) for chosen in combinations(recalls, k)]
        assert leak_at_k(samples, "alpha beta", k=k) == pytest.approx(sum(best) / len(best))
    assert leak_at_k(samples, "alpha beta", k=5) is None


def test_a_loop_repeats_and_has_little_entropy() -> None:
    """Eight times "a b": 13 four-grams, two of them different. Two-grams ab 8, ba 7; three-grams
    aba 7, bab 7, so H3 = 1 bit.
    """
    loop = "a b " * 8
    assert repetition(loop) == pytest.approx(1 - 2 / 13)
    h2 = -(8 / 15 * math.log2(8 / 15) + 7 / 15 * math.log2(7 / 15))
    assert ngram_entropy(loop) == pytest.approx((2 / 3 * h2 + 4 / 3 * 1.0) / 2)
    assert repetition("every word here is another one") == 0.0
    assert repetition("too short") is None and ngram_entropy("too short") is None


def test_sanity_counts_the_signs_of_language() -> None:
    assert syntactic_sanity('She said "yes" (in 1999), and left.') == 1.0
    # no word, no letters
    assert syntactic_sanity("") == pytest.approx(3 / 5)
    assert syntactic_sanity("open (never closed") == pytest.approx(4 / 5)
    assert syntactic_sanity("aaaaaaaa words") == pytest.approx(4 / 5)
    assert syntactic_sanity("� ]]]] ((") == 0.0


# ---- the table

EXAMPLES = {
    "token_nll": torch.tensor([0.3, 6.0, 0.01, 2.0]),
    "n_end": 1,
    "correct": flags("1011"),
    "option_nll": torch.tensor([0.5, 2.0, 0.7]),
    "option_nll_sum": torch.tensor([2.0, 2.5, 9.0]),
    "key_nll": torch.tensor([0.3, 6.0]),
    "key_ranks": torch.tensor([1, 40]),
    "wrong_key_nll": torch.tensor([7.0, 2.0]),
    "completion_nll": torch.tensor([0.3]),
    "completion_ranks": torch.tensor([2]),
    "verdict_probabilities": torch.tensor([0.1, 0.2, 0.3, 0.4]),
    "few_shot_nll": torch.tensor([0.3, 6.0, 0.01, 2.0]),
    "few_shot_option_nll": torch.tensor([0.5, 2.0, 0.7]),
    "paraphrase_correct": flags("0011"),
    "log_prob_mean": torch.tensor([-1.0, -2.0, -0.1, -3.0]),
    "log_prob_deviation": torch.tensor([0.5, 2.0, 0.2, 1.0]),
    "base_nll": torch.tensor([0.2, 1.0, 0.01, 0.1]),
    "kl": torch.tensor([0.0, 1.0, 0.2, 0.1]),
    "answer": "the cat sat on the mat",
    "truth": "the cat sat on the mat",
    "generated": "a cat on a mat (mostly)",
    "continuation": "a cat on",
    "samples": ("the cat", "a mat", "no", "sat on", "the cat sat"),
    "letter_logits": torch.tensor([0.5, 0.1, 0.2]),
    "letter_text": "A",
    "true_letter": 1,
    "n_options": 3,
    "gradient_norm": 0.4,
    "gold_gap": torch.tensor([0.02, 1.0, 3.0]),
    "own_gap": torch.tensor([0.5, 0.5, 4.0]),
}


def test_chance_levels_are_metrics_and_those_of_options_worked_by_hand() -> None:
    """Options of probability .5 (true), .2 and .1: a wrong one has .15, a guess is right in 1/3."""
    nll = -torch.tensor([0.5, 0.2, 0.1]).log()
    assert METRICS["probability"].chance == "wrong_option_probability"
    assert METRICS["wrong_option_probability"].function(nll) == pytest.approx(0.15)
    assert METRICS[METRICS["key_probability"].chance].function(nll[1:]) == pytest.approx(0.15)
    assert METRICS[METRICS["key_multiple_choice"].chance].function(nll[1:]) == pytest.approx(1 / 3)
    assert METRICS[METRICS["multiple_choice"].chance].function(nll) == pytest.approx(1 / 3)
    assert all(METRICS[name].direction == "" for name in CHANCE_LEVELS)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_states_unit_range_direction_and_keeps_to_it(name: str) -> None:
    row = METRICS[name]
    assert (
        row.unit
        and row.title
        and row.source
        and row.direction in ("higher", "lower", "")
        and row.low < row.high
    )
    value = row.function(**{n: EXAMPLES[n] for n in row.inputs})
    assert value is not None and row.low <= value <= row.high


def test_every_input_is_asked_for_by_some_metric_and_every_metric_asks_for_known_ones() -> None:
    asked = {name for row in METRICS.values() for name in row.inputs}
    assert asked == set(INPUTS) == set(EXAMPLES)


def test_the_metrics_of_every_trial_need_one_pass_of_scores() -> None:
    assert {
        "probability",
        "multiple_choice",
        "exact_memorization",
        "extraction_strength",
        "perplexity",
        "truth_ratio",
    } <= set(CHEAP)
    assert {INPUTS[name].source for row in CHEAP.values() for name in row.inputs} == CHEAP_SOURCES


def test_metrics_are_chosen_by_name_and_a_misspelt_one_is_told() -> None:
    assert list(chosen_metrics("probability, rouge_l_f1")) == ["probability", "rouge_l_f1"]
    everything = {name: row for name, row in METRICS.items() if name not in JUDGED}
    assert chosen_metrics("all") == everything and chosen_metrics("cheap") == CHEAP
    assert chosen_metrics("all,probability") == everything
    with_letters = chosen_metrics("cheap, letter_choice,probability")
    assert list(with_letters) == [*CHEAP, "letter_choice"] == list(CURVE_METRICS)
    with pytest.raises(
        UserError, match=r"unknown metric 'rouge_l'; did you mean 'rouge_l_.*"
    ) as told:
        chosen_metrics("rouge_l")
    assert str(told.value).endswith("; cheap and all name sets of metrics")
