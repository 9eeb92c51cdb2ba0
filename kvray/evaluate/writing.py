"""The prompts of a writing, by which a language model writes a part of a dataset."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kvray.evaluate import chunks
from kvray.evaluate.engines.base import Reply, Request
from kvray.evaluate.questions import NO_TOKENS, Prompts
from kvray.store.schemas import WRITING_SCHEMA
from kvray.tasks.base import CountTokens, Task


class WritingPrompts(Prompts):
    """What a task asks its writer; a stored chunk is kept if it answers the same prompts."""

    SCHEMA = WRITING_SCHEMA
    KEY = "prompt"

    def __init__(self, task: Task, count_tokens: CountTokens) -> None:
        """Read the task's sources; KvrayError if they do not hold what is to be asked."""
        prompts = task.to_write(count_tokens)
        like = Request(NO_TOKENS, max_tokens=task.WRITING_TOKENS)
        super().__init__(prompts, pa.table({"prompt": pa.array(prompts, pa.string())}), like)

    def name(self, row: int) -> str:
        """Return how a message names a prompt."""
        return f"prompt {row}"

    def table(
        self, rows: range, replies: Sequence[Sequence[Reply]], labels: Mapping[str, Any], info: Mapping[str, Any]
    ) -> pa.Table:
        """Return the texts of a chunk; empty where a prompt did not fit."""
        columns = chunks.reply_columns(self._replies(rows, replies))
        columns |= {"index": list(rows), "prompt": self.keys[rows.start : rows.stop]}
        columns["text"] = [answer or "" for answer in columns["answer"]]
        return chunks.with_info(self.SCHEMA, columns, labels, info)

    def summary(self, tables: Sequence[pa.Table]) -> dict[str, Any]:
        """Return :func:`kvray.evaluate.chunks.totals` and how many texts were cut off."""
        cut_off = sum(pc.sum(pc.equal(table["finish_reason"], "length")).as_py() or 0 for table in tables)
        return chunks.totals(tables) | {"cut_off": cut_off}
