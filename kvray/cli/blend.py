"""One mixture as one file: the very rows that a finetune on it reads in an epoch, for a look or for another trainer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from kvray.cli.export import Format, messages
from kvray.errors import DamagedArtefactError, InputError
from kvray.finetune.selection import select
from kvray.generate.shards import Written, build
from kvray.models.openai import OPENAI_SYSTEM
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact, FinetuneJob, Plan
from kvray.planning.mixture import Mixture
from kvray.store import parquet
from kvray.store.output import replacing, shown
from kvray.store.schemas import EXAMPLE_SCHEMA, column
from kvray.store.store import Store
from kvray.tasks.base import Task
from kvray.tasks.problems import unknown

DATASET = column("dataset", pa.string(), "name of the row's dataset in the sweep")
BLEND_SCHEMA = EXAMPLE_SCHEMA.append(DATASET)
"""Columns of a dumped mixture."""


def dump(
    planned: Plan, mixture: str, seed: int, store: Store, base: BaseModelRef, out: Path | str, format: Format
) -> Dumped:
    """Write the rows of one epoch of a mixture to one file; the same bytes on whatever machine.

    Rows come dataset by dataset, each in its own order, as a finetune reads them before it shuffles. Datasets that are
    committed are read from the store, others are made in memory; nothing is written into the store, and no Ray runs.

    Args:
        planned: the sweep's plan.
        mixture: one of its mixtures; with a grid over it, its label in the plan, ``blend[other=3]`` say.
        seed: of the finetune, which decides the rows that a cut dataset keeps.
        store: where datasets may be, and where what a model writes for one must be.
        base: the model whose template and tokenizer count, as in training.
        out: the file, or its URI; a directory is made if need be.
        format: ``parquet`` (:data:`BLEND_SCHEMA`), ``jsonl`` (``{"messages": [user, assistant], "dataset": …}``), or
            ``openai`` (messages alone, with the sweep's system message, else the paper's, first).

    Raises:
        InputError: no such mixture or seed, its data cannot be made or blended, or ``out`` cannot be written.
        DamagedArtefactError: a committed dataset does not match its manifest.
    """
    job = _job(planned, mixture, seed)
    data = {artefact.id: artefact for artefact in planned.artefacts if artefact.kind == "dataset"}
    tables: dict[str, pa.Table] = {}

    def read(dataset: str) -> pa.Table:
        if dataset not in tables:
            tables[dataset] = _table(data[dataset], store, base)
        return tables[dataset]

    mixed = select(job, base, read)
    parts = []
    for part in mixed.parts:
        rows = read(part.name).take(pa.array(part.rows))
        names = pa.array([str(data[part.name].labels["dataset"])] * rows.num_rows, pa.string())
        parts.append(rows.append_column(DATASET, names).cast(BLEND_SCHEMA))
    content = _bytes(pa.concat_tables(parts), format, planned.sweep.system_message or OPENAI_SYSTEM)
    with replacing(out) as file:
        file.write(content)
    return Dumped(shown(out), mixed, len(content), hashlib.sha256(content).hexdigest())


def _job(planned: Plan, mixture: str, seed: int) -> FinetuneJob:
    """Return what a finetune on a mixture reads; the finetunes of a grid over other things read the same."""
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
    found = jobs[mixture][seed]
    if len({(job.mixture, job.budget, job.finetune.match) for job in found}) > 1:
        raise InputError(
            f"mixture: {mixture} has other rows in other variants of the grid; expected one: set the value that is "
            "varied with --set and leave it out of the grid"
        )
    return found[0]


def _table(artefact: Artefact, store: Store, base: BaseModelRef) -> pa.Table:
    """Return all rows of a dataset: those in the store, or the same made here."""
    if store.manifest(artefact.id) is not None:
        problems = store.problems(artefact.id, verify=True)
        if problems:
            raise DamagedArtefactError(f"{artefact.id} cannot be read: {'; '.join(problems)}; kvray run makes it again")
        return store.read_table(artefact.id)
    if not isinstance(artefact.params, Task):
        raise TypeError(f"{artefact.id} is no dataset: its params are a {type(artefact.params).__name__}")
    writings = [need for need in artefact.needs if store.manifest(need) is not None]
    written = Written(store, writings[0]) if writings else None
    return build(artefact.params, base, range(artefact.rows), written)


def _bytes(table: pa.Table, format: Format, system: str) -> bytes:
    if format == "parquet":
        encoded: bytes = parquet.encode(table).to_pybytes()
        return encoded
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in _rows(table, format, system)).encode()


def _rows(table: pa.Table, format: Format, system: str) -> Sequence[dict[str, object]]:
    texts = zip(table["prompt"].to_pylist(), table["answer"].to_pylist(), strict=True)
    if format == "openai":
        # The fine-tuning API refuses keys that it does not know.
        return [{"messages": messages(*pair, system)} for pair in texts]
    names = table["dataset"].to_pylist()
    return [{"messages": messages(*pair), "dataset": name} for pair, name in zip(texts, names, strict=True)]


@dataclass(frozen=True)
class Dumped:
    """A mixture as one file.

    Attributes:
        path: the file, or its URI.
        mixture: its rows and tokens by dataset (ids), and the budget that it was cut to.
        bytes: of the file.
        sha256: of the file, in hex.
    """

    path: str
    mixture: Mixture
    bytes: int
    sha256: str
