"""Methods, selectors, metrics and attacks from outside the package: rows that an experiment file or
an installed package brings.

A plugin is Python source with a name ROWS, a tuple of rows (`ForgetLoss`, `RetainLoss`, `Selector`,
`RetainSelector`, `Metric`, `AttackRow`). An experiment file may be one itself; an installed package
names its module as an entry point of the group `rayunlearn`. Workers are sent the source and run
it, so what it imports must be installed there. The source of a function of a plugin, and what it
uses of the same file, is part of the identity of the trials that use it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from rayunlearn.attacks.base import AttackRow
from rayunlearn.attacks.table import ATTACKS
from rayunlearn.config import digest
from rayunlearn.errors import UserError, require
from rayunlearn.methods.forget import FORGET, ForgetLoss
from rayunlearn.methods.retain import RETAIN, RetainLoss
from rayunlearn.metrics.table import (
    CHEAP,
    CHEAP_SOURCES,
    CURVE_METRICS,
    METRICS,
    Metric,
    sources_of,
)
from rayunlearn.ranges import FamilyRow, options_of
from rayunlearn.selectors.retain import RETAIN_SELECTORS, RetainSelector
from rayunlearn.selectors.table import SELECTORS, Selector

# of entry points
GROUP = "rayunlearn"
ROW_TABLES: Mapping[type, dict[str, Any]] = {
    ForgetLoss: FORGET,
    RetainLoss: RETAIN,
    Selector: SELECTORS,
    RetainSelector: RETAIN_SELECTORS,
    Metric: METRICS,
    AttackRow: ATTACKS,
}


@dataclass(frozen=True)
class Plugin:
    """A plugin as workers are sent it: `origin` is its file, and what its errors name."""

    origin: str
    source: str


# by the name of a function: the plugin whose row it is
_plugins: dict[str, Plugin] = {}


def plugins() -> tuple[Plugin, ...]:
    """The plugins of this process, in the order in which they came."""
    return tuple(dict.fromkeys(_plugins.values()))


def plugin_of(name: str) -> Plugin | None:
    """The plugin that a function's row is of; None for a function of the package."""
    return _plugins.get(name)


def load_plugin(plugin: Plugin) -> None:
    """Run a plugin's source and put its rows into the tables; one that is there is not run again.

    Raises UserError for a source that does not run, without ROWS, or with a row that `add_rows`
    refuses.
    """
    if plugin in _plugins.values():
        return
    module = ModuleType(f"_rayunlearn_plugin_{digest(plugin.origin)}")
    module.__file__ = plugin.origin
    try:
        exec(compile(plugin.source, plugin.origin, "exec"), vars(module))
    except Exception as error:
        rule = f"{plugin.origin} must run without an error"
        raise UserError(f"{rule}, got {type(error).__name__}: {error}") from error
    require(hasattr(module, "ROWS"), f"{plugin.origin} must define ROWS", "none")
    add_rows(plugin, module.ROWS)


def load_plugin_file(file: Path) -> None:
    """`load_plugin` of a Python file. Raises UserError also where there is none."""
    require(file.is_file(), "--plugin must be a Python file that exists", str(file))
    load_plugin(Plugin(str(file.resolve()), file.read_text(encoding="utf-8")))


def load_installed_plugins() -> None:
    """`load_plugin` of every module that an installed package names under GROUP."""
    for file in _installed_files():
        load_plugin(Plugin(str(file), file.read_text(encoding="utf-8")))


@lru_cache(maxsize=1)
def _installed_files() -> tuple[Path, ...]:
    """The source files of the entry points; asked once, as it reads every package's metadata."""
    specs = [find_spec(entry.module) for entry in entry_points(group=GROUP)]
    return tuple(Path(spec.origin) for spec in specs if spec is not None and spec.origin)


def add_rows(plugin: Plugin, rows: Iterable[FamilyRow[Any]]) -> None:
    """Put a plugin's rows into the tables that `list` prints and trials are checked against.

    The rows of an earlier state of the same file are replaced. Raises UserError for what is no row,
    and for a name that the package or another plugin has.
    """
    is_rows = isinstance(rows, (tuple, list)) and all(type(row) in ROW_TABLES for row in rows)
    kinds = ", ".join(kind.__name__ for kind in ROW_TABLES)
    require(is_rows, f"ROWS of {plugin.origin} must be a tuple of rows ({kinds})", rows)
    forget_plugin(plugin.origin)
    for row in rows:
        table, name = ROW_TABLES[type(row)], row.function.__name__
        same_name = [kind.__name__ for kind, other in ROW_TABLES.items() if name in other]
        rule = f"a row of {plugin.origin} must have a name of its own; there is a"
        require(not same_name, f"{rule} {' and '.join(same_name)}", name)
        # a mistake in the ranges of its hyperparameters shows here
        options_of(row.function)
        table[name] = row
        if isinstance(row, Metric) and sources_of([row]) <= CHEAP_SOURCES:
            CHEAP[name] = CURVE_METRICS[name] = row
        _plugins[name] = plugin


def forget_plugin(origin: str) -> None:
    """Take the rows of the plugin of that file out of the tables."""
    for name in [name for name, plugin in _plugins.items() if plugin.origin == origin]:
        for table in (*ROW_TABLES.values(), CHEAP, CURVE_METRICS):
            table.pop(name, None)
        del _plugins[name]


def preload(plugins: tuple[Plugin, ...], load: Callable[[], None]) -> None:
    """What a worker does before its first trial: run the driver's plugins, then `load`."""
    load_installed_plugins()
    for plugin in plugins:
        load_plugin(plugin)
    load()
