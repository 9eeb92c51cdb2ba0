"""Shards of a dataset: the rows, the name and the table of each. Knows no Ray."""

from collections.abc import Hashable
from dataclasses import dataclass

import pyarrow as pa

from kvray.errors import InputError, KvrayError
from kvray.models.reference import BaseModelRef
from kvray.models.tokenizer import token_counter
from kvray.store.store import Store
from kvray.tasks import writing
from kvray.tasks.base import Context, Task

ROWS_PER_SHARD = 1024
"""Rows of every shard but the last. A constant: the same rows are in the same file whatever the number of workers."""
CONTEXTS_KEPT = 8
"""Contexts that a process holds at once; the oldest goes first."""
_contexts: dict[Hashable, Context] = {}


def shard_count(rows: int) -> int:
    """Return how many shards hold ``rows`` examples."""
    return -(-rows // ROWS_PER_SHARD)


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{shard:05d}.parquet"


def shard_rows(shard: int, rows: int) -> range:
    """Return the examples that a shard of a dataset of ``rows`` examples holds."""
    return range(shard * ROWS_PER_SHARD, min((shard + 1) * ROWS_PER_SHARD, rows))


@dataclass(frozen=True)
class Written:
    """A writer's replies: a committed artefact of kind "writing"."""

    store: Store
    artefact_id: str


def context_of(task: Task, base: BaseModelRef, written: Written | None = None) -> Context:
    """Return what building a task needs, made once per process: it may read sources and measure a tokenizer.

    ``base`` is the model whose tokenizer counts; ``written`` has the replies of the task's writer, if it has one.

    Raises:
        InputError: the task has a writer, which only a sweep asks, and ``written`` is None.
    """
    if task.writer() is not None and written is None:
        raise InputError(
            f"{task.task}: {task.writer()} writes a part of these examples first, into a store; "
            "put the task into a sweep and type kvray run SWEEP"
        )
    # A task itself need not be hashable.
    replies = (written.store.uri, written.artefact_id) if written else None
    key = (type(task), task.model_dump_json(), base, replies)
    context = _contexts.get(key)
    if context is None:
        while len(_contexts) >= CONTEXTS_KEPT:
            _contexts.pop(next(iter(_contexts)), None)
        texts = writing.texts(written.store.read_table(written.artefact_id)) if written else None
        context = _contexts[key] = task.context(token_counter(base), texts)
    return context


def rows_of(task: Task, base: BaseModelRef) -> int:
    """Return how many examples a task makes."""
    return task.count(context_of(task, base))


def build(task: Task, base: BaseModelRef, rows: range, written: Written | None = None) -> pa.Table:
    """Make some examples of a task in this process; arguments as for :func:`context_of`.

    Raises:
        InputError: the task's parameters cannot be met, or its writer has not written yet.
        KvrayError: the task returned other columns, or another number of rows.
    """
    table = task.build(rows.start, rows.stop, context_of(task, base, written))
    if not table.schema.equals(task.EXAMPLES) or table.num_rows != len(rows):
        raise KvrayError(
            f"task {task.task}: rows {rows.start} to {rows.stop} came out as {table.num_rows} rows of "
            f"{', '.join(f'{field.name}: {field.type}' for field in table.schema)}; expected {len(rows)} rows of "
            f"{type(task).__name__}.EXAMPLES"
        )
    return table
