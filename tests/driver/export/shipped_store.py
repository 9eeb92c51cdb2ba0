"""A store with a small sweep that is done: real data, adapters and models that were changed by lot, drawn answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from made_finetunes import finetuned

from kvray.finetune import encode, storage
from kvray.finetune.storage import load_rows
from kvray.generate.job import build
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact, FinetuneJob, Plan, PredictionsJob
from kvray.planning.inputs import gather
from kvray.planning.plan import plan
from kvray.store.schemas import EXAMPLE_SCHEMA, LOSS_SCHEMA, PREDICTIONS_SCHEMA
from kvray.store.store import Store
from kvray.sweep.model import Sweep
from kvray.tasks.base import Task

SWEEP: dict[str, Any] = {
    "name": "small",
    "base_model": "kvray-tiny",
    "datasets": {
        "kv": {"task": "simple_kv", "rows": 12, "dictionaries": 4},
        "several": {"task": "several_kv", "rows": 40, "dictionaries": 3},
    },
    "mixtures": {"kv": {"kv": 1}, "blend": {"kv": 1, "several": 1}},
    "finetune": {"seeds": [0, 1], "learning_rate": 1e-3, "lora_rank": 4},
    "evaluate": {"mdqa": {"task": "mdqa", "documents": 3, "positions": [1, 3], "questions": 20}},
}


def planned(**changes: Any) -> Plan:
    sweep = Sweep.model_validate({**SWEEP, **changes})
    return plan(sweep, gather(sweep))


def fill(store: Store, of: Plan, base: BaseModelRef) -> None:
    """Commit every artefact of a plan, and its document."""
    store.write_document(f"sweeps/{of.sweep.name}.json", of.to_json())
    tables: dict[str, pa.Table] = {}
    for artefact in of.artefacts:
        if isinstance(artefact.params, Task):
            table = tables[artefact.id] = build(artefact.params, base, range(artefact.rows))
            half = artefact.rows // 2
            files = [store.write(artefact.id, f"shard-{i:05d}.parquet", t) for i, t in _parts(table, half)]
            facts = {"prompt_tokens": sum(table["prompt_tokens"].to_pylist())}
            store.commit(**artefact.identity(), files=files, schema=EXAMPLE_SCHEMA, measurements=facts)
        elif isinstance(artefact.params, FinetuneJob):
            finetune(store, artefact, artefact.params, base)
        elif isinstance(artefact.params, PredictionsJob):
            answers = _answers(artefact, artefact.params, tables, of.sweep.name)
            entry = store.write(artefact.id, "chunk-00000.parquet", answers)
            store.commit(**artefact.identity(), files=[entry], schema=PREDICTIONS_SCHEMA)


def finetune(store: Store, artefact: Artefact, job: FinetuneJob, base: BaseModelRef) -> None:
    """Commit a finetune as the stage does, though what it changed is drawn by lot."""
    rows, mixture = load_rows(store, job, base)
    into = Path(store.root).parent / f"made-{artefact.fingerprint[:8]}"
    finetuned(base, job.finetune, into, seed=len(artefact.id) + job.seed)
    log = [{name: None for name in LOSS_SCHEMA.names} | {"step": 1, "epoch": 1.0, "loss": 0.5, "learning_rate": 1e-3}]
    log[0] |= {"grad_norm": 1.0, "tokens": int(rows.lengths.sum()), "seconds": 1.0}
    storage.commit(store, artefact, rows, log, into, mixture.measurements())


def _parts(table: pa.Table, half: int) -> list[tuple[int, pa.Table]]:
    return list(enumerate([table.slice(0, half), table.slice(half)]))


def _answers(artefact: Artefact, job: PredictionsJob, tables: dict[str, pa.Table], sweep: str) -> pa.Table:
    examples = tables[str(job.dataset_id)].to_pylist()
    right = np.random.default_rng(len(artefact.id)).random(len(examples)) < (0.8 if job.finetune_id else 0.3)
    labels = {name: artefact.labels.get(name) for name in ("evaluation", "mixture", "finetune", "seed")}
    rows = [
        {**{name: example.get(name) for name in PREDICTIONS_SCHEMA.names}, **labels}
        | {"sweep": sweep, "task": job.task.task, "base_model": "kvray-tiny", "finish_reason": "stop"}
        | {"prompt_tokens": 60, "cached_tokens": 0, "output_tokens": 5, "answer": "an answer", "score": float(good)}
        for example, good in zip(examples, right, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTIONS_SCHEMA)


def encoded(store: Store, dataset: str, base: BaseModelRef) -> encode.Encoded:
    """Return a dataset's rows as kvray trains on them."""
    from kvray.models.chat import prompts_of
    from kvray.models.reference import load_tokenizer

    table = store.read_table(dataset)
    ends = storage.limits(base)[1]
    return encode.encode(load_tokenizer(base), prompts_of(table), table["answer"].to_pylist(), end_ids=ends)
