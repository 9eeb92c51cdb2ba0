"""The disk that a run takes: what it writes into the store, and what lies at a time in the scratch directory of a node.

Rough, from the plan alone: whether a disk fits is asked with a factor of two. A weight that trains takes 12 bytes of a
checkpoint (float32 and two moments of Adam; Rajbhandari et al. 2020, "ZeRO", section 3.1). What compresses was measured
on the stores of kvray's own sweeps.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvray.console import size
from kvray.errors import ResourceError
from kvray.planning.artefacts import FinetuneJob
from kvray.planning.cost.rates import Rates, model_of
from kvray.store.places.files import free_bytes, nearest

if TYPE_CHECKING:
    from kvray.planning.cost.estimate import Item
    from kvray.store.store import Store
    from kvray.sweep.model import Runtime

TOKEN_BYTES = 2.0
"""Of a prompt in a dataset, or a reply: text of four characters a token, compressed; 1 to 2 were seen."""
ROW_BYTES = 100.0
"""Of a row of predictions beside its reply; 60 to 220 were seen."""
CHECKPOINT_BYTES = 12.0
"""Per weight that trains."""
TRAINED = {"full": 1.0, "attention": 0.2}
"""Shares of the weights that train; of adapters, 0.0006 of the weights per rank (all linear modules of Mistral 7B)."""
_ADAPTER = 0.0006
_HALF_ABOVE = 1e9  # weights from which a model is taken to be stored in 16 bits
CLOSE = 0.8
"""A warning says so if more than this share of what is free will be taken."""


@dataclass(frozen=True)
class Space:
    """Bytes of a run: ``store`` when all is there, ``scratch`` at most at a time on one node."""

    store: float = 0.0
    scratch: float = 0.0

    def __str__(self) -> str:
        scratch = f", and up to {size(self.scratch)} at a time into a node's scratch directory" if self.scratch else ""
        return f"about {size(self.store)} into the store{scratch}"


def space(todo: Iterable[Item], rates: Rates) -> Space:
    """Return what the artefacts of a plan that are to be made take."""
    stored, finetunes, largest, slots = 0.0, 0.0, 0.0, 1
    for item in todo:
        job = item.artefact.params
        if item.artefact.kind == "dataset":
            stored += item.reads * TOKEN_BYTES
        elif not isinstance(job, FinetuneJob):
            stored += item.artefact.rows * ROW_BYTES + item.writes * TOKEN_BYTES
        elif item.on != "api" and (model := rates.sizes[model_of(item.artefact, rates.planned)]):
            method = job.finetune.method
            trained = model.total * TRAINED.get(method, _ADAPTER * job.finetune.lora_rank)
            weights = trained * (4 if method == "lora" or model.total < _HALF_ABOVE else 2)
            finetunes += weights
            largest = max(largest, weights + CHECKPOINT_BYTES * trained)
            slots = max(slots, rates.room("finetune", item.on)[1])
    # Each slot has a checkpoint in the store, which a newer one replaces, and on its node what it is about to store.
    return Space(stored + finetunes + slots * largest, slots * largest)


def check(planned: Space, store: Store, runtime: Runtime, here: bool) -> list[str]:
    """Return warnings where a run will hardly fit the disks of this machine; ``here`` if it runs on this one alone.

    Raises ResourceError, with a sentence per disk, if not even half of a run fits. Buckets, and file systems that do
    not tell what is free, always do.
    """
    wanted: dict[int, tuple[str, float]] = {}
    places = [] if store.remote else [(store.root, planned.store)]
    places += [(os.path.expanduser(runtime.scratch or tempfile.gettempdir()), planned.scratch)] if here else []
    for path, taken in places:
        disk = os.stat(nearest(path)).st_dev
        first, sum_ = wanted.get(disk, (path, 0.0))
        wanted[disk] = first, sum_ + taken
    warnings, refused = [], []
    for path, taken in wanted.values():
        free = free_bytes(path)
        if free is None or taken <= CLOSE * free:
            continue
        text = f"{path}: this sweep takes about {size(taken)} there, and {size(free)} are free"
        if 2 * free < taken:
            refused.append(f"{text}; make room, or give another place (--store, runtime.scratch)")
        else:
            warnings.append(f"{text}; a full disk is waited for, and then fails what it meets")
    if refused:
        raise ResourceError("\n".join(refused))
    return warnings
