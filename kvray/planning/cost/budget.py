"""What a sweep may spend (``runtime.budget``), what its runs have spent, and what is left to make.

    spent/<sweep>/<run>.json    the hours of one run of a sweep, written again and again by that run alone

What is spent are the hours for which seats (engines, worker groups) held GPUs, each GPU counted, from their first
process on: the loading of models and idle times are in it. A run that holds no GPU counts the hours of its seats
instead, so that a budget can be tried on a laptop. Time of nodes that start, or that nobody uses, is not in it, nor
what an API charges.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvray.errors import StoreError

if TYPE_CHECKING:
    from kvray.store.root import Root
    from kvray.sweep.model import Runtime

FOLDER = "spent"
FORMAT = 1
MARGIN = 1.1
"""Of the estimated rest, what a message tells to raise a budget by: estimates are rough."""


@dataclass(frozen=True)
class Spent:
    """What runs of a sweep have spent: ``hours``, and whether any of them are of GPUs."""

    hours: float = 0.0
    gpus: bool = False

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.hours + other.hours, self.gpus or other.gpus)

    def to_bytes(self, run: str, sweep: str, host: str) -> bytes:
        """Return the document of one run."""
        counted = "GPUs" if self.gpus else "seats"
        document = {"format": FORMAT, "run": run, "sweep": sweep, "host": host, "hours_of": counted}
        return (json.dumps(document | {"hours": self.hours}, indent=1) + "\n").encode()


def read(store: Root, sweep: str, but: str = "") -> Spent:
    """Return what the runs of a sweep have spent, without the run ``but``; StoreError if a document is unreadable."""
    folder = store.folder(f"{FOLDER}/{sweep}")
    names = sorted(name for name in folder.names() if name.endswith(".json") and name != f"{but}.json")
    found = Spent()
    for name, data in zip(names, store.each(folder.read, names), strict=True):
        if data is None:
            continue
        try:
            document = json.loads(data)
            if document["format"] != FORMAT:
                raise ValueError(f"found format {document['format']}, expected {FORMAT}: use the kvray that wrote it")
            found += Spent(float(document["hours"]), document["hours_of"] == "GPUs")
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{folder.place}/{name} does not tell what a run has spent: {error!r}") from error
    return found


def limit(runtime: Runtime) -> float | None:
    """Return the hours that all runs of a sweep may spend together, None if there is no budget."""
    budget, price = runtime.budget, runtime.gpu_price
    hours = [] if budget.gpu_hours is None else [budget.gpu_hours]
    hours += [] if budget.usd is None or price is None else [budget.usd / price]
    return min(hours, default=None)


def needed(stages: Sequence[Mapping[str, Any]]) -> Spent:
    """Return about what stages of an estimate will spend: hours of GPUs or, if none of them has any, of seats."""
    gpus = any(stage["on"] == "gpu" for stage in stages)
    hours = sum(stage["hours"] if gpus else stage["seat_hours"] for stage in stages if stage["on"] == "gpu" or not gpus)
    return Spent(hours, gpus)


def document(runtime: Runtime, spent: Spent, stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a plan's budget in plain values, for the stages of its estimate; ``fits`` is None without a budget."""
    to_come, unknown = needed(stages), sum(stage["unknown"] for stage in stages)
    most = limit(runtime)
    return {
        "gpu_hours": runtime.budget.gpu_hours,
        "usd": runtime.budget.usd,
        "gpu_price": runtime.gpu_price,
        "hours_of": "GPUs" if (spent + to_come).gpus else "seats",
        "spent_hours": round(spent.hours, 6),
        "needed_hours": round(to_come.hours, 6),
        "unknown": unknown,
        "fits": None if most is None else spent.hours + to_come.hours <= most,
    }


def line(budget: Mapping[str, Any], runtime: Runtime) -> str:
    """Return what a plan says of its :func:`document`: whether it fits, and what to type if it does not."""
    both = Spent(budget["needed_hours"], budget["hours_of"] == "GPUs")
    unit, price, most = unit_of(both), runtime.gpu_price, limit(runtime)
    to_come = f"about {amount(both.hours, price, unit)} to come" + (
        f", without {budget['unknown']} of unknown size" if budget["unknown"] else ""
    )
    if most is None:
        return f"price: {to_come}"
    spent, allowed = budget["spent_hours"], amount(most, price, unit)
    head = f"budget: {allowed}, {amount(spent, price, unit)} spent, {to_come}"
    if budget["fits"]:
        return f"{head}: fits"
    if spent >= most:
        return f"{head}: it is spent, and a run starts nothing; {raise_to(runtime, spent, both.hours)}"
    return f"{head}: does not fit; a run stops when it is spent; {raise_to(runtime, spent, both.hours)}"


def told(spent: Spent, price: float | None) -> str:
    """Return what ``kvray status`` says of it: ``spent: 12.3 GPU-hours (24.60 USD)``."""
    return f"spent: {amount(spent.hours, price, unit_of(spent))}"


def stopped(runtime: Runtime, spent: Spent, left: int, to_come: Spent) -> str:
    """Return what a run says that has reached its budget, with ``left`` artefacts that it did not begin."""
    unit, price = unit_of(spent + to_come), runtime.gpu_price
    most = limit(runtime) or 0.0
    return (
        f"runtime.budget is spent: {amount(spent.hours, price, unit)} of {amount(most, price, unit)}. What is left to "
        f"make, {left} artefact{'s' * (left != 1)}, takes about {amount(to_come.hours, price, unit)}. To go on, "
        f"{raise_to(runtime, spent.hours, to_come.hours)}"
    )


def raise_to(runtime: Runtime, spent: float, to_come: float) -> str:
    """Return which knobs to raise, and how far, so that about ``to_come`` further hours fit."""
    wanted = spent + MARGIN * to_come
    knobs = []
    if runtime.budget.gpu_hours is not None and runtime.budget.gpu_hours < wanted:
        knobs.append(f"--set runtime.budget.gpu_hours={_up(wanted)}")
    if runtime.budget.usd is not None and runtime.gpu_price and runtime.budget.usd < wanted * runtime.gpu_price:
        knobs.append(f"--set runtime.budget.usd={_up(wanted * runtime.gpu_price)}")
    return f"raise it: {' '.join(knobs)}"


def amount(hours: float, price: float | None, unit: str) -> str:
    """Return hours and, where there is a price, what they cost: ``12.3 GPU-hours (24.60 USD)``."""
    usd = "" if price is None else f" ({hours * price:,.{2 if hours * price >= 0.1 else 4}f} USD)"
    return f"{_digits(hours)} {unit}{usd}"


def unit_of(spent: Spent) -> str:
    """Return what hours are called: those of GPUs, or of the seats of runs without any."""
    return "GPU-hours" if spent.gpus else "seat-hours"


def _digits(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _up(value: float) -> str:
    """Return a number rounded up to two digits, as one types it."""
    if value <= 0:
        return "1"
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(round(value / step, 6)) * step:.6g}"
