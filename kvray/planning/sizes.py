"""Datasets whose ``rows`` or ``questions`` a sweep leaves out are made as large as their mixtures need.

A mixture is cut to the tokens of the sweep's first one (``finetune.match: tokens``), so it must have as many. Where a
size is given, too few are a problem of the plan; where it is left out, the task's default is raised to what suffices,
and stays if it suffices. The number is part of the dataset's recipe, hence a function of the sweep and its sources:
all rows are counted for it, since a sample's size may change from one version to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from kvray.errors import Path
from kvray.planning.artefacts import FinetuneJob
from kvray.planning.lengths import Lengths
from kvray.planning.mixture import doubtful, read_per_epoch
from kvray.sweep.grid import Variant
from kvray.sweep.model import Sweep
from kvray.tasks.base import Task

MOST_TOKENS = 5_000_000
"""A larger dataset is judged by a sample of its rows: counting all would take a plan more than half a minute."""
_FIELDS = ("rows", "questions")
_ROUND = 10  # numbers are raised to a multiple of it

LengthsOf = Callable[[Task], Lengths]


def left_out(sweep: Sweep, variants: Sequence[Variant]) -> dict[str, str]:
    """Return the datasets whose size may be raised, each with the name of that field.

    They are cut to the first mixture's tokens in some variant, and the sweep does not say how large they are.
    """
    matched = {name for variant in variants for job, _ in _jobs(variant.sweep) for name, _ in job.mixture}
    found = {}
    for name, task in sweep.datasets.items():
        field = next((each for each in _FIELDS if getattr(task, each, None) is not None), None)
        varied = f"datasets.{name}.{field}" in (*sweep.grid, *sweep.zip)
        if field and name in matched and field not in task.model_fields_set and not varied:
            found[name] = field
    return found


def to_count(
    variants: Sequence[Variant], lengths: LengthsOf, left_out: Collection[str]
) -> Iterator[tuple[Variant, Path, Task]]:
    """Yield the tasks of which all rows must be counted to tell whether a mixture has enough tokens."""
    for variant in variants:
        for job, tasks in _jobs(variant.sweep):
            known = {name: lengths(task) for name, task in tasks.items()}
            judged = any(name in left_out for name, _ in job.mixture)
            if doubtful(job, known, below=judged) and all(_countable(each) for each in known.values()):
                yield from ((variant, ("datasets", name), task) for name, task in tasks.items())


def needed(variants: Sequence[Variant], lengths: LengthsOf, left_out: Collection[str]) -> dict[str, int]:
    """Return how many rows those of ``left_out`` get that have too few: enough for every variant and seed."""
    rows: dict[str, int] = {}
    for variant in variants:
        for job, tasks in _jobs(variant.sweep):
            for short in read_per_epoch(job, {name: lengths(task) for name, task in tasks.items()}).short:
                if short.name in left_out:
                    enough = math.ceil(short.enough / _ROUND) * _ROUND
                    rows[short.name] = max(enough, rows.get(short.name, 0))
    return rows


def resized(sweep: Sweep, rows: Mapping[str, int]) -> Sweep:
    """Return a sweep with datasets of these sizes, as if it had given them."""
    datasets = {name: task.with_rows(rows[name]) if name in rows else task for name, task in sweep.datasets.items()}
    return sweep.model_copy(update={"datasets": datasets}) if rows else sweep


def _jobs(sweep: Sweep) -> Iterator[tuple[FinetuneJob, dict[str, Task]]]:
    """Yield every finetune that is cut to the first mixture's tokens, by names of datasets, with their tasks."""
    if sweep.finetune.match != "tokens":
        return
    mixtures = [
        tuple((name, weight / sum(weights.values())) for name, weight in weights.items())
        for weights in sweep.mixtures.values()
    ]
    first, *others = dict.fromkeys(mixtures) or [()]
    for seed in sweep.finetune.seeds:
        own = seed if sweep.finetune.reseed_data else 0
        for mixture in others:
            names = dict.fromkeys(name for name, _ in (*mixture, *first))
            tasks = {name: sweep.datasets[name].reseeded(own) for name in names}
            yield FinetuneJob(sweep.finetune, seed, mixture, first), tasks


def _countable(lengths: Lengths) -> bool:
    return lengths.total(lengths.trained) <= MOST_TOKENS
