"""What a report was drawn from: tables, code and libraries. Its last line says it, so that a page
that would be drawn the same again stays as it is, and nothing that draws is loaded.
"""

import hashlib
from pathlib import Path

from rayunlearn.config import digest
from rayunlearn.storage.code_identity import package_digest, version_of
from rayunlearn.storage.run import Run, trial_folders
from rayunlearn.storage.run_manifest import OF_RUN, read_contents
from rayunlearn.storage.sync import display_path

# what computes and draws what a page shows
PAGE_LIBRARIES = ("jinja2", "numpy", "plotly", "polars", "scipy")
# parts of experiment.json that change from call to call and that no page shows
NOT_SHOWN = {"seconds_used"}
STAMP = b"<!-- drawn from "


def page_source(run: Run) -> str:
    """What decides the page of a run, as 16 hex digits; '' while trials have folders of their own,
    whose rows are in no table yet.
    """
    tables = read_contents(run.path, OF_RUN)
    if isinstance(tables, str) or trial_folders(run.path):
        return ""
    shas = {name: [c.sha256 for c in contents] for name, contents in tables.items()}
    experiment = {name: v for name, v in run.experiment.items() if name not in NOT_SHOWN}
    # the manifest's digest of it counts the parts that are not shown
    shas.pop("experiment.json", None)
    libraries = [version_of(name) for name in PAGE_LIBRARIES]
    return digest([display_path(run.path), shas, experiment, libraries, package_digest()])


def stamped(page: bytes, source: str) -> bytes:
    """The page with a last line, a comment: what it was drawn from, and its own SHA-256."""
    written = hashlib.sha256(page).hexdigest()
    # a page ends without a line break
    return page + b"\n" + STAMP + f"{source} {written} -->\n".encode()


def without_stamp(content: bytes) -> bytes:
    """A page's bytes without the line that says what it was drawn from."""
    return content.rpartition(b"\n" + STAMP)[0] if STAMP in content else content


def is_drawn_from(file: Path, source: str) -> bool:
    """Whether the page in `file` was drawn from `source`, and nothing in it has changed since."""
    if not source or not file.is_file():
        return False
    content = file.read_bytes()
    return stamped(without_stamp(content), source) == content
