"""The inputs that the functions of a trial may ask for, checked before anything is scheduled."""

from collections.abc import Callable, Collection
from functools import cached_property, lru_cache
from typing import Any

from rayunlearn.attacks.base import ATTACK_INPUTS
from rayunlearn.attacks.table import ATTACKS
from rayunlearn.config import Trial
from rayunlearn.errors import UserError, unknown_name
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.loss_inputs import PAIRED_RESPONSE_KINDS, LossInputs, parts_of_input
from rayunlearn.methods.retain import RETAIN
from rayunlearn.metrics.evaluate import chosen_metrics
from rayunlearn.metrics.table import INPUTS
from rayunlearn.ranges import required_inputs
from rayunlearn.registry import own_attack
from rayunlearn.selectors.retain import OF_FORGET_ALONE, RETAIN_INPUTS, RETAIN_SELECTORS
from rayunlearn.selectors.table import SELECTOR_INPUTS, SELECTORS

# what a retain selector is given
OF_RETAIN = {*RETAIN_INPUTS, *SELECTOR_INPUTS} - {*OF_FORGET_ALONE}
# attributes that are set when a batch is made
SET_BY_BATCH = ("present", "control")


def check_inputs(trial: Trial) -> None:
    """Raise UserError for a function of the trial that asks for an input that there is not: it
    would fail when it is called, after the models have been trained.
    """
    select, attack = SELECTORS[trial.select.name].function, own_attack(trial)
    attacks = [name for name in (trial.attack.name, attack) if name != "none"]
    losses = FORGET[trial.method.forget].function, RETAIN[trial.method.retain].function
    for loss in losses:
        _check_loss(loss)
    _check_names("input of a selector", select, SELECTOR_INPUTS)
    chooses_retain = RETAIN_SELECTORS[trial.retain.name].function
    _check_names("input of a retain selector", chooses_retain, OF_RETAIN)
    for metric in chosen_metrics(trial.measure.metrics).values():
        _check_names("input of a metric", metric.function, INPUTS)
    for name in attacks:
        _check_names("input of an attack", ATTACKS[name].function, ATTACK_INPUTS)


@lru_cache(maxsize=256)
def _check_loss(function: Callable[..., Any]) -> None:
    """A loss may ask for every tensor of its own documents, and for those of a companion."""
    tensors = {*inputs_of(LossInputs), *SET_BY_BATCH}
    for name in required_inputs(function):
        prefix, _, rest = parts_of_input(name)
        if prefix + rest not in tensors:
            companions = [f"{kind}_token_nll" for kind in PAIRED_RESPONSE_KINDS]
            raise _unknown("input of a loss", function, name, [*tensors, *companions])


def _check_names(kind: str, function: Callable[..., Any], available: Collection[str]) -> None:
    for name in required_inputs(function):
        if name not in available:
            raise _unknown(kind, function, name, available)


def _unknown(
    kind: str, function: Callable[..., Any], name: str, available: Collection[str]
) -> UserError:
    """The error, with the rule that a positional parameter's name decides what it is given."""
    rule = f"positional parameters of {function.__name__} must name inputs, keyword-only ones its"
    return UserError(f"{rule} hyperparameters; {unknown_name(kind, name, sorted(available))}")


@lru_cache(maxsize=8)
def inputs_of(view: type) -> list[str]:
    """The names that a view of inputs offers: its public properties, and what it sets."""
    offered = (cached_property, property)
    return [
        name
        for name, value in vars(view).items()
        if isinstance(value, offered) and not name.startswith("_")
    ]
