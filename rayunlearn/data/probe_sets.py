"""Probe sets by name, beside forget, retain and untouched: `data.probes=near=near.jsonl,...`.

A set is asked and never trained on: a control for what unlearning does to what lies near the forget
set, far from it, or nowhere near either. Its documents are read as those of `data.name=files` are,
are facts of the product's own tables, `continents=known:continents`, or are the product's own
passages of plain English about everyday things, `general=general_text`.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from rayunlearn.config import Data
from rayunlearn.data.documents import Corpus, Document, FileRecord
from rayunlearn.data.files import file_record, read_splits, records_of, without_documents
from rayunlearn.data.general_text import GENERAL_TEXT, text_of
from rayunlearn.data.known import KNOWN_TABLES, known_facts, read_relation
from rayunlearn.data.readers import read_file
from rayunlearn.data.rows import (
    Columns,
    ParsedSplit,
    SourceRow,
    choose_columns,
    may_be_read,
    parse_columns,
    to_documents,
)
from rayunlearn.errors import UserError, require

# sets that a trial makes of other things
MADE_SETS = ("arithmetic", "holdout", "members")
# what a source that is a table of facts begins with
KNOWN = "known:"
# the source that is the product's own passages
GENERAL = "general_text"
# what a set has, the records of its files, and notes
ProbeSet = tuple[ParsedSplit, tuple[FileRecord, ...], tuple[str, ...]]


def parse_probe_sets(text: str) -> dict[str, str]:
    """`near=near.jsonl,far=far` -> name to source. Raises UserError for a part without `=`, a name
    that is no word, and a name given twice.

    Example:
        >>> parse_probe_sets("near=near.jsonl, far=far")
        {'near': 'near.jsonl', 'far': 'far'}
    """
    sources: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, source = (piece.strip() for piece in part.partition("="))
        require(bool(equals and source), "data.probes takes name=file,name=file", part)
        is_word = bool(re.fullmatch(r"[A-Za-z0-9_.-]+", name))
        require(is_word, "a probe set's name must be letters, digits, '_', '.' and '-'", name)
        require(name not in sources, "data.probes must name a set once", name)
        sources[name] = source
    return sources


def with_full_sources(text: str) -> str:
    """`data.probes` with every file in full; a source that is no file is a split and stays."""
    return ",".join(
        f"{name}={Path(source).resolve() if Path(source).is_file() else source}"
        for name, source in parse_probe_sets(text).items()
    )


def with_probe_sets(corpus: Corpus, data: Data) -> Corpus:
    """The corpus with the probe sets of `data.probes`, each a split of its own; the same corpus
    where there are none.

    What is also a document of the forget or the retain set is rejected: it was trained on. Raises
    UserError for a name that the corpus has already, a source that is not there, and a set with no
    usable document.
    """
    sources = parse_probe_sets(data.probes)
    for name in sources:
        is_free = name not in (*corpus.probes, *MADE_SETS, "forget", "retain")
        require(is_free, "a probe set must have a name that the data does not use", name)
    columns = parse_columns(data.columns)
    for name, source in sources.items():
        parsed, files, notes = _shipped(source) or _split_of(name, source, data, columns)
        usable = _untrained(parsed, name, corpus.forget, corpus.retain)
        if not usable.documents:
            raise UserError(f"probe set {name!r} must have a usable document, got none in {source}")
        corpus = replace(
            corpus,
            probes=corpus.probes | {name: usable.documents},
            rejected=(*corpus.rejected, *usable.rejected),
            files=(*corpus.files, *files),
            notes=tuple(dict.fromkeys((*corpus.notes, *notes, *usable.unread, *usable.notes))),
        )
    return corpus


def _shipped(source: str) -> ProbeSet | None:
    """What the product brings: the passages of `general_text`, or the facts of `known:RELATION` or
    `known:RELATION:SLICE`, whatever a model knows of them; None for another source. Raises
    UserError for a relation or a slice that is not there.
    """
    if source == GENERAL:
        return _probe_set(source, text_of(GENERAL_TEXT, "data.probes"), GENERAL_TEXT)
    if not source.startswith(KNOWN):
        return None
    name, _, part = source.removeprefix(KNOWN).partition(":")
    facts = known_facts(read_relation(name), part)
    return _probe_set(source, facts, KNOWN_TABLES / f"{name}.json")


def _probe_set(source: str, documents: tuple[Document, ...], file: Path) -> ProbeSet:
    """Documents of one of the product's own files."""
    places = {document.doc_id: (source, row) for row, document in enumerate(documents)}
    name = file.relative_to(KNOWN_TABLES.parent).with_suffix("").as_posix()
    record = file_record(name, [file], len(documents))
    return ParsedSplit(documents=documents, places=places), (record,), ()


def _split_of(name: str, source: str, data: Data, columns: Columns) -> ProbeSet:
    """The documents of a file, or with `files` of a split of `data.path`."""
    rows, files, notes = _rows_of(source, data, columns)
    parsed = to_documents(rows, choose_columns(rows, columns, name), requested=columns)
    return parsed, files, notes


def _rows_of(
    source: str, data: Data, columns: Columns
) -> tuple[tuple[SourceRow, ...], tuple[FileRecord, ...], tuple[str, ...]]:
    """Rows, records of the files and notes of one set: a data file, or with `files` a split of
    `data.path`.
    """
    file = Path(source)
    if file.is_file():
        rows = tuple(read_file(file, partial(may_be_read, columns=columns)))
        return rows, (file_record(file.name, [file], len(rows)),), ()
    rule = "a probe set must be a data file that exists, known:RELATION or general_text"
    require(data.name == "files", rule, source)
    tables, notes = read_splits(data.path, (source,), columns)
    return tables[source], records_of(data.path, {source: len(tables[source])}), notes


def _untrained(
    split: ParsedSplit, name: str, forget: Iterable[Document], retain: Iterable[Document]
) -> ParsedSplit:
    split = without_documents(split, forget, f"a document of {name} that is in the forget set")
    return without_documents(split, retain, f"a document of {name} that is in the retain set")
