"""What there is, printed: the tables of methods, selectors and metrics, the experiments of a
folder, the cells of a plan.
"""

import ast
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from rayunlearn.cli.docs_settings import setting_lines, settings_page
from rayunlearn.errors import require

if TYPE_CHECKING:
    # plan's own, which loads every family; a list pays for its table alone
    from rayunlearn.planning.cost import PlannedCell


def print_methods(console: Console) -> None:
    """Forget and retain losses, and what else belongs to a method:
    companions, wrappers, adapters, optimizers.
    """
    from rayunlearn.methods.forget import FORGET
    from rayunlearn.methods.retain import RETAIN

    _heading(
        console,
        "method.forget: what is minimised, times method.forget_weight, on the forget documents",
    )
    for name, row in FORGET.items():
        options = [
            line
            for function in (row.function, row.weighting, row.ending)
            for line in options_in_words(function)
        ]
        _entry(console, name, row.title, [row.equation, *options, row.source])
    _heading(
        console, "method.retain: what is added, times method.retain_weight, on the retain documents"
    )
    for name, retain_loss in RETAIN.items():
        _entry(
            console,
            name,
            retain_loss.title,
            [retain_loss.equation, *options_in_words(retain_loss.function), retain_loss.source],
        )
    _print_method_parts(console)


def _print_method_parts(console: Console) -> None:
    """What stands beside the losses: companions, wrappers, adapters, optimizers."""
    from rayunlearn.methods.paired_responses import PAIRED_RESPONSES
    from rayunlearn.train.adapters import ADAPTERS
    from rayunlearn.train.optimizers import OPTIMIZERS
    from rayunlearn.train.wrappers import WRAPPERS

    companions = (
        "companions: the other text that dpo (by method.preferred), altpo, idk and llmu look at"
    )
    for heading, table in (
        (companions, PAIRED_RESPONSES),
        ("method.wrappers: what is put around any of them, separated by commas", WRAPPERS),
        ("train.adapter: what is trained", ADAPTERS),
        ("train.optimizer: how a step follows from the gradient", OPTIMIZERS),
    ):
        _heading(console, heading)
        for name, part in dict[str, Any](table).items():
            _entry(console, name, part.title, [*options_in_words(part.function), part.source])


def print_recipes(console: Console) -> None:
    """Published runs: every value with its source, and `not confirmed` where it was not read where
    it was run.
    """
    from rayunlearn.recipes import RECIPES

    for name, recipe in RECIPES.items():
        lines = [f"model: {recipe.model}", f"corpus: {recipe.corpus}"]
        for setting, row in recipe.settings.items():
            lines.append(
                f"{setting} = {row.value!r}{'' if row.confirmed else ', not confirmed'}"
                f" ({row.source})"
            )
        _entry(console, name, recipe.title, [*lines, f"differs: {recipe.departures}"])


def print_selectors(console: Console) -> None:
    """Ways to choose a coreset, and the part of the retain set that trains."""
    from rayunlearn.selectors.retain import RETAIN_SELECTORS
    from rayunlearn.selectors.table import SELECTORS

    for heading, table in (
        ("select.name: which part of the forget set is kept", SELECTORS),
        ("retain.name: which part of the retain set trains", RETAIN_SELECTORS),
    ):
        _heading(console, heading)
        for name, row in table.items():
            _entry(
                console,
                name,
                row.title,
                [*options_in_words(row.function), f"departures: {row.departures}", row.source],
            )


def print_extractors(console: Console) -> None:
    """Ways to find keywords."""
    from rayunlearn.keywords.table import EXTRACTORS

    _heading(console, "select.extractor: how the keywords of a document are found")
    for name, row in EXTRACTORS.items():
        _entry(console, name, row.title, [*options_in_words(row.function), row.source])


def print_metrics(console: Console) -> None:
    """Metrics with unit, range and direction."""
    from rayunlearn.metrics.table import METRICS

    _heading(console, "metrics, one value per document")
    for name, row in METRICS.items():
        direction = (
            f"{row.direction} is more knowledge"
            if row.direction
            else "says nothing of knowledge by itself"
        )
        scale = f"{row.unit}, from {row.low:g} to {row.high:g}; {direction}"
        _entry(console, name, row.title, [scale, *options_in_words(row.function), row.source])


def print_attacks(console: Console) -> None:
    """Attacks by kind, with their options, source and control."""
    from rayunlearn.attacks.base import ATTACK_KINDS
    from rayunlearn.attacks.table import ATTACKS

    for kind in ATTACK_KINDS:
        rows = {name: row for name, row in ATTACKS.items() if row.kind == kind}
        if rows:
            _heading(console, f"attacks of kind {kind}")
        for name, row in rows.items():
            _entry(
                console,
                name,
                row.title,
                [*options_in_words(row.function), f"control: {row.control}", row.source],
            )


def print_settings(console: Console) -> None:
    """Every setting of a trial: meaning, default, allowed values."""
    for name, meaning, default, allowed in setting_lines():
        line = f"default {default}" + (f"; allowed: {allowed}" if allowed else "")
        _entry(console, name, meaning, [line])


def print_experiments(console: Console) -> None:
    """The experiment files in `experiments/` and the first sentence of each; nothing is run."""
    files = sorted(Path("experiments").glob("*.py"))
    require(
        bool(files),
        "experiments are the .py files of a folder named experiments, which must be here",
        str(Path.cwd()),
    )
    for file in files:
        _entry(console, str(file), first_sentence(file), [])


def first_sentence(file: Path) -> str:
    """First sentence of a file's docstring, read without importing it."""
    try:
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    except SyntaxError as error:
        return f"(does not parse: {error.msg}, line {error.lineno})"
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return re.split(r"(?<=[.?!]) ", paragraph)[0]


def options_in_words(function: Callable[..., Any]) -> list[str]:
    """`npo.beta = 0.1 (must be > 0)`, one line per hyperparameter."""
    from rayunlearn.ranges import options_of

    return [
        f"{o.name} = {o.default!r}" + (f" ({o.rule.words})" if o.rule else "")
        for o in options_of(function)
    ]


def print_cells(cells: Sequence["PlannedCell"], console: Console) -> None:
    """The plan, one line per cell."""
    rows = [
        (
            c.role,
            c.method,
            c.selector,
            "" if math.isnan(c.ratio) else f"{c.ratio:g}",
            c.group,
            str(c.planned),
            str(c.finished),
        )
        for c in cells
    ]
    _print(console, ("role", "method", "selector", "ratio", "group", "trials", "finished"), rows)


def print_base(title: str, table: Sequence[dict[str, Any]], console: Console) -> None:
    """What base knows, one line per probe split and metric, with 95% intervals over documents."""
    rows = [
        (
            row["split"],
            row["metric"],
            str(row["n"]),
            f"{row['mean']:.2f}",
            "" if row["low"] is None else f"[{row['low']:.2f}, {row['high']:.2f}]",
        )
        for row in table
    ]
    console.print(title, highlight=False, markup=False)
    _print(console, ("split", "metric", "n", "mean", "95% over documents"), rows)


def print_cell_summary(cells: Sequence["PlannedCell"], console: Console) -> None:
    """The plan, one line per role and method: how many selectors, ratios and groups it spans."""
    summed: dict[tuple[str, str], list[PlannedCell]] = {}
    for cell in cells:
        summed.setdefault((cell.role, cell.method), []).append(cell)
    rows = [
        (
            role,
            method,
            _number_or_name({c.selector for c in part}),
            _span({c.ratio for c in part if not math.isnan(c.ratio)}),
            str(len({c.group for c in part})),
            str(sum(c.planned for c in part)),
            str(sum(c.finished for c in part)),
        )
        for (role, method), part in summed.items()
    ]
    _print(console, ("role", "method", "selectors", "ratios", "groups", "trials", "finished"), rows)


def _number_or_name(names: set[str]) -> str:
    return next(iter(names)) if len(names) == 1 else str(len(names))


def _span(ratios: set[float]) -> str:
    """`0.05 to 1 (20)`."""
    if len(ratios) <= 1:
        return "".join(f"{ratio:g}" for ratio in ratios)
    return f"{min(ratios):g} to {max(ratios):g} ({len(ratios)})"


def _heading(console: Console, text: str) -> None:
    console.print(Text(text, style="bold underline"))


def _entry(console: Console, name: str, title: str, lines: Sequence[str]) -> None:
    """A name with its title, then what is said of it; on a terminal broken to its width, in a file
    a line each.
    """
    head = Text.assemble((name, "bold"), f"  {title}")
    details = [Text(line, style="dim" if line == lines[-1] else "") for line in lines]
    if not console.is_terminal:
        for text in (head, *(Text("    ").append_text(detail) for detail in details)):
            console.print(text, soft_wrap=True)
        return
    # a list that goes to a file loads less
    from rich.padding import Padding

    console.print(head)
    for detail in details:
        console.print(Padding(detail, (0, 0, 0, 4), expand=False))


def _print(console: Console, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    # the lists have no table
    from rayunlearn.reporting.terminal_tables import print_fitting

    numeric = [header in ("ratio", "trials", "finished", "n", "mean") for header in headers]
    print_fitting(console, headers, rows, numeric=numeric)
    console.print()


if __name__ == "__main__":
    print(settings_page(), end="")
