"""Documents of your own: JSONL, JSON, CSV or Parquet files, or a data set of the Hugging Face Hub.

A row that cannot be used is rejected with its reason (`documents.Rejected`) and the rest goes on;
only a corpus with nothing left to forget or to retain is an error. Nothing here runs code that a
data set brings and nothing
unpickles: JSON, CSV and Parquet are the only formats read, from the Hub too. docs/data.md tells the
format.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rayunlearn.config import Data
from rayunlearn.data.documents import Corpus, Document, FileRecord, Rejected
from rayunlearn.data.hub import is_local, looks_like_path, read_hub
from rayunlearn.data.readers import READERS, read_file
from rayunlearn.data.rows import (
    Columns,
    ParsedSplit,
    SourceRow,
    check_columns,
    choose_columns,
    excerpt_of,
    file_column_names,
    parse_columns,
    to_documents,
)
from rayunlearn.errors import UserError, require, unknown_name


def load_files(data: Data) -> Corpus:
    """The corpus at `data.path`: a directory of files, one file with a column `split`, or a Hub
    name.

    `extra_training` is empty: what base learns is what is given to forget and to retain. Raises
    UserError for a path, split or column that is not there, and when no document is left to forget,
    to retain or to ask.
    """
    columns = parse_columns(data.columns)
    roles = {
        "forget": data.forget,
        "retain": data.retain,
        "probe_forget": data.probe_forget,
        "probe_retain": data.probe_retain,
    }
    roles["holdout"] = data.holdout
    named = {role: name for role, name in roles.items() if name}
    require(
        data.forget != data.retain,
        "data.forget and data.retain must be different splits",
        data.retain,
    )
    tables = read_splits(data.path, tuple(dict.fromkeys(named.values())), columns)
    check_columns(columns, tables)
    loaded = {
        name: to_documents(rows, choose_columns(rows, columns, name))
        for name, rows in tables.items()
    }
    corpus = assemble(data, {role: loaded[name] for role, name in named.items()})
    return replace(
        corpus, files=records_of(data.path, {name: len(rows) for name, rows in tables.items()})
    )


def assemble(data: Data, loaded: Mapping[str, ParsedSplit]) -> Corpus:
    """Put the splits together: forget wins over retain, retain is cut to `data.limit_retain`,
    probes follow it.
    """
    forget = loaded["forget"]
    retain = without_documents(loaded["retain"], forget.documents, "also in the forget set")
    taught_retain = retain.documents[: data.limit_retain]
    splits = _probe_splits(loaded, forget, retain, taught_retain)
    rejected = tuple(
        dict.fromkeys(item for part in (forget, retain, *splits.values()) for item in part.rejected)
    )
    cut = {document.doc_id for document in retain.documents[data.limit_retain :]}
    probes = {
        name: tuple(d for d in split.documents if name != "retain" or d.doc_id not in cut)
        for name, split in splits.items()
    }
    documents_by_setting = {
        "data.holdout" if n == "holdout" else f"data.probe_{n}": d for n, d in probes.items()
    }
    required = {
        "data.forget": forget.documents,
        "data.retain": taught_retain,
        **documents_by_setting,
    }
    for role, documents in required.items():
        require_documents(role, documents, rejected, data.path)
    return Corpus(
        name=corpus_name(data.path),
        forget=forget.documents,
        retain=taught_retain,
        probes=probes,
        extra_training={},
        rejected=rejected,
    )


def _probe_splits(
    loaded: Mapping[str, ParsedSplit],
    forget: ParsedSplit,
    retain: ParsedSplit,
    taught_retain: tuple[Document, ...],
) -> dict[str, ParsedSplit]:
    """The questions of each split, without those that are documents of the other side; where a side
    has no probes of its own, its documents are asked.
    """
    splits = {
        "forget": without_documents(
            loaded.get("probe_forget", forget),
            retain.documents,
            "a forget probe that is in the retain set",
        ),
        "retain": without_documents(
            loaded.get("probe_retain", ParsedSplit(documents=taught_retain)),
            forget.documents,
            "a retain probe that is in the forget set",
        ),
    }
    if "holdout" in loaded:
        unseen = without_documents(
            loaded["holdout"], forget.documents, "a holdout document that is in the forget set"
        )
        splits["holdout"] = without_documents(
            unseen, taught_retain, "a holdout document that is in the retain set"
        )
    return splits


def without_documents(split: ParsedSplit, removed: Iterable[Document], reason: str) -> ParsedSplit:
    """`split` without the documents in `taken`, each of them rejected with `reason`."""
    ids = {document.doc_id for document in removed}
    extra = tuple(
        reject(document, split.places[document.doc_id], reason)
        for document in split.documents
        if document.doc_id in ids
    )
    return replace(
        split,
        documents=tuple(document for document in split.documents if document.doc_id not in ids),
        rejected=split.rejected + extra,
    )


def reject(document: Document, source: tuple[str, int], reason: str) -> Rejected:
    """The record of a document that was read well but has no place in the corpus."""
    return Rejected(
        source=source[0],
        row=source[1],
        reason=reason,
        excerpt=excerpt_of({"prompt": document.prompt, "answer": document.answer}),
    )


def require_documents(
    role: str, documents: tuple[Document, ...], rejected: tuple[Rejected, ...], path: str
) -> None:
    """Raise UserError when a role has no document left; say how many were rejected and the
    commonest reason.
    """
    if documents:
        return
    commonest = Counter(item.reason for item in rejected).most_common(1)
    detail = f", the commonest reason: {commonest[0][0]} ({commonest[0][1]})" if commonest else ""
    raise UserError(
        f"{role} must have at least one usable document, got none in {path!r};"
        f" {len(rejected)} rejected{detail}"
    )


def corpus_name(path: str) -> str:
    """A short name for tables: the last part of the path, or the Hub name."""
    return Path(path).expanduser().resolve().name if is_local(path) else path


def read_splits(
    path: str, names: tuple[str, ...], columns: Columns
) -> dict[str, tuple[SourceRow, ...]]:
    """The rows of each split in `names`, from a directory, one file or the Hub, each source read
    once.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        files = {name: find_split(local, name) for name in names}
        return {name: tuple(read_file(file)) for name, file in files.items()}
    if local.is_file():
        return split_rows(tuple(read_file(local)), names, columns.get("split", "split"))
    require(
        not looks_like_path(path) and local.suffix.lower() not in READERS,
        "data.path must exist: no such file or directory",
        path,
    )
    return {name: tuple(read_hub(path, name)) for name in names}


def find_split(directory: Path, name: str) -> Path:
    """The one data file in `directory` whose stem is `name`. Raises UserError for none, several, or
    a name that is a path.
    """
    require(
        bool(re.fullmatch(r"[\w.+-]+", name)) and name.strip(".") != "",
        "a split name must be a file stem, not a path",
        name,
    )
    files = sorted(
        file for file in directory.iterdir() if file.suffix.lower() in READERS and file.is_file()
    )
    matches = [file for file in files if file.stem == name]
    if not matches:
        raise unknown_name(f"split in {directory}:", name, {file.stem for file in files})
    require(
        len(matches) == 1,
        f"a split must be one file in {directory}",
        [file.name for file in matches],
    )
    return matches[0]


def records_of(path: str, rows: Mapping[str, int]) -> tuple[FileRecord, ...]:
    """What was read for each split (`rows`: how many of them): its file, the one file of all of
    them, or a Hub configuration.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return tuple(file_record(name, [find_split(local, name)], n) for name, n in rows.items())
    if local.is_file():
        return (file_record(local.name, [local], sum(rows.values())),)
    return tuple(
        FileRecord(table=f"{path}:{name}", sha256="", rows=n, state="unknown")
        for name, n in rows.items()
    )


def file_record(
    table: str, files: Sequence[Path], rows: int, expected: tuple[str, int] | None = None
) -> FileRecord:
    """The record of a table in one file or several; `expected` are the SHA-256 ('' where unknown)
    and rows that it once had.
    """
    digests = [sha256_of(file) for file in files]
    named = "".join(f"{file.name} {digest}\n" for file, digest in zip(files, digests, strict=True))
    sha256 = digests[0] if len(files) == 1 else hashlib.sha256(named.encode()).hexdigest()
    expected_digest, known_rows = expected or ("", rows)
    changed = rows != known_rows or expected_digest not in ("", sha256)
    return FileRecord(
        table=table,
        sha256=sha256,
        rows=rows,
        state="changed" if changed else "as recorded" if expected_digest else "unknown",
    )


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, in hex; it is never whole in memory."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def split_rows(
    rows: tuple[SourceRow, ...], names: tuple[str, ...], column: str
) -> dict[str, tuple[SourceRow, ...]]:
    """Rows of one file by what stands in `column`. A row with nothing usable there counts to the
    first split, to be rejected.
    """
    present = file_column_names(rows)
    if present and column not in present:
        rule = (
            f"a single data file must have a column {column!r} that says which split a row"
            " belongs to"
        )
        raise UserError(
            f"{rule}, got the columns {', '.join(present)} (or give a directory with one file per"
            " split)"
        )
    splits = {
        name: tuple(row for row in rows if not row.reason and row.values.get(column) == name)
        for name in names
    }
    nowhere = (
        row if row.reason else replace(row, reason=f"{column} is no text")
        for row in rows
        if not is_text(row.values.get(column))
    )
    return splits | {
        names[0]: tuple(sorted((*nowhere, *splits[names[0]]), key=lambda row: row.row))
    }


def is_text(value: object) -> bool:
    """Whether `value` is text with something in it."""
    return isinstance(value, str) and bool(value.strip())
