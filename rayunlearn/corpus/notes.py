"""Notes of work over a corpus: what a step found, and what each file that it wrote holds.

A note is a small JSON file with a digest of itself, written after the files it is of. The step is
done only where its note and all its files are as written; anything else is done again, with one
line of warning by `logging`.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rayunlearn.storage.parquet import write_bytes
from rayunlearn.storage.run_manifest import StoredFile, file_defect, stored_file
from rayunlearn.storage.sync import display_path

PARTS_LOG = logging.getLogger("rayunlearn.corpus")


def write_note(note: Path, found: Mapping[str, Any], files: Sequence[str], work: Path) -> None:
    """Write down what a step found and what its `files`, by path below `work`, hold now."""
    contents = {name: asdict(stored_file(work / name)) for name in files}
    body = {"found": dict(found), "files": contents}
    write_bytes(note, json.dumps({"digest": _digest_of(body)} | body).encode())


def read_note(note: Path, work: Path) -> dict[str, Any] | None:
    """What the step found, None where it has to be done (again): no note, or a note or a file that
    is not what was written, which is said.
    """
    wrong = note_defect(note, work)
    if wrong and note.exists():
        PARTS_LOG.warning("%s; this part is done again", wrong)
    return None if wrong else dict(json.loads(note.read_text(encoding="utf-8"))["found"])


def note_defect(note: Path, work: Path) -> str:
    """What is wrong with a step's note or files, in words; '' where all is as written."""
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        body = {"found": content["found"], "files": content["files"]}
        if _digest_of(body) != content["digest"]:
            return f"{display_path(note)} is damaged: it is not what was written"
        files = {name: StoredFile(**stored) for name, stored in content["files"].items()}
    except FileNotFoundError:
        return f"{display_path(note)} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{display_path(note)} is damaged: it cannot be read"
    for name, stored in files.items():
        if wrong := file_defect(work / name, [stored]):
            return f"{display_path(work / name)} {wrong}"
    return ""


def noted_files(note: Path) -> list[str]:
    """The files of a step, by path below the folder of the work; of a note that is whole."""
    return sorted(json.loads(note.read_text(encoding="utf-8"))["files"])


def _digest_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
