"""What users write against: names that may not go without a word in CHANGELOG.md, the version, and
the wheel.
"""

import importlib
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import rayunlearn
from rayunlearn import config, experiment, ranges

ROOT = Path(__file__).parents[1]
PUBLIC = {
    rayunlearn: {"open"},
    config: {
        "Attack",
        "Calibrate",
        "Data",
        "Explain",
        "Measure",
        "Method",
        "Model",
        "Select",
        "Stop",
        "Token",
        "Train",
        "Trial",
    },
    experiment: {"Budget", "Choice", "Experiment", "Objective", "Range", "load"},
    ranges: {"Count", "Positive", "UnitInterval"},
}


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_the_names_that_users_write_against_are_there(module: object) -> None:
    assert [name for name in sorted(PUBLIC[module]) if not hasattr(module, name)] == []


def test_the_package_itself_offers_one_name() -> None:
    assert rayunlearn.__all__ == ["open"]


def test_the_version_is_said_once_and_told_in_the_change_log() -> None:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]
    assert said == version("rayunlearn") == "0.2.0"
    assert f"## {said}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_wheel_holds_the_package_with_its_templates_and_nothing_else(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--wheel-dir",
        str(tmp_path),
    ]
    subprocess.run(command, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert (
        "rayunlearn/reporting/templates/report.html.j2" in names
        and "rayunlearn/cli/inspect.py" in names
    )
    assert {name.split("/")[0] for name in names} == {"rayunlearn", "rayunlearn-0.2.0.dist-info"}


def test_the_installed_command_is_a_function_that_exists() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = scripts["scripts"]["rayunlearn"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
