"""From a row of a file to a document: column names, checks, what is rejected and why."""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal

from rayunlearn.data.documents import Document, Rejected
from rayunlearn.errors import UserError, require, unknown_name

# What a column may be called when `data.columns` does not say: the first name that is there is
# taken.
COMMON_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "query", "instruction", "input"),
    "input": ("input",),
    "answer": ("answer", "response", "completion", "output", "text", "content"),
    "paraphrase": ("paraphrase", "paraphrased_answer"),
    "prompt_paraphrase": ("prompt_paraphrase", "paraphrased_question"),
    "wrong": ("wrong", "perturbed_answer", "wrong_answers", "incorrect_answers"),
    "facts": ("facts",),
    "topic": ("topic", "subject"),
    "group": ("group", "entity", "person"),
    "key": ("key",),
    "completion_prompt": ("completion_prompt",),
    "split": ("split",),
}

USUAL_NAMES = frozenset(name for names in COMMON_NAMES.values() for name in names)
LIST_FIELDS = ("wrong", "facts")

# the layout instruction / input / output: the input stands under the instruction in the prompt
INSTRUCTION = "instruction"

# of columns that are not read, so many are named in a note
MAX_NAMED_COLUMNS = 8

# named in `data.columns`, these must be in every file; the others in at least one
REQUIRED = ("prompt", "answer")
EXCERPT_CHARACTERS = 200

# our name -> theirs
Columns = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """One row as it stood in its source: `values` by column, or the `reason` why there are none.
    `ignored` are its columns whose values were not kept.
    """

    source: str
    row: int
    values: Mapping[str, object]
    reason: str = ""
    excerpt: str = ""
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ParsedSplit:
    """The documents of one split, where each stood (doc_id -> source, row), what was rejected on
    the way, in `notes` what was left out of documents that were kept, and in `unread` which
    columns hold nothing of ours.
    """

    documents: tuple[Document, ...] = ()
    places: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


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
    if "input" not in columns and chosen["prompt"].lower() != INSTRUCTION:
        chosen["input"] = ""
    if present and not chosen["answer"]:
        raise UserError(
            f"split {name!r} must have a column for the answer: give data.columns=answer=<column>,"
            f" one of {', '.join(present)}"
        )
    return {ours: theirs for ours, theirs in chosen.items() if theirs}


def file_column_names(rows: Iterable[SourceRow]) -> tuple[str, ...]:
    """Every column that some row has, in order of appearance, those that were not kept last."""
    names: dict[str, None] = {}
    ignored: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row.values))
        ignored.update(dict.fromkeys(row.ignored))
    return tuple(names | ignored)


@dataclass(frozen=True, kw_only=True)
class ParsedRow:
    """A row's document, or the reason why it is none; `left_out` says what is not in the document
    and how often.
    """

    document: Document | None = None
    reason: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a field takes from a row: its texts (one, or a list's), the number of items that the
    list had beside them, and why it cannot be read.
    """

    texts: tuple[str, ...] = ()
    n_empty: int = 0
    problem: str = ""


def may_be_read(column: str, columns: Columns) -> bool:
    """Whether a column can be one of ours: `columns` names it, or it has a usual name."""
    return column in columns.values() or column.lower() in USUAL_NAMES


def to_documents(
    rows: Iterable[SourceRow], columns: Columns, *, requested: Collection[str] = ()
) -> ParsedSplit:
    """Turn rows into documents, in order. Unusable rows and repetitions of a document are rejected.

    `requested` are the fields that `data.columns` names: a row whose field is of the wrong type is
    rejected. Any other field was never asked for: it is left out, counted and noted.
    """
    documents: dict[str, Document] = {}
    places: dict[str, tuple[str, int]] = {}
    rejected = []
    left_out: Counter[tuple[str, str]] = Counter()
    names: dict[tuple[str, str], None] = {}
    for row in rows:
        names.update(((row.source, name), None) for name in (*row.values, *row.ignored))
        parsed = (
            ParsedRow(reason=row.reason)
            if row.reason
            else _named_errors(row, columns, requested=requested)
        )
        document, reason = parsed.document, parsed.reason
        if document is not None and document.doc_id in documents:
            reason = f"the same document as row {places[document.doc_id][1]}"
            document = None
        if document is not None:
            documents[document.doc_id] = document
            places[document.doc_id] = (row.source, row.row)
            left_out.update({(row.source, what): n for what, n in parsed.left_out.items()})
            continue
        excerpt = row.excerpt or excerpt_of(row.values)
        rejected.append(Rejected(source=row.source, row=row.row, reason=reason, excerpt=excerpt))
    unread = [(source, name) for source, name in names if name not in columns.values()]
    return ParsedSplit(
        documents=tuple(documents.values()),
        places=places,
        rejected=tuple(rejected),
        notes=tuple(f"{source}: {what} ({n})" for (source, what), n in left_out.items()),
        unread=unread_notes(unread),
    )


def _named_errors(row: SourceRow, columns: Columns, *, requested: Collection[str]) -> ParsedRow:
    """`to_document`; a key that is not in its answer is an error that names the row, since every
    number read off the wrong words would be wrong.
    """
    try:
        return to_document(row.values, columns, requested=requested)
    except UserError as problem:
        raise UserError(
            f"{row.source}, row {row.row}: {problem} (data.columns=key=,completion_prompt= reads"
            " neither column)"
        ) from problem


def unread_notes(unread: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """One sentence per source about its columns that hold nothing of ours."""
    by_source: dict[str, list[str]] = {}
    for source, name in unread:
        by_source.setdefault(source, []).append(name or "(without a name)")
    return tuple(
        f"{source}: columns that are not read: {', '.join(names[:MAX_NAMED_COLUMNS])}"
        + (f" and {len(names) - MAX_NAMED_COLUMNS} more" if len(names) > MAX_NAMED_COLUMNS else "")
        for source, names in by_source.items()
    )


def to_document(
    values: Mapping[str, object], columns: Columns, *, requested: Collection[str] = ()
) -> ParsedRow:
    """The document of a row, or the reason why the row cannot be one (`to_documents`)."""
    fields: dict[str, tuple[str, ...]] = {}
    left_out: dict[str, int] = {}
    for ours, theirs in columns.items():
        if ours == "split":
            continue
        value = values.get(theirs)
        cell = (
            list_cell(theirs, value)
            if ours in LIST_FIELDS
            else text_cell(theirs, value, needed=ours in REQUIRED)
        )
        if cell.problem and (ours in (*REQUIRED, "input") or ours in requested):
            return ParsedRow(reason=cell.problem)
        if cell.problem:
            left_out[f"{cell.problem}, and is left out"] = 1
        if cell.n_empty:
            left_out[f"missing or empty items of {theirs} are left out"] = cell.n_empty
        fields[ours] = cell.texts
    return ParsedRow(document=_document_of(fields), left_out=left_out)


def _document_of(fields: Mapping[str, tuple[str, ...]]) -> Document:
    texts = {ours: cell_texts[0] for ours, cell_texts in fields.items() if cell_texts}
    return Document(
        answer=texts["answer"],
        prompt=prompt_of(texts),
        paraphrase=texts.get("paraphrase", ""),
        prompt_paraphrase=texts.get("prompt_paraphrase", ""),
        topic=texts.get("topic", ""),
        group=texts.get("group", ""),
        wrong=fields.get("wrong", ()),
        facts=fields.get("facts", ()),
        key=texts.get("key", ""),
        completion_prompt=texts.get("completion_prompt", ""),
    )


def prompt_of(texts: Mapping[str, str]) -> str:
    """The prompt; an instruction's input stands in a line of its own under it, as the trainers that
    read this layout put it.
    """
    prompt, given = texts.get("prompt", ""), texts.get("input", "")
    return f"{prompt}\n{given}" if given.strip() else prompt


def text_cell(column: str, value: object, *, needed: bool) -> Cell:
    """The text of a field. A number or a date counts as text where the field is not `needed` (a
    class label, a fold): answers and prompts must be texts.
    """
    text = value if needed else plain_text(value)
    problem = text_problem(column, text, needed=needed)
    return Cell(problem=problem) if problem else Cell(texts=(str(text or ""),))


def list_cell(column: str, value: object) -> Cell:
    """The texts of a list field: of a list, of a text that is a JSON list, or of one text alone.
    Items without text are counted.
    """
    items = as_list(plain_text(value))
    if items is None:
        return Cell(problem=f"{column} is {type(value).__name__}, not a list of texts")
    texts = [plain_text(item) for item in items]
    filled = [text for text in texts if not (text is None or text == "" or _is_blank(text))]
    problems = (
        text_problem(
            column if isinstance(value, str) else f"an item of {column}", text, needed=True
        )
        for text in filled
    )
    problem = next(filter(None, problems), "")
    if problem:
        return Cell(problem=problem)
    return Cell(texts=tuple(map(str, filled)), n_empty=len(texts) - len(filled))


def plain_text(value: object) -> object:
    """A number or a date as text (3.0 as "3"), what is not a number as nothing; anything else as it
    is.
    """
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return str(int(value))
    if isinstance(value, float | Decimal) and math.isnan(value):
        return None
    return str(value) if isinstance(value, int | float | Decimal | date) else value


def text_problem(column: str, value: object, *, needed: bool) -> str:
    """Why `value` is no text, "" when it is one (or is missing and not needed)."""
    if value is None:
        return f"{column} is missing" if needed else ""
    if not isinstance(value, str):
        return f"{column} is {type(value).__name__}, not text"
    if needed and not value.strip():
        return f"{column} is empty"
    return "" if encodable(value) else f"{column} is not valid UTF-8 text"


def as_list(value: object) -> tuple[object, ...] | None:
    """A list as it is, a text that is a JSON list of texts as that list (nulls may stand in it),
    another text alone, nothing as nothing; None for what is neither.
    """
    if isinstance(value, list | tuple):
        return tuple(value)
    if value is None or _is_blank(value):
        return ()
    if not isinstance(value, str):
        return None
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return (value,)
    is_texts = isinstance(parsed, list) and all(
        item is None or (isinstance(item, str) and encodable(item)) for item in parsed
    )
    return tuple(parsed) if is_texts else (value,)


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


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
