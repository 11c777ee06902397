"""A long training run that its process did not survive goes on where it was, and ends with the same
bits.

A checkpoint is one safetensors file: trained parameters, the optimizer's moments, the random state,
and what wrappers, weightings and floors remember; numbers and rows are JSON in one of its tensors.
It replaces the last one by a rename. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rayunlearn.lazy import torch
from rayunlearn.models.tensor_cache import read_genuine, write_genuine

if TYPE_CHECKING:
    from torch import Tensor, nn

Tensors = Mapping[str, "Tensor"]


class HasState(Protocol):
    """What carries something from one step to the next, beside parameters and optimizer."""

    def state(self) -> Tensors:
        """What it carries, as tensors; each tensor once."""

    def take(self, state: Tensors, /) -> None:
        """Carry this."""


@dataclass(frozen=True)
class Checkpoints:
    """Where the checkpoint of a run is, for what run (`about`: JSON values that decide every bit of
    it), how often it is written, and `parts`: what, beside parameters, optimizer and wrappers,
    carries something from step to step.

    It is written at the first look of the loop after `every` steps (0: at none). After step
    `pause_at` (0: never) it is written too, and the run ends as paused: another call goes on from
    there. One of another run, or a damaged one, is as none.
    """

    path: Path
    about: Mapping[str, object]
    every_steps: int
    parts: Sequence[HasState] = ()
    pause_at: int = 0

    def due(self, step: int, saved_step: int) -> bool:
        """Whether step `step` is to be kept, the last one kept being `saved_step`."""
        is_time = self.every_steps > 0 and step - saved_step >= self.every_steps
        return is_time or self.pauses(step)

    def pauses(self, step: int) -> bool:
        """Whether the run ends here for now."""
        return 0 < self.pause_at <= step

    def save(self, tensors: Tensors, numbers: Mapping[str, Any]) -> None:
        """Keep these. Raises UserError when storage fails for long."""
        # polars comes with it, which whoever reads the tables of the families does without
        from rayunlearn.storage.parquet import retry_transient

        text = torch.frombuffer(bytearray(json.dumps(numbers).encode()), dtype=torch.uint8)
        saved = _apart({**tensors, "numbers": text})

        def write() -> None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_genuine(self.path, self._key(), saved)

        retry_transient(f"write {self.path}", write)

    def read(self) -> tuple[Tensors, dict[str, Any]] | None:
        """What was kept of this run, None where nothing was."""
        tensors = read_genuine(self.path, self._key())
        if tensors is None:
            return None
        numbers = json.loads(tensors.pop("numbers").numpy().tobytes())
        return tensors, dict(numbers)

    def _key(self) -> str:
        return json.dumps(dict(self.about), sort_keys=True)


def _apart(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors in main memory, none sharing another's: a file has each once, and bitsandbytes
    gives the moments of all parameters one table of levels.
    """
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        on_cpu = tensor.detach().cpu().contiguous()
        address = on_cpu.untyped_storage().data_ptr()
        apart[name] = on_cpu.clone() if address in seen else on_cpu
        seen.add(address)
    return apart


def training_state(
    parameters: Sequence[nn.Parameter], optimizer: Any, parts: Sequence[HasState]
) -> dict[str, Tensor]:
    """Everything of a run that is a tensor."""
    device = parameters[0].device
    state: dict[str, Tensor] = {f"parameter.{number}": p for number, p in enumerate(parameters)}
    state |= {
        f"optimizer.{number}.{name}": value
        for number, remembered in enumerate(_remembered(optimizer))
        for name, value in remembered.items()
        if isinstance(value, torch.Tensor)
    }
    state |= {
        f"part.{number}.{name}": t
        for number, part in enumerate(parts)
        for name, t in part.state().items()
    }
    state["random"] = torch.get_rng_state()
    return state | (
        {"random.device": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    )


def take_training_state(
    state: Tensors, parameters: Sequence[nn.Parameter], optimizer: Any, parts: Sequence[HasState]
) -> None:
    """Put it all back."""
    device = parameters[0].device
    with torch.no_grad():
        for number, parameter in enumerate(parameters):
            parameter.copy_(state[f"parameter.{number}"])
    for number, parameter in enumerate(_updated(optimizer)):
        moments = _below(state, f"optimizer.{number}.")
        # as it was: torch's own way gives moments the parameter's type, codes of eight bits too
        if moments:
            optimizer.state[parameter] = {name: t.to(device) for name, t in moments.items()}
    for number, part in enumerate(parts):
        part.take({name: t.to(device) for name, t in _below(state, f"part.{number}.").items()})
    torch.set_rng_state(state["random"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["random.device"], device)


def _updated(optimizer: Any) -> list[nn.Parameter]:
    """The parameters that the optimizer updates, group by group."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _remembered(optimizer: Any) -> list[dict[str, Any]]:
    """What the optimizer remembers of each parameter. Not its `state_dict`, in which bitsandbytes
    hides its tensors.
    """
    return [optimizer.state.get(parameter, {}) for parameter in _updated(optimizer)]


def optimizer_numbers(optimizer: Any) -> list[dict[str, Any]]:
    """What the optimizer remembers of each parameter that is no tensor: JSON values."""
    return [
        {name: v for name, v in remembered.items() if not isinstance(v, torch.Tensor)}
        for remembered in _remembered(optimizer)
    ]


def take_optimizer_numbers(numbers: Sequence[Mapping[str, Any]], optimizer: Any) -> None:
    """Put them back."""
    for parameter, values in zip(_updated(optimizer), numbers, strict=True):
        if values:
            optimizer.state[parameter].update(values)


def _below(state: Tensors, prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): t.clone() for name, t in state.items() if name.startswith(prefix)
    }


def schedule_numbers(optimizer: Any, scheduler: Any) -> dict[str, Any]:
    """Where the schedule is: JSON values."""
    return {
        "schedule": scheduler.state_dict(),
        "learning_rates": [group["lr"] for group in optimizer.param_groups],
    }


def take_schedule_numbers(numbers: Mapping[str, Any], optimizer: Any, scheduler: Any) -> None:
    """Put the schedule there."""
    scheduler.load_state_dict(numbers["schedule"])
    for group, rate in zip(optimizer.param_groups, numbers["learning_rates"], strict=True):
        group["lr"] = rate


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint that is not needed any more."""
    # late for the same reason as in `Checkpoints.save`
    from rayunlearn.storage.parquet import retry_transient

    retry_transient(f"remove {path}", partial(path.unlink, missing_ok=True))
