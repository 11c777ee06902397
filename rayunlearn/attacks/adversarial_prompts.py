"""Universal prompts: a few tokens, or a few vectors, before every question, found by gradients on
half of the facts.

The other half is what is measured. Noise is here too, because it changes questions as token ids as
well. Prompts are found and measured as token ids: a text that a tokenizer splits otherwise is
another prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rayunlearn.attacks.base import AttackRow, AttackTraining
from rayunlearn.config import digest
from rayunlearn.data.tokenize import Batch, Encoded, collate
from rayunlearn.errors import require
from rayunlearn.lazy import functional, nn, torch
from rayunlearn.metrics.forward_passes import Probe
from rayunlearn.models.forward import blocks, evaluating, hidden_states
from rayunlearn.models.logits import FinalStates, final_states
from rayunlearn.ranges import Count, Fraction, NonNegative, Positive, Whole
from rayunlearn.schema import HELD_IN
from rayunlearn.train.loop import OptimizerSettings, optimise
from rayunlearn.train.step import StepLoss

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenSearch:
    """Greedy coordinate gradient: `steps` rounds, each of which tries `candidates` single
    replacements drawn from the `top` tokens of every position.
    """

    steps: int
    candidates: int
    top: int


@dataclass(frozen=True)
class PromptObjective:
    """What a prompt of L tokens, put at `insert_at` into every sequence of `batch` (B, T), is to
    bring about: likely labels, and, where the weights are not 0, the states `target_states`
    (B, T, D) at block `layer` and a likely prompt.
    """

    batch: Batch
    insert_at: int
    layer: int = 0
    target_states: Tensor | None = None
    representation: float = 0.0
    fluency: float = 0.0


def noise(
    probes: Sequence[Probe], tokenizer: PreTrainedTokenizerBase, seed: int, *, share: Fraction = 0.2
) -> list[Probe]:
    """Every probe with about `share` of its question's tokens replaced by random ones. Ours.

    What all questions begin and end with (the template) stays. No special token and no token of the
    probe's own answers is drawn.
    """
    questions = [p.answer.ids[: p.answer.start] for p in probes]
    n_before = _common_beginning(questions)
    n_after = _common_beginning([question[::-1] for question in questions])
    usable = usable_tokens(tokenizer)
    noisy = []
    for probe in probes:
        generator = torch.Generator().manual_seed(int(digest([seed, probe.doc_id], 15), 16))
        free = range(n_before, probe.answer.start - n_after)
        noisy.append(_replace_question_tokens(probe, free, usable, generator, share))
    return noisy


def random_prefix(
    probes: Sequence[Probe], tokenizer: PreTrainedTokenizerBase, seed: int, *, length: Count = 10
) -> list[Probe]:
    """Every probe with the same `length` random tokens before its question: what `gcg` is compared
    with. Ours.
    """
    usable = _without_answers(usable_tokens(tokenizer), probes)
    sampled = usable[
        torch.randint(len(usable), (length,), generator=torch.Generator().manual_seed(seed))
    ]
    return with_prefix(probes, tuple(sampled.tolist()), answer_openings(probes))


# more arguments than eight: each keyword names a setting, `gcg.steps`
def gcg(
    model: PreTrainedModel,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[Probe],
    held_in: Sequence[Probe],
    seed: int,
    *,
    length: Count = 10,
    steps: Count = 50,
    candidates: Count = 32,
    top: Count = 32,
    questions: Count = 16,
    representation: NonNegative = 0.0,
    layer: Whole = 1,
    fluency: NonNegative = 0.0,
) -> list[Probe]:
    """Every probe after `length` tokens that greedy coordinate gradient found. Zou et al.
    2307.15043, algorithm 2, as a prefix.

    Each step takes the gradient of the loss in the one-hot prefix, tries `candidates` single
    replacements drawn from the `top` tokens of each position, and keeps the best if it is better.
    The loss is the mean NLL of the answers of up to `questions` held-in probes, plus
    `representation` times the mean squared distance of block `layer`'s output, on question and
    answer, to that of `base` asked without the prefix, plus `fluency` times the mean NLL of the
    prefix itself: the two terms of the enhanced version (2409.18025; there layers 7-9 and weight
    1.5), here on one layer and without its buffer, insertions and deletions. Keeping the best so
    far, and trying all questions at once, is ours. No special token and no token of any answer is
    used. Raises UserError when no probe is held in or no token is left.
    """
    insert_at, usable = answer_openings(probes), _without_answers(usable_tokens(tokenizer), probes)
    require(bool(held_in), "gcg must have held-in questions to search with, got", len(held_in))
    n_blocks = len(blocks(model))
    require(layer < n_blocks, f"gcg.layer must be below the model's {n_blocks} blocks", layer)
    likely_answers = _answer_objective(model, [p.answer for p in held_in[:questions]], insert_at)
    objective = replace(
        likely_answers,
        layer=layer,
        target_states=_block_output(base, likely_answers.batch, layer),
        representation=representation,
        fluency=fluency,
    )
    search, generator = TokenSearch(steps, candidates, top), torch.Generator().manual_seed(seed)
    start = usable[torch.randint(len(usable), (length,), generator=generator)].to(model.device)
    prompt = search_prompt(model, objective, start, usable.to(model.device), search, generator)
    return with_prefix(probes, tuple(prompt.tolist()), insert_at)


# more arguments than eight: each keyword names a setting, `soft_prompt.steps`
def soft_prompt(
    model: PreTrainedModel,
    probes: Sequence[Probe],
    held_in: Sequence[Probe],
    seed: int,
    leaving: ExitStack,
    *,
    vectors: Count = 5,
    learning_rate: Positive = 0.01,
    steps: Count = 60,
    batch_size: Count = 16,
) -> list[Probe]:
    """Every probe after `vectors` learned embeddings. Schwinn et al. (2402.09063, a number that we
    did not confirm).

    One prompt for all questions, measured on held-out ones, is ours.

    They minimise the mean NLL of the held-in answers (AdamW, constant rate) from the embeddings of
    random tokens. They are new token ids, above the vocabulary, of the model until `leaving` takes
    them off; no output weight belongs to them. One to ten vectors can elicit any text, also random
    text that no model ever saw (2502.15836): read this beside `soft_prompt_random` and gold, never
    alone. The questions they were learned from are asked too, on split `held_in`. Raises UserError
    when no probe is held in.
    """
    require(
        bool(held_in), "a soft prompt must have held-in questions to learn from, got", len(held_in)
    )
    answers = [p.answer for p in held_in]
    training = AttackTraining(learning_rate, steps, batch_size)
    return _learn_vectors(model, probes, answers, seed, leaving, vectors, training)


# more arguments than eight: each keyword names a setting, `soft_prompt_random.steps`
def soft_prompt_random(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[Probe],
    held_in: Sequence[Probe],
    seed: int,
    leaving: ExitStack,
    *,
    vectors: Count = 5,
    learning_rate: Positive = 0.01,
    steps: Count = 60,
    batch_size: Count = 16,
) -> list[Probe]:
    """`soft_prompt` learned from the same questions with random text as answers: what vectors reach
    that nothing in the model helps. 2502.15836.

    Every answer has as many tokens as the true one, drawn one by one; no special token and no token
    of any answer is drawn, and special tokens of the answer (its end) stay. That random text, asked
    after the vectors that were learned for it, is split `held_in`: the paper's comparison. The
    paper elicits one string with one prompt; one prompt for all questions is ours. Raises UserError
    when no probe is held in or no token is left.
    """
    require(
        bool(held_in), "a soft prompt must have held-in questions to learn from, got", len(held_in)
    )
    usable = _without_answers(usable_tokens(tokenizer), probes)
    generator = torch.Generator().manual_seed(seed)
    special = set(tokenizer.all_special_ids)
    targets = [_random_answer(p.answer, usable, special, generator) for p in held_in]
    training = AttackTraining(learning_rate, steps, batch_size)
    return _learn_vectors(model, probes, targets, seed, leaving, vectors, training)


# more arguments than eight: each keyword names a setting, `soft_prompt_shuffled.steps`
def soft_prompt_shuffled(
    model: PreTrainedModel,
    probes: Sequence[Probe],
    held_in: Sequence[Probe],
    seed: int,
    leaving: ExitStack,
    *,
    vectors: Count = 5,
    learning_rate: Positive = 0.01,
    steps: Count = 60,
    batch_size: Count = 16,
) -> list[Probe]:
    """`soft_prompt` learned from the same questions with each other's answers: what the form of an
    answer alone recovers. After 2502.15836.

    Every question gets the answer of the next one in a random round. Raises UserError for fewer
    than two held-in probes.
    """
    require(
        len(held_in) > 1, "shuffled answers need two held-in questions or more, got", len(held_in)
    )
    order = torch.randperm(len(held_in), generator=torch.Generator().manual_seed(seed)).tolist()
    pairs = zip(order, [*order[1:], order[0]], strict=True)
    shuffled = [
        _with_answer_of(held_in[question].answer, held_in[answer].answer)
        for question, answer in pairs
    ]
    training = AttackTraining(learning_rate, steps, batch_size)
    return _learn_vectors(model, probes, shuffled, seed, leaving, vectors, training)


def prompt_losses(
    model: PreTrainedModel, objective: PromptObjective, vectors: Tensor, shares: Tensor
) -> Tensor:
    """Loss (C,) of C prompts given as embeddings `vectors` (C, L, D); differentiable.

    `shares` (C, L, V), one-hot for tokens, are what the prompt's own NLL is taken of; read only
    where `objective.fluency` is not 0.
    """
    final, layer_states = _states_with_prompts(model, objective, vectors)
    n_prompts, length = vectors.shape[:2]
    total = _answer_losses(objective, final, n_prompts, length)
    if objective.representation > 0 and objective.target_states is not None:
        first = objective.insert_at
        distance = _distance(
            layer_states[:, :, first + length :].float(),
            objective.target_states[:, first:],
            objective.batch.present[:, first:],
        )
        total = total + objective.representation * distance
    if objective.fluency > 0:
        total = total + objective.fluency * _prompt_nll(objective, final, shares)
    return total


def _states_with_prompts(
    model: PreTrainedModel, objective: PromptObjective, vectors: Tensor
) -> tuple[FinalStates, Tensor]:
    """Final states of every sequence with each of the C prompts in it, C B rows of L + T, and the
    output (C, B, L + T, D) of block `objective.layer`.
    """
    batch, insert_at, n_prompts = objective.batch, objective.insert_at, len(vectors)
    rows = model.get_input_embeddings()(batch.input_ids)
    rows = rows.expand(n_prompts, *batch.input_ids.shape, -1)
    prompts = vectors[:, None].expand(-1, len(batch.input_ids), -1, -1).to(rows.dtype)
    embedded = torch.cat([rows[:, :, :insert_at], prompts, rows[:, :, insert_at:]], 2)
    outputs: list[Tensor] = []
    handle = blocks(model)[objective.layer].register_forward_hook(
        lambda _m, _i, out: outputs.append(out[0] if isinstance(out, tuple) else out)
    )
    try:
        final = final_states(model, {"inputs_embeds": embedded.flatten(0, 1)})
    finally:
        handle.remove()
    return final, outputs[-1].unflatten(0, (n_prompts, -1))


def _row_starts(objective: PromptObjective, final: FinalStates, n_prompts: int) -> Tensor:
    """(C, 1): where each prompt's copy of the batch starts, in positions laid out row by row."""
    size = len(objective.batch.input_ids) * final.hidden.shape[1]
    return size * torch.arange(n_prompts, device=final.hidden.device)[:, None]


def _answer_losses(
    objective: PromptObjective, final: FinalStates, n_prompts: int, length: int
) -> Tensor:
    """Mean NLL (C,) of the labels after each of the C prompts of `length` tokens."""
    batch, width = objective.batch, final.hidden.shape[1]
    row, index = batch.labelled.nonzero(as_tuple=True)
    # the position that predicts the label, once the prompt stands in its place
    before = row * width + index - 1 + length * (index >= objective.insert_at).long()
    logits = final.logits_at((_row_starts(objective, final, n_prompts) + before).flatten())
    labels = batch.input_ids[row, index].repeat(n_prompts)
    nll = functional.cross_entropy(logits, labels, reduction="none")
    return nll.view(n_prompts, -1).mean(1)


def _prompt_nll(objective: PromptObjective, final: FinalStates, shares: Tensor) -> Tensor:
    """Mean NLL (C,) of the prompts themselves, `shares` (C, L, V)."""
    n_prompts, length = shares.shape[:2]
    # nothing predicts the first token of all
    first = max(objective.insert_at, 1)
    end = objective.insert_at + length - 1
    positions = torch.arange(first - 1, end, device=final.hidden.device)
    places = (_row_starts(objective, final, n_prompts) + positions).flatten()
    log_probs = final.logits_at(places).view(n_prompts, len(positions), -1).log_softmax(-1)
    return -(shares[:, first - objective.insert_at :] * log_probs).sum(-1).mean(1)


def losses_of_prompts(
    model: PreTrainedModel, objective: PromptObjective, prompts: Tensor, *, rows: int = 256
) -> Tensor:
    """Loss (C,) of C prompts given as token ids (C, L), `rows` sequences at a time."""
    n_tokens = model.get_input_embeddings().weight.shape[0]
    with evaluating(model):
        parts = [
            prompt_losses(
                model,
                objective,
                model.get_input_embeddings()(chunk),
                functional.one_hot(chunk, n_tokens) if objective.fluency > 0 else chunk,
            )
            for chunk in prompts.split(max(1, rows // len(objective.batch.input_ids)))
        ]
    return torch.cat(parts)


def token_gradient(model: PreTrainedModel, objective: PromptObjective, prompt: Tensor) -> Tensor:
    """Gradient (L, V) of the loss in the one-hot rows of a prompt (L,): to first order, what each
    replacement would change it by.
    """
    embeddings = model.get_input_embeddings()
    table = embeddings(torch.arange(embeddings.weight.shape[0], device=prompt.device)).detach()
    shares = functional.one_hot(prompt, len(table)).to(table.dtype).requires_grad_(True)
    loss = prompt_losses(model, objective, (shares @ table)[None], shares[None]).sum()
    return torch.autograd.grad(loss, shares)[0]


def candidate_prompts(
    prompt: Tensor, slope: Tensor, usable: Tensor, search: TokenSearch, generator: torch.Generator
) -> Tensor:
    """Prompts (C, L) that differ from `prompt` in one token each, drawn from the `search.top`
    usable tokens of least slope per position.

    All of them, once each, where there are no more than `search.candidates`.
    """
    best = usable[(-slope[:, usable]).topk(min(search.top, len(usable)), 1).indices]
    n_all = best.numel()
    chosen = (
        torch.arange(n_all)
        if n_all <= search.candidates
        else torch.randperm(n_all, generator=generator)[: search.candidates]
    )
    position, rank = (
        (chosen // best.shape[1]).to(prompt.device),
        (chosen % best.shape[1]).to(prompt.device),
    )
    edited = prompt.repeat(len(chosen), 1)
    edited[torch.arange(len(chosen), device=prompt.device), position] = best[position, rank]
    return edited


def search_prompt(
    model: PreTrainedModel,
    objective: PromptObjective,
    start: Tensor,
    usable: Tensor,
    search: TokenSearch,
    generator: torch.Generator,
) -> Tensor:
    """The prompt (L,) that rounds of single replacements lead to; its loss is never above that of
    `start`.
    """
    prompt, best = start, float(losses_of_prompts(model, objective, start[None]))
    for _ in range(search.steps):
        slope = token_gradient(model, objective, prompt)
        proposals = candidate_prompts(prompt, slope, usable, search, generator)
        values = losses_of_prompts(model, objective, proposals)
        index = int(values.argmin())
        if float(values[index]) < best:
            prompt, best = proposals[index], float(values[index])
    return prompt


def answer_openings(probes: Sequence[Probe]) -> int:
    """How many ids all questions begin with (what stands before a prompt): begin-of-sequence,
    template or chat header; 1 for a single question.
    """
    return _common_beginning([p.answer.ids[: p.answer.start] for p in probes])


def with_prefix(probes: Sequence[Probe], ids: tuple[int, ...], insert_at: int) -> list[Probe]:
    """Every probe with `ids` at `insert_at` of each of its sequences. They have no `document`:
    letter questions are made from text and are left out, as are plain completions and what stands
    after solved questions.
    """

    def put(sequence: Encoded) -> Encoded:
        index = min(insert_at, sequence.start)
        return replace(
            sequence,
            ids=(*sequence.ids[:index], *ids, *sequence.ids[index:]),
            start=sequence.start + len(ids),
        )

    return [
        replace(
            p,
            answer=put(p.answer),
            options=tuple(map(put, p.options)),
            paraphrased=None if p.paraphrased is None else put(p.paraphrased),
            completion=None,
            few_shot=(),
            document=None,
        )
        for p in probes
    ]


def usable_tokens(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Ids (n,) of the vocabulary without special tokens."""
    special = set(tokenizer.all_special_ids)
    return torch.tensor([i for i in range(len(tokenizer)) if i not in special])


def widened(old: nn.Embedding, vectors: Tensor) -> nn.Module:
    """Input embeddings with some more rows, `vectors` (n, D), for the ids above the vocabulary; the
    old module answers for its own.
    """
    n_old = len(old.weight)

    # defined here, because a class at the top would load torch with this file
    class Widened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.old = old
            self.vectors = vectors

        def forward(self, ids: Tensor) -> Tensor:
            """Embeddings (..., D) of ids (...)."""
            embedded: Tensor = self.old(ids.clamp(max=n_old - 1))
            more = self.vectors[(ids - n_old).clamp(min=0)].to(embedded.dtype)
            return torch.where((ids < n_old)[..., None], embedded, more)

    return Widened()


def _learn_vectors(
    model: PreTrainedModel,
    probes: Sequence[Probe],
    sequences: Sequence[Encoded],
    seed: int,
    leaving: ExitStack,
    n_vectors: int,
    training: AttackTraining,
) -> list[Probe]:
    """Learn the vectors on the sequences, hang them on the model, and put their ids before every
    question; the sequences are split `held_in`.
    """
    insert_at, generator = answer_openings(probes), torch.Generator().manual_seed(seed)
    embeddings = model.get_input_embeddings()
    n_old = len(embeddings.weight)
    start = torch.randint(n_old, (n_vectors,), generator=generator).to(model.device)
    # (n, D): the one parameter of the attack
    prompt = nn.ParameterList([embeddings(start).detach().float().clone()])

    def loss_of_step(_step: int) -> StepLoss:
        order = torch.randperm(len(sequences), generator=generator)
        chosen = [sequences[index] for index in order[: training.batch_size].tolist()]
        objective = _answer_objective(model, chosen, insert_at)
        vectors = prompt[0][None]
        loss = prompt_losses(model, objective, vectors, vectors)[0]
        return StepLoss(loss, n_documents=len(chosen))

    rate = training.learning_rate
    optimizer = OptimizerSettings(learning_rate=rate, schedule="constant", warmup_fraction=0.0)
    with _frozen(model):
        optimise(prompt, loss_of_step, steps=training.steps, optimizer=optimizer)
    model.set_input_embeddings(widened(embeddings, prompt[0].detach()))
    leaving.callback(model.set_input_embeddings, embeddings)
    learned_from = [Probe(s.doc_id, HELD_IN, s, ()) for s in sequences]
    new_ids = tuple(range(n_old, n_old + n_vectors))
    return with_prefix([*probes, *learned_from], new_ids, insert_at)


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """No parameter of the model requires a gradient inside."""
    with ExitStack() as restored:
        for parameter in model.parameters():
            restored.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        yield


def _answer_objective(
    model: PreTrainedModel, sequences: Sequence[Encoded], insert_at: int
) -> PromptObjective:
    return PromptObjective(collate(sequences).to(model.device), insert_at)


def _block_output(model: PreTrainedModel, batch: Batch, layer: int) -> Tensor:
    with evaluating(model):
        states = hidden_states(model, batch.to(model.device), layer)
    return states.float().to(batch.input_ids.device)


def _distance(states: Tensor, target_states: Tensor, present: Tensor) -> Tensor:
    """Mean squared difference (C,) of states (C, B, T, D) to `target_states` (B, T, D) over present
    tokens (B, T) and width.
    """
    return ((states - target_states).square().mean(-1) * present).sum((1, 2)) / present.sum()


def _with_answer_of(question: Encoded, answer: Encoded) -> Encoded:
    return Encoded(
        question.doc_id,
        (*question.ids[: question.start], *answer.ids[answer.start :]),
        question.start,
        answer.n_end,
        answer.key,
    )


def _random_answer(
    sequence: Encoded, usable: Tensor, special: Collection[int], generator: torch.Generator
) -> Encoded:
    """The sequence with random tokens for those of its answer, special ones left as they are."""
    sampled = usable[
        torch.randint(len(usable), (len(sequence.ids) - sequence.start,), generator=generator)
    ].tolist()
    answer = [
        old if old in special else new
        for old, new in zip(sequence.ids[sequence.start :], sampled, strict=True)
    ]
    return replace(sequence, ids=(*sequence.ids[: sequence.start], *answer))


def _common_beginning(prompts: Sequence[tuple[int, ...]]) -> int:
    """Length of the longest common beginning of different prompts; at most 1 for one prompt."""
    first, last = min(prompts), max(prompts)
    if first == last:
        return min(1, len(first))
    return next(
        (index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )


def _without_answers(usable: Tensor, probes: Sequence[Probe]) -> Tensor:
    """The ids that no probe's answer holds. Raises UserError when none is left."""
    answer_ids = torch.tensor(sorted({i for p in probes for i in p.answer.ids[p.answer.start :]}))
    unrelated = usable[~torch.isin(usable, answer_ids)]
    require(
        len(unrelated) > 0,
        "the vocabulary must have a token that is in no answer; answer tokens",
        len(answer_ids),
    )
    return unrelated


def _replace_question_tokens(
    probe: Probe, free: range, usable: Tensor, generator: torch.Generator, share: float
) -> Probe:
    """The probe with about `share` of the question's tokens at `free` replaced, at least one."""
    question = list(probe.answer.ids[: probe.answer.start])
    if free:
        allowed = _without_answers(usable, [probe])
        n_replaced = max(1, round(share * len(free)))
        for index in torch.randperm(len(free), generator=generator)[:n_replaced].tolist():
            choice = int(torch.randint(len(allowed), (), generator=generator))
            question[free[index]] = int(allowed[choice])
    return replace(
        probe,
        answer=_with_question(probe.answer, question),
        options=tuple(_with_question(option, question) for option in probe.options),
        paraphrased=None,
        completion=None,
        few_shot=(),
        document=None,
    )


def _with_question(sequence: Encoded, question: Sequence[int]) -> Encoded:
    """The sequence with another question of the same length. A longer option can have cost the
    question its beginning: the end of the question is what they share.
    """
    end = tuple(question[-min(sequence.start, len(question)) :])
    opening = sequence.ids[: sequence.start - len(end)]
    return replace(sequence, ids=(*opening, *end, *sequence.ids[sequence.start :]))


ADVERSARIAL_PROMPTS = {
    row.function.__name__: row
    for row in (
        AttackRow(
            function=noise,
            kind="tokens",
            title="a share of the question's tokens replaced by random ones",
            source="ours",
        ),
        AttackRow(
            function=random_prefix,
            kind="tokens",
            title="random tokens before every question",
            source="ours",
            holds_out=True,
        ),
        AttackRow(
            function=gcg,
            kind="tokens",
            title="a prefix found by greedy coordinate gradient",
            source="Zou et al. 2307.15043; terms of 2409.18025",
            control="random_prefix; base and gold, each with a search of its own",
            companion="random_prefix",
            holds_out=True,
        ),
        AttackRow(
            function=soft_prompt,
            kind="tokens",
            title="learned vectors before every question",
            source="Schwinn et al.; read with 2502.15836",
            control="soft_prompt_random; base and gold, each with vectors of its own",
            companion="soft_prompt_random",
            trains=True,
            holds_out=True,
        ),
        AttackRow(
            function=soft_prompt_random,
            kind="tokens",
            title="the same, learned towards random text",
            source="2502.15836",
            trains=True,
            holds_out=True,
        ),
        AttackRow(
            function=soft_prompt_shuffled,
            kind="tokens",
            title="the same, learned from the questions with each other's answers",
            source="after 2502.15836",
            trains=True,
            holds_out=True,
        ),
    )
}
