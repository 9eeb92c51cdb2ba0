"""What the store writes into files and checks when it reads them: Parquet of equal bytes, rows, sizes, sha256."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kvray.errors import DamagedArtefactError, StoreError
from kvray.store.manifest import FileEntry
from kvray.store.places.files import Files, naming
from kvray.store.places.local import TEMPORARY

ROW_GROUP_ROWS = 4096  # fixed, so that how a caller batched or sliced the table leaves no trace in the file
_FIRST_READ = 64 * 1024


class UnreadableError(ValueError):
    """A file that is missing, or no complete Parquet file."""


def encode(table: pa.Table) -> pa.Buffer:
    """Return a table as Parquet bytes: a pure function of its values, its schema and the version of pyarrow."""
    # zstd's level 1: prompts of integers come out 3 % larger than at level 3, in less than half the time.
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, table.schema, version="2.6", compression="zstd", compression_level=1, write_statistics=True
    ) as writer:
        # Group by group, each as one chunk: chunk borders of the table would move the borders of pages.
        for start in range(0, max(1, table.num_rows), ROW_GROUP_ROWS):
            group = table.slice(start, ROW_GROUP_ROWS).combine_chunks()
            writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
    return sink.getvalue()


def read(files: Files, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a Parquet file as a table.

    Raises UnreadableError if it is missing or incomplete, StoreError if it lacks a column or the place cannot be read.
    """
    data = files.read(path)
    if data is None:
        raise UnreadableError("is missing")
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        absent = set(columns or ()) - set(file.schema_arrow.names)
        if absent:
            raise StoreError(f"no column {', '.join(sorted(absent))}; there are {', '.join(file.schema_arrow.names)}")
        return file.read(columns=list(columns) if columns is not None else None)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableError(f"is no readable Parquet file: {error}") from error


def footer_rows(files: Files, path: str) -> int:
    """Return the rows stated in a Parquet file's footer; UnreadableError if there is no complete footer."""
    for count in (_FIRST_READ, -1):  # a footer longer than the first read is a rarity
        try:
            return _rows(files.tail(path, count) or b"")
        except (pa.ArrowException, OSError) as error:
            text = str(error)
    raise UnreadableError(f"has no readable Parquet footer: {text}")


def describe(files: Files, path: str, name: str) -> FileEntry | None:
    """Return the entry of a stored file, called ``name`` in it; None if it is absent, or an incomplete Parquet file.

    A Parquet file is read once, whole; any other in flat memory.
    """
    if not name.endswith(".parquet"):
        size = files.size(path)
        return None if size is None else FileEntry(name, None, size, files.sha256(path))
    data = files.read(path)
    if data is None:
        return None
    try:
        return FileEntry(name, _rows(data), len(data), hashlib.sha256(data).hexdigest())
    except (pa.ArrowException, OSError):
        return None


def problem(files: Files, directory: str, entry: FileEntry, size: int | None, verify: bool) -> str | None:
    """Return what is wrong with a listed file of ``size`` bytes (None: missing), or None; ``verify`` adds sha256."""
    path = f"{directory}/{entry.name}"
    if size != entry.bytes:
        return f"{path} " + ("is missing" if size is None else f"has {size} bytes, not {entry.bytes}")
    try:
        if entry.rows is not None and (counted := footer_rows(files, path)) != entry.rows:
            return f"{path} has {counted} rows, not {entry.rows}"
    except UnreadableError as error:
        return f"{path} {error}"
    if verify and files.sha256(path) != entry.sha256:
        return f"{path}: its sha256 is not that of the manifest; its bytes were changed"
    return None


def table(files: Files, directory: str, entry: FileEntry, columns: Sequence[str] | None) -> pa.Table:
    """Return a listed Parquet file as a table.

    Raises DamagedArtefactError if it is missing, unreadable or has not as many rows, StoreError without such a column.
    """
    path = f"{directory}/{entry.name}"
    try:
        stored = read(files, path, columns)
    except UnreadableError as error:
        raise DamagedArtefactError(f"{path} {error}") from error
    if stored.num_rows != entry.rows:
        raise DamagedArtefactError(f"{path} has {stored.num_rows} rows, not {entry.rows}")
    return stored


def copy(files: Files, directory: str, entry: FileEntry, into: Path) -> None:
    """Copy a listed file to a local directory, unless it is there; DamagedArtefactError if missing or changed."""
    source, target = f"{directory}/{entry.name}", into / entry.name
    with naming(str(target), f"write {entry.bytes:,} bytes"):
        if target.is_file() and target.stat().st_size == entry.bytes:
            with target.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() == entry.sha256:
                    return
        if files.size(source) is None:
            raise DamagedArtefactError(f"{source} is missing")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{TEMPORARY}{os.getpid()}-{target.name}")
        digest = hashlib.sha256()
        with temporary.open("wb") as stream:
            for chunk in files.chunks(source):
                digest.update(chunk)
                stream.write(chunk)
        if digest.hexdigest() != entry.sha256:
            temporary.unlink()
            raise DamagedArtefactError(f"{source}: its sha256 is not that of the manifest; its bytes were changed")
        temporary.replace(target)


def _rows(data: bytes) -> int:
    return int(pq.read_metadata(pa.BufferReader(data)).num_rows)
