"""Predictions by chunk: each is written whole as soon as its last answer is there, and found again after a kill.

A chunk is a fixed range of the dataset in asking order, so its name and its example ids are functions of the dataset
alone. A chunk that is there with its ids is kept, any other is made again: no row is lost and none doubled, whatever
was killed when. The manifest follows once all chunks are there; whoever sees that first commits it, and further
commits of the same recipe change nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kvray.planning.artefacts import Artefact
from kvray.store.manifest import FileEntry
from kvray.store.schemas import PREDICTIONS_SCHEMA
from kvray.store.store import Store
from kvray.tasks.base import Task

CHUNK_ROWS = 256
"""Examples per chunk: seconds of work, so that little is lost, and files worth a round trip to an object store."""
TOO_LONG = "too_long"
_FACTS = b"kvray"
_COPIED = ("example_id", "question_id", "position", "units", "length", "depth", "subtask", "condition", "references")


@dataclass(frozen=True)
class Labels:
    """The columns that are the same in all rows of an artefact; see :data:`PREDICTIONS_SCHEMA`."""

    sweep: str
    evaluation: str
    task: str
    base_model: str
    mixture: str | None
    finetune: str | None
    seed: int | None
    adapter: str | None


@dataclass(frozen=True)
class Reply:
    """What came back for one example.

    Attributes:
        prompt_tokens: chat template included.
        cached_tokens: how many of them the prefix cache served; None where the example was not run.
        output_tokens: 0 where the example was not run.
        answer: the raw text; None where the example was not run.
        finish_reason: stop, length or too_long.
    """

    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int
    answer: str | None
    finish_reason: str


def chunk_name(index: int) -> str:
    """Return the file name of a chunk."""
    return f"chunk-{index:05d}.parquet"


def chunk_count(rows: int) -> int:
    """Return how many chunks ``rows`` examples make."""
    return -(-rows // CHUNK_ROWS)


def span(index: int, rows: int) -> range:
    """Return the rows of a chunk, in asking order."""
    return range(index * CHUNK_ROWS, min((index + 1) * CHUNK_ROWS, rows))


def too_long(prompt_tokens: int) -> Reply:
    """Return the reply of an example that does not fit the model: its row fails, the others stand."""
    return Reply(prompt_tokens, None, 0, None, TOO_LONG)


def build(
    labels: Labels, task: Task, examples: pa.Table, replies: Sequence[Reply], facts: Mapping[str, Any]
) -> pa.Table:
    """Return the table of one chunk, scored.

    Args:
        labels: the constant columns.
        task: scores the answers.
        examples: of this chunk, in asking order.
        replies: one per example.
        facts: of this chunk (seconds, engine); kept in the file, summed in the manifest.
    """
    references = examples["references"].to_pylist()
    scores = [
        None if reply.answer is None else float(task.score(reply.answer, accepted))
        for reply, accepted in zip(replies, references, strict=True)
    ]
    columns: dict[str, Any] = {name: [value] * len(replies) for name, value in asdict(labels).items()}
    columns |= {name: examples[name] for name in _COPIED}
    columns |= {name: [getattr(reply, name) for reply in replies] for name in Reply.__dataclass_fields__}
    columns["score"] = scores
    columns["outcome"] = [
        None if reply.answer is None else task.outcome(reply.answer, accepted)
        for reply, accepted in zip(replies, references, strict=True)
    ]
    return with_facts(columns, facts)


def with_facts(columns: Mapping[str, Any], facts: Mapping[str, Any]) -> pa.Table:
    """Return columns as a table of :data:`PREDICTIONS_SCHEMA` that holds the facts of its chunk."""
    arrays = [
        column.cast(field.type) if isinstance(column, pa.ChunkedArray) else pa.array(column, field.type)
        for field, column in ((field, columns[field.name]) for field in PREDICTIONS_SCHEMA)
    ]
    table = pa.table(arrays, schema=PREDICTIONS_SCHEMA)
    return table.replace_schema_metadata({_FACTS: json.dumps(facts, sort_keys=True)})


def facts_of(table: pa.Table) -> dict[str, Any]:
    """Return the facts that a chunk holds."""
    return dict(json.loads((table.schema.metadata or {}).get(_FACTS, b"{}")))


def read(store: Store, artefact_id: str, index: int, examples: pa.Table) -> pa.Table | None:
    """Return a chunk that is there whole and holds exactly the examples that it should; None otherwise."""
    table = store.read_file_table(artefact_id, chunk_name(index))
    if table is None or table.schema.names != PREDICTIONS_SCHEMA.names:
        return None
    expected = span(index, examples.num_rows)
    ids = examples["example_id"].slice(expected.start, len(expected))
    return table if table["example_id"].to_pylist() == ids.to_pylist() else None


def commit_if_whole(
    store: Store,
    artefact: Artefact,
    examples: pa.Table,
    facts: Callable[[Sequence[pa.Table]], dict[str, Any]] | None = None,
) -> bool:
    """Commit an artefact if all of its chunks are there; return whether it is committed now.

    Args:
        store: where.
        artefact: the predictions.
        examples: the whole dataset in asking order; its ``example_id`` column is enough.
        facts: makes the manifest's facts from all chunks; :func:`summarize` if not given.
    """
    entries: list[FileEntry] = []
    tables: list[pa.Table] = []
    for index in range(chunk_count(examples.num_rows)):
        table = read(store, artefact.id, index, examples)
        entry = store.entry(artefact.id, chunk_name(index)) if table is not None else None
        if table is None or entry is None:
            return False
        tables.append(table)
        entries.append(entry)
    store.commit(
        **artefact.identity(),
        files=entries,
        schema=PREDICTIONS_SCHEMA,
        measurements=(facts or summarize)(tables),
    )
    return True


def summarize(tables: Sequence[pa.Table]) -> dict[str, Any]:
    """Return the facts of an artefact from its chunks.

    Returns:
        rows, too_long, accuracy (None if no row was run), prompt_tokens (of rows that were run), cached_tokens,
        output_tokens, seconds (engine time, start excluded) and engines: each different engine that answered.
    """
    notes = [facts_of(table) for table in tables]
    whole = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    run = whole.filter(pc.not_equal(whole["finish_reason"], TOO_LONG))
    engines = {json.dumps(note["engine"], sort_keys=True): note["engine"] for note in notes if "engine" in note}
    return {
        "rows": whole.num_rows,
        "too_long": whole.num_rows - run.num_rows,
        "accuracy": pc.mean(run["score"]).as_py(),
        "prompt_tokens": pc.sum(run["prompt_tokens"]).as_py() or 0,
        "cached_tokens": pc.sum(run["cached_tokens"]).as_py() or 0,
        "output_tokens": pc.sum(run["output_tokens"]).as_py() or 0,
        "seconds": round(sum(note.get("seconds", 0.0) for note in notes), 3),
        "engines": list(engines.values()),
    }


def missing(store: Store, artefact: Artefact, examples: pa.Table) -> Iterator[int]:
    """Yield the indices of the chunks that are still to be made."""
    for index in range(chunk_count(examples.num_rows)):
        if read(store, artefact.id, index, examples) is None:
            yield index
