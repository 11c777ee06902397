"""Forward passes that compute what a loss or a metric asks for, and nothing else.

Right padding and causal attention: a position never sees what comes after it, so no attention mask
is needed and padding cannot change a label's value (tested against unpadded rows).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rayunlearn.data.tokenize import Batch, Encoded, by_length, collate
from rayunlearn.lazy import functional, nn, torch
from rayunlearn.models.logits import can_split, logits_at, replaced_forwards

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
    # the first use tries the model on a text of its own, which must not meet the prefix
    can_split(model)
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
    below `start` (<= layer).
    """
    caught: list[Tensor] = []

    def stop(
        _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]
    ) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)
        raise _BlockReached

    handle = blocks(model)[layer].register_forward_hook(stop)
    try:
        with start_from_prefix(model, start):
            model.base_model(input_ids=batch.input_ids, use_cache=False)
    except _BlockReached:
        pass
    finally:
        handle.remove()
    return caught[0]


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
            logits, labels = label_logits(model, batch), label_ids(batch)
            nll = functional.cross_entropy(logits, labels, reduction="none").cpu()
            correct = (logits.argmax(-1) == labels).cpu()
            sizes = batch.labelled.sum(1).tolist()
            for position, n, c in zip(
                positions, nll.split(sizes), correct.split(sizes), strict=True
            ):
                scored[position] = Scored(n, c)
    return [scored[p] for p in range(len(sequences))]
