"""Scores from one pass and from gradients, by hand and against brute force."""

import math
import zlib
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayunlearn.corpus.score_documents import SCORE_COLUMNS
from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import Batch, Encoded, collate, encode_documents
from rayunlearn.metrics.evaluate import chosen_metrics, encode_probes, evaluate_probes
from rayunlearn.metrics.membership import min_k_score
from rayunlearn.models.document_features import (
    DocumentFeatures,
    document_features,
    token_scores,
    zlib_ratio,
)
from rayunlearn.models.forward import hidden_states, score, token_nll
from rayunlearn.models.scratch import build_model, build_tokenizer
from rayunlearn.ranges import required_inputs
from rayunlearn.selectors import gradients, random_projection
from rayunlearn.selectors.gradients import cosines_with, gradient_norms, gradient_slopes
from rayunlearn.selectors.random_projection import head_gradients
from rayunlearn.selectors.redundancy import (
    covered_weight,
    effective_rank,
    expected_coverage,
    jaccard,
    minhash,
    near_duplicate_share,
    nearest_similarity,
    shingles_of,
)
from rayunlearn.selectors.table import SELECTORS, min_k, min_k_plus
from tests.families import FAMILIES, toy_model
from tests.tiny_models import CONFIGS, SEQUENCES, tiny_model
from tests.tokenizer_kinds import PAIRS, chat_tokenizer, tokenizer_of


def losses_of(model: PreTrainedModel, batch: Batch) -> Callable[[], Tensor]:
    return lambda: token_nll(model, batch).sum(1)


def brute_force(model: PreTrainedModel, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The gradient of one loss by name, by ordinary backward."""
    model.zero_grad()
    loss().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def norm(gradient: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradient.values()))


def test_token_scores_by_hand() -> None:
    """p = (3/4, 1/4), label 1. nll ln 4. E log p = 3/4 ln 3/4 + 1/4 ln 1/4; the standard deviation
    of two values is sqrt(3/4 1/4) |ln 3|; surprise = 3/4 (ln 1/4 - ln 3/4) / that = -sqrt 3. Error:
    (3/4, -3/4), length 3/4 sqrt 2."""
    nll, surprise, error = token_scores(torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([1]))
    assert [float(v) for v in (nll, surprise, error)] == pytest.approx(
        [math.log(4), -math.sqrt(3), 0.75 * math.sqrt(2)]
    )


def test_a_certain_and_a_uniform_prediction_have_finite_scores() -> None:
    nll, surprise, error = token_scores(
        torch.tensor([[200.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0])
    )
    assert (
        surprise.abs().max() < 1e-3
        and error.tolist() == pytest.approx([0, math.sqrt(0.5)])
        and nll.tolist() == pytest.approx([0, math.log(2)])
    )


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_one_pass_gives_what_separate_passes_over_single_documents_give(family: str) -> None:
    model = tiny_model(family)
    together = document_features(model, SEQUENCES)
    for sequence, passed in zip(SEQUENCES, together, strict=True):
        batch = collate([sequence])
        with torch.no_grad():
            full = model(input_ids=batch.input_ids, output_hidden_states=True)
        logits = full.logits[0, sequence.start - 1 : -1].float()
        labels = batch.input_ids[0, sequence.start :]
        torch.testing.assert_close(
            passed.token_nll, -logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
        )
        torch.testing.assert_close(
            passed.token_error,
            (logits.softmax(-1) - torch.nn.functional.one_hot(labels, 37)).norm(dim=-1),
        )
        states = full.hidden_states
        torch.testing.assert_close(passed.state, states[-2][0].mean(0))
    torch.testing.assert_close(
        [p.token_nll for p in together], [s.token_nll for s in score(model, SEQUENCES)]
    )


def test_the_zlib_ratio_by_hand() -> None:
    """The zlib ratio is the mean of three NLL over the compressed bytes."""
    passed = document_features(tiny_model(), SEQUENCES[:1])[0]
    assert zlib_ratio(passed, "abc") == pytest.approx(
        float(passed.token_nll.sum()) / 3 / len(zlib.compress(b"abc"))
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_gradient_norms_are_those_of_one_backward_per_document(family: str, tied: bool) -> None:
    model = tiny_model(family)
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    batch = collate(SEQUENCES)
    found = gradient_norms(model, [(batch, losses_of(model, batch))])
    expected = [norm(brute_force(model, losses_of(model, collate([s])))) for s in SEQUENCES]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_norms_of_every_family_are_those_of_a_backward_per_document(family: str) -> None:
    """Scaled embeddings, tied ones, learned positions, experts and convolutions among them."""
    model, batch = toy_model(family), collate(SEQUENCES)
    found = gradient_norms(model, [(batch, losses_of(model, batch))])
    expected = [norm(brute_force(model, losses_of(model, collate([s])))) for s in SEQUENCES]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


# learned positions that rows share, matrices of several experts, decay rates
ONE_BY_ONE = ("gpt2", "opt", "mixtral", "qwen2_moe", "mamba")


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ONE_BY_ONE])
def test_families_that_are_followed_row_by_row_need_one_backward_pass(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(gradients, "_gradients_one_by_one")
    model, batch = toy_model(family), collate(SEQUENCES)
    gradient_norms(model, [(batch, losses_of(model, batch))])


def test_a_family_with_a_backward_pass_per_document_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gradients, "_SAID", set())
    model, batch = toy_model("mixtral"), collate(SEQUENCES)
    for _ in range(2):
        gradient_norms(model, [(batch, losses_of(model, batch))])
    assert len(caplog.messages) == 1 and "MixtralForCausalLM" in caplog.messages[0]


def test_gradient_norms_of_two_terms_are_those_of_the_summed_loss() -> None:
    """Forget rows (a, b) and 3 x retain rows (b, c): |g_a + 3 g_b| and |g_b + 3 g_c|."""
    model = tiny_model()
    forget, retain = collate(SEQUENCES[:2]), collate(SEQUENCES[1:])

    def retain_losses() -> Tensor:
        return 3 * token_nll(model, retain).sum(1)

    expected = [
        norm(brute_force(model, lambda i=i: losses_of(model, forget)()[i] + retain_losses()[i]))
        for i in range(2)
    ]
    assert gradient_norms(
        model, [(forget, losses_of(model, forget)), (retain, retain_losses)]
    ).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_cosines_with_the_retain_gradient_are_those_of_brute_force(family: str) -> None:
    model = toy_model(family)

    def gradient(sequence: Encoded) -> Tensor:
        batch = collate([sequence])
        parts = brute_force(model, lambda: token_nll(model, batch).sum() / batch.labelled.sum())
        return torch.cat([parts[name].flatten() for name in sorted(parts)])

    retain = torch.stack([gradient(s) for s in SEQUENCES[1:]]).mean(0)
    expected = [
        float(torch.nn.functional.cosine_similarity(gradient(s), retain, dim=0)) for s in SEQUENCES
    ]
    assert cosines_with(
        model, SEQUENCES, SEQUENCES[1:], token_nll, tokens_per_batch=8
    ).tolist() == pytest.approx(expected, abs=1e-4)


def test_gradient_norms_count_trainable_parameters_alone_and_see_hidden_losses() -> None:
    model = tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1.mlp" in name)
    batch = collate(SEQUENCES)
    # what stands on padding is meaningless
    present = batch.present[..., None]
    found = gradient_norms(
        model, [(batch, lambda: (hidden_states(model, batch, 2) * present).square().sum((1, 2)))]
    )
    expected = [
        norm(brute_force(model, lambda i=i: hidden_states(model, batch, 2)[i].square().sum()))
        for i in range(3)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_slopes_are_inner_products_with_the_documents_own_gradients(family: str) -> None:
    model = tiny_model(family)
    batch = collate(SEQUENCES)
    generator = torch.Generator().manual_seed(1)
    direction = {
        name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()
    }
    found = gradient_slopes(model, losses_of(model, batch), direction)
    gradients = [brute_force(model, losses_of(model, collate([s]))) for s in SEQUENCES]
    expected = [
        sum(float((g * direction[name]).double().sum()) for name, g in gradient.items())
        for gradient in gradients
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_a_model_is_left_as_it_was() -> None:
    model = tiny_model()
    model.zero_grad()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = collate(SEQUENCES)
    gradient_norms(model, [(batch, losses_of(model, batch))])
    gradient_slopes(model, losses_of(model, batch), dict(before))
    assert all(
        torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters()
    )
    assert not any(module._forward_hooks for module in model.modules())


def test_a_sequence_of_one_label_scores_finitely() -> None:
    passed = document_features(tiny_model(), [Encoded("one", (1, 2), 1)])[0]
    assert passed.token_nll.shape == (1,) and bool(torch.isfinite(passed.surprise).all())


def test_two_copies_and_a_near_copy_are_duplicates_and_an_unlike_document_is_not() -> None:
    """Ten words give eight shingles; one changed last word leaves 7 of 9: Jaccard 0.78; unlike:
    0.
    """
    text = "one two three four five six seven eight nine ten"
    texts = [
        text,
        text.upper(),
        text.replace("ten", "x"),
        "quite another text with words of its own entirely",
    ]
    assert (
        near_duplicate_share(texts, threshold=0.75) == 0.75
        and near_duplicate_share(texts, threshold=0.8) == 0.5
    )
    assert near_duplicate_share([]) == near_duplicate_share(["one"]) == 0.0


def test_minhash_agrees_as_often_as_jaccard_says() -> None:
    """Jaccard 50 / 150: agreement of 128 hashes 1/3 with standard deviation 0.042 on one pair;
    0.0094 on the mean of 20.
    """
    shares = []
    for seed in range(20):
        values = torch.randint(
            0, 2**55, (150,), generator=torch.Generator().manual_seed(seed)
        ).tolist()
        shares.append(float((minhash(values[:100]) == minhash(values[50:])).mean()))
    assert sum(shares) / 20 == pytest.approx(1 / 3, abs=4 * 0.0094)


def test_near_duplicates_are_those_of_brute_force() -> None:
    words = ["a", "b", "c", "d", "e", "f", "g", "h"]
    generator = torch.Generator().manual_seed(0)
    texts = [
        " ".join(words[i] for i in torch.randint(0, 8, (6,), generator=generator).tolist())
        for _ in range(60)
    ]
    sets = [shingles_of(t, 1) for t in texts]
    expected = (
        sum(any(i != j and jaccard(sets[i], sets[j]) >= 0.8 for j in range(60)) for i in range(60))
        / 60
    )
    assert 0 < expected < 1 and near_duplicate_share(texts, 0.8, shingle=1) == expected


def test_effective_rank_counts_equal_directions() -> None:
    """+-e1 +-e2 +-e3: three equal singular values -> 3. A line -> 1. Copies -> 1."""
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    assert effective_rank(axes) == pytest.approx(3.0)
    assert effective_rank(torch.arange(5.0)[:, None] * torch.ones(1, 4)) == pytest.approx(1.0)
    assert effective_rank(torch.ones(4, 3)) == 1.0


def test_nearest_similarity_is_that_of_brute_force_in_any_block_size() -> None:
    points = torch.randn(23, 4, generator=torch.Generator().manual_seed(0))
    centred = torch.nn.functional.normalize(points - points.mean(0), dim=1)
    similarity = (centred @ centred.T).fill_diagonal_(-2)
    expected = float(similarity.max(1).values.mean())
    assert (
        nearest_similarity(points, block=7)
        == pytest.approx(expected)
        == pytest.approx(nearest_similarity(points))
    )


KEYWORDS = [{"a": 2.0, "b": 1.0}, {"a": 1.0}, {"c": 4.0}, {}]


def test_covered_weight_by_hand() -> None:
    """Weights a 3, b 1, c 4: documents 0 and 1 cover 4 of 8."""
    assert (
        covered_weight(KEYWORDS, [0, 1]) == 0.5
        and covered_weight(KEYWORDS, []) == 0.0
        and covered_weight([{}], [0]) is None
    )


def test_expected_coverage_is_the_mean_over_all_coresets() -> None:
    for size in range(5):
        values = [covered_weight(KEYWORDS, kept) for kept in combinations(range(4), size)]
        assert expected_coverage(KEYWORDS, size) == pytest.approx(
            sum(v for v in values if v is not None) / len(values)
        )


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite", "opt"])
def test_a_sketch_with_identity_projections_is_the_gradient_of_the_head(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient through the head alone: a tied embedding's other use is no part of it."""
    model = toy_model(family)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    monkeypatch.setattr(
        random_projection, "random_signs", lambda size, _width, _seed: torch.eye(size)
    )
    for sequence in SEQUENCES:
        batch = collate([sequence])
        loss = token_nll(model, batch).sum() / batch.labelled.sum()
        (expected,) = torch.autograd.grad(loss, head.weight)
        found = head_gradients(model, [sequence])[0]
        torch.testing.assert_close(found.reshape(37, 16), expected)


def test_sketches_keep_inner_products_on_average_and_do_not_depend_on_the_batch() -> None:
    model = tiny_model()
    full = []
    for sequence in SEQUENCES:
        batch = collate([sequence])
        full.append(
            torch.autograd.grad(
                token_nll(model, batch).sum() / batch.labelled.sum(),
                model.get_output_embeddings().weight,
            )[0].flatten()
        )
    exact = torch.stack(full) @ torch.stack(full).T
    sketches = [head_gradients(model, SEQUENCES, width=24, seed=2 * s) for s in range(60)]
    mean = torch.stack([s @ s.T for s in sketches]).mean(0)
    assert float((mean - exact).abs().max()) < 0.1 * float(exact.abs().max())
    torch.testing.assert_close(
        head_gradients(model, SEQUENCES[1:2])[0], head_gradients(model, SEQUENCES)[1]
    )


# Selector and metric of one name, and how the score follows from the metric's value:
# a selector takes the highest first, a membership score is lowest for what was trained on.
SAME_NUMBER = {
    "min_k": ("min_k_score", -1.0),
    "min_k_plus": ("min_k_plus_score", -1.0),
    "zlib": ("zlib_score", -1.0),
    "loss": ("loss_score", 1.0),
}


@pytest.mark.parametrize("selector", SAME_NUMBER)
def test_a_selector_and_the_metric_of_its_name_are_one_number(selector: str) -> None:
    """Over documents with and without a question, in one batch and alone, with the end token left
    out by both or by neither; a head so sure that a deviation falls under its least value.
    """
    documents = [
        *(Document(prompt="w1 w2", answer=" ".join(f"w{n + i}" for n in range(i))) for i in (1, 6)),
        Document(answer=" ".join(f"w{3 * n % 40}" for n in range(11))),
    ]
    tokenizer = build_tokenizer([" ".join(f"w{n}" for n in range(40))])
    model = build_model("tiny", len(tokenizer), seed=0)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(60.0)
    metric, sign = SAME_NUMBER[selector]
    probes = encode_probes({"members": documents}, tokenizer, "{prompt}", 64)
    rows = evaluate_probes(model, probes, chosen_metrics(metric), tokenizer=tokenizer)
    passed = document_features(model, encode_documents(documents, tokenizer, "{prompt}", 64))
    texts = [d.answer for d in documents]
    function = SELECTORS[selector].function
    found = function(
        **{name: SCORE_COLUMNS[name](passed, texts) for name in required_inputs(function)}
    )
    expected = [sign * float(str(row["value"])) for row in rows]
    assert len({round(value, 6) for value in expected}) == 3
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "chat", "n_end"),
    [("wordpiece", "", 0), ("mistral", "", 1), ("mistral", "llama2", 2), ("phi3", "endless", 0)],
)
@pytest.mark.parametrize("selector", ["min_k", "min_k_plus"])
def test_a_selector_leaves_out_what_closes_the_answer_and_no_more(
    selector: str, kind: str, chat: str, n_end: int
) -> None:
    """No end token: the last word counts. An end of turn of two tokens: neither counts. The metric
    of the name, which has it from the encoded probe, is the other side.
    """
    tokenizer = chat_tokenizer(kind, chat) if chat else tokenizer_of(kind)
    template = "chat" if chat else "{prompt}"
    documents = [Document(prompt=prompt, answer=answer) for prompt, answer in PAIRS[:4]]
    model = build_model("tiny", len(tokenizer), seed=0)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(60.0)
    sequences = encode_documents(documents, tokenizer, template, 256)
    passed = document_features(model, sequences)
    assert [p.n_end for p in passed] == [s.n_end for s in sequences] == [n_end] * 4
    probes = encode_probes({"members": documents}, tokenizer, template, 256)
    rows = evaluate_probes(
        model, probes, chosen_metrics(SAME_NUMBER[selector][0]), tokenizer=tokenizer
    )
    function = SELECTORS[selector].function
    found = function(
        **{name: SCORE_COLUMNS[name](passed, []) for name in required_inputs(function)}
    )
    assert found.tolist() == pytest.approx([-float(str(r["value"])) for r in rows], rel=1e-4)


def test_the_end_token_counts_for_neither_min_k() -> None:
    """Labels of NLL 1, 2 and 9, the last one the end: the least likely that counts has 2; without
    an end it has 9, with an end of two tokens 1.
    """
    for n_end, lowest in ((0, 9.0), (1, 2.0), (2, 1.0)):
        passed = DocumentFeatures(
            torch.tensor([1.0, 2.0, 9.0]),
            torch.tensor([-1.0, -2.0, -9.0]),
            torch.ones(3),
            torch.ones(1),
            n_end,
        )
        nll = SCORE_COLUMNS["answer_nll"]([passed], ["w1"])
        surprise = SCORE_COLUMNS["answer_surprise"]([passed], ["w1"])
        assert min_k(nll, fraction=0.1).tolist() == [-lowest]
        assert min_k_plus(surprise, fraction=0.1).tolist() == [-lowest]
        assert min_k_score(passed.token_nll, n_end, share=0.1) == lowest
    alone = DocumentFeatures(
        torch.tensor([9.0]), torch.tensor([-9.0]), torch.ones(1), torch.ones(1), 1
    )
    assert alone.without_end(alone.token_nll).tolist() == [9.0]
