"""Shards: which rows, which name, and a check of what a task hands over."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from kvray.errors import KvrayError
from kvray.generate.job import ROWS_PER_SHARD, build, context_of, rows_of, shard_count, shard_name, shard_rows
from kvray.models.reference import resolve
from kvray.tasks.kv.simple import SimpleKV


@pytest.mark.parametrize("rows", [1, 1023, 1024, 1025, 5000])
def test_shards_hold_every_row_once_and_in_order(rows: int) -> None:
    shards = [shard_rows(shard, rows) for shard in range(shard_count(rows))]
    assert [row for shard in shards for row in shard] == list(range(rows))
    assert all(len(shard) == ROWS_PER_SHARD for shard in shards[:-1])
    assert sorted(map(shard_name, range(len(shards)))) == [shard_name(shard) for shard in range(len(shards))]


def test_a_context_is_made_once_per_task() -> None:
    base = resolve("kvray-tiny")
    assert context_of(SimpleKV(rows=5), base) is context_of(SimpleKV(rows=5), base)
    assert context_of(SimpleKV(rows=5), base) is not context_of(SimpleKV(rows=6), base)
    assert rows_of(SimpleKV(rows=6), base) == 6


def test_a_task_that_makes_too_few_rows_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SimpleKV.build

    def short(self: SimpleKV, start: int, stop: int, context: Any) -> pa.Table:
        return whole(self, start, stop - 1, context)

    monkeypatch.setattr(SimpleKV, "build", short)
    with pytest.raises(KvrayError, match=r"rows 0 to 3 came out as 2 rows .*expected 3 rows"):
        build(SimpleKV(rows=3, dictionaries=2), resolve("kvray-tiny"), range(3))
