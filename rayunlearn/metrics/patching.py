"""What a model's hidden states still know: metrics of one document from activation patching
(`models.patching`). Inputs as `table.INPUTS` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayunlearn.ranges import NonNegative

if TYPE_CHECKING:
    from torch import Tensor


def unlearning_depth(
    gold_gap: Tensor, own_gap: Tensor, *, threshold: NonNegative = 0.05
) -> float | None:
    """Unlearning Depth Score: how much of what gold's hidden states lack the model's lack too, 0 to
    1, over the blocks. 2605.24614, sec. 3.

    The base model computes with the states of another model at the output of block l, at the
    positions that predict the answer's key: S1_l nats of log p are lost with gold's states
    (`gold_gap`), S2_l with those of the model that is measured (`own_gap`). Over the blocks with
    S1_l > `threshold`: sum of S1_l clip(S2_l / S1_l, 0, 1) / sum of S1_l. 0: base knows as much
    with the model's states as with its own, so nothing is gone. 1: it knows no more than with
    gold's. Null where no block has such a gap: gold knows the document too.

    Departures: the paper's spans of the answer were marked by hand; here it is the answer's key,
    and where it has none the answer without what closes it (the choice is ours). States of the last
    block are taken before the final norm, as those of every other (the authors' code reads
    transformers' `hidden_states`, whose last entry is after it).

    Args:
        gold_gap: (L,) nats, one for each block.
        own_gap: (L,) nats, of the model that is measured.

    Example: blocks lose 0.02, 1 and 3 nats with gold's states, 0.5, 0.5 and 4 with the model's. The
    first does not count; (min(0.5, 1) + min(4, 3)) / 4 = 0.875.
        >>> from rayunlearn.lazy import torch
        >>> unlearning_depth(torch.tensor([0.02, 1.0, 3.0]), torch.tensor([0.5, 0.5, 4.0]))
        0.875
    """
    counted = gold_gap > threshold
    if not bool(counted.any()):
        return None
    gold, gap = gold_gap[counted].double(), own_gap[counted].double()
    # S1 clip(S2 / S1, 0, 1) is S2 held between 0 and S1
    return float(gap.clamp(min=0).minimum(gold).sum() / gold.sum())
