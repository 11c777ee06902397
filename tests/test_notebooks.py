"""The notebooks run as they stand: the coreset curve on a run made here, the others on the small
runs that lie beside them.
"""

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from tests import synthetic

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
# The notebooks share a process, which imports its libraries once; none sees a name or a figure of
# another.
FRESH = """\
%reset -f
import os, matplotlib.pyplot
matplotlib.pyplot.close("all")
os.environ.pop("RAYUNLEARN_RUN", None)
os.environ.update({environment!r})
del os, matplotlib
"""


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """A kernel in the folder of the notebooks."""
    manager = KernelManager()
    manager.start_kernel(cwd=str(NOTEBOOKS[0].parent))
    yield manager
    manager.shutdown_kernel(now=True)
    manager.cleanup_resources()


def run(cells: list[nbformat.NotebookNode], kernel: KernelManager) -> None:
    """Run the cells in order; a cell that fails raises CellExecutionError."""
    client = NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=120, km=kernel)
    try:
        client.execute()
    finally:
        # nbclient leaves open what it did not start
        client.kc.stop_channels()


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(
    path: Path, tmp_path: Path, kernel: KernelManager
) -> None:
    environment = {}
    if path.stem == "coreset_curve":
        environment["RAYUNLEARN_RUN"] = str(synthetic.write_run(tmp_path / "run"))
    cells = nbformat.read(path, as_version=4).cells
    fresh = nbformat.v4.new_code_cell(FRESH.format(environment=environment))
    run([fresh, *cells], kernel)
    figures = [
        output
        for cell in cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert figures


def test_a_notebook_sees_no_name_of_another(kernel: KernelManager) -> None:
    run([nbformat.v4.new_code_cell("import os\nleft = 1")], kernel)
    fresh = nbformat.v4.new_code_cell(FRESH.format(environment={}))
    code = "assert 'left' not in globals() and 'os' not in globals()"
    run([fresh, nbformat.v4.new_code_cell(code)], kernel)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_its_outputs(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells) and any(cell.outputs for cell in cells)
