"""Benchmarks of questions and completions that are forgotten beside ones that are kept: LUME
(SemEval-2025 task 4), KnowUnDo and BLUR.

Layouts are those of their public folders, read in 2026: file and column names were confirmed by
looking at them (LUME, KnowUnDo) or at code that reads them (BLUR, whose own card was not at hand).
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from rayunlearn.data.benchmark_files import BenchmarkFolder, BenchmarkParts, Documents
from rayunlearn.data.documents import Document, Rejected
from rayunlearn.data.readers import read_file
from rayunlearn.data.rows import SourceRow, file_column_names, to_documents
from rayunlearn.errors import UserError, require

# LUME: a row's id is its document's id and what the row asks: sc1 completes it, qa0, qa1, ... ask
LUME_ID = re.compile(r'^"?(?P<document>.*?)"?(?P<kind>sc|qa)(?P<number>\d+)$')
LUME_COLUMNS = ("id", "input", "output", "task")
LUME_TASKS = ("Task1", "Task2", "Task3")
# where the files of a side have stood: the authors' repository, and SemEval's folders by fold
LUME_FILES = ("data/{side}", "{side}")
LUME_FOLDS = ("data/{side}_{fold}", "{fold}/{side}")
FOLDS = ("train", "validation")
KNOWUNDO_SIDES = {"forget": "unlearn", "retain": "retention"}
KNOWUNDO_DOMAINS = ("copyright", "privacy")
BLUR_TASKS = ("rwku", "whp", "tofu", "wmdp")
# BLUR: split -> what its file is called after the task
BLUR_FILES = {"forget": "forget", "retain": "retain", "combined": "paired_forget_retain"}
SourceRows = tuple[SourceRow, ...]


def lume(folder: BenchmarkFolder, *, task: str = "all", fold: str = "train") -> BenchmarkParts:
    """LUME (2502.15097), of SemEval-2025 task 4 (2504.02883): synthetic stories (Task1),
    biographies with personal details (Task2), real biographies (Task3), each completed and asked
    about; `task` takes one of them.

    Splits: forget and retain (questions), completion and retain_completion (the rest of a text,
    without a template). Training documents are the questions, and the whole texts of completions,
    which have no question: departure from the task's own input and output. What is asked of one
    document is one group. Files: `data/forget.jsonl` and `data/retain.jsonl` (the authors'
    repository), else those of a `fold` (train, validation): `data/forget_train-*.parquet` or
    `train/forget.jsonl`, .... The task's membership files are not read: their columns are not
    confirmed.
    """
    require(task in ("all", *LUME_TASKS), "lume.task must be all, Task1, Task2 or Task3", task)
    require(fold in FOLDS, f"lume.fold must be {' or '.join(FOLDS)}", fold)
    sides = {side: _lume_side(folder, side, task, fold) for side in ("forget", "retain")}
    questions = {side: tuple(d for kind, d in rows if kind == "qa") for side, rows in sides.items()}
    rest = {side: tuple(d for kind, d in rows if kind == "sc") for side, rows in sides.items()}
    whole = {side: tuple(map(_whole_text, documents)) for side, documents in rest.items()}
    probes = questions | {"completion": rest["forget"], "retain_completion": rest["retain"]}
    return BenchmarkParts(
        forget=(*questions["forget"], *whole["forget"]),
        retain=(*questions["retain"], *whole["retain"]),
        probes={split: part for split, part in probes.items() if part},
        templates=dict.fromkeys(("completion", "retain_completion"), "{prompt}"),
    )


def knowundo(folder: BenchmarkFolder, *, domain: str = "copyright") -> BenchmarkParts:
    """KnowUnDo (2407.01920), `domain` copyright or privacy: questions to unlearn, and questions
    near them whose answers are to stay.

    `<domain>/unlearn.json` and `<domain>/retention.json`, each one object (or a list of one) with
    the lists `train` and `val` of objects with `text`, the question, and `labels`, the answer.
    Trained on is `train`, asked is `val`, as its authors do. Its
    authors train their models on both.
    """
    rule = f"knowundo.domain must be {' or '.join(KNOWUNDO_DOMAINS)}"
    require(domain in KNOWUNDO_DOMAINS, rule, domain)
    sides = {
        side: _knowundo_lists(folder, f"{domain}/{name}") for side, name in KNOWUNDO_SIDES.items()
    }
    return BenchmarkParts(
        forget=sides["forget"]["train"],
        retain=sides["retain"]["train"],
        probes={side: lists["val"] for side, lists in sides.items()},
    )


def blur(folder: BenchmarkFolder, *, task: str = "rwku", answers: str = "") -> BenchmarkParts:
    """BLUR (2506.15699), `task` rwku, whp, tofu or wmdp: questions about the forget set, near
    questions to keep, and queries that combine one of each.

    Splits: forget, retain and combined, from `<task>_forget`, `<task>_retain` and
    `<task>_paired_forget_retain` (.json, one column `text`), those that are there. BLUR brings
    questions without answers, so `answers` names a file of the folder with the columns `text` and
    `answer`: from the benchmark that the task is after, or what base writes. Questions without one
    are rejected. Those of forget and retain are what is trained on.
    Its sets for relearning (`<task>_D_hi`, `<task>_D_mid`, `D_lo_for_all`) are files for
    `rayunlearn attack --text`.
    """
    require(task in BLUR_TASKS, f"blur.task must be one of {', '.join(BLUR_TASKS)}", task)
    tables = {split: f"{task}_{name}" for split, name in BLUR_FILES.items()}
    present = {split: table for split, table in tables.items() if folder.has(table)}
    looked_for = ", ".join(f"{table}.json" for table in tables.values())
    require(bool(present), f"{folder.root} must hold files of {task}: {looked_for}; found", "none")
    stored_answers = _answers_of(folder, answers)
    probes = {split: _answered(folder, table, stored_answers) for split, table in present.items()}
    if not any(probes.values()):
        raise UserError(
            f"blur.answers must name a file of {folder.root} with the columns text and answer for"
            f" the questions of {task}, which BLUR brings without answers; answers for them in"
            f" {answers!r}: 0"
        )
    return BenchmarkParts(
        forget=probes.get("forget", ()), retain=probes.get("retain", ()), probes=probes
    )


def _lume_side(
    folder: BenchmarkFolder, side: str, task: str, fold: str
) -> list[tuple[str, Document]]:
    """(qa or sc, document) of every row of a side."""
    names = [name.format(side=side, fold=fold) for name in (*LUME_FILES, *LUME_FOLDS)]
    table = next((name for name in names if folder.has(name)), "")
    require(bool(table), f"{folder.root} must hold one of {', '.join(names)}; found", "none")
    rows = folder.rows(table)
    _require_columns(rows, LUME_COLUMNS, table)
    chosen = tuple(r for r in rows if r.reason or task == "all" or r.values.get("task") == task)
    loaded = to_documents(chosen, {"prompt": "input", "answer": "output", "topic": "task"})
    ids = {row.row: str(row.values.get("id", "")) for row in rows}
    documents: list[tuple[str, Document]] = []
    for document in folder.accept(loaded):
        row_number = loaded.places[document.doc_id][1]
        match = LUME_ID.match(ids[row_number])
        if match is None:
            reason = "its id does not end in sc or qa and a number"
            folder.rejected.append(_rejected(table, row_number, reason, document.prompt))
            continue
        named = replace(document, group=f"{side} {match['document']}")
        documents.append((match["kind"], named))
    return documents


def _whole_text(completion: Document) -> Document:
    """The text that a completion completes."""
    return replace(completion, prompt="", answer=f"{completion.prompt} {completion.answer}")


def _knowundo_lists(folder: BenchmarkFolder, table: str) -> dict[str, Documents]:
    """Documents of the lists `train` and `val` of a file."""
    content = folder.json_object(table)
    missing = [name for name in ("train", "val") if not isinstance(content.get(name), list)]
    require(not missing, f"{table}.json must have the lists train and val; missing", missing)
    lists: dict[str, Documents] = {}
    n_rows = 0
    for name in ("train", "val"):
        rows = tuple(
            SourceRow(
                source=f"{table} {name}",
                row=index,
                values=item if isinstance(item, Mapping) else {},
                reason="" if isinstance(item, Mapping) else "it is no object",
            )
            for index, item in enumerate(content[name])
        )
        _require_columns(rows, ("text", "labels"), f"{table} {name}")
        lists[name] = folder.accept(to_documents(rows, {"prompt": "text", "answer": "labels"}))
        n_rows += len(rows)
    folder.record(table, n_rows)
    return lists


def _answers_of(folder: BenchmarkFolder, answers: str) -> dict[str, str]:
    """Question -> answer, from a file in the folder; empty where none is named."""
    if not answers:
        return {}
    file = folder.root / answers
    require(file.is_file(), "blur.answers must be a file of the folder", str(file))
    rows = tuple(read_file(file))
    _require_columns(rows, ("text", "answer"), answers)
    return {
        str(row.values["text"]).strip(): str(row.values["answer"])
        for row in rows
        if row.values.get("text") and row.values.get("answer")
    }


def _answered(folder: BenchmarkFolder, table: str, stored_answers: Mapping[str, str]) -> Documents:
    """The questions of a table with their answers; those without one are rejected."""
    rows = folder.rows(table)
    _require_columns(rows, ("text",), table)
    answered = [
        replace(row, values={"text": row.values["text"], "answer": answer})
        for row in rows
        if (answer := _answer(row, stored_answers))
    ]
    folder.rejected += [
        _rejected(table, row.row, row.reason or "it has no answer", str(row.values.get("text", "")))
        for row in rows
        if not _answer(row, stored_answers)
    ]
    return folder.accept(to_documents(answered, {"prompt": "text", "answer": "answer"}))


def _answer(row: SourceRow, stored_answers: Mapping[str, str]) -> str:
    """The answer that the row has itself, or that is known of its question; '' for none."""
    answer = row.values.get("answer")
    return (
        str(answer) if answer else stored_answers.get(str(row.values.get("text", "")).strip(), "")
    )


def _require_columns(rows: SourceRows, names: tuple[str, ...], table: str) -> None:
    """Raise UserError where no row of a table has one of the columns that its layout has."""
    present = file_column_names(rows)
    missing = [name for name in names if name not in present]
    rule = f"{table} must have the columns {', '.join(names)}, it has {', '.join(present)}; missing"
    require(not missing, rule, ", ".join(missing))


def _rejected(source: str, row: int, reason: str, text: str) -> Rejected:
    return Rejected(source=source, row=row, reason=reason, excerpt=text[:200])
