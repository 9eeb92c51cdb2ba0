"""The names that a sweep's file gives, against those that are kvray's own, and against each other."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from kvray.errors import Path, Problem
from kvray.tasks.problems import unknown

RESERVED = "base"
"""What results call the base model, beside mixtures and in the place of evaluations' models."""
SWEEP_FILES = (".yaml", ".yml")
"""Endings of sweep files: commands that take a file or a sweep's name tell them apart by these."""
_SECTIONS = ("datasets", "mixtures", "evaluate")


def name_problems(raw: Mapping[str, Any]) -> list[Problem]:
    """Check the names of datasets, mixtures and evaluations, and those under ``reference``.

    Args:
        raw: the plain values of a sweep.
    """
    problems = []
    for section in _SECTIONS:
        blocks = raw.get(section)
        names = [name for name in blocks if isinstance(name, str)] if isinstance(blocks, Mapping) else []
        first: dict[str, str] = {}
        # A dataset is a mixture of its own where the file has none.
        shown = section != "datasets" or raw.get("mixtures") is None
        for name in names:
            if shown and name.lower() == RESERVED:
                text = f"found the name {name!r}, which means the base model in all results; expected another one"
                problems.append(Problem((section, name), f"{text} (renaming makes nothing anew)"))
            elif (other := first.setdefault(name.lower(), name)) != name:
                text = f"found {name!r} beside {other!r}; expected names that differ by more than upper and lower case"
                problems.append(Problem((section, name), text))
    return problems + _references(raw)


@cache
def reference_sets() -> tuple[str, ...]:
    """Return the names of the sets of published numbers that come with kvray."""
    file = resources.files("kvray") / "results" / "reference.csv"  # as data: kvray.results brings polars in
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return tuple(dict.fromkeys(row["set"] for row in rows))


def _references(raw: Mapping[str, Any]) -> list[Problem]:
    named = raw.get("reference")
    listed = named if isinstance(named, list | tuple) else ()
    places: list[tuple[Path, Any]] = [(("reference",), named)] if isinstance(named, str) else []
    places += [(("reference", at), name) for at, name in enumerate(listed)]
    known, what = reference_sets() if places else (), "one of the sets of published numbers"
    return [
        Problem(path, unknown(name, known, what))
        for path, name in places
        if isinstance(name, str) and name not in known
    ]
