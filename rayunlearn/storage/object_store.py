"""Objects under a URL, through fsspec: whole or not there, retried for a while, and refused in
words when that did not help.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rayunlearn.errors import UserError, require
from rayunlearn.storage.retry import retry

T = TypeVar("T")

# Where a put is seen whole or not at all, and "only if it is not there yet" is the store's own
# promise. sftp, hdfs, http have neither.
OBJECT_STORES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "memory": "fsspec",
}

ANSWERS = (FileNotFoundError, FileExistsError)

# ours, not the store's: trying again changes nothing
PERMANENT_ERRORS = (TypeError, ValueError, AttributeError, KeyError, ImportError)


def scheme_of(url: str) -> str:
    """`s3` of s3://bucket/prefix. Raises UserError for a scheme that cannot hold runs."""
    scheme = url.partition("://")[0]
    rule = (
        f"a run's URL must begin with {', '.join(OBJECT_STORES)} or file:// (a put elsewhere is not"
        " atomic; a mounted folder is a path)"
    )
    require(scheme in OBJECT_STORES, rule, url)
    return scheme


def put_file(file: Path, url: str, *, create: bool = False) -> bool:
    """Make the file the object at `url`, in one put. With `create` only where there is none: False
    where there is one.
    """
    return _put(
        url, lambda: _store(url).put_file(str(file), url, mode="create" if create else "overwrite")
    )


def put_bytes(
    content: bytes, url: str, *, create: bool = False, patience: float | None = None
) -> bool:
    """`put_file` for content in memory; `patience` in seconds, by default that of `retry`."""
    return _put(
        url,
        lambda: _store(url).pipe_file(url, content, mode="create" if create else "overwrite"),
        patience,
    )


def get_bytes(url: str) -> bytes | None:
    """The object, None where there is none."""
    try:
        return bytes(_ask(url, lambda: _store(url).cat_file(url)))
    except FileNotFoundError:
        return None


def get_file(url: str, file: Path) -> bool:
    """Bring the object to `file`, in one rename; False where there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".tmp", dir=file.parent)
    os.close(handle)
    try:
        _ask(url, lambda: _store(url).get_file(url, temporary))
        os.replace(temporary, file)
        return True
    except FileNotFoundError:
        return False
    finally:
        Path(temporary).unlink(missing_ok=True)


def exists(url: str) -> bool:
    """Whether there is an object."""
    try:
        return bool(_ask(url, lambda: _store(url).info(url))["type"] == "file")
    except FileNotFoundError:
        return False


def list_names(url: str) -> dict[str, str]:
    """Name below `url` -> what changes when the object does, for all objects under it."""
    try:
        entries = _ask(url, lambda: _store(url).find(url, detail=True))
    except FileNotFoundError:
        return {}
    start = len(str(_store(url)._strip_protocol(url)).rstrip("/")) + 1
    return {str(name)[start:]: _version(entry) for name, entry in entries.items()}


def remove(urls: Sequence[str]) -> None:
    """Remove the objects; one that is not there is as removed."""
    for url in urls:
        try:
            _ask(url, partial(_store(url).rm_file, url))
        except FileNotFoundError:
            continue


def _store(url: str) -> Any:
    """fsspec's file system of the URL; it keeps one per process and settings."""
    import fsspec

    scheme = scheme_of(url)
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        raise UserError(
            f"{scheme}:// needs the package {OBJECT_STORES[scheme]}: pip install"
            f" {OBJECT_STORES[scheme]}"
        ) from error


def _put(url: str, ask: Callable[[], Any], patience: float | None = None) -> bool:
    try:
        _ask(url, ask, patience)
    except FileExistsError:
        return False
    except FileNotFoundError as error:
        raise UserError(f"the bucket must exist, {url} could not be written: {error}") from error
    return True


def _ask(url: str, ask: Callable[[], T], patience: float | None = None) -> T:
    """What the store answers. "Not there" and "there already" are answers; a refusal is final;
    anything else is asked again for a while.
    """
    try:
        return retry(ask, is_transient=_is_transient, patience=patience)
    except (*ANSWERS, UserError, *PERMANENT_ERRORS):
        raise
    # each store has errors of its own kind
    except Exception as error:
        raise UserError(
            f"the storage did not do it: {url}: {type(error).__name__}: {error}"
        ) from error


def _is_transient(error: Exception) -> bool:
    refused = isinstance(error, PermissionError) or "Credentials" in type(error).__name__
    return not refused and not isinstance(error, (*ANSWERS, UserError, *PERMANENT_ERRORS))


def _version(entry: dict[str, Any]) -> str:
    names = (
        "ETag",
        "etag",
        "md5Hash",
        "generation",
        "LastModified",
        "last_modified",
        "updated",
        "created",
    )
    return f"{entry.get('size')} {next((entry[name] for name in names if name in entry), '')}"
