"""From artefacts to stages: what each takes of the clock and of GPUs or CPUs, engines' starts included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvray.planning.artefacts import KINDS, Artefact, Kind, PredictionsJob, WritingJob
from kvray.planning.cost.rates import START_OF_RAY, Rates, Where, Work, at_once

_UNITS: dict[Where, str] = {"cpu": "CPU-hours", "gpu": "GPU-hours"}


def stages(todo: Sequence[Item], rates: Rates) -> tuple[Stage, ...]:
    """Return what is to be made, in all, by kind and by what it runs on."""
    groups: dict[tuple[Kind, Where], list[Item]] = {}
    for item in todo:
        groups.setdefault((item.artefact.kind, item.on), []).append(item)
    return tuple(_stage(groups[key], rates) for key in sorted(groups, key=lambda key: (KINDS.index(key[0]), key[1])))


def wall(found: Sequence[Stage]) -> float:
    """Return the seconds of a whole run by the clock, what is unknown left out: its stages come one after another."""
    return sum(stage.seconds for stage in found) + START_OF_RAY * any(stage.on != "api" for stage in found)


def hours(found: Sequence[Stage], on: Where) -> float:
    """Return the GPU-hours or CPU-hours of a whole run."""
    return sum(stage.hours for stage in found if stage.on == on)


def hours_text(number: float, on: Where) -> str:
    """Return device-hours as people say them: ``0.42 GPU-hours``."""
    digits = 0 if number >= 10 else 2 if number >= 0.1 else 3
    return f"{number:,.{digits}f} {_UNITS[on]}"


def _stage(items: Sequence[Item], rates: Rates) -> Stage:
    """Return what artefacts of one kind, on one kind of machine, take in all; with the starts of their engines."""
    kind = items[0].artefact.kind
    on, number = items[0].on, items[0].devices
    runtime = rates.runtime
    known = [item.seconds for item in items if item.seconds is not None]
    slots = at_once(kind, on, runtime)
    if kind != "dataset":
        slots = min(slots, len(known))
    wall = sum(known) / max(1, slots)
    if kind == "finetune":
        wall = max(wall, max(known, default=0.0))
    busy = sum(known)
    if kind in ("writing", "predictions"):
        engines = len({_engine(item.artefact) for item in items})
        starts = rates.start("engine", items[0].artefact)
        wall += starts * -(-engines // runtime.engines)
        busy += starts * engines
    return Stage(
        kind=kind,
        artefacts=len(items),
        unknown=len(items) - len(known),
        reads=sum(item.tokens for item in items),
        writes=sum(item.work.writes for item in items),
        seconds=wall,
        hours=busy * number / 3600,
        on=on,
    )


def _engine(artefact: Artefact) -> str:
    """Return which engine answers: full finetunes have one each, the base and all adapters share one."""
    job = artefact.params
    if isinstance(job, WritingJob):
        return job.writer
    if not isinstance(job, PredictionsJob):
        raise TypeError(f"{artefact.id} needs no engine")
    alone = job.finetune is not None and job.finetune.method != "lora"
    return f"{job.finetune_id if alone else 'shared'} {job.task.BRINGS_EXAMPLES}"


@dataclass(frozen=True)
class Item:
    """One artefact of the enumeration.

    Attributes:
        work: what, and what it reads and writes.
        state: "cached" or "to run".
        why: new, damaged (which problem) or failed before (the reason); empty when cached.
        seconds: of making it alone; 0 when cached, None if unknown.
        on: cpu, gpu or api.
        devices: CPUs or GPUs that it holds.
    """

    work: Work
    state: str
    why: str
    seconds: float | None
    on: Where
    devices: float

    @property
    def artefact(self) -> Artefact:
        """What is made."""
        return self.work.artefact

    @property
    def tokens(self) -> int:
        """Tokens that making it reads, about; 0 if unknown."""
        return self.work.reads


@dataclass(frozen=True)
class Stage:
    """What a stage takes in all.

    Attributes:
        kind: of its artefacts.
        artefacts: to run.
        unknown: how many of these have no known size; the figures are without them.
        reads: tokens of prompts, or of training over all epochs.
        writes: tokens of replies.
        seconds: by the clock, what fits side by side.
        hours: GPU-hours or CPU-hours: seconds times the GPUs or CPUs that are held.
        on: cpu, gpu or api.
    """

    kind: Kind
    artefacts: int
    unknown: int
    reads: int
    writes: int
    seconds: float
    hours: float
    on: Where
