"""Made-up loss logs, as frames and in stores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from kvray.results import losses
from kvray.store.fingerprint import fingerprint
from kvray.store.schemas import LOSS_SCHEMA
from kvray.store.store import Store, artefact_id

Log = Mapping[str, Sequence[float | None]]


def log(integers: Sequence[float | None], words: Sequence[float], loss: Sequence[float] | None = None) -> Log:
    """A finetune's log: of each step, the loss of integers, of words and of all."""
    both = [w if i is None else (i + w) / 2 for i, w in zip(integers, words, strict=True)]
    return {"loss": loss or both, "loss_integers": integers, "loss_words": words}


def commit(store: Store, finetunes: Sequence[tuple[str, str, int, Log | None]], name: str = "first") -> list[str]:
    """Commit finetunes, each (mixture, finetune, seed, log or None for none), and a sweep of them alone."""
    planned: list[dict[str, Any]] = []
    for mixture, finetune, seed, columns in finetunes:
        recipe = {"mixture": mixture, "finetune": finetune, "seed": seed}
        digest = fingerprint(recipe, [])
        one = artefact_id("finetune", f"{mixture}-s{seed}", digest)
        files = [store.write(one, "model.json", b"{}")]
        if columns is not None:
            steps = {"step": list(range(1, len(columns["loss"]) + 1)), **columns}
            fields = [LOSS_SCHEMA.field(column) for column in steps]
            files.append(store.write(one, losses.FILE, pa.table(steps, schema=pa.schema(fields))))
        store.commit(
            id=one, kind="finetune", name=one, fingerprint=digest, recipe=recipe, needs=[], files=files, measurements={}
        )
        planned.append({"id": one, "kind": "finetune", "labels": recipe, "needs": [], "rows": 1})
    document = {"format": 1, "name": name, "base_model": "kvray-tiny", "sweep": {}, "artefacts": planned}
    store.write_document(f"sweeps/{name}.json", json.dumps(document).encode())
    return [artefact["id"] for artefact in planned]


def frame(models: Mapping[str, Sequence[Log]]) -> pl.DataFrame:
    """Loss logs as :func:`losses.read` gives them: of each model, one per seed."""
    parts = []
    for model, seeds in models.items():
        for seed, columns in enumerate(seeds):
            n = len(columns["loss"])
            step, share = list(range(1, n + 1)), [at / max(1, n - 1) for at in range(n)]
            values = [columns[name] for name in ("loss", "loss_integers", "loss_words")]
            parts.append(
                pl.DataFrame(
                    [[model] * n, [seed] * n, step, share, *map(list, values)], schema=losses._LOSSES, strict=False
                )
            )
    return pl.concat(parts)
