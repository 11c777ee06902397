"""Tensors made once per key on disk, for all trials and processes: one makes them, the others wait
and read.

A file carries the text of its key and a digest of its content. One whose key or content is not what
it should be (half written, damaged, of another format) is made again and never used. Reading maps
the file into memory: processes on one machine share its pages, and rows that nobody asks for are
never loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from safetensors import SafetensorError, safe_open

from rayunlearn.config import digest
from rayunlearn.data.tokenize import Encoded
from rayunlearn.errors import UserError
from rayunlearn.lazy import safetensors, torch
from rayunlearn.storage.sync import download_file, upload_file

if TYPE_CHECKING:
    from torch import Tensor


# raised when a file's tensors change their meaning
FORMAT = 1


def tensors_once(
    folder: Path, key: Mapping[str, object], make: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors of `key`, by name, on the CPU: read from `folder`, or made and written there
    first.

    `key` (JSON values) must hold everything that decides the values. Of several processes that want
    the same key one calls `make`. The tensors are mapped copy-on-write: writing to them changes
    neither the file nor another process. Raises UserError when the file cannot be written.
    """
    text = json.dumps({"format": FORMAT, **key}, sort_keys=True)
    path = folder / f"{digest(text)}.safetensors"
    tensors = read_genuine(path, text)
    if tensors is not None:
        return tensors
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            tensors = read_genuine(path, text) if download_file(path) else None
            if tensors is None:
                write_genuine(
                    path, text, {name: t.detach().cpu().contiguous() for name, t in make().items()}
                )
                upload_file(path)
                tensors = read_genuine(path, text)
    except (OSError, SafetensorError) as problem:
        raise UserError(
            f"the cache must be writable, got {type(problem).__name__} for {path}: {problem}"
        ) from problem
    if tensors is None:
        raise UserError(f"the cache must give back what was written to it, but {path} does not")
    return tensors


def json_once(folder: Path, key: Mapping[str, object], make: Callable[[], object]) -> Any:
    """`tensors_once` for a JSON value: rows, texts, numbers, which come back to the last bit
    (tuples as lists).
    """

    def written() -> dict[str, Tensor]:
        return {"json": torch.frombuffer(bytearray(json.dumps(make()).encode()), dtype=torch.uint8)}

    return json.loads(tensors_once(folder, key, written)["json"].numpy().tobytes())


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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError):
        return None
    genuine = notes.get("key") == text and notes.get("content") == content_digest(tensors)
    return tensors if genuine else None


def write_genuine(path: Path, text: str, tensors: dict[str, Tensor]) -> None:
    """Write tensors with their key and the digest of their content, in one rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        safetensors.torch.save_file(
            tensors, temporary, {"key": text, "content": content_digest(tensors)}
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
