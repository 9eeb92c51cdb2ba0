"""Datasets and mixtures as one file outside any store: Parquet, or the JSON lines that other trainers read."""

import hashlib
import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kvray.console import track
from kvray.driver.connection import connect
from kvray.driver.export.formats import PARQUET, Layout, arranged, default_encoding, described, lines
from kvray.errors import DamagedArtefactError, InputError, installed, need
from kvray.finetune.storage import select
from kvray.generate.job import Row, Written, build, rows_of, shard_count, shard_rows, stream
from kvray.models.chat import json_lines
from kvray.models.openai import OPENAI_SYSTEM
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact, FinetuneJob, Plan
from kvray.planning.mixture import Mixture
from kvray.store.content import encode
from kvray.store.output import replacing, shown
from kvray.store.schemas import CHAT_SCHEMA, DATASET, EXAMPLE_SCHEMA
from kvray.store.store import Store
from kvray.sweep.model import Runtime
from kvray.tasks.base import Task
from kvray.tasks.problems import unknown

LAYOUTS = {
    "examples": Layout("examples", "parquet"),
    "messages": Layout("messages", "jsonl"),
    "prompt-completion": Layout("prompt-completion", "jsonl"),
    "openai": Layout("openai", "jsonl"),
    "parquet": Layout("examples", "parquet"),
    "jsonl": Layout("messages", "jsonl"),
}
"""What ``--format`` may be. The last two, of earlier versions, say what is in a file whatever its name is."""
_CHOICES = "examples, messages, prompt-completion or openai"
_SUFFIXES = {".parquet": LAYOUTS["parquet"], ".jsonl": LAYOUTS["jsonl"]}

BLEND_SCHEMA = EXAMPLE_SCHEMA.append(DATASET)
IN_PROCESS_ROWS = 20_000  # for fewer rows, starting Ray takes longer than making them


@dataclass(frozen=True)
class Export:
    """A file that was written: its path or URI, its examples and their tokens, its size and sha256 (hex)."""

    path: str
    rows: int
    prompt_tokens: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Blend(Export):
    """A mixture that was written: also its rows and tokens per dataset (by id), and the budget they were cut to."""

    mixture: Mixture


def make(
    task: Task,
    base: BaseModelRef,
    out: Path | str,
    format: Layout | str,
    workers: int | None = None,
    limit: int | None = None,
) -> Export:
    """Make a dataset as one file, whole or not at all; the same bytes for any number of workers.

    Shards are made in parallel and written in their order as they come, so memory stays flat.

    Args:
        task: the task that makes the examples.
        base: the model whose tokenizer counts.
        out: a path or a URI; missing directories are made.
        format: columns and encoding, or one of :data:`LAYOUTS`; ``openai`` starts with the paper's system message.
        workers: processes. 1 is this one, more use Ray; None takes this process for few rows or without Ray, else all
            CPUs.
        limit: write the first ``limit`` examples; None writes all.

    Raises:
        InputError: the task cannot be met, has too few examples or needs a model's texts, or ``out`` is not writable.
    """
    layout = LAYOUTS[format] if isinstance(format, str) else format
    rows = rows_of(task, base)
    if limit is not None and limit > rows:
        raise InputError(f"rows: {limit} asked for, but {task.task} with these settings makes {rows}")
    rows = rows if limit is None else limit
    shards = shard_count(rows)
    if workers is None:
        workers = 1 if rows < IN_PROCESS_ROWS or not installed("ray") else (os.cpu_count() or 1)
    elif workers > 1:
        need("--workers above 1", "ray")
    work = _Payload(task, base, rows, layout)
    tokens = done = 0
    parallel = workers > 1 and shards > 1
    cluster = connect(Runtime(address="local", num_cpus=workers)) if parallel else nullcontext()
    parquet, schema = layout.encoding == "parquet", described(layout.columns, task.EXAMPLES)
    with replacing(out) as file:
        parquet_file = pq.ParquetWriter(file, schema, **PARQUET) if parquet else nullcontext()
        with track(f"generate {task.task}", rows) as advance, parquet_file as writer, cluster:
            for row in stream(shards, work, ordered=True, workers=workers) if parallel else map(work, range(shards)):
                if writer is None:
                    file.write(row["payload"])
                else:  # one row group per shard, independent of the blocks of Ray
                    writer.write_table(pa.ipc.open_stream(row["payload"]).read_all().combine_chunks())
                tokens += row["tokens"]
                done += row["rows"]
                advance(done)
        size = file.tell()
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # typeshed asks for more
    return Export(shown(out), rows, tokens, size, digest)


def blend(
    planned: Plan, mixture: str, seed: int, store: Store, base: BaseModelRef, out: Path | str, format: Layout | str
) -> Blend:
    """Write the rows of one epoch of a mixture to one file; the same bytes on any machine.

    Rows come dataset by dataset, as a finetune reads them before it shuffles. Committed datasets are read from the
    store, others are made in memory; nothing is written into the store, and no Ray runs.

    Args:
        planned: the sweep's plan.
        mixture: one of its mixtures; with a grid over it, its label in the plan, such as ``blend[other=3]``.
        seed: of the finetune; decides which rows of a cut dataset stay.
        store: holds the committed datasets and writings.
        base: the model whose template and tokenizer count, as in training.
        out: a path or a URI; missing directories are made.
        format: columns and encoding, or one of :data:`LAYOUTS`; all but ``openai``, which starts with the sweep's
            system message, else the paper's, have a column ``dataset`` too (examples: :data:`BLEND_SCHEMA`).

    Raises:
        InputError: no such mixture or seed, its data cannot be made or blended, or ``out`` cannot be written.
        DamagedArtefactError: a committed dataset does not match its manifest.
    """
    if not base.api:
        need("kvray blend", "transformers", extra="run")  # rows are counted by the very tokenizer that trains
    job = _job(planned, mixture, seed)
    datasets = {artefact.id: artefact for artefact in planned.artefacts if artefact.kind == "dataset"}

    @cache
    def read(dataset: str) -> pa.Table:
        return _table(datasets[dataset], store, base)

    mixed = select(job, base, read)
    parts = []
    for part in mixed.parts:
        rows = read(part.name).take(pa.array(part.rows))
        names = pa.array([str(datasets[part.name].labels["dataset"])] * rows.num_rows, pa.string())
        parts.append(rows.append_column(DATASET, names))
    chats = any("history" in part.column_names for part in parts)
    schema = CHAT_SCHEMA.append(DATASET) if chats else BLEND_SCHEMA
    table = pa.concat_tables(parts, promote_options="default").select(schema.names).cast(schema)
    layout = LAYOUTS[format] if isinstance(format, str) else format
    system = planned.sweep.system_message or OPENAI_SYSTEM if layout.columns == "openai" else None
    made = arranged(table, layout.columns, system)
    content: bytes = encode(made).to_pybytes() if layout.encoding == "parquet" else lines(made)
    with replacing(out) as file:
        file.write(content)
    tokens = _prompt_tokens(table)
    return Blend(shown(out), table.num_rows, tokens, len(content), hashlib.sha256(content).hexdigest(), mixed)


def format_of(out: str, given: str | None) -> Layout:
    """Return columns and encoding: as given, else by the name's suffix; InputError if they are unknown or clash."""
    if given is not None and given not in LAYOUTS:
        raise InputError(f"--format: found {given!r}; expected {_CHOICES}")
    name = out.partition("?")[0]
    suffix = PurePath(name).suffix.lower()
    if given in ("parquet", "jsonl"):
        return LAYOUTS[given]
    if given is not None:
        columns = LAYOUTS[given].columns
        encoding = _SUFFIXES[suffix].encoding if suffix in _SUFFIXES else default_encoding(columns)
        if columns == "openai" and encoding == "parquet":
            raise InputError(f"--out: {out} ends in .parquet; expected .jsonl, which is all that openai's API takes")
        return Layout(columns, encoding)
    if not name.endswith("/") and not Path(name).is_dir():  # replacing() refuses a directory
        if suffix not in _SUFFIXES:
            found = f"ends in {PurePath(name).suffix}" if suffix else "has no suffix"
            raise InputError(f"--out: {out} {found}; expected .parquet or .jsonl, or --format {_CHOICES}")
        return _SUFFIXES[suffix]
    return LAYOUTS["parquet"]


def _job(planned: Plan, mixture: str, seed: int) -> FinetuneJob:
    """Return a finetune on the mixture; those of a grid over other settings read the same rows."""
    jobs: dict[str, dict[int, list[FinetuneJob]]] = {}
    for artefact in planned.artefacts:
        if isinstance(artefact.params, FinetuneJob):
            seeds = jobs.setdefault(str(artefact.labels["mixture"]), {})
            seeds.setdefault(int(artefact.labels["seed"]), []).append(artefact.params)
    if mixture not in jobs:
        raise InputError(f"mixture: {unknown(mixture, sorted(jobs), 'one of the mixtures')}")
    if seed not in jobs[mixture]:
        known = ", ".join(str(each) for each in sorted(jobs[mixture]))
        raise InputError(f"--seed: found {seed}; expected one of finetune.seeds: {known}")
    same = jobs[mixture][seed]
    if len({(job.mixture, job.budget, job.finetune.match) for job in same}) > 1:
        raise InputError(
            f"mixture: {mixture} has other rows in other variants of the grid; expected one: set the value that is "
            "varied with --set and leave it out of the grid"
        )
    return same[0]


def _table(artefact: Artefact, store: Store, base: BaseModelRef) -> pa.Table:
    if store.manifest(artefact.id) is not None:
        problems = store.problems(artefact.id, verify=True)
        if problems:
            raise DamagedArtefactError(f"{artefact.id} cannot be read: {'; '.join(problems)}; kvray run makes it again")
        return store.read_table(artefact.id)
    if not isinstance(artefact.params, Task):
        raise TypeError(f"{artefact.id} is no dataset: its params are a {type(artefact.params).__name__}")
    written = [Written(store, need) for need in artefact.needs if store.manifest(need) is not None]
    return build(artefact.params, base, range(artefact.rows), *written)


@dataclass(frozen=True)
class _Payload:
    """Makes one shard as bytes in the format."""

    task: Task
    base: BaseModelRef
    rows: int
    layout: Layout

    def __call__(self, shard: int) -> Row:
        table = build(self.task, self.base, shard_rows(shard, self.rows))
        columns = self.layout.columns
        system = OPENAI_SYSTEM if columns == "openai" else None
        if self.layout.encoding == "parquet":
            made = arranged(table, columns, system)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, made.schema) as writer:
                writer.write_table(made)
            payload = sink.getvalue().to_pybytes()
        elif columns in ("messages", "openai"):
            payload = json_lines(table, system)
        else:
            payload = lines(arranged(table, columns, system))
        return {"rows": table.num_rows, "tokens": _prompt_tokens(table), "payload": payload}


def _prompt_tokens(table: pa.Table) -> int:
    return int(pc.sum(table["prompt_tokens"]).as_py() or 0)
