"""What deaths cost: small sweeps die in every way that we know, are run again, and are compared row by row.

    python benchmarks/chaos.py --kills 200 --seed 1          the table, about 20 minutes on two cores
    python benchmarks/chaos.py --kills 1200 --seed 1 --pace 10

The reference is an undisturbed run of the same sweep. Four fifths of the deaths are of a stand-in sweep in one process:
the real driver, stages, store and resume, killed before, in and after the steps that change the store (with 3,000
deaths every one of them), at any instant, on a full disk, with a stepped clock, beside a second driver, on a disk and
in a bucket of a real S3 server, through a proxy that fails a third of all requests and is cut off. Others are of
stand-in seats on a Ray of several nodes, where the driver, its actors, seats and nodes die and seats hang; the last of
a real sweep there: Ray Train, vLLM, kvray-tiny.

Afterwards are counted: rows lost, doubled and stale (other contents than the undisturbed run's), artefacts unreadable
at any time, artefacts given up, and made twice. All are to be zero. ``--pace`` adds a longer stand-in sweep on Ray with
one death a minute, and prints its seconds beside the undisturbed ones. The exit status is 1 if anything is not zero.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks.deaths import clusters, s3, standin
from benchmarks.deaths.alone import Alone, Case, sample
from benchmarks.deaths.counts import Counts
from kvray.console import say, table
from kvray.driver.run import prepare

SHARES = {"boundary disk": 0.45, "boundary bucket": 0.15, "instant": 0.08, "clock": 0.04, "full": 0.03}
SHARES |= {"two": 0.04, "connection": 0.03}
"""Of all deaths; the rest is on Ray."""
ON_RAY, REAL = 0.15, 0.05
STORY = 8
"""Deaths of one sweep on Ray, at most."""
PACED_STEP_S = 5.0
"""Seconds of a step where deaths come once a minute; every second one stores a checkpoint."""
SEATS = ("driver", "seat", "hung seat", "dispatcher", "generator", "hung generator", "node")
REAL_SEATS = ("driver", "seat", "hung seat", "train worker", "train controller", "node")
REAL_SWEEP = """
name: chaos
base_model: kvray-tiny
datasets:
  kv: {task: simple_kv, rows: 96, dictionaries: 4}
  more: {task: multidoc_qa, rows: 96, documents: 2}
finetune: {method: lora, epochs: 2, learning_rate: 1e-3, batch_size: 8, lora_rank: 8, lora_alpha: 16, match: rows}
evaluate:
  mdqa: {task: mdqa, documents: 3, positions: [1, 3], questions: 100}
  recall: {task: recall, questions: 40}
runtime: {checkpoint_every_steps: 2, retries: 20, stall_minutes: 1, start_minutes: 5}
"""


def alone(kills: int, bucket: s3.Server | None, folder: Path, rng: random.Random) -> Iterator[Case]:
    """Run the cases of one process."""
    runs = Alone(folder, bucket, rng)
    counts = {name: max(1, round(kills * share)) for name, share in SHARES.items()}
    for place, steps in runs.sweep.steps.items():
        say(f"chaos: an undisturbed run changes a {place} in {len(steps)} steps")
    for at, moment in sample(runs.boundaries("disk"), counts["boundary disk"], rng):
        yield runs.boundary("disk", at, moment)
    if bucket:
        for at, moment in sample(runs.boundaries("bucket"), counts["boundary bucket"], rng):
            yield runs.boundary("bucket", at, moment)
    places = ["disk", *(["bucket"] if bucket else [])]
    for number in range(counts["instant"]):
        yield runs.instant(places[number % len(places)])
    for number in range(counts["clock"]):
        yield runs.clock(places[number % len(places)])
    for number in range(counts["two"]):
        yield runs.two(places[number // 2 % len(places)], dies=number % 2 == 1)
    for number in range(counts["full"] if can_mount(folder) else 0):
        yield runs.full(waits=number % 2 == 0)
    for _ in range(counts["connection"] if bucket else 0):
        yield runs.connection()


def on_ray(kills: int, real: int, pace: float, folder: Path, rng: random.Random) -> Iterator[Case]:
    """Run the cases on several nodes, then the real ones, then the paced one."""
    plan = [(None, SEATS, kills)]
    if real:
        plan.append((folder / "chaos.yaml", REAL_SEATS, real))
    with clusters.machines(rng) as machines:
        for sweep, kinds, deaths in plan:
            planned = prepare(standin.sweep() if sweep is None else str(sweep))[0]
            ids = [artefact.id for artefact in planned.artefacts]
            expected, seconds = clusters.undisturbed(machines, folder, ids, sweep)
            say(f"chaos: undisturbed on Ray: {seconds:.0f} s")
            left = deaths
            while left > 0:
                told = clusters.story(machines, folder, expected, sweep, min(left, STORY), kinds)
                left -= max(1, len(told.deaths))
                yield _case(told, "on Ray, real" if sweep else "on Ray")
        if pace:
            yield _paced(machines, folder, pace)


def _paced(machines: clusters.Machines, folder: Path, minutes: float) -> Case:
    planned = prepare(standin.sweep())[0]
    ids, pace = [artefact.id for artefact in planned.artefacts], (PACED_STEP_S, round(minutes * 60 / PACED_STEP_S))
    expected, seconds = clusters.undisturbed(machines, folder, ids, None, pace)
    deaths = round(minutes * 2)
    told = clusters.story(machines, folder, expected, None, deaths, SEATS, (60.0, 60.0), pace)
    print(
        f"one death a minute: {told.seconds:.0f} s with {len(told.deaths)} deaths ({', '.join(told.deaths)}), "
        f"undisturbed {seconds:.0f} s: {told.seconds / seconds:.2f} times"
    )
    return _case(told, "one death a minute")


def _case(told: clusters.Story, kind: str) -> Case:
    return Case(kind, "disk", ", ".join(told.deaths), len(told.deaths), told.counts, told.error)


def can_mount(folder: Path) -> bool:
    """Return whether this process may mount a small file system of its own."""
    place = Path(tempfile.mkdtemp(dir=folder))
    done = subprocess.run(["mount", "-t", "tmpfs", "kvray-chaos", str(place)], check=False, capture_output=True)
    if done.returncode == 0:
        subprocess.run(["umount", str(place)], check=True)
    else:
        say("chaos: no full disks: mounting a file system needs root")
    return done.returncode == 0


def summary(cases: Sequence[Case]) -> str:
    """Return the table: a line per kind and place, and their sums."""
    kinds = list(dict.fromkeys((case.kind, case.place) for case in cases))
    names = [each.name for each in fields(Counts)]
    lines = []
    for kind, place in [*kinds, ("all", "")]:
        these = [case for case in cases if (case.kind, case.place) == (kind, place) or kind == "all"]
        total = sum((case.counts for case in these), Counts())
        errors = sum(bool(case.error) for case in these)
        lines.append([kind, place, len(these), sum(case.deaths for case in these), *asdict(total).values(), errors])
    return table(["what died", "store", "sweeps", "deaths", *names, "ended badly"], lines)


def chaos(
    kills: int, seed: int, pace: float = 0.0, ray: bool = True, bucket: bool = True, processes: bool = True
) -> Iterator[Case]:
    """Run everything, a case after another; ``processes`` are the cases of one process, the rest is on Ray."""
    rng = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="kvray-chaos-"))
    try:
        with s3.running(folder, seed) if bucket else contextlib.nullcontext() as server:
            if ray:
                (folder / "chaos.yaml").write_text(REAL_SWEEP)
                prepare(str(folder / "chaos.yaml"))  # a mistake shows now, not after an hour
            if processes:
                yield from alone(kills, server, folder, rng)
            if ray:
                yield from on_ray(max(1, round(kills * ON_RAY)), round(kills * REAL), pace, folder, rng)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def note(cases: list[Case], case: Case) -> None:
    """Append a case; say what went wrong in it, and the table so far where a new kind begins."""
    if cases and case.kind not in {each.kind for each in cases}:
        say(f"chaos: so far\n{summary(cases)}")
    cases.append(case)
    if case.counts or case.error:
        say(f"chaos: {case}")
    elif len(cases) % 20 == 0:
        say(f"chaos: {len(cases)} sweeps, {sum(each.deaths for each in cases)} deaths")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="deaths in all, about")
    parser.add_argument("--seed", type=int, default=0, help="of what dies when")
    parser.add_argument("--pace", type=float, default=0.0, metavar="MINUTES", help="add a sweep with a death a minute")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--no-ray", action="store_true", help="only the cases of one process")
    only.add_argument("--ray", action="store_true", help="only the cases on Ray")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    cases: list[Case] = []
    try:
        for case in chaos(asked.kills, asked.seed, asked.pace, not asked.no_ray, processes=not asked.ray):
            note(cases, case)
    finally:  # one that is stopped after an hour tells what it saw
        print(summary(cases))
        print(f"seed {asked.seed}, {time.monotonic() - began:.0f} s")
    raise SystemExit(any(case.counts or case.error for case in cases))


if __name__ == "__main__":
    main()
