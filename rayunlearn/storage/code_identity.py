"""What identifies the code that made a stored value: modules by what Python executes of them, and
versions of libraries. It is part of the key under which the value is kept.
"""

import ast
from functools import lru_cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from types import ModuleType

import rayunlearn
from rayunlearn.config import digest


@lru_cache
def version_of(name: str) -> str:
    """The version of an installed package, 'absent' where it is not installed."""
    try:
        return package_version(name)
    except PackageNotFoundError:
        return "absent"


def library_versions() -> dict[str, str]:
    """Versions of the libraries that compute what a model says."""
    return {name: version_of(name) for name in ("torch", "transformers")}


@lru_cache(maxsize=1)
def package_digest() -> str:
    """What identifies the code of rayunlearn as a whole, comments too."""
    files = sorted(Path(rayunlearn.__file__).parent.rglob("*.py"))
    return digest([[file.name, file.read_text(encoding="utf-8")] for file in files])


@lru_cache
def code_digest(*modules: ModuleType) -> str:
    """What identifies the code of these modules, of a package every module below it, so that a
    value that other code made is not taken.

    Of what Python executes: docstrings, comments and layout do not count. A cache says once, beside
    the key it builds, which modules decide its values.
    """
    files = {file for module in modules for file in _files_of(module)}
    return digest([[file.name, _code_of(file)] for file in sorted(files)])


def _files_of(module: ModuleType) -> list[Path]:
    folders = getattr(module, "__path__", ())
    inside = [file for folder in folders for file in Path(folder).rglob("*.py")]
    return inside if folders else [Path(str(module.__file__))]


@lru_cache(maxsize=512)
def _code_of(file: Path) -> str:
    """Digest of a module's syntax tree without its docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return digest(ast.dump(tree))


def definition_digest(source: str, name: str, *, family: str = "") -> str:
    """What identifies a function of a module and all that it uses of the same module.

    Docstrings, comments and layout do not count. With `family`, a package of ours, what it
    imports from modules of that package is followed too. Raises KeyError where the module defines
    no such name.

    Example:
        >>> one, other = "f = lambda: g\\ng = 1\\nh = 2", "f = lambda: g\\ng = 1\\nh = 3"
        >>> definition_digest(one, "f") == definition_digest(other, "f")
        True
        >>> definition_digest(one, "h") == definition_digest(other, "h")
        False
    """
    collected: dict[tuple[str, str], str] = {}
    waiting = [("", source, name)]
    while waiting:
        module, text, defined = waiting.pop()
        if (module, defined) in collected:
            continue
        definitions = _definitions(text)
        if defined not in definitions:
            if not collected:
                raise KeyError(defined)
            continue
        dump, names, imported_from = definitions[defined]
        collected[module, defined] = dump
        waiting += [(module, text, used) for used in names if used != defined]
        if family and f"{imported_from}.".startswith(f"{family}."):
            file = _file_of(imported_from)
            if file is not None:
                waiting.append((imported_from, file.read_text(encoding="utf-8"), defined))
    return digest(sorted([module, defined, dump] for (module, defined), dump in collected.items()))


def _file_of(module: str) -> Path | None:
    """The source file of a module of rayunlearn; None for a package."""
    file = Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py")
    return file if file.is_file() else None


@lru_cache(maxsize=64)
def _definitions(source: str) -> dict[str, tuple[str, tuple[str, ...], str]]:
    """What a module defines at its top, by name: its syntax tree without docstrings, the names that
    it uses, and the module that it is imported from ('' where it is defined here).
    """
    definitions: dict[str, tuple[str, tuple[str, ...], str]] = {}
    for node in ast.parse(source).body:
        names, origin = _names_bound(node), ""
        if isinstance(node, ast.ImportFrom):
            origin = node.module or ""
        if not names:
            continue
        for inner in ast.walk(node):
            if isinstance(inner, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
                ast.get_docstring(inner, clean=False) is not None
            ):
                inner.body = inner.body[1:]
        used = tuple(sorted({n.id for n in ast.walk(node) if isinstance(n, ast.Name)}))
        # of an import the one name; what stands beside it in the line is another's
        definitions |= {
            name: (f"{origin} import" if origin else ast.dump(node), used, origin) for name in names
        }
    return definitions


def _names_bound(node: ast.stmt) -> list[str]:
    """The names that a statement at the top of a module gives a value to."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [
        n.id
        for target in targets
        if target is not None
        for n in ast.walk(target)
        if isinstance(n, ast.Name)
    ]
