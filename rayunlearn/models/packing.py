"""Passes over sequences laid end to end in one row: no layer sees padding, and attention sees one
sequence at a time.

The row (1, S) goes through the library's own model. Positions count from 0 in every sequence, no
mask is made, and an attention function that is registered with transformers cuts queries,
keys and values where sequences end. So a sequence's values do not depend on what else is in the
row; where matrix products round a row alike whatever their number (on the CPUs tried: from 16 rows
on), they are the same bits.

Where logits are wanted, the last block computes keys and values everywhere, and all else at the
positions that predict a label alone.

Whether a family allows it is tried once per model against its own padded pass (`abilities`): its
attention must be a function of transformers' interface, and its positions must be given to it.
Others run in padded batches; a log line says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from rayunlearn.data.tokenize import Batch, Encoded, collate
from rayunlearn.lazy import nn, torch
from rayunlearn.models.fused_layers import drop_fused_forms, library_layers
from rayunlearn.models.logits import FinalStates, can_split, final_states, replaced_forwards
from rayunlearn.models.packed_attention import Attention, KeysKnown, attention_of
from rayunlearn.models.packed_layout import Layout, layout_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_LOGGER = logging.getLogger(__name__)
# largest difference of a logit from the padded pass's, as a share of the largest logit: float32
# sums of another order, or some roundings of a lower precision
FLOAT32_TOLERANCE = 1e-5
HALF_TOLERANCE = 0.05
# the same between fused layers and the library's: both round, and a deep model enlarges it (the
# padded logits of SmolLM2-135M in float32 are 1e-4 from those in double precision)
FUSED_LAYERS_TOLERANCE = 1e-4
LAYER_TYPES = {"full_attention", "sliding_attention"}
# lengths and first labels of the texts that a model is tried on, longer than toy models' windows
TRIED = ((11, 3), (6, 2), (6, 5), (14, 9))

_ABILITIES: WeakKeyDictionary[nn.Module, Abilities] = WeakKeyDictionary()
_SAID: set[str] = set()
_PADDED: ContextVar[bool] = ContextVar("padded", default=False)


@dataclass(frozen=True)
class Abilities:
    """What a model was found able to do: run packed rows, and its last block at labels alone."""

    packs: bool = False
    trims: bool = False


@contextmanager
def padded_passes() -> Iterator[None]:
    """Passes in here run in padded batches, for callers that follow modules row by row."""
    token = _PADDED.set(True)
    try:
        yield
    finally:
        _PADDED.reset(token)


def passes_are_padded() -> bool:
    """Whether passes run in padded batches, whatever the model is able to."""
    return _PADDED.get()


def packed_states(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    layout: Layout,
    last_block: nn.Module | None = None,
) -> FinalStates:
    """Run the blocks once over all batches; the final states (1, S, D) of the row.

    last_block: to run at the positions that predict a label alone; the states of others are then
    meaningless. None: every block runs everywhere.
    """
    attention = Attention(layout)
    with attention_of(model, attention), _at_labels_alone(last_block, attention):
        return FinalStates(model, _run(model, batches, layout))


def _run(model: PreTrainedModel, batches: Sequence[Batch], layout: Layout) -> Tensor:
    """Last hidden states (1, S, D) of the row."""
    hidden: Tensor = model.base_model(
        input_ids=layout.pack([batch.input_ids for batch in batches]),
        position_ids=layout.positions,
        use_cache=False,
    ).last_hidden_state
    return hidden


@contextmanager
def _at_labels_alone(block: nn.Module | None, attention: Attention) -> Iterator[None]:
    """The block running at the positions that predict a label; None: nothing changes."""
    if block is None:
        yield
        return
    with replaced_forwards([block], partial(_at_labels, block, block.forward, attention)):
        yield


def _at_labels(
    block: nn.Module,
    forward: Callable[..., Any],
    attention: Attention,
    *inputs: Any,
    **options: Any,
) -> Any:
    """The last block at the tokens that predict a label; zero elsewhere.

    Its first call ends once keys and values of all tokens are there; its second is given the
    wanted tokens alone and attends to those. Projections whose result a call does not use are
    left out; where a family projects all three at once, they run.
    """
    layout = attention.layout
    n_tokens = layout.positions.shape[1]
    with _without_projections(block, "q_proj"):
        attention.part = "keys"
        with suppress(KeysKnown):
            forward(*inputs, **options)
    with _without_projections(block, "k_proj", "v_proj"):
        attention.part = "queries"
        inputs = tuple(_at(value, layout.queries, n_tokens) for value in inputs)
        named = {name: _at(value, layout.queries, n_tokens) for name, value in options.items()}
        output = forward(*inputs, **named)
    attention.part, attention.held = "all", None
    states = output if isinstance(output, torch.Tensor) else output[0]
    whole = states.new_zeros(1, n_tokens, states.shape[-1]).index_copy(1, layout.queries, states)
    return whole if isinstance(output, torch.Tensor) else (whole, *output[1:])


def _at(value: Any, chosen: Tensor, n_tokens: int) -> Any:
    """The chosen tokens of a tensor (1, S, ...), or of each in a tuple; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(_at(part, chosen, n_tokens) for part in value)
    if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[1] == n_tokens:
        return value.index_select(1, chosen)
    return value


@contextmanager
def _without_projections(block: nn.Module, *names: str) -> Iterator[None]:
    """The block with its projections of these names giving zeros that take no memory."""
    modules = [m for name, m in block.named_modules() if name.rpartition(".")[2] in names]
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(replaced_forwards([module], partial(_zeros, module)))
        yield


def _zeros(module: nn.Module, states: Tensor) -> Tensor:
    size = module.out_features
    assert isinstance(size, int)
    return states.new_zeros(()).expand(*states.shape[:-1], size)


def abilities(model: PreTrainedModel, last_block: nn.Module) -> Abilities:
    """What the model can do, tried once on texts of its own against its padded pass; a model
    without numbers (meta device) can nothing.
    """
    if model not in _ABILITIES:
        is_outline = model.device.type == "meta"
        _ABILITIES[model] = Abilities() if is_outline else _tried(model, last_block)
        # a last step that cannot run by itself has been said already
        if not _ABILITIES[model].packs and not is_outline and can_split(model):
            _say_once(type(model).__name__)
    return _ABILITIES[model]


def _tried(model: PreTrainedModel, last_block: nn.Module) -> Abilities:
    if not can_split(model):
        return Abilities()
    n_ids = model.config.get_text_config().vocab_size
    texts = [
        Encoded(str(number), tuple((7 * number + t + 1) % n_ids for t in range(size)), start)
        for number, (size, start) in enumerate(TRIED)
    ]
    batch = collate(texts).to(model.device)
    tolerance = FLOAT32_TOLERANCE if model.dtype == torch.float32 else HALF_TOLERANCE
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            places = batch.places - 1
            padded = final_states(model, {"input_ids": batch.input_ids}).logits_at(places)
            with library_layers(model):
                packs, trims = (
                    _agrees(padded, _packed_logits(model, batch, block), tolerance)
                    for block in (None, last_block)
                )
            if packs and not _agrees(
                padded, _packed_logits(model, batch, None), max(tolerance, FUSED_LAYERS_TOLERANCE)
            ):
                drop_fused_forms(model)
    finally:
        model.train(was_training)
    return Abilities(packs, packs and trims)


def _packed_logits(
    model: PreTrainedModel, batch: Batch, last_block: nn.Module | None
) -> Tensor | None:
    """Logits of the batch's labels by a packed pass; None for a family that is made so that this
    cannot be done, or whose attention was not told the window that its config has.
    """
    layout = layout_of([batch])
    attention = Attention(layout)
    try:
        with attention_of(model, attention), _at_labels_alone(last_block, attention):
            hidden = _run(model, [batch], layout)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as problem:
        if isinstance(problem, torch.OutOfMemoryError):
            raise
        return None
    if not _windows_of(model) <= attention.windows:
        return None
    return FinalStates(model, hidden).logits_at(layout.predicting)


def _windows_of(model: PreTrainedModel) -> set[int | None]:
    """What attention must have been told: the config's window where a layer has one. A kind of
    layer that is not known is asked for as -1, which nothing gives.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if kinds - LAYER_TYPES:
        return {-1}
    slides = "sliding_attention" in kinds or not kinds
    return {window} if slides and isinstance(window, int) else set()


def _agrees(padded: Tensor, packed: Tensor | None, tolerance: float) -> bool:
    if packed is None or packed.shape != padded.shape:
        return False
    # weights may be finite and what follows from them not
    largest = float(padded.nan_to_num(0.0, 0.0, 0.0).abs().max()) * tolerance
    return torch.allclose(packed, padded, rtol=0, atol=largest, equal_nan=True)


def _say_once(name: str) -> None:
    if name not in _SAID:
        _SAID.add(name)
        _LOGGER.warning(
            "%s: sequences laid end to end give other logits than padded batches, so every pass is"
            " padded (slower, the same numbers)",
            name,
        )
