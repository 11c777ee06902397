"""NF4, the four bits of QLoRA (Dettmers et al. 2305.14314), by bitsandbytes."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from rayunlearn.errors import require
from rayunlearn.lazy import nn, torch

if TYPE_CHECKING:
    from torch import Tensor

# weights that share a scale: the default of bitsandbytes and of QLoRA
NF4_BLOCK = 64
# between -1 and the level above it, of the 16 in appendix E of 2305.14314
NF4_WIDEST_GAP = 1 - 0.6961928009986877


def nf4_packed(weight: Tensor, functional: ModuleType) -> tuple[Tensor, Any]:
    """A matrix of any shape -> its codes, two in a byte, and what bitsandbytes needs to read them.
    Raises UserError for weights that come back outside NF4's bound.

    functional: `bitsandbytes.functional`. NF4 cuts a matrix into blocks of 64 row by row, so it is
    handed over as rows of one block, the last one filled up with zeros: the same numbers. In the
    matrix's own shape bitsandbytes 0.50 takes other blocks' scales on processors with AVX-512 where
    a row is a multiple of 16 and none of 64.
    """
    filled = nn.functional.pad(weight.flatten(), (0, -weight.numel() % NF4_BLOCK))
    rows = filled.view(-1, NF4_BLOCK)
    packed, state = functional.quantize_4bit(rows, blocksize=NF4_BLOCK, quant_type="nf4")
    require_nf4(rows, functional.dequantize_4bit(packed, state))
    return packed, state


def nf4_unpacked(packed: Tensor, state: Any, shape: torch.Size, functional: ModuleType) -> Tensor:
    """The matrix of this shape that `nf4_packed` packed, as NF4 has it."""
    rows: Tensor = functional.dequantize_4bit(packed, state)
    return rows.flatten()[: shape.numel()].view(shape)


def nf4_rounded(weight: Tensor, functional: ModuleType) -> Tensor:
    """A matrix of any shape -> the same by bitsandbytes' NF4. Raises UserError for weights that
    come back outside NF4's bound.
    """
    return nf4_unpacked(*nf4_packed(weight, functional), weight.shape, functional)


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
