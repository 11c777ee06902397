"""Files and folders that are made once and read many times: checked before they are read, rebuilt
where they are wrong.

- An entry is a file or a folder, and a manifest: its format version, its key (what decides its
  content, as JSON) and the size and SHA-256 of every file in it. The manifest of a file stands
  beside it, that of a folder is in it.
- An entry counts only with a manifest of this format and key whose digests are those of the files
  that are there now. Anything else (cut off, altered, copied by hand, without a manifest) is
  rebuilt under a lock, with one line of warning by `logging`.
- Content is hashed once per process and state of the file (`file_digest`), so that the check costs
  one reading of what is read anyway.

Under the mirror of a URL both parts are at the URL when the call returns (`storage/sync.py`). No
torch in here: tensors are in `models/tensor_cache.py`, on top of this.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Generic, TypeVar

from rayunlearn.config import digest
from rayunlearn.errors import UserError
from rayunlearn.lazy import polars as pl
from rayunlearn.schema import VERSION
from rayunlearn.storage.parquet import VERSION_KEY, retry_transient
from rayunlearn.storage.sync import (
    DamagedArchiveError,
    display_path,
    download_file,
    drop_files,
    drop_folders,
    fetch_folder,
    origin,
    send_folder,
    share_folder,
    upload_file,
)

# Raised when the layout of entries or manifests changes: entries of another format are rebuilt.
CACHE_FORMAT = 2
MANIFEST = "manifest.json"

# A file this young may be written once more within the resolution of its time stamps, which its
# stamp would not show: its digest is not remembered (the same thought as in git's index).
YOUNG_SECONDS = 2.0

# names of its folder that are no content: locks, temporary files, what readers leave
HIDDEN = "."
ABSENT = "is not there"
T = TypeVar("T")
LOG = logging.getLogger("rayunlearn.cache")


@dataclass(frozen=True)
class FileType(Generic[T]):
    """How a value is written to a file and read back, and the file's suffix."""

    suffix: str
    write: Callable[[Path, T], None]
    read: Callable[[Path], T]


@dataclass(frozen=True)
class Content:
    """What a file holds: its length in bytes and the SHA-256 of them in hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an entry holds: `key` is canonical JSON; `files` by path inside the entry's folder."""

    format: int
    key: str
    files: Mapping[str, Content]


def cached_file(
    folder: Path, key: Mapping[str, object], make: Callable[[], T], file_type: FileType[T]
) -> T:
    """The value of `key`: read from its file in `folder`, or made and written there first.

    `key` (JSON values) must hold everything that decides the value. Of several processes that want
    the same key one calls `make`, the others wait and read. Raises UserError when the cache cannot
    be read or written.
    """
    path, text = file_of(folder, key, file_type), canonical(key)

    def write() -> None:
        value = make()
        with writable(path):
            retry_transient(f"write {path}", partial(_write_file, path, text, value, file_type))

    _ensure(_FILE, path, text, write)
    return file_type.read(path)


def cached_folder(folder: Path, key: Mapping[str, object], make: Callable[[Path], None]) -> Path:
    """`folder`, made by `make(temporary folder)` where it is not there as it was made for `key`.

    It appears whole, by one rename; `make` finds no folder at the path it is given.
    """
    text = canonical(key)
    _ensure(_FOLDER, folder, text, lambda: _write_folder(folder, text, make))
    return folder


def folder_is_whole(folder: Path, key: Mapping[str, object]) -> bool:
    """Whether the folder is here as it was made for `key`, brought from the URL if need be."""
    if not folder.exists() and origin(folder) is not None:
        return not _download_entry(_FOLDER, folder, canonical(key))
    return not defect(folder, canonical(key))


def defect(path: Path, text: str | None = None) -> str:
    """What is wrong with the entry at `path`, in words; '' for a whole one. `text`: its key as
    `canonical` gives it, None for whatever key it has.
    """
    if not path.exists():
        return ABSENT
    manifest = read_manifest(path)
    if isinstance(manifest, str):
        return manifest
    if manifest.format != CACHE_FORMAT:
        return f"has format {manifest.format}, this version writes {CACHE_FORMAT}"
    if text is not None and manifest.key != text:
        return "was made from something else"
    root = path if path.is_dir() else path.parent
    wrong = (_difference(root / name, content) for name, content in manifest.files.items())
    strangers = sorted({*_files_in(path)} - {*manifest.files}) if path.is_dir() else []
    return next(filter(None, wrong), "") or (
        f"has {strangers[0]}, which was not written with it" if strangers else ""
    )


def require_whole(folder: Path) -> None:
    """Raise UserError for a folder with a manifest whose files are not what the manifest says.

    A folder without a manifest is somebody's own, and nothing is known of it.
    """
    if (folder / MANIFEST).exists() and (wrong := defect(folder)):
        raise UserError(f"{display_path(folder)} {wrong}; the command that made it makes it again")


def entries(cache: Path) -> list[Path]:
    """Every file and folder below `cache` that has a manifest, sorted."""
    manifests = (f for f in cache.rglob(f"*{MANIFEST}") if not f.name.startswith(HIDDEN))
    return sorted(path for path in map(_entry_of, manifests) if path.exists())


def damaged_entries(cache: Path) -> dict[Path, str]:
    """The entries below `cache` that are not what their manifest says: path -> what is wrong.

    What a killed process left without a manifest is not listed: it is rebuilt when it is wanted.
    """
    return {path: wrong for path in entries(cache) if (wrong := defect(path))}


def discard_entry(path: Path) -> None:
    """Remove an entry, here and under the URL: it is rebuilt when it is wanted."""
    (drop_folders if path.is_dir() else drop_files)([path])
    if not path.is_dir():
        drop_files([manifest_of(path)])
    _discard(path)


def file_of(folder: Path, key: Mapping[str, object], file_type: FileType[Any]) -> Path:
    """Where the value of `key` is, or would be."""
    return folder / f"{digest([CACHE_FORMAT, canonical(key)])}{file_type.suffix}"


def canonical(key: Mapping[str, object]) -> str:
    """The key as text: JSON with sorted names."""
    return json.dumps(dict(key), sort_keys=True)


_DIGESTS: dict[Path, tuple[tuple[int, ...], str]] = {}


def file_digest(path: Path) -> str:
    """SHA-256 of the file in hex; of a file whose inode, size and times have not changed since this
    process read it, without reading it again.
    """
    before = stamp_of(path)
    remembered = _DIGESTS.get(path)
    if remembered is not None and remembered[0] == before:
        return remembered[1]
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    if not is_young(path) and stamp_of(path) == before:
        _DIGESTS[path] = (before, content)
    return content


def stamp_of(path: Path) -> tuple[int, ...]:
    """What changes when the file is written: device, inode, size and both times."""
    now = path.stat()
    return (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)


def is_young(path: Path) -> bool:
    """Whether the file was written so lately that its stamp may not show the next writing."""
    now = path.stat()
    return time.time() - max(now.st_mtime, now.st_ctime) < YOUNG_SECONDS


def read_manifest(path: Path) -> Manifest | str:
    """The manifest of an entry, or what is wrong with it in words."""
    file = manifest_of(path)
    if not file.exists():
        return "has no manifest"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        files = {str(name): Content(**part) for name, part in content["files"].items()}
        return Manifest(content["format"], content["key"], files)
    except PermissionError as error:
        raise _unreadable(file, error) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "has a manifest that cannot be read"


def write_manifest(path: Path, text: str, files: Mapping[str, Path]) -> None:
    """Write the manifest of the entry at `path` in one rename; `files`: name in it -> file, now."""
    contents = {
        name: Content(file.stat().st_size, file_digest(file)) for name, file in files.items()
    }
    manifest = Manifest(CACHE_FORMAT, text, contents)
    target = manifest_of(path)
    temporary = _temporary(target)
    try:
        temporary.write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def manifest_of(path: Path) -> Path:
    """Where the manifest of an entry is."""
    return path / MANIFEST if path.is_dir() else path.with_name(f"{path.name}.{MANIFEST}")


def _entry_of(manifest: Path) -> Path:
    name = manifest.name.removesuffix(f".{MANIFEST}")
    return manifest.with_name(name) if name != manifest.name else manifest.parent


def _difference(file: Path, content: Content) -> str:
    """How a file differs from its content in the manifest, '' where it does not."""
    try:
        size = file.stat().st_size
        if size != content.size:
            return f"is damaged ({file.name} has {size} bytes, written were {content.size})"
        altered = file_digest(file) != content.sha256
    except FileNotFoundError:
        return f"is damaged ({file.name} is missing)"
    except OSError as error:
        raise _unreadable(file, error) from error
    return f"is damaged ({file.name} is not what was written)" if altered else ""


def _files_in(folder: Path) -> list[str]:
    """Files of a folder entry, by path inside it, without the manifest and hidden ones."""
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()]
    return sorted(n for n in names if n != MANIFEST and not n.startswith(HIDDEN))


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(f"the cache must be readable, got {type(error).__name__} for {file}: {error}")


@dataclass(frozen=True)
class _Transport:
    """How entries of one kind go to the URL of a mirror and come back. `put(path, replace)` without
    `replace` may find another machine's entry there, and then takes that one.
    """

    put: Callable[[Path, bool], None]
    get: Callable[[Path], None]


def _put_file(path: Path, _replace: bool) -> None:
    upload_file(path)
    upload_file(manifest_of(path))


def _get_file(path: Path) -> None:
    download_file(path)
    download_file(manifest_of(path))


def _put_folder(folder: Path, replace: bool) -> None:
    if replace:
        send_folder(folder)
    else:
        share_folder(folder)


def _get_folder(folder: Path) -> None:
    fetch_folder(folder)


_FILE, _FOLDER = _Transport(_put_file, _get_file), _Transport(_put_folder, _get_folder)


def _ensure(transport: _Transport, path: Path, text: str, write: Callable[[], None]) -> None:
    """Make the entry where it is not whole; one process at a time."""
    from filelock import FileLock

    if not defect(path, text):
        return
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    try:
        local_defect = defect(path, text)
        defect_left = (
            _download_entry(transport, path, text)
            if local_defect and origin(path) is not None
            else local_defect
        )
        if damage := next(
            (wrong for wrong in (defect_left, local_defect) if wrong not in ("", ABSENT)), ""
        ):
            consequence = "it is rebuilt" if defect_left else "it was brought again"
            LOG.warning("cache: %s %s; %s", display_path(path), damage, consequence)
        if defect_left:
            write()
            if origin(path) is not None:
                transport.put(path, defect_left != ABSENT)
    finally:
        lock.release()


def _download_entry(transport: _Transport, path: Path, text: str) -> str:
    """Bring the entry from the URL instead of what is here; what is wrong with it then."""
    _discard(path)
    try:
        transport.get(path)
    except DamagedArchiveError as error:
        return f"is damaged ({error})"
    return defect(path, text)


def _write_file(path: Path, text: str, value: T, file_type: FileType[T]) -> None:
    temporary = _temporary(path)
    try:
        with usual_permissions(temporary):
            file_type.write(temporary, value)
        write_manifest(path, text, {path.name: temporary})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_folder(folder: Path, text: str, make: Callable[[Path], None]) -> None:
    temporary = _temporary(folder)
    try:
        make(temporary)
        with writable(folder):
            apply_umask(temporary)
            write_manifest(temporary, text, {n: temporary / n for n in _files_in(temporary)})
            _discard(folder)
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _discard(path: Path) -> None:
    """Remove what is at `path`, a file with its manifest; a folder disappears by one rename."""
    if path.is_dir():
        aside = _temporary(path)
        os.replace(path, aside)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        manifest_of(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn what the file system says of the cache into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the cache must be writable, got {type(error).__name__} for {path}: {error}"
        ) from error


@contextmanager
def usual_permissions(file: Path) -> Iterator[None]:
    """Give what is written to `file` inside the permissions that the umask says. safetensors makes
    its files readable for their owner alone, and a cache may be shared by a group.
    """
    file.touch()
    mode = file.stat().st_mode & 0o777
    yield
    file.chmod(mode)


def apply_umask(folder: Path) -> None:
    """`usual_permissions` for every file that is in a folder already."""
    probe = folder / f".{uuid.uuid4().hex}"
    with usual_permissions(probe):
        mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_table(path: Path, frame: pl.DataFrame) -> None:
    # in memory first, so that the disk's errors carry their number
    buffer = BytesIO()
    frame.write_parquet(buffer, metadata={VERSION_KEY: str(VERSION)})
    path.write_bytes(buffer.getvalue())


def _read_table(path: Path) -> pl.DataFrame:
    return pl.read_parquet(path)


# rows, texts, numbers; floats come back to the last bit, tuples as lists
JSON: FileType[Any] = FileType(".json", _write_json, _read_json)

# a table of the schema
TABLE: FileType[pl.DataFrame] = FileType(".parquet", _write_table, _read_table)
