"""What the files of a run hold, written down beside them and checked when they are read.

- `<run>/manifest.json` is of the driver's files: `tables/*.parquet`, `plan.parquet` and the others
  of the run's folder, `experiment.json`. `trials/<id>/manifest.json` is of one trial's tables and
  appears with them, in one rename.
- A manifest holds, for every file, its size, its SHA-256 and its rows, and a digest of itself.
- A file is replaced in three steps: the manifest names the old content and the new one, the file
  is renamed into place, the manifest names the new one alone. So a reader, and whoever comes after
  a killed writer, finds a content that the manifest names.
- A file that a manifest names and that is missing, one that has another content, one that no
  manifest names: each is an error with the file's name and what can be done about it.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rayunlearn.errors import UserError
from rayunlearn.schema import LATER_TABLES, PER_TRIAL, RUN_TABLES
from rayunlearn.storage.artifact_cache import MANIFEST, file_digest
from rayunlearn.storage.parquet import write_bytes
from rayunlearn.storage.sync import display_path, drop_files

# Raised when the layout of a manifest changes.
RUN_MANIFEST_FORMAT = 1


# what the manifest in the run's folder says it is of; that of a trial says `trial <id>`
OF_RUN = "run"


EXPERIMENT = "experiment.json"


DRIVER_FILES = (
    *(f"tables/{table}.parquet" for table in PER_TRIAL),
    *(f"{table}.parquet" for table in RUN_TABLES),
    EXPERIMENT,
)


class DamagedRunError(UserError):
    """Files of a run are not what was written. `defects`: file -> what is wrong with it."""

    def __init__(self, run: Path, defects: Mapping[Path, str]) -> None:
        first = next(iter(defects))
        more = f" (and {len(defects) - 1} more files)" if len(defects) > 1 else ""
        super().__init__(
            f"{display_path(first)} {defects[first]}{more}; {remedy_of(run, first)};"
            f" `rayunlearn check {display_path(run)}` says all"
        )
        self.defects = dict(defects)


@dataclass(frozen=True)
class StoredFile:
    """What a file holds: its bytes, their SHA-256 in hex, and the rows of a table."""

    size: int
    sha256: str
    rows: int | None = None


Contents = dict[str, tuple[StoredFile, ...]]


def stored_bytes(content: bytes, rows: int | None = None) -> StoredFile:
    """What a file of this content is."""
    return StoredFile(len(content), hashlib.sha256(content).hexdigest(), rows)


def stored_file(path: Path, rows: int | None = None) -> StoredFile:
    """What the file at `path` is now."""
    return StoredFile(path.stat().st_size, file_digest(path), rows)


def trial_owner(trial_id: str) -> str:
    """What the manifest of a trial says that it is of."""
    return f"trial {trial_id}"


def manifest_text(owner: str, files: Mapping[str, Sequence[StoredFile]]) -> bytes:
    """The manifest of `owner`; `files`: name -> the contents that it may have now."""
    body: dict[str, Any] = {
        "format": RUN_MANIFEST_FORMAT,
        "of": owner,
        "files": {name: [asdict(c) for c in contents] for name, contents in sorted(files.items())},
    }
    return json.dumps({"digest": _digest_of(body)} | body, indent=1).encode() + b"\n"


def read_contents(folder: Path, owner: str) -> Contents | str:
    """What the manifest in `folder` says, or what is wrong with it in words."""
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        body = {name: value for name, value in manifest.items() if name != "digest"}
        if _digest_of(body) != manifest["digest"]:
            return "is damaged: it is not what was written"
        if body["format"] != RUN_MANIFEST_FORMAT:
            return f"has format {body['format']!r}, this version reads {RUN_MANIFEST_FORMAT}"
        if body["of"] != owner:
            return f"is of {body['of']!r} and not of {owner!r}"
        return {
            name: tuple(StoredFile(**c) for c in contents)
            for name, contents in body["files"].items()
        }
    except FileNotFoundError:
        return "is missing"
    except PermissionError as error:
        raise UserError(f"{display_path(file)} must be readable: {error}") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "is damaged: it cannot be read"


def file_defect(file: Path, contents: Sequence[StoredFile]) -> str:
    """How a file differs from every content that it may have, in words; '' where it is one."""
    expected = contents[-1]
    rows = "" if expected.rows is None else f" ({expected.rows} rows were written)"
    try:
        size = file.stat().st_size
        if size not in {content.size for content in contents}:
            return f"is damaged: it has {size} bytes, written were {expected.size}{rows}"
        digest = file_digest(file)
    except FileNotFoundError:
        return f"is missing{rows}"
    except PermissionError as error:
        raise UserError(f"{display_path(file)} must be readable: {error}") from error
    except OSError as error:
        return f"cannot be read: {error}"
    is_whole = any((content.size, content.sha256) == (size, digest) for content in contents)
    return "" if is_whole else f"is damaged: it is not what was written{rows}"


def trial_defects(folder: Path) -> dict[Path, str]:
    """The files of a trial's folder that are not what was written: file -> what is wrong. A trial
    of an earlier version has no file of a table that came later.
    """
    contents = read_contents(folder, trial_owner(folder.name))
    if isinstance(contents, str):
        return {folder / MANIFEST: contents}
    present = {f.name for f in folder.glob("*.parquet")}
    expected = {f"{table}.parquet" for table in PER_TRIAL if table not in LATER_TABLES}
    return _defects(folder, contents, {*expected, *present, *contents})


def driver_defects(run: Path, names: Collection[str] = DRIVER_FILES) -> dict[Path, str]:
    """The same of the driver's files of these names, inside the run's folder."""
    present = [name for name in DRIVER_FILES if (run / name).exists()]
    contents = read_contents(run, OF_RUN)
    if isinstance(contents, str):
        is_new = not present and not (run / MANIFEST).exists()
        return {} if is_new else {run / MANIFEST: contents}
    return _defects(run, contents, {*present, *contents} & {*names})


def require_whole_files(
    run: Path, folders: Iterable[Path], names: Collection[str] = DRIVER_FILES
) -> None:
    """Raise DamagedRunError where a file of these trial folders, or a driver's file of these
    names, is not what was written.
    """
    defects = driver_defects(run, names)
    for folder in folders:
        defects |= trial_defects(folder)
    if defects:
        raise DamagedRunError(run, defects)


def announce_file(run: Path, name: str, content: StoredFile, *, owner: str = OF_RUN) -> None:
    """Say in the run's manifest that the file `name` may have this content from now on, or still
    what it has.
    """
    contents = _contents_of(run, owner)
    old = contents.get(name, ())
    current = tuple(c for c in old if not file_defect(run / name, [c]))
    new = (*(c for c in current if c != content), content)
    _write_contents(run, contents | {name: new}, owner)


def settle_files(run: Path, names: Iterable[str], *, owner: str = OF_RUN) -> None:
    """Say that these files have what was announced last, and nothing else."""
    contents = _contents_of(run, owner)
    _write_contents(run, contents | {name: contents[name][-1:] for name in names}, owner)


def forget_files(run: Path, names: Collection[str], *, owner: str = OF_RUN) -> None:
    """Remove driver's files, here, under the URL and from the run's manifest; or those of a folder
    of another `owner`.
    """
    if not names:
        return
    contents = _contents_of(run, owner)
    remaining = {name: content for name, content in contents.items() if name not in names}
    _write_contents(run, remaining, owner)
    drop_files([run / name for name in names])
    for name in names:
        (run / name).unlink(missing_ok=True)


def write_run_file(
    run: Path, name: str, content: bytes, rows: int | None = None, *, owner: str = OF_RUN
) -> None:
    """Write a driver's file in one rename, and what it holds into the run's manifest. Only for the
    one driver of the run, or the one writer of a folder of another `owner`.
    """
    announce_file(run, name, stored_bytes(content, rows), owner=owner)
    write_bytes(run / name, content)
    settle_files(run, [name], owner=owner)


def folder_defects(folder: Path, owner: str, names: Iterable[str]) -> dict[Path, str]:
    """The files of these names in a folder of `owner` that are not what was written."""
    contents = read_contents(folder, owner)
    if isinstance(contents, str):
        return {folder / MANIFEST: contents}
    return _defects(folder, contents, {*names} | {*contents})


def remedy_of(run: Path, file: Path) -> str:
    """What can be done about a damaged file, in words."""
    name = file.relative_to(run).as_posix()
    if name.startswith("trials/"):
        return "--repair of `rayunlearn check` removes the trial, and `run` makes it again"
    if name == "tables/evals.parquet":
        return "--repair of `rayunlearn check` makes it again from examples where it can"
    if name.startswith("tables/"):
        return "restore it from a copy, or run the experiment again under another --version"
    if name == MANIFEST:
        return "--repair of `rayunlearn check` writes one where tables fit each other"
    if name == "attacks.parquet":
        return "--repair of `rayunlearn check` removes it, and `attack` writes it again"
    return "the command `rayunlearn run` that wrote it writes it again and keeps the trials"


def _digest_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _defects(folder: Path, contents: Contents, names: Iterable[str]) -> dict[Path, str]:
    stranger = "was not written with the run: its manifest does not name it"
    words = {
        folder / name: file_defect(folder / name, contents[name]) if name in contents else stranger
        for name in sorted(names)
    }
    return {file: wrong for file, wrong in words.items() if wrong}


def _contents_of(run: Path, owner: str) -> Contents:
    """What the run's manifest says, to be changed; nothing where there is none yet."""
    contents = read_contents(run, owner)
    if isinstance(contents, str):
        if (run / MANIFEST).exists():
            raise DamagedRunError(run, {run / MANIFEST: contents})
        return {}
    return contents


def _write_contents(run: Path, contents: Contents, owner: str) -> None:
    write_bytes(run / MANIFEST, manifest_text(owner, contents))
