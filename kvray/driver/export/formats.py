"""Examples in the columns that trainers read, as Parquet or as JSON lines."""

import json
from collections.abc import Mapping
from typing import IO, Any, Literal, NamedTuple, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from kvray.models.chat import answered, conversation, prompts_of
from kvray.store.schemas import DATASET

Columns = Literal["examples", "messages", "prompt-completion", "openai"]
COLUMNS: tuple[Columns, ...] = get_args(Columns)
Encoding = Literal["parquet", "jsonl"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)


class Layout(NamedTuple):
    """The columns of a file, and how they are written."""

    columns: Columns
    encoding: Encoding


def default_encoding(columns: Columns) -> Encoding:
    """Return how columns are written where nobody says how: chats as JSON lines, which every trainer reads."""
    return "parquet" if columns == "examples" else "jsonl"


PARQUET = {"version": "2.6", "compression": "zstd", "compression_level": 1}
"""How every Parquet file outside a store is written."""

_CHAT = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
_ABOUT: Mapping[Columns, Mapping[str, str]] = {
    "messages": {"messages": "the chat: the user's message last but one, the assistant's answer last"},
    "prompt-completion": {
        "prompt": "the chat up to the user's message",
        "completion": "the assistant's answer, a chat of one message: a trainer takes its loss here alone",
    },
    "openai": {"messages": "a system message, the user's, the assistant's answer"},
}


def described(columns: Columns, examples: pa.Schema) -> pa.Schema:
    """Return the schema of examples in the given columns, each described in its field's metadata.

    A mixture's column ``dataset`` stays, but for ``openai``, whose API refuses what it does not know.
    """
    if columns == "examples":
        return examples
    fields = [pa.field(name, _CHAT, metadata={"description": about}) for name, about in _ABOUT[columns].items()]
    if DATASET.name in examples.names and columns != "openai":
        fields.append(examples.field(DATASET.name))
    return pa.schema(fields)


def arranged(examples: pa.Table, columns: Columns, system: str | None = None) -> pa.Table:
    """Return a table of examples in the given columns; ``system`` starts each chat that has no system message."""
    if columns == "examples":
        return examples
    pairs = list(zip(prompts_of(examples), examples["answer"].to_pylist(), strict=True))
    made: dict[str, Any]
    if columns == "prompt-completion":
        made = {
            "prompt": [conversation(prompt, system) for prompt, _ in pairs],
            "completion": [[{"role": "assistant", "content": answer}] for _, answer in pairs],
        }
    else:
        made = {"messages": [answered(prompt, answer, system) for prompt, answer in pairs]}
    schema = described(columns, examples.schema)
    if DATASET.name in schema.names:
        made[DATASET.name] = examples[DATASET.name]
    return pa.table(made, schema=schema)


def lines(rows: pa.Table | pa.RecordBatch) -> bytes:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.to_pylist()).encode()


class Writer:
    """Writes tables of one schema to a file, one after the other; a Parquet file gets a row group for each."""

    def __init__(self, file: IO[bytes], encoding: Encoding, schema: pa.Schema) -> None:
        self._file = file
        self._parquet = pq.ParquetWriter(file, schema, **PARQUET) if encoding == "parquet" else None

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        if self._parquet is not None:
            self._parquet.write_table(table.combine_chunks())
            return
        for batch in table.to_batches(max_chunksize=256):
            self._file.write(lines(batch))

    def close(self) -> None:
        """Write what a Parquet file ends with."""
        if self._parquet is not None:
            self._parquet.close()
