"""Activation patching: a model computes with the hidden states of another model in it.

The source's states replace the target's at the output of one block, at the positions that predict
the labels; everything else is the target's own, and what follows shows what the source's states
still say. The terms are those of Patchscopes (Ghandeharioun et al. 2401.06102).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from rayunlearn.data.tokenize import Batch, Encoded, by_length, collate
from rayunlearn.errors import UserError, require
from rayunlearn.lazy import functional, torch
from rayunlearn.models.forward import (
    blocks,
    can_pack,
    evaluating,
    label_ids,
    label_logits,
    tokens_per_pass,
)
from rayunlearn.models.logits import can_split
from rayunlearn.models.packed_layout import layout_of, opening_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def key_sequence(sequence: Encoded) -> Encoded:
    """The sequence with the tokens of the answer's key as its only labels, cut off after them.

    An answer without a key has all its tokens as labels, but not those that close it. What comes
    after the labels is not needed: no position sees what follows it.

    Example:
        >>> key_sequence(Encoded("d", (5, 6, 7, 8, 9), start=2, n_end=1, key=(1, 2)))
        Encoded(doc_id='d', ids=(5, 6, 7, 8), start=3, n_end=0, key=None)
    """
    first, last = sequence.key or (0, len(sequence.ids) - sequence.start - sequence.n_end)
    start = sequence.start
    return replace(
        sequence, ids=sequence.ids[: start + last], start=start + first, n_end=0, key=None
    )


def states_by_block(model: PreTrainedModel, sequences: Sequence[Encoded]) -> list[Tensor]:
    """Outputs of every block at the n positions that predict the labels of each sequence: (L, n, D)
    float32 on the CPU, in the order given, from one pass.

    Raises:
        UserError: where a block of the family gives no tensor (batch, tokens, width).
    """
    states: dict[int, Tensor] = {}
    with evaluating(model):
        for positions, batch in _batches(model, sequences):
            states_of_all = _states_of_batch(model, batch)
            parts = states_of_all.split(list(batch.label_counts), dim=1)
            # a part is a view, which would hold the whole batch
            states |= {p: part.clone() for p, part in zip(positions, parts, strict=True)}
    return [states[p] for p in range(len(sequences))]


def patching_gaps(
    target: PreTrainedModel, sequences: Sequence[Encoded], states: Sequence[Tensor]
) -> list[Tensor]:
    """How much less the target knows with the source's states at one block: for each sequence (L,)
    float32, in nats, the mean over its labels of log p without minus log p with the states there.

    Args:
        target: the model that computes; every family whose blocks give (batch, tokens, width).
        sequences: their labels are asked; `key_sequence` makes those of a document's key.
        states: `states_by_block` of the source on the same sequences.

    Raises:
        UserError: where the models have not the same blocks and width, as `states_by_block` too.
    """
    gaps: dict[int, Tensor] = {}
    with evaluating(target):
        for positions, batch in _batches(target, sequences):
            sizes = list(batch.label_counts)
            patches = torch.cat([states[p] for p in positions], dim=1).to(target.device)
            _require_same_shape(target, patches)
            plain = _label_nll(target, batch)
            rows = _predicting_rows(target, batch)
            losses = torch.stack(
                [
                    _patched_nll(target, batch, block, rows, patch) - plain
                    for block, patch in zip(blocks(target), patches, strict=True)
                ]
            ).cpu()
            means = [part.mean(1) for part in losses.split(sizes, dim=1)]
            gaps |= dict(zip(positions, means, strict=True))
    return [gaps[p] for p in range(len(sequences))]


def _batches(
    model: PreTrainedModel, sequences: Sequence[Encoded]
) -> Iterator[tuple[Sequence[int], Batch]]:
    """Places of sequences, and their batch on the model's device."""
    for positions in by_length(sequences, tokens_per_pass(model)):
        yield positions, collate([sequences[p] for p in positions]).to(model.device)


def _predicting_rows(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Where the label-predicting positions stand (N,) in what blocks give, laid out row by row."""
    # what a model can do is tried at its first use, on texts that no hook may meet
    can_split(model)
    if not can_pack(model):
        return batch.places - 1
    return layout_of([batch], opening_of(model)).predicting


def _states_of_batch(model: PreTrainedModel, batch: Batch) -> Tensor:
    """(L, N, D) float32 on the CPU, of a batch with N labels."""
    rows, caught = _predicting_rows(model, batch), dict[int, "Tensor"]()

    def catch(number: int) -> Callable[..., None]:
        def keep_states(_module: nn.Module, _inputs: object, output: object) -> None:
            states = _stream_of(model, output)
            caught[number] = states.flatten(0, 1).index_select(0, rows).float().cpu()

        return keep_states

    layers = blocks(model)
    with ExitStack() as stack:
        for number, block in enumerate(layers):
            stack.callback(block.register_forward_hook(catch(number)).remove)
        label_logits(model, batch)
    return torch.stack([caught[number] for number in range(len(layers))])


def _patched_nll(
    model: PreTrainedModel, batch: Batch, block: nn.Module, rows: Tensor, patch: Tensor
) -> Tensor:
    """NLL (N,) of the labels with `patch` (N, D) at `rows` of the block's output."""
    with _patched(model, block, rows, patch):
        return _label_nll(model, batch)


@contextmanager
def _patched(
    model: PreTrainedModel, block: nn.Module, rows: Tensor, patch: Tensor
) -> Iterator[None]:
    def put(_module: nn.Module, _inputs: object, output: object) -> object:
        states = _stream_of(model, output)
        changed = states.flatten(0, 1).index_copy(0, rows, patch.to(states.dtype))
        whole = changed.view_as(states)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    handle = block.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def _stream_of(model: PreTrainedModel, output: object) -> Tensor:
    """The residual stream (B, T, D) in what a block gives."""
    states = output[0] if isinstance(output, tuple) else output
    shape = tuple(states.shape) if isinstance(states, torch.Tensor) else type(states).__name__
    if not isinstance(states, torch.Tensor) or states.dim() != 3:
        raise UserError(
            "activation patching needs blocks that give one tensor (batch, tokens, width); those of"
            f" {type(model).__name__} give {shape}"
        )
    return states


def _require_same_shape(target: PreTrainedModel, patches: Tensor) -> None:
    config = target.config.get_text_config()
    source = f"{patches.shape[0]} blocks of width {patches.shape[2]}"
    shape = f"{len(blocks(target))} blocks of width {config.hidden_size}"
    rule = f"activation patching needs models of one shape: base has {shape}, the other model"
    require(source == shape, rule, source)


def _label_nll(model: PreTrainedModel, batch: Batch) -> Tensor:
    return functional.cross_entropy(label_logits(model, batch), label_ids(batch), reduction="none")
