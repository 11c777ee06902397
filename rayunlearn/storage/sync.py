"""Runs and caches under a URL: every machine works in a folder of its own, and what is whole there
is put under the URL.

The folder's name is the URL, so a path says where it belongs on every machine and nothing has to be
handed around. A folder (a trial, a model, an adapter) travels as one zip, so that it appears in one
put. What is at the URL is the truth: a driver that starts makes its folder equal to it. Where a
path belongs to no URL every function here does nothing.
"""

import fcntl
import json
import os
import re
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import quote, unquote

from rayunlearn.errors import UserError, require
from rayunlearn.storage import object_store

FOLDER = "rayunlearn-mirrors-"

# in a trial's folder from its beginning until it is under the URL
UNSENT = ".unsent"
PULLED = ".pulled.json"

# times that a run under a URL is read again because its tables changed meanwhile
PULLS = 10

# at once; each waits for the network
TRANSFERS = 16
ON_DISK = ("file://", "local://")

# what zipfile raises for an archive that is not what was written
DAMAGED = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    struct.error,
)

# and nothing with a way out of the folder
RUN_FILES = re.compile(r"[\w-]+\.(parquet|json|html)|tables/\w+\.parquet|trials/[\w-]+\.zip")
LEASE = re.compile(r"lease-\d+\.json")


class DamagedArchiveError(UserError):
    """An archive under the URL is not what was put there."""


def output_place(text: str) -> Path:
    """The folder to work in for `--output`: the path itself, or the mirror of a URL. Touches
    nothing.

    Raises UserError for a URL that cannot hold runs, has a password in it, or is too long for a
    folder's name.
    """
    if "://" not in text:
        return Path(text)
    if text.startswith(ON_DISK):
        require(
            text.partition("://")[2].startswith("/"),
            "a file URL must be file:///absolute/path",
            text,
        )
        return Path(text.partition("://")[2])
    object_store.scheme_of(text)
    rest = text.partition("://")[2]
    require(
        ":" not in rest.partition("@")[0] or "@" not in rest,
        "a URL must not hold a password; set the store's environment variables",
        "***",
    )
    require(
        bool(rest.strip("/")) and not re.search(r"[?#]|/\.\.?(/|$)|//", rest),
        "a run's URL must be scheme://bucket/prefix",
        text,
    )
    name = quote(text.rstrip("/"), safe="")
    require(len(name) <= 200, "a run's URL must be at most 200 characters, quoted", text)
    return Path(tempfile.gettempdir()) / f"{FOLDER}{os.getuid()}" / name


def run_place(text: str) -> Path:
    """The folder of a run, `<output>/<experiment>/<version>`, named by path or URL."""
    if "://" not in text or text.startswith(ON_DISK):
        return output_place(text)
    parts = text.rstrip("/").split("/")
    require(len(parts) >= 5, "a run's URL must be scheme://bucket/.../experiment/version", text)
    return output_place("/".join(parts[:-2])) / parts[-2] / parts[-1]


def origin(path: Path) -> str | None:
    """The URL that a path of a mirror stands for, None for any other path."""
    parts = path.absolute().parts
    index = next((index for index, part in enumerate(parts) if part.startswith(FOLDER)), len(parts))
    return (
        "/".join([unquote(parts[index + 1]), *parts[index + 2 :]])
        if index + 1 < len(parts)
        else None
    )


def display_path(path: Path) -> str:
    """The path as its user named it: the URL of a mirror's path."""
    return origin(path) or str(path)


def run_ready(path: Path) -> None:
    """Make the folder, readable for this user alone. Raises UserError where another user has taken
    the mirrors' place.
    """
    if origin(path) is not None:
        root = next(parent for parent in (path, *path.parents) if parent.name.startswith(FOLDER))
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        require(
            root.stat().st_uid == os.getuid(),
            f"{root} must belong to this user (TMPDIR says where it is), its owner is",
            root.stat().st_uid,
        )
    path.mkdir(parents=True, exist_ok=True)


def upload_file(file: Path) -> None:
    """Put a whole file under the URL."""
    url = origin(file)
    if url is not None:
        object_store.put_file(file, url)


def download_file(file: Path) -> bool:
    """Whether the file is here, brought from the URL if need be."""
    url = origin(file)
    return file.exists() or (url is not None and object_store.get_file(url, file))


def download_files(folder: Path, suffix: str) -> None:
    """Bring the files of a folder that are not here yet."""
    url = origin(folder)
    for name in object_store.list_names(url) if url is not None else ():
        if "/" not in name and name.endswith(suffix):
            download_file(folder / name)


def download_below(folder: Path) -> list[str]:
    """Bring everything that is under the URL of a folder, over what is here; what is damaged there,
    in words.
    """
    url = origin(folder)
    problems = []
    for name in object_store.list_names(url) if url is not None else ():
        try:
            if name.endswith(".zip"):
                fetch_folder(folder / name.removesuffix(".zip"), overwrite=True)
            else:
                object_store.get_file(f"{url}/{name}", folder / name)
        except DamagedArchiveError as error:
            problems.append(f"{url}/{name} is damaged: {error}")
    return problems


def send_folder(folder: Path, *, create: bool = False) -> bool:
    """Put the files of a folder under the URL, as one zip. With `create` only where there is none:
    False where there is one.
    """
    url = origin(folder)
    if url is None:
        return True
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        archive = Path(temporary) / "folder.zip"
        # Parquet and weights do not compress further
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
            for file in sorted(folder.iterdir()):
                if not file.name.startswith("."):
                    packed.write(file, file.name)
        return object_store.put_file(archive, f"{url}.zip", create=create)


def share_folder(folder: Path) -> None:
    """Put a folder that was made here under the URL; where another machine was first, take that
    one's.
    """
    if not send_folder(folder, create=True):
        fetch_folder(folder, overwrite=True)


def fetch_folder(folder: Path, *, overwrite: bool = False) -> bool:
    """Whether the folder is here, brought from the URL if need be, or `overwrite`: then what is
    here is replaced.
    """
    from filelock import FileLock

    url = origin(folder)
    if url is None:
        return folder.is_dir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Who fetches again holds the run or the model already; for the others one process brings it,
    # the rest wait.
    with (
        nullcontext() if overwrite else FileLock(f"{folder.parent / f'.{folder.name}.fetch'}.lock")
    ):
        if folder.is_dir() and not overwrite:
            return True
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            archive, unpacked = Path(temporary) / "folder.zip", Path(temporary) / "folder"
            if not object_store.get_file(f"{url}.zip", archive):
                return False
            _unpack(archive, unpacked)
            if folder.is_dir():
                os.replace(folder, Path(temporary) / "old")
            os.replace(unpacked, folder)
            return True


def drop_folders(folders: Sequence[Path]) -> None:
    """Remove folders from under the URL."""
    object_store.remove([f"{url}.zip" for url in map(origin, folders) if url is not None])


def drop_files(files: Sequence[Path]) -> None:
    """Remove files from under the URL."""
    object_store.remove([url for url in map(origin, files) if url is not None])


def drop_below(folder: Path) -> None:
    """Remove everything under the URL of a folder."""
    url = origin(folder)
    if url is not None:
        object_store.remove([f"{url}/{name}" for name in object_store.list_names(url)])


def send_trial(folder: Path) -> None:
    """Put a trial under the URL and forget that it was not there."""
    if send_folder(folder):
        (folder / UNSENT).unlink(missing_ok=True)


def unsent(run: Path) -> list[Path]:
    """Folders of trials that ended here and are not under the URL: the storage failed, or their
    worker died at the last moment.
    """
    return (
        sorted(note.parent for note in run.glob(f"trials/*/{UNSENT}"))
        if origin(run) is not None
        else []
    )


def pull(run: Path, unsent_folders: Sequence[Path] = ()) -> None:
    """Make the run's folder what is under the URL. Only for who holds the run's lock. Files that
    have not changed stay, and so do the folders of trials `unsent_folders` that are not there.

    Tables and the manifest that names them are of one moment: where the driver of another machine
    replaced one of them meanwhile, it is done again.
    """
    url = origin(run)
    if url is None:
        return
    for _ in range(PULLS):
        remote = _remote_files(url)
        _pull_files(run, url, remote, {f"trials/{folder.name}.zip" for folder in unsent_folders})
        if _driver_versions(_remote_files(url)) == _driver_versions(remote):
            return
    raise UserError(f"{url} changes faster than it can be read; try again")


def pull_again(run: Path) -> None:
    """`pull`, of every file: what is here may be damaged."""
    (run / PULLED).unlink(missing_ok=True)
    pull(run)


def _remote_files(url: str) -> dict[str, str]:
    """The files of the run under the URL -> what changes when they do."""
    return {
        name: version
        for name, version in object_store.list_names(url).items()
        if RUN_FILES.fullmatch(name) and not LEASE.fullmatch(name)
    }


def _driver_versions(remote: dict[str, str]) -> dict[str, str]:
    return {name: version for name, version in remote.items() if not name.startswith("trials/")}


def _pull_files(run: Path, url: str, remote: dict[str, str], unsent_files: set[str]) -> None:
    local = _pulled_stamps(run)
    for name in {*_present(run), *local} - set(remote) - unsent_files:
        _discard(_local(run, name))
    stale = [
        name
        for name, version in remote.items()
        if local.get(name) != [version, *_stamp(_local(run, name))]
    ]
    with ThreadPoolExecutor(TRANSFERS) as pool:
        list(pool.map(lambda name: _download_changed(run, name, url), stale))
    text = json.dumps(
        {name: [version, *_stamp(_local(run, name))] for name, version in remote.items()}
    )
    (run / PULLED).write_text(text, encoding="utf-8")


def local_run(text: str) -> Path:
    """The folder of a run that somebody wants to read, path or URL; of a URL as it is there now.

    Where a driver on this machine works on the run, its folder is as new and is read as it is.
    Raises UserError where there is no run.
    """
    run = run_place(text)
    refresh(run)
    require(origin(run) is None or bool(_present(run)), "there must be a run at the URL", text)
    return run


def refresh(run: Path) -> None:
    """`pull`, where no driver on this machine works on the run. Trials that are not under the URL
    yet stay: the next driver sends them.
    """
    if origin(run) is None:
        return
    run_ready(run)
    with lock_if_free(run / ".lock") as free:
        if free:
            pull(run, unsent_folders=unsent(run))


@contextmanager
def lock_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock of this machine on a run where nobody has it; whether that was so."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _download_changed(run: Path, name: str, url: str) -> None:
    local = _local(run, name)
    if name.endswith(".zip"):
        fetch_folder(local, overwrite=True)
    else:
        object_store.get_file(f"{url}/{name}", local)


def _local(run: Path, name: str) -> Path:
    return run / name.removesuffix(".zip")


def _present(run: Path) -> set[str]:
    """Names under the URL of what is here."""
    folders = {f"trials/{file.parent.name}.zip" for file in run.glob("trials/*/trials.parquet")}
    files = (
        file
        for pattern in ("*", "tables/*")
        for file in run.glob(pattern)
        if not file.name.startswith(".")
    )
    return folders | {
        file.relative_to(run).as_posix()
        for file in files
        if RUN_FILES.fullmatch(file.relative_to(run).as_posix())
    }


def _pulled_stamps(run: Path) -> dict[str, list[object]]:
    try:
        return dict(json.loads((run / PULLED).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        # never pulled, or killed while noting it: everything is brought again
        return {}


def _stamp(path: Path) -> list[int]:
    """What changes when the file, or the trial in the folder, is written."""
    file = path / "trials.parquet" if path.is_dir() else path
    return [file.stat().st_mtime_ns, file.stat().st_size] if file.exists() else []


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _unpack(archive: Path, folder: Path) -> None:
    """Files into a new folder. Raises DamagedArchiveError for what is no whole archive, or has a
    name that is more than a file's: an archive must not write elsewhere.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            names = [entry.filename for entry in packed.infolist()]
            if not all(re.fullmatch(r"[\w-][\w.-]*", name) for name in names):
                raise zipfile.BadZipFile(f"it must hold files by plain names, got {names!r}")
            packed.extractall(folder)
    except DAMAGED as error:
        raise DamagedArchiveError(f"{archive} is not a whole archive: {error}") from error
    folder.mkdir(exist_ok=True)
