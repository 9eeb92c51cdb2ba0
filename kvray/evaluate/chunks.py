"""Answers by chunk: each is written whole with its last answer, and found again after a kill.

A chunk is a fixed range of questions in asking order, so its name and its keys (example ids, or prompts of a writing)
follow from the question set alone. A stored chunk with these keys is kept, any other is made again: no row is lost or
doubled by a kill. Whoever stores the last one commits the cell; a further commit of the recipe changes nothing.
"""

from collections.abc import Sequence

import pyarrow as pa

from kvray.evaluate.questions import Questions
from kvray.planning.artefacts import Artefact
from kvray.store.manifest import DATA, FileEntry
from kvray.store.store import Store

CHUNK_ROWS = 256
"""Rows per chunk: seconds of work, so that little is lost, and files worth a round trip to an object store."""


def chunk_name(index: int) -> str:
    """Return the name of a chunk's file in its artefact."""
    return f"{DATA}/chunk-{index:05d}.parquet"


def chunk_count(rows: int) -> int:
    """Return how many chunks ``rows`` rows make."""
    return -(-rows // CHUNK_ROWS)


def span(index: int, rows: int) -> range:
    """Return the rows of a chunk, in asking order."""
    return range(index * CHUNK_ROWS, min((index + 1) * CHUNK_ROWS, rows))


def read(store: Store, artefact_id: str, index: int, questions: Questions) -> pa.Table | None:
    """Return a stored chunk with exactly the expected rows, else None; nullable columns that it lacks are null."""
    table = store.read_file_table(artefact_id, chunk_name(index))
    if table is None:
        return None
    for at, field in enumerate(questions.SCHEMA):
        if field.name not in table.schema.names and field.nullable:
            table = table.add_column(at, field, pa.nulls(table.num_rows, field.type))
    if table.schema.names != questions.SCHEMA.names:
        return None
    expected = span(index, len(questions))
    return table if table[questions.KEY].to_pylist() == questions.keys[expected.start : expected.stop] else None


def missing(store: Store, artefact_id: str, questions: Questions) -> list[int]:
    """Return the numbers of the chunks that the store lacks, from one listing."""
    stored = store.listing([artefact_id])[artefact_id].files
    return [index for index in range(chunk_count(len(questions))) if chunk_name(index) not in stored]


def commit(
    store: Store, artefact: Artefact, questions: Questions, tables: Sequence[pa.Table], entries: Sequence[FileEntry]
) -> None:
    """Commit an artefact of all of its chunks, in order."""
    measured = questions.summary(tables)
    store.commit(**artefact.identity(), files=entries, schema=questions.SCHEMA, measurements=measured, created=True)
