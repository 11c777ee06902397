"""From a row of a file to a document: column names, checks, what is rejected and why."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rayunlearn.data.documents import Document, Rejected
from rayunlearn.errors import UserError, require, unknown_name

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
    "group": ("group", "entity", "person"),
    "split": ("split",),
}

LIST_FIELDS = ("wrong", "facts")

# named in `data.columns`, these must be in every file; the others in at least one
REQUIRED = ("prompt", "answer")
EXCERPT_CHARACTERS = 200

# our name -> theirs
Columns = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """One row as it stood in its source: `values` by column, or the `reason` why there are none."""

    source: str
    row: int
    values: Mapping[str, object]
    reason: str = ""
    excerpt: str = ""


@dataclass(frozen=True, kw_only=True)
class ParsedSplit:
    """The documents of one split, where each stood (doc_id -> source, row), and what was rejected
    on the way.
    """

    documents: tuple[Document, ...] = ()
    places: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    rejected: tuple[Rejected, ...] = ()


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


def check_columns(columns: Columns, tables: Mapping[str, tuple[SourceRow, ...]]) -> None:
    """Raise UserError for a column in `data.columns` that the files do not have, with the nearest
    that they have.
    """
    present = {
        name: file_column_names(rows) for name, rows in tables.items() if file_column_names(rows)
    }
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


def choose_columns(rows: tuple[SourceRow, ...], columns: Columns, name: str) -> dict[str, str]:
    """Our name -> the column of this split that holds it: as `data.columns` says, else by
    `COMMON_NAMES`.

    Raises UserError when there are rows and none of their columns can be the answer.
    """
    present = file_column_names(rows)
    lowered = {column.lower(): column for column in reversed(present)}
    chosen = {
        ours: next((lowered[candidate] for candidate in names if candidate in lowered), "")
        for ours, names in COMMON_NAMES.items()
    }
    chosen |= {ours: theirs if theirs in present else "" for ours, theirs in columns.items()}
    if present and not chosen["answer"]:
        raise UserError(
            f"split {name!r} must have a column for the answer: give data.columns=answer=<column>,"
            f" one of {', '.join(present)}"
        )
    return {ours: theirs for ours, theirs in chosen.items() if theirs}


def file_column_names(rows: Iterable[SourceRow]) -> tuple[str, ...]:
    """Every column that some row has, in order of appearance."""
    return tuple(dict.fromkeys(column for row in rows for column in row.values))


def to_documents(rows: Iterable[SourceRow], columns: Columns) -> ParsedSplit:
    """Turn rows into documents, in order. Unusable rows and repetitions of a document are
    rejected.
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
    return ParsedSplit(documents=tuple(documents.values()), places=places, rejected=tuple(rejected))


def to_document(values: Mapping[str, object], columns: Columns) -> Document | str:
    """The document of a row, or the reason why the row cannot be one."""
    texts: dict[str, str] = {}
    lists: dict[str, tuple[str, ...]] = {}
    for ours, theirs in columns.items():
        value = values.get(theirs)
        reason = (
            list_problem(theirs, value)
            if ours in LIST_FIELDS
            else text_problem(theirs, value, needed=ours in REQUIRED)
        )
        if reason:
            return reason
        if ours in LIST_FIELDS:
            lists[ours] = as_list(value)
        elif ours != "split":
            texts[ours] = str(value or "")
    return Document(
        answer=texts["answer"],
        prompt=texts.get("prompt", ""),
        paraphrase=texts.get("paraphrase", ""),
        prompt_paraphrase=texts.get("prompt_paraphrase", ""),
        topic=texts.get("topic", ""),
        group=texts.get("group", ""),
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
