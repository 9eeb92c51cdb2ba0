"""How long the driver's schedule of a sweep takes beside the least that any schedule could.

The real driver, dispatcher, Ray Tune and placement run a sweep of 6 mixtures x 5 seeds x 3 evaluations on Ray's fake
autoscaling cluster, which begins with no GPU node. Seats do stand-in work: they hold a fake GPU and sleep for as long
as a finetune or a unit of evaluation is said to take. No schedule can be shorter than the larger of

- the critical path: a finetune, and after it the largest unit of an evaluation that needs it;
- all work divided by the number of GPUs.

Starts (of nodes, processes, models) are in what is measured and not in that bound. As all finetunes take equally long
here, nothing of an adapter can be asked before the first has ended; the last column is the bound that knows this.

    python benchmarks/scheduling.py                   8 and 64 GPUs
    python benchmarks/scheduling.py --gpus 8 --finetune 40 --evaluation 15
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from kvray.console import table
from kvray.driver import run as driver
from kvray.driver.generation import Generation
from kvray.driver.make import Making
from kvray.driver.seats.cluster import Cluster
from kvray.driver.seats.dispatcher import Opening
from kvray.driver.seats.lanes import UNIT_S, Lanes
from kvray.driver.seats.placement import Place
from kvray.driver.sharing import Sharing
from kvray.finetune.placement import Shape
from kvray.planning.artefacts import Artefact
from kvray.planning.work import EVALUATE, FINETUNE, Lane, Nothing, Seat, Source
from kvray.store.leases import Leases
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Runtime, Sweep
from tests.fake_cluster import autoscaling

SETTINGS = {8: (60.0, 20.0), 64: (240.0, 20.0)}
"""By GPUs: seconds of one finetune, and of one evaluation of one model."""
START_S = {FINETUNE: 5.0, EVALUATE: 8.0}
"""What a seat's model takes to load, beside the start of its process."""
PER_NODE = 8


def stand_in(source: Source, seat: Seat) -> None:
    """Do a seat's work by sleeping through it."""
    began = time.monotonic()
    time.sleep(START_S[seat.lane])
    source.started(time.monotonic() - began)
    while (unit := source.take()) is not Nothing.END:
        if unit is Nothing.LATER:
            continue
        time.sleep(unit.seconds)
        if seat.lane == FINETUNE or source.finish(unit) is not None:
            source.committed(unit)


def sweep() -> Sweep:
    """Return a sweep of 30 finetunes and 93 cells; only its graph matters."""
    data = {f"data{number}": {"task": "simple_kv", "rows": 40, "dictionaries": number} for number in range(3, 9)}
    return Sweep(
        name="scheduling",
        base_model="kvray-tiny",
        datasets=data,
        finetune={"seeds": [0, 1, 2, 3, 4], "match": "rows"},
        evaluate={
            f"mdqa{number}": {"task": "mdqa", "documents": number, "positions": [1], "questions": 2560}
            for number in (3, 4, 5)
        },
    )


def lane(name: str) -> Opening:
    shape = Shape(workers=1, cpus=0.1, gpus=1.0)
    place = Place(shape, threads=1)
    start_s = START_S[name] + 3.0
    return Opening(Lane(name, stand_in, place.needs, start_s=start_s), Seat("", name, 0.1, 1.0), place, place.needs)


def makespan(todo: Sequence[Artefact], seconds: dict[str, float], gpus: int, store: Store) -> float:
    """Return the seconds of a run on a cluster that begins with no GPU node."""
    import ray

    ended: list[Outcome] = []
    node = {"CPU": 2, "GPU": min(gpus, PER_NODE)}
    with autoscaling({"gpu": (node, -(-gpus // PER_NODE))}) as fake, pytest.MonkeyPatch.context() as patch:
        for name, value in fake.environment().items():
            patch.setenv(name, value)
        ray.init(address=fake.address, log_to_driver=False, logging_level="ERROR")
        try:
            started = time.monotonic()
            runtime = Runtime(max_gpus=gpus)
            cluster = Cluster(local=False)
            lanes = Lanes([lane(FINETUNE), lane(EVALUATE)])
            generation = Generation(store, driver.prepare(sweep())[1], runtime)
            with Leases(store, "scheduling") as leases:
                sharing = Sharing(store, leases, store.listing([artefact.id for artefact in todo]))
                Making(todo, sharing, seconds, lanes, generation, runtime, cluster, store).run(ended.append, wait=False)
            took = time.monotonic() - started
        finally:
            ray.shutdown()
    failed = [outcome for outcome in ended if outcome.error]
    if failed or len(ended) != len(todo):
        raise SystemExit(f"{len(failed)} of {len(todo)} failed: {failed[:3]}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="*", default=sorted(SETTINGS))
    parser.add_argument("--finetune", type=float, help="seconds of one finetune")
    parser.add_argument("--evaluation", type=float, help="seconds of one evaluation of one model")
    asked = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    planned, _ = driver.prepare(sweep())
    todo = [artefact for artefact in planned.artefacts if artefact.kind != "dataset"]
    finetunes = sum(artefact.kind == "finetune" for artefact in todo)
    cells = len(todo) - finetunes
    rows = []
    place = tempfile.mkdtemp(prefix="kvray-scheduling-")  # nothing is written there
    for gpus in asked.gpus:
        finetune, evaluation = SETTINGS.get(gpus, SETTINGS[8])
        finetune, evaluation = asked.finetune or finetune, asked.evaluation or evaluation
        seconds = {one.id: finetune if one.kind == "finetune" else evaluation for one in todo}
        work = sum(seconds.values())
        path = finetune + min(evaluation, max(UNIT_S, evaluation / 10))  # ten chunks a cell
        bound = max(path, work / gpus)
        later = (cells - 3) * evaluation  # what needs a finetune
        knowing = max(bound, finetune + later / gpus)
        took = makespan(todo, seconds, gpus, Store(place))
        times = [f"{value:.0f}" for value in (finetune, evaluation, path, work / gpus, took)]
        rows.append([gpus, *times, f"{took / bound:.2f}", f"{took / knowing:.2f}"])
    header = ["GPUs", "finetune s", "cell s", "critical path s", "work / GPUs s", "took s", "ratio", "to the bound"]
    print(f"{finetunes} finetunes, {cells} cells; ratio: took / max(critical path, work / GPUs)")
    print(table(header, rows))


if __name__ == "__main__":
    main()
