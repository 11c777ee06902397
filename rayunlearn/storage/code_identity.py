"""What identifies the code that made a stored value: modules by what Python executes of them, and
versions of libraries. It is part of the key under which the value is kept.
"""

import ast
from functools import lru_cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from types import ModuleType

from rayunlearn.config import digest


def version_of(name: str) -> str:
    """The version of an installed package, 'absent' where it is not installed."""
    try:
        return package_version(name)
    except PackageNotFoundError:
        return "absent"


def library_versions() -> dict[str, str]:
    """Versions of the libraries that compute what a model says."""
    return {name: version_of(name) for name in ("torch", "transformers")}


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
