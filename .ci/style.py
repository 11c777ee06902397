"""Style figures of the package beside those of five projects that we take as models, and the
longest functions and files. Ends with 1 where a figure is worse than its bound.

`python .ci/style.py` measures rayunlearn, `python .ci/style.py FOLDER` any other package.
"""

import ast
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

SHOWN = 8
MAX_LINES, MAX_ARGUMENTS, MAX_COLUMNS = 35, 8, 100
Function = ast.FunctionDef | ast.AsyncFunctionDef

# Words that name nothing of the field when they stand alone as a variable or an argument.
PRIVATE_WORDS = frozenset(
    [
        "around",
        "asked",
        "at",
        "begun",
        "beside",
        "drawn",
        "every",
        "found",
        "further",
        "given",
        "here",
        "kept",
        "known",
        "least",
        "left",
        "look",
        "looks",
        "made",
        "mine",
        "most",
        "one",
        "others",
        "own",
        "place",
        "said",
        "shown",
        "some",
        "taken",
        "there",
        "told",
        "wanted",
    ]
)

# What may not get worse: figure -> largest value that passes.
BOUNDS = {
    "modules at the root": 9,
    "functions over 35 lines": 3,
    "functions over 8 arguments": 4,
    "lines over 100 columns, %": 0.0,
    "names defined in two modules": 2,
    "import cycles": 0,
    "private words, %": 0.25,
}

# Measured in the same way on the projects' own trees, at these commits; - was not measured.
ANCHORS: Mapping[str, Mapping[str, str]] = {
    "httpx ae1b9f6": {
        "files": "23",
        "modules at the root": "17",
        "file lines: median / p90 / max": "248 / 641 / 2019",
        "function lines: median / p90 / max": "6 / 31 / 133",
        "functions over 35 lines": "32",
        "lines over 100 columns, %": "0",
        "private words, %": "0.0",
        "comment lines, %": "4.0",
        "functions with a docstring, %": "35",
    },
    "optuna 1d8ce7b": {
        "files": "220",
        "modules at the root": "12",
        "file lines: median / p90 / max": "115 / 428 / 1712",
        "function lines: median / p90 / max": "9 / 36 / 236",
        "functions over 35 lines": "159",
        "lines over 100 columns, %": "0.1",
        "private words, %": "0.0",
        "comment lines, %": "3.3",
        "functions with a docstring, %": "17",
    },
    "equinox 9336d82": {
        "files": "72",
        "modules at the root": "22",
        "file lines: median / p90 / max": "134 / 509 / 1278",
        "function lines: median / p90 / max": "6 / 31 / 424",
        "functions over 35 lines": "52",
        "lines over 100 columns, %": "0.2",
        "comment lines, %": "5.4",
        "functions with a docstring, %": "24",
    },
    "levanter 9263f81": {
        "files": "128",
        "modules at the root": "17",
        "file lines: median / p90 / max": "199 / 691 / 2295",
        "function lines: median / p90 / max": "8 / 36 / 674",
        "functions over 35 lines": "217",
        "lines over 100 columns, %": "5.3",
        "private words, %": "0.1",
        "comment lines, %": "6.0",
        "functions with a docstring, %": "25",
    },
    "nanochat 92d63d4": {
        "files": "14",
        "modules at the root": "14",
        "file lines: median / p90 / max": "262 / 459 / 555",
        "function lines: median / p90 / max": "11 / 40 / 99",
        "functions over 35 lines": "19",
        "lines over 100 columns, %": "3.7",
        "private words, %": "0.0",
        "comment lines, %": "12.0",
        "functions with a docstring, %": "50",
    },
}


@dataclass(frozen=True)
class Module:
    """One file: its dotted name and its text."""

    name: str
    path: Path
    text: str

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the syntax tree."""
        return list(ast.walk(ast.parse(self.text)))

    @cached_property
    def functions(self) -> list[Function]:
        """Every function and method, nested ones too."""
        return [node for node in self.nodes if isinstance(node, Function)]

    @property
    def lines(self) -> list[str]:
        """The lines that are not blank."""
        return [line for line in self.text.splitlines() if line.strip()]

    def imports(self) -> Iterator[tuple[str, str]]:
        """(module, name in it or '') of every import, those inside functions too."""
        package = self.name if self.path.stem == "__init__" else self.name.rpartition(".")[0]
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                parents = package.split(".")
                above = parents[: len(parents) + 1 - node.level] if node.level else []
                base = ".".join([*above, *filter(None, [node.module])])
                yield from ((base, alias.name) for alias in node.names)


def modules_of(root: Path) -> list[Module]:
    """Every module of the package in the folder `root`."""
    return [
        Module(_dotted_name(root, path), path, path.read_text(encoding="utf-8"))
        for path in sorted(root.rglob("*.py"))
    ]


def _dotted_name(root: Path, path: Path) -> str:
    parts = (root.name, *path.relative_to(root).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def function_lines(node: Function) -> int:
    """Lines of a function, its docstring not counted."""
    docstring = ast.get_docstring(node, clean=False)
    n_docstring = docstring.count("\n") + 1 if docstring is not None else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - n_docstring


def n_arguments(node: Function) -> int:
    """Arguments that a caller may give: `self` and `cls` are not, `*args` and `**kwargs` are."""
    listed = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    variadic = [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
    return len([a for a in listed if a.arg not in ("self", "cls")]) + len(variadic)


def names_defined_twice(modules: Sequence[Module]) -> dict[str, list[str]]:
    """Public top-level function or class -> the modules that define it, where they are several."""
    homes: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        names = {
            node.name
            for node in ast.parse(module.text).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        }
        for name in names:
            homes[name].append(module.name)
    return {name: found for name, found in homes.items() if len(found) > 1}


def private_share(modules: Sequence[Module]) -> float:
    """Percent of all bound names (variables, arguments) that are words of PRIVATE_WORDS."""
    names = Counter(
        node.arg if isinstance(node, ast.arg) else node.id
        for module in modules
        for node in module.nodes
        if isinstance(node, ast.arg)
        or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    )
    return 100 * sum(names[word] for word in PRIVATE_WORDS) / max(1, names.total())


def import_graph(modules: Sequence[Module]) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports."""
    names = {module.name for module in modules}
    graph: dict[str, set[str]] = {}
    for module in modules:
        targets = {
            f"{base}.{name}" if f"{base}.{name}" in names else base
            for base, name in module.imports()
        }
        graph[module.name] = (targets & names) - {module.name}
    return graph


def import_order(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, each group after what it imports (Tarjan 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for target in sorted(graph[module]):
            if target not in number:
                visit(target)
            if target in stack:
                lowest[module] = min(lowest[module], lowest[target])
        if lowest[module] == number[module]:
            groups.append(stack[stack.index(module) :])
            del stack[stack.index(module) :]

    for module in sorted(graph):
        if module not in number:
            visit(module)
    return groups


def import_levels(graph: Mapping[str, set[str]]) -> int:
    """Modules on the longest chain of imports; a group that imports itself is one level."""
    level: dict[str, int] = {}
    for group in import_order(graph):
        below = {target for module in group for target in graph[module]} - set(group)
        depth = 1 + max((level[target] for target in below), default=0)
        level |= dict.fromkeys(group, depth)
    return max(level.values(), default=0)


def spread(values: Sequence[int]) -> str:
    """`median / 90th percentile / largest` of some counts."""
    ordered = sorted(values)
    if not ordered:
        return "-"
    p90 = ordered[int(0.9 * len(ordered))]
    return f"{statistics.median(ordered):g} / {p90} / {ordered[-1]}"


def figures(root: Path) -> dict[str, float | str]:
    """Every figure of the package, by name, in the order in which they are printed."""
    modules = modules_of(root)
    functions = [node for module in modules for node in module.functions]
    lengths = [function_lines(node) for node in functions]
    lines = [line for module in modules for line in module.lines]
    graph = import_graph(modules)
    return {
        "files": len(modules),
        "lines that are not blank": len(lines),
        "modules at the root": sum(not f.name.startswith("__") for f in root.glob("*.py")),
        "file lines: median / p90 / max": spread([len(m.text.splitlines()) for m in modules]),
        "function lines: median / p90 / max": spread(lengths),
        "functions over 35 lines": sum(length > MAX_LINES for length in lengths),
        "functions over 8 arguments": sum(n_arguments(f) > MAX_ARGUMENTS for f in functions),
        "lines over 100 columns, %": _percent([len(line) > MAX_COLUMNS for line in lines]),
        "names defined in two modules": len(names_defined_twice(modules)),
        "import levels": import_levels(graph),
        "import cycles": sum(len(group) > 1 for group in import_order(graph)),
        "private words, %": round(private_share(modules), 2),
        "comment lines, %": _percent([line.lstrip().startswith("#") for line in lines]),
        "functions with a docstring, %": _percent([bool(ast.get_docstring(f)) for f in functions]),
    }


def _percent(flags: Sequence[bool]) -> float:
    return round(100 * sum(flags) / max(1, len(flags)), 2)


def exceeded(measured: Mapping[str, float | str]) -> list[str]:
    """A line for every figure that is worse than its bound."""
    return [
        f"{name}: {measured[name]}, at most {bound} may be"
        for name, bound in BOUNDS.items()
        if float(measured[name]) > bound
    ]


def table_of(name: str, measured: Mapping[str, float | str]) -> str:
    """The figures of the package beside the anchors', a row per figure."""
    rows = [["", name, *ANCHORS]]
    for figure, value in measured.items():
        others = [anchor.get(figure, "-") for anchor in ANCHORS.values()]
        rows.append([figure, str(value), *others])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def longest(root: Path) -> str:
    """The functions with most lines and most arguments, and the longest files: to look at."""
    modules = modules_of(root)
    places = [
        (node, f"{module.path.relative_to(root.parent)}:{node.lineno} {node.name}")
        for module in modules
        for node in module.functions
    ]
    lists = {
        "longest functions": [(function_lines(node), place) for node, place in places],
        "most arguments": [(n_arguments(node), place) for node, place in places],
        "longest files": [
            (len(m.text.splitlines()), str(m.path.relative_to(root.parent))) for m in modules
        ],
    }
    return "\n".join(
        line
        for title, rows in lists.items()
        for line in (title, *(f"  {n:4}  {place}" for n, place in sorted(rows)[: -SHOWN - 1 : -1]))
    )


def main(root: Path) -> int:
    """Print the table and the longest; 1 where a figure is worse than its bound."""
    measured = figures(root)
    print(table_of(root.name, measured))
    print(longest(root))
    lines = exceeded(measured)
    print("\n".join(lines))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "rayunlearn").resolve()))
