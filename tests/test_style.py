"""The style figures of `make check`, counted by hand on a package of three modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    "__init__.py": "",
    "low.py": 'def half(x):\n    """Half.\n\n    Of x.\n    """\n    return x / 2\n',
    "high.py": (
        "from house.low import half\n\n\n"
        "# a comment\n"
        "def quarter(x, *, found=1, **more):\n    from .rooms import attic\n\n    return half(x)\n"
    ),
    "rooms/__init__.py": "",
    "rooms/attic.py": (
        "import house.high\n\n\ndef half(self, cls):\n    a = 1\n    return '" + "x" * 90 + "'\n"
    ),
}


def load_style() -> ModuleType:
    """The module `.ci/style.py`, which is in no package."""
    spec = importlib.util.spec_from_file_location("style", ROOT / ".ci" / "style.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # a dataclass looks its module up
    sys.modules["style"] = module
    spec.loader.exec_module(module)
    return module


style = load_style()


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """The three modules as a folder."""
    root = tmp_path / "house"
    (root / "rooms").mkdir(parents=True)
    for name, text in SOURCES.items():
        (root / name).write_text(text)
    return root


def test_the_figures_are_those_that_counting_by_hand_gives(house: Path) -> None:
    """Functions without docstring: half 2 lines, quarter 4, the attic's half 3. Lines that are not
    blank: 5 + 5 + 4 = 14, one of them longer than 100. Six bound names: x; x, found, more; self,
    cls, a are seven in all, one of them private.
    """
    found = style.figures(house)
    assert found["files"] == 5 and found["lines that are not blank"] == 14
    assert found["modules at the root"] == 2
    assert found["function lines: median / p90 / max"] == "3 / 4 / 4"
    assert found["lines over 100 columns, %"] == round(100 / 14, 2)
    assert found["comment lines, %"] == round(100 / 14, 2)
    assert found["names defined in two modules"] == 1
    assert found["private words, %"] == round(100 / 7, 2)
    assert found["functions with a docstring, %"] == round(100 / 3, 2)


def test_import_levels_count_a_cycle_once(house: Path) -> None:
    """high and rooms.attic import each other, through the package rooms; both stand on low."""
    graph = style.import_graph(style.modules_of(house))
    assert graph["house.high"] == {"house.low", "house.rooms.attic"}
    assert graph["house.rooms.attic"] == {"house.high"}
    cycles = [sorted(group) for group in style.import_order(graph) if len(group) > 1]
    assert cycles == [["house.high", "house.rooms.attic"]]
    assert style.import_levels(graph) == 2


def test_arguments_are_those_that_a_caller_gives(house: Path) -> None:
    counts = {
        node.name: style.n_arguments(node)
        for module in style.modules_of(house)
        for node in module.functions
        if module.name == "house.high"
    }
    assert counts == {"quarter": 3}


def test_a_figure_worse_than_its_bound_is_named(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert style.main(house) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[-3:]] == [
        "lines over 100 columns, %",
        "import cycles",
        "private words, %",
    ]


def test_no_figure_of_the_package_is_worse_than_its_bound() -> None:
    assert style.exceeded(style.figures(ROOT / "rayunlearn")) == []


def test_the_table_has_every_figure_beside_those_of_five_projects() -> None:
    measured = style.figures(ROOT / "rayunlearn")
    head, *rows = style.table_of("rayunlearn", measured).splitlines()
    assert all(name.split()[0] in head for name in style.ANCHORS) and len(rows) == len(measured)
    known = {figure for anchor in style.ANCHORS.values() for figure in anchor}
    assert known <= set(measured) and set(style.BOUNDS) <= set(measured)
