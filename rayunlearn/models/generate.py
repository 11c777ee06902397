"""Text from a model: many prompts at once with a key-value cache, and the same tokens as one prompt
at a time.

Prompts of similar length share a batch and are padded on the left; padding is masked and takes no
position. Rows that have ended leave the batch. Sampling draws from a generator of each sequence's
own: a batch's other rows cannot change it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from rayunlearn.config import digest
from rayunlearn.data.tokenize import Encoded, by_length, end_tokens
from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.models.folder import context_length
from rayunlearn.models.forward import evaluating

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Ids = tuple[int, ...]


def generate_texts(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    *,
    ends: Sequence[Ids],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[str] = (),
    tokens_per_batch: int = 8192,
) -> list[Ids]:
    """The continuation of each prompt, in the order given, up to the first of `ends` and without
    it: at most `max_new_tokens`, fewer where the context ends.

    temperature 0 is greedy; above it, `seeds` (one text per prompt) make every sample, and `top_p`
    keeps the likeliest tokens that together reach that probability. Raises UserError for an empty
    prompt, for one that leaves no position to answer, and for missing seeds.
    """
    _check_prompts(prompts, seeds, temperature)
    require_room(model, prompts)
    # A prompt stands for the whole sequence that it will grow into, so that a batch's memory has a
    # bound.
    grown = [
        Encoded(str(index), (*prompt, *(0,) * max_new_tokens), 1)
        for index, prompt in enumerate(prompts)
    ]
    texts: dict[int, Ids] = {}
    with evaluating(model):
        for rows in by_length(grown, tokens_per_batch):
            generators = generators_of([seeds[r] for r in rows]) if temperature > 0 else []
            choose = _Choice(generators, temperature, top_p)
            written = _continue(
                model, [prompts[r] for r in rows], choose, ends=ends, max_new_tokens=max_new_tokens
            )
            texts |= dict(zip(rows, written, strict=True))
    return [texts[index] for index in range(len(prompts))]


def _check_prompts(prompts: Sequence[Ids], seeds: Sequence[str], temperature: float) -> None:
    require(
        all(len(prompt) > 0 for prompt in prompts),
        "a prompt must have at least one token, empty ones",
        sum(not p for p in prompts),
    )
    require(
        temperature == 0 or len(seeds) == len(prompts),
        f"sampling needs one seed for each of {len(prompts)} prompts",
        len(seeds),
    )


def require_room(model: PreTrainedModel, prompts: Sequence[Ids]) -> None:
    """Raise UserError where a prompt leaves no position for an answer: an empty text would count as
    forgotten.
    """
    context, longest = context_length(model.config), max(map(len, prompts), default=0)
    rule = f"a prompt must leave room to answer, at most {(context or 0) - 1} tokens of {context}"
    require(context is None or longest < context, rule, longest)


def ends_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    sequences: Sequence[Encoded] = (),
) -> tuple[Ids, ...]:
    """The ids at any of which a text of the model ends, each as a tuple: the tokenizer's end token,
    all of `generation_config.eos_token_id`, and what closes the `sequences`: the end of turn that
    the model was trained to write in their template.
    """
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    single = {i for i in (listed if isinstance(listed, list) else [listed]) if i is not None}
    special: frozenset[int] = frozenset()
    if tokenizer is not None:
        special = end_tokens(tokenizer)
        single |= {tokenizer.eos_token_id} - {None}
    sequence_ends = {s.ids[len(s.ids) - s.n_end :] for s in sequences if s.n_end}
    # a special token ends the turn, whatever white space the template writes before it
    ends = {(i,) for i in single} | {e[-1:] if e[-1] in special else e for e in sequence_ends}
    return tuple(sorted(ends))


def n_closing(written: Sequence[int], ends: Sequence[Ids]) -> int:
    """How many of the last ids are one of `ends`, 0 where none is."""
    return next((len(e) for e in ends if tuple(written[-len(e) :]) == e), 0)


class _Choice:
    """The next token of each row: the likeliest, or a sample from the row's own generator."""

    def __init__(self, generators: list[torch.Generator], temperature: float, top_p: float) -> None:
        self._generators, self._temperature, self._top_p = generators, temperature, top_p

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """logits (B, V) of the rows (positions in the batch as it began) -> token ids (B,)."""
        if self._temperature == 0:
            return logits.argmax(-1)
        scores = nucleus(logits.float().cpu() / self._temperature, self._top_p)
        return sample_tokens(scores, [self._generators[r] for r in rows]).to(logits.device)


def generators_of(seeds: Sequence[str]) -> list[torch.Generator]:
    """A generator for each seed, so that what one sequence draws depends on no other."""
    return [torch.Generator().manual_seed(int(digest(seed, 15), 16)) for seed in seeds]


def sample_tokens(logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One token (B,) of each row's softmax, logits (B, V) float32 on the CPU, drawn from the row's
    generator: the argmax of logits + Gumbel noise, -log(-log(uniform)), is such a sample.
    """
    uniform = torch.stack([torch.rand(logits.shape[1], generator=g) for g in generators])
    return (logits - (-uniform.clamp(min=1e-20).log()).log()).argmax(-1)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """logits (B, V) with -inf outside the smallest set of likeliest tokens whose probability
    reaches `top_p`.
    """
    if top_p >= 1:
        return logits
    ordered, places = logits.sort(-1, descending=True)
    share = ordered.softmax(-1)
    # the mass before a token has reached top_p already
    outside = share.cumsum(-1) - share >= top_p
    return torch.full_like(logits, -torch.inf).scatter(
        -1, places, ordered.masked_fill(outside, -torch.inf)
    )


def _continue(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    choose: _Choice,
    *,
    ends: Sequence[Ids],
    max_new_tokens: int,
) -> list[Ids]:
    """Continuations of the prompts of one batch. Rows leave the cache when half of those in it have
    ended.
    """
    ids, mask = _padded(prompts, model.device)
    limits = _limits(model, prompts, max_new_tokens)
    written: list[list[int]] = [[] for _ in prompts]
    # rows in the cache, and those of them that have not ended
    active_rows, running = (
        list(range(len(prompts))),
        {r for r, limit in enumerate(limits) if limit > 0},
    )
    positions, cache = (mask.cumsum(1) - 1).clamp(min=0), None
    while running:
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        chosen, cache = choose(output.logits[:, -1], active_rows), output.past_key_values
        running -= _append(chosen.tolist(), active_rows, running, written, limits, ends)
        remaining = [index for index, row in enumerate(active_rows) if row in running]
        if remaining and 2 * len(remaining) <= len(active_rows):
            rows = torch.tensor(remaining, device=model.device)
            cache.batch_select_indices(rows)
            active_rows = [active_rows[index] for index in remaining]
            chosen, mask, positions = chosen[rows], mask[rows], positions[rows]
        ids = chosen[:, None]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        positions = positions[:, -1:] + 1
    return [tuple(row) for row in written]


def _limits(model: PreTrainedModel, prompts: Sequence[Ids], max_new_tokens: int) -> list[int]:
    """Most new tokens of each prompt: fewer where the model's positions end."""
    context = context_length(model.config)
    room = [context - len(p) if context else max_new_tokens for p in prompts]
    return [min(max_new_tokens, n) for n in room]


def _padded(prompts: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T) of prompts padded on the left."""
    width = max(map(len, prompts))
    ids = [(0,) * (width - len(p)) + p for p in prompts]
    mask = [(0,) * (width - len(p)) + (1,) * len(p) for p in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _append(
    tokens: Sequence[int],
    rows: Sequence[int],
    running: Collection[int],
    written: list[list[int]],
    limits: Sequence[int],
    ends: Sequence[Ids],
) -> set[int]:
    """Write each row's token, and cut off what closes it; the rows that have ended by that."""
    ended = set()
    for row, token in zip(rows, tokens, strict=True):
        if row in running:
            written[row].append(token)
            n_end = n_closing(written[row], ends)
            if n_end or len(written[row]) == limits[row]:
                ended.add(row)
            del written[row][len(written[row]) - n_end :]
    return ended


def sample(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    truths: Sequence[Ids],
    *,
    n_ends: Sequence[int],
    seeds: Sequence[str],
    ends: Sequence[Ids],
    temperature: float,
) -> list[Ids]:
    """One continuation of each prompt at the temperature, as long as its truth at most; never the
    truth.

    The last `n_ends[i]` ids of a truth close it: the sample ends at the first of `ends`, or where
    the truth's words end, and is closed by the same ids. At one position, drawn with the seed, the
    true token is forbidden if the sample has followed the truth so far. Prompts of equal length run
    together, so that no padding is needed.
    """
    groups: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(index)
    samples: dict[int, Ids] = {}
    with evaluating(model):
        for rows in groups.values():
            continued = _continue_sample(
                model,
                [prompts[r] for r in rows],
                [truths[r] for r in rows],
                [n_ends[r] for r in rows],
                [seeds[r] for r in rows],
                ends,
                temperature,
            )
            samples |= dict(zip(rows, continued, strict=True))
    return [samples[index] for index in range(len(prompts))]


def _continue_sample(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    truths: Sequence[Ids],
    n_ends: Sequence[int],
    seeds: Sequence[str],
    ends: Sequence[Ids],
    temperature: float,
) -> list[Ids]:
    """The continuations of prompts of one length."""
    generators = generators_of(seeds)
    forbidden = [
        int(torch.randint(max(1, len(truth) - n_end), (), generator=g))
        for truth, n_end, g in zip(truths, n_ends, generators, strict=True)
    ]
    written: list[list[int]] = [[] for _ in prompts]
    step: Mapping[str, Tensor] = {"input_ids": torch.tensor(prompts, device=model.device)}
    cache = None
    for index in range(max(map(len, truths))):
        output = model(**step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        scores = output.logits[:, -1].float().cpu() / temperature
        for row, truth in enumerate(truths):
            if index == forbidden[row] and tuple(written[row]) == truth[:index]:
                scores[row, truth[index]] = -torch.inf
        chosen = sample_tokens(scores, generators)
        for text, token in zip(written, chosen.tolist(), strict=True):
            text.append(token)
        cache, step = output.past_key_values, {"input_ids": chosen[:, None].to(model.device)}
    return [
        _closed(row, truth, n_end, ends)
        for row, truth, n_end in zip(written, truths, n_ends, strict=True)
    ]


def _closed(written: Sequence[int], truth: Ids, n_end: int, ends: Sequence[Ids]) -> Ids:
    """The sample up to its first end, or as many ids as the truth's words, closed as the truth."""
    n_words = len(truth) - n_end
    for n_tokens in range(1, n_words + 1):
        if n := n_closing(written[:n_tokens], ends):
            return (*written[: n_tokens - n], *truth[n_words:])
    return (*written[:n_words], *truth[n_words:])
