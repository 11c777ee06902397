"""Per-document gradients without a backward pass per document.

Documents of a batch do not see each other, so the gradient of the sum of their losses reaches every
module row by row. From a module's inputs and output gradients the norm of each document's own
weight gradient follows exactly (Goodfellow
1510.01799; "ghost norm" of Li et al. 2110.05679), tied embeddings included. The slope of every
document's loss along one direction comes from one forward-mode pass.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayunlearn.data.tokenize import Batch, Encoded, by_length, collate
from rayunlearn.lazy import nn, torch
from rayunlearn.models.logits import can_split

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModuleUse:
    """One use of a module in a forward pass, (G, T, ...): its input, and the gradient of its
    output, G documents.
    """

    module: nn.Module
    input: Tensor
    grad: Tensor


def gradient_norms(
    model: PreTrainedModel, terms: Sequence[tuple[Batch, Callable[[], Tensor]]]
) -> Tensor:
    """L2 norm of the gradient of the i-th summed loss with respect to all trainable parameters,
    (G,).

    Each term is a batch of G rows and a function that runs `model` over it (the head on its
    labelled positions, as in `models.forward`) and returns G losses, the i-th a function of row i
    alone. With two terms the i-th loss is the sum of both terms' i-th. Exact, up to rounding, for
    models whose parameters sit in modules of one input. No `.grad` is touched.
    """
    # the first use tries the model on a text of its own, which must not be among the calls
    can_split(model)
    calls: list[tuple[Batch, nn.Module, Tensor, Tensor]] = []
    total: list[Tensor] = []
    for batch, losses in terms:
        with capture_module_io(model) as module_uses, torch.enable_grad():
            total.append(losses())
        calls += [(batch, *call) for call in module_uses if call[2].requires_grad]
    grads = torch.autograd.grad(
        torch.cat(total).sum(), [out for *_, out in calls], allow_unused=True
    )
    pairs = [(call, grad) for call, grad in zip(calls, grads, strict=True) if grad is not None]
    uses = [
        ModuleUse(module, _by_row(inputs, batch), _by_row(grad, batch))
        for (batch, module, inputs, _), grad in pairs
    ]
    with torch.no_grad():
        weights, dense = _linear_and_dense(_by_parameter(uses))
        squares = [_square_of_weight(places) for places in weights]
        squares += [_square_of_small(places) for places in dense]
        return torch.stack(squares).sum(0).clamp_min(0).sqrt()


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
        norms = gradient_norms(model, [(batch, losses(batch))])
        slope = gradient_slopes(model, losses(batch), direction)
        cosines[positions] = (slope / (norms * length).clamp_min(1e-12)).cpu()
    return cosines


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
def capture_module_io(model: nn.Module) -> Iterator[list[tuple[nn.Module, Tensor, Tensor]]]:
    """(module, input, output) of every call of a module that has parameters of its own, while the
    context is open.
    """
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((module, inputs[0].detach(), output))

    handles = [
        m.register_forward_hook(note)
        for m in model.modules()
        if next(m.parameters(recurse=False), None) is not None
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _by_row(values: Tensor, batch: Batch) -> Tensor:
    """(B, T, ...) as it is; the head's (1, N, ...) put back to the positions it stands for, zero
    elsewhere.
    """
    if values.shape[:2] == batch.labelled.shape:
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
