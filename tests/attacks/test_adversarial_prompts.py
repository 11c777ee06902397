"""Universal prompts: gradients against brute force and finite differences, and what the attacks
leave as it was.
"""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayunlearn.attacks.adversarial_prompts import (
    ADVERSARIAL_PROMPTS,
    PromptObjective,
    TokenSearch,
    _block_output,
    answer_openings,
    candidate_prompts,
    gcg,
    losses_of_prompts,
    noise,
    prompt_losses,
    random_prefix,
    search_prompt,
    soft_prompt,
    soft_prompt_random,
    soft_prompt_shuffled,
    token_gradient,
    usable_tokens,
    with_prefix,
)
from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import Encoded, collate
from rayunlearn.errors import UserError
from rayunlearn.metrics.evaluate import encode_probes, evaluate_probes
from rayunlearn.metrics.forward_passes import Probe
from rayunlearn.models.forward import hidden_states, score
from rayunlearn.models.scratch import build_tokenizer
from tests.tiny_models import SEQUENCES, tiny_model

PLACE = 1
FAMILIES = ("llama", "gpt_neox", "phi")
TEMPLATE = "Question: {prompt}\nAnswer:"


def goal_of(
    model: PreTrainedModel, representation: float = 0.0, fluency: float = 0.0
) -> PromptObjective:
    batch = collate(SEQUENCES)
    return PromptObjective(
        batch, PLACE, 1, _block_output(tiny_model("llama", 5), batch, 1), representation, fluency
    )


def inserted(prompt: Tensor) -> list[Encoded]:
    ids = tuple(prompt.tolist())
    return [
        Encoded(s.doc_id, (*s.ids[:PLACE], *ids, *s.ids[PLACE:]), s.start + len(ids))
        for s in SEQUENCES
    ]


def brute_loss(
    model: PreTrainedModel, prompt: Tensor, representation: float = 0.0, fluency: float = 0.0
) -> float:
    """The loss from ordinary passes over ordinary sequences, one at a time, by its definition."""
    scored = score(model, inserted(prompt))
    total = float(torch.cat([s.token_nll for s in scored]).mean())
    if representation:
        gaps = []
        for plain, longer in zip(SEQUENCES, inserted(prompt), strict=True):
            with torch.no_grad():
                there = hidden_states(model, collate([longer]), 1)[0, PLACE + len(prompt) :]
                wanted = hidden_states(tiny_model("llama", 5), collate([plain]), 1)[0, PLACE:]
            gaps.append((there - wanted).square().mean(1))
        total += representation * float(torch.cat(gaps).mean())
    if fluency:
        alone = Encoded("x", (1, *prompt.tolist()), 1)
        total += fluency * float(score(model, [alone])[0].token_nll.mean())
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_prompt_is_that_of_the_sequences_with_it_inside(family: str) -> None:
    model, prompts = tiny_model(family), torch.tensor([[3, 4], [30, 7], [8, 8]])
    found = losses_of_prompts(model, goal_of(model), prompts, rows=4)
    torch.testing.assert_close(found, torch.tensor([brute_loss(model, p) for p in prompts]))


def test_both_further_terms_are_what_they_are_defined_as() -> None:
    model, prompt = tiny_model(), torch.tensor([4, 20, 9])
    for weights in ((0.5, 0.0), (0.0, 0.7), (2.0, 0.3)):
        assert float(
            losses_of_prompts(model, goal_of(model, *weights), prompt[None])
        ) == pytest.approx(brute_loss(model, prompt, *weights), rel=1e-5)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.5, 0.7)])
def test_the_gradient_is_the_finite_difference_of_the_loss_in_the_one_hot_prompt(
    weights: tuple[float, float],
) -> None:
    model = tiny_model().double()
    goal, prompt = goal_of(model, *weights), torch.tensor([3, 12])
    slope = token_gradient(model, goal, prompt)
    table, shares = (
        model.get_input_embeddings().weight.detach(),
        torch.nn.functional.one_hot(prompt, 37).double(),
    )
    with torch.no_grad():
        for position, token in ((0, 5), (0, 36), (1, 2), (1, 30)):
            step = torch.zeros_like(shares)
            step[position, token] = 1e-3
            ahead, behind = (
                prompt_losses(
                    model,
                    goal,
                    ((shares + sign * step) @ table)[None],
                    (shares + sign * step)[None],
                )[0]
                for sign in (1, -1)
            )
            # label logits are float32 whatever the model is, so a difference has about four digits
            assert float(slope[position, token]) == pytest.approx(
                float(ahead - behind) / 2e-3, abs=2e-3
            )


def test_with_all_candidates_one_step_is_the_best_replacement_of_all() -> None:
    """Brute force: 2 positions x 37 tokens, every one scored by itself."""
    model, prompt = tiny_model(), torch.tensor([3, 12])
    tried = [torch.tensor([token, 12]) for token in range(37)] + [
        torch.tensor([3, token]) for token in range(37)
    ]
    best = min(tried, key=lambda p: brute_loss(model, p))
    search = TokenSearch(steps=1, candidates=74, top=37)
    found = search_prompt(
        model, goal_of(model), prompt, torch.arange(37), search, torch.Generator()
    )
    assert torch.equal(found, best)


def test_the_gradient_ranks_replacements_as_brute_force_does_where_a_step_is_small() -> None:
    """With embeddings 20 times smaller the loss is nearly linear in them: the top 5 of a position
    are brute force's best 5.
    """
    model, prompt = tiny_model(), torch.tensor([3, 12])
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.05)
        model.get_input_embeddings().weight.add_(
            0.2 * torch.randn(16, generator=torch.Generator().manual_seed(1))
        )
    slope = token_gradient(model, goal_of(model), prompt)
    true = torch.tensor([brute_loss(model, torch.tensor([token, 12])) for token in range(37)])
    assert (
        len(set((-slope[0]).topk(5).indices.tolist()) & set((-true).topk(5).indices.tolist())) >= 4
    )
    assert float(torch.corrcoef(torch.stack([slope[0], true]))[0, 1]) > 0.95


def test_replacements_change_one_token_and_take_only_usable_ones() -> None:
    # token 0 would be best, if it could be used
    slope = torch.arange(20.0).repeat(3, 1)
    usable = torch.tensor([4, 7, 2, 9])
    drawn = candidate_prompts(
        torch.tensor([1, 1, 1]),
        slope,
        usable,
        TokenSearch(steps=1, candidates=4, top=2),
        torch.Generator().manual_seed(0),
    )
    assert (
        drawn.shape == (4, 3)
        and ((drawn != 1).sum(1) == 1).all()
        and set(drawn.flatten().tolist()) <= {1, 2, 4}
    )
    every = candidate_prompts(
        torch.tensor([1, 1, 1]), slope, usable, TokenSearch(1, 99, 2), torch.Generator()
    )
    assert len({tuple(row) for row in every.tolist()}) == 6


def test_a_search_never_ends_above_its_start_and_finds_a_better_prompt() -> None:
    model, start = tiny_model(), torch.tensor([3, 12, 5])
    ends = [
        search_prompt(
            model,
            goal_of(model),
            start,
            torch.arange(37),
            TokenSearch(steps=n, candidates=12, top=6),
            torch.Generator().manual_seed(0),
        )
        for n in (0, 3, 6)
    ]
    values = [brute_loss(model, end) for end in ends]
    assert torch.equal(ends[0], start) and values[0] > values[1] >= values[2]


def questions(n: int = 6) -> tuple[list[Probe], object]:
    colours = ("jade", "amber", "ivory", "ochre", "azure", "silver")
    names = ("Kalo", "Rumi", "Tiva", "Bode", "Fexa", "Zori")
    times = ("dawn", "noon", "dusk", "night", "seven", "ten")
    documents = [
        Document(
            prompt=f"Which colour has {name} at {time}?",
            prompt_paraphrase=f"How does {name} glow at {time}?",
            answer=colour,
            wrong=tuple(w for w in colours if w != colour)[:3],
        )
        for name, time, colour in zip(names[:n], times, colours, strict=False)
    ]
    words = [
        TEMPLATE.replace("{prompt}", p) for d in documents for p in (d.prompt, d.prompt_paraphrase)
    ]
    tokenizer = build_tokenizer(
        [*words, *(f" {c}" for c in colours), " some other words that stand nowhere else in here"]
    )
    return encode_probes({"forget": documents}, tokenizer, TEMPLATE, 64), tokenizer


def test_a_prompt_stands_after_what_all_questions_begin_with_and_before_every() -> None:
    probes, tokenizer = questions()
    assert (
        tokenizer.decode(probes[0].answer.ids[: answer_openings(probes)])
        == "<s>Question: Which colour has"
    )
    assert answer_openings(probes[:1]) == 1
    changed = with_prefix(probes, (7, 8), 2)[0]
    for before, after in zip(
        (probes[0].answer, *probes[0].options, probes[0].paraphrased),
        (changed.answer, *changed.options, changed.paraphrased),
        strict=True,
    ):
        assert (
            after.ids == (*before.ids[:2], 7, 8, *before.ids[2:])
            and after.ids[after.start :] == before.ids[before.start :]
        )


@pytest.mark.parametrize("name", ADVERSARIAL_PROMPTS)
def test_no_answer_token_is_put_in_and_the_same_seed_gives_the_same(name: str) -> None:
    probes, tokenizer = questions()
    model = tiny_model()
    model.resize_token_embeddings(len(tokenizer))
    row = ADVERSARIAL_PROMPTS[name]
    settings = {} if name in ("noise", "random_prefix") else {"steps": 2}
    with ExitStack() as leaving:
        given = {
            "model": model,
            "base": model,
            "tokenizer": tokenizer,
            "probes": probes,
            "held_in": probes[:3],
            "leaving": leaving,
        }

        def run(seed: int) -> list[tuple[int, ...]]:
            changed = row.function(
                **{n: seed if n == "seed" else given[n] for n in row.inputs},
                **settings,
            )
            asked = [p for p in changed if p.split == "forget"]
            assert [p.doc_id for p in asked] == [p.doc_id for p in probes]
            return [p.answer.ids[: p.answer.start] for p in asked]

        first = run(0)
        for probe, ids in zip(probes, first, strict=True):
            told = told_by([probe] if name == "noise" else probes)
            assert (
                not told & (set(ids) - set(probe.answer.ids))
                and ids != probe.answer.ids[: probe.answer.start]
            )
        if not name.startswith("soft"):
            assert run(0) == first != run(1)


def told_by(probes: list[Probe]) -> set[int]:
    return {i for p in probes for i in p.answer.ids[p.answer.start :]}


def test_noise_replaces_the_share_of_what_is_asked_and_leaves_the_answers() -> None:
    probes, tokenizer = questions()
    # of "Kalo at dawn", what the questions do not all share
    for share, expected in ((1.0, 3), (0.67, 2), (0.01, 1)):
        changed = noise(probes, tokenizer, 0, share=share)[0]
        before = probes[0]
        differing = sum(a != b for a, b in zip(before.answer.ids, changed.answer.ids, strict=True))
        assert differing == expected
        assert [o.ids[: o.start] for o in changed.options] == [
            changed.answer.ids[: changed.answer.start]
        ] * len(changed.options)
        assert [o.ids[o.start :] for o in changed.options] == [
            o.ids[o.start :] for o in before.options
        ]


def test_soft_vectors_have_the_gradient_of_a_finite_difference() -> None:
    model, goal = tiny_model().double(), goal_of(tiny_model())
    vectors = (
        torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(0))
        .double()
        .requires_grad_(True)
    )
    slope = torch.autograd.grad(prompt_losses(model, goal, vectors, vectors).sum(), vectors)[0]
    for at in ((0, 0, 3), (0, 1, 15)):
        step = torch.zeros_like(vectors)
        step[at] = 1e-3
        with torch.no_grad():
            ahead, behind = (
                float(prompt_losses(model, goal, vectors + sign * step, vectors))
                for sign in (1, -1)
            )
        assert float(slope[at]) == pytest.approx((ahead - behind) / 2e-3, abs=2e-3)


def test_soft_prompts_lower_the_held_in_loss_and_leave_the_model_as_it_was() -> None:
    probes, tokenizer = questions()
    model = tiny_model()
    model.resize_token_embeddings(len(tokenizer))
    # fresh weights are so small that nothing before a token moves it; these are moved
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)
    before, embeddings = (
        {n: p.clone() for n, p in model.named_parameters()},
        model.get_input_embeddings(),
    )

    def held_in_nll(attacked: list[Probe]) -> float:
        return float(
            torch.cat([s.token_nll for s in score(model, [p.answer for p in attacked])]).mean()
        )

    plain = held_in_nll(probes)
    with ExitStack() as leaving:
        attacked = soft_prompt(
            model, probes, probes, 0, leaving, steps=40, vectors=3, learning_rate=0.3
        )
        assert held_in_nll(attacked) < plain - 0.3
        rows = evaluate_probes(model, attacked, tokenizer=tokenizer)
        assert all(row["value"] is not None for row in rows if row["metric"] == "probability")
    assert model.get_input_embeddings() is embeddings and held_in_nll(probes) == pytest.approx(
        plain
    )
    assert all(
        torch.equal(p, before[n]) and p.requires_grad and p.grad is None
        for n, p in model.named_parameters()
    )


def test_learned_vectors_are_measured_as_they_were_trained() -> None:
    """The loss that was minimised, computed by embeddings, is what an ordinary pass over the new
    token ids gives.
    """
    probes, tokenizer = questions()
    model = tiny_model()
    model.resize_token_embeddings(len(tokenizer))
    with ExitStack() as leaving:
        attacked = soft_prompt(model, probes, probes, 0, leaving, steps=3, vectors=2)
        learned = model.get_input_embeddings().vectors
        goal = PromptObjective(collate([p.answer for p in probes]), answer_openings(probes))
        by_ids = torch.cat([s.token_nll for s in score(model, [p.answer for p in attacked])]).mean()
        with torch.no_grad():
            torch.testing.assert_close(
                prompt_losses(model, goal, learned[None], learned[None])[0], by_ids
            )


def test_random_text_has_the_length_of_the_answers_and_none_of_their_tokens() -> None:
    """Targets of another seed are other text; the end of the sequence stays; vectors make random
    text likelier, as they would any.
    """
    probes, tokenizer = questions()
    model = tiny_model()
    model.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)

    def targets(attacked: list[Probe]) -> list[tuple[int, ...]]:
        return [p.answer.ids[p.answer.start :] for p in attacked if p.split == "held_in"]

    def nll(attacked: list[Probe]) -> float:
        return float(
            torch.cat(
                [
                    s.token_nll
                    for s in score(model, [p.answer for p in attacked if p.split == "held_in"])
                ]
            ).mean()
        )

    found = []
    for seed, steps in ((0, 1), (0, 40), (1, 1)):
        with ExitStack() as leaving:
            attacked = soft_prompt_random(
                model,
                tokenizer,
                probes,
                probes[:4],
                seed,
                leaving,
                steps=steps,
                vectors=3,
                learning_rate=0.3,
            )
            found.append((targets(attacked), nll(attacked)))
    (drawn, before), (again, after), (other, _) = found
    assert drawn == again != other and after < before - 0.3
    for probe, target in zip(probes[:4], drawn, strict=True):
        true = probe.answer.ids[probe.answer.start :]
        assert len(target) == len(true) and target[-1] == true[-1] == tokenizer.eos_token_id
        assert not set(target[:-1]) & told_by(probes)


def test_attacks_without_anything_to_learn_from_are_refused() -> None:
    probes, tokenizer = questions()
    model = tiny_model()
    with ExitStack() as leaving:
        with pytest.raises(UserError, match="held-in"):
            gcg(model, model, tokenizer, probes, [], 0)
        with pytest.raises(UserError, match="held-in"):
            soft_prompt(model, probes, [], 0, leaving)
        with pytest.raises(UserError, match="held-in"):
            soft_prompt_random(model, tokenizer, probes, [], 0, leaving)
        with pytest.raises(UserError, match="two held-in"):
            soft_prompt_shuffled(model, probes, probes[:1], 0, leaving)
        with pytest.raises(UserError, match="gcg.layer"):
            gcg(model, model, tokenizer, probes, probes, 0, layer=3)
    everything = replace(
        probes[0], answer=Encoded("x", tuple(usable_tokens(tokenizer).tolist()), 0)
    )
    with pytest.raises(UserError, match="a token that is in no answer"):
        random_prefix([everything], tokenizer, 0)
