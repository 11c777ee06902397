"""Attention within each sequence of a packed row, as a function of transformers' interface."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from rayunlearn.data.tokenize import to_device
from rayunlearn.lazy import functional, nn, torch, transformers
from rayunlearn.models.fused_layers import fused_layers, is_float32_on_cpu
from rayunlearn.models.packed_layout import Layout

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_LOGGER = logging.getLogger(__name__)
ATTENTION_NAME = "rayunlearn_packed"
# what a family may hand to attention and this function does not compute
NOT_COMPUTED = ("position_bias", "s_aux", "head_mask", "cache")
# largest difference between torch's kernel for unlike lengths and attention one by one, on normal
# numbers in half precision, and between its kernel of a processor called one way and the other
KERNEL_TOLERANCE = 0.05
FUSED_TOLERANCE = 1e-5

_ATTENTION: ContextVar[Attention | None] = ContextVar("attention", default=None)
# what takes the place of `packed_attention`
_FUNCTION: ContextVar[Callable[..., tuple[Tensor, None]] | None] = ContextVar(
    "function", default=None
)
_VARLEN: dict[tuple[object, ...], bool] = {}


class KeysKnown(Exception):
    """Raised by attention to end a block's call once its keys and values are there."""


@contextmanager
def attention_of(model: PreTrainedModel, attention: Attention) -> Iterator[None]:
    """The model with `packed_attention` instead of its own attention, and with the fused form of
    every layer that has one.
    """
    transformers.AttentionInterface.register(ATTENTION_NAME, _FUNCTION.get() or packed_attention)
    config, before = model.config, model.config._attn_implementation
    config._attn_implementation = ATTENTION_NAME
    token = _ATTENTION.set(attention)
    # blocks that are compiled are made leaner by that
    layers = fused_layers(model) if _FUNCTION.get() is None else nullcontext()
    try:
        with layers:
            yield
    finally:
        _ATTENTION.reset(token)
        config._attn_implementation = before


@contextmanager
def attention_outside_graphs() -> Iterator[None]:
    """Passes whose attention `torch.compile` leaves as it is: it is another one for every batch."""
    token = _FUNCTION.set(torch.compiler.disable(packed_attention))
    try:
        yield
    finally:
        _FUNCTION.reset(token)


def running_attention() -> Attention | None:
    """What `attention_of` made the running pass's attention; None in a padded pass."""
    return _ATTENTION.get()


@dataclass
class Attention:
    """What the attention function knows of the row that runs, and which part it is asked for.

    `part`: all; keys (end once keys and values are there, and hold them); queries (of the tokens
    that predict a label, on the keys and values held).
    """

    layout: Layout
    part: str = "all"
    held: tuple[Tensor, Tensor] | None = None
    windows: set[int | None] = field(default_factory=set)

    def cut(
        self, query: Tensor, key: Tensor, value: Tensor, window: int | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """Query (n, H, Q, D), key and value (n, H', L, D) and mask of each group of sequences that
        has a query; a mask of None stands for all that is not later.
        """
        groups, of_labels = self.layout.groups, self.part == "queries"
        n_tokens = [n * size for n, size, _ in groups]
        n_queries = [n * labels for n, _, labels in groups] if of_labels else n_tokens
        # one split has one gradient; slices would each fill a whole row with zeros
        positions = self._query_positions().split(n_queries)
        parts = zip(
            groups,
            query.split(n_queries, 2),
            key.split(n_tokens, 2),
            value.split(n_tokens, 2),
            positions,
            self.layout.before or [None] * len(groups),
            strict=True,
        )
        for (n, size, labels), q, k, v, query_positions, before in parts:
            if q.shape[2]:
                keys, values = _by_sequence(k, n, size), _by_sequence(v, n, size)
                if before is not None and len(before):
                    keys, values = (
                        torch.cat([_by_sequence(whole.index_select(2, before), n, -1), part], 2)
                        for whole, part in ((key, keys), (value, values))
                    )
                n_keys = keys.shape[2]
                plain = (window is None or n_keys <= window) and n_keys == size and not of_labels
                mask = None if plain else _seen(query_positions, n, n_keys, window)
                yield _by_sequence(q, n, labels if of_labels else size), keys, values, mask

    def _query_positions(self) -> Tensor:
        positions = self.layout.positions[0]
        return (
            positions.index_select(0, self.layout.queries) if self.part == "queries" else positions
        )


def _by_sequence(values: Tensor, n: int, size: int) -> Tensor:
    """(1, H, n x size, D) as (n, H, size, D)."""
    # not `values[0]`, whose gradient would fill a tensor with zeros first
    return values.squeeze(0).unflatten(1, (n, size)).transpose(0, 1)


def _seen(positions: Tensor, n: int, size: int, window: int | None) -> Tensor:
    """What queries at `positions` (n x Q,) see of `size` keys: none later, none a window ago or
    longer; (n, 1, Q, size) bool.
    """
    distance = positions.view(n, 1, -1, 1) - torch.arange(size, device=positions.device)
    return (distance >= 0) & (distance < window) if window is not None else distance >= 0


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of the packed row: query (1, H, S, D), key and value
    (1, H', S, D) -> (1, S, H, D), as transformers' interface has it. Of the options
    `sliding_window` (tokens, the token itself among them) and `softcap` (of scores) count.

    Raises ValueError for what it does not compute.
    """
    running = _ATTENTION.get()
    refused = [name for name in NOT_COMPUTED if options.get(name) is not None]
    if running is None or attention_mask is not None or refused:
        rule = f"packed attention takes no mask and none of {NOT_COMPUTED}"
        raise ValueError(f"{rule}, got {refused}")
    window, softcap = options.get("sliding_window"), options.get("softcap")
    running.windows.add(window)
    if running.part == "keys":
        running.held = key, value
        raise KeysKnown
    if running.held is not None:
        key, value = running.held
    whole_texts = running.part == "all" and not running.layout.before
    if whole_texts and softcap is None and dropout == 0:
        output = _at_once(running.layout, query, key, value, scaling, window)
        if output is not None:
            return output, None
    outputs = [
        _attend(q, k, v, mask, scaling, dropout, softcap).transpose(1, 2).flatten(0, 1)
        for q, k, v, mask in running.cut(query, key, value, window)
    ]
    return torch.cat(outputs)[None], None


def _at_once(
    layout: Layout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    window: int | None,
) -> Tensor | None:
    """Attention of whole texts by one function for all of them, (1, S, H, D), where there is one
    for their device and precision.
    """
    if _has_varlen(query, key):
        return _varlen(layout, query, key, value, scaling, window)
    longest = max(size for _, size, _ in layout.groups)
    if (window is None or longest <= window) and is_float32_on_cpu(query) and _has_fused():
        return _fused(layout, query, key, value, scaling)
    return None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    """Attention of (n, H, Q, D) to (n, H', L, D); with a cap on its scores in plain steps, as no
    kernel of torch has one.
    """
    key, value = _for_each_query_head(query, key, value)
    if softcap is None:
        return functional.scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal=mask is None, scale=scaling
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    if mask is None:
        size = query.shape[2]
        mask = _seen(torch.arange(size, device=query.device), 1, size, None)
    shares = scores.masked_fill(~mask, -torch.inf).softmax(-1, dtype=torch.float32)
    return functional.dropout(shares.to(query.dtype), dropout) @ value


def _for_each_query_head(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Key and value (n, H', L, D) as (n, H, L, D), where several heads of the query share one."""
    repeated = query.shape[1] // key.shape[1]
    if repeated == 1:
        return key, value
    return key.repeat_interleave(repeated, 1), value.repeat_interleave(repeated, 1)


def _fused(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
) -> Tensor:
    """The same for all sequences of a row by one function, (1, S, H, D)."""
    # loaded as torch is, at its first use
    from rayunlearn.models.fused_functions import causal_attention

    groups = [(n, size) for n, size, _ in layout.groups]
    keys, values = _for_each_query_head(query, key, value)
    return causal_attention(query, keys, values, groups, scaling).transpose(1, 2)


@lru_cache(maxsize=1)
def _has_fused() -> bool:
    """Whether torch has the kernel of a processor that `_fused` calls, and says the same by it as
    one by one, tried once.
    """
    like = torch.zeros(1, 2, 1, 4)
    return _agrees_with_one_by_one(partial(_fused, scaling=None), like, like, FUSED_TOLERANCE)


def _varlen(
    layout: Layout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """The same by torch's kernel for sequences of unlike lengths, all of them in one call."""
    # a part of torch that it loads by itself only when it is used
    from torch.nn.attention.varlen import varlen_attn

    lengths = [size for n, size, _ in layout.groups for _ in range(n)]
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    bounds, longest = to_device(ends, query.device), max(lengths)
    q, k, v = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))
    # a window counts the token itself for transformers, and not for the kernel
    before = -1 if window is None else window - 1
    output = varlen_attn(
        q,
        k,
        v,
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(before, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    # a pair only where more is asked for
    assert isinstance(output, torch.Tensor)
    return output[None]


def _has_varlen(query: Tensor, key: Tensor) -> bool:
    """Whether torch's kernel for unlike lengths takes these on this device and says what attention
    one by one says, tried once on numbers of its own.
    """
    if query.device.type != "cuda" or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    shape = (query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3])
    if shape not in _VARLEN:
        _VARLEN[shape] = _varlen_agrees(query, key)
    return _VARLEN[shape]


def _varlen_agrees(query: Tensor, key: Tensor) -> bool:
    kernel = partial(_varlen, scaling=None, window=None)
    return _agrees_with_one_by_one(kernel, query, key, KERNEL_TOLERANCE)


def _agrees_with_one_by_one(
    kernel: Callable[[Layout, Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    tolerance: float,
) -> bool:
    """Whether a function for all sequences at once says what attention one by one says, on numbers
    of its own with the heads, type and device of query and key (1, H, S, D).
    """
    layout, q, k, v = _row_like(query, key)
    one_by_one = torch.cat(
        [
            _attend(*group, None, 0.0, None).transpose(1, 2).flatten(0, 1)
            for group in Attention(layout).cut(q, k, v, None)
        ]
    )
    try:
        at_once = kernel(layout, q, k, v).squeeze(0)
    except (
        AttributeError,
        ImportError,
        RuntimeError,
        TypeError,
        ValueError,
        NotImplementedError,
    ) as problem:
        if isinstance(problem, torch.OutOfMemoryError):
            raise
        first_line = str(problem).partition("\n")[0]
        _LOGGER.warning("no attention kernel for sequences of unlike lengths: %s", first_line)
        return False
    return torch.allclose(at_once.float(), one_by_one.float(), rtol=0, atol=tolerance)


def _row_like(query: Tensor, key: Tensor) -> tuple[Layout, Tensor, Tensor, Tensor]:
    """A row of three sequences and their query, key and value."""
    lengths = ((1, 5, 1), (2, 9, 1))
    n_tokens = sum(n * size for n, size, _ in lengths)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, like.shape[1], n_tokens, like.shape[3], generator=generator).to(like)
        for like in (query, key, key)
    )
    positions = torch.cat([torch.arange(size) for n, size, _ in lengths for _ in range(n)])[None]
    nothing = torch.zeros(0, dtype=torch.long)
    layout = Layout(lengths, (), nothing, nothing, positions.to(query.device), nothing, nothing)
    return layout, q, k, v
