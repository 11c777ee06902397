"""Passes over a corpus that need not fit into memory: pieces in, one file per piece out, resumed by
piece. No Ray in here.

A pass has a worker, made once per process, that does one piece at a time: it reads the piece,
writes its file by one rename, and then its note (a small JSON). A piece with a note is done and is
not done again. An engine decides where workers run: `run_in_sequence` here, `process_engine` on
this machine's cores, `cluster.corpus_engine.ray_engine` on Ray Data. All engines do the same
pieces with the same workers, so they write the same rows. Before any other pass the `survey` counts
words and finds copies.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow.parquet

from rayunlearn.corpus.engine import Engine, PartitionResult, ProcessPartition, WorkerFactory
from rayunlearn.errors import require
from rayunlearn.schema import VERSION
from rayunlearn.storage.parquet import VERSION_KEY, frame_of, write_bytes

# raised when a pass writes something else for the same input
WORK_FORMAT = 2


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
    """Do the pieces that have no note in `folder` yet; returns the notes of all, in order."""
    partitions = list(pieces)
    notes = {
        partition: note
        for partition in partitions
        if (note := read_partition_result(folder, partition)) is not None
    }
    missing = [partition for partition in partitions if partition not in notes]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        progress_of = _progress(name, len(partitions), notes)
        report(progress_of(notes))

        def on_done(note: PartitionResult) -> None:
            notes[note.piece] = note
            report(progress_of(notes))

        engine(partial(_noting, worker, folder), missing, on_done)
    return [notes[partition] for partition in partitions]


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


def read_partition_result(folder: Path, partition: int) -> PartitionResult | None:
    """The note of a piece, None where it is not done."""
    file = folder / f"{partition:06}.json"
    return PartitionResult(**json.loads(file.read_text())) if file.exists() else None


def _noting(worker: WorkerFactory, folder: Path) -> ProcessPartition:
    """The worker's doing, with a note written after each piece."""
    do = worker()

    def noted(partition: int) -> PartitionResult:
        started = time.monotonic()
        note = replace(do(partition), seconds=time.monotonic() - started)
        write_bytes(folder / f"{partition:06}.json", json.dumps(asdict(note)).encode())
        return note

    return noted


def check_output(output: Path) -> None:
    """Raise UserError unless the output is a `.parquet` file or a folder that is not there yet."""
    require(
        output.suffix in (".parquet", ""),
        "--output must end in .parquet, or be a folder for one file per partition",
        str(output),
    )
    require(
        output.suffix == ".parquet" or not output.exists(),
        "--output must be a folder that is not there yet",
        str(output),
    )


def publish_job(folder: Path, output: Path, table: str) -> int:
    """Make the parts in `folder` appear as `output`, what was rejected beside it, and remove the
    folder. Returns how many rows were rejected.
    """
    publish(folder / "parts", output, table)
    n_rejected = publish_rejected([folder / "corpus", folder], output)
    delete_work_folder(folder)
    return n_rejected


def publish(parts: Path, output: Path, table: str) -> None:
    """Make the parts appear as `output`: a folder by one rename, a file by one rename after they
    were joined, a part at a time.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix != ".parquet":
        parts.rename(output)
        return
    joined_tables(sorted(parts.glob("*.parquet")), output, table)


def joined_tables(files: Sequence[Path], output: Path, table: str) -> None:
    """Parquet files as one, a row group for each, by one rename."""
    schema = frame_of(table, []).to_arrow().schema.with_metadata({VERSION_KEY: str(VERSION)})
    temporary = output.with_name(f".{output.name}.tmp")
    try:
        with pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for file in files:
                writer.write_table(pl.read_parquet(file).to_arrow().cast(schema))
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def publish_rejected(folders: Iterable[Path], output: Path) -> int:
    """Write what the passes rejected to `<output without ending>.quarantine.parquet`; returns its
    rows and writes none for none.
    """
    files = [file for folder in folders for file in sorted(folder.glob("aside/*.parquet"))]
    rows = sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)
    rejected_file = output.with_suffix(".quarantine.parquet")
    if rows:
        joined_tables(files, rejected_file, "quarantine")
    else:
        rejected_file.unlink(missing_ok=True)
    return rows


def delete_work_folder(folder: Path) -> None:
    """Remove a folder of work whose result has been published, and its parent if nothing else is in
    it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def work_folder(output: Path, key: str) -> Path:
    """Where a pass keeps what it has: beside its output, by digest of input and settings, so that a
    changed one starts anew.
    """
    return output.with_name(f"{output.stem}.work") / key
