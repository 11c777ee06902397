"""The one optimisation loop. It takes a loss; unlearning, relearning, training the synthetic
dataset and probes all use it.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rayunlearn.config import Value
from rayunlearn.errors import UserError, require
from rayunlearn.lazy import nn, torch, transformers
from rayunlearn.models.cpu_offload import is_offloaded
from rayunlearn.models.forward import blocks
from rayunlearn.schema import Rows
from rayunlearn.train.checkpoint import (
    Checkpoints,
    HasState,
    optimizer_numbers,
    schedule_numbers,
    take_optimizer_numbers,
    take_schedule_numbers,
    take_training_state,
    training_state,
)
from rayunlearn.train.device import accelerator
from rayunlearn.train.fsdp import clip_gradients, full_and_sharded, is_sharded
from rayunlearn.train.optimizers import OPTIMIZERS
from rayunlearn.train.step import StepLoss, StepRow
from rayunlearn.train.stored_weights import MasterWeights
from rayunlearn.train.wrappers import Wrapper, no_wrapper

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

TOO_LARGE = (
    "--processes-per-trial must be large enough to divide a model that is larger than its GPU"
)
SCHEDULER_NAMES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
BuildWrapper = Callable[[Callable[[int], StepLoss], Sequence["nn.Parameter"], int], Wrapper]
AfterStep = Callable[[int, "Tensor"], None]


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """An optimizer of `train.optimizers` by its name, with its hyperparameters, and its schedule.

    `schedule` is constant, linear or cosine (to 0 at the last step), after a linear warm-up over
    `warmup_fraction` of the steps; `max_grad_norm` clips the norm of the whole gradient; a step
    takes the mean of `accumulation` losses on each process.
    """

    learning_rate: float
    schedule: str = "linear"
    warmup_fraction: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    accumulation: int = 1
    name: str = "adamw"
    options: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainedParameters:
    """Which parameters are trained: those whose name matches `pattern` (re.search), in the blocks
    `layers` (0-based; () asks for none). `masters`: float32 copies of those that are stored in
    fewer bits (`train.stored_weights`).
    """

    pattern: str = ".*"
    layers: Collection[int] = ()
    masters: MasterWeights = field(default_factory=MasterWeights)


@dataclass(frozen=True)
class Callbacks:
    """What the loop calls between its steps.

    Every `check_every` steps, at the steps `also_at`, and after the last one, the losses so far are
    looked at (one synchronisation with the device): a non-finite one ends the run as diverged, and
    `keep_going(step)`, from 1 and not asked after the last step, may end it as stopped. What moves
    with the loss does so in `after_step(step, retain)`, once per optimizer step and after it
    (counted from 0): `retain` is the retain loss of the whole batch, the mean over microbatches and
    processes, and the same number on every process. `on_rows` is given the steps that were looked
    at, before `keep_going`. `measured_at`: steps after which the run so far is given to a function,
    which may read the model and must leave it as it is.
    """

    check_every: int = 25
    also_at: Collection[int] = ()
    keep_going: Callable[[int], bool] | None = None
    after_step: AfterStep | None = None
    on_rows: Callable[[Sequence[StepRow]], None] | None = None
    measured_at: Mapping[int, Callable[[TrainLog], None]] = field(default_factory=dict)

    def is_due(self, number: int) -> bool:
        """Whether the losses are looked at after step `number`."""
        return number % self.check_every == 0 or number in self.also_at


ALL_PARAMETERS = TrainedParameters()
NO_CALLBACKS = Callbacks()


@dataclass(frozen=True)
class TrainLog:
    """What a training run did.

    `outcome` is complete, stopped (by `keep_going`), diverged (non-finite loss or gradient), paused
    (`Checkpoints.pause_at`) or early_stopped (`train.early_stopping`): the weights are then those
    of step `kept_step`, which else is None. `curve`: what was measured at its looks, as rows of
    table `curves`.
    """

    rows: tuple[StepRow, ...]
    outcome: str
    presentations: int
    parameters_trained: int = 0
    kept_step: int | None = None
    curve: Rows = field(default_factory=list)


@dataclass(frozen=True)
class _PendingStep:
    """A step that has been taken and not been looked at: its tensors may still be on their way on
    the device.
    """

    loss: StepLoss
    norm: Tensor
    learning_rate: float
    seconds: float


@dataclass
class _RunRecord:
    """The steps so far. Those since the last check are `pending`: looking at them is a
    synchronisation with the device.
    """

    pending: list[_PendingStep] = field(default_factory=list)
    rows: list[StepRow] = field(default_factory=list)
    presentations: int = 0
    outcome: str = "complete"

    def add(self, step: _PendingStep) -> None:
        """Add a step without looking at it."""
        self.pending.append(step)
        self.presentations += step.loss.n_documents

    def check_pending_steps(self, callbacks: Callbacks, *, last: bool) -> None:
        """Read the pending steps and judge them; `keep_going` is not asked after the `last` one."""
        new_rows, keep_going = _step_rows(self.pending, len(self.rows)), callbacks.keep_going
        self.rows, self.pending = self.rows + new_rows, []
        if callbacks.on_rows is not None:
            callbacks.on_rows(new_rows)
        if not all(math.isfinite(row.loss) and math.isfinite(row.grad_norm) for row in new_rows):
            self.outcome = "diverged"
        elif not last and keep_going is not None and not keep_going(len(self.rows)):
            self.outcome = "stopped"

    def log_so_far(self, n_trained: int) -> TrainLog:
        """The log as if the run ended here; pending steps are read and stay pending."""
        rows = (*self.rows, *_step_rows(self.pending, len(self.rows)))
        is_finite = all(math.isfinite(row.loss) and math.isfinite(row.grad_norm) for row in rows)
        outcome = "complete" if is_finite else "diverged"
        return TrainLog(rows, outcome, self.presentations, n_trained)

    def pause_if_due(self, checkpoints: Checkpoints | None) -> None:
        """End as paused where the run has come as far as it is to come for now."""
        if checkpoints and self.outcome == "complete" and checkpoints.pauses(len(self.rows)):
            self.outcome = "paused"


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
    settings: OptimizerSettings
    after_step: AfterStep | None
    masters: MasterWeights

    def step(self, loss_of_step: Callable[[int], StepLoss], number: int) -> _PendingStep:
        """Take step `number`, counted from 1, and wait for nothing."""
        started = time.perf_counter()
        accumulation = self.settings.accumulation
        loss = _accumulate_gradient(
            self.accelerate, loss_of_step, self.wrappers, number - 1, accumulation
        )
        _average_gradients(self.accelerate, self.parameters)
        clip = clip_gradients if is_sharded(self.parameters) else self.accelerate.clip_grad_norm_
        norm = clip(self.parameters, self.settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.after_step is not None and loss.retain is not None:
            # every process has the mean over its own microbatches
            self.after_step(number - 1, self.accelerate.reduce(loss.retain, "mean"))
        for wrapper in self.wrappers:
            wrapper.after_step(number)
        seconds, rate = time.perf_counter() - started, self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        return _PendingStep(loss, norm.detach(), rate, seconds)

    def save_if_due(
        self, checkpoints: Checkpoints | None, record: _RunRecord, saved_step: int
    ) -> int:
        """Write a checkpoint, if it is time to and the run goes on; the step of the last one. The
        record must have been checked.
        """
        number, goes_on = len(record.rows), record.outcome == "complete"
        if checkpoints is None or not goes_on or not checkpoints.due(number, saved_step):
            return saved_step
        numbers = {
            "rows": [asdict(row) for row in record.rows],
            "presentations": record.presentations,
        }
        parts: list[HasState] = [*self.wrappers, self.masters, *checkpoints.parts]
        tensors = training_state(self.parameters, self.optimizer, parts)
        numbers |= {"counts": optimizer_numbers(self.optimizer)}
        checkpoints.save(tensors, numbers | schedule_numbers(self.optimizer, self.scheduler))
        return number

    def restore(self, checkpoints: Checkpoints | None) -> _RunRecord:
        """The record of the steps that an earlier process took, with everything as it left it; an
        empty one where there was none.
        """
        if checkpoints is None:
            return _RunRecord()
        n_processes = self.accelerate.num_processes
        rule = "train.checkpoint_every must be 0 where a trial has several processes"
        require(n_processes == 1, rule, n_processes)
        restored = checkpoints.read()
        if restored is None:
            return _RunRecord()
        tensors, numbers = restored
        parts: list[HasState] = [*self.wrappers, self.masters, *checkpoints.parts]
        take_training_state(tensors, self.parameters, self.optimizer, parts)
        take_optimizer_numbers(numbers["counts"], self.optimizer)
        take_schedule_numbers(numbers, self.optimizer, self.scheduler)
        rows = [StepRow(**row) for row in numbers["rows"]]
        return _RunRecord(rows=rows, presentations=numbers["presentations"])


def choose_parameters(
    model: nn.Module, pattern: str, layers: Collection[int] = ()
) -> list[nn.Parameter]:
    """Let only the parameters whose name matches `pattern` (re.search) require gradients, and
    return them.

    layers: blocks (0-based) that they must be part of; () asks for none. Raises UserError where
    nothing is left to train.
    """
    matcher, block_parameters = re.compile(pattern), _block_parameter_ids(model, layers)
    for name, parameter in model.named_parameters():
        in_layers = not layers or id(parameter) in block_parameters
        parameter.requires_grad_(matcher.search(name) is not None and in_layers)
    chosen = [p for p in model.parameters() if p.requires_grad]
    if not chosen:
        names = ", ".join(n for n, _ in list(model.named_parameters())[:6])
        in_blocks = f" in blocks {', '.join(map(str, layers))}" if layers else ""
        raise UserError(
            f"train.parameters must match at least one parameter{in_blocks}, got {pattern!r} (names"
            f" look like {names}, ...)"
        )
    return chosen


def _block_parameter_ids(model: nn.Module, layers: Collection[int]) -> set[int]:
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
    optimizer: OptimizerSettings,
    trained: TrainedParameters = ALL_PARAMETERS,
    wrappers: Sequence[BuildWrapper] = (),
    callbacks: Callbacks = NO_CALLBACKS,
    checkpoints: Checkpoints | None = None,
) -> TrainLog:
    """Minimise `loss_of_step(0), loss_of_step(1), ...`; `model` ends as trained.

    An optimizer step takes the mean of `optimizer.accumulation` losses on each process (gradients
    are averaged over processes), so `loss_of_step` counts microbatches: process r of n is given
    microbatches r, r + n, ... The record is that of the process itself. `checkpoints`: a run of one
    process that was broken off goes on from its last one and ends with the same bits.
    """
    require(not is_offloaded(model), TOO_LARGE, accelerator().num_processes)
    chosen = choose_parameters(model, trained.pattern, trained.layers)
    trainer = _trainer(chosen, loss_of_step, steps, optimizer, wrappers, callbacks, trained.masters)
    record = trainer.restore(checkpoints)
    saved_step, n_trained = len(record.rows), sum(p.numel() for p in chosen)
    record.pause_if_due(checkpoints)
    model.train()
    for number in range(saved_step + 1, steps + 1):
        if record.outcome != "complete":
            break
        _train_again(model)
        record.add(trainer.step(loss_of_step, number))
        _measure_if_due(model, callbacks, record, n_trained)
        is_last = number == steps
        if callbacks.is_due(number) or is_last:
            record.check_pending_steps(callbacks, last=is_last)
            if not is_last:
                saved_step = trainer.save_if_due(checkpoints, record, saved_step)
                record.pause_if_due(checkpoints)
    for wrapper in trainer.wrappers if record.outcome != "paused" else ():
        wrapper.at_end()
    model.eval()
    return TrainLog(tuple(record.rows), record.outcome, record.presentations, n_trained)


def _train_again(model: nn.Module) -> None:
    """Whoever looked at the last step may have left the model in evaluation mode. To tell each of
    hundreds of modules at every step would take a hundredth of it.
    """
    if not model.training:
        model.train()


def _measure_if_due(
    model: nn.Module, callbacks: Callbacks, record: _RunRecord, n_trained: int
) -> None:
    """Give the log so far to who wants it after this step."""
    measure = callbacks.measured_at.get(len(record.rows) + len(record.pending))
    if measure is not None:
        model.eval()
        measure(record.log_so_far(n_trained))


def _trainer(
    chosen: Sequence[nn.Parameter],
    loss_of_step: Callable[[int], StepLoss],
    steps: int,
    settings: OptimizerSettings,
    wrappers: Sequence[BuildWrapper],
    callbacks: Callbacks,
    masters: MasterWeights,
) -> _Trainer:
    """Raises UserError for any wrapper where what is trained is divided."""
    accelerate = accelerator()
    optimizer = accelerate.prepare(_built_optimizer(chosen, settings, masters))
    scheduler = transformers.get_scheduler(
        SCHEDULER_NAMES[settings.schedule],
        optimizer,
        round(settings.warmup_fraction * steps),
        max(1, steps),
    )
    require(
        not (wrappers and is_sharded(chosen)),
        "a trial on several processes must have no wrapper and no method that ends with one",
        len(wrappers),
    )
    built = [build(loss_of_step, chosen, steps) for build in wrappers]
    after_step = callbacks.after_step
    return _Trainer(accelerate, chosen, optimizer, scheduler, built, settings, after_step, masters)


def _built_optimizer(
    chosen: Sequence[nn.Parameter], settings: OptimizerSettings, masters: MasterWeights
) -> torch.optim.Optimizer:
    """Raises UserError for an optimizer that cannot update shards, where there are any."""
    row, kinds = OPTIMIZERS[settings.name], full_and_sharded(chosen)
    require(
        row.shards or not is_sharded(chosen),
        "train.optimizer must be another one where a trial has several processes",
        settings.name,
    )
    groups = [{"params": [masters.copy_of(parameter) for parameter in kind]} for kind in kinds]
    rates = (settings.learning_rate, settings.weight_decay)
    optimizer = row.function(groups, *rates, **settings.options)
    masters.trained_by(optimizer)
    return optimizer


def _accumulate_gradient(
    accelerate: Accelerator,
    loss_of_step: Callable[[int], StepLoss],
    wrappers: Sequence[Wrapper],
    step: int,
    accumulation: int,
) -> StepLoss:
    """Fill .grad with the mean gradient of this process's microbatches of the step; returns their
    mean losses and total counts.
    """
    compute = next((w.gradient for w in wrappers if w.gradient is not no_wrapper), no_wrapper)
    first = step * accumulation * accelerate.num_processes + accelerate.process_index

    def backward(loss: Tensor) -> None:
        accelerate.backward(loss if accumulation == 1 else loss / accumulation)

    losses = [
        _detach(compute(loss_of_step, first + number * accelerate.num_processes, backward))
        for number in range(accumulation)
    ]
    return losses[0] if accumulation == 1 else _mean_loss(losses)


def _average_gradients(accelerate: Accelerator, chosen: Sequence[nn.Parameter]) -> None:
    """Average the gradients over the processes, which differ in their documents alone and so have
    gradients for the same tensors.

    Shards are averaged already, when a block's gradient is divided.
    """
    for parameter in chosen if accelerate.num_processes > 1 else ():
        if parameter.grad is not None and not is_sharded([parameter]):
            parameter.grad = accelerate.reduce(parameter.grad, "mean")


def _detach(loss: StepLoss) -> StepLoss:
    forget, retain = (
        None if term is None else term.detach() for term in (loss.forget, loss.retain)
    )
    return replace(loss, total=loss.total.detach(), forget=forget, retain=retain)


def _mean_loss(losses: Sequence[StepLoss]) -> StepLoss:
    def mean(terms: Sequence[Tensor | None]) -> Tensor | None:
        present = [term for term in terms if term is not None]
        return torch.stack(present).mean() if present else None

    total = mean([loss.total for loss in losses])
    assert total is not None
    return StepLoss(
        total,
        mean([loss.forget for loss in losses]),
        mean([loss.retain for loss in losses]),
        sum(loss.n_tokens for loss in losses),
        sum(loss.n_documents for loss in losses),
        losses[-1].retain_weight,
        losses[-1].forget_weight,
    )


def _step_rows(pending: Sequence[_PendingStep], n_before: int) -> list[StepRow]:
    return [_step_row(step, number) for number, step in enumerate(pending, start=n_before + 1)]


def _step_row(step: _PendingStep, number: int) -> StepRow:
    loss = step.loss
    forget, retain = (None if term is None else float(term) for term in (loss.forget, loss.retain))
    return StepRow(
        step=number,
        loss=float(loss.total),
        forget_loss=forget,
        retain_loss=retain,
        retain_weight=None if retain is None else float(loss.retain_weight),
        grad_norm=float(step.norm),
        learning_rate=step.learning_rate,
        tokens=loss.n_tokens,
        seconds=step.seconds,
    )
