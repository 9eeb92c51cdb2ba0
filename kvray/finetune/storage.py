"""From committed datasets to encoded rows, and from a finished finetune to a committed artefact. No Ray here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvray.errors import InputError
from kvray.finetune.callbacks import LossRow
from kvray.finetune.encode import Encoded, encode, join
from kvray.finetune.selection import count, limits, read_whole
from kvray.finetune.train import Trained
from kvray.models.reference import BaseModelRef, load_tokenizer
from kvray.planning.artefacts import Artefact, FinetuneJob
from kvray.planning.mixture import Mixture, mix
from kvray.store.schemas import LOSS_SCHEMA
from kvray.store.store import Manifest, Store


def here(base: BaseModelRef) -> BaseModelRef:
    """Return the base model as this machine has it (:meth:`BaseModelRef.here`).

    Raises:
        InputError: it is a directory that this machine lacks.
    """
    found = base.here()
    if found.revision is None and not Path(found.location).is_dir():
        raise InputError(
            f"base_model: {found.location} is not on this node; use a path that every node sees, or a hub id"
        )
    return found


def load_rows(store: Store, job: FinetuneJob, base: BaseModelRef) -> tuple[Encoded, Mixture]:
    """Read, verify, encode and blend the datasets of a finetune. Every worker comes to the same rows.

    Returns:
        The rows of one epoch, dataset by dataset, and where they are from.

    Raises:
        DamagedArtefactError: a dataset does not match its manifest (sha256 of every file).
        InputError: rows do not fit the template or the length, or the mixture cannot be blended or has too few tokens.
    """
    tokenizer = load_tokenizer(base)
    limit, ends = limits(base)
    encoded: dict[str, Encoded] = {}
    for dataset, _ in job.mixture:
        table = read_whole(store, dataset)
        names = [f"{dataset}: {name}" for name in table["example_id"].to_pylist()]
        texts = table["prompt"].to_pylist(), table["answer"].to_pylist()
        most = job.finetune.max_length or limit
        encoded[dataset] = encode(tokenizer, *texts, names=names, max_length=most, end_ids=ends)

    def tokens(dataset: str) -> NDArray[np.int64]:
        # Datasets of the budget alone are only counted.
        if dataset in encoded:
            return encoded[dataset].lengths
        return count(dataset, base, lambda name: read_whole(store, name))

    mixture = mix(job, tokens)
    return join([encoded[part.name].take(part.rows) for part in mixture.parts]), mixture


def loss_table(log: list[LossRow]) -> pa.Table:
    """Return a loss log as a table of :data:`LOSS_SCHEMA`."""
    return pa.Table.from_pylist([dict(row) for row in log], schema=LOSS_SCHEMA)


def commit(
    store: Store, artefact: Artefact, rows: Encoded, trained: Trained, model: Path, facts: Mapping[str, Any]
) -> Manifest:
    """Write a finished finetune's files into the store, and its manifest last."""
    files = [store.write_file(artefact.id, path.name, path) for path in sorted(model.iterdir())]
    files.append(store.write_table(artefact.id, "loss.parquet", loss_table(trained.log)))
    last = trained.log[-1]
    per_epoch = max(1, round(last["step"] / last["epoch"]))
    measured = {
        "steps": last["step"],
        "loss": last["loss"],
        "loss_last_epoch": float(np.mean([row["loss"] for row in trained.log[-per_epoch:]])),
        "prompt_tokens": int(rows.lengths.sum() - rows.answers.sum()),
        "answer_tokens": int(rows.answers.sum()),
        "trained_tokens": last["tokens"],
        "trained_parameters": trained.trained_parameters,
        "seconds": last["seconds"],
        "tokens_per_second": last["tokens"] / max(last["seconds"], 1e-9),
        "resumed_at_step": trained.resumed_at,
        "device": trained.device,
        "precision": trained.precision,
        "peak_gpu_bytes": trained.peak_gpu_bytes,
    }
    return store.commit(
        **artefact.identity(),
        files=files,
        schema=LOSS_SCHEMA,
        measurements={**measured, **facts},
    )
