"""Answers by chunk: each is written whole with its last answer, and found again after a kill.

A chunk is a fixed range of questions in asking order, so its name and its keys (example ids, or prompts of a writing)
follow from the question set alone. A stored chunk with these keys is kept, any other is made again: no row is lost or
doubled by a kill. Whoever first sees all chunks commits the manifest; a further commit of the recipe changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from kvray.evaluate.engines.base import TOO_LONG, Reply
from kvray.planning.artefacts import Artefact
from kvray.store.manifest import FileEntry
from kvray.store.store import Store

if TYPE_CHECKING:
    from kvray.evaluate.questions import Questions

CHUNK_ROWS = 256
"""Rows per chunk: seconds of work, so that little is lost, and files worth a round trip to an object store."""
_INFO = b"kvray"
_REPLY = ("prompt_tokens", "cached_tokens", "output_tokens", "answer", "finish_reason")


def chunk_name(index: int) -> str:
    """Return the file name of a chunk."""
    return f"chunk-{index:05d}.parquet"


def chunk_count(rows: int) -> int:
    """Return how many chunks ``rows`` rows make."""
    return -(-rows // CHUNK_ROWS)


def span(index: int, rows: int) -> range:
    """Return the rows of a chunk, in asking order."""
    return range(index * CHUNK_ROWS, min((index + 1) * CHUNK_ROWS, rows))


def reply_columns(replies: Sequence[Reply]) -> dict[str, Any]:
    """Return the columns of replies: tokens, answer and how it ended."""
    return {name: [getattr(reply, name) for reply in replies] for name in _REPLY}


def with_info(
    schema: pa.Schema, columns: Mapping[str, Any], labels: Mapping[str, Any], info: Mapping[str, Any]
) -> pa.Table:
    """Return the table of a chunk; columns of the schema that are neither given nor labels are null.

    ``columns`` have a value per row (those that the schema lacks are left out), ``labels`` one for all rows; ``info``
    holds measurements (seconds, engine) as JSON values, kept in the file's metadata.
    """
    rows = len(next(iter(columns.values())))

    def array(field: pa.Field) -> pa.Array:
        column = columns.get(field.name, [labels.get(field.name)] * rows)
        return column.cast(field.type) if isinstance(column, pa.ChunkedArray) else pa.array(column, field.type)

    table = pa.table([array(field) for field in schema], schema=schema)
    return table.replace_schema_metadata({_INFO: json.dumps(info, sort_keys=True)})


def info_of(table: pa.Table) -> dict[str, Any]:
    """Return the measurements kept in a chunk."""
    return dict(json.loads((table.schema.metadata or {}).get(_INFO, b"{}")))


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


def commit_if_whole(store: Store, artefact: Artefact, questions: Questions) -> bool:
    """Commit an artefact if all of its chunks are stored; return whether it is committed now."""
    entries: list[FileEntry] = []
    tables: list[pa.Table] = []
    for index in range(chunk_count(len(questions))):
        table = read(store, artefact.id, index, questions)
        entry = store.entry(artefact.id, chunk_name(index)) if table is not None else None
        if table is None or entry is None:
            return False
        tables.append(table)
        entries.append(entry)
    measured = questions.summary(tables)
    store.commit(**artefact.identity(), files=entries, schema=questions.SCHEMA, measurements=measured)
    return True


def totals(tables: Sequence[pa.Table]) -> dict[str, Any]:
    """Return what every artefact of chunks measures: rows, tokens of those that were run, seconds without starts."""
    infos = [info_of(table) for table in tables]
    columns = ["finish_reason", "prompt_tokens", "output_tokens"]
    whole = pa.concat_tables([table.select(columns).replace_schema_metadata(None) for table in tables])
    run = whole.filter(pc.not_equal(whole["finish_reason"], TOO_LONG))
    engines = {json.dumps(info["engine"], sort_keys=True): info["engine"] for info in infos if "engine" in info}
    return {
        "rows": whole.num_rows,
        "too_long": whole.num_rows - run.num_rows,
        "prompt_tokens": pc.sum(run["prompt_tokens"]).as_py() or 0,
        "output_tokens": pc.sum(run["output_tokens"]).as_py() or 0,
        "seconds": round(sum(info.get("seconds", 0.0) for info in infos), 3),
        "engines": list(engines.values()),
    }


def summarize(tables: Sequence[pa.Table]) -> dict[str, Any]:
    """Return the measurements of predictions: :func:`totals`, accuracy (None if no row was run) and cached_tokens."""
    score = pa.chunked_array([chunk for table in tables for chunk in table["score"].chunks], pa.float64())
    cached = pa.chunked_array([chunk for table in tables for chunk in table["cached_tokens"].chunks], pa.int32())
    return totals(tables) | {"accuracy": pc.mean(score).as_py(), "cached_tokens": pc.sum(cached).as_py() or 0}
