"""Where the tokens of padded batches stand in one packed row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from rayunlearn.data.tokenize import Batch, to_device
from rayunlearn.lazy import nn, torch

if TYPE_CHECKING:
    from torch import Tensor

# the last block runs at label positions alone where they are at most this share of all tokens:
# its keys and values need a second call of the block
LABEL_SHARE = 0.75
# tokens that texts of a branching row must begin with alike, to be laid down once: attention takes
# each length of beginning and rest by itself
LEAST_SHARED = 8

_OPENINGS: WeakKeyDictionary[nn.Module, tuple[int, ...]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Layout:
    """Where the tokens of right-padded batches stand in one packed row of S tokens.

    `groups`: (sequences, tokens of each, labels of each), neighbours in the row. `places` (S,): for
    each token of the row its place in the batches, laid out row by row, one after the other;
    `rows`: for each such place its token in the row, 0 on padding. `positions` (1, S) count from 0
    in each sequence. `predicting` (N,): the tokens that predict the labels, in the order in which
    the batches have these; `queries` (N,): the same in the order of the row. `shapes`: (B, T) of
    the batches.

    A sequence may be a part of a text, where what texts begin with stands in the row once.
    `before`: for each group the tokens (n x L,) of the row that stand before its n sequences, from
    the first of the text on; () where every sequence is a text. `repeated`: places in the batches
    of tokens that stand in the row for another text. `branches`: how many labels a sequence has is
    not in `groups`.
    """

    groups: tuple[tuple[int, int, int], ...]
    shapes: tuple[tuple[int, int], ...]
    places: Tensor
    rows: Tensor
    positions: Tensor
    predicting: Tensor
    queries: Tensor
    before: tuple[Tensor, ...] = ()
    repeated: Tensor | None = None
    branches: bool = False

    @cached_property
    def sizes(self) -> list[int]:
        """Places of each batch."""
        return [n * width for n, width in self.shapes]

    @property
    def trims(self) -> bool:
        """Whether some of the tokens predict a label, and few enough."""
        few = 0 < len(self.queries) <= LABEL_SHARE * len(self.places)
        return few and not self.branches

    def pack(self, values: Sequence[Tensor]) -> Tensor:
        """Values (B, T, ...) of the batches as one row (1, S, ...)."""
        flat = torch.cat([batch.flatten(0, 1) for batch in values])
        return flat.index_select(0, self.places)[None]

    def unpack(self, values: Tensor) -> list[Tensor]:
        """Values (1, S, D) of the row as (B, T, D) of each batch, zero on padding."""
        flat = values.new_zeros(sum(self.sizes), values.shape[-1])
        flat = flat.index_copy(0, self.places, values[0])
        if self.repeated is not None:
            tokens = self.rows.index_select(0, self.repeated)
            flat = flat.index_copy(0, self.repeated, values[0].index_select(0, tokens))
        parts = flat.split(self.sizes)
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]


def share_opening(model: nn.Module, opening: tuple[int, ...]) -> None:
    """Let passes of the model on a processor read `opening` once for all texts that begin with it
    (a chat template's system prompt); too short a one is read with each text.
    """
    _OPENINGS[model] = opening if len(opening) >= LEAST_SHARED else ()


def opening_of(model: nn.Module) -> tuple[int, ...]:
    """What `share_opening` was told of the model."""
    return _OPENINGS.get(model, ())


@dataclass(frozen=True, order=True)
class _Segment:
    """A part of one or more texts: how many tokens stand before it, how many it has, how many
    labels, and where its first token is in the batches, laid out row by row.
    """

    first: int
    size: int
    labels: int
    place: int


# (place of tokens that are not laid down, place of those that stand for them, how many)
Repeats = list[tuple[int, int, int]]


def layout_of(batches: Sequence[Batch], opening: tuple[int, ...] = ()) -> Layout:
    """The layout of batches on their device; found on the processor, so that nothing waits.

    Sequences stand by length, so that those of one length go through attention at once. On a
    processor texts that begin with `opening`, and have no label in it or right behind, follow one
    copy of it; whether a text does is a matter of that text alone.
    """
    segments: list[_Segment] = []
    repeats: Repeats = []
    opened_at = -1
    first = 0
    for batch in batches:
        n, width = batch.input_ids.shape
        starts = range(first, first + n * width, width)
        texts = zip(_opened(batch, opening), batch.lengths, batch.label_counts, starts, strict=True)
        for is_opened, length, n_labels, start in texts:
            skipped = len(opening) if is_opened else 0
            segments.append(_Segment(skipped, length - skipped, n_labels, start + skipped))
            if is_opened and opened_at < 0:
                opened_at = start
                segments.append(_Segment(0, skipped, 0, start))
            elif is_opened:
                repeats.append((start, opened_at, skipped))
        first += n * width
    return _layout_of_segments(batches, sorted(segments), repeats)


def _opened(batch: Batch, opening: tuple[int, ...]) -> list[bool]:
    """Which texts begin with the opening and have neither a label in it nor the one behind it."""
    n, width = batch.input_ids.shape
    size = len(opening)
    if not opening or width <= size or batch.input_ids.device.type != "cpu":
        return [False] * n
    begins = (batch.input_ids[:, :size] == torch.tensor(opening)).all(1)
    opened = begins & batch.present[:, size] & ~batch.labelled[:, : size + 1].any(1)
    return [bool(value) for value in opened]


def _layout_of_segments(
    batches: Sequence[Batch],
    segments: Sequence[_Segment],
    repeats: Repeats,
    *,
    branches: bool = False,
) -> Layout:
    """The layout of segments in the order given, which those alike are neighbours in."""
    shapes = tuple((int(b.input_ids.shape[0]), int(b.input_ids.shape[1])) for b in batches)
    starts = [0, *accumulate(n * width for n, width in shapes)]
    places = torch.cat([torch.arange(s.place, s.place + s.size) for s in segments])
    rows = torch.zeros(starts[-1], dtype=torch.long)
    rows[places] = torch.arange(len(places))
    for copy, original, size in repeats:
        rows[copy : copy + size] = rows[original : original + size]
    alike = [list(g) for _, g in groupby(segments, key=lambda s: (s.first, s.size, s.labels))]
    predicting = rows[_before_labels(batches, starts)]
    queries = predicting.unique() if branches else predicting.sort().values
    positions = torch.cat([torch.arange(s.first, s.first + s.size) for s in segments])[None]
    before = [torch.cat([rows[s.place - s.first : s.place] for s in same]) for same in alike]
    repeated = [torch.arange(copy, copy + size) for copy, _, size in repeats]
    device = batches[0].input_ids.device
    return Layout(
        groups=tuple((len(same), same[0].size, same[0].labels) for same in alike),
        shapes=shapes,
        places=to_device(places, device),
        rows=to_device(rows, device),
        positions=to_device(positions, device),
        predicting=to_device(predicting, device),
        queries=to_device(queries, device),
        before=tuple(to_device(t, device) for t in before) if segments[-1].first else (),
        repeated=to_device(torch.cat(repeated), device) if repeated else None,
        branches=branches,
    )


def _before_labels(batches: Sequence[Batch], starts: Sequence[int]) -> Tensor:
    """Places, in all batches one after the other, that labels are predicted from."""
    # a label is predicted from the position before it
    return torch.cat([b.host_places + (s - 1) for b, s in zip(batches, starts, strict=False)])


def branching_layout(batch: Batch) -> Layout:
    """The layout of a batch in which what several texts begin with stands once, wherever that is
    at least `LEAST_SHARED` tokens: a tree of which each text is a path from the root.

    The last block runs at every token in a pass over it.
    """
    ids, width = batch.input_ids.tolist(), int(batch.input_ids.shape[1])
    texts = [tuple(row[:size]) for row, size in zip(ids, batch.lengths, strict=True)]
    paths: dict[int, list[_Segment]] = {row: [] for row in range(len(texts))}
    order = sorted(range(len(texts)), key=texts.__getitem__)
    # depth first, without a recursion that a long text could make too deep
    waiting = [(order, 0)]
    while waiting:
        waiting += _branch(texts, *waiting.pop(), width, paths)
    segments = sorted({segment for path in paths.values() for segment in path})
    repeats = [
        (row * width + segment.first, segment.place, segment.size)
        for row, path in paths.items()
        for segment in path
        if segment.place != row * width + segment.first
    ]
    return _layout_of_segments([batch], segments, repeats, branches=True)


def _branch(
    texts: Sequence[tuple[int, ...]],
    chosen: list[int],
    first: int,
    width: int,
    paths: dict[int, list[_Segment]],
) -> list[tuple[list[int], int]]:
    """Add to the paths of the chosen texts, which are sorted and alike up to `first`, what they go
    on with alike; returns the groups that go on unlike each other, and where.
    """
    shortest = min(len(texts[row]) for row in chosen)
    lowest, highest = texts[chosen[0]], texts[chosen[-1]]
    # of sorted texts the first and the last differ soonest
    same = next((t for t in range(first, shortest) if lowest[t] != highest[t]), shortest)
    alone = len(chosen) == 1
    if same > first and (alone or same - first >= LEAST_SHARED):
        segment = _Segment(first, same - first, 0, chosen[0] * width + first)
        for row in chosen:
            paths[row].append(segment)
        first = same
    going_on = [row for row in chosen if len(texts[row]) > first]
    if alone or not going_on:
        return []
    ended = [[row] for row in going_on if len(texts[row]) == same]
    longer = groupby((r for r in going_on if len(texts[r]) > same), key=lambda r: texts[r][same])
    return [(group, first) for group in (*ended, *(list(rows) for _, rows in longer))]
