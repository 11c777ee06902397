"""Tensors in the cache: safetensors files of `storage.artifact_cache`, mapped into memory.

Processes on one machine share the pages of a mapped file, and rows that nobody asks for are read
once, for their digest, and not held.

A checkpoint (`read_genuine`, `write_genuine`) is no cache entry: it is replaced again and again,
and a manifest beside it would be of another checkpoint between two renames. Its key and the digest
of its content are in the file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from rayunlearn.config import digest
from rayunlearn.data.tokenize import Encoded
from rayunlearn.lazy import safetensors, torch
from rayunlearn.storage.artifact_cache import FileType, cached_file, usual_permissions

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, from any device, as a safetensors file. Raises OSError as other writers do."""
    _save(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, {"format": "pt"}
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU, mapped copy-on-write: writing to them changes
    neither the file nor another process.
    """
    with safe_open(path, framework="pt") as file:
        # an open file is no dict
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


TENSORS: FileType[Mapping[str, Tensor]] = FileType(".safetensors", write_tensors, read_tensors)


def tensors_once(
    folder: Path, key: Mapping[str, object], make: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """`cached_file` for tensors, by name."""
    tensors: Mapping[str, Tensor] = cached_file(folder, key, make, TENSORS)
    return dict(tensors)


def content_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def pack_tensors(sequences: Sequence[Encoded]) -> dict[str, Tensor]:
    """Sequences as four tensors: `ids` of all of them in a row, `lengths`, `starts` and, of the
    numbers of closing ids, `ends` (n,). The doc_ids are not in it.
    """
    return _what_models_read(sequences) | {
        "ends": torch.tensor([s.n_end for s in sequences], dtype=torch.int32)
    }


def unpack_tensors(tensors: Mapping[str, Tensor], doc_ids: Sequence[str]) -> list[Encoded]:
    """The inverse of `packed`."""
    parts = tensors["ids"].split(tensors["lengths"].tolist())
    starts, ends = tensors["starts"].tolist(), tensors["ends"].tolist()
    return [
        Encoded(d, tuple(ids.tolist()), start, n_end)
        for d, ids, start, n_end in zip(doc_ids, parts, starts, ends, strict=True)
    ]


def sequences_digest(sequences: Sequence[Encoded]) -> str:
    """What identifies sequences to a model: their ids, label positions and doc_ids, in order."""
    return digest([content_digest(_what_models_read(sequences)), [s.doc_id for s in sequences]])


def _what_models_read(sequences: Sequence[Encoded]) -> dict[str, Tensor]:
    return {
        "ids": torch.tensor([i for s in sequences for i in s.ids], dtype=torch.int32),
        "lengths": torch.tensor([len(s.ids) for s in sequences], dtype=torch.int32),
        "starts": torch.tensor([s.start for s in sequences], dtype=torch.int32),
    }


def read_genuine(path: Path, text: str) -> dict[str, Tensor] | None:
    """The tensors of a whole file of this key; None for any other file, and where there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    genuine = notes.get("key") == text and notes.get("content") == content_digest(tensors)
    return tensors if genuine else None


def write_genuine(path: Path, text: str, tensors: dict[str, Tensor]) -> None:
    """Write tensors with their key and the digest of their content, in one rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with usual_permissions(temporary):
            _save(tensors, temporary, {"key": text, "content": content_digest(tensors)})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _save(tensors: dict[str, Tensor], path: Path, notes: dict[str, str]) -> None:
    try:
        safetensors.torch.save_file(tensors, path, notes)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error)) from error
