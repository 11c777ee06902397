"""The bytes and the text of a data file as they stand in it: unpacked, without its byte order mark,
and in UTF-8 whatever it was written in.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rayunlearn.errors import UserError
from rayunlearn.storage.parquet_guard import (
    BYTES_ALWAYS,
    UNPACKED_PER_BYTE,
    unreadable_errors,
)

GZIP_ENDING = ".gz"
GZIP_MAGIC = b"\x1f\x8b"

# the longer marks first: UTF-32's little-endian one begins with UTF-16's
ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class UnpackedFile(io.RawIOBase):
    """A gzip file unpacked while it is read. Raises UserError where it holds more than its size
    lets expect.
    """

    def __init__(self, file: Path) -> None:
        self._packed = gzip.GzipFile(file, "rb")
        self._name = file.name
        self._left = max(BYTES_ALWAYS, UNPACKED_PER_BYTE * file.stat().st_size)

    def readable(self) -> bool:
        """It is read, never written."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """The next bytes, as many as the buffer takes."""
        n = self._packed.readinto(buffer)
        self._left -= n
        if self._left < 0:
            raise UserError(f"{self._name} must not unpack to {UNPACKED_PER_BYTE} times its size")
        return n

    def close(self) -> None:
        """Close the file."""
        self._packed.close()
        super().close()


def open_bytes(file: Path) -> io.BufferedReader:
    """The bytes of a file, unpacked where it is a gzip file, whatever its name."""
    stream = file.open("rb")
    if not stream.peek(2).startswith(GZIP_MAGIC):
        return stream
    stream.close()
    return io.BufferedReader(UnpackedFile(file))


def encoding_of(stream: io.BufferedReader) -> str:
    """How a file's text is written, by its byte order mark; UTF-8 without one."""
    start = stream.peek(4)
    return next((name for mark, name in ENCODINGS if start.startswith(mark)), "utf-8")


def open_text(file: Path) -> io.TextIOWrapper:
    """The text of a file, line ends as they are. Invalid bytes of UTF-8 become surrogates."""
    stream = open_bytes(file)
    return io.TextIOWrapper(
        stream, encoding=encoding_of(stream), errors="surrogateescape", newline=""
    )


def open_utf8(file: Path) -> BinaryIO:
    """The bytes of a file as UTF-8 without a byte order mark."""
    stream = open_bytes(file)
    encoding = encoding_of(stream)
    if encoding == "utf-8":
        return stream
    if encoding == "utf-8-sig":
        stream.read(len(codecs.BOM_UTF8))
        return stream
    with stream:
        return io.BytesIO(stream.read().decode(encoding).encode())


def is_plain(file: Path) -> bool:
    """Whether the bytes of a file are its UTF-8 text, so that it can be cut and read in pieces."""
    with file.open("rb") as stream:
        start = stream.peek(4)
        return not start.startswith(GZIP_MAGIC) and encoding_of(stream) in ("utf-8", "utf-8-sig")


def lines_of(file: Path) -> Iterator[bytes]:
    """The lines of a file in UTF-8."""
    with open_utf8(file) as stream:
        yield from stream


def reading_errors() -> tuple[type[Exception], ...]:
    """What reading a data file raises where the file is damaged or is not what its name says."""
    return (*unreadable_errors(), EOFError, zlib.error)
