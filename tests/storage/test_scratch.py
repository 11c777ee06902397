"""Temporary folders of drivers: where they are made, and what a killed driver left."""

import subprocess
import sys
from pathlib import Path

import pytest

from rayunlearn.errors import UserError
from rayunlearn.storage import scratch
from rayunlearn.storage.scratch import remove_abandoned, scratch_folder, scratch_root

HOLD = """
import sys, time
from rayunlearn.storage.scratch import scratch_folder
with scratch_folder("ray") as folder:
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one place that scratch folders may be in, however long its name."""
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(scratch, "LONGEST_PATH", 1000)
    return tmp_path


def test_a_folder_is_there_for_the_block_and_gone_after_it(temporary: Path) -> None:
    with scratch_folder("ray") as folder:
        assert folder.parent == temporary and folder.name.startswith("rul-ray-")
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(
    temporary: Path,
) -> None:
    (temporary / "rul-ray-of-somebody").mkdir()
    environment = {"TMPDIR": str(temporary), "PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], env=environment, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        # too long for sockets: it lies in /tmp
        folder = Path(holder.stdout.readline().strip())
        try:
            assert folder not in remove_abandoned(folder.parent) and folder.exists()
        finally:
            holder.kill()
    assert folder in remove_abandoned(folder.parent)
    assert not folder.exists() and (temporary / "rul-ray-of-somebody").exists()


@pytest.mark.parametrize("name", ["t mp \u00fc", "a" * 60, "per%20cent", "not-there"])
def test_a_temporary_folder_that_ray_cannot_take_is_passed_over(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = Path("/tmp") / name if name == "not-there" else tmp_path / name
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(place))
    assert scratch_root("ray") in (Path("/tmp"), Path("/var/tmp"))


def test_without_any_place_the_rule_and_the_places_are_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: "/sch\u00f6n")
    monkeypatch.setattr(scratch, "COMMON_ROOTS", ())
    with pytest.raises(UserError, match="at most 26 of the signs .* got /sch\u00f6n"):
        scratch_root("ray")
