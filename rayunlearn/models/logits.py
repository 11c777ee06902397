"""Logits at chosen positions, as the model's own forward pass gives them.

The head is the largest layer of a small model, and a loss or a metric needs its output at few
positions. So the blocks run first, and the model's last step runs on the chosen states alone: all
that its `forward` does after its blocks (the head, Gemma 2's soft cap, the scales of Cohere and
Granite), by the model's own code. That code is called with the blocks standing aside, so no family
needs a line here.

Whether this gives what `model.forward` gives is tried on a few tokens of every model that is
loaded (`can_split`). A family that differs runs through its whole `forward`; a log line says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from rayunlearn.errors import UserError
from rayunlearn.lazy import functional, nn, torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


_LOGGER = logging.getLogger(__name__)
# largest difference of a logit from the model's own
TOLERANCE = 1e-4
# tokens of the text that a model is tried on
TRIED_TOKENS = 4
# on a processor what its caches hold, on a GPU half a gigabyte
LOGITS_AT_ONCE = {"cpu": 2**20, "gpu": 2**27}

_CAN_SPLIT: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_SAID: set[str] = set()


class _TrunkOutput:
    """What the blocks hand to the rest of `forward`: the states, and nothing else there may be."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


@dataclass(frozen=True)
class FinalStates:
    """Output of a model's blocks and final norm for a batch, and the logits that follow from it.

    hidden (B, T, D). `whole` (B, T, V) are the logits of the whole forward pass where the model's
    last step cannot run by itself, None where it can. `rows` (B x T,), where the pass was a packed
    one and hidden is (1, S, D): for each place of the batch its token there.
    """

    model: PreTrainedModel
    hidden: Tensor
    whole: Tensor | None = None
    rows: Tensor | None = None

    def states_at(self, places: Tensor) -> Tensor:
        """States (N, D) at `places` (N,), positions of the batch laid out row by row."""
        chosen = places if self.rows is None else self.rows.index_select(0, places)
        return self.hidden.flatten(0, 1).index_select(0, chosen)

    def logits_at(self, places: Tensor) -> Tensor:
        """Logits (N, V), float32, at `places` (N,), positions of the batch laid out row by row."""
        if self.whole is not None:
            return self.whole.flatten(0, 1).index_select(0, places).float()
        return _last_step(self.model, self.states_at(places))


def final_states(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> FinalStates:
    """Run the blocks of `model` on `inputs` (`input_ids` (B, T), or `inputs_embeds` (B, T, D))."""
    if can_split(model):
        output = model.base_model(**inputs, use_cache=False)
        return FinalStates(model, output.last_hidden_state)
    caught: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, output: caught.append(output[0]))
        for module in _trunks(model)
    ]
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return FinalStates(model, caught[-1], logits)


def logits_at(model: PreTrainedModel, inputs: Mapping[str, Tensor], places: Tensor) -> Tensor:
    """Logits (N, V), float32, at `places` (N,), positions of the batch laid out row by row, equal
    to those of `model.forward`; the head runs nowhere else.
    """
    return final_states(model, inputs).logits_at(places)


def rows_at_once(model: PreTrainedModel) -> int:
    """Rows of logits that are best computed together: more would leave the processor's caches."""
    at_once = LOGITS_AT_ONCE["cpu" if model.device.type == "cpu" else "gpu"]
    return max(1, at_once // model.config.get_text_config().vocab_size)


def logits_of_states(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits (N, V), float32, that the model's last step makes of states (N, D) after its final
    norm. Raises UserError for a model whose last step cannot run by itself.
    """
    require_split(model, "logits of states that are not the model's own output")
    return _last_step(model, states)


def head_gradients_of_loss(model: PreTrainedModel, states: Tensor, labels: Tensor) -> Tensor:
    """Gradient (N, V), float32, of each label's NLL in the output of the head, before what the
    model does to it: softmax - one-hot for most, times the derivative of a cap or scale.

    states (N, D) after the final norm, labels (N,). Raises UserError as `logits_of_states`.
    """
    require_split(model, "gradients of the head")
    outputs: list[Tensor] = []

    def detach(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    handle = model.get_output_embeddings().register_forward_hook(detach)
    try:
        with torch.enable_grad():
            logits = _last_step(model, states)
            loss = functional.cross_entropy(logits, labels, reduction="sum")
    finally:
        handle.remove()
    return torch.autograd.grad(loss, outputs[0])[0].flatten(0, -2).float()


def require_split(model: PreTrainedModel, what: str) -> None:
    """Raise UserError where the model's last step cannot run by itself, which `what` needs."""
    if not can_split(model):
        raise UserError(
            f"{what} need a model whose last step can run by itself; that of"
            f" {type(model).__name__} gives other logits than its forward pass"
        )


def can_split(model: PreTrainedModel) -> bool:
    """Whether blocks and last step, one after the other, give the logits of `model.forward` within
    1e-4, tried once per model on four tokens; a model without numbers (meta device) is not tried.
    """
    if model not in _CAN_SPLIT:
        _CAN_SPLIT[model] = model.device.type == "meta" or _agrees(model)
        if not _CAN_SPLIT[model]:
            _say_once(type(model).__name__)
    return _CAN_SPLIT[model]


def _agrees(model: PreTrainedModel) -> bool:
    n_ids = model.config.get_text_config().vocab_size
    ids = (torch.arange(1, 1 + TRIED_TOKENS, device=model.device) % n_ids)[None]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            whole = model(input_ids=ids, use_cache=False).logits[0].float()
            split = _in_two_parts(model, ids)
    finally:
        model.train(was_training)
    return (
        split is not None
        and split.shape == whole.shape
        and torch.allclose(split, whole, rtol=0, atol=TOLERANCE, equal_nan=True)
    )


def _in_two_parts(model: PreTrainedModel, ids: Tensor) -> Tensor | None:
    """Logits (T, V) of ids (1, T), blocks and last step one after the other; None for a family
    whose `forward` is made so that this cannot be done.
    """
    try:
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        return _last_step(model, states)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return None


def _last_step(model: PreTrainedModel, states: Tensor) -> Tensor:
    """What `model.forward` does after its blocks, on states (N, D): logits (N, V) float32."""
    ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
    output = _TrunkOutput(states[None])
    with replaced_forwards(_trunks(model), lambda *_inputs, **_options: output):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    # not `logits[0]`, whose gradient would fill a tensor with zeros first
    return logits.squeeze(0).float()


@contextmanager
def replaced_forwards(modules: Iterable[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """The modules with `forward` instead of their own; hooks of theirs still run."""
    before = [(module, module.__dict__.get("forward")) for module in modules]
    for module, _ in before:
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module, original in before:
            module.__dict__.pop("forward")
            module.__dict__.update({} if original is None else {"forward": original})


def _trunks(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that a family's `forward` may call to run its blocks: the base model, or, where
    it reaches into that (OPT), the decoder inside.
    """
    decoder = model.get_decoder()
    return [model.base_model, *([decoder] if decoder is not model.base_model else [])]


def _say_once(name: str) -> None:
    if name not in _SAID:
        _SAID.add(name)
        _LOGGER.warning(
            "%s: the head run at chosen positions gives other logits than the model's forward"
            " pass, so every batch runs through the whole of it (slower, the same numbers)",
            name,
        )
