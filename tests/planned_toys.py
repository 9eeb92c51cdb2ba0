"""A planned sweep of toy tasks, and commits of its artefacts without the work, for tests of what reads plans."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact, Plan
from kvray.planning.inputs import gather
from kvray.planning.plan import plan
from kvray.store.manifest import Manifest
from kvray.store.store import Store
from kvray.sweep.model import Sweep

BASE = BaseModelRef("tiny", "/models/tiny", None, "sha256:abc")
_FACTS = {"dataset": "prompt_tokens", "finetune": "trained_tokens", "predictions": "prompt_tokens"}


def toy_plan(**changes: Any) -> Plan:
    """Plan two mixtures and one evaluation; the registry must know ``toy`` and ``facts.resolve`` must give BASE."""
    blocks: dict[str, Any] = {
        "name": "s",
        "base_model": "tiny",
        "datasets": {"ours": {"task": "toy", "rows": 20}, "other": {"task": "toy", "rows": 30, "seed": 1}},
        "evaluate": {"ask": {"task": "toy", "rows": 5, "seed": 9}},
        "finetune": {"match": "rows"},
        "runtime": {"num_cpus": 1},
    }
    sweep = Sweep.model_validate({**blocks, **changes})
    return plan(sweep, gather(sweep))


def commit(store: Store, artefact: Artefact, seconds: float = 1.0, tokens: int = 100) -> Manifest:
    """Commit an artefact with one small file."""
    entry = store.write(artefact.id, "part-0.parquet", pa.table({"row": list(range(artefact.rows))}))
    return store.commit(
        id=artefact.id,
        kind=artefact.kind,
        name=artefact.name,
        fingerprint=artefact.fingerprint,
        recipe=artefact.recipe,
        needs=artefact.needs,
        files=[entry],
        measurements={"seconds": seconds, _FACTS[artefact.kind]: tokens},
    )
