"""Files of a run that a test alters as their writer would have, with the manifest that names
them.
"""

from pathlib import Path

from rayunlearn.storage.artifact_cache import MANIFEST
from rayunlearn.storage.run_manifest import (
    announce_file,
    manifest_text,
    read_contents,
    settle_files,
    stored_file,
    trial_owner,
)


def as_written(run: Path, name: str) -> None:
    """Let the manifest of `run/name` say that what is there now is what was written: what a hostile
    writer of a run can do, and a disk that alters bits cannot.
    """
    if not name.startswith("trials/"):
        announce_file(run, name, stored_file(run / name))
        settle_files(run, [name])
        return
    folder, owner = (run / name).parent, trial_owner((run / name).parent.name)
    contents = read_contents(folder, owner)
    assert not isinstance(contents, str)
    changed = contents | {(run / name).name: (stored_file(run / name),)}
    (folder / MANIFEST).write_bytes(manifest_text(owner, changed))
