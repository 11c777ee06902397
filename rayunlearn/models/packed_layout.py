"""Where the tokens of padded batches stand in one packed row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

from rayunlearn.data.tokenize import Batch, to_device
from rayunlearn.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

# the last block runs at label positions alone where they are at most this share of all tokens:
# its keys and values need a second call of the block
LABEL_SHARE = 0.75


@dataclass(frozen=True)
class Layout:
    """Where the tokens of right-padded batches stand in one packed row of S tokens.

    `groups`: (sequences, tokens of each, labels of each), neighbours in the row. `places` (S,): for
    each token of the row its place in the batches, laid out row by row, one after the other;
    `rows`: for each such place its token in the row, 0 on padding. `positions` (1, S) count from 0
    in each sequence. `predicting` (N,): the tokens that predict the labels, in the order in which
    the batches have these; `queries` (N,): the same in the order of the row. `shapes`: (B, T) of
    the batches.
    """

    groups: tuple[tuple[int, int, int], ...]
    shapes: tuple[tuple[int, int], ...]
    places: Tensor
    rows: Tensor
    positions: Tensor
    predicting: Tensor
    queries: Tensor

    @cached_property
    def sizes(self) -> list[int]:
        """Places of each batch."""
        return [n * width for n, width in self.shapes]

    @property
    def trims(self) -> bool:
        """Whether some of the tokens predict a label, and few enough."""
        return 0 < len(self.queries) <= LABEL_SHARE * len(self.places)

    def pack(self, values: Sequence[Tensor]) -> Tensor:
        """Values (B, T, ...) of the batches as one row (1, S, ...)."""
        flat = torch.cat([batch.flatten(0, 1) for batch in values])
        return flat.index_select(0, self.places)[None]

    def unpack(self, values: Tensor) -> list[Tensor]:
        """Values (1, S, D) of the row as (B, T, D) of each batch, zero on padding."""
        flat = values.new_zeros(sum(self.sizes), values.shape[-1])
        parts = flat.index_copy(0, self.places, values[0]).split(self.sizes)
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]


def layout_of(batches: Sequence[Batch]) -> Layout:
    """The layout of batches on their device; found on the processor, so that nothing waits.

    Sequences stand by length, so that those of one length go through attention at once.
    """
    shapes = tuple((int(b.input_ids.shape[0]), int(b.input_ids.shape[1])) for b in batches)
    sequences: list[tuple[int, int, int]] = []
    before_labels: list[Tensor] = []
    first = 0
    for batch, (n, width) in zip(batches, shapes, strict=True):
        starts = range(first, first + n * width, width)
        sequences += zip(batch.lengths, batch.label_counts, starts, strict=True)
        # a label is predicted from the position before it
        before_labels.append(batch.host_places + (first - 1))
        first += n * width
    sequences.sort()
    places = torch.cat([torch.arange(start, start + size) for size, _, start in sequences])
    rows = torch.zeros(first, dtype=torch.long)
    rows[places] = torch.arange(len(places))
    positions = torch.cat([torch.arange(size) for size, _, _ in sequences])[None]
    predicting = rows[torch.cat(before_labels)]
    alike = groupby(sequences, key=lambda sequence: sequence[:2])
    groups = tuple((len(list(same)), size, labels) for (size, labels), same in alike)
    device = batches[0].input_ids.device
    on_host = (places, rows, positions, predicting, predicting.sort().values)
    tensors = (to_device(tensor, device) for tensor in on_host)
    return Layout(groups, shapes, *tensors)
