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
from functools import partial
from pathlib import Path

from rayunlearn.config import Data
from rayunlearn.data.documents import Corpus, Document, FileRecord, Rejected
from rayunlearn.data.hub import is_local, looks_like_path, read_hub
from rayunlearn.data.readers import ENDINGS, data_ending, data_stem, kept_columns, read_file
from rayunlearn.data.rows import (
    Columns,
    ParsedSplit,
    SourceRow,
    check_columns,
    choose_columns,
    excerpt_of,
    file_column_names,
    may_be_read,
    parse_columns,
    plain_text,
    to_documents,
)
from rayunlearn.errors import UserError, require, unknown_name

# of splits that are not used, so many are named in a note
MAX_SPLITS = 8


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
    tables, notes = read_splits(data.path, tuple(dict.fromkeys(named.values())), columns)
    check_columns(columns, tables)
    loaded = {}
    for name, rows in tables.items():
        chosen = choose_columns(rows, columns, name)
        if not is_single_file(data.path) and (split := chosen.pop("split", "")):
            notes += (f"{name}: the column {split} chooses no rows, since a split is a whole file",)
        loaded[name] = to_documents(rows, chosen, requested=columns)
    corpus = assemble(data, {role: loaded[name] for role, name in named.items()})
    return replace(
        corpus,
        files=records_of(data.path, {name: len(rows) for name, rows in tables.items()}),
        notes=tuple(dict.fromkeys((*notes, *corpus.notes))),
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
    n_unasked = len(splits["retain"].documents) - len(probes["retain"])
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
        notes=(
            *(note for part in loaded.values() for note in (*part.unread, *part.notes)),
            *limit_notes(len(taught_retain), len(retain.documents), n_unasked),
        ),
    )


def limit_notes(n_kept: int, n_retain: int, n_unasked: int) -> tuple[str, ...]:
    """What `data.limit_retain` left out: retain documents, and the retain probes among them."""
    notes = (
        (n_retain - n_kept, f"retain: the first {n_kept} of {n_retain} documents are kept"),
        (n_unasked, f"retain: {n_unasked} probes are not asked, their documents are left out"),
    )
    return tuple(f"{note} (data.limit_retain)" for count, note in notes if count)


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


def is_single_file(path: str) -> bool:
    """Whether `data.path` is one file, whose column `split` says which rows are which split's."""
    return Path(path).expanduser().is_file()


def read_splits(
    path: str, names: tuple[str, ...], columns: Columns
) -> tuple[dict[str, tuple[SourceRow, ...]], tuple[str, ...]]:
    """The rows of each split in `names`, from a directory, one file or the Hub, each source read
    once; and notes on what was not taken. Of columns that cannot be ours only the names are kept.
    """
    selects = partial(may_be_read, columns=columns)
    local = Path(path).expanduser()
    if local.is_dir():
        files = {name: find_split(local, name) for name in names}
        return {name: tuple(read_file(file, selects)) for name, file in files.items()}, ()
    if local.is_file():
        return split_rows(tuple(read_file(local, selects)), names, columns.get("split") or "split")
    require(
        not looks_like_path(path) and not data_ending(local),
        "data.path must exist: no such file or directory",
        path,
    )
    return {
        name: tuple(kept_columns(row, selects) for row in read_hub(path, name)) for name in names
    }, ()


def find_split(directory: Path, name: str) -> Path:
    """The one data file in `directory` that is called `name` without its ending. Raises UserError
    for none, several, or a name that is a path.
    """
    require(
        bool(re.fullmatch(r"[\w.+-]+", name)) and name.strip(".") != "",
        "a split name must be a file stem, not a path",
        name,
    )
    files = sorted(file for file in directory.iterdir() if data_ending(file) and file.is_file())
    matches = [file for file in files if data_stem(file) == name]
    others = sorted(f.name for f in directory.iterdir() if f.name.partition(".")[0] == name)
    if not matches and others:
        raise UserError(
            f"a split must be a file that ends in one of {', '.join(ENDINGS)}, got"
            f" {', '.join(others)} in {directory}"
        )
    if not matches:
        raise unknown_name(f"split in {directory}:", name, {data_stem(file) for file in files})
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
) -> tuple[dict[str, tuple[SourceRow, ...]], tuple[str, ...]]:
    """Rows of one file by what stands in `column` (a number as text), and a note on the rows of
    other splits. A row with nothing usable there counts to the first split, to be rejected.
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
    splits: dict[str, list[SourceRow]] = {name: [] for name in names}
    others: Counter[str] = Counter()
    for row in rows:
        split = plain_text(row.values.get(column))
        if row.reason or not isinstance(split, str) or not split.strip():
            splits[names[0]].append(
                row if row.reason else replace(row, reason=f"{column} is no text")
            )
        elif split in splits:
            splits[split].append(row)
        else:
            others[split] += 1
    listed = ", ".join(f"{split} ({count})" for split, count in others.most_common(MAX_SPLITS))
    note = f"{rows[0].source if rows else ''}: rows of splits that are not used: {listed}"
    return {name: tuple(documents) for name, documents in splits.items()}, (note,) if others else ()
