"""The source of the functions that a trial uses, as part of what made its numbers."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from inspect import getsourcefile
from pathlib import Path
from typing import Any

from rayunlearn.attacks.table import ATTACKS
from rayunlearn.config import Trial
from rayunlearn.metrics.table import METRICS
from rayunlearn.plugins.load import plugin_of
from rayunlearn.registry import chosen_functions
from rayunlearn.storage.code_identity import definition_digest


def code_of(trial: Trial) -> Mapping[str, str]:
    """Digest of the source of every function that a trial uses, by the function's name. Base and
    gold train nothing: theirs are metrics and attacks.
    """
    names = (*METRICS, *ATTACKS)
    used = chosen_functions(trial)
    functions = used if trial.stage == "unlearned" else [f for f in used if f.__name__ in names]
    return {function.__name__: _digest_of(function) for function in dict.fromkeys(functions)}


def plugin_code(trial: Trial) -> dict[str, str]:
    """`code_of` the functions that come from plugins, under names that no setting has; it is part
    of a trial's identity. The package's own functions are not: its ids outlive a refactoring.
    """
    return {f"code {name}": code for name, code in code_of(trial).items() if plugin_of(name)}


@lru_cache(maxsize=1024)
def _digest_of(function: Callable[..., Any]) -> str:
    plugin = plugin_of(function.__name__)
    if plugin is not None:
        return definition_digest(plugin.source, function.__name__)[:12]
    file = Path(str(getsourcefile(function)))
    family = ".".join(function.__module__.split(".")[:2])
    text = file.read_text(encoding="utf-8")
    return definition_digest(text, function.__name__, family=family)[:12]
