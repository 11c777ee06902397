"""Layers of a packed pass with their small parts fused (`models.fused_functions`).

On a processor a thin layer's time goes to its many calls more than to its products. RMSNorm, the
gated SiLU and rotary positions of families built as Llama is are therefore one function each, with
a gradient of its own. Linear modules are called as they are, so that hooks, adapters and weights in
four bits work on.

Whether a module computes what the fused form does is tried once, number by number, against its
`forward`. Every other module runs as it is, and so do all of them on other devices, in other
precisions than float32 and under an autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from rayunlearn.lazy import nn, torch, transformers
from rayunlearn.models.fused_functions import gated_silu, rms_norm, rotate
from rayunlearn.models.logits import replaced_forwards

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Forward = Callable[..., Any]
# tokens that a module is tried on, and the largest difference as a share of the largest number
FUSED_TRIED_TOKENS = 5
LAYER_TOLERANCE = 1e-5
TRIED_ATTENTION = "rayunlearn_tried"
# names of the modules inside a gated layer and inside an attention
GATED_PARTS = {"act_fn", "down_proj", "gate_proj", "up_proj"}
ATTENTION_PARTS = {"k_proj", "o_proj", "q_proj", "v_proj"}

# what attention layers that are being tried said to the attention function
_OPTIONS: dict[nn.Module, dict[str, Any]] = {}
_FUSED: WeakKeyDictionary[nn.Module, list[tuple[nn.Module, Forward]]] = WeakKeyDictionary()


@contextmanager
def fused_layers(model: PreTrainedModel) -> Iterator[None]:
    """The model with the fused form of every module that has one, on a processor in float32."""
    if not is_float32_on_cpu(model):
        yield
        return
    try_fused_forms(model)
    with ExitStack() as stack:
        for module, forward in _FUSED[model]:
            # not where something else runs in place of its own forward already
            if "forward" not in module.__dict__:
                stack.enter_context(replaced_forwards([module], forward))
        yield


@contextmanager
def library_layers(model: PreTrainedModel) -> Iterator[None]:
    """The model with the library's own layers in packed passes too."""
    forms = _FUSED.pop(model, None)
    _FUSED[model] = []
    try:
        yield
    finally:
        del _FUSED[model]
        if forms is not None:
            _FUSED[model] = forms


def drop_fused_forms(model: PreTrainedModel) -> None:
    """From now on packed passes of the model run the library's own layers."""
    _FUSED[model] = []


def try_fused_forms(model: PreTrainedModel) -> None:
    """Try which modules have a fused form, once per model. Passes do so at their first use; where
    weights will be divided over processes, call it before, as a module cannot be tried then.
    """
    if model not in _FUSED and is_float32_on_cpu(model):
        with torch.no_grad():
            _FUSED[model] = _fused_forwards(model)


def is_float32_on_cpu(values: PreTrainedModel | Tensor) -> bool:
    """Whether a model or a tensor is in float32 on a processor, outside an autocast."""
    is_float32 = values.dtype == torch.float32
    return is_float32 and values.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _fused_forwards(model: PreTrainedModel) -> list[tuple[nn.Module, Forward]]:
    """The modules that have a fused form, each with it."""
    transformers.AttentionInterface.register(TRIED_ATTENTION, _summing_attention)
    config, before = model.config, model.config._attn_implementation
    config._attn_implementation = TRIED_ATTENTION
    try:
        forms = [(module, _fused_form(module)) for module in model.modules()]
    finally:
        config._attn_implementation = before
    return [(module, form) for module, form in forms if form is not None]


def _fused_form(module: nn.Module) -> Forward | None:
    """The fused form of a module, where it has one that computes what the module does."""
    try:
        form, inputs = _candidate(module)
        return form if _agree(form(*inputs), module.forward(*inputs)) else None
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as problem:
        if isinstance(problem, torch.OutOfMemoryError):
            raise
        return None


def _candidate(module: Any) -> tuple[Forward, tuple[Any, ...]]:
    """The fused form that a module may have, and inputs to try it on. Raises TypeError for a
    module of another kind.
    """
    parts = {name for name, _ in module.named_children()}
    if type(module).__name__.endswith("RMSNorm"):
        # families call it either
        epsilon = getattr(module, "variance_epsilon", None) or module.eps
        form = partial(_norm_layer, module, module.forward, epsilon)
        return form, (_numbers(len(module.weight)),)
    if parts == GATED_PARTS:
        form = partial(_gated_layer, module, module.forward)
        return form, (_numbers(module.gate_proj.in_features),)
    if parts == ATTENTION_PARTS and not module.attention_dropout:
        inputs = _numbers(module.q_proj.in_features), _angles(module.head_dim), None
        module.forward(*inputs)
        form = partial(_attention_layer, module, module.forward, _OPTIONS.pop(module))
        return form, inputs
    raise TypeError(f"no fused form of {type(module).__name__}")


def _numbers(size: int) -> Tensor:
    """Normal numbers (1, FUSED_TRIED_TOKENS, size), always the same."""
    return torch.randn(1, FUSED_TRIED_TOKENS, size, generator=torch.Generator().manual_seed(0))


def _angles(size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (1, FUSED_TRIED_TOKENS, size) of angles, those of the first half again
    in the second.
    """
    angles = _numbers(size // 2).repeat(1, 1, 2)
    return angles.cos(), angles.sin()


def _agree(fused: Any, own: Any) -> bool:
    """Whether two outputs are equal to rounding: two tensors, or two tuples that begin with one."""
    fused, own = (output[0] if isinstance(output, tuple) else output for output in (fused, own))
    most = LAYER_TOLERANCE * float(own.abs().max())
    return fused.shape == own.shape and torch.allclose(fused, own, rtol=0, atol=most)


def _summing_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """A sum instead of attention, in which query, key and value count by factors of their own:
    (1, S, H, D). What else the layer says is in `_OPTIONS` then.
    """
    _OPTIONS[module] = options
    repeated = query.shape[1] // key.shape[1]
    total = (
        query + 2 * key.repeat_interleave(repeated, 1) + 3 * value.repeat_interleave(repeated, 1)
    )
    return total.transpose(1, 2), None


def _norm_layer(module: Any, forward: Forward, epsilon: float, hidden_states: Tensor) -> Any:
    if is_float32_on_cpu(hidden_states) and is_float32_on_cpu(module.weight):
        return rms_norm(hidden_states, module.weight, epsilon)
    return forward(hidden_states)


def _gated_layer(module: Any, forward: Forward, states: Tensor) -> Any:
    if is_float32_on_cpu(states):
        gated = gated_silu(module.gate_proj(states), module.up_proj(states))
        return module.down_proj(gated)
    return forward(states)


def _attention_layer(
    module: Any,
    forward: Forward,
    fixed: dict[str, Any],
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as Llama's: `fixed` is what the layer says to the attention function."""
    if not is_float32_on_cpu(hidden_states) or options.pop("past_key_values", None) is not None:
        return forward(hidden_states, position_embeddings, attention_mask, **options)
    query, key, value = (
        projection(hidden_states).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    attend = transformers.AttentionInterface()[module.config._attn_implementation]
    query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
    attended, shares = attend(module, query, key, value, attention_mask, **{**options, **fixed})
    return module.o_proj(attended.flatten(2)), shares
