"""What the footer of a Parquet file says before anything of it is read: a few bytes can claim to be
billions of rows.
"""

from __future__ import annotations

from pathlib import Path

from rayunlearn.errors import UserError, require
from rayunlearn.lazy import pyarrow

# A byte of a table of results holds about one value, of a corpus less. A column that repeats one
# value can hold millions.
VALUES_PER_BYTE = 100
UNPACKED_PER_BYTE = 100

# what any machine can hold, however small the file
VALUES_ALWAYS = 10_000_000
BYTES_ALWAYS = 256 * 2**20


def unreadable_errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises for a file that is no Parquet, or damaged: a column's name that is no
    UTF-8 comes as Python's own error.
    """
    return (pyarrow.ArrowException, OSError, UnicodeDecodeError)


def refuse_decompression_bomb(path: Path) -> None:
    """Raise UserError where reading `path` would take out of all proportion to its size, or where
    it is no Parquet file.

    By the footer alone: values (rows x columns) against bytes of the file, and unpacked bytes
    against them. What a footer does not say, one long text that a dictionary repeats, is not seen.
    """
    refuse_claims(path, footer_of(path))


def footer_of(path: Path) -> pyarrow.parquet.FileMetaData:
    """The footer of a Parquet file. Raises UserError where it is none."""
    try:
        return pyarrow.parquet.read_metadata(path)
    except unreadable_errors() as error:
        raise UserError(f"{path} could not be read as parquet: {error}") from error


def refuse_claims(path: Path, metadata: pyarrow.parquet.FileMetaData) -> None:
    """`refuse_decompression_bomb` for a footer that has been read."""
    size = path.stat().st_size
    values = metadata.num_rows * metadata.num_columns
    unpacked = sum(
        metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)
    )
    rule = f"a Parquet file of {size} bytes must not claim to hold so much ({path}):"
    require(0 <= values <= max(VALUES_ALWAYS, VALUES_PER_BYTE * size), f"{rule} values", values)
    require(0 <= unpacked <= max(BYTES_ALWAYS, UNPACKED_PER_BYTE * size), f"{rule} bytes", unpacked)
