"""The one optimisation loop. It takes a loss; unlearning, relearning, teaching the test bed and probes all use it."""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import get_scheduler

from rayunlearn.errors import UserError
from rayunlearn.train.device import accelerator
from rayunlearn.train.step import StepLoss, StepRow
from rayunlearn.train.wrappers import Wrapper, plain

SCHEDULER_NAMES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
Build = Callable[[Callable[[int], StepLoss], Sequence[nn.Parameter], int], Wrapper]


@dataclass(frozen=True)
class TrainLog:
    """What a training run did. `ended` is complete, stopped (by `keep_going`) or diverged (non-finite loss or gradient)."""

    rows: tuple[StepRow, ...]
    ended: str
    presentations: int
    parameters_trained: int = 0


@dataclass(frozen=True)
class _Timed:
    """A step that has been taken and not been looked at: its tensors may still be on their way on the device."""

    loss: StepLoss
    norm: Tensor
    learning_rate: float
    seconds: float


def choose_parameters(model: nn.Module, pattern: str) -> list[nn.Parameter]:
    """Let only the parameters whose name matches `pattern` (re.search) require gradients, and return them."""
    matcher = re.compile(pattern)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(matcher.search(name) is not None)
    chosen = [p for p in model.parameters() if p.requires_grad]
    if not chosen:
        names = ", ".join(n for n, _ in list(model.named_parameters())[:6])
        raise UserError(f"train.parameters must match at least one parameter, got {pattern!r} (names look like {names}, ...)")
    return chosen


def optimise(
    model: nn.Module,
    loss_of_step: Callable[[int], StepLoss],
    *,
    steps: int,
    learning_rate: float,
    schedule: str = "linear",
    warmup_fraction: float = 0.1,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    parameters: str = ".*",
    accumulation: int = 1,
    wrappers: Sequence[Build] = (),
    check_every: int = 25,
    keep_going: Callable[[int], bool] | None = None,
) -> TrainLog:
    """Minimise `loss_of_step(0), loss_of_step(1), ...` with AdamW; `model` ends as trained.

    An optimizer step takes the mean of `accumulation` losses on each process (gradients are averaged over processes), so
    `loss_of_step` counts pieces: process r of n is given pieces r, r + n, ... Every `check_every` steps the losses so
    far are looked at (one synchronisation with the device): a non-finite one ends the run as diverged, and
    `keep_going(step)` may end it as stopped. The record is that of the process itself.
    """
    chosen = choose_parameters(model, parameters)
    place = accelerator()
    optimizer = place.prepare(torch.optim.AdamW(chosen, lr=learning_rate, weight_decay=weight_decay))
    scheduler = get_scheduler(SCHEDULER_NAMES[schedule], optimizer, round(warmup_fraction * steps), max(1, steps))
    around = [build(loss_of_step, chosen, steps) for build in wrappers]
    pending: list[_Timed] = []
    rows: list[StepRow] = []
    presentations, ended = 0, "complete"
    for step in range(1, steps + 1):
        model.train()
        begun = time.perf_counter()
        loss = _gradient(place, loss_of_step, around, step - 1, accumulation)
        _share_gradients(place, chosen)
        norm = place.clip_grad_norm_(chosen, max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for wrapper in around:
            wrapper.after_step(step)
        pending.append(_Timed(loss, norm.detach(), scheduler.get_last_lr()[0], time.perf_counter() - begun))
        scheduler.step()
        presentations += loss.n_documents
        if step % check_every == 0 or step == steps:
            fresh, pending = _rows(pending, step), []
            rows += fresh
            ended = _verdict(fresh, step, steps, keep_going)
        if ended != "complete":
            break
    for wrapper in around:
        wrapper.at_end()
    model.eval()
    return TrainLog(tuple(rows), ended, presentations, sum(p.numel() for p in chosen))


def _gradient(place: Accelerator, terms: Callable[[int], StepLoss], around: Sequence[Wrapper], step: int, accumulation: int) -> StepLoss:
    """Fill .grad with the mean gradient of this process's pieces of the step; returns their mean losses and total counts."""
    compute = next((w.gradient for w in around if w.gradient is not plain), plain)
    first = step * accumulation * place.num_processes + place.process_index

    def backward(loss: Tensor) -> None:
        place.backward(loss if accumulation == 1 else loss / accumulation)

    pieces = [_detached(compute(terms, first + piece * place.num_processes, backward)) for piece in range(accumulation)]
    return pieces[0] if accumulation == 1 else _mean(pieces)


def _share_gradients(place: Accelerator, chosen: Sequence[nn.Parameter]) -> None:
    """Average the gradients over the processes, which differ in their documents alone and so have gradients for the same tensors."""
    for parameter in chosen if place.num_processes > 1 else ():
        if parameter.grad is not None:
            parameter.grad = place.reduce(parameter.grad, "mean")


def _detached(loss: StepLoss) -> StepLoss:
    forget, retain = (None if term is None else term.detach() for term in (loss.forget, loss.retain))
    return replace(loss, total=loss.total.detach(), forget=forget, retain=retain)


def _mean(pieces: Sequence[StepLoss]) -> StepLoss:
    def mean(terms: Sequence[Tensor | None]) -> Tensor | None:
        there = [term for term in terms if term is not None]
        return torch.stack(there).mean() if there else None

    total = mean([p.total for p in pieces])
    assert total is not None
    counts = sum(p.n_tokens for p in pieces), sum(p.n_documents for p in pieces)
    return StepLoss(total, mean([p.forget for p in pieces]), mean([p.retain for p in pieces]), *counts, pieces[-1].retain_weight)


def _verdict(fresh: Sequence[StepRow], step: int, steps: int, keep_going: Callable[[int], bool] | None) -> str:
    if not all(math.isfinite(row.loss) and math.isfinite(row.grad_norm) for row in fresh):
        return "diverged"
    stop = step < steps and keep_going is not None and not keep_going(step)
    return "stopped" if stop else "complete"


def _rows(pending: Sequence[_Timed], last_step: int) -> list[StepRow]:
    rows = []
    for step, one in enumerate(pending, start=last_step - len(pending) + 1):
        loss = one.loss
        forget, retain = (None if term is None else float(term) for term in (loss.forget, loss.retain))
        rows.append(StepRow(step, float(loss.total), forget, retain, float(one.norm), one.learning_rate, loss.n_tokens, one.seconds))
    return rows
