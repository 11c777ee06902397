"""Quantisation that looks at data: GPTQ and AWQ. Weights are quantised and put back as floats, so
no kernel and no GPU is needed.

Both minimise |W x - Q x|^2 over inputs x that the model has on calibration texts, here retain
documents: who quantises a model takes ordinary text. What they need of x is its Gram matrix. Blocks
go one after another, each with the inputs that the quantised blocks before it give. One scale per
output channel, as in `round_to_nearest`; the papers take groups of 128.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

from rayunlearn.attacks.base import TOKENS_PER_BATCH, AttackRow
from rayunlearn.data.tokenize import Batch, Encoded, collate
from rayunlearn.errors import UserError, require
from rayunlearn.lazy import torch
from rayunlearn.models.forward import blocks, can_pack, evaluating, hidden_states
from rayunlearn.models.matrices import (
    WeightMatrix,
    block_matrices,
    collect_inputs,
    experts_one_by_one,
    model_matrices,
)
from rayunlearn.models.nf4 import nf4_rounded
from rayunlearn.ranges import Count, Positive, Rule

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


# 0, 0.05, ... 1: the grid of the paper's code
EXPONENTS = 21


@dataclass
class LayerInputs:
    """What a matrix of N weights a row was given: sum of x x^T (N, N), sum of |x| (N,), and
    how many x.
    """

    gram: Tensor
    size: Tensor
    count: int = 0


Bits = Annotated[int, Rule("must be from 2 to 8", lambda x: 2 <= x <= 8)]


def gptq(
    model: PreTrainedModel,
    retain_sequences: Sequence[Encoded],
    *,
    bits: Bits = 4,
    texts: Count = 64,
    damping: Positive = 0.01,
) -> None:
    """Quantise the weight matrices of the blocks column by column, later columns making up for it.
    Frantar et al. 2210.17323, algorithm 1.

    On the first `texts` retain documents in the order that attack.seed draws. `damping`, as there:
    this share of the mean diagonal is added to the Gram matrix. Columns go in their order; the
    paper's lazy batches change speed alone.
    """
    for matrix, inputs in _by_block(model, retain_sequences[:texts]):
        matrix.weight.copy_(gptq_weights(matrix.weight, inputs.gram, bits, damping))


def awq(
    model: PreTrainedModel,
    retain_sequences: Sequence[Encoded],
    *,
    bits: Bits = 4,
    texts: Count = 64,
) -> None:
    """Quantise the weight matrices of the blocks with input channels scaled by how large they are.
    Lin et al. 2306.00978, eq. 4 and 5.

    W -> Q(W diag(s)) diag(s)^-1 with s = (mean |x|)^a, and of 21 exponents a the one with the
    smallest error. The paper searches one a for modules that share an input and clips weights; here
    every module has its own and none is clipped.
    """
    for matrix, inputs in _by_block(model, retain_sequences[:texts]):
        matrix.weight.copy_(awq_weights(matrix.weight, inputs, bits))


def gptq_weights(weight: Tensor, gram: Tensor, bits: int, damping: float) -> Tensor:
    """(out, in) and the inputs' Gram matrix (in, in) -> the quantised weights, on the levels of
    `round_weights`.
    """
    width = len(gram)
    damped = gram.double() + damping * gram.diagonal().double().mean().clamp_min(1e-12) * torch.eye(
        width, dtype=torch.float64, device=gram.device
    )
    # Row i of the upper Cholesky factor of the inverse, divided by its diagonal, says how the
    # columns after i make up for column i.
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    residual, quantized = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
    n_levels = 2 ** (bits - 1) - 1
    step = weight.double().abs().amax(dim=1).clamp_min(torch.finfo(weight.dtype).tiny) / n_levels
    for column in range(width):
        quantized[:, column] = (residual[:, column] / step).round().clamp(
            -n_levels, n_levels
        ) * step
        missed = (residual[:, column] - quantized[:, column]) / upper[column, column]
        residual = residual - missed[:, None] * upper[column]
    return quantized.to(weight.dtype)


def awq_weights(weight: Tensor, inputs: LayerInputs, bits: int) -> Tensor:
    """(out, in) -> the quantised weights of the exponent whose error on the inputs is smallest."""
    mean = (inputs.size / max(1, inputs.count)).clamp_min(1e-8)
    errors = []
    for exponent in torch.linspace(0, 1, EXPONENTS).tolist():
        scale = mean**exponent
        scale = scale / (scale.max() * scale.min()).sqrt()
        errors.append(round_weights(weight * scale, bits) / scale)
    return min(errors, key=lambda candidate: float(output_error(weight - candidate, inputs.gram)))


def output_error(difference: Tensor, gram: Tensor) -> Tensor:
    """Sum of |D x|^2 over the inputs: trace(D G D^T) for a difference D (out, in) of weights."""
    return ((difference @ gram.to(difference)) * difference).sum()


def _by_block(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
) -> Iterator[tuple[WeightMatrix, LayerInputs]]:
    """Every weight matrix of the blocks with its inputs, a block at a time: what is done to one is
    seen by the next.
    """
    require(
        len(sequences) > 0, "quantisation by data must have at least one text, got", len(sequences)
    )
    for layer, block in enumerate(blocks(model)):
        matrices = block_matrices(block)
        yield from zip(matrices, _inputs_of(model, layer, matrices, sequences), strict=True)


def _inputs_of(
    model: PreTrainedModel,
    layer: int,
    matrices: Sequence[WeightMatrix],
    sequences: Sequence[Encoded],
) -> list[LayerInputs]:
    layer_inputs = [
        LayerInputs(
            torch.zeros(m.weight.shape[1], m.weight.shape[1], device=model.device),
            torch.zeros(m.weight.shape[1], device=model.device),
        )
        for m in matrices
    ]

    def add(index: int, x: Tensor) -> None:
        inputs, rows = layer_inputs[index], x.detach().float()
        inputs.gram += rows.T @ rows
        inputs.size += rows.abs().sum(0)
        inputs.count += len(rows)

    # the first use tries the model on texts of its own, which are no calibration
    can_pack(model)
    with evaluating(model), experts_one_by_one(model):
        for batch in _unpadded(sequences):
            inputs = batch.to(model.device)
            collect_inputs(partial(hidden_states, model, inputs, layer), matrices, add)
    return layer_inputs


def _unpadded(sequences: Sequence[Encoded]) -> Iterator[Batch]:
    """Batches of texts of one length: an expert is given tokens without their places, so none may
    be padding.
    """
    by_size: dict[int, list[Encoded]] = {}
    for sequence in sequences:
        by_size.setdefault(len(sequence.ids), []).append(sequence)
    for size, texts in by_size.items():
        at_once = max(1, TOKENS_PER_BATCH // size)
        for first in range(0, len(texts), at_once):
            yield collate(texts[first : first + at_once])


QUANTIZATION = {
    row.function.__name__: row
    for row in (
        AttackRow(
            function=gptq,
            kind="weights",
            of_matrices=True,
            title="quantise by GPTQ, on retain documents",
            source="Frantar et al. 2210.17323; used by 2410.16454",
        ),
        AttackRow(
            function=awq,
            kind="weights",
            of_matrices=True,
            title="quantise by AWQ, on retain documents",
            source="Lin et al. 2306.00978; used by 2410.16454",
        ),
    )
}


def round_to_nearest(model: PreTrainedModel, *, bits: Bits = 4) -> None:
    """Quantise the weight matrices of the blocks to `bits` and back: symmetric, one scale per
    output channel.

    w -> s round(w / s) with s = max|w| / (2^(bits - 1) - 1). Zhang et al. 2410.16454 quantise with
    bitsandbytes, GPTQ and AWQ; rounding to nearest is the plainest. Embeddings, norms and head
    stay.
    """
    for matrix in model_matrices(model):
        matrix.weight.copy_(round_weights(matrix.weight, bits))


def round_weights(weight: Tensor, bits: int) -> Tensor:
    """(out, in) -> the nearest of 2^bits - 1 evenly spaced values of each row, the largest |w| of a
    row exact.
    """
    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny) / (
        2 ** (bits - 1) - 1
    )
    return (weight / scale).round() * scale


def four_bit_normal_float(model: PreTrainedModel) -> None:
    """NF4 (QLoRA, 2305.14314) and back, by bitsandbytes, in its blocks of 64: what `load_in_4bit`
    computes with. Used by 2410.16454.

    Raises UserError where bitsandbytes is not installed (`pip install rayunlearn[quantisation]`),
    and for weights that come back outside NF4's bound.
    """
    functional = _bitsandbytes()
    for matrix in model_matrices(model):
        matrix.weight.copy_(nf4_rounded(matrix.weight, functional))


def _bitsandbytes() -> ModuleType:
    try:
        import bitsandbytes.functional as functional
    except ImportError as error:
        raise UserError(
            "four_bit_normal_float needs bitsandbytes (pip install 'rayunlearn[quantisation]'),"
            f" got {error}"
        ) from error
    return functional
