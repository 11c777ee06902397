"""Passes over a corpus that need not fit into memory: pieces in, one file per piece out, resumed by
piece. No Ray in here.

A pass has a worker, made once per process, that does one piece at a time: it reads the piece,
writes its files, each by one rename, and then its note (`corpus.notes`). A piece whose note and
files are as written is done and is not done again: that is asked before a pass, after it, and when
the result is published. An engine decides where workers run: `run_in_sequence` here,
`process_engine` on this machine's cores, `cluster.corpus_engine.ray_engine` on Ray Data. All
engines do the same pieces with the same workers, so they write the same rows. Before any other pass
the `survey` counts words and finds copies.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rayunlearn.corpus.engine import Engine, PartitionResult, ProcessPartition, WorkerFactory
from rayunlearn.corpus.notes import note_defect, read_note, write_note
from rayunlearn.errors import UserError

# raised when a pass writes something else for the same input
WORK_FORMAT = 3

# a part that is not what was written right after it was written is done again, but not for ever
ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class JobProgress:
    """How far a pass is. `fresh`: documents and seconds of this call alone, from which the time
    left is taken.
    """

    name: str
    done: int
    pieces: int
    n_documents: int
    fresh_documents: int
    fresh_pieces: int
    seconds: float

    @property
    def seconds_left(self) -> float:
        """Pieces are of about equal size; NaN before the first of this call is done."""
        return (
            self.seconds / self.fresh_pieces * (self.pieces - self.done)
            if self.fresh_pieces
            else float("nan")
        )


OnProgress = Callable[[JobProgress], None]


def run_corpus_job(
    name: str,
    folder: Path,
    worker: WorkerFactory,
    pieces: Iterable[int],
    engine: Engine,
    report: OnProgress,
) -> list[PartitionResult]:
    """Do the pieces that are not done yet, as their notes in `folder` say; returns what all found,
    in order. Their files are below the parent of `folder`.

    Raises UserError where a disk does not keep what is written to it.
    """
    partitions, attempts = list(pieces), 0
    notes = _finished(folder, partitions)
    while missing := [partition for partition in partitions if partition not in notes]:
        if attempts == ATTEMPTS:
            wrong = note_defect(note_of(folder, missing[0]), folder.parent)
            raise UserError(
                f"the disk must keep what is written; after {ATTEMPTS} attempts {wrong}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        _do(name, folder, worker, len(partitions), missing, notes, engine, report)
        notes = _finished(folder, partitions)
        attempts += 1
    return [notes[partition] for partition in partitions]


def _finished(folder: Path, partitions: Sequence[int]) -> dict[int, PartitionResult]:
    """The pieces that are done, with what they found."""
    notes = {p: read_note(note_of(folder, p), folder.parent) for p in partitions}
    return {p: PartitionResult(**values) for p, values in notes.items() if values is not None}


def _do(
    name: str,
    folder: Path,
    worker: WorkerFactory,
    n_partitions: int,
    missing: Sequence[int],
    before: Mapping[int, PartitionResult],
    engine: Engine,
    report: OnProgress,
) -> None:
    """Do the pieces `missing`; `before` are done."""
    notes = dict(before)
    progress_of = _progress(name, n_partitions, before)
    report(progress_of(notes))

    def on_done(note: PartitionResult) -> None:
        notes[note.piece] = note
        report(progress_of(notes))

    engine(partial(_noting, worker, folder), missing, on_done)


def _progress(
    name: str, n_partitions: int, before: Mapping[int, PartitionResult]
) -> Callable[[Mapping[int, PartitionResult]], JobProgress]:
    """How far a job is that began now with the notes `before`, as a function of the notes."""
    started, n_before, documents_before = time.monotonic(), len(before), _n_documents(before)

    def progress(notes: Mapping[int, PartitionResult]) -> JobProgress:
        total = _n_documents(notes)
        return JobProgress(
            name=name,
            done=len(notes),
            pieces=n_partitions,
            n_documents=total,
            fresh_documents=total - documents_before,
            fresh_pieces=len(notes) - n_before,
            seconds=time.monotonic() - started,
        )

    return progress


def _n_documents(notes: Mapping[int, PartitionResult]) -> int:
    return sum(note.n_documents for note in notes.values())


def note_of(folder: Path, partition: int) -> Path:
    """Where the note of a piece is."""
    return folder / f"{partition:06}.json"


def _noting(worker: WorkerFactory, folder: Path) -> ProcessPartition:
    """The worker's doing, with a note written after each piece."""
    do = worker()

    def noted(partition: int) -> PartitionResult:
        started = time.monotonic()
        note = replace(do(partition), seconds=time.monotonic() - started)
        write_note(note_of(folder, partition), asdict(note), note.files, folder.parent)
        return note

    return noted


def work_folder(output: Path, key: str) -> Path:
    """Where a pass keeps what it has: beside its output, by digest of input and settings, so that a
    changed one starts anew.
    """
    return output.with_name(f"{output.stem}.work") / key
