"""Forward passes that compute what a loss or a metric asks for, and nothing else.

Sequences go through the model end to end in one row (`models.packing`), those of several batches
together. Families that cannot take that run in padded batches: right padding and causal attention,
so a position never sees what comes after it, no attention mask is needed and padding cannot change
a label's value (tested against unpadded rows).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rayunlearn.data.tokenize import Batch, Encoded, by_beginning, by_length, collate
from rayunlearn.lazy import functional, nn, torch
from rayunlearn.models.logits import (
    FinalStates,
    final_states,
    logits_at,
    replaced_forwards,
)
from rayunlearn.models.packed_layout import Layout, branching_layout, layout_of, opening_of
from rayunlearn.models.packing import abilities, packed_states, passes_are_padded

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# standard deviation of log p at a position, for min-k++: Zhang et al.'s code clamps the variance at
# 1e-6
LEAST_DEVIATION = 1e-3
# Padded tokens of a batch that is only looked at, and what their logits may take of the main memory
# that workers share: a word in 49,152 is told from the others by 197 kB.
TOKENS_PER_PASS = 8192
LOGIT_BYTES = 2**28


class _BlockReached(Exception):
    """Raised by a hook to end a forward pass at the block whose output was wanted."""


@dataclass(frozen=True)
class PrefixStart:
    """Where a forward pass begins: at block `block` (0-based), whose input `hidden` (B, T, D) is
    known already.
    """

    block: int
    hidden: Tensor


@contextmanager
def start_from_prefix(model: PreTrainedModel, start: PrefixStart | None) -> Iterator[None]:
    """The model with its passes beginning at `start`: the blocks below hand on what they are given
    and compute nothing.

    Embeddings, positions and masks are the model's own, so any family works whose blocks return one
    tensor (see `can_start`). None: from the beginning.
    """
    if start is None:
        yield
        return
    prefix, layers = start, blocks(model)

    def begin(
        _module: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        states = inputs[0] if inputs else options["hidden_states"]
        # rows are kept in float32, also those of a model in bfloat16
        hidden = prefix.hidden.to(states.dtype)
        return (
            ((hidden, *inputs[1:]), options)
            if inputs
            else ((), {**options, "hidden_states": hidden})
        )

    handle = layers[start.block].register_forward_pre_hook(begin, with_kwargs=True)
    try:
        with replaced_forwards(layers[: start.block], _handed_on):
            yield
    finally:
        handle.remove()


def _handed_on(hidden_states: Tensor, *_inputs: object, **_options: object) -> Tensor:
    """A block that does nothing; what else blocks are given differs between families."""
    return hidden_states


def can_start(model: PreTrainedModel, batch: Batch, block: int) -> bool:
    """Whether starting at `block` gives what the whole model gives, tried on a batch: same last
    block, bit for bit.
    """
    kinds: list[type] = []
    handle = blocks(model)[0].register_forward_hook(
        lambda _m, _i, output: kinds.append(type(output))
    )
    with evaluating(model):
        try:
            states = hidden_states(model, batch, block - 1)
        finally:
            handle.remove()
        if not issubclass(kinds[0], torch.Tensor):
            return False
        last = len(blocks(model)) - 1
        return torch.equal(
            hidden_states(model, batch, last, PrefixStart(block, states)),
            hidden_states(model, batch, last),
        )


def first_trained_block(model: PreTrainedModel) -> int:
    """The lowest block (0-based) with a parameter that requires a gradient; 0 as soon as one
    outside the blocks does.
    """
    layers = blocks(model)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    inside = [trained & {id(p) for p in block.parameters()} for block in layers]
    if trained - set().union(*inside):
        return 0
    return next((index for index, is_trained in enumerate(inside) if is_trained), 0)


def label_logits(model: PreTrainedModel, batch: Batch, start: PrefixStart | None = None) -> Tensor:
    """Logits (N, V), float32, of the N labelled positions in row-major order; the head runs nowhere
    else.
    """
    # the first use tries the model on texts of its own, which must not meet the prefix
    if can_pack(model):
        (logits, _), *_ = outputs_of(model, [batch], [start])
        assert logits is not None
        return logits
    with start_from_prefix(model, start):
        # a label is predicted from the position before it
        return logits_at(model, {"input_ids": batch.input_ids}, batch.places - 1)


def label_ids(batch: Batch) -> Tensor:
    """Token ids (N,) of the labelled positions, in the order of `label_logits`."""
    return batch.input_ids.flatten().index_select(0, batch.places)


def scatter_to_labels(values: Tensor, labelled: Tensor) -> Tensor:
    """Values (N,) of the labelled positions put back to their places (B, T); zero elsewhere.
    Differentiable.
    """
    return torch.zeros(labelled.shape, dtype=values.dtype, device=values.device).masked_scatter(
        labelled, values
    )


def token_nll(model: PreTrainedModel, batch: Batch) -> Tensor:
    """-log p(ids[t] | ids[<t]) at labelled positions, (B, T) float32 in nats, zero elsewhere."""
    values = functional.cross_entropy(
        label_logits(model, batch), label_ids(batch), reduction="none"
    )
    return scatter_to_labels(values, batch.labelled)


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The model's list of transformer blocks, whatever its family calls it."""
    depth = model.config.num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise LookupError(f"{type(model).__name__} has no ModuleList of {depth} blocks")


def hidden_states(
    model: PreTrainedModel, batch: Batch, layer: int, start: PrefixStart | None = None
) -> Tensor:
    """Output of block `layer` (0-based), (B, T, D); nothing above that block runs, and nothing
    below `start` (<= layer). What stands on padding is meaningless.
    """
    if can_pack(model):
        (_, hidden), *_ = outputs_of(model, [batch], [start], layer=layer, logits=False)
        assert hidden is not None
        return hidden
    with block_output(model, layer, ends=True) as caught, start_from_prefix(model, start):
        model.base_model(input_ids=batch.input_ids, use_cache=False)
    return caught[-1]


@contextmanager
def block_output(
    model: PreTrainedModel, layer: int | None, *, ends: bool
) -> Iterator[list[Tensor]]:
    """What block `layer` gives while the context is open; the pass ends there if `ends`. None: of
    no block.
    """
    caught: list[Tensor] = []

    def catch(
        _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]
    ) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)
        if ends:
            raise _BlockReached

    handle = None if layer is None else blocks(model)[layer].register_forward_hook(catch)
    try:
        yield caught
    except _BlockReached:
        pass
    finally:
        if handle is not None:
            handle.remove()


def can_pack(model: PreTrainedModel) -> bool:
    """Whether passes of the model are packed here and now; the first use tries it on texts of its
    own.
    """
    return not passes_are_padded() and abilities(model, blocks(model)[-1]).packs


def outputs_of(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    starts: Sequence[PrefixStart | None],
    *,
    layer: int | None = None,
    logits: bool = True,
) -> list[tuple[Tensor | None, Tensor | None]]:
    """One packed pass over several batches: of each its label logits (N, V) float32, if asked for,
    and the output (B, T, D) of block `layer`, zero on padding, if there is one.

    starts: where the pass begins, for each batch; all at one block or all None. Nothing above the
    block runs where no logits are asked for. The model must pack (`can_pack`).
    """
    layout = layout_of(batches, opening_of(model))
    final, hidden = _packed_pass(model, batches, layout, starts, layer=layer, logits=logits)
    of_block = [None] * len(batches) if hidden is None else layout.unpack(hidden)
    if final is None:
        return [(None, states) for states in of_block]
    sizes = [sum(batch.label_counts) for batch in batches]
    of_labels = final.logits_at(layout.predicting).split(sizes)
    return list(zip(of_labels, of_block, strict=True))


def _packed_pass(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    layout: Layout,
    starts: Sequence[PrefixStart | None],
    *,
    layer: int | None,
    logits: bool,
) -> tuple[FinalStates | None, Tensor | None]:
    """Final states of the row where logits are wanted, and the output (1, S, D) of block `layer`
    where there is one.
    """
    last, last_layer = blocks(model)[-1], len(blocks(model)) - 1
    trims = layout.trims and abilities(model, last).trims and logits and layer != last_layer
    prefixes = [start for start in starts if start is not None]
    start = (
        PrefixStart(prefixes[0].block, layout.pack([prefix.hidden for prefix in prefixes]))
        if prefixes
        else None
    )
    final: FinalStates | None = None
    with block_output(model, layer, ends=not logits) as caught, start_from_prefix(model, start):
        final = packed_states(model, batches, layout, last if trims else None)
    return final, caught[-1] if caught else None


def final_states_of(
    model: PreTrainedModel, batch: Batch, layer: int | None = None
) -> tuple[FinalStates, Tensor | None]:
    """States that the labels of a batch are predicted from (at `places - 1`), and the output (B, T,
    D) of block `layer` where there is one; what stands on padding is meaningless.
    """
    if not can_pack(model):
        with block_output(model, layer, ends=False) as caught:
            final = final_states(model, {"input_ids": batch.input_ids})
        # a pass that needs the whole model may run the blocks more than once
        return final, caught[-1] if caught else None
    layout = layout_of([batch], opening_of(model))
    packed, hidden = _packed_pass(model, [batch], layout, [None], layer=layer, logits=True)
    assert packed is not None
    of_block = None if hidden is None else layout.unpack(hidden)[0]
    return replace(packed, rows=layout.rows), of_block


def normed_states(model: PreTrainedModel, states: Tensor) -> Tensor:
    """What the model makes of the output (N, D) of a block on the way to its head, (N, D'): its
    final norm, with all that a family does there besides (OPT also projects).

    The states take the place of the last block's output for N texts of one token, and the blocks
    compute nothing.
    """
    layers, token = blocks(model), torch.zeros(1, 1, dtype=torch.long, device=states.device)
    caught: list[Tensor | tuple[Tensor, ...]] = []
    handle = layers[-1].register_forward_hook(lambda _m, _i, output: caught.append(output))
    try:
        model.base_model(input_ids=token, use_cache=False)
    finally:
        handle.remove()
    texts = states[:, None]
    # some families' blocks return the states alone, others a tuple that begins with them
    output = texts if isinstance(caught[0], torch.Tensor) else (texts, *caught[0][1:])
    with replaced_forwards(layers, lambda *_inputs, **_options: output):
        final: Tensor = model.base_model(
            input_ids=token.expand(len(states), 1), use_cache=False
        ).last_hidden_state
    return final[:, 0]


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients; the former mode comes back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class Scored:
    """What one forward pass says of one sequence: `token_nll` (n,) float32 in nats and `correct`
    (n,) bool (greedy choice = label), over its n labels, end-of-sequence included."""

    token_nll: Tensor
    correct: Tensor


def tokens_per_pass(model: PreTrainedModel) -> int:
    """Padded tokens of a batch that is only looked at: `TOKENS_PER_PASS`, on a processor no more
    than those whose logits take `LOGIT_BYTES`.
    """
    if model.device.type != "cpu":
        return TOKENS_PER_PASS
    n_words = model.config.get_text_config().vocab_size
    return max(1, min(TOKENS_PER_PASS, LOGIT_BYTES // (4 * n_words)))


def score(
    model: PreTrainedModel, sequences: Sequence[Encoded], tokens_per_batch: int | None = None
) -> list[Scored]:
    """Score every sequence, in the order given, in batches of similar length."""
    scored: dict[int, Scored] = {}
    with evaluating(model):
        for positions in by_length(sequences, tokens_per_batch or tokens_per_pass(model)):
            batch = collate([sequences[p] for p in positions]).to(model.device)
            scored |= zip(positions, _scored(label_logits(model, batch), batch), strict=True)
    return [scored[p] for p in range(len(sequences))]


def score_branches(model: PreTrainedModel, sequences: Sequence[Encoded]) -> list[Scored]:
    """`score` of texts of which many begin alike: what several of a batch begin with goes through
    the model once where `branching_logits` does so. Values equal those of `score` but for rounding,
    which depends on what else is in the batch.
    """
    scored: dict[int, Scored] = {}
    with evaluating(model):
        for positions in branching_batches(model, sequences):
            batch = collate([sequences[p] for p in positions]).to(model.device)
            scored |= zip(positions, _scored(branching_logits(model, batch), batch), strict=True)
    return [scored[p] for p in range(len(sequences))]


def branching_batches(model: PreTrainedModel, sequences: Sequence[Encoded]) -> Iterator[list[int]]:
    """Positions of the sequences in batches for `branching_logits`: those that begin alike are
    neighbours, or of similar length where each is read whole.
    """
    if not _shares_prefixes(model):
        return by_length(sequences, tokens_per_pass(model))
    return by_beginning(sequences, TOKENS_PER_PASS, tokens_per_pass(model))


def branching_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """`label_logits` (N, V) without gradient of texts of which many begin alike: what several of
    the batch begin with goes through the model once. Equal but for rounding, which depends on what
    else is in the batch. A model that does not pack reads each text whole, as does one on a GPU,
    whose kernel takes whole texts in one call.
    """
    if not _shares_prefixes(model):
        return label_logits(model, batch)
    layout = branching_layout(batch)
    return packed_states(model, [batch], layout).logits_at(layout.predicting)


def _shares_prefixes(model: PreTrainedModel) -> bool:
    return model.device.type == "cpu" and can_pack(model)


def _scored(logits: Tensor, batch: Batch) -> list[Scored]:
    """What logits (N, V) of a batch's labels say of each of its sequences."""
    labels, sizes = label_ids(batch), batch.labelled.sum(1).tolist()
    nll = functional.cross_entropy(logits, labels, reduction="none").cpu()
    correct = (logits.argmax(-1) == labels).cpu()
    return [Scored(n, c) for n, c in zip(nll.split(sizes), correct.split(sizes), strict=True)]
