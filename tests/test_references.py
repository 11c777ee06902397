"""A module or function that a page, a docstring or a comment names is there: after a move the old
name stands nowhere.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from rayunlearn.config import Objective, field_names
from rayunlearn.registry import option_names

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rayunlearn"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
# What else names modules of ours: comments of the settings files, of deployment and of CI.
OTHERS = ["pyproject.toml", "Makefile", "Dockerfile", "cluster.yaml", "deploy/kuberay/rayjob.yaml"]
# Files of other people's code that we cite, and files that a page has its reader write.
WRITTEN = {f"experiments/{name}.py" for name in ("mine", "hinge", "losses")} | {"losses.py"}
NOT_OURS = {"aggregate_eval_stat.py", "utils.py"} | WRITTEN
# Attributes of arguments and keys of metadata whose first word is also a module.
ATTRIBUTES = {
    "source.max_tokens",
    "objective.fluency",
    "trial.model",
    "rayunlearn.schema_version",
    "rayunlearn.open",
    "harness.acc",
    "harness.exact_match",
}
FILE = re.compile(r"(?<![\w/.$*-])((?:[a-z_]+/)*[a-z_]\w*\.py)\b")
DOTTED = re.compile(r"`(?:rayunlearn\.)?(?:[a-z_]+\.)*?([a-z_]\w*)\.([A-Za-z_]\w*)(?:\(\))?`")
# Modules of earlier layouts, where the word is not also a module or an argument of today.
MOVED = {
    "attacked",
    "attackplan",
    "blockwise",
    "calibrated",
    "catalogue",
    "companions",
    "connectivity",
    "extractors",
    "families",
    "floor",
    "measuring",
    "mixing",
    "panel",
    "passes",
    "pieces",
    "placing",
    "remade",
    "runner",
    "shelf",
    "testbed",
    "universal",
    "weightspace",
    "worker",
    "explanation",
    "extraction",
    "unlearning",
}


@cache
def our_files() -> set[str]:
    """Paths of our Python files with every shorter form that a page may use: `methods/forget.py`,
    `forget.py`.
    """
    folders = ("rayunlearn", "experiments", "tests", "benchmarks", ".ci")
    paths = [f.relative_to(ROOT) for folder in folders for f in (ROOT / folder).rglob("*.py")]
    return {"/".join(path.parts[start:]) for path in paths for start in range(len(path.parts))}


def prose_of(source: str) -> Iterator[str]:
    """Docstrings (every string in three quotes) and comments of a file."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or (
            token.type == tokenize.STRING and token.string.endswith('"""')
        ):
            yield token.string


@cache
def defined_names() -> dict[str, set[str]]:
    """Name of a module or package -> what the modules of that name define, import or hold."""
    names: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        names.setdefault(file.stem, set()).update(
            {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.alias)}
            | {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        )
        names.setdefault(file.parent.name, set()).add(file.stem)
    return names


@cache
def setting_names() -> set[str]:
    """Settings, of trials and of the objective, and hyperparameters, which read like
    `module.name`.
    """
    return {
        *field_names(),
        *option_names(),
        *(f"objective.{part.name}" for part in fields(Objective)),
    }


def wrong_references(text: str, files: set[str], defined: dict[str, set[str]]) -> set[str]:
    """Files and `module.name` in the text that do not exist."""
    dotted = {
        f"{module}.{name}"
        for module, name in DOTTED.findall(text)
        if f"{module}.{name}" not in setting_names()
        and name not in ("py", "parquet", "json", "jsonl", "toml", "yaml", "md", "html")
        and f"{module}.{name}" not in ATTRIBUTES
        and (module in MOVED or name not in defined.get(module, {name}))
    }
    return dotted | (set(FILE.findall(text)) - files - NOT_OURS)


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / name for name in OTHERS)], ids=lambda p: p.name)
def test_a_page_names_modules_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert wrong_references(text, our_files(), defined_names()) == set()


def test_docstrings_and_comments_name_modules_and_functions_that_exist() -> None:
    files, defined = our_files(), defined_names()
    wrong = {
        (str(file.relative_to(ROOT)), name)
        for file in sorted(PACKAGE.rglob("*.py"))
        for text in prose_of(file.read_text(encoding="utf-8"))
        for name in wrong_references(text, files, defined)
    }
    assert wrong == set()


def test_the_check_finds_what_it_looks_for() -> None:
    defined = {"hypothesis_tests": {"difference"}}
    text = "see `statistics.py`, `hypothesis_tests.paired`, `rayunlearn.attacked.run`, `npo.beta`"
    assert wrong_references(text, {"run.py"}, defined) == {
        "statistics.py",
        "hypothesis_tests.paired",
        "attacked.run",
    }
