"""Names that mean different things in different sweeps of a store: no number over several sweeps may mix them.

A sweep's names are its own: two sweeps may call different data "ours", or the same data by different names. What a name
stands for is told by the artefacts that the plan documents give it, never by the name.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

Ids = dict[Any, str]
"""Ids of artefacts, by what tells those of one name apart (a finetune's seed)."""


def ambiguous(documents: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Return the names that two sweeps give to different things.

    An evaluation is what the base model was asked in it; a model is its finetunes by seed. Of two sweeps that share a
    name, all that both have under it must be the same artefacts, and they must share one at least.

    Args:
        documents: plan documents, by the sweep's name.

    Returns:
        (what has the name, the first sweep, another that differs), each name once.
    """
    found: dict[str, tuple[str, str, str]] = {}
    for (first, one), (second, other) in itertools.combinations(documents.items(), 2):
        for what in _differing(one, other):
            found.setdefault(what, (what, first, second))
    return list(found.values())


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    asked, asked_there = _asked(one), _asked(other)
    shared = [name for name in asked if name in asked_there]
    same = [name for name in shared if asked[name] == asked_there[name]]
    yield from (f"evaluation {name}" for name in shared if name not in same)
    if one.get("base_model") != other.get("base_model") and not same:
        yield "the base model"
    tuned, tuned_there = _tuned(one), _tuned(other)
    for name in tuned:
        if name in tuned_there and not _alike(tuned[name], tuned_there[name]):
            yield f"mixture {name[0]} ({name[1]})"


def _alike(one: Ids, other: Ids) -> bool:
    both = one.keys() & other.keys()
    return bool(both) and all(one[key] == other[key] for key in both)


def _asked(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the base model's predictions, by evaluation."""
    planned = [artefact for artefact in document["artefacts"] if artefact["kind"] == "predictions"]
    return {a["labels"]["evaluation"]: a["id"] for a in planned if a["labels"].get("mixture") is None}


def _tuned(document: Mapping[str, Any]) -> dict[tuple[str, str], Ids]:
    """Return the finetunes, by (mixture, finetune)."""
    found: dict[tuple[str, str], Ids] = {}
    for artefact in document["artefacts"]:
        if artefact["kind"] == "finetune":
            labels = artefact["labels"]
            found.setdefault((labels["mixture"], labels["finetune"]), {})[labels["seed"]] = artefact["id"]
    return found
