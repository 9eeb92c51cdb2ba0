"""What one engine is ordered to do, and what of it is still to be done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pyarrow as pa

from kvray.errors import CellError, StoreError
from kvray.evaluate import chunks
from kvray.evaluate.chunks import Labels, Reply
from kvray.evaluate.engines import vllm_settings
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact, PredictionsJob
from kvray.store.store import Store
from kvray.sweep.model import Runtime

ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"


def job_of(cell: Artefact) -> PredictionsJob:
    """Return the job of a predictions artefact."""
    if not isinstance(cell.params, PredictionsJob):
        raise TypeError(f"{cell.id} is no predictions artefact")
    return cell.params


def dataset_of(cell: Artefact) -> str:
    """Return the id of the dataset whose examples a cell asks."""
    dataset_id = job_of(cell).dataset_id
    if dataset_id is None:
        raise TypeError(f"{cell.id} has no dataset: another library brings its questions")
    return dataset_id


def labels_of(order: Order, cell: Artefact) -> Labels:
    """Return the columns that are the same in all rows of a cell."""
    job = job_of(cell)
    return Labels(
        sweep=order.sweeps.get(cell.id, ""),
        evaluation=job.evaluation,
        task=job.task.task,
        base_model=order.base.name,
        mixture=cell.labels.get("mixture"),
        finetune=cell.labels.get("finetune"),
        seed=cell.labels.get("seed"),
        adapter=job.finetune_id.rpartition("/")[2] if job.finetune_id else None,
    )


def todo(
    store: Store, cells: Sequence[Artefact], examples: Callable[[Artefact], pa.Table], part: int, parts: int
) -> list[Chunk]:
    """Return the chunks of this part that are not there yet, cell by cell.

    Chunks are dealt round over all cells, so that parts differ by one chunk at most, whatever the cells' sizes.

    Args:
        store: where the chunks are.
        cells: what is to be made.
        examples: what a cell asks, in asking order (its ``example_id`` column).
        part: which of the parts.
        parts: how many there are.
    """
    found: list[Chunk] = []
    dealt = 0
    for cell in cells:
        asked = examples(cell)
        absent = set(chunks.missing(store, cell, asked))
        for index in range(chunks.chunk_count(asked.num_rows)):
            if dealt % parts == part and index in absent:
                found.append(Chunk(cell, index))
            dealt += 1
    return found


def model_directory(root: Path) -> Path:
    """Return the directory of a finetune's weights: the one below ``root`` that has their configuration.

    Raises:
        CellError: there is none.
    """
    for name in (ADAPTER_CONFIG, MODEL_CONFIG):
        found = sorted(root.rglob(name))
        if found:
            return found[0].parent
    raise CellError(f"{root.name} holds neither {ADAPTER_CONFIG} nor {MODEL_CONFIG}, so no weights that vLLM can serve")


def is_full(store: Store, finetune_id: str) -> bool:
    """Return whether a committed finetune is a whole model rather than an adapter.

    Raises:
        StoreError: it is not committed.
    """
    manifest = store.manifest(finetune_id)
    if manifest is None:
        raise StoreError(f"{finetune_id} is not committed; kvray run makes it")
    names = {PurePosixPath(entry.name).name for entry in manifest.files}
    return ADAPTER_CONFIG not in names and MODEL_CONFIG in names


def real_rank(adapter: Path) -> int:
    """Return the largest rank of a peft adapter.

    Raises:
        CellError: its configuration is unreadable, or the rank is more than vLLM serves.
    """
    try:
        config = json.loads((adapter / ADAPTER_CONFIG).read_text())
        rank = max([int(config["r"]), *(int(other) for other in (config.get("rank_pattern") or {}).values())])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CellError(f"{adapter / ADAPTER_CONFIG} is no readable adapter configuration ({error!r})") from error
    vllm_settings.lora_rank(rank)
    return rank


@dataclass(frozen=True)
class Order:
    """What one engine is to do.

    Attributes:
        base: the base model.
        full: id of the full finetune that is served in its place; None for the base and its adapters.
        cells: predictions artefacts, in the order in which they are to be answered.
        sweeps: name of a sweep per cell id, for the ``sweep`` column.
        part: which of the ``parts`` engines this is; it takes every parts-th chunk.
        parts: engines that share these cells.
        runtime: where and how.
        gpus: GPUs of this engine.
        cpus: CPUs of this engine.
        benchmarks: whether the cells are benchmarks of lm-evaluation-harness; else all have their dataset in the store.
    """

    base: BaseModelRef
    full: str | None
    cells: tuple[Artefact, ...]
    sweeps: Mapping[str, str]
    part: int
    parts: int
    runtime: Runtime
    gpus: float
    cpus: float
    benchmarks: bool = False


@dataclass
class Chunk:
    """A chunk being answered."""

    cell: Artefact
    index: int
    replies: dict[int, Reply] = field(default_factory=dict)
