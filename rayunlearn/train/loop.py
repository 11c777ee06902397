"""The one optimisation loop. It takes a loss; unlearning, relearning, training the synthetic
dataset and probes all use it.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rayunlearn.errors import UserError, require
from rayunlearn.lazy import nn, torch, transformers
from rayunlearn.models.cpu_offload import is_offloaded
from rayunlearn.models.forward import blocks
from rayunlearn.train.checkpoint import (
    Checkpoints,
    HasState,
    schedule_numbers,
    take_schedule_numbers,
    take_training_state,
    training_state,
)
from rayunlearn.train.device import accelerator
from rayunlearn.train.fsdp import clip_gradients, full_and_sharded, is_sharded
from rayunlearn.train.step import StepLoss, StepRow
from rayunlearn.train.wrappers import Wrapper, no_wrapper

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

TOO_LARGE = (
    "--processes-per-trial must be large enough to divide a model that is larger than its GPU"
)
SCHEDULER_NAMES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
BuildOptimizer = Callable[[Callable[[int], StepLoss], Sequence["nn.Parameter"], int], Wrapper]
AfterStep = Callable[[int, "Tensor"], None]


@dataclass(frozen=True)
class TrainLog:
    """What a training run did. `outcome` is complete, stopped (by `keep_going`), diverged
    (non-finite loss or gradient) or early_stopped (`early_stopping.RetentionEarlyStopping`): the
    weights are then those of step `kept_step`, which else is None.
    """

    rows: tuple[StepRow, ...]
    outcome: str
    presentations: int
    parameters_trained: int = 0
    kept_step: int | None = None


@dataclass(frozen=True)
class _Timed:
    """A step that has been taken and not been looked at: its tensors may still be on their way on
    the device.
    """

    loss: StepLoss
    norm: Tensor
    learning_rate: float
    seconds: float


@dataclass
class _Record:
    """The steps so far. Those since the last look are `pending`: looking at them is a
    synchronisation with the device.
    """

    pending: list[_Timed] = field(default_factory=list)
    rows: list[StepRow] = field(default_factory=list)
    presentations: int = 0
    outcome: str = "complete"

    def note(self, timed: _Timed) -> None:
        """Add a step without looking at it."""
        self.pending.append(timed)
        self.presentations += timed.loss.n_documents

    def check_pending_steps(self, keep_going: Callable[[int], bool] | None, *, last: bool) -> None:
        """Read the pending steps and judge them; `keep_going` is not asked
        after the `last` step.
        """
        fresh = _rows(self.pending, len(self.rows))
        self.rows, self.pending = self.rows + fresh, []
        if not all(math.isfinite(row.loss) and math.isfinite(row.grad_norm) for row in fresh):
            self.outcome = "diverged"
        elif not last and keep_going is not None and not keep_going(len(self.rows)):
            self.outcome = "stopped"


@dataclass(frozen=True)
class _Trainer:
    """What takes the steps: the trained parameters, their optimizer, and what acts around each
    step.
    """

    accelerate: Accelerator
    parameters: Sequence[nn.Parameter]
    optimizer: Any
    scheduler: Any
    wrappers: Sequence[Wrapper]
    accumulation: int
    max_grad_norm: float
    remembers: Sequence[HasState]
    after_step: AfterStep | None

    def step(self, loss_of_step: Callable[[int], StepLoss], number: int) -> _Timed:
        """Take step `number`, counted from 1, and wait for nothing."""
        started = time.perf_counter()
        loss = _gradient(
            self.accelerate, loss_of_step, self.wrappers, number - 1, self.accumulation
        )
        _share_gradients(self.accelerate, self.parameters)
        clip = clip_gradients if is_sharded(self.parameters) else self.accelerate.clip_grad_norm_
        norm = clip(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.after_step is not None and loss.retain is not None:
            # every process has the mean over its own pieces
            self.after_step(number - 1, self.accelerate.reduce(loss.retain, "mean"))
        for wrapper in self.wrappers:
            wrapper.after_step(number)
        timed = _Timed(
            loss, norm.detach(), self.scheduler.get_last_lr()[0], time.perf_counter() - started
        )
        self.scheduler.step()
        return timed

    def save_if_due(self, checkpoints: Checkpoints | None, record: _Record, saved: int) -> int:
        """Write down where the run is, if it is time to and it goes on; the step last written down.
        The record must have been looked at.
        """
        number = len(record.rows)
        if (
            checkpoints is None
            or record.outcome != "complete"
            or not checkpoints.due(number, saved)
        ):
            return saved
        numbers = {
            "rows": [asdict(row) for row in record.rows],
            "presentations": record.presentations,
        }
        tensors = training_state(self.parameters, self.optimizer, [*self.wrappers, *self.remembers])
        checkpoints.save(tensors, numbers | schedule_numbers(self.optimizer, self.scheduler))
        return number

    def resumed(self, checkpoints: Checkpoints | None) -> _Record:
        """The record of the steps that an earlier process took, with everything as it left it; an
        empty one where there was none.
        """
        n_processes = self.accelerate.num_processes
        require(
            checkpoints is None or n_processes == 1,
            "train.checkpoint_every must be 0 where a trial has several processes",
            n_processes,
        )
        restored = checkpoints.read() if checkpoints else None
        if restored is None:
            return _Record()
        tensors, numbers = restored
        take_training_state(
            tensors, self.parameters, self.optimizer, [*self.wrappers, *self.remembers]
        )
        take_schedule_numbers(numbers, self.optimizer, self.scheduler)
        return _Record(
            rows=[StepRow(**row) for row in numbers["rows"]], presentations=numbers["presentations"]
        )


def choose_parameters(
    model: nn.Module, pattern: str, layers: Collection[int] = ()
) -> list[nn.Parameter]:
    """Let only the parameters whose name matches `pattern` (re.search) require gradients, and
    return them.

    layers: blocks (0-based) that they must be part of; () asks for none. Raises UserError where
    nothing is left to train.
    """
    matcher, inside = re.compile(pattern), _of_blocks(model, layers)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(
            matcher.search(name) is not None and (not layers or id(parameter) in inside)
        )
    chosen = [p for p in model.parameters() if p.requires_grad]
    if not chosen:
        names = ", ".join(n for n, _ in list(model.named_parameters())[:6])
        in_blocks = f" in blocks {', '.join(map(str, layers))}" if layers else ""
        raise UserError(
            f"train.parameters must match at least one parameter{in_blocks}, got {pattern!r} (names"
            f" look like {names}, ...)"
        )
    return chosen


def _of_blocks(model: nn.Module, layers: Collection[int]) -> set[int]:
    """Identities of the blocks' parameters. Raises UserError for a block that the model does not
    have.
    """
    if not layers:
        return set()
    # other modules have no blocks to choose from
    assert isinstance(model, transformers.PreTrainedModel)
    model_blocks = blocks(model)
    require(
        max(layers) < len(model_blocks),
        f"train.layers must be < {len(model_blocks)}, the model's number of blocks",
        max(layers),
    )
    return {id(parameter) for layer in layers for parameter in model_blocks[layer].parameters()}


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
    layers: Collection[int] = (),
    accumulation: int = 1,
    wrappers: Sequence[BuildOptimizer] = (),
    check_every: int = 25,
    keep_going: Callable[[int], bool] | None = None,
    checkpoints: Checkpoints | None = None,
    remembers: Sequence[HasState] = (),
    after_step: AfterStep | None = None,
) -> TrainLog:
    """Minimise `loss_of_step(0), loss_of_step(1), ...` with AdamW; `model` ends as trained.

    An optimizer step takes the mean of `accumulation` losses on each process (gradients are
    averaged over processes), so `loss_of_step` counts pieces: process r of n is given pieces r, r +
    n, ... Every `check_every` steps the losses so far are looked at (one synchronisation with the
    device): a non-finite one ends the run as diverged, and `keep_going(step)` may end it as
    stopped. The record is that of the process itself.

    `checkpoints`: a run of one process that was broken off goes on from its last one and ends with
    the same bits; `remembers` is what, beside parameters, optimizer and wrappers, carries something
    from step to step. What moves with the loss does so in `after_step(step, retain)`, once per
    optimizer step and after it (counted from 0): `retain` is the retain loss of the whole batch,
    the mean over `accumulation` and processes, and the same number on every process.
    """
    require(not is_offloaded(model), TOO_LARGE, accelerator().num_processes)
    chosen, accelerate = choose_parameters(model, parameters, layers), accelerator()
    optimizer = accelerate.prepare(
        adamw([{"params": kind} for kind in full_and_sharded(chosen)], learning_rate, weight_decay)
    )
    scheduler = transformers.get_scheduler(
        SCHEDULER_NAMES[schedule], optimizer, round(warmup_fraction * steps), max(1, steps)
    )
    active_wrappers = _built(wrappers, loss_of_step, chosen, steps)
    trainer = _Trainer(
        accelerate,
        chosen,
        optimizer,
        scheduler,
        active_wrappers,
        accumulation,
        max_grad_norm,
        remembers,
        after_step,
    )
    record = trainer.resumed(checkpoints)
    saved = len(record.rows)
    for number in range(saved + 1, steps + 1):
        # whoever looked at the last step may have left it in evaluation mode
        model.train()
        record.note(trainer.step(loss_of_step, number))
        if number % check_every == 0 or number == steps:
            record.check_pending_steps(keep_going, last=number == steps)
            saved = trainer.save_if_due(checkpoints, record, saved) if number < steps else saved
        if record.outcome != "complete":
            break
    for wrapper in active_wrappers:
        wrapper.at_end()
    model.eval()
    return TrainLog(
        tuple(record.rows), record.outcome, record.presentations, sum(p.numel() for p in chosen)
    )


def _built(
    wrappers: Sequence[BuildOptimizer],
    loss_of_step: Callable[[int], StepLoss],
    chosen: Sequence[nn.Parameter],
    steps: int,
) -> list[Wrapper]:
    """The wrappers of a run. Raises UserError for any where what is trained is divided."""
    require(
        not (wrappers and is_sharded(chosen)),
        "a trial on several processes must have no wrapper and no method that ends with one",
        len(wrappers),
    )
    return [build(loss_of_step, chosen, steps) for build in wrappers]


def adamw(
    parameters: Sequence[nn.Parameter] | Sequence[dict[str, Any]],
    learning_rate: float,
    weight_decay: float = 0.0,
) -> torch.optim.AdamW:
    """AdamW in one pass over memory: on a CPU a fifth to a third of the default's time, equal to it
    but for rounding.
    """
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)


def _gradient(
    accelerate: Accelerator,
    terms: Callable[[int], StepLoss],
    active_wrappers: Sequence[Wrapper],
    step: int,
    accumulation: int,
) -> StepLoss:
    """Fill .grad with the mean gradient of this process's pieces of the step; returns their mean
    losses and total counts.
    """
    compute = next(
        (w.gradient for w in active_wrappers if w.gradient is not no_wrapper), no_wrapper
    )
    first = step * accumulation * accelerate.num_processes + accelerate.process_index

    def backward(loss: Tensor) -> None:
        accelerate.backward(loss if accumulation == 1 else loss / accumulation)

    pieces = [
        _detached(compute(terms, first + piece * accelerate.num_processes, backward))
        for piece in range(accumulation)
    ]
    return pieces[0] if accumulation == 1 else _mean(pieces)


def _share_gradients(accelerate: Accelerator, chosen: Sequence[nn.Parameter]) -> None:
    """Average the gradients over the processes, which differ in their documents alone and so have
    gradients for the same tensors.

    Shards are averaged already, when a block's gradient is divided.
    """
    for parameter in chosen if accelerate.num_processes > 1 else ():
        if parameter.grad is not None and not is_sharded([parameter]):
            parameter.grad = accelerate.reduce(parameter.grad, "mean")


def _detached(loss: StepLoss) -> StepLoss:
    forget, retain = (
        None if term is None else term.detach() for term in (loss.forget, loss.retain)
    )
    return replace(loss, total=loss.total.detach(), forget=forget, retain=retain)


def _mean(pieces: Sequence[StepLoss]) -> StepLoss:
    def mean(terms: Sequence[Tensor | None]) -> Tensor | None:
        present = [term for term in terms if term is not None]
        return torch.stack(present).mean() if present else None

    total = mean([p.total for p in pieces])
    assert total is not None
    counts = sum(p.n_tokens for p in pieces), sum(p.n_documents for p in pieces)
    return StepLoss(
        total,
        mean([p.forget for p in pieces]),
        mean([p.retain for p in pieces]),
        *counts,
        pieces[-1].retain_weight,
    )


def _rows(pending: Sequence[_Timed], n_before: int) -> list[StepRow]:
    rows = []
    for step, timed in enumerate(pending, start=n_before + 1):
        loss = timed.loss
        forget, retain = (
            None if term is None else float(term) for term in (loss.forget, loss.retain)
        )
        weight = None if retain is None else float(loss.retain_weight)
        rows.append(
            StepRow(
                step,
                float(loss.total),
                forget,
                retain,
                weight,
                float(timed.norm),
                timed.learning_rate,
                loss.n_tokens,
                timed.seconds,
            )
        )
    return rows
