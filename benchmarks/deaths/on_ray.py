"""The stand-in sweep on a Ray that runs: real dispatcher, Ray Tune, Generator and seats, whose work is the stand-in's.

RAY_ADDRESS=127.0.0.1:6379 python -m benchmarks.deaths.on_ray STORE STEP_SECONDS STEPS
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from unittest import mock

from benchmarks.deaths import standin
from kvray.driver import run as driver
from kvray.driver.seats.dispatcher import Opening
from kvray.driver.seats.lanes import Lanes
from kvray.driver.seats.placement import Place
from kvray.evaluate import chunks
from kvray.evaluate.job import engine
from kvray.finetune.placement import Shape
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact
from kvray.planning.work import EVALUATE, FINETUNE, Lane, Seat, Source, Work
from kvray.store.store import Store

RUNTIME = {"retries": 20, "stall_minutes": 0.5, "start_minutes": 1.5}
"""For processes that die many times a minute, and hang for good if they hang at all."""


def open_lanes(todo: Sequence[Artefact], store: Store, base: BaseModelRef, runtime: Any, cluster: Any) -> Lanes:
    """Return lanes whose seats hold a CPU each, on any node."""
    step_s, steps = float(sys.argv[2]), int(sys.argv[3])
    finetunes = {one.id: one for one in todo if one.kind == "finetune"}
    cells = {one.id: one for one in todo if one.kind == "predictions"}
    works: Mapping[str, Work] = {
        FINETUNE: partial(standin.slot, finetunes=finetunes, store=store, step_s=step_s, steps=steps),
        EVALUATE: partial(answer, store=store, base=base, runtime=runtime, cells=cells),
    }
    place = Place(Shape(workers=1, cpus=1.0, gpus=0.0), threads=1)
    openings = [
        Opening(Lane(name, work, place.needs, start_s=3.0), Seat("", name), place, place.needs)
        for name, work in works.items()
    ]
    return Lanes(openings)


def answer(source: Source, seat: Seat, **given: Any) -> None:
    """Do what an engine's seat does, with small chunks."""
    with mock.patch.object(chunks, "CHUNK_ROWS", standin.CHUNK_ROWS):
        engine(source, seat, **given)


def main() -> None:
    """Make the sweep in the store that is named; the exit status is that of ``kvray run``."""
    plan, base = driver.prepare(standin.sweep(**RUNTIME))
    with (
        mock.patch.object(driver, "open_lanes", open_lanes),
        mock.patch.object(chunks, "CHUNK_ROWS", standin.CHUNK_ROWS),
    ):
        result = driver.run(plan, base, Store(sys.argv[1]))
    print(result.outcome(), result.failures())
    raise SystemExit(bool(result.failed))


if __name__ == "__main__":
    main()
