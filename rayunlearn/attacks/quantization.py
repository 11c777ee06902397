"""Quantisation that looks at data: GPTQ and AWQ. Weights are quantised and put back as floats, so
no kernel and no GPU is needed.

Both minimise |W x - Q x|^2 over inputs x that the model has on calibration texts, here retain
documents: who quantises a model takes ordinary text. What they need of x is its Gram matrix. Blocks
go one after another, each with the inputs that the quantised blocks before it give. One scale per
output channel, as in `round_to_nearest`; the papers take groups of 128.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

from rayunlearn.attacks.base import TOKENS_PER_BATCH, AttackRow
from rayunlearn.attacks.perturbation import linear_weights
from rayunlearn.data.tokenize import Encoded, by_length, collate
from rayunlearn.errors import UserError, require
from rayunlearn.lazy import nn, torch
from rayunlearn.models.forward import blocks, evaluating, hidden_states
from rayunlearn.ranges import Count, Positive, Rule

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


# weights that share a scale: the default of bitsandbytes and of QLoRA
NF4_BLOCK = 64
# between -1 and the level above it, of the 16 in appendix E of 2305.14314
NF4_WIDEST_GAP = 1 - 0.6961928009986877

# 0, 0.05, ... 1: the grid of the paper's code
EXPONENTS = 21


@dataclass
class LayerInputs:
    """What a linear module of N weights a row was given: sum of x x^T (N, N), sum of |x| (N,), and
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
    """Quantise the linear weights of the blocks column by column, later columns making up for it.
    Frantar et al. 2210.17323, algorithm 1.

    On the first `texts` retain documents in the order that attack.seed draws. `damping`, as there:
    this share of the mean diagonal is added to the Gram matrix. Columns go in their order; the
    paper's lazy batches change speed alone.
    """
    for module, inputs in _by_block(model, retain_sequences[:texts]):
        module.weight.data.copy_(gptq_weights(module.weight.data, inputs.gram, bits, damping))


def awq(
    model: PreTrainedModel,
    retain_sequences: Sequence[Encoded],
    *,
    bits: Bits = 4,
    texts: Count = 64,
) -> None:
    """Quantise the linear weights of the blocks with input channels scaled by how large they are.
    Lin et al. 2306.00978, eq. 4 and 5.

    W -> Q(W diag(s)) diag(s)^-1 with s = (mean |x|)^a, and of 21 exponents a the one with the
    smallest error. The paper searches one a for modules that share an input and clips weights; here
    every module has its own and none is clipped.
    """
    for module, inputs in _by_block(model, retain_sequences[:texts]):
        module.weight.data.copy_(awq_weights(module.weight.data, inputs, bits))


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
) -> Iterator[tuple[nn.Linear, LayerInputs]]:
    """Every linear module of the blocks with its inputs, a block at a time: what is done to one is
    seen by the next.
    """
    require(
        len(sequences) > 0, "quantisation by data must have at least one text, got", len(sequences)
    )
    for layer, block in enumerate(blocks(model)):
        modules = [module for module in block.modules() if isinstance(module, nn.Linear)]
        yield from zip(modules, _inputs_of(model, layer, modules, sequences), strict=True)


def _inputs_of(
    model: PreTrainedModel,
    layer: int,
    modules: Sequence[nn.Linear],
    sequences: Sequence[Encoded],
) -> list[LayerInputs]:
    layer_inputs = [
        LayerInputs(
            torch.zeros(m.in_features, m.in_features, device=m.weight.device),
            torch.zeros(m.in_features, device=m.weight.device),
        )
        for m in modules
    ]
    with evaluating(model):
        for positions in by_length(sequences, TOKENS_PER_BATCH):
            batch = collate([sequences[p] for p in positions]).to(model.device)
            present = batch.present.bool().flatten()
            handles = [
                module.register_forward_pre_hook(_adding(inputs, present))
                for module, inputs in zip(modules, layer_inputs, strict=True)
            ]
            try:
                hidden_states(model, batch, layer)
            finally:
                for handle in handles:
                    handle.remove()
    return layer_inputs


def _adding(
    inputs: LayerInputs, present: Tensor
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that adds what the module is given at the present tokens (B T,)."""

    def add(_module: nn.Module, batch: tuple[Tensor, ...]) -> None:
        x = batch[0].flatten(0, -2)[present].float()
        inputs.gram += x.T @ x
        inputs.size += x.abs().sum(0)
        inputs.count += len(x)

    return add


QUANTIZATION = {
    row.function.__name__: row
    for row in (
        AttackRow(
            function=gptq,
            kind="weights",
            title="quantise by GPTQ, on retain documents",
            source="Frantar et al. 2210.17323; used by 2410.16454",
        ),
        AttackRow(
            function=awq,
            kind="weights",
            title="quantise by AWQ, on retain documents",
            source="Lin et al. 2306.00978; used by 2410.16454",
        ),
    )
}


def round_to_nearest(model: PreTrainedModel, *, bits: Bits = 4) -> None:
    """Quantise the linear weights of the blocks to `bits` and back: symmetric, one scale per output
    channel.

    w -> s round(w / s) with s = max|w| / (2^(bits - 1) - 1). Zhang et al. 2410.16454 quantise with
    bitsandbytes, GPTQ and AWQ; rounding to nearest is the plainest. Embeddings, norms and head
    stay.
    """
    for weight in linear_weights(model):
        weight.copy_(round_weights(weight, bits))


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
    for weight in linear_weights(model):
        weight.copy_(nf4_rounded(weight, functional))


def nf4_rounded(weight: Tensor, functional: ModuleType) -> Tensor:
    """A matrix of any shape -> the same by bitsandbytes' NF4. Raises UserError for weights that
    come back outside NF4's bound.

    NF4 cuts a matrix into blocks of 64 row by row, so it is handed over as rows of one block, the
    last one filled up with zeros: the same numbers. In the matrix's own shape bitsandbytes 0.50
    takes other blocks' scales on processors with AVX-512 where a row is a multiple of 16 and none
    of 64.
    """
    filled = nn.functional.pad(weight.flatten(), (0, -weight.numel() % NF4_BLOCK))
    rows = filled.view(-1, NF4_BLOCK)
    packed, state = functional.quantize_4bit(rows, blocksize=NF4_BLOCK, quant_type="nf4")
    returned = functional.dequantize_4bit(packed, state)
    require_nf4(rows, returned)
    return returned.flatten()[: weight.numel()].view_as(weight)


def require_nf4(rows: Tensor, returned: Tensor) -> None:
    """Hold `returned` against `rows`, both (blocks, 64): no weight may have moved by more than half
    the widest gap of NF4's levels, as a share of its block's largest |w|, plus rounding. Raises
    UserError; no number counts as outside.
    """
    largest = rows.float().abs().amax(dim=1, keepdim=True)
    moved = (returned.float() - rows.float()).abs()
    rounding = 4 * torch.finfo(rows.dtype).eps * largest
    fits = moved <= NF4_WIDEST_GAP / 2 * largest + rounding
    worst = float((moved / largest.clamp_min(torch.finfo(torch.float32).tiny)).max())
    require(
        bool(fits.all()),
        "four_bit_normal_float must recover from bitsandbytes what NF4 allows, weights moved by at"
        f" most {NF4_WIDEST_GAP / 2:.3f} of the largest of their block of {NF4_BLOCK} (its code for"
        " this processor is wrong)",
        round(worst, 3),
    )


def _bitsandbytes() -> ModuleType:
    try:
        import bitsandbytes.functional as functional
    except ImportError as error:
        raise UserError(
            "four_bit_normal_float needs bitsandbytes (pip install 'rayunlearn[quantisation]'),"
            f" got {error}"
        ) from error
    return functional
