"""The result of work over a corpus, made to appear where its user wants it."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl
import pyarrow.parquet

from rayunlearn.corpus.job import note_of
from rayunlearn.corpus.notes import note_defect, noted_files
from rayunlearn.corpus.survey import Survey
from rayunlearn.errors import UserError, require
from rayunlearn.schema import VERSION
from rayunlearn.storage.parquet import VERSION_KEY, frame_of


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


def publish_job(
    folder: Path, survey: Survey, pieces: Iterable[int], output: Path, table: str
) -> int:
    """Make the parts of `pieces` appear as `output`, what was rejected beside it, and remove the
    folder. Returns how many rows were rejected. Raises UserError where a part is not what was
    written, before anything appears.
    """
    surveyed = [
        *whole_files(survey.folder / "count", range(len(survey.source.pieces))),
        *whole_files(survey.folder / "correct", survey.with_copies),
    ]
    written = whole_files(folder / "done", pieces)
    publish([file for file in written if file.parent.name == "parts"], output, table)
    aside = [file for file in (*sorted(surveyed), *written) if file.parent.name == "aside"]
    n_rejected = publish_rejected(aside, output)
    delete_work_folder(folder)
    return n_rejected


def whole_files(notes: Path, pieces: Iterable[int]) -> list[Path]:
    """The files of a pass, in order. Raises UserError where one is not what was written."""
    files: list[Path] = []
    for piece in pieces:
        note = note_of(notes, piece)
        if wrong := note_defect(note, notes.parent):
            raise UserError(f"{wrong}; the same command does this part again and keeps the others")
        files += [notes.parent / name for name in noted_files(note)]
    return files


def publish(parts: Sequence[Path], output: Path, table: str) -> None:
    """Make the parts appear as `output`: a folder by one rename, a file by one rename after they
    were joined, a part at a time.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".parquet":
        joined_tables(parts, output, table)
        return
    # what a killed writer left is no part
    for file in {*parts[0].parent.iterdir()} - {*parts}:
        file.unlink()
    parts[0].parent.rename(output)


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


def publish_rejected(files: Sequence[Path], output: Path) -> int:
    """Write what the passes rejected to `<output without ending>.quarantine.parquet`; returns its
    rows and writes none for none.
    """
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
