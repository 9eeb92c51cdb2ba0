"""Who answers what: cells grouped into assignments, one per engine, and what one engine takes of a cluster."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from kvray.errors import KvrayError, ResourceError, StoreError
from kvray.evaluate.adapters import finetune_of
from kvray.evaluate.engines.base import ADAPTER_CONFIG, MODEL_CONFIG
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact, PredictionsJob
from kvray.store import failures
from kvray.store.store import Store
from kvray.sweep.model import Runtime


@dataclass(frozen=True)
class Assignment:
    """What one engine is to answer.

    ``base`` is the base model or the writer, ``cells`` are predictions or writings in asking order, ``full`` is the id
    of a full finetune served in place of the base (None: the base and its adapters). ``counted_by``'s tokenizer
    measures the prompts of writings. The engine is number ``part`` of the ``parts`` that share the cells; it takes
    every parts-th chunk.
    """

    base: BaseModelRef
    cells: tuple[Artefact, ...]
    runtime: Runtime
    full: str | None = None
    counted_by: BaseModelRef | None = None
    part: int = 0
    parts: int = 1
    gpus: float = 0.0
    cpus: float = 1.0

    @property
    def rows(self) -> float:
        """Planned rows of this part; the number of questions of an lm_eval benchmark is an estimate."""
        return sum(cell.rows for cell in self.cells) / self.parts

    def labels(self, cell: Artefact) -> dict[str, Any]:
        """Return the columns that are the same in all rows of a cell."""
        job = cell.params
        if not isinstance(job, PredictionsJob):
            return {}
        return {
            **cell.labels,
            "sweep": job.sweep,
            "task": job.task.task,
            "base_model": self.base.name,
            "adapter": job.finetune_id.rpartition("/")[2] if job.finetune_id else None,
        }


def assign_predictions(
    artefacts: Sequence[Artefact], store: Store, base: BaseModelRef, runtime: Runtime
) -> list[Assignment]:
    """Group predictions: the base and all its adapters in one assignment, each full finetune in one of its own.

    Benchmarks of lm-evaluation-harness are apart: their prompts have other lengths, and one that cannot be loaded
    delays no other evaluation. A cell whose finetune is not committed is noted as failed.
    """
    groups: dict[tuple[str | None, bool], list[Artefact]] = {}
    for artefact in artefacts:
        finetune = finetune_of(artefact)
        try:
            full = finetune if finetune is not None and is_full(store, finetune) else None
        except KvrayError as error:
            failures.note(store, artefact.id, str(error))
            continue
        own = isinstance(artefact.params, PredictionsJob) and artefact.params.task.BRINGS_EXAMPLES
        groups.setdefault((full, own), []).append(artefact)
    return [
        # By adapter, so that an engine changes adapters as rarely as it can; the base comes first.
        Assignment(base, tuple(sorted(cells, key=lambda cell: finetune_of(cell) or "")), runtime, full)
        for (full, _), cells in groups.items()
    ]


def share(assignments: Sequence[Assignment], cpus: float, gpus: float, at_once: int) -> list[Assignment]:
    """Return one assignment per engine: with fewer than ``at_once``, each is shared by several engines."""
    parts = math.ceil(at_once / len(assignments)) if assignments else 1
    return [
        replace(each, part=part, parts=parts, gpus=gpus, cpus=cpus) for each in assignments for part in range(parts)
    ]


def place(runtime: Runtime, nodes: Sequence[Mapping[str, float]]) -> tuple[float, float, int]:
    """Return CPUs and GPUs of one engine, and how many engines may run at a time; ResourceError if no node holds one.

    ``nodes`` are the resources of every node that the cluster has or its autoscaler may add.
    """
    most_gpus = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    gpus = runtime.gpus_per_engine
    if gpus is None:
        gpus = float(runtime.tensor_parallel) if most_gpus else 0.0
    able = [node for node in nodes if node.get("GPU", 0.0) >= gpus]
    if not able:
        raise ResourceError(
            f"GPU: one engine needs {gpus:g} on one node, the largest node has {most_gpus:g}; "
            "lower runtime.gpus_per_engine or runtime.tensor_parallel"
        )
    most_cpus = max(node.get("CPU", 0.0) for node in able)
    cpus = runtime.cpus_per_engine
    if cpus is None:
        # Engines share their nodes evenly; a node with fewer CPUs than engines runs them one after the other.
        cpus = max(1.0, most_cpus // math.ceil((runtime.engines or 1) / len(able)))
    if most_cpus < cpus:
        raise ResourceError(
            f"CPU: one engine needs {cpus:g} on one node, the largest node has {most_cpus:g}; "
            "lower runtime.cpus_per_engine"
        )
    fit = sum(
        int(min(node.get("CPU", 0.0) // cpus, node.get("GPU", 0.0) // gpus if gpus else math.inf)) for node in able
    )
    return cpus, gpus, max(1, min(runtime.engines or 1, fit))


def is_full(store: Store, finetune_id: str) -> bool:
    """Return whether a finetune is a whole model rather than an adapter; StoreError if it is not committed."""
    manifest = store.manifest(finetune_id)
    if manifest is None:
        raise StoreError(f"{finetune_id} is not committed; kvray run makes it")
    names = {PurePosixPath(entry.name).name for entry in manifest.files}
    return ADAPTER_CONFIG not in names and MODEL_CONFIG in names
