"""The one optimisation loop. It takes a loss; unlearning, relearning, teaching the test bed and probes all use it."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from rayunlearn.errors import NonFiniteLossError, UserError

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
    """What a training run did: its steps, whether `keep_going` ended it, and what it consumed."""

    rows: tuple[StepRow, ...]
    stopped_early: bool
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
    non-finite one raises NonFiniteLossError, and `keep_going(step)` may end the run (`stopped_early`).
    """
    chosen = choose_parameters(model, parameters)
    optimizer = torch.optim.AdamW(chosen, lr=learning_rate, weight_decay=weight_decay)
    scheduler = get_scheduler(SCHEDULER_NAMES[schedule], optimizer, round(warmup_fraction * steps), max(1, steps))
    model.train()
    pending: list[tuple[StepLoss, Tensor, float, float]] = []
    rows: list[StepRow] = []
    presentations = 0
    for step in range(1, steps + 1):
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
            rows += _finite_rows(pending, step)
            pending = []
            if step < steps and keep_going is not None and not keep_going(step):
                return TrainLog(tuple(rows), True, presentations)
    model.eval()
    return TrainLog(tuple(rows), False, presentations)


def _detached(loss: StepLoss) -> StepLoss:
    forget, retain = (None if term is None else term.detach() for term in (loss.forget, loss.retain))
    return StepLoss(loss.total.detach(), forget, retain, loss.n_tokens, loss.n_documents)


def _finite_rows(pending: list[tuple[StepLoss, Tensor, float, float]], last_step: int) -> list[StepRow]:
    rows = []
    first = last_step - len(pending) + 1
    for step, (loss, norm, learning_rate, seconds) in enumerate(pending, start=first):
        forget, retain = (None if term is None else float(term) for term in (loss.forget, loss.retain))
        row = StepRow(step, float(loss.total), forget, retain, float(norm), learning_rate, loss.n_tokens, seconds)
        if not (torch.isfinite(loss.total) and torch.isfinite(norm)):
            raise NonFiniteLossError(f"step {step}: loss {row.loss}, gradient norm {row.grad_norm}")
        rows.append(row)
    return rows
