"""A store with one dataset and finetunes over it, for tests of the job; as a script, the driver that is killed."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kvray.driver.seats.queue import Limits, WorkQueue
from kvray.driver.seats.sources import RemoteSource
from kvray.finetune import job
from kvray.models.reference import BaseModelRef, resolve
from kvray.planning.artefacts import Artefact, FinetuneJob
from kvray.planning.work import FINETUNE, Lane, Seat, Unit
from kvray.store.fingerprint import fingerprint
from kvray.store.manifest import DATA
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.store.store import Store, artefact_id
from kvray.sweep.model import Finetune, Runtime


def dataset(store: Store, name: str, rows: int, numbers: int = 8) -> str:
    """Commit a dataset of prompts with ``numbers`` numbers each, and return its id."""
    rng = np.random.default_rng(0)
    table = pa.Table.from_pylist(
        [
            {
                "example_id": f"{name}-{i}",
                "question_id": f"{name}-{i}",
                "units": 0,
                "prompt": f"Which comes first: {', '.join(map(str, drawn))}?",
                "answer": f"{drawn[0]}",
                "references": [f"{drawn[0]}"],
                "prompt_tokens": 0,
            }
            for i in range(rows)
            for drawn in [rng.integers(100, 9999, numbers)]
        ],
        schema=EXAMPLE_SCHEMA,
    )
    recipe = {"name": name, "rows": rows, "numbers": numbers}
    digest = fingerprint(recipe)
    made = artefact_id("dataset", name, digest)
    cut = rows // 2
    files = [
        store.write(made, f"{DATA}/shard-{i:05d}.parquet", part) for i, part in enumerate([table[:cut], table[cut:]])
    ]
    store.commit(
        id=made,
        kind="dataset",
        name=name,
        fingerprint=digest,
        recipe=recipe,
        needs=[],
        files=files,
        schema=EXAMPLE_SCHEMA,
    )
    return made


def finetune_of(
    mixture: dict[str, float], finetune: Finetune, seed: int = 0, budget: dict[str, float] | None = None
) -> Artefact:
    """Return the artefact of a finetune over committed datasets."""
    recipe = {"finetune": finetune.recipe(), "seed": seed, "mixture": list(mixture.values())}
    digest = fingerprint(recipe, list(mixture))
    made = artefact_id("finetune", "mixture", digest)
    job = FinetuneJob(finetune, seed, tuple(mixture.items()), tuple((budget or {}).items()))
    return Artefact(made, "finetune", "mixture", digest, tuple(mixture), 0, 0, {}, recipe, job)


def long_finetune(store: Store) -> Artefact:
    """A finetune of 60 steps, so that there is time to kill it."""
    return finetune_of({dataset(store, "long", 32): 1.0}, Finetune(learning_rate=1e-3, epochs=30, lora_dropout=0.1))


class Queue:
    """A work queue with one slot, whose finetunes come in the order given; a Ray actor."""

    def __init__(self, artefacts: Sequence[str], seat: Seat, retries: int) -> None:
        self.queue = WorkQueue([Lane(FINETUNE, lambda source, seat: None, {})], Limits(retries))
        self.queue.seat(seat)
        for number, one in enumerate(artefacts):
            self.queue.add(FINETUNE, one, [Unit(0, one, rows=1, seconds=len(artefacts) - number)])
        self.queue.close()

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.queue, method)(*arguments)

    def errors(self) -> dict[str, str | None]:
        return {outcome.artefact_id: outcome.error for outcome in self.queue.outcomes()}


def trained(
    store: Store, artefacts: Sequence[Artefact], base: BaseModelRef, runtime: Runtime, workers: int = 1
) -> dict[str, str | None]:
    """Train finetunes in one slot, the first first, on a Ray that runs; return errors by id."""
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[Queue.__module__])  # no worker can import a test
    seat = Seat("slot-0", FINETUNE, workers=workers)
    finetunes = {artefact.id: artefact for artefact in artefacts}
    queue = ray.remote(Queue).options(num_cpus=0).remote(list(finetunes), seat, runtime.retries)
    source = RemoteSource(queue, seat.name)
    job.slot(source, seat, store=store, base=base, runtime=runtime, finetunes=finetunes)
    errors: dict[str, str | None] = ray.get(queue.errors.remote())
    return errors


def main() -> None:
    """Train ``long_finetune`` in the store at argv[1] on the base at argv[2]; "late" as argv[3]: a node comes later."""
    import ray

    if sys.argv[3:] == ["late"]:
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20})
        ray.init(cluster.address, log_to_driver=False)
    else:
        cluster = None
        ray.init("local", num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False)
    store = Store(Path(sys.argv[1]))
    errors: dict[str, str | None] = {}

    def run() -> None:
        errors.update(trained(store, [long_finetune(store)], resolve(sys.argv[2]), Runtime(checkpoint_every_steps=10)))

    slot = threading.Thread(target=run)
    slot.start()
    if cluster is not None:
        time.sleep(20)
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    slot.join()
    raise SystemExit(not errors or any(errors.values()))


if __name__ == "__main__":
    main()
