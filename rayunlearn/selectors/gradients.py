"""Per-document gradients without a backward pass per document.

Documents of a batch do not see each other, so the gradient of the sum of their losses reaches every
module row by row. From a module's inputs and output gradients the norm of each document's own
weight gradient follows exactly (Goodfellow
1510.01799; "ghost norm" of Li et al. 2110.05679), tied embeddings included. The slope of every
document's loss along one direction comes from one forward-mode pass.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayunlearn.data.tokenize import Batch, Encoded, by_length, collate
from rayunlearn.lazy import nn, torch
from rayunlearn.models.logits import can_split
from rayunlearn.models.packing import padded_passes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


_LOGGER = logging.getLogger(__name__)
_SAID: set[str] = set()


@dataclass(frozen=True)
class ModuleUse:
    """One use of a module in a forward pass, (G, T, ...): its input, and the gradient of its
    output, G documents.
    """

    module: nn.Module
    input: Tensor
    grad: Tensor


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: its input, where it is the one argument, its output, and what an
    embedding is multiplied with.
    """

    module: nn.Module
    input: Tensor | None
    output: Tensor
    scale: float = 1.0


def gradient_norms(
    model: PreTrainedModel, terms: Sequence[tuple[Batch, Callable[[], Tensor]]]
) -> Tensor:
    """L2 norm of the gradient of the i-th summed loss with respect to all trainable parameters,
    (G,).

    Each term is a batch of G rows and a function that runs `model` over it (the head on its
    labelled positions, as in `models.forward`) and returns G losses, the i-th a function of row i
    alone. With two terms the i-th loss is the sum of both terms' i-th. Exact, up to rounding, for
    every family: one whose parameters do not all sit in modules that are followed row by row
    (matrices of several experts, convolutions) has a backward pass per document, and a log line
    says so. No `.grad` is touched.
    """
    losses, calls = _run_terms(model, terms)
    norms = _norms_by_row(model, losses, calls)
    if norms is None:
        return torch.stack([_length(g) for g in _gradients_one_by_one(model, losses)])
    return norms


def _norms_by_row(
    model: PreTrainedModel, losses: Tensor, calls: Sequence[tuple[Batch, ModuleCall]]
) -> Tensor | None:
    """The norms (G,) from one backward pass; None where a parameter is not followed row by row."""
    uses = _uses_by_row(model, calls, losses)
    if uses is None:
        return None
    with torch.no_grad():
        weights, dense = _linear_and_dense(_by_parameter(uses))
        squares = [_square_of_weight(places) for places in weights]
        squares += [_square_of_small(places) for places in dense]
        return torch.stack(squares).sum(0).clamp_min(0).sqrt()


def _run_terms(
    model: PreTrainedModel, terms: Sequence[tuple[Batch, Callable[[], Tensor]]]
) -> tuple[Tensor, list[tuple[Batch, ModuleCall]]]:
    """Each document's loss (G,), over all terms together, and the calls of modules behind it."""
    # the first use tries the model on a text of its own, which must not be among the calls
    can_split(model)
    calls: list[tuple[Batch, ModuleCall]] = []
    total: list[Tensor] = []
    for batch, losses in terms:
        # modules are followed document by document: each must have a row of its own
        with padded_passes(), capture_module_io(model) as module_uses, torch.enable_grad():
            total.append(losses())
        calls += [(batch, call) for call in module_uses if call.output.requires_grad]
    return torch.stack(total).sum(0), calls


def _uses_by_row(
    model: PreTrainedModel, calls: Sequence[tuple[Batch, ModuleCall]], losses: Tensor
) -> list[ModuleUse] | None:
    """Every use of a trained parameter with the gradient of `losses` (G,) in its output, row by
    row; None where a parameter is used in a way that is not followed.
    """
    followed = {id(p) for batch, call in calls if _is_followed(call, batch) for p in _own(call)}
    odd = {id(p) for batch, call in calls if not _is_followed(call, batch) for p in _own(call)}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # of a module that was not called: unused, as blocks above the loss are, or used by another one
    rest = {name: p for name, p in trained.items() if id(p) not in followed | odd}
    grads = torch.autograd.grad(
        losses.sum(),
        [*(call.output for _, call in calls), *rest.values()],
        allow_unused=True,
        retain_graph=True,
    )
    of_rest = zip(rest, grads[len(calls) :], strict=True)
    missed = [name for name, p in trained.items() if id(p) in odd]
    missed += [name for name, grad in of_rest if grad is not None]
    if missed:
        _say_once(type(model).__name__, missed[0])
        return None
    return [
        ModuleUse(
            call.module, _by_row(call, call.input, batch), _by_row(call, grad * call.scale, batch)
        )
        for (batch, call), grad in zip(calls, grads, strict=False)
        if grad is not None and call.input is not None
    ]


def _gradients_one_by_one(model: PreTrainedModel, losses: Tensor) -> Iterator[dict[str, Tensor]]:
    """The gradient of each loss of (G,) by trained parameter, a backward pass for each."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for loss in losses:
        grads = torch.autograd.grad(
            loss, list(trained.values()), allow_unused=True, retain_graph=True
        )
        yield {name: grad for name, grad in zip(trained, grads, strict=True) if grad is not None}


def _length(gradient: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([g.float().square().sum() for g in gradient.values()]).sum().sqrt()


def _say_once(family: str, what: str) -> None:
    if family not in _SAID:
        _SAID.add(family)
        _LOGGER.warning(
            "%s: gradients of single documents take a backward pass each (not followed row by row:"
            " %s)",
            family,
            what,
        )


def cosines_with(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    retain_sequences: Sequence[Encoded],
    token_loss: Callable[[PreTrainedModel, Batch], Tensor],
    tokens_per_batch: int = 4096,
) -> Tensor:
    """Cosine of each sequence's gradient of its mean token loss with the mean such gradient of
    `others`, (n,) on the CPU.

    token_loss(model, batch) is (B, T), zero where not labelled. Costs one backward pass over
    `others` and one of each kind, backward and forward-mode, over `sequences`.
    """

    def losses(batch: Batch) -> Callable[[], Tensor]:
        return lambda: token_loss(model, batch).sum(1) / batch.labelled.sum(1)

    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    direction = {name: torch.zeros_like(p) for name, p in named.items()}
    for batch, _ in _batches(retain_sequences, model.device, tokens_per_batch):
        for name, grad in zip(
            named,
            torch.autograd.grad(losses(batch)().sum(), list(named.values()), allow_unused=True),
            strict=True,
        ):
            direction[name] += 0 if grad is None else grad / len(retain_sequences)
    length = (
        torch.stack([d.double().square().sum() for d in direction.values()]).sum().sqrt().float()
    )
    cosines = torch.zeros(len(sequences))
    for batch, positions in _batches(sequences, model.device, tokens_per_batch):
        norms, slopes = _norms_and_slopes(model, batch, losses(batch), direction)
        cosines[positions] = (slopes / (norms * length).clamp_min(1e-12)).cpu()
    return cosines


def _norms_and_slopes(
    model: PreTrainedModel,
    batch: Batch,
    losses: Callable[[], Tensor],
    direction: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Norm of each document's gradient and its inner product with `direction`, (G,) each."""
    total, calls = _run_terms(model, [(batch, losses)])
    by_row = _norms_by_row(model, total, calls)
    slopes = None if by_row is None else _slopes_in_one_pass(model, losses, direction)
    if by_row is not None and slopes is not None:
        return by_row, slopes
    pairs = [
        (_length(grads), torch.stack([(g * direction[n]).sum() for n, g in grads.items()]).sum())
        for grads in _gradients_one_by_one(model, total)
    ]
    norms, products = zip(*pairs, strict=True)
    return torch.stack(norms), torch.stack(products)


def _slopes_in_one_pass(
    model: PreTrainedModel, losses: Callable[[], Tensor], direction: Mapping[str, Tensor]
) -> Tensor | None:
    """`gradient_slopes`, or None for a family that computes with a function of its own without a
    forward-mode derivative (Bloom).
    """
    try:
        return gradient_slopes(model, losses, direction)
    except torch.OutOfMemoryError:
        raise
    # torch has no narrower class for it
    except RuntimeError as problem:
        if "setup_context" not in str(problem) and "forward" not in str(problem):
            raise
    _say_once(type(model).__name__, "a function without a forward-mode derivative")
    return None


def _batches(
    sequences: Sequence[Encoded], device: torch.device, tokens_per_batch: int
) -> Iterator[tuple[Batch, list[int]]]:
    for positions in by_length(sequences, tokens_per_batch):
        yield collate([sequences[p] for p in positions]).to(device), positions


def gradient_slopes(
    model: PreTrainedModel, losses: Callable[[], Tensor], direction: Mapping[str, Tensor]
) -> Tensor:
    """<gradient of loss i, direction> for every loss in `losses()`, (G,): one forward-mode pass for
    all of them.

    direction: tensors by parameter name; parameters it does not name do not move. Attention runs in
    its plain form, the only one with forward-mode derivatives.
    """
    runner = _runner(model, losses)
    index = {
        f"model.{name}": parameter.detach()
        for name, parameter in model.named_parameters()
        if name in direction
    }
    along = {f"model.{name}": direction[name].to(index[f"model.{name}"]) for name in direction}
    with (
        padded_passes(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        warnings.catch_warnings(),
    ):
        # torch's own, at its first jvp
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        slope: Tensor = torch.func.jvp(
            lambda values: torch.func.functional_call(runner, values, ()), (index,), (along,)
        )[1]
    return slope.detach()


def _runner(model: PreTrainedModel, losses: Callable[[], Tensor]) -> nn.Module:
    """A closure over `model` in the form of a module, so that its parameters can be replaced for
    one call.
    """

    # defined here, because a class at the top would load torch with this file
    class Runner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return losses()

    return Runner()


@contextmanager
def capture_module_io(model: nn.Module) -> Iterator[list[ModuleCall]]:
    """Every call of a module that has parameters of its own, while the context is open."""
    calls: list[ModuleCall] = []

    def note(
        module: nn.Module, inputs: tuple[object, ...], named: dict[str, object], output: object
    ) -> None:
        first = inputs[0] if len(inputs) == 1 and not named else None
        given = first.detach() if isinstance(first, torch.Tensor) else None
        # of a module with several outputs, one that says whether gradients reach it
        main = output[0] if isinstance(output, tuple) else output
        if isinstance(main, torch.Tensor):
            whole = given if main is output else None
            calls.append(ModuleCall(module, whole, main, _scale_of(module, whole, main)))

    handles = [
        m.register_forward_hook(note, with_kwargs=True)
        for m in model.modules()
        if next(m.parameters(recurse=False), None) is not None
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _scale_of(module: nn.Module, ids: Tensor | None, output: Tensor) -> float:
    """What a family multiplies its embeddings with (Gemma: the square root of their width); 1 for
    every other module, nan for an embedding that is no such multiple.
    """
    if not isinstance(module, nn.Embedding) or type(module) is nn.Embedding:
        return 1.0
    if ids is None or ids.is_floating_point():
        return math.nan
    with torch.no_grad():
        # the class's own forward: what the embedding is without the family's change
        plain = nn.Embedding.forward(module, ids).float()
        scale = float((output.float() * plain).sum() / plain.square().sum())
        rounding = 4 * torch.finfo(output.dtype).eps
        is_multiple = torch.allclose(output.float(), scale * plain, rtol=rounding, atol=1e-6)
    return scale if is_multiple else math.nan


def _own(call: ModuleCall) -> list[nn.Parameter]:
    return list(call.module.parameters(recurse=False))


def _is_followed(call: ModuleCall, batch: Batch) -> bool:
    """Whether each document's gradient of the module's parameters follows from this call: a linear
    map, an embedding, or vectors applied at every position of the one input.
    """
    if call.input is None or math.isnan(call.scale):
        return False
    rows, outputs = call.input.shape[:2], call.output.shape[:2]
    if all(parameter.dim() == 1 for parameter in _own(call)):
        return rows[0] == outputs[0] == len(batch.input_ids)
    fits = rows == outputs and (rows == batch.labelled.shape or _is_at_labels(call, batch))
    return fits and isinstance(call.module, (nn.Linear, nn.Embedding))


def _is_at_labels(call: ModuleCall, batch: Batch) -> bool:
    """Whether it is the head's, which is given the N labelled positions alone, as one row."""
    return isinstance(call.module, nn.Linear) and call.output.shape[:2] == (1, len(batch.places))


def _by_row(call: ModuleCall, values: Tensor, batch: Batch) -> Tensor:
    """Values (B, T, ...) as they are; the head's (1, N, ...) put back to the positions they stand
    for, zero elsewhere.
    """
    if not _is_at_labels(call, batch):
        return values
    padded = torch.zeros(
        *batch.labelled.shape, *values.shape[2:], dtype=values.dtype, device=values.device
    )
    padded[:, :-1][batch.labelled[:, 1:]] = values.flatten(0, 1)
    return padded


def _by_parameter(uses: list[ModuleUse]) -> dict[nn.Parameter, list[tuple[ModuleUse, str]]]:
    places: dict[nn.Parameter, list[tuple[ModuleUse, str]]] = defaultdict(list)
    for use in uses:
        for name, parameter in use.module.named_parameters(recurse=False):
            if parameter.requires_grad:
                places[parameter].append((use, name))
    return places


def _linear_and_dense(
    by_parameter: Mapping[nn.Parameter, list[tuple[ModuleUse, str]]],
) -> tuple[list[list[ModuleUse]], list[list[tuple[ModuleUse, str]]]]:
    """Uses of the weights of linear maps and embeddings, and those of all other parameters."""
    linear: list[list[ModuleUse]] = []
    dense: list[list[tuple[ModuleUse, str]]] = []
    for parameter, places in by_parameter.items():
        if parameter.dim() == 2 and all(
            isinstance(use.module, (nn.Linear, nn.Embedding)) for use, _ in places
        ):
            linear.append([use for use, _ in places])
        else:
            dense.append(places)
    return linear, dense


def _square_of_weight(uses: Sequence[ModuleUse]) -> Tensor:
    """Squared norm of each document's gradient of one weight, (G,), over all its uses together.

    Formed where that takes fewer products than the inner products of positions do (as in Bu et al.
    2205.10683): long documents, small layers. One use then makes it no larger than the layer's own
    inputs and output gradients.
    """
    n, positions = len(uses), uses[0].grad.shape[1]
    inside, outside = uses[0].input.shape[-1], uses[0].grad.shape[-1]
    if (
        all(isinstance(use.module, nn.Linear) for use in uses)
        and positions * (inside + outside) * (n + 1) / 2 > inside * outside
    ):
        return (
            torch.stack([use.grad.float().transpose(1, 2) @ use.input.float() for use in uses])
            .sum(0)
            .flatten(1)
            .square()
            .sum(1)
        )
    pairs = [(a, b) for i, a in enumerate(uses) for b in uses[i:]]
    return torch.stack([_inner(a, b) * (1 if a is b else 2) for a, b in pairs]).sum(0)


def _square_of_small(places: Sequence[tuple[ModuleUse, str]]) -> Tensor:
    """Squared norm of each document's gradient of a norm's or a bias's parameter, (G,), over all
    its uses together.
    """
    return (
        torch.stack([_explicit(use, name) for use, name in places])
        .sum(0)
        .flatten(1)
        .square()
        .sum(1)
    )


def _inner(a: ModuleUse, b: ModuleUse) -> Tensor:
    """<gradient through a, gradient through b> of one weight, (G,), without forming either.

    A gradient is sum_t out_t in_t', so the product is sum_ts (out_t . out_s)(in_t . in_s). An
    embedding is a linear map whose out_t is the one-hot of the id and whose in_t is the gradient of
    its output.
    """
    left_factor, right = (
        use.grad if isinstance(use.module, nn.Embedding) else use.input for use in (a, b)
    )
    inputs = left_factor.float() @ right.float().transpose(1, 2)
    return torch.linalg.vecdot(inputs.flatten(1), _outputs(a, b).flatten(1))


def _outputs(a: ModuleUse, b: ModuleUse) -> Tensor:
    """out_t . out_s for all positions t of a and s of b, (G, T, T)."""
    if isinstance(a.module, nn.Embedding) and isinstance(b.module, nn.Embedding):
        return (a.input[:, :, None] == b.input[:, None, :]).float()
    if isinstance(a.module, nn.Embedding):
        return (
            b.grad.float()
            .gather(2, a.input[:, None, :].expand(-1, b.grad.shape[1], -1))
            .transpose(1, 2)
        )
    if isinstance(b.module, nn.Embedding):
        return _outputs(b, a).transpose(1, 2)
    return a.grad.float() @ b.grad.float().transpose(1, 2)


def _explicit(use: ModuleUse, name: str) -> Tensor:
    """Each document's gradient of a small parameter (norms, biases), (G, ...)."""
    parameters = {key: p.detach() for key, p in use.module.named_parameters(recurse=False)}

    def of_one(inputs: Tensor, grad: Tensor) -> Tensor:
        pullback = torch.func.vjp(
            lambda value: torch.func.functional_call(
                use.module, {**parameters, name: value}, (inputs,)
            ),
            parameters[name],
        )[1]
        return pullback(grad)[0]

    result: Tensor = torch.func.vmap(of_one)(use.input, use.grad)
    return result
