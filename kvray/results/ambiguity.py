"""Names that stand for different artefacts in different sweeps of a store: no number over several sweeps mixes them."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

Ids = dict[Any, str]
"""Ids of the finetunes of one model, by seed."""


def ambiguous(documents: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Return each name that differs between two plan documents (given by sweep), as (name, first sweep, second sweep).

    An evaluation stands for the base model's predictions in it, a model for its finetunes by seed. Where two sweeps
    share a name, the artefacts that both have under it must be the same, and they must share at least one.
    """
    clashes: dict[str, tuple[str, str, str]] = {}
    for (first, one), (second, other) in itertools.combinations(documents.items(), 2):
        for name in _differing(one, other):
            clashes.setdefault(name, (name, first, second))
    return list(clashes.values())


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    evaluations, of_other = _evaluations(one), _evaluations(other)
    shared = [name for name in evaluations if name in of_other]
    same = [name for name in shared if evaluations[name] == of_other[name]]
    yield from (f"evaluation {name}" for name in shared if name not in same)
    if one.get("base_model") != other.get("base_model") and not same:
        yield "the base model"
    finetunes, of_theirs = _finetunes(one), _finetunes(other)
    for name in (name for name in finetunes if name in of_theirs):
        seeds = finetunes[name].keys() & of_theirs[name].keys()
        if not seeds or any(finetunes[name][seed] != of_theirs[name][seed] for seed in seeds):
            yield f"mixture {name[0]} ({name[1]})"


def _evaluations(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the ids of the base model's predictions, by evaluation."""
    planned = [artefact for artefact in document["artefacts"] if artefact["kind"] == "predictions"]
    return {a["labels"]["evaluation"]: a["id"] for a in planned if a["labels"].get("mixture") is None}


def _finetunes(document: Mapping[str, Any]) -> dict[tuple[str, str], Ids]:
    by_name: dict[tuple[str, str], Ids] = {}
    for artefact in document["artefacts"]:
        if artefact["kind"] == "finetune":
            labels = artefact["labels"]
            by_name.setdefault((labels["mixture"], labels["finetune"]), {})[labels["seed"]] = artefact["id"]
    return by_name
