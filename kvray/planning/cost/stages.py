"""From artefacts to stages: what each takes of the clock and of GPUs or CPUs, engines' starts included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvray.planning.artefacts import KINDS, Artefact, Kind, PredictionsJob, WritingJob
from kvray.planning.cost.rates import Rates, Where

START_OF_RAY = 8.0


@dataclass(frozen=True)
class Item:
    """One artefact of the enumeration."""

    artefact: Artefact
    reads: int  # tokens of prompts, or of training over all epochs, about; 0 if unknown
    writes: int  # tokens of replies
    rows: int  # prompts or rows, over all epochs
    cached: bool  # whether it is committed
    why: str  # new, damaged (which problem) or failed before (the reason); empty when cached
    seconds: float | None  # of making it alone; 0 when cached, None if unknown
    on: Where
    devices: float  # CPUs or GPUs that it holds

    @property
    def state(self) -> str:
        """The state in words."""
        return "cached" if self.cached else "to run"


@dataclass(frozen=True)
class Stage:
    """What artefacts of one kind, on one kind of machine, take in all, those of unknown size left out."""

    kind: Kind
    on: Where
    items: tuple[Item, ...]
    seconds: float  # by the clock, what fits side by side
    hours: float  # GPU-hours or CPU-hours: seconds times the GPUs or CPUs that are held

    @property
    def unknown(self) -> int:
        """How many artefacts have no known size."""
        return sum(item.seconds is None for item in self.items)


def stages(todo: Sequence[Item], rates: Rates) -> tuple[Stage, ...]:
    """Return what is to be made, by kind and by what it runs on, in the order of the kinds."""
    groups: dict[tuple[Kind, Where], list[Item]] = {}
    for item in todo:
        groups.setdefault((item.artefact.kind, item.on), []).append(item)
    return tuple(
        _stage(*key, groups[key], rates) for key in sorted(groups, key=lambda key: (KINDS.index(key[0]), key[1]))
    )


def wall(found: Sequence[Stage]) -> float:
    """Return the seconds of a whole run by the clock, what is unknown left out: its stages come one after another."""
    return sum(stage.seconds for stage in found) + START_OF_RAY * any(stage.on != "api" for stage in found)


def hours(found: Sequence[Stage], on: Where) -> float:
    """Return the GPU-hours or CPU-hours of a whole run."""
    return sum(stage.hours for stage in found if stage.on == on)


def _stage(kind: Kind, on: Where, items: Sequence[Item], rates: Rates) -> Stage:
    known = [item.seconds for item in items if item.seconds is not None]
    slots = rates.at_once(kind, on)
    busy = sum(known)
    clock = busy / max(1, slots if kind == "dataset" else min(slots, len(known)))
    if kind == "finetune":
        clock = max([clock, *known])
    if kind in ("writing", "predictions"):
        engines, starts = len({_engine(item.artefact) for item in items}), rates.start("engine", on)
        clock += starts * -(-engines // rates.runtime.engines)
        busy += starts * engines
    return Stage(kind, on, tuple(items), clock, busy * items[0].devices / 3600)


def _engine(artefact: Artefact) -> str:
    """Return which engine answers: full finetunes have one each, the base and all adapters share one."""
    job = artefact.params
    if isinstance(job, WritingJob):
        return job.writer
    assert isinstance(job, PredictionsJob)
    alone = job.finetune is not None and job.finetune.method != "lora"
    return f"{job.finetune_id if alone else 'shared'} {job.task.BRINGS_EXAMPLES}"
