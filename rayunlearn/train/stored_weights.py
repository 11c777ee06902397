"""How weights are stored while a model trains: float32, bfloat16 with or without float32 copies of
what is trained, or frozen in four bits under an adapter.

Before and after training all weights are float32: untrained ones are then what they were before,
and trained ones what training made of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from rayunlearn.errors import UserError
from rayunlearn.lazy import nn, torch
from rayunlearn.models.forward import blocks
from rayunlearn.models.logits import replaced_forwards
from rayunlearn.models.nf4 import NF4_BLOCK
from rayunlearn.train.device import FLOAT32

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

NF4 = "nf4"
# of the blocks' weights that four bits must reach
LEAST_REACHED = 0.5
# of a weight in NF4, and of its share of its block's scale in float32
NF4_BYTES = 0.5 + 4 / NF4_BLOCK

_STORED: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


class MasterWeights:
    """Float32 copies of trained parameters that are stored in bfloat16. The optimizer updates the
    copies; after each step the parameters are the copies rounded.

    What else changes a parameter (a wrapper, weights that are put back) counts: a copy whose
    rounding is not the parameter becomes the parameter.
    """

    def __init__(self, parameters: Sequence[nn.Parameter] = ()) -> None:
        self._copies = {p: nn.Parameter(p.detach().float().clone()) for p in parameters}

    def trained_by(self, optimizer: Optimizer) -> None:
        """Let every step of an optimizer, built from `copy_of` the parameters, update these."""
        if self._copies:
            optimizer.register_step_pre_hook(lambda *_step: self._take_gradients())
            optimizer.register_step_post_hook(lambda *_step: self._round())

    def copy_of(self, parameter: nn.Parameter) -> nn.Parameter:
        """What the optimizer updates: the copy, or the parameter itself where there is none."""
        return self._copies.get(parameter, parameter)

    def value_of(self, parameter: nn.Parameter) -> Tensor:
        """The parameter in float32, as exactly as it is known."""
        rounded = parameter.detach()
        if parameter not in self._copies:
            return rounded.float()
        exact = self._copies[parameter].detach()
        return torch.where(exact.to(rounded.dtype) == rounded, exact, rounded.float())

    def state(self) -> dict[str, Tensor]:
        """The copies, for a checkpoint."""
        return {f"copy.{number}": copy for number, copy in enumerate(self._copies.values())}

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Go on with these copies."""
        with torch.no_grad():
            for number, copy in enumerate(self._copies.values()):
                copy.copy_(state[f"copy.{number}"])

    def _take_gradients(self) -> None:
        for parameter, copy in self._copies.items():
            copy.data = self.value_of(parameter)
            copy.grad = None if parameter.grad is None else parameter.grad.float()

    def _round(self) -> None:
        with torch.no_grad():
            for parameter, copy in self._copies.items():
                parameter.copy_(copy)
                parameter.grad = None


def stored_as(model: nn.Module) -> str:
    """How the model's weights are stored now: float32, bfloat16 or nf4."""
    return _STORED.get(model, FLOAT32)


@contextmanager
def stored_weights(
    model: PreTrainedModel,
    storage: str,
    originals: Mapping[str, Tensor],
    *,
    adapted: bool,
    master: bool = False,
) -> Iterator[MasterWeights]:
    """The model with its weights stored in `storage` (float32, bfloat16, nf4); gives the float32
    copies of what is trained, none unless `master`.

    storage nf4: the matrices of the blocks in four bits, computed with in the type of what they are
    given; all else in bfloat16. originals: every weight in float32, by its name without an adapter.
    adapted: what is trained are adapters, which stay float32. Raises UserError where four bits
    reach less than half of the blocks' weights.
    """
    if storage == FLOAT32:
        yield MasterWeights()
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    masters = MasterWeights(trained if master and not adapted else ())
    lowered = {
        name: p
        for name, p in model.named_parameters()
        if p.is_floating_point() and not (adapted and p.requires_grad)
    }
    with ExitStack() as stack:
        stack.callback(_raise_weights, lowered, originals, masters)
        if storage == NF4:
            stack.enter_context(_in_four_bits(model))
        for parameter in lowered.values():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.bfloat16)
        _STORED[model] = storage
        stack.callback(_STORED.pop, model)
        yield masters


def _raise_weights(
    lowered: Mapping[str, nn.Parameter], originals: Mapping[str, Tensor], masters: MasterWeights
) -> None:
    """Float32 again: what was trained as it is, all else as it was before."""
    for name, parameter in lowered.items():
        if parameter.requires_grad:
            parameter.data = masters.value_of(parameter)
        else:
            original = originals[name.replace(".base_layer.", ".")]
            parameter.data = original.to(parameter.device, copy=True)


@contextmanager
def _in_four_bits(model: PreTrainedModel) -> Iterator[None]:
    """The frozen linear modules of the blocks with weights in NF4."""
    from rayunlearn.train.four_bits import NormalFloatWeight

    modules = frozen_matrices(model)
    _require_most(model, modules)
    with ExitStack() as stack:
        for module in modules:
            weight = NormalFloatWeight(module.weight.detach())
            module.weight.data = weight.packed
            forward = partial(weight.applied, module.bias)
            stack.enter_context(replaced_forwards([module], forward))
        yield


def frozen_matrices(model: PreTrainedModel) -> list[nn.Linear]:
    """The linear modules of the blocks whose weight is not trained."""
    return [
        module
        for module in blocks(model).modules()
        if isinstance(module, nn.Linear) and not module.weight.requires_grad
    ]


def _require_most(model: PreTrainedModel, modules: Sequence[nn.Linear]) -> None:
    reached = sum(module.weight.numel() for module in modules)
    frozen = sum(p.numel() for p in blocks(model).parameters() if not p.requires_grad)
    if reached < LEAST_REACHED * frozen:
        raise UserError(
            f"train.weights nf4 must reach {LEAST_REACHED:.0%} of the frozen weights of the"
            f" blocks; {type(model).__name__} keeps the others in tensors that are no linear"
            f" modules; got {reached / max(1, frozen):.0%}"
        )
