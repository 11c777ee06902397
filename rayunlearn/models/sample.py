"""Sampling continuations, with randomness of each sequence's own: a batch's other rows cannot
change a sample.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayunlearn.config import digest
from rayunlearn.models.forward import evaluating

Ids = tuple[int, ...]


def sample(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    truths: Sequence[Ids],
    *,
    seeds: Sequence[str],
    end: int | None,
    temperature: float,
) -> list[Ids]:
    """One continuation of each prompt at the temperature, as long as its truth at most, closed by
    `end`; never the truth.

    At one position, drawn with the seed, the true token is forbidden if the sample has followed the
    truth so far. Prompts of equal length run together, so that no padding is needed.
    """
    groups: dict[int, list[int]] = {}
    for at, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(at)
    samples: dict[int, Ids] = {}
    with evaluating(model):
        for rows in groups.values():
            continued = _continue(
                model,
                [prompts[r] for r in rows],
                [truths[r] for r in rows],
                [seeds[r] for r in rows],
                end,
                temperature,
            )
            samples |= dict(zip(rows, continued, strict=True))
    return [samples[at] for at in range(len(prompts))]


def _continue(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    truths: Sequence[Ids],
    seeds: Sequence[str],
    end: int | None,
    temperature: float,
) -> list[Ids]:
    """The continuations of prompts of one length, by Gumbel noise: the argmax of logits /
    temperature + noise is a sample.
    """
    generators = [torch.Generator().manual_seed(int(digest(seed, 15), 16)) for seed in seeds]
    forbidden = [
        int(torch.randint(max(1, _n_words(truth, end)), (), generator=g))
        for truth, g in zip(truths, generators, strict=True)
    ]
    written: list[list[int]] = [[] for _ in prompts]
    step: Mapping[str, Tensor] = {"input_ids": torch.tensor(prompts, device=model.device)}
    cache = None
    for at in range(max(map(len, truths))):
        output = model(**step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        scores = output.logits[:, -1].float().cpu() / temperature
        for row, truth in enumerate(truths):
            if at == forbidden[row] and tuple(written[row]) == truth[:at]:
                scores[row, truth[at]] = -torch.inf
        uniform = torch.stack([torch.rand(scores.shape[1], generator=g) for g in generators])
        chosen = (scores - (-uniform.clamp(min=1e-20).log()).log()).argmax(1)
        for text, token in zip(written, chosen.tolist(), strict=True):
            text.append(token)
        cache, step = output.past_key_values, {"input_ids": chosen[:, None].to(model.device)}
    return [_cut(row, len(truth), end) for row, truth in zip(written, truths, strict=True)]


def _n_words(truth: Ids, end: int | None) -> int:
    return len(truth) - (1 if end is not None and truth[-1:] == (end,) else 0)


def _cut(written: Sequence[int], length: int, end: int | None) -> Ids:
    """The sample up to its first `end`; one that is still going after `length` tokens is closed
    there.
    """
    if end is None:
        return tuple(written[:length])
    stop = written.index(end) if end in written[: length - 1] else length - 1
    return (*written[:stop], end)
