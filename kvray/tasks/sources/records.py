"""Rows and texts from one file's bytes, as a stream: a file may be larger than the memory."""

import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from kvray.errors import InputError

ROWS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".parquet")
"""Ends of the names of files that hold rows."""
TABLES = (".csv",)
"""The same for files whose values are all text."""
TEXTS = (".txt", ".txt.gz")
"""The same for files that are one text."""
GROWTH = 200
"""Times that a compressed file may grow: text grows 3 to 20 times, a file made to fill a memory 1,000 times."""
BUFFER = 2**20
SMALL = 256 * 2**20
"""Bytes up to which a file may grow as it likes."""


class Bounded(io.RawIOBase):
    """An unpacked stream, read once; InputError where it grows out of proportion to the ``packed`` bytes read."""

    def __init__(self, stream: IO[bytes], packed: Callable[[], int], where: str) -> None:
        super().__init__()
        self._stream = stream
        self._packed = packed
        self._where = where
        self._count = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._count

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._count += len(data)
        if self._count > max(SMALL, GROWTH * self._packed()):
            raise InputError(
                f"{self._where}: found {self._count:,} bytes unpacked from {self._packed():,}; expected less than "
                f"{GROWTH} times as many; unpack it yourself if it is what you think it is"
            )
        buffer[: len(data)] = data
        return len(data)


def rows(stream: IO[bytes], name: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row) of a file in the format that ``name`` ends in; an InputError names a bad line or row."""
    if name.endswith(".parquet"):
        read = _parquet(stream, where)
    elif name.endswith(TABLES):
        read = _csv(stream, where)
    elif name.removesuffix(".gz").endswith(".json"):
        read = _json(stream, name, where)
    else:
        read = _lines(stream, name, where)
    for number, row in enumerate(read, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{where}: row {number}: expected an object with named fields; found {row!r:.60}")
        yield f"{where}: row {number}", row


def lacking(row: Mapping[str, Any], what: str, where: str) -> InputError:
    """Return the error for a row that lacks a field."""
    return InputError(f"{where}: no {what}; found the fields {', '.join(row) or 'none'}")


def text(stream: IO[bytes], name: str, where: str) -> str:
    """Return a file that is one text; an InputError if it is damaged or not UTF-8."""
    with _unpacked(stream, name, where) as plain:
        return _decode(plain.read(), where)


def _parquet(stream: IO[bytes], where: str) -> Iterator[Any]:
    try:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where}: not a whole Parquet file: {error}") from error


def _csv(stream: IO[bytes], where: str) -> Iterator[dict[str, str]]:
    # One field may be a prompt of any length; Python's limit is 128 KiB.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        for row in csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")):
            # Missing fields are None in value, further ones have None as their name.
            if None in row or None in row.values():
                raise InputError(f"{where}: a row with other than {len(row) - (None in row)} fields: {row!r:.60}")
            yield row
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{where}: not CSV in UTF-8: {error}") from error


def _json(stream: IO[bytes], name: str, where: str) -> Iterator[Any]:
    """Yield the rows of a file that is one JSON text, an array or an object, or else those of its lines."""
    with _unpacked(stream, name, where) as plain:
        data = plain.read()
    try:
        document = json.loads(data.removeprefix(codecs.BOM_UTF8))
    except ValueError:
        yield from _lines(io.BytesIO(data), "", where)
    else:
        yield from document if isinstance(document, list) else [document]


def _lines(stream: IO[bytes], name: str, where: str) -> Iterator[Any]:
    with _unpacked(stream, name, where) as plain:
        # Cut at line feeds alone: a JSON text may hold U+2028 and other characters that str.splitlines() cuts at.
        for number, line in enumerate(plain, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line  # noqa: PLW2901
            if not line.strip():
                continue
            try:
                row = json.loads(_decode(line, f"{where}:{number}"))
            except json.JSONDecodeError as error:
                raise InputError(f"{where}:{number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise InputError(f"{where}:{number}: expected an object with named fields; found {row!r:.60}")
            yield row


@contextmanager
def _unpacked(stream: IO[bytes], name: str, where: str) -> Iterator[IO[bytes]]:
    """Decompress a stream by the end of its name; a damaged one is an error that names the file."""
    kind = {"gz": "gzip", "zst": "zstd"}.get(name.rsplit(".", 1)[-1])
    try:
        packed = stream
        if kind == "gzip":
            stream = cast(
                IO[bytes],
                io.BufferedReader(Bounded(cast(IO[bytes], gzip.GzipFile(fileobj=packed)), packed.tell, where), BUFFER),
            )
        elif kind == "zstd":
            stream = io.BufferedReader(Bounded(pa.CompressedInputStream(packed, "zstd"), packed.tell, where), BUFFER)
        yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{where}: " + (f"not a whole {kind} file: {error}" if kind else str(error))) from error


def _decode(data: bytes, where: str) -> str:
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8: {error.reason} at byte {error.start + 1}") from error
