"""Documents of one's own: JSONL, JSON, CSV or Parquet files, or a data set of the Hugging Face Hub.

A row that cannot be used is set aside with its reason (`documents.Rejected`) and the rest goes on;
only a corpus with nothing left to forget or to retain is an error. Nothing here runs code that a
data set brings and nothing
unpickles: JSON, CSV and Parquet are the only formats read, from the Hub too. docs/data.md tells the
format.
"""

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import pyarrow
import pyarrow.parquet

from rayunlearn.config import Data
from rayunlearn.data.documents import Corpus, Document, FileRecord, Rejected
from rayunlearn.data.hub import hub_name, is_local, means_a_path
from rayunlearn.errors import UserError, require, unknown_name
from rayunlearn.results.footer import UNREADABLE, refuse_a_bomb

# What a column may be called when `data.columns` does not say: the first name that is there is
# taken.
COMMON_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "query", "instruction", "input"),
    "answer": ("answer", "response", "completion", "output", "text", "content"),
    "paraphrase": ("paraphrase", "paraphrased_answer"),
    "prompt_paraphrase": ("prompt_paraphrase", "paraphrased_question"),
    "wrong": ("wrong", "perturbed_answer", "wrong_answers", "incorrect_answers"),
    "facts": ("facts",),
    "topic": ("topic", "subject"),
    "split": ("split",),
}
LISTS = ("wrong", "facts")
# named in `data.columns`, these must be in every file; the others in at least one
REQUIRED = ("prompt", "answer")
EXCERPT_CHARACTERS = 200
BOM = b"\xef\xbb\xbf"
# read at a time: books are long
PARQUET_ROWS = 256
# the csv module stops at 131,072, less than a chapter
CSV_FIELD_CHARACTERS = 2**30
# builders of `datasets` that only parse
HUB_FORMATS = ("csv", "json", "parquet", "arrow", "text")

# our name -> theirs
Columns = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row as it stood in its source: `values` by column, or the `reason` why there are none."""

    source: str
    row: int
    values: Mapping[str, object]
    reason: str = ""
    excerpt: str = ""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The documents of one split, where each stood (doc_id -> source, row), and what was set aside
    on the way.
    """

    documents: tuple[Document, ...] = ()
    places: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    rejected: tuple[Rejected, ...] = ()


def load_files(data: Data) -> Corpus:
    """The corpus at `data.path`: a directory of files, one file with a column `split`, or a Hub
    name.

    `taught` is empty: what base learns is what is given to forget and to retain. Raises UserError
    for a path, split or column that is not there, and when no document is left to forget, to retain
    or to ask.
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


def assemble(data: Data, loaded: Mapping[str, Loaded]) -> Corpus:
    """Put the splits together: forget wins over retain, retain is cut to `data.limit_retain`,
    probes follow it.
    """
    forget = loaded["forget"]
    retain = without(loaded["retain"], forget.documents, "also in the forget set")
    kept, cut = (
        retain.documents[: data.limit_retain],
        {document.doc_id for document in retain.documents[data.limit_retain :]},
    )
    probe_forget = without(
        loaded.get("probe_forget", forget),
        retain.documents,
        "a forget probe that is in the retain set",
    )
    probe_retain = without(
        loaded.get("probe_retain", Loaded(documents=kept)),
        forget.documents,
        "a retain probe that is in the forget set",
    )
    asked = tuple(document for document in probe_retain.documents if document.doc_id not in cut)
    rejected = tuple(
        dict.fromkeys(
            item for part in (forget, retain, probe_forget, probe_retain) for item in part.rejected
        )
    )
    probes = {"forget": probe_forget.documents, "retain": asked}
    if "holdout" in loaded:
        taught = without(
            loaded["holdout"], forget.documents, "a holdout document that is in the forget set"
        )
        holdout = without(taught, kept, "a holdout document that is in the retain set")
        probes, rejected = (
            probes | {"holdout": holdout.documents},
            tuple(dict.fromkeys((*rejected, *holdout.rejected))),
        )
    for role, documents in (("data.forget", forget.documents), ("data.retain", kept)):
        require_some(role, documents, rejected, data.path)
    for split, documents in probes.items():
        require_some(
            "data.holdout" if split == "holdout" else f"data.probe_{split}",
            documents,
            rejected,
            data.path,
        )
    return Corpus(
        name=corpus_name(data.path),
        forget=forget.documents,
        retain=kept,
        probes=probes,
        taught={},
        rejected=rejected,
    )


def without(split: Loaded, taken: Iterable[Document], reason: str) -> Loaded:
    """`split` without the documents in `taken`, each of them set aside with `reason`."""
    ids = {document.doc_id for document in taken}
    extra = tuple(
        set_aside(document, split.places[document.doc_id], reason)
        for document in split.documents
        if document.doc_id in ids
    )
    return replace(
        split,
        documents=tuple(document for document in split.documents if document.doc_id not in ids),
        rejected=split.rejected + extra,
    )


def set_aside(document: Document, place: tuple[str, int], reason: str) -> Rejected:
    """The record of a document that was read well but has no place in the corpus."""
    return Rejected(
        source=place[0],
        row=place[1],
        reason=reason,
        excerpt=excerpt_of({"prompt": document.prompt, "answer": document.answer}),
    )


def require_some(
    role: str, documents: tuple[Document, ...], rejected: tuple[Rejected, ...], path: str
) -> None:
    """Raise UserError when a role has no document left; say how many were set aside and the
    commonest reason.
    """
    if documents:
        return
    commonest = Counter(item.reason for item in rejected).most_common(1)
    detail = f", the commonest reason: {commonest[0][0]} ({commonest[0][1]})" if commonest else ""
    raise UserError(
        f"{role} must have at least one usable document, got none in {path!r}; {len(rejected)} set"
        f" aside{detail}"
    )


def corpus_name(path: str) -> str:
    """A short name for tables: the last part of the path, or the Hub name."""
    return Path(path).expanduser().resolve().name if is_local(path) else path


# ----------------------------------------------------------------------------------------------------
# columns


def parse_columns(text: str) -> dict[str, str]:
    """`"prompt=question,answer=answer"` -> our name to theirs; `prompt=` says that there is none.

    Raises UserError for a name that is not ours, a part without `=`, and a name given twice.
    """
    columns: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        require(bool(equals), "data.columns takes ours=theirs,ours=theirs", part)
        if ours not in COMMON_NAMES:
            raise unknown_name("field in data.columns", ours, COMMON_NAMES)
        require(ours not in columns, "data.columns must name a field once", ours)
        columns[ours] = theirs
    return columns


def check_columns(columns: Columns, tables: Mapping[str, tuple[Row, ...]]) -> None:
    """Raise UserError for a column in `data.columns` that the files do not have, with the nearest
    that they have.
    """
    present = {name: column_names(rows) for name, rows in tables.items() if column_names(rows)}
    anywhere = {column for names in present.values() for column in names}
    for ours, theirs in columns.items():
        if present and theirs and theirs not in anywhere:
            raise unknown_name(f"column for {ours} in data.columns:", theirs, anywhere)
        for name, names in present.items():
            if ours in REQUIRED and theirs and theirs not in names:
                raise unknown_name(
                    f"column for {ours} in data.columns, looked for in split {name!r}:",
                    theirs,
                    names,
                )


def choose_columns(rows: tuple[Row, ...], columns: Columns, name: str) -> dict[str, str]:
    """Our name -> the column of this split that holds it: as `data.columns` says, else by
    `COMMON_NAMES`.

    Raises UserError when there are rows and none of their columns can be the answer.
    """
    present = column_names(rows)
    lowered = {column.lower(): column for column in reversed(present)}
    chosen = {
        ours: next((lowered[known] for known in names if known in lowered), "")
        for ours, names in COMMON_NAMES.items()
    }
    chosen |= {ours: theirs if theirs in present else "" for ours, theirs in columns.items()}
    if present and not chosen["answer"]:
        raise UserError(
            f"split {name!r} must have a column for the answer: give data.columns=answer=<column>,"
            f" one of {', '.join(present)}"
        )
    return {ours: theirs for ours, theirs in chosen.items() if theirs}


def column_names(rows: Iterable[Row]) -> tuple[str, ...]:
    """Every column that some row has, in order of appearance."""
    return tuple(dict.fromkeys(column for row in rows for column in row.values))


# ----------------------------------------------------------------------------------------------------
# documents


def to_documents(rows: Iterable[Row], columns: Columns) -> Loaded:
    """Turn rows into documents, in order. Unusable rows and repetitions of a document are set
    aside.
    """
    documents: dict[str, Document] = {}
    places: dict[str, tuple[str, int]] = {}
    rejected = []
    for row in rows:
        result = row.reason or to_document(row.values, columns)
        if isinstance(result, Document) and result.doc_id not in documents:
            documents[result.doc_id] = result
            places[result.doc_id] = (row.source, row.row)
            continue
        reason = (
            result
            if isinstance(result, str)
            else f"the same document as row {places[result.doc_id][1]}"
        )
        rejected.append(
            Rejected(
                source=row.source,
                row=row.row,
                reason=reason,
                excerpt=row.excerpt or excerpt_of(row.values),
            )
        )
    return Loaded(documents=tuple(documents.values()), places=places, rejected=tuple(rejected))


def to_document(values: Mapping[str, object], columns: Columns) -> Document | str:
    """The document of a row, or the reason why the row cannot be one."""
    texts: dict[str, str] = {}
    lists: dict[str, tuple[str, ...]] = {}
    for ours, theirs in columns.items():
        value = values.get(theirs)
        reason = (
            list_problem(theirs, value)
            if ours in LISTS
            else text_problem(theirs, value, needed=ours in REQUIRED)
        )
        if reason:
            return reason
        if ours in LISTS:
            lists[ours] = as_list(value)
        elif ours != "split":
            texts[ours] = str(value or "")
    return Document(
        answer=texts["answer"],
        prompt=texts.get("prompt", ""),
        paraphrase=texts.get("paraphrase", ""),
        prompt_paraphrase=texts.get("prompt_paraphrase", ""),
        topic=texts.get("topic", ""),
        wrong=lists.get("wrong", ()),
        facts=lists.get("facts", ()),
    )


def text_problem(column: str, value: object, *, needed: bool) -> str:
    """Why `value` is no text, "" when it is one (or is missing and not needed)."""
    if value is None:
        return f"{column} is missing" if needed else ""
    if not isinstance(value, str):
        return f"{column} is {type(value).__name__}, not text"
    if needed and not value.strip():
        return f"{column} is empty"
    return "" if encodable(value) else f"{column} is not valid UTF-8 text"


def list_problem(column: str, value: object) -> str:
    """Why `value` is no list of texts, "" when it is one, one text (CSV: also a JSON list) or
    missing.
    """
    if value is None or isinstance(value, str):
        return text_problem(column, value, needed=False)
    if not isinstance(value, list):
        return f"{column} is {type(value).__name__}, not a list of texts"
    return next(
        (
            reason
            for reason in (
                text_problem(f"an item of {column}", item, needed=True) for item in value
            )
            if reason
        ),
        "",
    )


def as_list(value: object) -> tuple[str, ...]:
    """A list as it is, a text that is a JSON list of texts as that list, another text alone,
    nothing as nothing.
    """
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, str) or not value.strip():
        return ()
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return (value,)
    return tuple(parsed) if isinstance(parsed, list) and not list_problem("", parsed) else (value,)


def encodable(text: str) -> bool:
    """Whether `text` can be written as UTF-8: a lone surrogate, from JSON `\\ud800` or from invalid
    bytes, cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def excerpt_of(content: object) -> str:
    """The first 200 characters of a row, as text that can be written anywhere."""
    if isinstance(content, bytes):
        return content[: 4 * EXCERPT_CHARACTERS].decode(errors="replace")[:EXCERPT_CHARACTERS]
    text = (
        content
        if isinstance(content, str)
        else json.dumps(content, ensure_ascii=False, default=repr)
    )
    return text[:EXCERPT_CHARACTERS].encode(errors="replace").decode()


# ----------------------------------------------------------------------------------------------------
# reading


def read_splits(path: str, names: tuple[str, ...], columns: Columns) -> dict[str, tuple[Row, ...]]:
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
        not means_a_path(path) and local.suffix.lower() not in READERS,
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
    known, known_rows = expected or ("", rows)
    changed = rows != known_rows or known not in ("", sha256)
    return FileRecord(
        table=table,
        sha256=sha256,
        rows=rows,
        state="changed" if changed else "as recorded" if known else "unknown",
    )


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, in hex; it is never whole in memory."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def split_rows(
    rows: tuple[Row, ...], names: tuple[str, ...], column: str
) -> dict[str, tuple[Row, ...]]:
    """Rows of one file by what stands in `column`. A row with nothing usable there counts to the
    first split, to be set aside.
    """
    present = column_names(rows)
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


def read_file(file: Path) -> Iterator[Row]:
    """The rows of one file, in order; unreadable ones with their reason. Raises UserError when the
    file cannot be read at all.
    """
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"a data file must end in one of {', '.join(READERS)}, got {file.name!r}")
    try:
        yield from reader(file)
    except UNREADABLE as problem:
        raise UserError(f"{file} could not be read as {file.suffix[1:]}: {problem}") from problem


def read_json(file: Path) -> Iterator[Row]:
    """JSON lines, or one JSON array of objects (told by the first character)."""
    yield from read_json_array(file) if is_array(file) else read_json_lines(file)


def is_array(file: Path) -> bool:
    """Whether a JSON file begins with `[`."""
    with file.open("rb") as stream:
        return stream.read(4096).removeprefix(BOM).lstrip()[:1] == b"["


def read_json_lines(file: Path) -> Iterator[Row]:
    """One object per line; blank lines are skipped, and a row number counts lines from 0."""
    with file.open("rb") as stream:
        yield from json_rows(file, enumerate(stream))


def json_rows(file: Path, lines: Iterable[tuple[int, bytes]]) -> Iterator[Row]:
    """The rows of numbered lines of a file of JSON lines."""
    for number, line in lines:
        content = line.removeprefix(BOM).strip() if number == 0 else line.strip()
        if content:
            values, reason = parse_json(content)
            values, reason = object_or_reason(values, reason)
            yield Row(
                source=file.name,
                row=number,
                values=values,
                reason=reason,
                excerpt=excerpt_of(content) if reason else "",
            )


def read_json_array(file: Path) -> Iterator[Row]:
    """Each item of one array; an array that does not parse is one unusable row."""
    content = file.read_bytes().removeprefix(BOM).strip()
    items, problem = parse_json(content)
    if problem or not isinstance(items, list):
        yield Row(source=file.name, row=0, values={}, reason=problem, excerpt=excerpt_of(content))
        return
    for number, item in enumerate(items):
        values, reason = object_or_reason(item, "")
        yield Row(
            source=file.name,
            row=number,
            values=values,
            reason=reason,
            excerpt=excerpt_of(item) if reason else "",
        )


def parse_json(content: bytes) -> tuple[object, str]:
    """(value, "") or (None, why it is not JSON)."""
    try:
        return json.loads(content.decode()), ""
    except UnicodeDecodeError:
        return None, "not valid UTF-8 text"
    except json.JSONDecodeError as problem:
        return None, f"not JSON: {problem.msg}"
    # nested thousands deep; an integer of thousands of digits
    except (RecursionError, ValueError):
        return None, "not JSON: nested too deep or a number too long"


def object_or_reason(value: object, reason: str) -> tuple[dict[str, object], str]:
    """(the object, "") or ({}, why the row has none)."""
    if reason or isinstance(value, dict):
        return (value, "") if isinstance(value, dict) else ({}, reason)
    return {}, f"a row must be an object, this is {type(value).__name__}"


def read_csv(file: Path) -> Iterator[Row]:
    """Comma-separated with a header; a row with another number of cells than the header is
    unusable.

    Row 0 is the one under the header. Invalid bytes become surrogates, which `text_problem` finds.
    """
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        records = csv_records(stream)
        header = csv_header(file, next(records, ([], ""))[0])
        yield from csv_row_values(file, records, header, 0)


def csv_rows(file: Path, start: int, stop: int, row: int) -> Iterator[Row]:
    """The rows of a CSV file between two bytes at which records begin; the header is read from its
    beginning.
    """
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        header = csv_header(file, next(csv_records(stream), ([], ""))[0])
    with file.open("rb") as binary:
        binary.seek(start)
        lines = (
            line.decode("utf-8-sig" if start == 0 else "utf-8", errors="surrogateescape")
            for line in lines_until(binary, stop)
        )
        records = csv_records(lines)
        if start == 0:
            next(records)
        yield from csv_row_values(file, records, header, row)


def lines_until(stream: BinaryIO, stop: int) -> Iterator[bytes]:
    """The lines of a file from where it stands to the byte `stop`."""
    position = stream.tell()
    while position < stop and (line := stream.readline()):
        position += len(line)
        yield line


def csv_header(file: Path, header: list[str]) -> list[str]:
    """The header. Raises UserError for one that names a column twice."""
    require(
        len(set(header)) == len(header),
        f"the columns of {file.name} must have different names",
        header,
    )
    return header


def csv_row_values(
    file: Path, records: Iterable[tuple[list[str], str]], header: list[str], first: int
) -> Iterator[Row]:
    """Records under their header as rows, numbered from `first`."""
    for number, (cells, problem) in enumerate(records, first):
        reason = problem or (
            ""
            if len(cells) == len(header)
            else f"{len(cells)} cells under a header of {len(header)}"
        )
        values = {} if reason else dict(zip(header, cells, strict=True))
        yield Row(
            source=file.name,
            row=number,
            values=values,
            reason=reason,
            excerpt=excerpt_of(cells) if reason else "",
        )


def csv_records(stream: Iterable[str]) -> Iterator[tuple[list[str], str]]:
    """(cells, "") or ([], why not) per record; blank lines are skipped. A quote that never closes
    takes the rest with it.

    The csv module's limit on a field is global: it is raised while a record is read and put back.
    """
    reader = csv.reader(stream, strict=True)
    while True:
        limit = csv.field_size_limit(CSV_FIELD_CHARACTERS)
        try:
            record = (next(reader), "")
        except csv.Error as problem:
            record = ([], f"not CSV: {problem}")
        except StopIteration:
            return
        finally:
            csv.field_size_limit(limit)
        if any(record):
            yield record


def read_parquet(file: Path) -> Iterator[Row]:
    """The rows of a Parquet file, some hundreds at a time."""
    yield from parquet_rows(file, 0, None, None)


def parquet_rows(
    file: Path, start: int, stop: int | None, columns: list[str] | None
) -> Iterator[Row]:
    """Rows [start, stop) of a Parquet file (None: to its end), of the `columns` alone where they
    are given. Raises UserError for a bomb.
    """
    refuse_a_bomb(file)
    with pyarrow.parquet.ParquetFile(file) as table:
        stop = table.metadata.num_rows if stop is None else stop
        groups, number = groups_between(table.metadata, start, stop)
        for batch in table.iter_batches(
            PARQUET_ROWS, row_groups=groups, columns=columns, use_threads=False
        ):
            wanted = batch.slice(max(0, start - number), max(0, stop - max(start, number)))
            for position, (values, reason) in enumerate(batch_values(wanted), max(start, number)):
                yield Row(source=file.name, row=position, values=values, reason=reason)
            number += batch.num_rows


def groups_between(
    metadata: pyarrow.parquet.FileMetaData, start: int, stop: int
) -> tuple[list[int], int]:
    """The row groups that hold rows of [start, stop), and the number of their first row."""
    groups: list[int] = []
    row = first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row < stop and row + rows > start:
            first = first if groups else row
            groups.append(group)
        row += rows
    return groups, first


def batch_values(batch: pyarrow.RecordBatch) -> Iterator[tuple[dict[str, object], str]]:
    """(values by column, "") or ({}, reason) per row; row by row only where some text is not UTF-8."""
    names = batch.schema.names
    try:
        columns = [column.to_pylist() for column in batch.columns]
    except UnicodeDecodeError:
        yield from (parquet_row(batch, position) for position in range(batch.num_rows))
        return
    yield from (
        (dict(zip(names, values, strict=True)), "") for values in zip(*columns, strict=True)
    )


def parquet_row(batch: pyarrow.RecordBatch, position: int) -> tuple[dict[str, object], str]:
    """(values by column, "") or ({}, reason): a Parquet string may hold bytes that are not UTF-8."""
    try:
        return {
            name: batch.column(index)[position].as_py()
            for index, name in enumerate(batch.schema.names)
        }, ""
    except UnicodeDecodeError:
        return {}, "not valid UTF-8 text"


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def read_hub(path: str, name: str) -> Iterator[Row]:
    """The rows of split `train` of configuration `name` of the Hub data set `path` (`owner/name`,
    `owner/name@revision`).

    Raises UserError, saying what was tried, when the Hub cannot be reached, does not have it, or
    holds another format.
    """
    # this and `datasets` take a second to import, and only a Hub name needs them
    import huggingface_hub

    repository, revision = hub_name(
        path,
        "data.path must be a directory, a file or a Hub name (owner/name): no such file or"
        " directory",
    )
    tried = (
        f"data.path {path!r} is no file or directory here, so it was looked up on the Hub"
        f" (configuration {name!r}, split 'train')"
    )
    # one quick question first: `datasets` asks an unreachable Hub for half a minute
    try:
        huggingface_hub.HfApi().dataset_info(repository, revision=revision, timeout=20)
    except huggingface_hub.errors.OfflineModeIsEnabled:
        # HF_HUB_OFFLINE=1 means: from the local cache
        pass
    # the client's errors have no common base across its versions
    except Exception as problem:
        raise UserError(
            f"{tried}: {type(problem).__name__}: {problem} (HF_HUB_OFFLINE=1 takes what is in the"
            " local cache)"
        ) from problem
    yield from read_dataset(repository, name, revision, tried)


def read_dataset(repository: str, name: str, revision: str | None, tried: str) -> Iterator[Row]:
    """The rows as `datasets` gives them. Only its parsing builders are let through: a data set
    brings no code here.
    """
    import datasets

    try:
        builder = datasets.load_dataset_builder(repository, name, revision=revision)
        kind = type(builder).__module__.rpartition(".")[2]
        require(
            kind in HUB_FORMATS, f"{tried}: its files must be one of {', '.join(HUB_FORMATS)}", kind
        )
        builder.download_and_prepare()
        table = builder.as_dataset(split="train")
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as problem:
        raise UserError(f"{tried}: {type(problem).__name__}: {problem}") from problem
    for number, values in enumerate(table):
        yield Row(source=f"{repository}:{name}", row=number, values=values)
