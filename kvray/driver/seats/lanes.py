"""Which lane makes an artefact, what its seats do and hold, and the units that a cell is cut into."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kvray.driver.seats.cluster import Cluster
from kvray.driver.seats.demand import Room
from kvray.driver.seats.dispatcher import Opening
from kvray.driver.seats.placement import Capacity, Place, place_engines, place_finetunes, room
from kvray.driver.seats.threads import tune
from kvray.errors import InputError
from kvray.evaluate.chunks import chunk_count, chunk_name, span
from kvray.evaluate.served import model_of
from kvray.finetune.placement import Shape
from kvray.models.reference import API, BaseModelRef, resolve
from kvray.planning.artefacts import Artefact, PredictionsJob, WritingJob
from kvray.planning.cost.rates import STARTS
from kvray.planning.work import EVALUATE, FINETUNE, WRITE, Lane, Seat, Unit, Work
from kvray.store.store import Store
from kvray.sweep.model import Runtime

UNIT_S = 30.0
"""Estimated seconds of work of one unit of a cell, at least one chunk: what is shared out, and what a death repeats."""
CONTROLLER_BYTES = 400 * 2**20
"""Memory that a slot holds beside its workers: Ray Train's controller (240 MiB), its cleaner (112 MiB), and ours."""
GENERATION = Shape(workers=1, cpus=1.0, gpus=0.0)
"""What the making of datasets needs at least."""


def lane_of(artefact: Artefact) -> str:
    """Return the lane that makes an artefact, which is no dataset."""
    if isinstance(artefact.params, WritingJob):
        return f"{WRITE}:{artefact.params.writer}"
    return FINETUNE if artefact.kind == "finetune" else EVALUATE


def units(artefact: Artefact, seconds: float, stored: Collection[str]) -> list[Unit]:
    """Return the units of an artefact that is estimated to take ``seconds`` and has these files ``stored``.

    A cell whose examples another library brings is one unit, as only an engine can count them.
    """
    if artefact.kind == "finetune":
        return [Unit(0, artefact.id, None, None, 1, seconds)]
    model = model_of(artefact)
    job = artefact.params
    if isinstance(job, PredictionsJob) and job.dataset_id is None:
        return [Unit(0, artefact.id, model, None, artefact.rows, seconds)]
    count = chunk_count(artefact.rows)
    absent = [number for number in range(count) if chunk_name(number) not in stored]
    if not absent:
        return [Unit(0, artefact.id, model, (), 0, 0.0)]
    size = max(1, round(UNIT_S / (seconds / count))) if seconds > 0 else count
    return [_unit(artefact, model, absent[start : start + size], seconds) for start in range(0, len(absent), size)]


def _unit(artefact: Artefact, model: str | None, chunks: Sequence[int], seconds: float) -> Unit:
    rows = sum(len(span(number, artefact.rows)) for number in chunks)
    return Unit(0, artefact.id, model, tuple(chunks), rows, seconds * rows / max(1, artefact.rows))


@dataclass(frozen=True)
class Lanes:
    """What makes the artefacts of a run that are no datasets.

    ``openings`` are lanes with seats on the cluster, ``threads`` those of APIs; ``refused`` says, by lane, why nothing
    of it can be made.
    """

    openings: Sequence[Opening] = ()
    threads: Sequence[Lane] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


def open_lanes(todo: Sequence[Artefact], store: Store, base: BaseModelRef, runtime: Runtime, cluster: Cluster) -> Lanes:
    """Return the lanes of a run's artefacts.

    Raises ResourceError if a seat can never be placed, or only on CPUs that the sweep did not ask for; InputError if
    the workers of a finetune cannot share a GPU.
    """
    from kvray.evaluate.job import engine
    from kvray.finetune.job import slot

    by_lane: dict[str, dict[str, Artefact]] = {}
    for artefact in todo:
        if artefact.kind != "dataset":
            by_lane.setdefault(lane_of(artefact), {})[artefact.id] = artefact
    openings, threads, refused = [], [], {}
    for lane, artefacts in by_lane.items():
        common: dict[str, Any] = {"store": store, "runtime": runtime}
        model = base
        if lane == FINETUNE:
            train = tune if base.api else partial(slot, alone=cluster.local)
            work = partial(train, base=base, finetunes=artefacts, **common)
        elif lane == EVALUATE:
            work = partial(engine, base=base, cells=artefacts, **common)
        else:
            name = lane.removeprefix(f"{WRITE}:")
            try:
                # Its own tokenizer counts nothing here, so that of a writer behind an API need not be looked for.
                model = resolve(name, (base.tokenizer or base).name if name.startswith(API) else None)
            except InputError as error:
                refused[lane] = str(error)
                continue
            work = partial(engine, base=model, cells=artefacts, counted_by=base, **common)
        if model.api:
            threads.append(Lane(lane, work, {}, most=1, start_s=0.0))
        else:
            openings.append(_opening(lane, work, model, runtime, cluster))
    return Lanes(openings, threads, refused)


def _opening(lane: str, work: Work, base: BaseModelRef, runtime: Runtime, cluster: Cluster) -> Opening:
    capacity, trains = cluster.capacity(), lane == FINETUNE
    if trains:
        place = place_finetunes(runtime, capacity, base)
    else:
        place = place_engines(runtime, capacity, base, cluster.local)
    shape = place.shape
    start_s = STARTS["gpu" if shape.gpus else "cpu"]["finetune" if trains else "engine"]
    seat = Seat("", lane, shape.cpus, shape.gpus, place.threads, shape.workers)
    # Ray Train places the workers of a slot; the trial that starts them needs memory alone.
    bundle = {"memory": float(CONTROLLER_BYTES)} if trains else place.needs
    return Opening(Lane(lane, work, place.needs, place.most, start_s), seat, place, bundle)


class Space:
    """Says how many seats may exist; picklable, for the dispatcher's process."""

    def __init__(self, runtime: Runtime, places: Mapping[str, Place]) -> None:
        self._runtime = runtime
        self._shapes = {"generate": GENERATION} | {lane: place.shape for lane, place in places.items()}

    def __call__(self, capacity: Capacity, generating: bool) -> Room:
        """Return the room for seats on a cluster, of which the making of datasets takes some."""
        free = room(capacity, self._runtime, self._shapes)
        return lambda counts: free({**counts, "generate": int(generating)})
