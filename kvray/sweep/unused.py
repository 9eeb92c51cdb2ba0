"""Knobs of ``finetune`` that have no effect with the method (an adapter's rank with ``full``) or with an API.

Only written knobs are reported, never defaults. If ``--set`` or a scale changes the method or the base model, knobs
written before that are no mistake: a knob is reported only if written as late as the choice that makes it useless.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvray.errors import Path, Problem
from kvray.models.reference import API
from kvray.sweep.document import Document
from kvray.sweep.model import Finetune
from kvray.tasks.problems import show

_METHODS = ("lora", "attention", "full")


def unused(document: Document) -> list[Problem]:
    """Return a problem per knob of ``finetune``, in its block, grid or zip, that no variant uses."""
    base_model = document.value.get("base_model")
    api = isinstance(base_model, str) and base_model.startswith(API)
    methods = _methods(document)
    if not methods <= set(_METHODS):
        return []  # the sweep's own check reports it
    chosen = document.lateness(("base_model",))
    if api:
        used = {*Finetune().api_recipe(), "seeds", "reseed_data"}
        why = "which a model behind an API does not use"
    else:
        used = {"method", "seeds", "reseed_data"}.union(*(_recipe(method) for method in methods))
        chosen = max([chosen, *(document.lateness(path) for path in _written(document, "method"))])
        why = f"which method: {' and '.join(sorted(methods))} does not use"
    found = []
    for name in (name for name in Finetune.model_fields if name not in used):
        instead = "it left out, or method: lora" if not api and name in _recipe("lora") else "it left out"
        for path, value in _written(document, name).items():
            if value is not None and document.lateness(path) >= chosen:
                found.append(Problem(path, f"found {show(value)}, {why}; expected {instead}"))
    return found


def _recipe(method: str) -> set[str]:
    return set(Finetune.model_validate({"method": method}).recipe())


def _methods(document: Document) -> set[str]:
    varied = [value for path, value in _written(document, "method").items() if path[0] != "finetune"]
    values = [each for value in varied if isinstance(value, list) for each in value]
    own = _written(document, "method").get(("finetune", "method"), Finetune().method)
    return {str(each) for each in values or [own]}


def _written(document: Document, name: str) -> dict[Path, object]:
    """Return the paths at which a knob of finetune is written, with its value or its list of values."""
    found: dict[Path, object] = {}
    for section, key in (("finetune", name), ("grid", f"finetune.{name}"), ("zip", f"finetune.{name}")):
        block = document.value.get(section)
        if isinstance(block, Mapping) and key in block:
            found[section, key] = block[key]
    return found
