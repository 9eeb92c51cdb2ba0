"""Shards of a dataset: which rows, under which name, and the table of each. Knows no Ray."""

from __future__ import annotations

from functools import lru_cache

import pyarrow as pa

from kvray.base_model import BaseModelRef
from kvray.errors import KvrayError
from kvray.tasks.base import EXAMPLE_SCHEMA, Context, Task
from kvray.tasks.tokens import token_counter

ROWS_PER_SHARD = 1024
"""Rows of every shard but the last. A constant: the same rows are in the same file whatever the number of workers."""


def shard_count(rows: int) -> int:
    """Return how many shards hold ``rows`` examples."""
    return -(-rows // ROWS_PER_SHARD)


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{shard:05d}.parquet"


def shard_rows(shard: int, rows: int) -> range:
    """Return the examples that a shard of a dataset of ``rows`` examples holds."""
    return range(shard * ROWS_PER_SHARD, min((shard + 1) * ROWS_PER_SHARD, rows))


def context_of(task: Task, base: BaseModelRef) -> Context:
    """Return what building needs, made once per process and task: it may read sources and measure a tokenizer."""
    return _context(_Ingredients(task, base))


def rows_of(task: Task, base: BaseModelRef) -> int:
    """Return how many examples a task makes."""
    return task.count(context_of(task, base))


def build(task: Task, base: BaseModelRef, rows: range) -> pa.Table:
    """Make some examples of a task, in this process.

    Raises:
        InputError: the task's parameters cannot be met.
        KvrayError: the task breaks its promise: other columns, or another number of rows.
    """
    table = task.build(rows.start, rows.stop, context_of(task, base))
    if not table.schema.equals(EXAMPLE_SCHEMA) or table.num_rows != len(rows):
        raise KvrayError(
            f"task {task.task}: rows {rows.start} to {rows.stop} came out as {table.num_rows} rows of "
            f"{', '.join(f'{field.name}: {field.type}' for field in table.schema)}; expected {len(rows)} rows of "
            f"kvray.tasks.base.EXAMPLE_SCHEMA"
        )
    return table


@lru_cache(maxsize=8)
def _context(ingredients: _Ingredients) -> Context:
    return ingredients.task.context(token_counter(ingredients.base))


class _Ingredients:
    """A task and a base model as a key of the cache; a task itself need not be hashable."""

    def __init__(self, task: Task, base: BaseModelRef) -> None:
        self.task = task
        self.base = base
        self._key = (type(task), task.model_dump_json(), base)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Ingredients) and self._key == other._key
