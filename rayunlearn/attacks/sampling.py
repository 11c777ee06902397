"""Attacks on decoding: many sampled attempts where the greedy answer is clean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rayunlearn.attacks.base import AttackRow
from rayunlearn.lazy import torch
from rayunlearn.metrics.forward_passes import (
    EvaluationTask,
    GenerationSettings,
    Probe,
    gather_inputs,
)
from rayunlearn.metrics.likelihood import sequence_probability
from rayunlearn.metrics.text import leak_at_k
from rayunlearn.ranges import Count, Fraction, Positive
from rayunlearn.schema import Rows

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def sampled_attempts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[Probe],
    seed: int,
    *,
    attempts: Count = 16,
    temperature: Positive = 1.0,
    top_p: Fraction = 1.0,
    max_new_tokens: Count = 32,
) -> Rows:
    """`leak_at_1`, `leak_at_2`, `leak_at_4`, ... up to `attempts`: ROUGE-L recall of the best of k
    sampled answers. Leak@k, 2511.04934.

    All k are read off the same samples, without bias (`metrics.text.leak_at_k`). Beside them
    `exact_at_k`: the chance that one of k attempts at temperature 1 is the answer to the letter,
    from its probability, without a sample.
    """
    writing = GenerationSettings(
        max_new_tokens=max_new_tokens,
        samples=attempts,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    task = EvaluationTask(model=model, probes=probes, tokenizer=tokenizer, writing=writing)
    rows: Rows = []
    for probe, inputs in zip(
        probes, gather_inputs(task, frozenset({"scores", "words", "samples"})), strict=True
    ):
        samples, truth, token_nll = inputs["samples"], inputs["truth"], inputs["token_nll"]
        assert (
            isinstance(samples, tuple)
            and isinstance(truth, str)
            and isinstance(token_nll, torch.Tensor)
        )
        for k in powers_of_two(attempts):
            rows.append(_row(probe, f"leak_at_{k}", leak_at_k(samples, truth, k=k)))
            rows.append(_row(probe, f"exact_at_{k}", probability_in_attempts(token_nll, k)))
    return rows


def probability_in_attempts(token_nll: Tensor, attempts: int) -> float:
    """1 - (1 - p)^k: the chance that one of k independent samples is the whole answer, whose tokens
    have NLL (n,) in nats.
    """
    p = min(1.0, sequence_probability(token_nll))
    return 1.0 if p == 1 else -math.expm1(attempts * math.log1p(-p))


def powers_of_two(maximum: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    return sorted({*(2**n for n in range(maximum.bit_length())), maximum})


def _row(probe: Probe, metric: str, value: float | None) -> dict[str, object]:
    return {"doc_id": probe.doc_id, "split": probe.split, "metric": metric, "value": value}


SAMPLING = {
    row.function.__name__: row
    for row in (
        AttackRow(
            function=sampled_attempts,
            kind="decoding",
            title="k sampled answers instead of the likeliest",
            source="Leak@k 2511.04934",
        ),
    )
}
