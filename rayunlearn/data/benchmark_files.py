"""A data set's folder on this machine: its tables by name, in the layouts of the Hub, and a record
of every file that was read.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rayunlearn.data.checksums import FileChecksums
from rayunlearn.data.documents import Document, FileRecord, Rejected
from rayunlearn.data.files import file_record
from rayunlearn.data.readers import ENDINGS, Wanted, csv_records, read_file
from rayunlearn.data.rows import (
    Columns,
    ParsedSplit,
    SourceRow,
    choose_columns,
    may_be_read,
    to_documents,
)
from rayunlearn.errors import UserError, require

Documents = tuple[Document, ...]
Probes = dict[str, Documents]
SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")


@dataclass(frozen=True, kw_only=True)
class BenchmarkParts:
    """What a loader found: the corpus's roles, and what its questions need."""

    forget: Documents = ()
    retain: Documents = ()
    probes: Probes = field(default_factory=dict)
    true_letters: Mapping[str, int] = field(default_factory=dict)
    shots: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ChoiceQuestion:
    """A multiple-choice question, with the place that its true option has in the data."""

    document: Document
    true_letter: int


class BenchmarkFolder:
    """The folder, and what was read from it so far. `recorded` is what upstream's files were."""

    def __init__(self, root: Path, recorded: FileChecksums) -> None:
        require(root.is_dir(), "a benchmark's data must be a directory on this machine", str(root))
        self.root, self._recorded = root, recorded
        self.records: list[FileRecord] = []
        self.notes: list[str] = []
        self.rejected: list[Rejected] = []

    def has(self, table: str) -> bool:
        """Whether the table is there."""
        return bool(self._files(table))

    def rows(self, table: str, wanted: Wanted | None = None) -> tuple[SourceRow, ...]:
        """The rows of `config/split` or `name`, of `wanted` columns alone (None: of all). Raises
        UserError when it is not there, saying where it was looked for.
        """
        files = self._files(table)
        if not files:
            raise UserError(
                f"{self.root} must hold {table}: looked for {table}.(jsonl|json|csv|parquet) and"
                f" {table}-*.parquet"
            )
        source_rows = tuple(
            replace(row, row=index, source=table)
            for index, row in enumerate(row for file in files for row in read_file(file, wanted))
        )
        self._record(table, files, len(source_rows))
        return source_rows

    def documents(self, table: str, columns: Columns | None = None) -> tuple[Document, ...]:
        """The documents of a table; what cannot be one is rejected."""
        rows = self.rows(table, partial(may_be_read, columns=columns or {}))
        return self.accept(to_documents(rows, choose_columns(rows, columns or {}, table)))

    def blocks(self, table: str, name: str, size: int) -> tuple[Document, ...]:
        """`documents` of a table in which every `size` rows are about one person: groups `name` 0,
        `name` 1, ...
        """
        rows = self.rows(table, partial(may_be_read, columns={}))
        loaded = to_documents(rows, choose_columns(rows, {}, table))
        return tuple(
            replace(d, group=f"{name} {loaded.places[d.doc_id][1] // size}")
            for d in self.accept(loaded)
        )

    def letters(
        self, folder: str, *, repeats: bool = False
    ) -> list[tuple[str, list[ChoiceQuestion]]]:
        """Questions of a folder of MMLU's own CSV files `<subject>_<folder>.csv` (no header:
        question, options, letter), by subject.
        """
        files = sorted((self.root / folder).glob("*.csv"))
        require(
            bool(files),
            f"{self.root / folder} must hold MMLU's files <subject>_{folder}.csv, found",
            len(files),
        )
        subjects = [
            (file.stem.removesuffix(f"_{folder}"), self._read_letters(file)) for file in files
        ]
        self._record(folder, files, sum(len(rows) for _, rows in subjects))
        return [
            (subject, self.choices(rows, subject, repeats=repeats)) for subject, rows in subjects
        ]

    def choices(
        self, rows: Sequence[SourceRow], subject: str = "", *, repeats: bool = False
    ) -> list[ChoiceQuestion]:
        """Questions of rows with `question`, `choices` and `answer` (a position or a letter);
        unusable rows are rejected.

        So are rows that repeat an earlier one, unless `repeats` are wanted (shots stand as upstream
        has them).
        """
        questions: list[ChoiceQuestion] = []
        seen: set[str] = set()
        for row in rows:
            choice = row.reason or choice_question(row, subject)
            if (
                isinstance(choice, ChoiceQuestion)
                and choice.document.doc_id in seen
                and not repeats
            ):
                choice = "the same question and answer as an earlier row"
            if isinstance(choice, str):
                self.rejected.append(
                    Rejected(
                        source=row.source,
                        row=row.row,
                        reason=choice,
                        excerpt=str(dict(row.values))[:200],
                    )
                )
                continue
            questions.append(choice)
            seen.add(choice.document.doc_id)
        return questions

    def articles(self, folder: str) -> tuple[Document, ...]:
        """The .txt files of a folder as documents without a question, the file's name as topic."""
        files = sorted((self.root / folder).glob("*.txt"))
        require(
            bool(files), f"{self.root / folder} must hold articles as .txt files, found", len(files)
        )
        self._record(folder, files, len(files))
        rows = [_article(folder, index, file) for index, file in enumerate(files)]
        return self.accept(to_documents(rows, {"answer": "text", "topic": "title"}))

    def json_object(self, table: str) -> dict[str, Any]:
        """The one object of `<table>.json`, alone or in a list. Raises UserError where it is not
        there and for anything else.
        """
        file = self.root / f"{table}.json"
        require(file.is_file(), f"{self.root} must hold {table}.json; looked for", str(file))
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as problem:
            raise UserError(f"{file} must be JSON: {problem}") from problem
        if isinstance(content, list) and len(content) == 1:
            content = content[0]
        require(isinstance(content, dict), f"{file} must hold one object", type(content).__name__)
        return dict(content)

    def record(self, table: str, rows: int) -> None:
        """Note that so many rows were read from `<table>.json`."""
        self._record(table, [self.root / f"{table}.json"], rows)

    def accept(self, loaded: ParsedSplit) -> tuple[Document, ...]:
        """The documents, after noting what was rejected."""
        self.rejected.extend(loaded.rejected)
        self.notes.extend(loaded.notes)
        return loaded.documents

    def _files(self, table: str) -> list[Path]:
        """The one file of that name, or all its shards. Raises UserError for several files and for
        missing shards.
        """
        folder = self.root / table
        matching = sorted(
            file for suffix in ENDINGS if (file := folder.with_name(folder.name + suffix)).is_file()
        )
        require(
            len(matching) <= 1,
            f"{table} must be one file in {self.root}",
            [file.name for file in matching],
        )
        files = sorted(folder.parent.glob(f"{folder.name}-*.parquet"))
        matches = {file: match for file in files if (match := SHARD.search(file.stem))}
        shards = list(matches)
        if matching or not shards:
            return matching
        n = int(matches[shards[0]].group(2))
        require(
            len(shards) == n,
            f"{table} must have all of its {n} shards in {folder.parent}, found",
            len(shards),
        )
        return shards

    def _record(self, table: str, files: Sequence[Path], rows: int) -> None:
        self.records.append(file_record(table, files, rows, self._recorded.get(table)))

    def _read_letters(self, file: Path) -> list[SourceRow]:
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            records = list(csv_records(stream))
        return [
            SourceRow(
                source=file.name,
                row=index,
                values=(
                    {"question": cells[0], "choices": cells[1:-1], "answer": cells[-1]}
                    if cells
                    else {}
                ),
                reason=reason,
            )
            for index, (cells, reason) in enumerate(records)
        ]


def choice_question(row: SourceRow, subject: str) -> ChoiceQuestion | str:
    """The question of a row, or why it is none."""
    question, options, answer = (row.values.get(name) for name in ("question", "choices", "answer"))
    if not isinstance(question, str) or not question.strip():
        return "question is empty"
    if (
        not isinstance(options, list)
        or len(options) < 2
        or not all(isinstance(o, str) and o.strip() for o in options)
    ):
        return "choices must be at least two texts"
    true_index = (
        "ABCDEFGHIJ".find(answer) if isinstance(answer, str) and len(answer) == 1 else answer
    )
    if not isinstance(true_index, int) or not 0 <= true_index < len(options):
        return "answer names no option"
    wrong = tuple(option for index, option in enumerate(options) if index != true_index)
    topic = subject or str(row.values.get("subject") or "")
    return ChoiceQuestion(
        document=Document(prompt=question, answer=options[true_index], wrong=wrong, topic=topic),
        true_letter=true_index,
    )


def split_article(documents: Iterable[Document], n_words: int) -> tuple[Document, ...]:
    """Documents cut into runs of `n_words` words, the last one shorter; 0 leaves them whole.
    Repeated pieces appear once.
    """
    if n_words == 0:
        return tuple(documents)
    pieces = (
        replace(d, answer=" ".join(words[index : index + n_words]))
        for d in documents
        for words in [d.answer.split()]
        for index in range(0, len(words), n_words)
    )
    return tuple({piece.doc_id: piece for piece in pieces}.values())


def _article(folder: str, index: int, file: Path) -> SourceRow:
    try:
        return SourceRow(
            source=f"{folder}/{file.name}",
            row=index,
            values={"text": file.read_text(encoding="utf-8"), "title": file.stem},
        )
    except UnicodeDecodeError:
        return SourceRow(
            source=f"{folder}/{file.name}", row=index, values={}, reason="not valid UTF-8 text"
        )
