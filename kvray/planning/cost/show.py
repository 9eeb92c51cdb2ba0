"""An estimate as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvray.console import count, duration, table
from kvray.planning.artefacts import KINDS, FinetuneJob
from kvray.planning.cost import budget
from kvray.planning.cost.power import MOST_SEEDS

if TYPE_CHECKING:
    from kvray.planning.cost.estimate import Estimate, Item

_DETECTABLE = (
    "smallest difference from the base model that an evaluation finds (80 % power, 5 % level after Holm's correction\n"
    "for {comparisons}, if answers differ on a fifth of the questions and seeds by the spread, in points);\n"
    "seeds for 5 and for 2 points: how many find these, none where {most} do not and more questions are wanted:"
)
_ONE_SEED = (
    "one seed: these points are of the finetune that it trains. No verdict about mixtures can come of it, whatever\n"
    "the questions; finetune.seeds: [0, 1, 2, 3, 4] makes them possible"
)
_MARKS = {"rows": "", "sample": "~", "estimate": "?"}
_MEANINGS = {
    "~": "~ by the mean of a sample of rows, about 1 % off",
    "?": "? a rough estimate: without the base model's tokenizer, or of rows that a model writes or a benchmark brings",
}
_TITLES = dict(zip(KINDS, ("writings", "datasets", "finetunes", "cells (predictions)"), strict=True))


def text(estimate: Estimate) -> str:
    """Return an estimate as tables for a terminal: artefacts by kind, smallest differences, stages, warnings."""
    lines = [f"sweep {estimate.planned.sweep.name}, base model {estimate.planned.base_model}"]
    lines += [f"not known here: {note}" for note in estimate.planned.notes]
    if sizes := estimate.planned.sizes:
        raised = ", ".join(f"{name} {rows:,}" for name, rows in sizes.items())
        lines.append(f"rows left out, now as many as match the first mixture by tokens: {raised}")
    for title, header, rows in tables(estimate):
        lines += ["", title, table(header, rows)]
    if detectable := estimate.document["detectable_difference"]:
        cells = [_smallest(name, each) for name, each in detectable.items()]
        comparisons = f"{estimate.comparisons} comparison{'s' if estimate.comparisons > 1 else ''}"
        lines += ["", _DETECTABLE.format(comparisons=comparisons, most=MOST_SEEDS)]
        wanted = [f"seeds for {points}" for points in next(iter(detectable.values()))["seeds_for"]]
        lines.append(table(["evaluation", "questions", "seeds", "points", "spread", *wanted], cells))
        lines += [_ONE_SEED] if any(each["seeds"] == 1 for each in detectable.values()) else []
    lines += ["", *marks(estimate)]
    totals, api = estimate.document["totals"], _api(estimate)
    if not totals["to_run"]:
        return "\n".join([*lines, f"nothing to do: all {totals['cached']} artefacts are committed"])
    lines += [f"{totals['to_run']} to run, {totals['cached']} cached", _stages(estimate)]
    lines += [f"  {kind}: {basis}" for kind, basis in totals["seconds_basis"].items()]
    lines += [f"  API: {api}"] if api else []
    lines.append(f"  disk: {estimate.space}")
    if found := estimate.document["budget"]:
        lines.append(f"  {budget.line(found, estimate.planned.sweep.runtime)}")
    return "\n".join([*lines, *(f"warning: {warning}" for warning in estimate.document["warnings"])])


def _smallest(name: str, each: Mapping[str, Any]) -> list[object]:
    spread = f"{each['spread']:g}, {each['spread_basis']}"
    wanted = ["none" if number is None else number for number in each["seeds_for"].values()]
    return [name, each["questions"], each["seeds"], each["points"], spread, *wanted]


def tables(estimate: Estimate) -> Iterator[tuple[str, list[str], list[list[object]]]]:
    """Yield per kind of artefact the title, the header and the rows of its table."""
    for kind, title in _TITLES.items():
        if items := [item for item in estimate.items if item.artefact.kind == kind]:
            header = [*items[0].artefact.labels, "state", "rows", "tokens", "per row", "time", "why"]
            yield f"{title}: {len(items)}", header, [_row(item) for item in items]


def marks(estimate: Estimate) -> list[str]:
    """Return what the marks in these tables mean, those that appear."""
    used = {_mark(item) for item in estimate.items if item.reads}
    return [meaning for mark, meaning in _MEANINGS.items() if mark in used]


def _row(item: Item) -> list[object]:
    job, why, mark = item.artefact.params, item.why, _mark(item)
    cut = mark if isinstance(job, FinetuneJob) and (job.budget or len(job.mixture) > 1) else ""  # to a length
    if why == "new" and isinstance(job, FinetuneJob):
        why = f"new ({job.finetune.epochs:g} epochs)"
    return [
        *item.artefact.labels.values(),
        item.state,
        f"{cut}{item.artefact.rows}",
        f"{mark}{count(item.reads)}" if item.reads else None,
        f"{mark}{count(round(item.reads / item.rows))}" if item.reads and item.rows else None,
        None if item.seconds is None or item.state == "cached" else duration(item.seconds),
        why if len(why) <= 90 else why[:89] + "…",
    ]


def _mark(item: Item) -> str:
    """Return the mark of a number that is not counted: those of what is made are known."""
    return "" if item.state == "cached" else _MARKS[item.artefact.counted]


def _stages(estimate: Estimate) -> str:
    stages, totals = estimate.document["stages"], estimate.document["totals"]
    rows = []
    for stage in stages:
        time = duration(stage["seconds"]) + (f" and {stage['unknown']} unknown" if stage["unknown"] else "")
        hours = None if stage["on"] == "api" else _hours(stage["hours"], stage["on"])
        rows.append([stage["stage"], stage["artefacts"], *_counts([stage]), hours, time])
    missing = sum(stage["unknown"] for stage in stages)
    time = f"about {duration(estimate.known_seconds)}" + (f", without {missing} of unknown size" if missing else "")
    every = [_hours(totals[f"{on}_hours"], on) for on in ("gpu", "cpu") if totals[f"{on}_hours"]]
    rows.append(["all", totals["to_run"], *_counts(stages), ", ".join(every) or None, time])
    return table(["stage", "to run", "tokens", "written", "device time", "time"], rows)


def _counts(stages: Sequence[Mapping[str, Any]]) -> list[str | None]:
    written = sum(stage["tokens_written"] for stage in stages)
    return [count(sum(stage["tokens"] for stage in stages)), count(written) if written else None]


def _hours(number: float, on: str) -> str:
    digits = 0 if number >= 10 else 2 if number >= 0.1 else 3
    return f"{number:,.{digits}f} {on.upper()}-hours"


def _api(estimate: Estimate) -> str:
    """Return what goes through an API and what it charges, or which prices are missing; empty if nothing does."""
    api, runtime = estimate.document["totals"]["api"], estimate.planned.sweep.runtime
    prices = {name: getattr(runtime, f"api_price_{name}") for name, number in api["tokens"].items() if number}
    if not prices:
        return ""
    what = ", ".join(f"{api['tokens'][name]:,} {name}" for name in prices)
    if api["usd"] is None:
        absent = ", ".join(f"runtime.api_price_{name}" for name, price in prices.items() if price is None)
        return f"{what} tokens; no prices given ({absent}: USD per million tokens)"
    each = ", ".join(f"{name} {price:g}" for name, price in prices.items())
    return f"{what} tokens: about {api['usd']:,.2f} USD ({each} per million)"
