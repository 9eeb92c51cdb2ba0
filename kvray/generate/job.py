"""generate on Ray Data: the shards of all datasets in one pipeline, each written by the task that made it.

What takes some seconds in all is made by the calling process, without Ray Data.

``write_parquet`` is not used: a killed run leaves torn files and a rerun doubles rows. Here a shard's name and bytes
follow from the recipe, so a retry overwrites it with the same bytes; the manifest, written last, makes a dataset exist.
"""

import logging
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kvray.errors import InputError, KvrayError, last_line
from kvray.models.reference import BaseModelRef
from kvray.models.tokenizer import token_counter
from kvray.planning.artefacts import Artefact
from kvray.store.manifest import DATA, FileEntry
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Runtime
from kvray.tasks import writing
from kvray.tasks.base import Context, Task

ROWS_PER_SHARD = 1024
"""Rows of every shard but the last. A constant: the same rows are in the same file whatever the number of workers."""
CONTEXTS_KEPT = 8
"""Contexts that a process holds at once; the oldest goes first."""
_contexts: dict[Hashable, Context] = {}
ALONE_S = 10.0
"""Seconds for which the calling process makes shards alone: starting Ray Data costs as much of a small machine."""
_TASKS_BEFORE_GROUPING = 64
_UNITS_PER_TASK = 4

Row = dict[str, Any]
Tell = Callable[[int, Sequence[Outcome]], None]


@dataclass(frozen=True)
class Written:
    """A writer's replies: a committed artefact of kind "writing"."""

    store: Store
    artefact_id: str


def generate(
    artefacts: Sequence[Artefact],
    store: Store,
    base: BaseModelRef,
    runtime: Runtime | None = None,
    tell: Tell = lambda rows, ended: None,
) -> list[Outcome]:
    """Make datasets on an initialised Ray, keeping shards of a killed run; return an outcome each, in order.

    ``tell`` is called with the rows made so far and the outcomes since the last call, as soon as a dataset ends.
    """
    datasets = [_Dataset(artefact) for artefact in artefacts]
    units = tuple((artefact, shard) for artefact in artefacts for shard in range(shard_count(artefact.rows)))
    by_id = {dataset.artefact.id: dataset for dataset in datasets}
    retries = (runtime or Runtime()).retries
    done = 0
    told: set[str] = set()
    try:
        for row in _rows(len(units), _ShardWork(units, store, base), retries):
            dataset = by_id[units[row["unit"]][0].id]
            dataset.add(row, store)
            done += row["rows"]
            ended = dataset.artefact.id not in told and (dataset.whole or dataset.error is not None)
            told |= {dataset.artefact.id} if ended else set()
            tell(done, [Outcome(dataset.artefact.id, dataset.error)] if ended else [])
    except Exception as error:
        # Ray Data gave up (a worker died more often than retries allow): whatever is not committed has failed.
        for dataset in datasets:
            if not dataset.whole and dataset.error is None:
                dataset.error = f"{type(error).__name__}: {last_line(error)}"
    return [Outcome(dataset.artefact.id, dataset.error) for dataset in datasets]


def _rows(units: int, work: Callable[[int], Row], retries: int) -> Iterator[Row]:
    """Yield what ``work`` returns for each unit: of the first ones from this process, of the others from Ray Data."""
    began, done = time.monotonic(), 0
    while done < units and time.monotonic() - began < ALONE_S:
        yield {"unit": done, **work(done)}
        done += 1
    _contexts.clear()  # sources may be large, and this process may live on
    for row in stream(units - done, _From(done, work), retries=retries):
        yield {**row, "unit": row["unit"] + done}


def stream(
    units: int, work: Callable[[int], Row], *, retries: int = 2, ordered: bool = False, workers: int | None = None
) -> Iterator[Row]:
    """Run ``work(0)`` … ``work(units - 1)`` on Ray Data and yield the rows that they return, as they come.

    ``work`` is picklable and returns a flat row, to which ``unit`` is added. ``retries`` bounds further attempts at a
    task whose worker died. ``ordered`` yields in the order of the units. ``workers`` is the number of tasks at a time,
    on fractions of CPUs if there are fewer CPUs; None leaves it to Ray.
    """
    import ray

    if not units:
        return
    workers = min(workers, units) if workers else None
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = ordered
    blocks = units if units <= _TASKS_BEFORE_GROUPING else -(-units // _UNITS_PER_TASK)
    with ray.data.DataContext.current(context), warnings.catch_warnings():
        # Ray 2.60 deprecates max_retries here without a named parameter in its place.
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        rows = ray.data.range(units, override_num_blocks=blocks).map_batches(
            _Each(work),
            batch_size=None,
            batch_format="numpy",
            compute=ray.data.TaskPoolStrategy(size=workers),
            num_cpus=min(1.0, ray.cluster_resources().get("CPU", 1.0) / workers) if workers else 1.0,
            max_retries=retries,
        )
    # Its notices (no bars, execution finished) would come between the lines of progress; errors are raised anyway.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # The dataset keeps the context that it was made under.
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def shard_count(rows: int) -> int:
    """Return how many shards hold ``rows`` examples."""
    return -(-rows // ROWS_PER_SHARD)


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"{DATA}/shard-{shard:05d}.parquet"


def shard_rows(shard: int, rows: int) -> range:
    """Return the examples that a shard of a dataset of ``rows`` examples holds."""
    return range(shard * ROWS_PER_SHARD, min((shard + 1) * ROWS_PER_SHARD, rows))


def context_of(task: Task, base: BaseModelRef, written: Written | None = None) -> Context:
    """Return what building a task needs, made once per process: it may read sources and measure a tokenizer.

    ``base`` is the model whose tokenizer counts; ``written`` has the replies of the task's writer, if it has one, which
    only a sweep asks: InputError without them.
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

    Raises InputError if its parameters cannot be met or nothing is written yet, KvrayError for other columns or rows.
    """
    table = task.build(rows.start, rows.stop, context_of(task, base, written))
    if not table.schema.equals(task.EXAMPLES) or table.num_rows != len(rows):
        raise KvrayError(
            f"task {task.task}: rows {rows.start} to {rows.stop} came out as {table.num_rows} rows of "
            f"{', '.join(f'{field.name}: {field.type}' for field in table.schema)}; expected {len(rows)} rows of "
            f"{type(task).__name__}.EXAMPLES"
        )
    return table


@dataclass(frozen=True)
class _ShardWork:
    """Makes one shard, or finds it whole, and returns its entry; an error is returned, not raised."""

    units: tuple[tuple[Artefact, int], ...]
    store: Store
    base: BaseModelRef

    def __call__(self, unit: int) -> Row:
        artefact, shard = self.units[unit]
        started = time.monotonic()
        try:
            entry, tokens = self._shard(artefact, shard)
        except Exception as error:
            # Returned with its kind, so that the driver fails this dataset alone.
            kind = "" if isinstance(error, KvrayError) else f"{type(error).__name__}: "
            entry = FileEntry(shard_name(shard), 0, 0, "")
            return {**asdict(entry), "tokens": 0, "seconds": 0.0, "error": f"{kind}{last_line(error)}"}
        return {**asdict(entry), "tokens": tokens, "seconds": time.monotonic() - started, "error": ""}

    def _shard(self, artefact: Artefact, shard: int) -> tuple[FileEntry, int]:
        task, name, rows = _task(artefact), shard_name(shard), shard_rows(shard, artefact.rows)
        table = self.store.read_file_table(artefact.id, name)
        entry = None
        if table is not None and table.num_rows == len(rows) and table.schema.equals(task.EXAMPLES):
            entry = self.store.entry(artefact.id, name)
        if table is None or entry is None:
            table = build(task, self.base, rows, Written(self.store, artefact.needs[0]) if artefact.needs else None)
            entry = self.store.write(artefact.id, name, table)
        return entry, int(pc.sum(table["prompt_tokens"]).as_py() or 0)


@dataclass(frozen=True)
class _From:
    """The work without its first units."""

    first: int
    work: Callable[[int], Row]

    def __call__(self, unit: int) -> Row:
        return self.work(self.first + unit)


@dataclass(frozen=True)
class _Each:
    """Runs the work unit by unit, so that a task of several units hands each over as it is done."""

    work: Callable[[int], Row]

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> Iterator[pa.Table]:
        for unit in batch["id"].tolist():
            yield pa.Table.from_pylist([{"unit": unit, **self.work(unit)}])


@dataclass
class _Dataset:
    """The progress of one dataset; its rows are keyed by file name, since a retried task may return a shard twice."""

    artefact: Artefact
    error: str | None = None
    rows: dict[str, Row] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        return len(self.rows) == shard_count(self.artefact.rows)

    def add(self, row: Row, store: Store) -> None:
        """Take the entry of a shard; the last one commits the dataset."""
        if row["error"]:
            self.error = self.error or row["error"]
            return
        self.rows[row["name"]] = row
        if not self.whole or self.error is not None:
            return
        rows = self.rows.values()
        files = [FileEntry(each["name"], each["rows"], each["bytes"], each["sha256"]) for each in rows]
        seconds = round(sum(each["seconds"] for each in rows), 3)
        measurements = {"prompt_tokens": sum(each["tokens"] for each in rows), "seconds": seconds}
        schema = _task(self.artefact).EXAMPLES
        try:
            store.commit(**self.artefact.identity(), files=files, schema=schema, measurements=measurements)
        except KvrayError as error:
            self.error = str(error)


def _task(artefact: Artefact) -> Task:
    assert isinstance(artefact.params, Task), f"{artefact.id} is no dataset"
    return artefact.params
