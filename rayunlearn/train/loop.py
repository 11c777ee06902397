"""The one optimisation loop. It takes a loss; unlearning, relearning, teaching the test bed and probes all use it."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from rayunlearn.errors import UserError

SCHEDULER_NAMES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


@dataclass(frozen=True)
class StepLoss:
    """The loss of one step: `total` is what is differentiated; its two terms are kept for the record."""

    total: Tensor
    forget: Tensor | None = None
    retain: Tensor | None = None
    n_tokens: int = 0
    n_documents: int = 0


@dataclass(frozen=True)
class StepRow:
    """One optimizer step as it is written to the `steps` table."""

    step: int
    loss: float
    forget_loss: float | None
    retain_loss: float | None
    grad_norm: float
    learning_rate: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class TrainLog:
    """What a training run did. `ended` is complete, stopped (by `keep_going`) or diverged (non-finite loss or gradient)."""

    rows: tuple[StepRow, ...]
    ended: str
    presentations: int


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
    check_every: int = 25,
    keep_going: Callable[[int], bool] | None = None,
) -> TrainLog:
    """Minimise `loss_of_step(0), loss_of_step(1), ...` with AdamW; `model` ends as trained.

    Every `check_every` steps the losses so far are looked at (one synchronisation with the device): a
    non-finite one ends the run as diverged, and `keep_going(step)` may end it as stopped.
    """
    chosen = choose_parameters(model, parameters)
    optimizer = torch.optim.AdamW(chosen, lr=learning_rate, weight_decay=weight_decay)
    scheduler = get_scheduler(SCHEDULER_NAMES[schedule], optimizer, round(warmup_fraction * steps), max(1, steps))
    pending: list[tuple[StepLoss, Tensor, float, float]] = []
    rows: list[StepRow] = []
    presentations, ended = 0, "complete"
    for step in range(1, steps + 1):
        model.train()
        begun = time.perf_counter()
        loss = loss_of_step(step - 1)
        loss.total.backward()
        norm = nn.utils.clip_grad_norm_(chosen, max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pending.append((_detached(loss), norm.detach(), scheduler.get_last_lr()[0], time.perf_counter() - begun))
        scheduler.step()
        presentations += loss.n_documents
        if step % check_every == 0 or step == steps:
            fresh = _rows(pending, step)
            rows, pending = rows + fresh, []
            if not all(math.isfinite(row.loss) and math.isfinite(row.grad_norm) for row in fresh):
                ended = "diverged"
            elif step < steps and keep_going is not None and not keep_going(step):
                ended = "stopped"
        if ended != "complete":
            break
    model.eval()
    return TrainLog(tuple(rows), ended, presentations)


def _detached(loss: StepLoss) -> StepLoss:
    forget, retain = (None if term is None else term.detach() for term in (loss.forget, loss.retain))
    return StepLoss(loss.total.detach(), forget, retain, loss.n_tokens, loss.n_documents)


def _rows(pending: list[tuple[StepLoss, Tensor, float, float]], last_step: int) -> list[StepRow]:
    rows = []
    for step, (loss, norm, learning_rate, seconds) in enumerate(pending, start=last_step - len(pending) + 1):
        forget, retain = (None if term is None else float(term) for term in (loss.forget, loss.retain))
        rows.append(StepRow(step, float(loss.total), forget, retain, float(norm), learning_rate, loss.n_tokens, seconds))
    return rows
