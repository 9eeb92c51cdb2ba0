"""Parquet as the store writes and checks it: equal tables give equal bytes, and the footer states the rows."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from kvray.errors import StoreError
from kvray.store.files import Files

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
            return int(pq.read_metadata(pa.BufferReader(files.tail(path, count) or b"")).num_rows)
        except (pa.ArrowException, OSError) as error:
            text = str(error)
    raise UnreadableError(f"has no readable Parquet footer: {text}")
