"""The weight matrices of a model's blocks, whatever a family keeps them in.

Most families have `nn.Linear`; GPT-2 has `Conv1D`, whose matrix lies on its side; mixtures of
experts have one tensor for all experts. What works on matrices (rounding, pruning, noise, GPTQ,
AWQ) asks here, so that it reaches all of them, and a model in which it reaches few is distinguished
from one that withstands it. No matrix: biases, norms, kernels of convolutions, the decay rates of
state-space models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rayunlearn.errors import require
from rayunlearn.lazy import functional, nn, torch, transformers
from rayunlearn.models.forward import blocks

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


# of the weights in the blocks' tensors of two or more dimensions: under this share what works on
# weight matrices has not been tried on the model
LEAST_TOUCHED = 0.8


@dataclass(frozen=True)
class WeightMatrix:
    """One matrix: the parameter that it is or lies in, and which expert's it is.

    `weight` (out, in) is a view: what is written to it is written to the model.
    """

    parameter: nn.Parameter
    expert: int | None
    is_transposed: bool

    @property
    def weight(self) -> Tensor:
        # unlike `.data` it shares the counter of writes, by which `share_touched` sees a value that
        # was written and is the same
        whole = self.parameter.detach()
        data = whole if self.expert is None else whole[self.expert]
        return data.T if self.is_transposed else data

    @property
    def key(self) -> tuple[int, int]:
        """What a call that multiplies with the matrix is known by: its tensor and its place."""
        size = self.parameter[0].numel() if self.expert is not None else 0
        return id(self.parameter), (self.expert or 0) * size


def block_matrices(block: nn.Module) -> list[WeightMatrix]:
    """The matrices of one block, those of experts one by one, in the order of its modules."""
    by_parameter: dict[int, list[WeightMatrix]] = {}
    for module in block.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in by_parameter:
                by_parameter[id(parameter)] = _matrices_in(module, name, parameter)
    return [matrix for matrices in by_parameter.values() for matrix in matrices]


def model_matrices(model: PreTrainedModel) -> list[WeightMatrix]:
    """The matrices of all blocks."""
    return [matrix for block in blocks(model) for matrix in block_matrices(block)]


def is_conv1d(module: nn.Module) -> bool:
    """Whether the module is GPT-2's linear map, whose weight is (in, out)."""
    return isinstance(module, transformers.pytorch_utils.Conv1D)


def _matrices_in(module: nn.Module, name: str, parameter: nn.Parameter) -> list[WeightMatrix]:
    if parameter.dim() == 2 and name == "weight" and not isinstance(module, nn.Embedding):
        return [WeightMatrix(parameter, None, is_conv1d(module))]
    if parameter.dim() == 3 and getattr(module, "num_experts", None) == len(parameter):
        # experts of GPT-OSS and its kind lie on their side
        is_transposed = bool(getattr(module, "is_transposed", False))
        return [WeightMatrix(parameter, index, is_transposed) for index in range(len(parameter))]
    return []


@dataclass(frozen=True)
class TensorState:
    """What tells whether a tensor was written to: its size, how often it was written to in place,
    and a number that changes when its values do (a sum over bit patterns, each weighted with its
    place).
    """

    size: int
    n_writes: int
    fingerprint: int


def tensor_states(model: PreTrainedModel) -> dict[str, TensorState]:
    """The state of every tensor of two or more dimensions in the blocks."""
    return {
        f"{number}.{name}": TensorState(
            parameter.numel(), parameter._version, _fingerprint(parameter.data)
        )
        for number, block in enumerate(blocks(model))
        for name, parameter in block.named_parameters()
        if parameter.dim() > 1
    }


def _fingerprint(data: Tensor) -> int:
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = data.contiguous().flatten().view(kinds[data.element_size()]).long()
    places = torch.arange(len(bits), device=bits.device) % 8191 + 1
    return int((bits * places).sum())


def share_touched(before: Mapping[str, TensorState], after: Mapping[str, TensorState]) -> float:
    """Share of the weights that are in a tensor which was written to, in [0, 1].

    Also where every value stayed what it was: an attack of strength 0, or a rounding to the levels
    that the weights have already, has reached them. Ours.
    """
    total = sum(state.size for state in before.values())
    touched = sum(state.size for name, state in before.items() if after[name] != state)
    return touched / max(1, total)


def require_touched(share: float, what: str) -> None:
    """Raise UserError where `what` has reached less than `LEAST_TOUCHED` of the weights."""
    require(
        share >= LEAST_TOUCHED,
        f"{what} must reach {LEAST_TOUCHED:.0%} of the weights in the blocks' matrices (this family"
        " keeps them in tensors that it does not know), reached",
        f"{share:.0%}",
    )


def collect_inputs(
    run: Callable[[], object],
    matrices: Sequence[WeightMatrix],
    add: Callable[[int, Tensor], None],
) -> None:
    """Call `run()`, and for every multiplication with one of `matrices` `add(index, x)` with what
    it is multiplied with, x (n, in).
    """
    index_of = {matrix.key: index for index, matrix in enumerate(matrices)}

    # defined here, because a class at the top would load torch with this file
    class Watching(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self,
            function: Callable[..., Any],
            types: Sequence[type],
            args: Sequence[Any] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:
            for x, weight in _products(function, args):
                index = index_of.get(_key_of(weight))
                if index is not None:
                    add(index, x.reshape(-1, x.shape[-1]))
            return function(*args, **(kwargs or {}))

    with Watching():
        run()


@contextmanager
def experts_one_by_one(model: PreTrainedModel) -> Iterator[None]:
    """The model with each expert computed by a multiplication of its own, as `collect_inputs` has
    to see it, instead of one kernel for all.
    """
    config = model.config.get_text_config()
    before = config._experts_implementation
    config._experts_implementation = "eager"
    try:
        yield
    finally:
        config._experts_implementation = before


def _products(function: Callable[..., Any], args: Sequence[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """The input and the weight, where the function is one that families multiply with."""
    if function is functional.linear:
        yield args[0], args[1]
    elif function is torch.addmm:
        yield args[1], args[2]


def _key_of(weight: Tensor) -> tuple[int, int]:
    base = weight._base if weight._base is not None else weight
    return id(base), int(weight.storage_offset() - base.storage_offset())
