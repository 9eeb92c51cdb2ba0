"""An estimate in plain values and as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvray.console import count, duration, table
from kvray.planning.artefacts import KINDS, FinetuneJob
from kvray.planning.cost.rates import Where
from kvray.planning.cost.stages import Item, Stage, hours, wall
from kvray.planning.state import STAGE_NAMES

if TYPE_CHECKING:
    from kvray.planning.cost.estimate import Estimate

_DETECTABLE = (
    "smallest difference from the base model that an evaluation finds (80 % power, 5 % level after Holm's correction\n"
    "for {comparisons} comparisons, if answers differ on a fifth of the questions):"
)
_MARKS = {"rows": "", "sample": "~", "estimate": "?"}
_MEANINGS = {
    "~": "~ by the mean of a sample of rows, about 1 % off",
    "?": "? a rough estimate: without the base model's tokenizer, or of rows that a model writes or a benchmark brings",
}
_TITLES = dict(zip(KINDS, ("writings", "datasets", "finetunes", "cells (predictions)"), strict=True))


def document(found: Estimate) -> dict[str, Any]:
    """Return an estimate in plain values, for ``kvray plan --json``."""
    todo = [item for item in found.items if not item.cached]
    return {
        "sweep": found.planned.sweep.name,
        "base_model": found.planned.base_model,
        "cells": [
            {key: item.artefact.labels[key] for key in ("evaluation", "mixture", "finetune", "seed")}
            | {"state": item.state, "id": item.artefact.id, "why": item.why}
            | {"tokens": item.reads, "rows": item.artefact.rows}
            for item in found.items
            if item.artefact.kind == "predictions"
        ],
        "artefacts": [
            {"id": item.artefact.id, "kind": item.artefact.kind, "state": item.state, "why": item.why}
            | {"rows": item.artefact.rows, "tokens": item.reads, "seconds": _rounded(item.seconds)}
            | {"counted": item.artefact.counted}
            for item in found.items
        ],
        "detectable_difference": dict(found.detectable),
        "totals": {
            "to_run": len(todo),
            "cached": len(found.items) - len(todo),
            "tokens": sum(item.reads for item in todo),
            "seconds": _rounded(found.seconds),
            "seconds_basis": dict(found.bases),
            "gpu_hours": round(hours(found.stages, "gpu"), 3),
            "cpu_hours": round(hours(found.stages, "cpu"), 3),
            "api": {"tokens": found.bill.tokens, "usd": _rounded(found.bill.usd, 4)},
        },
        "stages": [
            {"stage": STAGE_NAMES[stage.kind], "artefacts": len(stage.items)}
            | {"tokens": sum(item.reads for item in stage.items)}
            | {"tokens_written": sum(item.writes for item in stage.items), "seconds": round(stage.seconds, 1)}
            | {"on": stage.on, "hours": round(stage.hours, 3), "unknown": stage.unknown}
            for stage in found.stages
        ],
        "notes": list(found.planned.notes),
        "warnings": list(found.warnings),
    }


def text(found: Estimate) -> str:
    """Return an estimate as tables for a terminal."""
    lines = [f"sweep {found.planned.sweep.name}, base model {found.planned.base_model}"]
    lines += [f"not known here: {note}" for note in found.planned.notes]
    for kind in KINDS:
        items = [item for item in found.items if item.artefact.kind == kind]
        if items:
            lines += ["", f"{_TITLES[kind]}: {len(items)}", _artefacts(kind, items)]
    if found.detectable:
        cells = [(name, each["questions"], each["points"]) for name, each in found.detectable.items()]
        lines += ["", _DETECTABLE.format(comparisons=found.comparisons)]
        lines.append(table(["evaluation", "questions", "points"], cells))
    used = {_mark(item) for item in found.items if item.reads}
    lines += ["", *(meaning for mark, meaning in _MEANINGS.items() if mark in used)]
    todo = sum(not item.cached for item in found.items)
    if not todo:
        return "\n".join([*lines, f"nothing to do: all {len(found.items)} artefacts are committed"])
    lines += [f"{todo} to run, {len(found.items) - todo} cached", _totals(found.stages)]
    lines += [f"  {kind}: {basis}" for kind, basis in found.bases.items()]
    lines += [f"  API: {found.bill.text()}"] if found.bill.text() else []
    return "\n".join([*lines, *(f"warning: {warning}" for warning in found.warnings)])


def _artefacts(kind: str, items: Sequence[Item]) -> str:
    """Return the table of the artefacts of one kind."""
    names = ["dataset", "role"] if kind in ("dataset", "writing") else list(items[0].artefact.labels)
    return table(
        [*names, "state", "rows", "tokens", "time", "why"],
        [
            [
                *(item.artefact.labels[name] for name in names),
                item.state,
                f"{_mark(item) if _depends_on_lengths(item) else ''}{item.artefact.rows}",
                f"{_mark(item)}{count(item.reads)}" if item.reads else None,
                None if item.seconds is None or item.cached else duration(item.seconds),
                _reason(item),
            ]
            for item in items
        ],
    )


def _totals(stages: Sequence[Stage]) -> str:
    """Return the table of stages, with a line for all of them."""
    rows = []
    for stage in stages:
        on = None if stage.on == "api" else _hours_text(stage.hours, stage.on)
        unknown = f" and {stage.unknown} unknown" if stage.unknown else ""
        rows.append([STAGE_NAMES[stage.kind], *_sums(stage.items), on, f"{duration(stage.seconds)}{unknown}"])
    every = [_hours_text(spent, on) for on in ("gpu", "cpu") if (spent := hours(stages, on))]
    missing = sum(stage.unknown for stage in stages)
    time = f"about {duration(wall(stages))}" + (f", without {missing} of unknown size" if missing else "")
    total = ["all", *_sums([item for stage in stages for item in stage.items]), ", ".join(every) or None, time]
    return table(["stage", "to run", "tokens", "written", "device time", "time"], [*rows, total])


def _sums(items: Sequence[Item]) -> list[object]:
    writes = sum(item.writes for item in items)
    return [len(items), count(sum(item.reads for item in items)), count(writes) if writes else None]


def _hours_text(number: float, on: Where) -> str:
    digits = 0 if number >= 10 else 2 if number >= 0.1 else 3
    return f"{number:,.{digits}f} {on.upper()}-hours"


def _depends_on_lengths(item: Item) -> bool:
    """Return whether how many rows an artefact reads depends on their lengths."""
    job = item.artefact.params
    return isinstance(job, FinetuneJob) and (bool(job.budget) or len(job.mixture) > 1)


def _mark(item: Item) -> str:
    """Return the mark of a number that is not counted: the rows of what is made are known once it is."""
    return "" if item.cached else _MARKS[item.artefact.counted]


def _reason(item: Item) -> str:
    if item.why == "new" and isinstance(item.artefact.params, FinetuneJob):
        return f"new ({item.artefact.params.finetune.epochs:g} epochs)"
    return item.why if len(item.why) <= 90 else item.why[:89] + "…"


def _rounded(number: float | None, digits: int = 1) -> float | None:
    return None if number is None else round(number, digits)
