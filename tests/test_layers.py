"""The shape of the house: imports point down, Ray stays at its edge, and importing does nothing.

The table is that of docs/architecture.md. A module that is in no layer fails the first test: say
where it belongs.
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rayunlearn"
# From the ground up; `docs/architecture.md` says the same. What stands in one layer may import the
# layers below it and nothing of its own layer but itself.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "lazy"}),
    frozenset({"config", "schema"}),
    frozenset({"ranges", "recipes", "canonical", "storage"}),
    frozenset({"data", "analysis"}),
    frozenset({"models", "reporting"}),
    frozenset({"metrics", "train", "keywords"}),
    frozenset({"methods", "attribution"}),
    frozenset({"attacks", "selectors"}),
    frozenset({"registry", "corpus", "plugins"}),
    frozenset({"experiment", "trial"}),
    frozenset({"planning", "interop"}),
    frozenset({"cluster"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
HEAVY = {"torch", "ray", "transformers"}
# Imports of other people's code that a part must do without, wherever in the file they stand.
WITHOUT = {
    "storage": HEAVY,
    "analysis": HEAVY,
    "reporting": HEAVY,
    "experiment": HEAVY,
    "ranges": HEAVY,
    "recipes": HEAVY,
    "canonical": HEAVY,
    "config": HEAVY | {"polars"},
    "schema": HEAVY | {"polars"},
    "errors": HEAVY | {"polars"},
}
LIGHT = (
    "rayunlearn",
    "rayunlearn.config",
    "rayunlearn.schema",
    "rayunlearn.storage.run",
    "rayunlearn.experiment",
    "rayunlearn.planning.planner",
    "rayunlearn.corpus.vectorized_keywords",
)
# Public top-level names that two modules may define, with the reason.
DEFINED_TWICE = {
    "none": "no forget loss, no retain loss, no adapter: rows are named by their function",
    "main": "each program has one",
    "T": "a type variable is its module's own",
}
ROOT_MODULES = {
    "canonical",
    "config",
    "errors",
    "experiment",
    "lazy",
    "ranges",
    "recipes",
    "registry",
    "schema",
}


def part_of(file: Path) -> str:
    """`data` for rayunlearn/data/files.py, `config` for rayunlearn/config.py."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources() -> list[Path]:
    """Every module of the package but its own `__init__`, which only hands `open` on."""
    return sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


def layer_of(part: str) -> int:
    """Number of the layer that lists `part`."""
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


@cache
def imports(source: str, package: str) -> tuple[tuple[str, int], ...]:
    """(full dotted name, line) of everything imported anywhere in the source, in functions too.
    Many tests here ask it of the same files.
    """
    return tuple(_imported(ast.parse(source), package))


def _imported(tree: ast.AST, package: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = (
                package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            )
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def upward(source: str, part: str, package: str = "rayunlearn") -> list[str]:
    """What a module of `part` imports from a higher layer or from another part of its own."""
    found = []
    for name, line in imports(source, package):
        head, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if head == "rayunlearn" and rest and other != part and layer_of(other) >= layer_of(part):
            found.append(f"line {line}: {name}")
    return found


def foreign(source: str, part: str) -> list[str]:
    """Imports of libraries that `part` must do without, those through `lazy` among them; Ray
    belongs to cluster alone.
    """
    banned = WITHOUT.get(part, set()) | (set() if part == "cluster" else {"ray"})
    return [
        f"line {line}: {name}"
        for name, line in imports(source, "rayunlearn")
        if name.removeprefix("rayunlearn.lazy.").partition(".")[0] in banned
    ]


def acts(source: str) -> list[str]:
    """Statements of a module that do something when it is imported: only definitions, imports and
    values may stand there.
    """
    allowed = (
        ast.Import,
        ast.ImportFrom,
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.ClassDef,
        ast.Assign,
        ast.AnnAssign,
    )
    return [
        f"line {node.lineno}: {ast.unparse(node)[:60]}"
        for node in ast.parse(source).body
        if not isinstance(node, allowed) and not _harmless(node)
    ]


def _harmless(node: ast.stmt) -> bool:
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    guarded = isinstance(node, ast.If) and ast.unparse(node.test) in (
        "TYPE_CHECKING",
        "__name__ == '__main__'",
    )
    return docstring or guarded


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_module_is_in_a_layer_and_imports_only_downwards(file: Path) -> None:
    assert any(part_of(file) in layer for layer in LAYERS), (
        f"{part_of(file)} is in no layer of tests/test_layers.py"
    )
    package = ".".join(("rayunlearn", *file.relative_to(PACKAGE).parent.parts))
    assert upward(file.read_text(encoding="utf-8"), part_of(file), package) == []


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_ray_is_imported_by_cluster_alone_and_results_do_without_torch(file: Path) -> None:
    assert foreign(file.read_text(encoding="utf-8"), part_of(file)) == []


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_a_module_only_defines_when_it_is_imported(file: Path) -> None:
    assert acts(file.read_text(encoding="utf-8")) == []


def test_reading_and_planning_load_neither_torch_nor_ray_and_touch_no_file(tmp_path: Path) -> None:
    code = (
        f"import {', '.join(LIGHT)}, sys; assert not {{'torch', 'ray', 'transformers'}} &"
        " set(sys.modules), sorted(sys.modules)"
    )
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(tmp_path),
    }
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        cwd=tmp_path,
        env=environment,
        timeout=60,
    )
    assert list(tmp_path.iterdir()) == []


def test_the_checks_find_what_they_look_for() -> None:
    """The three finders on code that breaks each rule, so that a green run means something."""
    assert upward("from rayunlearn.train.loop import optimise\n", "data") == [
        "line 1: rayunlearn.train.loop.optimise"
    ]
    assert upward("from rayunlearn import cli\n", "storage") == ["line 1: rayunlearn.cli"]
    assert upward("def f():\n    import rayunlearn.cluster.sweep\n", "trial") == [
        "line 2: rayunlearn.cluster.sweep"
    ]
    assert upward("from ..train import loop\n", "data", "rayunlearn.data") == [
        "line 1: rayunlearn.train.loop"
    ]
    assert upward("from rayunlearn.data import files\nimport torch\n", "train") == []
    assert foreign("import ray.tune\n", "trial") == ["line 1: ray.tune"]
    assert foreign("from torch import Tensor\n", "storage") == ["line 1: torch.Tensor"]
    assert foreign("from rayunlearn.lazy import torch\n", "storage") == [
        "line 1: rayunlearn.lazy.torch"
    ]
    assert foreign("from ray import tune\n", "cluster") == []
    assert acts('"""Doc."""\nimport os\nos.mkdir("x")\nfor i in range(3):\n    pass\n') == [
        "line 3: os.mkdir('x')",
        "line 4: for i in range(3):\n    pass",
    ]


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    return {
        ".".join(("rayunlearn", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): file
        for file in sorted(PACKAGE.rglob("*.py"))
    }


@cache
def import_graph() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports anywhere, in functions too."""
    files = modules()
    graph: dict[str, set[str]] = {}
    for module, file in files.items():
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        names = [n for n, _ in imports(file.read_text(encoding="utf-8"), package)]
        targets = {n if n in files else n.rpartition(".")[0] for n in names}
        graph[module] = (targets & set(files)) - {module}
    return graph


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Modules that `start` imports, directly or through others."""
    seen: set[str] = set()
    queue = [*graph[start]]
    while queue:
        if (module := queue.pop()) not in seen:
            seen.add(module)
            queue += graph[module]
    return seen


def test_no_module_imports_itself_through_others() -> None:
    graph = import_graph()
    assert [module for module in graph if module in reachable(graph, module)] == []
    ring = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert [module for module in ring if module in reachable(ring, module)] == ["a", "b", "c"]


def test_every_module_of_cluster_needs_ray() -> None:
    graph = import_graph()
    imports_ray = {
        module
        for module, file in modules().items()
        if any(
            name.partition(".")[0] == "ray"
            for name, _ in imports(file.read_text(encoding="utf-8"), "rayunlearn")
        )
    }
    cluster = {m for m in graph if m.startswith("rayunlearn.cluster.")}
    without = {m for m in cluster - imports_ray if not reachable(graph, m) & imports_ray}
    assert imports_ray <= cluster and without == set()


def test_the_root_holds_what_users_import_and_no_more() -> None:
    assert {f.stem for f in PACKAGE.glob("*.py")} - {"__init__", "__main__"} == ROOT_MODULES
    assert len(ROOT_MODULES) <= 9


# Folders with an `__init__.py`: what the sentence of another package may name.
PACKAGES = sorted(file.parent.name for file in PACKAGE.glob("*/__init__.py"))


def packages_imported_by(package: str) -> set[str]:
    """Other packages that some module of `package` imports, in functions too."""
    graph = import_graph()
    prefix = f"rayunlearn.{package}."
    heads = {
        target.split(".")[1]
        for module, targets in graph.items()
        if f"{module}.".startswith(prefix)
        for target in targets
        if target.count(".")
    }
    return (heads & set(PACKAGES)) - {package}


def test_the_packages_that_another_imports_are_found() -> None:
    assert {"data", "models", "storage"} <= packages_imported_by("train")
    assert packages_imported_by("storage") == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_in_one_sentence_what_it_holds_and_what_it_may_import(package: str) -> None:
    tree = ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8"))
    text = " ".join((ast.get_docstring(tree) or "").split())
    what, _, allowed = text.partition("; may import ")
    assert what and allowed and text.endswith(".") and ". " not in text
    if allowed != "everything.":
        named = set(re.findall(r"\w+", allowed)) & set(PACKAGES)
        assert packages_imported_by(package) <= named
        assert all(layer_of(name) < layer_of(package) for name in named)


def defined_names(node: ast.stmt) -> list[str]:
    """Functions, classes, constants and types that a statement at a module's top defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def test_no_public_name_is_defined_in_two_modules() -> None:
    homes: dict[str, list[str]] = {}
    for module, file in modules().items():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            for name in defined_names(node):
                if not name.startswith("_"):
                    homes.setdefault(name, []).append(module)
    twice = {name: found for name, found in homes.items() if len(found) > 1}
    assert {name: found for name, found in twice.items() if name not in DEFINED_TWICE} == {}


def test_the_table_of_layers_on_the_page_is_this_one() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) [\w, ]+ \| (.+) \|$", text, re.MULTILINE)
    named = {
        int(number): frozenset(re.findall(r"`([a-z_]+)(?:/|\.py)`", parts))
        for number, parts in rows
    }
    assert named == dict(enumerate(LAYERS[:-1], start=1))


def test_the_tree_on_the_page_names_every_part_and_no_other() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = text.partition("```\nrayunlearn/\n")[2].partition("\nexperiments/")[0]
    named = {
        name.removesuffix("/").removesuffix(".py")
        for name in re.findall(r"^  ([a-z_]+(?:\.py|/)) ", tree, re.MULTILINE)
    }
    assert named == {part_of(file) for file in sources()} - {"__main__"}


IMPORTED_AS = {"sklearn": "scikit-learn", "fpdf": "fpdf2", "mlflow": "mlflow-skinny"}
# transformers calls it for `device_map`
USED_BY_OTHERS = {"accelerate"}


def declared(extras: bool = False) -> dict[str, str]:
    """Dependency (as on PyPI, lower case, dashes) -> its whole line in pyproject.toml; with
    `extras`, the optional ones too.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = (
        [line for lines in project["optional-dependencies"].values() for line in lines]
        if extras
        else []
    )
    return {
        re.split(r"[\[<>=]", line)[0].replace("_", "-").lower(): line
        for line in (*project["dependencies"], *optional)
    }


def libraries() -> set[str]:
    """Dependencies that some module imports, named as on PyPI."""
    heads = {
        name.partition(".")[0]
        for file in sources()
        for name, _ in imports(file.read_text(encoding="utf-8"), "rayunlearn")
    }
    return {
        IMPORTED_AS.get(head, head).replace("_", "-")
        for head in heads
        if head and head not in sys.stdlib_module_names and head != "rayunlearn"
    }


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    assert libraries() <= set(declared(extras=True))
    assert set(declared()) <= libraries() | USED_BY_OTHERS


def test_every_dependency_is_pinned_inside_its_range_without_a_local_version() -> None:
    from packaging.requirements import Requirement

    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = {
        name.replace("_", "-").lower(): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)
    }
    for name, line in declared().items():
        assert pins[name] in Requirement(line).specifier, line
    assert not [version for version in pins.values() if "+" in version]
    assert "://" not in text
