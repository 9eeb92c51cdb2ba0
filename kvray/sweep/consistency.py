"""Checks across the fields of a sweep: names, mixtures against datasets, training data against evaluations."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from kvray.errors import KvrayError, Path, Problem
from kvray.tasks.base import REGISTRY, Task
from kvray.tasks.problems import MAX_PROBLEMS, show, unknown

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
"""Names of sweeps, datasets, mixtures and evaluations. A figure's file name holds two of them in its 255 bytes."""
NAME_RULE = "up to 80 letters, digits and . _ -, starting with a letter or digit"
RESERVED = "base"
"""The base model's name in results, so no mixture may have it."""
SWEEP_FILES = (".yaml", ".yml")
"""Endings of sweep files, by which commands tell a file from a sweep's name."""
MAX_PAIRS = 100_000
"""Limit on pairs of training data (a dataset with one seed) and evaluation, each of which is compared."""

Overlaps = dict[tuple[str, str], str | None]
"""Results of :meth:`Task.overlaps`, which may read sources, by the JSON of both tasks."""


def cross_problems(
    raw: Mapping[str, Any],
    datasets: Mapping[str, Task],
    evaluate: Mapping[str, Task],
    seeds: Sequence[int],
    overlaps: Overlaps,
) -> list[Problem]:
    """Return the problems between the parts of a sweep, given its plain values and its valid tasks.

    ``seeds`` are what finetunes add to the seeds of datasets. ``overlaps`` is read, and gets the pairs it lacks.
    """
    problems = [*_name_problems(raw), *_reference_problems(raw)]
    if not raw.get("datasets") and not raw.get("evaluate"):
        problems.append(Problem((), "found neither datasets nor evaluate; expected at least one of them"))
    names = list(mapping(raw, "datasets"))
    for mixture, weights in mapping(raw, "mixtures").items():
        if weights == {}:
            problems.append(Problem(("mixtures", mixture), "found no dataset; expected DATASET: WEIGHT"))
        for name in weights if isinstance(weights, Mapping) and len(problems) <= MAX_PROBLEMS else ():
            if name not in names:
                problems.append(Problem(("mixtures", mixture, name), unknown(name, names, "one of the datasets")))
    trainable = {name: task for name, task in datasets.items() if task.TRAINABLE}
    for name in (name for name in datasets if name not in trainable):
        able = ", ".join(sorted(other for other, cls in REGISTRY.items() if cls.TRAINABLE))
        text = f"found {datasets[name].task!r}, which only evaluates; expected one of the tasks to train on: {able}"
        problems.append(Problem(("datasets", name, "task"), text))
    pairs = len(trainable) * len(seeds) * len(evaluate)
    if pairs > MAX_PAIRS:
        text = f"found {len(trainable)} datasets, of {len(seeds)} seeds each, beside {len(evaluate)} evaluations: "
        text += f"{pairs:,} pairs of training data and questions; expected at most {MAX_PAIRS:,}"
        return [*problems, Problem(("datasets",), text)]
    return [*problems, *_overlap_problems(trainable, evaluate, seeds, overlaps)]


def mapping(raw: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """Return a section, empty if it is absent or no mapping (which is reported elsewhere)."""
    value = raw.get(section)
    return value if isinstance(value, Mapping) else {}


@cache
def reference_sets() -> tuple[str, ...]:
    """Return the names of kvray's sets of published numbers."""
    file = resources.files("kvray") / "results" / "reference.csv"  # as data: kvray.results brings polars in
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return tuple(dict.fromkeys(row["set"] for row in rows))


def _name_problems(raw: Mapping[str, Any]) -> Iterator[Problem]:
    for section in ("datasets", "mixtures", "evaluate"):
        first: dict[str, str] = {}
        # A dataset is a mixture of its own where the file has no mixtures.
        in_results = section != "datasets" or raw.get("mixtures") is None
        for name in mapping(raw, section):
            text = None
            if not NAME.fullmatch(name):
                yield Problem((section, name), f"found the name {show(name)}; expected {NAME_RULE}")
            if in_results and name.lower() == RESERVED:
                text = f"found the name {name!r}, which means the base model in all results; expected another one"
                text += " (renaming makes nothing anew)"
            elif (other := first.setdefault(name.lower(), name)) != name:
                text = f"found {name!r} beside {other!r}; expected names that differ by more than upper and lower case"
            if text:
                yield Problem((section, name), text)


def _reference_problems(raw: Mapping[str, Any]) -> Iterator[Problem]:
    named = raw.get("reference")
    places: list[tuple[Path, Any]] = [(("reference",), named)]
    if isinstance(named, list | tuple):
        places = [(("reference", at), name) for at, name in enumerate(named)]
    for path, name in places:
        if isinstance(name, str) and name not in reference_sets():
            yield Problem(path, unknown(name, reference_sets(), "one of the sets of published numbers"))


def _overlap_problems(
    datasets: Mapping[str, Task], evaluate: Mapping[str, Task], seeds: Sequence[int], overlaps: Overlaps
) -> Iterator[Problem]:
    asked = [(name, task, task.model_dump_json()) for name, task in evaluate.items()]
    for name, task in datasets.items() if asked else ():
        drawn = [(each, each.model_dump_json()) for each in map(task.reseeded, seeds)]
        for evaluation, other, questions in asked:
            for each, text in drawn:
                if (text, questions) not in overlaps:
                    overlaps[text, questions] = _overlap(each, other)
            shared = next((why for _, text in drawn if (why := overlaps[text, questions]) is not None), None)
            if shared:
                found = f"found training data that evaluate.{evaluation} asks about ({shared}); expected them apart"
                yield Problem(("datasets", name), found)


def _overlap(task: Task, other: Task) -> str | None:
    try:
        return task.overlaps(other)
    except (OSError, KvrayError):
        return None  # planning reads every source, and reports those that cannot be read
