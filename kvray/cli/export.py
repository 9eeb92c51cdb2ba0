"""One dataset as one file, outside any store: Parquet, or the JSON lines that other trainers read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kvray.console import track
from kvray.driver.connection import local_ray
from kvray.errors import InputError
from kvray.generate.job import Row, stream
from kvray.generate.shards import build, check_written, rows_of, shard_count, shard_rows
from kvray.models.openai import OPENAI_SYSTEM
from kvray.models.reference import BaseModelRef
from kvray.store.output import replacing, shown
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.tasks.base import Task

Format = Literal["parquet", "jsonl", "openai"]
FORMATS: Mapping[str, Format] = {"parquet": "parquet", "jsonl": "jsonl", "openai": "openai"}
_CHOICES = "parquet, jsonl or openai"
_SUFFIXES: Mapping[str, Format] = {".parquet": "parquet", ".jsonl": "jsonl"}

IN_PROCESS_ROWS = 20_000
"""Below this many rows starting Ray takes longer than making them."""


def make(
    task: Task,
    base: BaseModelRef,
    out: Path | str,
    format: Format,
    workers: int | None = None,
    limit: int | None = None,
) -> Made:
    """Make a dataset as one file; the same bytes for any number of workers.

    Shards are made in parallel, put one after another in their order and written as they come, so memory stays flat.
    The file appears whole or not at all.

    Args:
        task: what to make.
        base: the model whose tokenizer counts.
        out: the file, or its URI; a directory is made if need be.
        format: ``parquet`` (all columns), ``jsonl`` (``{"messages": [user, assistant]}``), or ``openai`` (the same with
            the system message first).
        workers: processes. 1 works in this one; more use Ray, a local one unless one is initialised; None takes this
            process for a few rows, or else all CPUs.
        limit: write the first ``limit`` examples; None writes all.

    Raises:
        InputError: the task cannot be met, has fewer examples than ``limit`` or is written for by a model, or ``out``
            cannot be written.
    """
    check_written(task, None)
    rows = rows_of(task, base)
    if limit is not None and limit > rows:
        raise InputError(f"rows: {limit} asked for, but {task.task} with these settings makes {rows}")
    rows = rows if limit is None else limit
    shards = shard_count(rows)
    if workers is None:
        workers = 1 if rows < IN_PROCESS_ROWS else (os.cpu_count() or 1)
    work = _Payload(task, base, rows, format)
    tokens = done = 0
    parallel = workers > 1 and shards > 1
    with replacing(out) as file:
        with (
            track(f"generate {task.task}", rows) as advance,
            _writer(file, format) as add,
            local_ray(workers) if parallel else nullcontext(),
        ):
            for row in stream(shards, work, ordered=True, workers=workers) if parallel else map(work, range(shards)):
                add(row["payload"])
                tokens += row["tokens"]
                done += row["rows"]
                advance(done)
        size = file.tell()
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # typeshed asks for more
    return Made(shown(out), rows, tokens, size, digest)


def format_of(out: str, given: str | None) -> Format:
    """Return the format of a file: the one given, else the one that its name ends in.

    Raises:
        InputError: there is no such format, or the name tells none.
    """
    if given is not None:
        if given not in FORMATS:
            raise InputError(f"--format: found {given!r}; expected {_CHOICES}")
        return FORMATS[given]
    name = out.partition("?")[0]
    if not name.endswith("/") and not Path(name).is_dir():  # of a directory, the writer tells more
        suffix = PurePath(name).suffix
        if suffix.lower() not in _SUFFIXES:
            found = f"ends in {suffix}" if suffix else "has no suffix"
            raise InputError(f"--out: {out} {found}; expected .parquet or .jsonl, or --format {_CHOICES}")
        return _SUFFIXES[suffix.lower()]
    return "parquet"


def messages(prompt: str, answer: str, system: str | None = None) -> list[dict[str, str]]:
    """Return an example as chat messages."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def lines(table: pa.Table, format: Format) -> bytes:
    """Return a table of examples as JSON lines (``jsonl`` or ``openai``)."""
    system = OPENAI_SYSTEM if format == "openai" else None
    pairs = zip(table["prompt"].to_pylist(), table["answer"].to_pylist(), strict=True)
    dumped = (json.dumps({"messages": messages(*pair, system)}, ensure_ascii=False) for pair in pairs)
    return "".join(f"{line}\n" for line in dumped).encode()


@contextmanager
def _writer(file: IO[bytes], format: Format) -> Iterator[Any]:
    """Yield a function that appends the payload of one shard."""
    if format != "parquet":
        yield file.write
        return
    with pq.ParquetWriter(file, EXAMPLE_SCHEMA, version="2.6", compression="zstd", compression_level=1) as parquet:
        # One row group per shard, whatever the blocks that Ray handed over.
        yield lambda payload: parquet.write_table(pa.ipc.open_stream(payload).read_all().combine_chunks())


@dataclass(frozen=True)
class Made:
    """A dataset made as one file.

    Attributes:
        path: the file, or its URI.
        rows: examples.
        prompt_tokens: of all prompts together.
        bytes: of the file.
        sha256: of the file, in hex.
    """

    path: str
    rows: int
    prompt_tokens: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Payload:
    """Makes one shard as bytes that the writer of the format appends."""

    task: Task
    base: BaseModelRef
    rows: int
    format: Format

    def __call__(self, shard: int) -> Row:
        table = build(self.task, self.base, shard_rows(shard, self.rows))
        if self.format == "parquet":
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as stream_:
                stream_.write_table(table)
            payload = sink.getvalue().to_pybytes()
        else:
            payload = lines(table, self.format)
        tokens = int(pc.sum(table["prompt_tokens"]).as_py() or 0)
        return {"rows": table.num_rows, "tokens": tokens, "payload": payload}
