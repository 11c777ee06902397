"""What layers know and what samples tell: the last block is the model, a planted direction is
found, a closed form is met by sampling.
"""

import math
import random

import pytest
import torch
from transformers import PreTrainedModel

from rayunlearn.attacks import probing
from rayunlearn.attacks.probing import (
    PROBING,
    block_states,
    last_states,
    lens_nll,
    linear_probe,
    linear_probe_held_in,
    logit_lens,
    truth_probe,
)
from rayunlearn.attacks.sampling import powers_of_two, probability_in_attempts, sampled_attempts
from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import Encoded
from rayunlearn.errors import UserError
from rayunlearn.metrics.evaluate import encode_probes, evaluate_probes
from rayunlearn.metrics.forward_passes import Probe
from rayunlearn.models.forward import blocks, score
from rayunlearn.models.generate import generate_texts
from rayunlearn.models.scratch import build_tokenizer
from tests.families import FAMILIES, toy_model
from tests.tiny_models import CONFIGS, SEQUENCES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_at_the_last_block_is_the_model_s_own_output(family: str) -> None:
    model = toy_model(family)
    for seen, own in zip(lens_nll(model, SEQUENCES), score(model, SEQUENCES), strict=True):
        assert seen.shape == (2, len(own.token_nll))
        torch.testing.assert_close(seen[-1], own.token_nll)
        assert not torch.allclose(seen[0], own.token_nll)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_lens_at_a_lower_block_is_the_model_cut_off_there(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose upper blocks are taken away gives what the lens reads at its last block: no
    hook, no norm by name.
    """
    model = tiny_model(family)
    seen = lens_nll(model, SEQUENCES)
    del blocks(model)[2:]
    # the tiny models share it
    monkeypatch.setattr(model.config, "num_hidden_layers", 2)
    for lens, own in zip(seen, score(model, SEQUENCES), strict=True):
        torch.testing.assert_close(lens[1], own.token_nll)


def test_lens_rows_at_the_last_block_are_the_metrics_of_the_output() -> None:
    probes, model = asked(), tiny_model()
    own = {(r["doc_id"], r["metric"]): r["value"] for r in evaluate_probes(model, probes)}
    rows = [r for r in logit_lens(model, probes) if r["x"] == 2]
    assert len(rows) == 2 * len(probes)
    for row in rows:
        assert row["value"] == pytest.approx(own[row["doc_id"], row["metric"]], abs=1e-6)


def asked(n: int = 4) -> list[Probe]:
    return [
        Probe(
            f"d{i}",
            "forget",
            Encoded(f"d{i}", (1, 5 + i, 6, 9 + i, 2), 3),
            tuple(Encoded(f"o{j}", (1, 5 + i, 6, 9 + j, 2), 3) for j in range(3)),
        )
        for i in range(n)
    ]


def test_the_state_after_a_question_is_that_of_its_last_token() -> None:
    model = tiny_model()
    states = last_states(model, SEQUENCES)
    for at, sequence in enumerate(SEQUENCES):
        alone = block_states(
            model,
            torch.tensor([sequence.ids[: sequence.start]]),
            torch.tensor([sequence.start - 1]),
        )
        torch.testing.assert_close(states[at], torch.stack(alone, 1)[0])
    whole = last_states(model, SEQUENCES[:1], before_end=True)[0]
    torch.testing.assert_close(
        whole,
        torch.stack(
            block_states(model, torch.tensor([SEQUENCES[0].ids[:-1]]), torch.tensor([4])), 1
        )[0],
    )


def planted(monkeypatch: pytest.MonkeyPatch, signal: float) -> list[Probe]:
    """120 questions with one of two answers, (7, 2) or (8, 2); the answer is the sign of the
    states' direction 3 at block 1, noise elsewhere.
    """
    rng = random.Random(0)
    kinds = [rng.randrange(2) for _ in range(120)]
    splits = ["retain" if at < 60 else "forget" for at in range(120)]
    probes = [
        Probe(f"d{at}", split, Encoded(f"d{at}", (1, 7 + kind, 2), 1), ())
        for at, (kind, split) in enumerate(zip(kinds, splits, strict=True))
    ]
    place = {p.doc_id: at for at, p in enumerate(probes)}
    noise = torch.randn(120, 2, 8, generator=torch.Generator().manual_seed(0))
    noise[:, 1, 3] += signal * torch.tensor([2.0 * kind - 1 for kind in kinds])

    def states(_model: PreTrainedModel, sequences: list[Encoded]) -> torch.Tensor:
        return noise[[place[s.doc_id] for s in sequences]]

    monkeypatch.setattr(probing, "last_states", states)
    return probes


def share(rows: list[dict[str, object]], metric: str, layer: int) -> float:
    values = [float(str(r["value"])) for r in rows if r["metric"] == metric and r["x"] == layer]
    return sum(values) / len(values)


def test_a_linear_probe_finds_a_planted_direction_where_it_is_and_not_in_shuffled_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """60 questions asked, chance 1/2: 0.5 +- 2.6 standard deviations (99%) is 0.33 to 0.67."""
    probes = planted(monkeypatch, 3.0)
    rows = linear_probe(tiny_model(), probes, 0)
    assert share(rows, "probe_right", 1) > 0.95
    assert all(
        0.33 <= value <= 0.67
        for value in (share(rows, "probe_right", 0), share(rows, "probe_right_shuffled", 0))
    )
    assert share(rows, "probe_right_shuffled", 1) < 0.8
    assert {r["split"] for r in rows} == {"forget"}


def test_without_the_direction_the_probe_is_at_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = linear_probe(tiny_model(), planted(monkeypatch, 0.0), 0)
    assert 0.33 <= share(rows, "probe_right", 1) <= 0.67


def test_a_held_in_probe_is_asked_on_the_other_half_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = planted(monkeypatch, 3.0)
    held_in = probes[60:100]
    rows = linear_probe_held_in(tiny_model(), probes, held_in, 0)
    assert {r["doc_id"] for r in rows} == {p.doc_id for p in probes[100:]}
    assert share(rows, "probe_right", 1) > 0.8


def test_an_answer_that_no_fitted_question_has_is_no_failure_of_the_probe() -> None:
    probes = [
        *asked(),
        *(
            Probe(f"r{i}", "retain", Encoded(f"r{i}", (1, 5 + i, 6, 9 + i, 2), 3), ())
            for i in range(2)
        ),
    ]
    rows = [r for r in linear_probe(tiny_model(), probes, 0) if r["metric"] == "probe_right"]
    assert [r["value"] is None for r in rows if r["x"] == 0] == [False, False, True, True]
    with pytest.raises(UserError, match="two answers or more"):
        linear_probe(tiny_model(), probes[:5], 0)


def test_a_truth_probe_on_the_words_of_options_finds_a_word_that_is_always_true() -> None:
    """Token 30 is the true option of every question: that can be read off the embedding, so the
    probe is right on all held-out ones.
    """

    def question(at: int, split: str) -> Probe:
        options = tuple(
            Encoded(f"q{at}{j}", (1, 3 + at, token, 2), 2)
            for j, token in enumerate((30, 20 + at % 5, 25 + at % 4))
        )
        return Probe(f"q{at}", split, options[0], options)

    probes = [question(at, "retain" if at < 8 else "forget") for at in range(16)]
    rows = truth_probe(tiny_model(), probes, probes[8:10], 0)
    assert {r["doc_id"] for r in rows} == {p.doc_id for p in probes[10:]}
    assert share(rows, "probe_choice", 0) == 1.0
    assert (
        min(
            share(truth_probe(tiny_model(), probes, probes[8:10], seed), "probe_choice_shuffled", 0)
            for seed in range(4)
        )
        < 0.5
    )
    with pytest.raises(UserError, match="questions with options"):
        truth_probe(tiny_model(), [Probe("a", "forget", SEQUENCES[0], ())], [], 0)


def test_every_row_of_the_table_says_what_it_is_held_against() -> None:
    assert all(row.kind == "inside" and row.source and row.control for row in PROBING.values())


def test_the_chance_of_an_exact_answer_in_k_attempts_by_hand() -> None:
    """p = 1/2: 1 - (1/2)^3 = 7/8; p = 1/4 in two tokens of 1/2, k = 2: 1 - (3/4)^2 = 7/16; certain
    and hopeless stay so.
    """
    half = math.log(2)
    assert probability_in_attempts(torch.tensor([half]), 3) == pytest.approx(7 / 8)
    assert probability_in_attempts(torch.tensor([half, half]), 2) == pytest.approx(7 / 16)
    assert (
        probability_in_attempts(torch.tensor([0.0]), 1) == 1.0
        and probability_in_attempts(torch.tensor([1e4]), 64) == 0.0
    )
    assert probability_in_attempts(torch.tensor([27.0]), 1000) == pytest.approx(
        1000 * math.exp(-27.0), rel=1e-6
    )
    assert (
        powers_of_two(1) == [1]
        and powers_of_two(6) == [1, 2, 4, 6]
        and powers_of_two(16) == [1, 2, 4, 8, 16]
    )


def test_the_closed_form_is_what_sampling_gives() -> None:
    """One-token answers of a random model, p about 1/37; 400 rounds of k = 16 attempts: within 2.6
    standard deviations (99%).
    """
    model, prompt, k, rounds = tiny_model(), (1, 5, 6), 16, 400
    drawn = generate_texts(
        model,
        [prompt] * k * rounds,
        ends=(),
        max_new_tokens=1,
        temperature=1.0,
        seeds=[str(n) for n in range(k * rounds)],
    )
    hits = sum(any(ids == (9,) for ids in drawn[at : at + k]) for at in range(0, len(drawn), k))
    expected = probability_in_attempts(
        score(model, [Encoded("x", (*prompt, 9), 3)])[0].token_nll, k
    )
    assert abs(hits / rounds - expected) <= 2.6 * math.sqrt(expected * (1 - expected) / rounds)


def test_attempts_leak_more_the_more_there_are() -> None:
    documents = [
        Document(prompt=f"Who is {name}?", answer="a tailor") for name in ("Kalo", "Rumi", "Tiva")
    ]
    template = "Question: {prompt}\nAnswer:"
    tokenizer = build_tokenizer(
        [template.replace("{prompt}", d.prompt) + " a tailor" for d in documents]
    )
    probes, model = encode_probes({"forget": documents}, tokenizer, template, 64), tiny_model()
    model.resize_token_embeddings(len(tokenizer))
    rows = sampled_attempts(model, tokenizer, probes, 0, attempts=6, max_new_tokens=4)
    by_metric = {
        m: [float(str(r["value"])) for r in rows if r["metric"] == m]
        for m in {str(r["metric"]) for r in rows}
    }
    assert set(by_metric) == {f"{kind}_at_{k}" for kind in ("leak", "exact") for k in (1, 2, 4, 6)}
    for kind in ("leak", "exact"):
        for at in range(3):
            along = [by_metric[f"{kind}_at_{k}"][at] for k in (1, 2, 4, 6)]
            assert along == sorted(along) and 0 <= along[0] <= along[-1] <= 1
    assert sampled_attempts(model, tokenizer, probes, 0, attempts=6, max_new_tokens=4) == rows
